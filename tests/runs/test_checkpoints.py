"""Checkpoints that need nothing but the file, and files that are not ours."""

import contextlib
import errno
import os
import pickle
import random
import re
import resource
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

import vae_lightning
from chaos.faults import Calls, called_at, flipped, forked, points, truncated
from chaos.runs import MINIMAL, SMALL, run_of, signalled, train
from conftest import typed
from vae_lightning import VAE, SamplingNoise, VAEModule
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import atomic_files
from vae_lightning.runs.checkpoints import (
    VerifiedFiles,
    data_of,
    file_of_step,
    find_checkpoint,
    is_verified,
    keep,
    load_model,
    newest_whole,
    read,
    steps,
)


def test_a_run_directory_stands_for_its_best_checkpoint_else_its_last(trained, tmp_path):
    assert find_checkpoint(trained) == trained / "checkpoints" / "best.ckpt"
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "checkpoints")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"


def data_settings(file):
    """Return the settings of the data that a checkpoint was trained on."""
    return data_of(file, read(file))[1]


def test_a_model_needs_nothing_but_the_file(trained, tmp_path):
    file = Path(shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "model.ckpt"))
    vae = load_model(file)
    assert vae.latent_dim == 3
    content = torch.load(file, weights_only=True)
    weights = {f"model.{name}": weight for name, weight in vae.state_dict().items()}
    assert weights.keys() == content["state_dict"].keys()
    for name, weight in content["state_dict"].items():
        assert torch.equal(weights[name], weight)
    again = type(vae)(vae.data, **vae.settings)
    again.load_state_dict(vae.state_dict())
    assert again.settings == vae.settings


def test_a_notebook_loads_the_model_in_one_line(trained):
    vae = load_model(trained)
    assert not vae.training
    samples = vae.sample(2, SamplingNoise(2))
    assert samples.shape == (2, 1, 28, 28)
    assert not samples.requires_grad
    assert isinstance(vae, VAE)


def test_file_names_can_be_typed_as_overrides(trained):
    names = sorted(file.name for file in (trained / "checkpoints").iterdir())
    assert names[:2] == ["best.ckpt", "last.ckpt"]
    assert all(re.fullmatch(r"step_\d{8}\.ckpt(\.sha256)?", name) for name in names[2:])


def plain_values(content):
    """Yield the values in nested dictionaries, lists and tuples."""
    if isinstance(content, dict | list | tuple):
        for value in content.values() if isinstance(content, dict) else content:
            yield from plain_values(value)
    else:
        yield content


def test_checkpoints_hold_plain_values_only(trained):
    settings = data_settings(trained / "checkpoints" / "best.ckpt")
    assert settings["name"] == "mnist_subset"
    assert settings["val_size"] == 80
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    stored = checkpoint["hyper_parameters"]
    assert stored.keys() == {"model", "optimizer", "seed", "trainer", "version"}
    assert stored["model"].keys() == {"target", "settings", "data"}
    assert stored["model"]["settings"]["latent_dim"] == 3
    assert stored["version"] == vae_lightning.__version__
    both = [stored, checkpoint["datamodule_hyper_parameters"]]
    for value in plain_values(both):
        assert type(value) in (int, float, str, bool, type(None))


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("content", ["empty", "text", "hostile", "foreign"])
def test_files_that_are_no_checkpoints_of_ours_are_refused_and_run_nothing(tmp_path, content):
    file = tmp_path / "model.ckpt"
    if content == "foreign":
        torch.save({"state_dict": {}}, file)
    elif content == "hostile":
        torch.save(
            {"state_dict": {}, "hyper_parameters": Hostile(tmp_path / "executed")},
            file,
            pickle_protocol=2,
        )
    else:
        file.write_bytes(b"" if content == "empty" else b"not a checkpoint")
    for function in (load_model, data_settings):
        message = f"checkpoint={file}: not a checkpoint of this project"
        with pytest.raises(ValueError, match=message):
            function(file)
    assert not (tmp_path / "executed").exists()


def test_the_hostile_file_would_have_run_code(tmp_path):
    pickle.loads(pickle.dumps(Hostile(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="not found; type a checkpoint file or a run"):
        find_checkpoint(tmp_path / "nosuch")
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoints/best\.ckpt or last\.ckpt"):
        find_checkpoint(tmp_path)


# -- checkpoints of version 0.1 -------------------------------------------------------------------


def write_earlier(file):
    """Write a checkpoint as version 0.1 did, with its checksum, and return it."""
    settings = {"latent_dim": 20, "hidden_dims": [400], "learning_rate": 1e-3, "seed": 1}
    data = {"name": "mnist", "val_size": 5000, "seed": 1}
    content = {
        "epoch": 0,
        "global_step": 3,
        "state_dict": {"vae.prior_loc": torch.zeros(20)},
        "hyper_parameters": settings,
        "datamodule_hyper_parameters": data,
    }
    VerifiedFiles().save_checkpoint(content, file)
    assert is_verified(file)
    return file


READ_BY_0_1 = "written by vae-lightning 0.1, and only version 0.1 reads it"


@pytest.mark.parametrize(
    "command", ["evaluate", "sample", "encode", "visualize", "export", "explore"]
)
def test_a_command_refuses_a_checkpoint_of_version_0_1_in_a_sentence(
    tmp_path, monkeypatch, command
):
    file = write_earlier(tmp_path / "earlier.ckpt")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as exit_:
        typed(command, f"checkpoint={file}", directory=tmp_path, patch=monkeypatch)
    assert exit_.value.code == f"error: checkpoint={file}: {READ_BY_0_1}"
    assert sorted(tmp_path.iterdir()) == before


def test_load_refuses_a_checkpoint_of_version_0_1_in_a_sentence(tmp_path):
    file = write_earlier(tmp_path / "earlier.ckpt")
    with pytest.raises(ConfigurationError) as error:
        load_model(file)
    assert str(error.value) == f"checkpoint={file}: {READ_BY_0_1}"


def test_a_run_is_not_resumed_from_a_checkpoint_of_version_0_1(tmp_path):
    """Nor from an earlier one of its own: a run doesn't hold both, but by a mistake."""
    settings = ["trainer.max_epochs=1", "callbacks.last.every_n_steps=1"]
    with signalled([3]):
        assert train(tmp_path, *SMALL, MINIMAL, *settings) == 143
    run = run_of(tmp_path)
    write_earlier(file_of_step(run, 3))
    before = {file: file.read_bytes() for file in (run / "checkpoints").iterdir()}
    told = f"error: resume={run}: its step 3 was {READ_BY_0_1}"
    assert train(tmp_path, f"resume={run}") == told
    assert {file: file.read_bytes() for file in (run / "checkpoints").iterdir()} == before


def test_a_run_of_version_0_1_is_not_resumed(tmp_path):
    """Its configuration has no group for the optimiser."""
    folder = tmp_path / "run" / ".hydra"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("model: {latent_dim: 20, learning_rate: 0.001}\n")
    (folder / "overrides.yaml").write_text("[]\n")
    (folder / "hydra.yaml").write_text("hydra: {runtime: {cwd: /}}\n")
    told = str(train(tmp_path, f"resume={tmp_path / 'run'}"))
    assert "begun by version 0.1, and only version 0.1 goes on with it" in told
    assert len(told.splitlines()) == 1


# -- whose files are whose -------------------------------------------------------------------------

NOT_OURS = [
    "best_model.ckpt",
    "best_epoch=3.ckpt",
    "best_1.ckpt",
    "step_backup.ckpt",
    "step_3_backup.ckpt",
    "step_0000000x.ckpt",
    "step_000000003.ckpt",
    "step_00000001.ckpt.old",
    "other.ckpt",
    ".best_model.ckpt.tmp",
    ".notes.tmp",
]


def test_files_of_other_names_stay_and_are_no_steps(tmp_path):
    save(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints"
    for name in NOT_OURS:
        (folder / name).write_text(name)
        (folder / f"{name}.sha256").write_text(name)
    save(tmp_path, 3, 4)
    assert steps(tmp_path) == [4, 3]
    for name in NOT_OURS:
        assert (folder / name).read_text() == (folder / f"{name}.sha256").read_text() == name


def test_what_a_killed_process_left_unfinished_is_removed(tmp_path):
    save(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints"
    names = ["step_00000003.ckpt", ".step_00000004.ckpt.tmp", ".step_00000003.ckpt.sha256.tmp"]
    for name in (*names, "best_00000002.ckpt", ".best_00000003.ckpt.tmp"):
        (folder / name).touch()
    for name in (".last.ckpt.tmp", ".best.ckpt.tmp"):
        (folder / name).symlink_to("step_00000002.ckpt")
    save(tmp_path, 5)
    kept = {"step_00000003.ckpt", "step_00000005.ckpt", "step_00000005.ckpt.sha256", "last.ckpt"}
    assert {file.name for file in folder.iterdir()} == kept


def test_steps_of_nine_digits_are_kept_in_order(tmp_path):
    save(tmp_path, 99_999_998, 99_999_999, 100_000_000)
    assert steps(tmp_path) == [100_000_000, 99_999_999]
    assert newest_whole(tmp_path, -1)[0] == 100_000_000


def test_copies_in_the_place_of_links_become_links_again(tmp_path):
    """As ``cp -rL`` and stores without links leave them."""
    save(tmp_path, 1, 2)
    last = tmp_path / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    last.unlink()
    last.write_bytes(content)
    assert newest_whole(tmp_path, -1)[0] == 2
    assert last.readlink().name == "step_00000002.ckpt"


def test_another_file_in_the_place_of_a_link_is_refused_and_stays(tmp_path):
    save(tmp_path, 1, 2)
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.write_text("mine")
    told = r"checkpoints/best\.ckpt is none of this run's checkpoints, and would be replaced"
    with pytest.raises(ConfigurationError, match=told):
        newest_whole(tmp_path, -1)
    with pytest.raises(OSError, match=r"best\.ckpt can't be written: a file is there, and no link"):
        atomic_files.point(best, "step_00000002.ckpt")
    assert best.read_text() == "mine"


MINE = (
    "+callbacks.mine={_target_: lightning.pytorch.callbacks.ModelCheckpoint,"
    "dirpath: '${hydra:runtime.output_dir}/checkpoints', save_top_k: -1, %s}"
)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ("filename: best", "best.ckpt"),
        ("filename: last", "last.ckpt"),
        ("filename: mine, save_last: true", "last.ckpt"),
        (
            "filename: 'step_{step:08d}', auto_insert_metric_name: false",
            "step_00000010.ckpt",
        ),
        (
            "filename: 'best_{epoch:08d}', auto_insert_metric_name: false",
            "best_00000010.ckpt",
        ),
    ],
)
def test_a_callback_that_would_write_the_run_s_own_names_is_refused(tmp_path, settings, name):
    told = str(train(tmp_path, *SMALL, MINIMAL, MINE % settings))
    assert f"a ModelCheckpoint would write {name} there" in told
    assert len(told.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_a_user_s_own_callback_stay(tmp_path):
    mine = MINE % "filename: 'best_{epoch}', every_n_epochs: 1"
    assert train(tmp_path, *SMALL, MINIMAL, mine, "trainer.max_epochs=4") == 0
    folder = run_of(tmp_path) / "checkpoints"
    assert sorted(file.name for file in folder.glob("best_*.ckpt")) == [
        f"best_epoch={epoch}.ckpt" for epoch in range(4)
    ]
    assert all(map(is_verified, folder.glob("best_*.ckpt")))


# -- what a kill, a full disk and a flipped bit leave ---------------------------------------------


def save(directory, *steps_):
    """Write checkpoints after some steps of nothing in particular, as a run does."""
    for step in steps_:
        file = file_of_step(directory, step)
        VerifiedFiles().save_checkpoint(
            {"global_step": step, "weights": torch.full((100,), float(step))}, file
        )
        atomic_files.point(file.with_name("last.ckpt"), file.name)
        keep(directory)


def ended_at(directory, *end):
    """Write three checkpoints in a fork, that ends while it writes the third."""

    def run():
        save(directory, 1, 2)
        with Calls(*end) as calls:
            save(directory, 3)
        (directory / "called").write_text(" ".join(calls.called))
        return 0

    directory.mkdir()
    return forked(run, directory / "output")


@pytest.mark.parametrize("power", [False, True], ids=["killed", "the power cut"])
def test_whenever_it_ends_what_was_saved_before_is_there_and_verified(tmp_path, power):
    assert ended_at(tmp_path / "whole") == 0
    called = (tmp_path / "whole" / "called").read_text().split()
    assert {"open", "write", "fsync", "replace", "symlink", "unlink"} <= set(called)
    named = []
    for position, when in points(called):
        if when == ("before" if power else "after"):  # which make chaos tries too
            continue
        directory = tmp_path / f"{position}_{when}"
        assert ended_at(directory, position, when, power) == -9
        last = directory / "checkpoints" / "last.ckpt"
        assert is_verified(last.resolve())
        named.append(read(last)["global_step"])
        assert named[-1] <= newest_whole(directory, -1)[0] <= named[-1] + 1
    assert named == sorted(named)
    assert set(named) == {2, 3}


def test_what_was_written_is_there_after_a_power_cut(tmp_path):
    file = tmp_path / "metrics.json"

    def write(*end):
        file.write_bytes(b"old")
        with Calls(*end) as calls:
            atomic_files.write(file, b"new")
        (tmp_path / "called").write_text(str(len(calls.called)))
        return 0

    assert forked(write, tmp_path / "output") == 0
    last = int((tmp_path / "called").read_text()) - 1
    assert forked(partial(write, last, "after", True), tmp_path / "output") == -9
    assert file.read_bytes() == b"new"


def test_a_power_cut_would_lose_what_was_not_flushed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(Calls, "NAMES", tuple(name for name in Calls.NAMES if name != "fsync"))
    assert ended_at(tmp_path / "whole") == 0
    called = (tmp_path / "whole" / "called").read_text().split()
    assert ended_at(tmp_path / "cut", len(called) - 1, "after", True) == -9
    assert not is_verified(file_of_step(tmp_path / "cut", 3))


def test_every_flipped_bit_and_every_cut_is_detected(tmp_path):
    save(tmp_path, 1, 2, 3)
    file, draw = file_of_step(tmp_path, 3), random.Random(1)
    content = file.read_bytes()
    loaded = 0
    for damage in [flipped] * 200 + [truncated] * 20:
        file.write_bytes(damage(content, draw))
        assert not is_verified(file)
        with pytest.raises(
            ConfigurationError, match="not a checkpoint of this project, or damaged"
        ):
            read(tmp_path / "checkpoints" / "last.ckpt")
        with contextlib.suppress(Exception):
            torch.load(file, weights_only=True)
            loaded += 1
    assert loaded > 0  # what torch alone doesn't notice
    assert newest_whole(tmp_path, -1)[0] == 2


def test_a_full_disk_ends_the_run_with_path_and_cause_and_keeps_the_last_checkpoint(tmp_path):
    def fill():
        """Let no file grow beyond what is left of a checkpoint when step 3 has been taken."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    def run():
        with called_at(VAEModule, "training_step", 4, fill):
            return train(
                tmp_path, *SMALL, MINIMAL, "trainer.max_epochs=1", "callbacks.last.every_n_steps=3"
            )

    assert forked(run, tmp_path / "output") == 1
    directory = run_of(tmp_path)
    last = (tmp_path / "output").read_text().splitlines()[-1]
    file = "checkpoints/step_00000004.ckpt"
    assert re.fullmatch(
        rf"error: \S+{directory.name}/{file} can't be written: File too large", last
    )
    assert (directory / "checkpoints" / "last.ckpt").readlink().name == "step_00000003.ckpt"
    assert newest_whole(directory, -1)[0] == 3
    assert not list(directory.rglob(".*.tmp"))


def test_a_read_only_directory_is_named_with_the_cause(tmp_path, monkeypatch):
    def refuse(name, *_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))

    save(tmp_path, 1, 2, 3)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    monkeypatch.setattr(os, "open", refuse)
    file = file_of_step(tmp_path, 4)
    with pytest.raises(OSError, match=f"{file} can't be written: Read-only file system"):
        VerifiedFiles().save_checkpoint({}, file)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
