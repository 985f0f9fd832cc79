"""Sweeps on a real SLURM: the jobs of an array go on where they were, whatever ended them."""

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

from chaos.runs import MINIMAL, SUBSET, differences, trained
from conftest import pid_of
from slurm import wait_until

RUN = (*SUBSET, MINIMAL, "model.hidden_dims=[8]", "data.batch_size=80", "trainer.max_epochs=200")
SWEEP = ("--multirun", *RUN, "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1")


@contextmanager
def sweeping(slurm, directory, *arguments):
    """A sweep's process and its directory."""
    with subprocess.Popen(
        [sys.executable, "-m", "vae_lightning.train", *SWEEP, *arguments],
        cwd=directory,
        env=slurm.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            multirun = directory / "outputs" / "multirun"
            [swept] = wait_until(lambda: list(multirun.glob("*")))
            yield process, swept
        finally:
            process.kill()


def queued(slurm):
    """The jobs in the queue, with their name and node."""
    lines = slurm("squeue", "--me", "--array", "--noheader", "--format=%i %j %N").splitlines()
    return {job: others for job, *others in map(str.split, lines)}


def test_jobs_that_are_preempted_killed_or_out_of_time_go_on_where_they_were(slurm, tmp_path):
    with sweeping(slurm, tmp_path, "model.latent_dim=0,2,3,4,5,6") as (process, swept):
        array = next(iter(wait_until(lambda: queued(slurm)))).partition("_")[0]
        assert {name for name, *_ in queued(slurm).values()} == {"vae-lightning"}

        wait_until((swept / "1" / "checkpoints" / "last.ckpt").exists)
        [node] = queued(slurm)[f"{array}_1"][1:]
        slurm(
            "sbatch",
            "--partition=urgent",
            f"--nodelist={node}",
            f"--output={tmp_path / 'urgent'}",
            "--wrap",
            "sleep 1",
        )
        wait_until((swept / "2" / "checkpoints" / "last.ckpt").exists)
        os.kill(pid_of(swept / "2"), signal.SIGKILL)
        wait_until(lambda: f"{array}_2" not in queued(slurm))
        slurm("scontrol", "requeue", f"{array}_2")
        wait_until((swept / "3" / "checkpoints" / "last.ckpt").exists)
        os.kill(pid_of(swept / "3"), signal.SIGUSR2)  # as SLURM does a minute before the time is up

        shown = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert shown.rstrip().endswith(
        "error: 1 of 6 jobs failed: job 0, model.latent_dim=0: must be greater than 0"
    )
    rows = re.findall(r"^ +(\d)  model.latent_dim=\d +(-\d+\.\d\d)  \S+/(\d)$", shown, re.MULTILINE)
    assert [(number, directory) for number, _, directory in rows] == [
        (each, each) for each in "12345"
    ]
    assert sorted(path.name for path in swept.iterdir()) == [
        ".lock",
        ".submitit",
        *"12345",
        "multirun.yaml",
    ]
    for number, latents in ((1, 2), (2, 3), (3, 4)):
        assert "Going on after step" in (swept / str(number) / "train.log").read_text()
        whole = trained(tmp_path / f"whole_{latents}", *RUN, f"model.latent_dim={latents}")
        assert differences(swept / str(number), whole) == []


def test_a_sweep_that_is_stopped_leaves_no_job_in_the_queue_and_all_saved(slurm, tmp_path):
    with sweeping(slurm, tmp_path, "model.latent_dim=2,3,4", "trainer.max_epochs=5000") as (
        process,
        swept,
    ):
        for number in "01":
            wait_until((swept / number / "checkpoints" / "best.ckpt").exists)
        process.send_signal(signal.SIGINT)
        shown = process.communicate(timeout=120)[0]
    assert process.returncode == 130
    assert queued(slurm) == {}
    rows = r" +0  model.latent_dim=2 +\S+/0: interrupted\n +1  \S+ +\S+/1: interrupted\n"
    assert re.search(rf"{rows} +2  \S+ +not run\n", shown), shown
    assert "Stopped after" in (swept / "0" / "train.log").read_text()
    assert sorted(path.name for path in swept.iterdir()) == [
        ".lock",
        ".submitit",
        "0",
        "1",
        "multirun.yaml",
    ]
