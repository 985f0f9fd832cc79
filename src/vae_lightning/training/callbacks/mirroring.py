"""A run's mirror, kept as the checkpoints go."""

import logging
import os
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from vae_lightning.runs.mirror import Mirror

log = logging.getLogger(__name__)


class Mirroring(Checkpoint):
    """Sends changes to the mirror whenever ``last.ckpt`` or ``best.ckpt`` names another file.

    It runs after the callbacks that set those names, and in only one of several processes.
    """

    def __init__(self, mirror: Mirror) -> None:
        """Take the mirror, whose place is claimed."""
        self.mirror = mirror
        self._named: list[str | None] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where to, and send what there is."""
        log.info("Mirrored to %s", self.mirror.address)
        self._look(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Look after the step's checkpoint."""
        self._look(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look after the best one, by a figure of the validation."""
        self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look after the best one, by a figure of the training."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        folder = Path(trainer.default_root_dir) / "checkpoints"
        named = [_target(f"{folder}/{name}.ckpt") for name in ("last", "best")]
        if named != self._named:
            self._named = named
            self.mirror.update()


def _target(link: str) -> str | None:
    try:
        return os.readlink(link)
    except OSError:
        return None
