"""The jobs of a sweep in other processes end as those in order do, and leave nothing running."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from conftest import LONG, SUBSET, typed
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.checkpoints import read
from vae_lightning.sweeps import launchers
from vae_lightning.training import experiment

pytestmark = pytest.mark.slow

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
SMALL = ["trainer.max_epochs=2000", "callbacks=minimal", "logger=none", "model.hidden_dims=[8]"]
LINE = ["--multirun", *SUBSET, *SMALL, "model.latent_dim=0,2,3,4"]


def children(pid):
    """The processes that a process has started."""
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    return [int(each) for each in found.stdout.split()]


def is_running(pid):
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return bool(state) and not state.startswith("Z")


def test_jobs_side_by_side_end_by_a_signal_saved_and_are_gone_on_with_in_order(
    tmp_path, monkeypatch
):
    environment = {
        name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")
    }
    process = subprocess.Popen(
        [
            sys.executable,
            "-u",
            "-m",
            "vae_lightning.train",
            *LINE,
            "hydra/launcher=joblib",
            "hydra.launcher.n_jobs=2",
        ],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    # The two run at the same time, after the first was refused.
    waited_for = {"[1] epoch 3/", "[2] epoch 3/"}
    for line in process.stdout:
        waited_for -= {each for each in waited_for if line.startswith(each)}
        if not waited_for:
            break
    workers = children(process.pid)
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=LONG)[0]
    assert process.returncode == 143
    assert len(workers) >= 2
    deadline = time.monotonic() + LONG  # joblib's own processes end once the sweep's is gone
    while (left := [pid for pid in workers if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    saved = r"^\[\d\] Stopped after \d+ steps; what was done is saved"
    assert len(re.findall(saved, rest, re.MULTILINE)) == 2
    assert re.search(
        r"\n +0  model.latent_dim=0 +model.latent_dim=0: must be greater than 0\n", rest
    )
    interrupted = r"\n +1  model.latent_dim=2 +\S+/1: interrupted\n +2  \S+ +\S+/2: interrupted"
    assert re.search(rf"{interrupted}\n +3  \S+ +not run\n", rest)
    [swept] = (tmp_path / "outputs" / "multirun").iterdir()
    assert sorted(path.name for path in swept.iterdir()) == [".lock", "1", "2", "multirun.yaml"]
    envelope = read(swept / "1" / "checkpoints" / "last.ckpt")["envelope"]
    assert envelope["threads"] == max(1, CORES // 2)
    began = {}
    monkeypatch.setattr(
        experiment, "fit", lambda parts: began.update({parts.directory.name: parts.resumed_step})
    )
    with pytest.raises(
        SystemExit, match=r"^error: 1 of 4 jobs failed: job 0, model\.latent_dim=0: must be"
    ):
        typed("train", *LINE, f"sweep={swept}", directory=tmp_path, patch=monkeypatch)
    assert (began["1"] > 2, began["2"] > 2, began["3"]) == (True, True, None)


@pytest.mark.parametrize(
    ("wanted", "jobs", "together"), [(-1, 1000, CORES), (-1, 1, 1), (2, 6, 2), (8, 3, 3)]
)
def test_there_are_never_more_jobs_at_a_time_than_asked_for_than_cores_or_than_jobs(
    wanted, jobs, together
):
    settings = {"_target_": JOBLIB, "n_jobs": wanted}
    assert launchers.prepare(settings, jobs) == [f"hydra.launcher.n_jobs={together}"]


MISTAKES = {
    "hydra.launcher.n_jbos=2": "unknown key hydra.launcher.n_jbos: did you mean "
    "hydra.launcher.n_jobs?",
    "hydra.launcher.n_jobs=many": "hydra.launcher.n_jobs=many: Value 'many' of type 'str' "
    "could not be",
    "hydra/launcher=jobib": "hydra/launcher=jobib: not found; choose from basic, joblib, ",
    "hydra/launcher=joblib,basic": "hydra/launcher=joblib,basic: not found",
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_in_a_launcher_s_settings_is_told_and_leaves_nothing(
    tmp_path, monkeypatch, mistake, message
):
    launcher = [] if mistake.startswith("hydra/") else ["hydra/launcher=joblib"]
    with pytest.raises(SystemExit) as exit_:
        typed("train", *LINE, *launcher, mistake, directory=tmp_path, patch=monkeypatch)
    assert str(exit_.value.code).startswith(f"error: {message}")
    assert not list(tmp_path.rglob("multirun/*"))


def test_a_number_of_jobs_that_means_nothing_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"^hydra\.launcher\.n_jobs=0: how many jobs at a time"
    ):
        launchers.prepare({"_target_": JOBLIB, "n_jobs": 0}, 3)


@pytest.mark.parametrize(("name", "extra"), launchers.EXTRAS.items())
def test_a_missing_plugin_is_told_with_the_command_that_installs_it(
    tmp_path, monkeypatch, name, extra
):
    monkeypatch.setattr(launchers, "find_spec", lambda package: None)
    with pytest.raises(
        SystemExit,
        match=rf"^error: hydra/launcher={name}: .* pip install 'vae-lightning\[{extra}\]'$",
    ):
        typed("train", *LINE, f"hydra/launcher={name}", directory=tmp_path, patch=monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_slurm_is_asked_for_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SystemExit,
        match=r"^error: hydra/launcher=submitit_slurm: no sbatch, .* here; type this on a machine",
    ):
        typed(
            "train", *LINE, "hydra/launcher=submitit_slurm", directory=tmp_path, patch=monkeypatch
        )
    assert list(tmp_path.iterdir()) == []


def test_what_a_launcher_itself_refuses_is_told_in_a_line(tmp_path, monkeypatch):
    for name in ("sbatch", "srun", "squeue", "scancel"):
        (tmp_path / name).write_text(
            "#!/bin/sh\necho sbatch: error: invalid partition specified: x >&2; exit 1\n"
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "here").mkdir()
    arguments = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=x"]
    with pytest.raises(SystemExit) as exit_:
        typed("train", *LINE, *arguments, directory=tmp_path / "here", patch=monkeypatch)
    assert (
        str(exit_.value.code)
        == "error: hydra/launcher=submitit_slurm: sbatch: error: invalid partition specified: x"
    )
    assert list((tmp_path / "here").iterdir()) == []
