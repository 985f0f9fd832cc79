"""Twenty runs that start in one instant get twenty directories.

python benchmarks/chaos/directories.py [--starts 20]

Real processes on the 600 digits of the tests, one batch through every part. Hydra's own default, a
directory named after the second, shows first that starts which share one are seen. Exit status 1:
runs shared one, or one failed.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

DATA = Path(__file__).parents[2] / "tests" / "data"
OURS = [
    "-m",
    "vae_lightning.train",
    "data=mnist_subset",
    f"data.dir={DATA}",
    "trainer.fast_dev_run=true",
    "callbacks=minimal",
]
DEFAULT = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def main(config):
    pass
main()
"""


def start(count: int, arguments: Sequence[str], runs: str, last: str) -> tuple[int, int, int]:
    """Start processes at once.

    Returns:
        How many succeeded, how many directories they made, and how many of these are whole.
    """
    with tempfile.TemporaryDirectory() as directory:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        processes = [
            subprocess.Popen([sys.executable, *arguments], cwd=directory, **quiet)
            for _ in range(count)
        ]
        succeeded = sum(process.wait() == 0 for process in processes)
        made = list(Path(directory).glob(runs))
        return succeeded, len(made), sum((run / last).exists() for run in made)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--starts", type=int, default=20, help="how many processes start at once")
    starts = parser.parse_args(arguments).starts
    layout = "{:<28}{:>8}{:>11}{:>13}{:>8}"
    print(layout.format("", "starts", "succeeded", "directories", "whole"))
    rows = {
        "Hydra's default": start(starts, ["-c", DEFAULT], "outputs/*/*", ".hydra/config.yaml"),
        "train": start(starts, OURS, "outputs/train/*", "metrics.json"),
    }
    for name, row in rows.items():
        print(layout.format(name, starts, *row))
    return int(rows["train"] != (starts, starts, starts))


if __name__ == "__main__":
    sys.exit(main())
