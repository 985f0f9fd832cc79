"""What the tests share: a few real digits, a way to run a command, and one trained run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# One thread for each process. The models here are too small for two, and threads that spin while
# they wait for each other make a busy machine six times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONG = 600
"""Seconds: a limit that a process reaches only if it hangs, however busy the machine is."""

DATA = Path(__file__).parent / "data"
SUBSET = ["data=mnist_subset", f"data.dir={DATA}"]


@pytest.fixture
def subset():
    """The 600 digits, read."""
    from vae_lightning.data.mnist import MNISTDataModule

    data = MNISTDataModule(name="mnist_subset", dir=str(DATA), batch_size=32, val_size=80)
    data.prepare_data()
    data.setup()
    return data


def digits():
    """Return the spec of grey 28 × 28 images of ten labels, as MNIST has it."""
    from vae_lightning import DataSpec

    return DataSpec((1, 28, 28), "unit", class_names=tuple("0123456789"))


def build_vae(spec=None, **settings):
    """Build a VAE of such images by its settings."""
    from vae_lightning import VAE

    return VAE(spec or digits(), **settings)


def build_module(spec=None, seed=1, optimizer=None, **settings):
    """Build a module with a VAE; ``optimizer`` holds the settings of its optimisation."""
    from vae_lightning import VAEModule
    from vae_lightning.training.optimizers import Optimization

    return VAEModule(build_vae(spec, **settings), Optimization(**(optimizer or {})), seed)


def run(command, *arguments, cwd, environment=None):
    """Run a command as a user types it, and return the finished process."""
    return subprocess.run(
        [sys.executable, "-m", f"vae_lightning.{command}", *arguments],
        cwd=cwd,
        env={**os.environ, "HYDRA_FULL_ERROR": "0", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=LONG,
    )


def typed(command, *arguments, directory, patch):
    """Run a command in this process, as if typed in ``directory``: without importing torch anew."""
    import importlib

    main = importlib.import_module(f"vae_lightning.{command}").main
    patch.chdir(directory)
    patch.setattr(sys, "argv", [command, *map(str, arguments)])
    patch.setenv("HYDRA_FULL_ERROR", "0")
    main()


def train_in(directory, *arguments):
    """Train on the 600 digits in a directory, in this process, and return the run's directory."""
    with pytest.MonkeyPatch.context() as patch:
        typed("train", *SUBSET, *arguments, directory=directory, patch=patch)
    [run_directory] = (directory / "outputs" / "train").iterdir()
    return run_directory


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The run directory of a small model trained for two epochs, in this process."""
    return train_in(
        tmp_path_factory.mktemp("trained"), "trainer.max_epochs=2", "model.latent_dim=3"
    )


@pytest.fixture(scope="session")
def conditional(tmp_path_factory):
    """The run directory of a small conditional model trained for one epoch."""
    directory = tmp_path_factory.mktemp("conditional")
    settings = ("model=conditional", "model.latent_dim=2", "trainer.max_epochs=1")
    return train_in(directory, *settings, "callbacks=minimal")


def evaluated(checkpoint, directory, patch, *arguments):
    """Evaluate in a directory, and return what the newest metrics.json there holds."""
    import json

    typed(
        "evaluate",
        f"checkpoint={checkpoint}",
        SUBSET[1],
        *arguments,
        directory=directory,
        patch=patch,
    )
    *_, written = sorted(directory.glob("outputs/evaluate/*/metrics.json"))
    return json.loads(written.read_text())
