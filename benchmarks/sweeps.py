"""What it costs to start a job of a sweep, by each way to run one.

python benchmarks/sweeps.py [joblib,submitit_slurm]

Times sweeps of one and of more jobs that do next to nothing, an epoch on 600 images. The
difference, divided by the number of further jobs, is what each costs, two at a time but for the
first way. SLURM is started for it, two nodes on this machine.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from chaos.runs import MINIMAL, SUBSET
from slurm import two_nodes

JOBS = 9
WAYS = {
    "basic": (),
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "ray": ("hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2"),
    "submitit_slurm": ("hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1"),
}


def seconds(way: str, jobs: int, environment: dict[str, str]) -> float:
    """Return what a sweep of so many jobs takes, from the start of its process to its end."""
    run = (*SUBSET, MINIMAL, "logger=none", "trainer.max_epochs=1", "model.hidden_dims=[8]")
    seeds = ",".join(map(str, range(jobs)))
    command = [
        sys.executable,
        "-m",
        "vae_lightning.train",
        "--multirun",
        f"seed={seeds}",
        *run,
        *WAYS[way],
    ]
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        subprocess.run(command, cwd=directory, env=environment, check=True, capture_output=True)
        return time.perf_counter() - started


def main() -> None:
    """Print a line for each way."""
    print(f"{'hydra/launcher':<16}{'1 job':>10}{f'{JOBS} jobs':>10}{'each further':>14}")
    for way in sys.argv[1].split(",") if sys.argv[1:] else WAYS:
        with ExitStack() as running:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            if way == "submitit_slurm":
                folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
                environment |= running.enter_context(two_nodes(folder)).environment
            one, more = seconds(way, 1, environment), seconds(way, JOBS, environment)
        print(
            f"{way:<16}{one:>8.1f} s{more:>8.1f} s{(more - one) / (JOBS - 1):>12.2f} s", flush=True
        )


if __name__ == "__main__":
    main()
