"""What runs the jobs of a sweep in other processes than its own: joblib, SLURM through submitit, Ray. No torch in this room."""

import itertools
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from vae_lightning import interruption
from vae_lightning.configuration import ConfigurationError
from vae_lightning.guard import LAUNCHERS
from vae_lightning.sweeps import Ledger

EXTRAS = {"joblib": "sweeps", "submitit_slurm": "sweeps", "ray": "ray"}
"""Which extra installs each."""

_POLLING = 0.5  # seconds
_QUEUE_POLLING = 15  # seconds
_GRACE = 600  # seconds in which SLURM ends a job that it has sent SIGTERM


def prepare(settings: Any, jobs: int) -> list[str]:
    """Make ready for a launcher to run so many jobs, and return what of its settings that overrides.

    Args:
        settings: the launcher's, as composed.
        jobs: how many there are.

    Raises:
        ConfigurationError: something that it needs isn't here, or a setting is wrong.
    """
    if (name := LAUNCHERS[settings["_target_"]]) is None:
        return []
    plugin = settings["_target_"].rpartition(".")[0]
    if not find_spec("hydra_plugins") or not find_spec(plugin.rpartition(".")[0]):
        raise ConfigurationError(f"hydra/launcher={name}: its package is missing: pip install 'vae-lightning[{EXTRAS[name]}]'")
    logging.getLogger("hydra_plugins").setLevel(logging.WARNING)  # a line for each job
    if name == "joblib":
        return [f"hydra.launcher.n_jobs={_together(settings['n_jobs'], jobs)}"]
    if name == "submitit_slurm":
        _prepare_submitit()
    if name == "ray":
        _start_ray(**settings["ray"]["init"])
    return []


def _together(wanted: int, jobs: int) -> int:
    """Return how many jobs run at a time; joblib divides the cores by that for the threads of each."""
    if wanted < 1 and wanted != -1:
        raise ConfigurationError(f"hydra.launcher.n_jobs={wanted}: how many jobs at a time, or -1 for one on each core")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none
    return min(cores if wanted == -1 else wanted, jobs)


def _prepare_submitit() -> None:
    """Let the launcher wait for each job until it is over, whatever came of it.

    By itself it gives up waiting at the first job that fails, and learns from SLURM's accounting alone, which isn't kept
    everywhere, that one was killed.

    Raises:
        ConfigurationError: this machine can't submit jobs.
    """
    from submitit.slurm.slurm import SlurmJob

    if missing := [program for program in ("sbatch", "srun", "squeue", "scancel") if not shutil.which(program)]:
        raise ConfigurationError(
            f"hydra/launcher=submitit_slurm: no {', '.join(missing)} here; type this on a machine that submits jobs to SLURM"
        )
    SlurmJob.results = _wait  # type: ignore[method-assign, assignment]


def _wait(job: Any) -> list[JobReturn]:
    """Wait until a job of SLURM has left a result or the queue; what it has done is in the ledger."""
    for seconds in itertools.count(1):
        if job.paths.result_pickle.exists() or (seconds % _QUEUE_POLLING == 0 and not _is_queued(job.job_id)):
            break
        time.sleep(1)
    return [JobReturn(status=JobStatus.COMPLETED)]


def _is_queued(job: str) -> bool:
    array, _, number = job.partition("_")
    command = ["squeue", "--me", "--array", "--noheader", "--format=%F %K"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return finished.returncode != 0 or f"{array} {number or 'N/A'}" in finished.stdout.splitlines()


def _start_ray(address: str, **settings: Any) -> None:
    """Start Ray, which the launcher then finds running, or join a cluster.

    Raises:
        ConfigurationError: there is no cluster to join, or a setting is wrong.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # else of lines that are alike only the first is shown
    import ray

    if address == "auto":  # a cluster that runs already has its sizes
        settings |= dict.fromkeys(("num_cpus", "num_gpus", "object_store_memory"))
    try:
        ray.init(address, **settings)
    except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"hydra/launcher=ray: {str(error).splitlines()[0]}") from error
    interruption.heed()  # Ray answers SIGTERM itself


def finish(name: str | None) -> None:
    """End what was made ready for a launcher."""
    if name == "ray":
        import ray

        ray.shutdown()  # and its last lines are shown


def stop(ledger: Ledger) -> None:
    """End all jobs of a sweep, those that run as SIGTERM does."""
    ledger.stop()
    arrays = {path.name.partition("_")[0] for path in ledger.sweep.glob(".submitit/[0-9]*")}
    if arrays:
        subprocess.run(["scancel", *arrays], check=False, capture_output=True)


def run_elsewhere(job: Callable[[], None], number: int, ledger: Ledger) -> None:
    """Run a job in a process that isn't the sweep's own.

    It ends, as by SIGTERM, once the sweep is stopped or the process that started this one is gone: nothing is left running.
    """
    by_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all processes of a terminal; the sweep's own answers it
    if cores := os.environ.get("SLURM_CPUS_PER_TASK"):  # what joblib and Ray say themselves
        os.environ.setdefault("OMP_NUM_THREADS", cores)
    os.environ["TQDM_DISABLE"] = "1"  # the bars of several jobs would be drawn over each other
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"[{number}] %(message)s"))
    over, parent = threading.Event(), os.getppid()
    threading.Thread(target=_watch, args=(ledger, parent, over), daemon=True).start()
    try:
        with interruption.heeded(signal.SIGTERM, *([signal.SIGUSR2] if by_slurm else []), once=True):
            job()
    except interruption.Interrupted as stop:
        if os.getppid() != parent:
            os._exit(143)  # a worker of joblib would wait for more
        if ledger.is_stopped():
            return
        if stop.code == 128 + signal.SIGUSR2:
            signal.raise_signal(signal.SIGUSR2)  # the time is nearly up: submitit, which asked for the signal, requeues the job
        if by_slurm:
            time.sleep(_GRACE)  # after a pre-emption SLURM requeues what it has ended itself, and nothing that ended before
        raise SystemExit(stop.code) from stop  # which another process can be told
    finally:
        over.set()


def _watch(ledger: Ledger, parent: int, over: threading.Event) -> None:
    while not over.wait(_POLLING):
        if ledger.is_stopped() or os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            return
