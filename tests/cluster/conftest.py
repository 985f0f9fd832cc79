"""A real SLURM of two nodes on this machine, run by whichever user runs the tests."""

import importlib.metadata
import shutil
import sys

import pytest

from slurm import PATH, PROGRAMS, two_nodes

PACKAGES = (
    "hydra-joblib-launcher",
    "hydra-ray-launcher",
    "hydra-submitit-launcher",
    "moto",
    "optuna",
    "s3fs",
)


def pytest_configure(config):
    missing = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
    if missing:
        raise pytest.UsageError(
            f"no {', '.join(missing)} here: apt-get install munge slurm-wlm util-linux, as root"
        )
    installed = {each.name for each in importlib.metadata.distributions()}
    if missing := [name for name in PACKAGES if name not in installed]:
        pip = f"{sys.executable} -m pip install --editable '.[dev,cluster]'"
        command = f"{pip} --constraint constraints.txt"
        raise pytest.UsageError(f"no {', '.join(missing)} in this environment: {command}")


def pid_of(run):
    """The process that trains in a run directory, by the name of its newest event file."""
    return int(max((run / "tensorboard").glob("events*")).name.rpartition(".")[2])


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A SLURM of two nodes of a CPU each; ``slurm("squeue", "--me")`` returns what is printed."""
    with two_nodes(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
