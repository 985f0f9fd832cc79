"""How a run's speed goes with its processes: python benchmarks/processes.py [folder of the data].

Trains the default model for two epochs on the same batches of 128, in one process of one thread, in
one of two threads and in two processes of a thread each, in turn. What counts are the images per
second that a run reports, its start left out.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 3
WAYS = {
    "one process, one thread": ("1", "data.batch_size=128"),
    "one process, two threads": ("2", "data.batch_size=128"),
    "two processes, a thread each": ("1", "data.batch_size=64", "trainer=ddp", "trainer.devices=2"),
}


def images_per_second(threads: str, *overrides: str) -> float:
    """Return how many images a run trains on in a second."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable,
            "-m",
            "vae_lightning.train",
            "trainer.accelerator=cpu",
            "trainer.max_epochs=2",
            *overrides,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": threads}
        subprocess.run(
            [*command, "hydra.run.dir=run"],
            cwd=directory,
            env=environment,
            check=True,
            capture_output=True,
        )
        metrics = json.loads((Path(directory) / "run" / "metrics.json").read_text())
        return float(metrics["run"]["examples_per_second"])


def main() -> None:
    """Print a line for each way."""
    data = [f"data.dir={Path(sys.argv[1]).absolute()}"] if sys.argv[1:] else []
    measured: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, (threads, *overrides) in WAYS.items():
            measured[way].append(images_per_second(threads, *overrides, *data))
    first, *_ = measured.values()
    for way, speeds in measured.items():
        ratios = [speed / other for speed, other in zip(speeds, first, strict=True)]
        spread = f"{min(ratios):.2f} – {max(ratios):.2f}"
        ratio = f"{statistics.median(ratios):.2f} of the first ({spread})"
        print(f"{way:<30}{statistics.median(speeds):>9,.0f} images/s   {ratio}")


if __name__ == "__main__":
    main()
