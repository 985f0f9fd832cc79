"""Which latents a model uses while it trains, and a warning when it stops using them."""

import logging
from itertools import islice
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from pydantic import ConfigDict, PositiveInt, validate_call
from torch import Tensor

from vae_lightning.callbacks.pictures import Look
from vae_lightning.gallery import encode
from vae_lightning.metrics import active
from vae_lightning.vae import VAE

log = logging.getLogger(__name__)

COLLAPSED_KL = 0.01
"""A latent whose mean KL to the prior is below this, in nats, tells the decoder nothing."""

SETTLING_STEPS = 500
"""Optimiser steps before which no warning is given: at first no latent is in use yet."""


class LatentUse(Look):
    """Logs the KL of each latent as a histogram and the number of active latents, and warns once if they collapse."""

    @validate_call(config=ConfigDict(strict=True))
    def __init__(self, every_n_epochs: PositiveInt | None = 1, count: PositiveInt = 1000) -> None:
        """Take how often to look, and at how many validation images."""
        super().__init__(every_n_epochs)
        self.count = count
        self._last_used: Tensor | None = None  # the last epoch in which each latent was in use; 0: never
        self._unused_since = 0  # the first of the epochs on end after which none was; 0: some are
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        """Return what the warning goes by, for a run that is resumed."""
        return {"last_used": self._last_used, "unused_since": self._unused_since, "warned": self._warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._last_used, self._unused_since = state_dict["last_used"], state_dict["unused_since"]
        self._warned = state_dict["warned"]

    def look(self, trainer: Trainer, vae: VAE, epoch: int) -> None:
        """Look at the posteriors of the first validation images, always the same."""
        encoded = encode(vae, [trainer.datamodule.examples(self.count)])  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            logger.log_metrics({"latents/active_units": int(active(encoded.loc).sum())}, step=trainer.global_step)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_histogram("latents/kl", encoded.kl, trainer.global_step)
        self._warn(encoded.kl, epoch, trainer.global_step, trainer.lightning_module.hparams["kl_weight"])

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of active latents of what is tested, over the images that it is tested on."""
        if not trainer.is_global_zero:
            return
        images: Any = trainer.test_dataloaders
        tested = islice(images.of_all(), int(trainer.num_test_batches[0]))
        count = int(active(encode(pl_module.vae, tested).loc).sum())  # type: ignore[arg-type]
        for logger in trainer.loggers:
            logger.log_metrics({"test/active_units": count}, step=trainer.global_step)

    def _warn(self, kl: Tensor, epoch: int, step: int, kl_weight: float) -> None:
        """Say once that all latents have collapsed, or a third of those that were in use."""
        used = kl >= COLLAPSED_KL
        before = torch.zeros(len(kl), dtype=torch.int64) if self._last_used is None else self._last_used
        self._last_used = torch.where(used, epoch, before)
        lost = ~used & (self._last_used > 0)
        self._unused_since = 0 if used.any() else self._unused_since or epoch
        if self._warned or step < SETTLING_STEPS:
            return
        if not used.any():
            which = f"all {len(kl)} latents are, since epoch {self._unused_since}"
        elif 3 * int(lost.sum()) >= int((self._last_used > 0).sum()):
            since = ", ".join(
                f"{number} (since epoch {self._last_used[number] + 1})" for number in lost.nonzero().flatten().tolist()
            )
            which = f"{int(lost.sum())} of {int((self._last_used > 0).sum())} latents that were in use are: {since}"
        else:
            return
        self._warned = True
        log.warning(
            "Posterior collapse after epoch %d, KL below %s nats: %s. Try %s, model.free_bits=0.1, or "
            "model.kl_schedule=linear with model.kl_schedule_steps=%d",
            epoch,
            COLLAPSED_KL,
            which,
            "model.kl_weight=1" if kl_weight > 1 else "a lower model.kl_weight",
            step,
        )
