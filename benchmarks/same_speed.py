"""Compare the speed of two checkouts: a step, an epoch, --help, a typo, a first step, a run.

    python benchmarks/same_speed.py OLD NEW [--pairs 15] [--rows step,help]

Both checkouts run with the packages of this environment, in turn, a pair after the other. A ratio
above 1 means that the new one is faster. Run it on a machine that does nothing else.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EPOCHS = """
import sys, time
import lightning
starts = []
lightning.LightningModule.on_train_epoch_start = lambda self: starts.append(time.perf_counter())
from vae_lightning import train
sys.argv[0] = "train"
train.main()
print("seconds", *(after - before for before, after in zip(starts, starts[1:])))
"""
"""Trains by the real command and prints the seconds of each epoch but the last."""

FIRST_STEP = """
import os, sys
import lightning
lightning.LightningModule.optimizer_step = lambda *_, **__: os._exit(0)
from vae_lightning import train
sys.argv[0] = "train"
train.main()
"""
"""Trains by the real command and leaves the process where the first step would be taken."""

TRAIN = ("-m", "vae_lightning.train")
BARE = ("callbacks=minimal", "logger=none", "trainer.limit_val_batches=0")
ROWS = {
    # what is run, and whether it prints the seconds that count
    "step": (("-c", EPOCHS, *BARE, "trainer.max_epochs=3"), True),
    "epoch": (("-c", EPOCHS, "trainer.max_epochs=3"), True),
    "help": ((*TRAIN, "--help"), False),
    "typo": ((*TRAIN, "model.latent_dimm=3"), False),
    "first step": (("-c", FIRST_STEP), False),
    "run": (TRAIN, False),
}


def measure(checkout: Path, arguments: tuple[str, ...], prints: bool, directory: Path) -> float:
    """Run one side of a row, and return its seconds."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "TQDM_DISABLE": "1"}
    began = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=directory, capture_output=True, text=True
    )
    taken = time.perf_counter() - began
    if not prints:
        return taken
    lines = [line for line in finished.stdout.splitlines() if line.startswith("seconds")]
    if not lines:
        sys.exit(f"{checkout}: {finished.stdout[-1000:]}{finished.stderr[-1000:]}")
    return statistics.median(map(float, lines[0].split()[1:]))


def main() -> None:
    """Measure the rows in pairs and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--rows", default=",".join(ROWS))
    arguments = parser.parse_args()
    sides = [arguments.old.resolve(), arguments.new.resolve()]
    print(f"{'row':<12} {'old, s':>8} {'new, s':>8}   old / new: median (lowest to highest)")
    with tempfile.TemporaryDirectory() as directory:
        for row in arguments.rows.split(","):
            seconds: dict[Path, list[float]] = {side: [] for side in sides}
            for number in range(arguments.pairs):
                for side in sides if number % 2 else sides[::-1]:
                    seconds[side].append(measure(side, *ROWS[row], Path(directory)))
            old, new = (seconds[side] for side in sides)
            ratios = [before / after for before, after in zip(old, new, strict=True)]
            print(
                f"{row:<12} {statistics.median(old):8.3f} {statistics.median(new):8.3f}   "
                f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
