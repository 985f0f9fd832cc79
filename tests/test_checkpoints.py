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

import pytest
import torch

import vae_lightning
from chaos.faults import Calls, called_at, flipped, forked, points, truncated
from chaos.runs import MINIMAL, SMALL, run_of, train
from vae_lightning import VAEModule, durable
from vae_lightning.checkpoints import (
    VerifiedFiles,
    file_of_step,
    find_checkpoint,
    is_verified,
    keep,
    load_data_settings,
    load_module,
    newest_whole,
    read,
)
from vae_lightning.configuration import ConfigurationError


def test_a_run_directory_stands_for_its_best_checkpoint_else_its_last(trained, tmp_path):
    assert find_checkpoint(trained) == trained / "checkpoints" / "best.ckpt"
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "checkpoints")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"


def test_a_module_needs_nothing_but_the_file(trained):
    module = vae_lightning.VAEModule.load_from_checkpoint(trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert module.latent_dim == 3
    again = load_module(trained / "checkpoints" / "last.ckpt")
    for ours, theirs in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_notebook_loads_the_model_in_one_line(trained):
    vae = vae_lightning.load(trained)
    assert not vae.training
    assert vae.sample(2).shape == (2, 1, 28, 28)
    assert not vae.sample(2).requires_grad
    assert isinstance(vae, vae_lightning.VAE)


def test_file_names_can_be_typed_as_overrides(trained):
    names = sorted(file.name for file in (trained / "checkpoints").iterdir())
    assert names[:2] == ["best.ckpt", "last.ckpt"]
    assert all(re.fullmatch(r"step_\d{8}\.ckpt(\.sha256)?", name) for name in names[2:])


def test_checkpoints_hold_plain_values_only(trained):
    settings = load_data_settings(trained)
    assert settings["name"] == "mnist_subset"
    assert settings["val_size"] == 80
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    for value in [*checkpoint["hyper_parameters"].values(), *settings.values()]:
        assert type(value) in (int, float, str, bool, list, tuple, type(None))


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
        torch.save({"state_dict": {}, "hyper_parameters": Hostile(tmp_path / "executed")}, file, pickle_protocol=2)
    else:
        file.write_bytes(b"" if content == "empty" else b"not a checkpoint")
    for function in (vae_lightning.load, load_data_settings):
        with pytest.raises(ValueError, match=f"checkpoint={file}: not a checkpoint of this project"):
            function(file)
    assert not (tmp_path / "executed").exists()


def test_the_hostile_file_would_have_run_code(tmp_path):
    pickle.loads(pickle.dumps(Hostile(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a file nor a run directory"):
        find_checkpoint(tmp_path / "nosuch")
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoints/best\.ckpt or last\.ckpt"):
        find_checkpoint(tmp_path)


# -- what a kill, a full disk and a flipped bit leave -----------------------------------------------------------------


def save(directory, *steps_):
    """Write checkpoints after some steps of nothing in particular, as a run does."""
    for step in steps_:
        file = file_of_step(directory, step)
        VerifiedFiles().save_checkpoint({"global_step": step, "weights": torch.full((100,), float(step))}, file)
        durable.point(file.with_name("last.ckpt"), file.name)
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
            durable.write(file, b"new")
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
        with pytest.raises(ConfigurationError, match="not a checkpoint of this project, or damaged"):
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
            return train(tmp_path, *SMALL, MINIMAL, "trainer.max_epochs=1", "callbacks.last.every_n_steps=3")

    assert forked(run, tmp_path / "output") == 1
    directory = run_of(tmp_path)
    last = (tmp_path / "output").read_text().splitlines()[-1]
    file = "checkpoints/step_00000004.ckpt"
    assert re.fullmatch(rf"error: \S+{directory.name}/{file} can't be written: File too large", last)
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
