"""The base of callbacks that look at the model while it trains."""

import logging
from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from vae_lightning.data.datamodule import DataModule
from vae_lightning.models.base import Model
from vae_lightning.runs import signals

log = logging.getLogger(__name__)


class Look(Callback, ABC):
    """Looks at the model at the end of the training, and every ``every_n_epochs``; changes nothing.

    The model is in evaluation mode meanwhile. Its mode and the random state are left as they were.
    """

    def __init__(self, every_n_epochs: int | None) -> None:
        """Take how often to look; None: once at the end."""
        self.every_n_epochs = every_n_epochs
        self._looked_at_step: int | None = None

    @abstractmethod
    def look(self, trainer: Trainer, model: Model, epoch: int) -> None:
        """Look at the model after so many epochs."""

    def missing(self, model: Model) -> str:
        """Return why there is nothing to look at in a model; empty: there is something."""
        return ""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where a look every few epochs would have nothing to look at."""
        reason = self.missing(model_of(pl_module))
        if self.every_n_epochs and reason and trainer.is_global_zero:
            log.warning("No %s: %s", self.subject, reason)

    @property
    def subject(self) -> str:
        """What is looked at, for the line that says that it is left out."""
        return type(self).__name__

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, if it is time."""
        epoch = trainer.current_epoch + 1
        if self.every_n_epochs and not epoch % self.every_n_epochs:
            self._look(trainer, pl_module, epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the training ends with, unless its last epoch was looked at."""
        if self._looked_at_step != trainer.global_step:
            self._look(trainer, pl_module, trainer.current_epoch)

    def _look(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        if trainer.world_size == 1:
            signals.check()  # after the last step of an epoch, which is saved
        model = model_of(pl_module)
        if not trainer.is_global_zero or self.missing(model):
            return
        self._looked_at_step = trainer.global_step
        training = pl_module.training
        pl_module.eval()
        with torch.no_grad():
            self.look(trainer, model, epoch)
        pl_module.train(training)


def model_of(pl_module: LightningModule) -> Model:
    """Return the model that a module trains."""
    model: Any = pl_module.model
    assert isinstance(model, Model)
    return model


def data_of(trainer: Trainer) -> DataModule:
    """Return the data that a Trainer trains on."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, DataModule)
    return data
