"""What a process made is removed again; whatever else the user has stays."""

import errno
import os
import signal

import pytest

from chaos.faults import called_at
from chaos.runs import MINIMAL, SMALL, run_of, train
from conftest import SUBSET, typed
from vae_lightning import VAEModule
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import directory
from vae_lightning.runs.directory import adopt, make, new_run_directory, refuse_links, remove
from vae_lightning.training import experiment


def test_what_this_process_made_is_removed(tmp_path):
    make(tmp_path / "made")
    (tmp_path / "made" / "file").touch()
    assert remove(tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_what_a_run_writes_leaves_a_directory_that_was_found_empty_and_nothing_else_does(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    adopt(mine)
    for folder in ("checkpoints", "notes"):
        (mine / folder).mkdir()
        (mine / folder / "file").touch()
    (mine / "train.log").touch()
    (mine / "images").symlink_to(tmp_path)
    assert remove(mine)
    left = {str(path.relative_to(mine)) for path in mine.rglob("*")}
    assert left == {"notes", "notes/file"}


@pytest.fixture
def command_of_its_own(tmp_path, monkeypatch):
    """Let ``new_run_directory`` take ``tmp_path / "mine"``, which is empty."""
    mine = tmp_path / "mine"
    mine.mkdir()
    monkeypatch.setattr(directory, "make_run_directory", lambda name: mine)
    monkeypatch.setattr(
        directory, "save_configuration", lambda config, writing: (writing / "config").touch()
    )
    return mine


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(content="ours", meanwhile=(), failure=None):
    """Write as a command does, while the user puts files beside."""
    with new_run_directory("sample", None) as writing:
        (writing / "samples.png").write_text(content)
        for name in meanwhile:
            (writing.parent / name).write_text("theirs")
        if failure:
            raise failure


def test_a_command_that_fails_takes_back_what_it_wrote_and_nothing_else(command_of_its_own):
    with pytest.raises(ZeroDivisionError):
        write(meanwhile=["letter.txt"], failure=ZeroDivisionError())
    assert names(command_of_its_own) == ["letter.txt"]


def test_a_command_that_succeeds_leaves_its_files_beside_those_of_others(command_of_its_own):
    write(meanwhile=["letter.txt"])
    assert names(command_of_its_own) == ["config", "letter.txt", "samples.png"]


def test_a_file_that_was_put_there_meanwhile_is_not_overwritten(command_of_its_own):
    with pytest.raises(ConfigurationError, match=r"mine/samples\.png: put there meanwhile"):
        write(meanwhile=["samples.png"])
    assert names(command_of_its_own) == ["samples.png"]
    assert (command_of_its_own / "samples.png").read_text() == "theirs"


def test_two_commands_do_not_write_into_one_directory(command_of_its_own):
    with new_run_directory("sample", None):
        with pytest.raises(ConfigurationError, match="another command is writing"):
            write()
        assert names(command_of_its_own) == [".writing"]
    assert names(command_of_its_own) == ["config"]


def test_a_full_disk_is_told_with_the_directory(command_of_its_own):
    with pytest.raises(OSError, match=r"No space left on device: '.*mine'"):
        write(failure=OSError(errno.ENOSPC, "No space left on device"))
    assert names(command_of_its_own) == []


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


@pytest.mark.parametrize("there", [(), ("letter.txt",)])
def test_the_directory_that_one_is_in_is_taken_if_it_is_named_and_empty(
    tmp_path, monkeypatch, there
):
    for name in there:
        (tmp_path / name).touch()
    arguments = [*SUBSET, MINIMAL, "trainer.fast_dev_run=true", "hydra.run.dir=."]
    if there:
        with pytest.raises(SystemExit, match=r"error: hydra\.run\.dir=\.: not empty"):
            typed("train", *arguments, directory=tmp_path, patch=monkeypatch)
        assert names(tmp_path) == ["letter.txt"]
    else:
        typed("train", *arguments, directory=tmp_path, patch=monkeypatch)
        assert ".hydra" in names(tmp_path)
