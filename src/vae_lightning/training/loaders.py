"""Batches of any DataLoader, where a module is used with Lightning's own Trainer."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule

from vae_lightning.data.datamodule import DataModule
from vae_lightning.data.given import as_images
from vae_lightning.models.base import Batch, Model


class AnyLoader(LightningModule):
    """A module that takes the batches of any loader: ``x``, or ``(x, y)`` with labels ``y``."""

    model: Model
    _taken: int = 0

    def on_validation_epoch_start(self) -> None:
        """Count examples anew: their places seed the noise of an evaluation."""
        self._taken = 0

    def on_test_epoch_start(self) -> None:
        """Count examples anew."""
        self._taken = 0

    def as_batch(self, batch: Any) -> Batch:
        """Return a batch as the model takes it.

        Args:
            batch: of our own data, or a tensor ``x``, or a list of it and of labels ``[B]``. Images
                are ``[B, C, H, W]`` or ``[B, H, W]``, uint8 or floats in [0, 1].

        Raises:
            ValueError: images have another shape or range.
        """
        if isinstance(batch, Batch):
            return batch
        x, *rest = batch if isinstance(batch, list | tuple) else [batch]
        data = self.model.data
        x = torch.as_tensor(x) if data.is_of_tokens else as_images(x, data.shape)
        y = torch.as_tensor(rest[0]).long() if rest else None
        indices = torch.arange(self._taken, self._taken + len(x))
        self._taken += len(x)
        return Batch(x, y, indices).to(self.device)

    def batches_before(self, batch_idx: int) -> int:
        """Return how many training batches came before this one of the epoch, in all epochs."""
        in_epoch = self.trainer.num_training_batches
        if in_epoch == math.inf:  # a loader without a length
            return self.trainer.fit_loop.epoch_loop.total_batch_idx
        return self.trainer.current_epoch * int(in_epoch) + batch_idx

    @property
    def returns_figures(self) -> bool:
        """Whether ``Trainer.test`` or ``validate`` was called on other data than ours.

        They return what Lightning logs itself. Our own commands read the figures elsewhere.
        """
        own = isinstance(self.trainer.datamodule, DataModule)  # type: ignore[attr-defined]
        return not own and self.trainer.state.fn != "fit"

    def hand_over(self, figures: Mapping[str, float]) -> None:
        """Hand figures to callbacks by name, and to Lightning where it returns them."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*have no logger configured")
            self.log_dict(figures, logger=self.returns_figures)
