"""The list of commands: ``python -m vae_lightning``."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vae_lightning
from conftest import typed

PROJECT = Path(vae_lightning.__file__).parents[2]
COMMANDS = [
    "encode",
    "evaluate",
    "explore",
    "export",
    "sample",
    "summarize",
    "train",
    "train_classifier",
    "tune",
    "visualize",
]


def python(*arguments, directory, **environment):
    """Run ``python -m vae_lightning`` in a directory, and return the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "vae_lightning", *arguments],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=" ".join)
def test_all_ten_commands_are_listed_with_a_line_each(tmp_path, arguments):
    finished = python(*arguments, directory=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    start = "  python -m vae_lightning."
    lines = [line for line in finished.stdout.splitlines() if line.startswith(start)]
    listed = dict(line.removeprefix(start).split(maxsplit=1) for line in lines)
    assert list(listed) == COMMANDS
    assert all(description[0].isupper() for description in listed.values())
    assert listed["train"] == "Train a model"
    assert max(map(len, lines)) <= 100
    assert not list(tmp_path.iterdir())


def test_the_listed_commands_are_those_that_are_installed():
    scripts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["scripts"]
    assert sorted(scripts.values()) == [f"vae_lightning.{name}:main" for name in COMMANDS]


def test_the_version_is_printed(tmp_path):
    finished = python("--version", directory=tmp_path)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout == f"vae-lightning {vae_lightning.__version__}\n"


def test_the_list_needs_no_torch_and_no_hydra(tmp_path):
    finished = python(directory=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    lines = [line for line in finished.stderr.splitlines() if line.startswith("import time:")]
    imported = {line.rsplit("|", 1)[1].strip() for line in lines}
    assert "vae_lightning" in imported
    assert not imported & {"torch", "numpy", "hydra", "lightning"}


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("train", "error: train: not an option; type python -m vae_lightning.train\n"),
        ("--nosuch", "error: --nosuch: not an option; see --help\n"),
    ],
)
def test_anything_else_is_refused_in_a_line(tmp_path, typed, told):
    finished = python(typed, directory=tmp_path)
    assert (finished.returncode, finished.stdout, finished.stderr) == (1, "", told)


@pytest.mark.parametrize("command", ["train", "sample"])
def test_the_version_after_a_command_is_ours_as_well(command, tmp_path, monkeypatch, capsys):
    typed(command, "--version", directory=tmp_path, patch=monkeypatch)
    assert capsys.readouterr().out == f"vae-lightning {vae_lightning.__version__}\n"
    assert not list(tmp_path.iterdir())
