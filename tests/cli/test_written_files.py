"""Where the commands that use a model write: into a directory of their own, all or nothing."""

import errno
import importlib
import shutil

import pytest

from conftest import SUBSET, typed

# What is typed, and a function that is called after the first file was written.
COMMANDS = {
    "export": (["formats=[safetensors]"], "vae_lightning.exporting.model_card", "compose"),
    "encode": ([SUBSET[1]], "csv", "writer"),
    "sample": (["form=npy"], "numpy", "save"),
    "evaluate": (
        [SUBSET[1], "metrics=[bound]"],
        "vae_lightning.evaluation.report",
        "EventWriter",
    ),
    "visualize": (
        [SUBSET[1], "what=[kl]", "formats=[png,pdf]"],
        "matplotlib.backends.backend_pdf",
        "PdfFile",
    ),
}


def tree(root):
    """Return what lies below a folder, with the bytes of files."""
    return {
        path.relative_to(root): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


@pytest.fixture
def full_disk(monkeypatch):
    """Let a function of a module fail for want of space, once it has been named."""

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(module, name):
        monkeypatch.setattr(importlib.import_module(module), name, fail)

    return fill


@pytest.mark.parametrize("command", COMMANDS)
def test_a_directory_with_files_in_it_is_refused_and_left_as_it_is(
    trained, tmp_path, monkeypatch, command
):
    (tmp_path / "mine" / "samples").mkdir(parents=True)
    for name in ("README.md", "posteriors.csv", "samples.npy", "metrics.json", "kl.png"):
        (tmp_path / "mine" / name).write_text("mine")
    before = tree(tmp_path)
    arguments = [f"checkpoint={trained}", *COMMANDS[command][0], "hydra.run.dir=mine"]
    with pytest.raises(SystemExit, match=r"hydra\.run\.dir=mine: not empty, and nothing is over"):
        typed(command, *arguments, directory=tmp_path, patch=monkeypatch)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_fails_as_it_writes_leaves_no_file(
    trained, tmp_path, monkeypatch, full_disk, command
):
    arguments, module, name = COMMANDS[command]
    other = tmp_path / "outputs" / command / "other"
    other.mkdir(parents=True)
    (other / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    before = tree(tmp_path)
    full_disk(module, name)
    for place in ([], ["hydra.run.dir=mine"], ["hydra.run.dir=new/one"]):
        with pytest.raises(SystemExit, match="No space left"):
            typed(
                command,
                *(f"checkpoint={trained}", *arguments, *place),
                directory=tmp_path,
                patch=monkeypatch,
            )
        assert tree(tmp_path) == before


@pytest.mark.parametrize("kind", ["link", "another's"])
def test_an_evaluation_writes_no_events_into_a_folder_that_is_not_its_runs(
    trained, tmp_path, monkeypatch, kind
):
    run = shutil.copytree(trained, tmp_path / "run", symlinks=True)
    events = (tmp_path / "elsewhere" if kind == "link" else run) / "tensorboard"
    shutil.rmtree(run / "tensorboard")
    events.mkdir(parents=True)
    if kind == "link":
        (run / "tensorboard").symlink_to(events)
    else:
        (run / "checkpoints").rename(run / "models")
    file = next(run.glob("*/last.ckpt"))
    arguments = [f"checkpoint={file}", SUBSET[1], "metrics=[bound]"]
    typed("evaluate", *arguments, directory=tmp_path, patch=monkeypatch)
    assert list(events.iterdir()) == []
