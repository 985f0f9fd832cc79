"""Whether a training's resident size grows: 200 epochs on 600 digits, each with every picture.

python benchmarks/chaos/memory.py [--leak] [key=value ...]     # any override but trainer.max_epochs

It trains by the real command. Exit status 1: after the 50th epoch the size grows by more than 2 %.
``--leak`` keeps 200 kB in each epoch, which must be seen. Reads ``/proc``, so Linux only.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from vae_lightning.train import main
from vae_lightning.training import experiment

EPOCHS = (50, 100, 150, 200)
GROWTH = 0.02
LEAK = 200_000  # bytes: half of it would be about 2 % of a process with torch's CUDA libraries
DRAWN = (
    "reconstructions",
    "prior_samples",
    "latents",
    "traversals",
    "interpolation",
    "manifold",
    "latent_map",
    "kl_bars",
)
SUBSET = Path(__file__).parents[2] / "tests" / "data"
OVERRIDES = [
    "data=mnist_subset",
    f"data.dir={SUBSET}",
    "model.latent_dim=2",  # the manifold is drawn of two
    f"trainer.max_epochs={EPOCHS[-1]}",
    "trainer.accelerator=cpu",
    *(f"callbacks.{name}.every_n_epochs=1" for name in (*DRAWN, "projector")),
]


def resident() -> int:
    """Return the resident size of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch(Callback):
    """Notes the size after each epoch.

    Attributes:
        sizes: in bytes, by epochs done.
    """

    def __init__(self, leak: bool, size: Callable[[], int]) -> None:
        """Take whether to keep ``LEAK`` bytes in each epoch, and what returns the size."""
        self.sizes: dict[int, int] = {}
        self._leak = leak
        self._size = size
        self._kept: list[bytearray] = []

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Note it before the next epoch, when all of the last one's callbacks are done."""
        self.sizes[trainer.current_epoch] = self._size()
        if self._leak:
            self._kept.append(bytearray(os.urandom(LEAK)))

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Note it after the last epoch."""
        self.sizes[trainer.current_epoch] = self._size()


def watched(leak: bool, size: Callable[[], int] = resident) -> dict[int, int]:
    """Train as the command line says, and return the size in bytes by epochs done."""
    watch = Watch(leak, size)
    fit = experiment.fit

    def watching(parts: experiment.Experiment) -> None:
        parts.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
        fit(parts)

    experiment.fit = watching
    try:
        main()
    finally:
        experiment.fit = fit
    return watch.sizes


if __name__ == "__main__":
    leak = "--leak" in sys.argv
    sys.argv[1:] = [*OVERRIDES, *(each for each in sys.argv[1:] if each != "--leak")]
    sizes = watched(leak)
    first = sizes[EPOCHS[0]]
    for epoch in EPOCHS:
        print(f"epoch {epoch:3}   {sizes[epoch] / 1e6:7.1f} MB   {sizes[epoch] / first:.4f}")
    growth = max(sizes[epoch] for epoch in EPOCHS) / first - 1
    per_epoch = (sizes[EPOCHS[-1]] - first) / (EPOCHS[-1] - EPOCHS[0])
    came = f"grown by at most {100 * growth:.2f} %, {per_epoch / 1e3:.0f} kB for each epoch"
    print(f"{came}; {100 * GROWTH:.0f} % are allowed")
    sys.exit(growth > GROWTH)
