"""A sweep on a Ray cluster of two nodes here: one is lost, and its job goes on at the other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.runs import DATA, MINIMAL, differences, trained
from conftest import pid_of
from slurm import wait_until

RUN = (
    "data=mnist_subset",
    "data.dir=digits",
    MINIMAL,
    "model.hidden_dims=[8]",
    "data.batch_size=80",
    "trainer.max_epochs=150",
)
SWEEP = ("--multirun", *RUN, "hydra/launcher=ray", "hydra.launcher.ray.init.address=auto")


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of a CPU each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=size)
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    yield cluster
    cluster.shutdown()


def nodes_of(processes):
    """The parents of processes: Ray starts one for each node."""
    return {
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] for pid in processes
    }


def here(directory):
    """A directory from which the data lies in ``digits``."""
    directory.mkdir(exist_ok=True)
    (directory / "digits").symlink_to(DATA)
    return directory


def test_a_job_goes_on_at_another_node_when_its_own_is_lost(cluster, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "vae_lightning.train", *SWEEP, "model.latent_dim=2,3,0"],
        cwd=here(tmp_path),
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            [swept] = wait_until(lambda: list((tmp_path / "outputs" / "multirun").glob("*")))
            runs = [swept / number for number in "01"]
            wait_until(lambda: all((run / "checkpoints" / "best.ckpt").exists() for run in runs))
            pids = [pid_of(run) for run in runs]
            assert len(nodes_of(pids)) == 2
            lost = next(iter(cluster.worker_nodes))
            cluster.remove_node(lost, allow_graceful=False)
            shown = process.communicate(timeout=300)[0]
        finally:
            process.kill()

    assert process.returncode == 1
    assert "error: 1 of 3 jobs failed: job 2, model.latent_dim=0: must be greater than 0" in shown
    assert (
        len(re.findall(r"^ +\d  model.latent_dim=\d +-\d+\.\d\d  \S+/\d$", shown, re.MULTILINE))
        == 2
    )
    assert sum("Going on after step" in (run / "train.log").read_text() for run in runs) == 1
    for run, latents in zip(runs, (2, 3), strict=True):
        assert (
            differences(
                run,
                trained(here(tmp_path / f"whole_{latents}"), *RUN, f"model.latent_dim={latents}"),
            )
            == []
        )
