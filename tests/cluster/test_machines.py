"""One run on two machines: two hosts of torchrun on loopback, two nodes of a real SLURM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TRAIN = (
    *(
        "data=mnist_subset",
        f"data.dir={Path(__file__).parents[1] / 'data'}",
        "data.val_size=83",
        "data.batch_size=32",
    ),
    *("model.hidden_dims=[16]", "trainer.max_epochs=3", "callbacks=minimal"),
    *("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2"),
)


def weights(run_directory):
    return torch.load(run_directory / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The weights of the same steps in one process."""
    directory = tmp_path_factory.mktemp("alone")
    overrides = [*TRAIN, "trainer.num_nodes=1", "data.batch_size=64", "hydra.run.dir=run"]
    subprocess.run(
        [sys.executable, "-m", "vae_lightning.train", *overrides],
        cwd=directory,
        check=True,
        timeout=120,
    )
    return weights(directory / "run")


def assert_one_run(directory, alone):
    """Assert that one run lies in a directory, of the weights that one process comes to."""
    [run] = (directory / "outputs" / "train").iterdir()
    found = weights(run)
    assert max(float((found[name] - alone[name]).abs().max()) for name in alone) < 1e-5
    assert json.loads((run / "metrics.json").read_text())["run"]["test_examples"] == 200
    assert len((run / "train.log").read_text().split("epoch 3/3")) == 2


def hosts(directory, *overrides):
    """Start torchrun once for each of two hosts; return the finished processes."""
    address = ["--master-addr=127.0.0.1", f"--master-port={29600 + os.getpid() % 1000}"]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        "--nproc-per-node=1",
        *address,
    ]
    started = [
        subprocess.Popen(
            [*torchrun, f"--node-rank={rank}", "-m", "vae_lightning.train", *TRAIN, *overrides],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [(process.communicate(timeout=120), process.returncode) for process in started]


def test_torchrun_on_two_hosts_makes_one_run_that_can_be_resumed(tmp_path, alone):
    first, second = hosts(tmp_path)
    assert [first[1], second[1]] == [0, 0], (first, second)
    assert "test ELBO" in first[0][0]
    assert second[0][0] == ""  # the first process speaks for all
    assert_one_run(tmp_path, alone)
    [run] = (tmp_path / "outputs" / "train").iterdir()
    before = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    arguments = [f"resume={run}", "trainer.max_epochs=5", "trainer.accelerator=cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    resumed = subprocess.run(
        [
            *torchrun,
            "-m",
            "vae_lightning.train",
            *arguments,
            "trainer.devices=2",
            "trainer.num_nodes=1",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
        == before // 3 * 5
    )


def test_what_the_first_process_refuses_ends_all_of_them(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    first, second = hosts(tmp_path, "hydra.run.dir=full")
    assert first[1] == second[1] == 1
    assert "error: hydra.run.dir=full: not empty, and nothing is overwritten" in first[0][1]
    assert "error: " not in second[0][1]
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "file"]


def test_srun_on_two_nodes_makes_one_run(tmp_path, slurm, alone):
    # The nodes of this cluster have no names that can be looked up.
    environment = ["--export=ALL,MASTER_ADDR=127.0.0.1"]
    command = [str(Path(sys.executable)), "-m", "vae_lightning.train", *TRAIN]
    printed = slurm(
        *(
            "srun",
            "--nodes=2",
            "--ntasks=2",
            "--ntasks-per-node=1",
            f"--chdir={tmp_path}",
            *environment,
        ),
        *command,
    )
    assert printed.count("test ELBO") == 1
    assert_one_run(tmp_path, alone)
