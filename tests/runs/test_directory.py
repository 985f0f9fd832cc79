"""What a process made is removed again; whatever else the user has stays."""

import os
import signal

import pytest

from chaos.faults import called_at
from chaos.runs import MINIMAL, SMALL, run_of, train
from vae_lightning import VAEModule
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.directory import adopt, make, refuse_links, remove
from vae_lightning.training import experiment


def test_what_this_process_made_is_removed(tmp_path):
    make(tmp_path / "made")
    (tmp_path / "made" / "file").touch()
    assert remove(tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_what_it_found_empty_is_emptied_and_stays(tmp_path):
    (tmp_path / "mine" / "folder").mkdir(parents=True)
    (tmp_path / "mine" / "folder").rmdir()
    adopt(tmp_path / "mine")
    (tmp_path / "mine" / "folder").mkdir()
    (tmp_path / "mine" / "folder" / "file").touch()
    (tmp_path / "mine" / "link").symlink_to(tmp_path)
    assert remove(tmp_path / "mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize("kind", ["of another", "moved here", "a link"])
def test_what_it_did_not_make_stays(tmp_path, kind):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").touch()
    place = theirs
    if kind == "moved here":  # in the place of what was made
        place = tmp_path / "made"
        make(place)
        place.rename(tmp_path / "elsewhere")
        theirs.rename(place)
    elif kind == "a link":
        place = tmp_path / "link"
        place.symlink_to(theirs)
    assert not remove(place)
    assert (place / "file").exists()


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


TYPED = [*SMALL, MINIMAL, "trainer.max_epochs=1"]


def fail():
    raise ConfigurationError("no")


ENDS = {
    "refused at last": (experiment, "build_trainer", 2, fail),
    "stopped": (VAEModule, "configure_optimizers", 1, stop),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_folder_of_the_user_stays_after_a_run_that_came_to_nothing(tmp_path, end):
    (tmp_path / "mine").mkdir()
    with called_at(*ENDS[end]):
        assert train(tmp_path, *TYPED, "hydra.run.dir=mine") in (143, "error: no")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_directory_that_came_in_the_place_of_the_run_s_own_stays(tmp_path):
    def swap():
        run = run_of(tmp_path)
        run.rename(tmp_path / "moved")
        run.mkdir()
        (run / "notes").write_text("mine")
        stop()

    with called_at(VAEModule, "configure_optimizers", 1, swap):
        assert train(tmp_path, *TYPED) == 143
    assert (run_of(tmp_path) / "notes").read_text() == "mine"
    assert (tmp_path / "moved" / ".hydra" / "config.yaml").exists()


def test_links_to_checkpoints_beside_them_are_no_reason_to_refuse_a_directory(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("best", "last"):
        (tmp_path / "checkpoints" / f"{name}.ckpt").symlink_to("step_00000001.ckpt")
    refuse_links(tmp_path, "resume")
    (tmp_path / "checkpoints" / "last.ckpt").unlink()
    (tmp_path / "checkpoints" / "last.ckpt").symlink_to("../x")
    with pytest.raises(ConfigurationError, match=r"checkpoints/last\.ckpt in it is a link to \.\."):
        refuse_links(tmp_path, "resume")
