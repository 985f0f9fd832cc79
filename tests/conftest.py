"""What the tests share: a few real digits, a way to run a command, and one trained run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# One thread for each process: the models here are too small for two, and threads that spin while they wait for each other make
# a busy machine six times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

DATA = Path(__file__).parent / "data"
SUBSET = ["data=mnist_subset", f"data.dir={DATA}"]


@pytest.fixture
def subset():
    """The 600 digits, read."""
    from vae_lightning import MNISTDataModule

    data = MNISTDataModule(name="mnist_subset", dir=str(DATA), batch_size=32, val_size=80)
    data.prepare_data()
    data.setup()
    return data


def run(command, *arguments, cwd, environment=None):
    """Run a command as a user types it, and return the finished process."""
    return subprocess.run(
        [sys.executable, "-m", f"vae_lightning.{command}", *arguments],
        cwd=cwd,
        env={**os.environ, "HYDRA_FULL_ERROR": "0", **(environment or {})},
        capture_output=True,
        text=True,
        timeout=120,
    )


def typed(command, *arguments, directory, patch):
    """Run a command in this process, as if typed in ``directory``: quicker than a new process by the import of torch."""
    import importlib

    main = importlib.import_module(f"vae_lightning.{command}").main
    patch.chdir(directory)
    patch.setattr(sys, "argv", [command, *map(str, arguments)])
    patch.setenv("HYDRA_FULL_ERROR", "0")
    main()


def train_in(directory, *arguments):
    """Train on the 600 digits in a directory, by the real command in this process, and return the run's directory."""
    with pytest.MonkeyPatch.context() as patch:
        typed("train", *SUBSET, *arguments, directory=directory, patch=patch)
    [run_directory] = (directory / "outputs" / "train").iterdir()
    return run_directory


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The run directory of a small model trained for two epochs, by the real command in this process."""
    return train_in(tmp_path_factory.mktemp("trained"), "trainer.max_epochs=2", "model.latent_dim=3")
