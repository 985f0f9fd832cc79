"""Run the jobs of a sweep in other processes: joblib, SLURM through submitit, Ray.

This module doesn't import torch.
"""

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

from vae_lightning.configuration.hydra_settings import LAUNCHERS
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import signals, streams
from vae_lightning.runs.log_lines import Lines
from vae_lightning.sweeps.ledger import Ledger

EXTRAS = {"joblib": "sweeps", "submitit_slurm": "sweeps", "ray": "ray"}
"""Which extra installs each."""

_POLLING = 0.5  # seconds
_QUEUE_POLLING = 15  # seconds
_GRACE = 600  # seconds in which SLURM ends a job that it has sent SIGTERM


def prepare(settings: Any, jobs: int) -> list[str]:
    """Prepare a launcher to run the jobs of a sweep.

    Args:
        settings: the launcher's composed settings.
        jobs: how many jobs there are.

    Returns:
        Overrides of the launcher's settings.

    Raises:
        ConfigurationError: something that the launcher needs is missing, or a setting is wrong.
    """
    if (name := LAUNCHERS[settings["_target_"]]) is None:
        return []
    plugin = settings["_target_"].rpartition(".")[0]
    if not find_spec("hydra_plugins") or not find_spec(plugin.rpartition(".")[0]):
        raise ConfigurationError(
            f"hydra/launcher={name}: its package is missing: "
            f"pip install 'vae-lightning[{EXTRAS[name]}]'"
        )
    logging.getLogger("hydra_plugins").setLevel(logging.WARNING)  # a line for each job
    if name == "joblib":
        return [f"hydra.launcher.n_jobs={_together(settings['n_jobs'], jobs)}"]
    if name == "submitit_slurm":
        _prepare_submitit()
    if name == "ray":
        _start_ray(**settings["ray"]["init"])
    return []


def _together(wanted: int, jobs: int) -> int:
    """Return how many jobs run at a time; joblib shares the cores among them for their threads."""
    if wanted < 1 and wanted != -1:
        raise ConfigurationError(
            f"hydra.launcher.n_jobs={wanted}: how many jobs at a time, or -1 for one on each core"
        )
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )  # macOS has none
    return min(cores if wanted == -1 else wanted, jobs)


def _prepare_submitit() -> None:
    """Let the launcher wait for each job until it is over, whatever came of it.

    By default it stops waiting at the first job that fails. It learns only from SLURM's accounting,
    which isn't kept everywhere, that a job was killed.

    Raises:
        ConfigurationError: this machine can't submit jobs.
    """
    from submitit.slurm.slurm import SlurmJob

    if missing := [
        program for program in ("sbatch", "srun", "squeue", "scancel") if not shutil.which(program)
    ]:
        raise ConfigurationError(
            f"hydra/launcher=submitit_slurm: no {', '.join(missing)} here; "
            "type this on a machine that submits jobs to SLURM"
        )
    SlurmJob.results = _wait  # type: ignore[method-assign, assignment]


def _wait(job: Any) -> list[JobReturn]:
    """Wait until a SLURM job has a result or has left the queue; the ledger holds what it did."""
    for seconds in itertools.count(1):
        if job.paths.result_pickle.exists() or (
            seconds % _QUEUE_POLLING == 0 and not _is_queued(job.job_id)
        ):
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
    os.environ.setdefault(
        "RAY_DEDUP_LOGS", "0"
    )  # else of lines that are alike only the first is shown
    import ray

    if address == "auto":  # a cluster that runs already has its sizes
        settings |= dict.fromkeys(("num_cpus", "num_gpus", "object_store_memory"))
    try:
        ray.init(address, **settings)
    except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigurationError(f"hydra/launcher=ray: {str(error).splitlines()[0]}") from error
    signals.heed()  # Ray answers SIGTERM itself


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

    It ends as with SIGTERM if the sweep is stopped, or if the process that started this one is
    gone. So nothing is left running.
    """
    by_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    # Ctrl-C and SIGHUP reach all processes of a terminal; the sweep's own process handles them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if cores := os.environ.get("SLURM_CPUS_PER_TASK"):  # what joblib and Ray say themselves
        os.environ.setdefault("OMP_NUM_THREADS", cores)
    os.environ["TQDM_DISABLE"] = "1"  # the bars of several jobs would be drawn over each other
    streams.install()
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Lines(f"[{number}] %(message)s"))
    over, parent = threading.Event(), os.getppid()
    threading.Thread(target=_watch, args=(ledger, parent, over), daemon=True).start()
    try:
        with signals.heeded(signal.SIGTERM, *([signal.SIGUSR2] if by_slurm else []), once=True):
            job()
    except signals.Interrupted as stop:
        if os.getppid() != parent:
            os._exit(143)  # a worker of joblib would wait for more
        if ledger.is_stopped():
            return
        if stop.code == 128 + signal.SIGUSR2:
            # The time is nearly up. Submitit, which requested the signal, requeues the job.
            signal.raise_signal(signal.SIGUSR2)
        if by_slurm:
            # After a pre-emption SLURM requeues only jobs that it has ended itself.
            time.sleep(_GRACE)
        raise SystemExit(stop.code) from stop  # a class that can be sent to another process
    finally:
        over.set()


def _watch(ledger: Ledger, parent: int, over: threading.Event) -> None:
    while not over.wait(_POLLING):
        if ledger.is_stopped() or os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            return
