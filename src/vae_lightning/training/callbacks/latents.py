"""Which latents or codes a model uses while it trains, and a warning when it stops."""

import logging
from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from pydantic import ConfigDict, PositiveInt, validate_call
from torch import Tensor

from vae_lightning.evaluation.estimators import active, code_use
from vae_lightning.models.base import DiscreteModel, LatentModel, Model
from vae_lightning.training.callbacks.looking import Look, data_of, model_of
from vae_lightning.visualization.drawings import count_codes, encode

log = logging.getLogger(__name__)

COLLAPSED_GAP = 1.0
"""Nats by which the right latents must beat shuffled ones, where a model measures it."""

COLLAPSED_KL = 0.01
"""A latent whose mean KL to the prior is below this, in nats, tells the decoder nothing."""

SETTLING_STEPS = 500
"""Optimiser steps before which no warning is given: at first no latent is in use yet."""

_REMEDIES = (
    ("free_bits", "model.free_bits=0.1"),
    ("kl_schedule", "model.kl_schedule=linear with model.kl_schedule_steps={step}"),
)


class LatentUse(Look):
    """Logs the KL of each latent as a histogram and the number of active latents.

    It warns once if they collapse. Of a model with discrete codes it logs how many are in use, and
    their perplexity.
    """

    @validate_call(config=ConfigDict(strict=True))
    def __init__(self, every_n_epochs: PositiveInt | None = 1, count: PositiveInt = 1000) -> None:
        """Take how often to look, and at how many validation examples."""
        super().__init__(every_n_epochs)
        self.count = count
        self._last_used: Tensor | None = None  # the last epoch in which each was in use; 0: never
        self._unused_since = 0  # the first epoch in a row after which none was; 0: some are
        self._warned = False

    @property
    def subject(self) -> str:
        """What is looked at."""
        return "figures of the latents"

    def missing(self, model: Model) -> str:
        """Return why a model has no such figures; empty: it has them."""
        has = isinstance(model, LatentModel | DiscreteModel)
        return "" if has else "the model has neither latents nor codes"

    def state_dict(self) -> dict[str, Any]:
        """Return what the warning depends on, for a run that is resumed."""
        return {
            "last_used": self._last_used,
            "unused_since": self._unused_since,
            "warned": self._warned,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._last_used = state_dict["last_used"]
        self._unused_since = state_dict["unused_since"]
        self._warned = state_dict["warned"]

    def look(self, trainer: Trainer, model: Model, epoch: int) -> None:
        """Look at the posteriors of the first validation examples, always the same."""
        if isinstance(model, DiscreteModel):
            self._log(
                trainer,
                code_use(count_codes(model, [data_of(trainer).examples(self.count)])),
                "latents/",
            )
            return
        assert isinstance(model, LatentModel)
        encoded = encode(model, [data_of(trainer).examples(self.count)])
        step, count = trainer.global_step, int(active(encoded.point).sum())
        self._log(trainer, {"active_units": count}, "latents/")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and encoded.kl is not None:
                logger.experiment.add_histogram("latents/kl", encoded.kl, step)
        if "latent_gap" in model.figures:
            gap = trainer.callback_metrics.get("val/latent_gap")
            self._warn_of_gap(None if gap is None else gap.item(), epoch, step)
        elif encoded.kl is not None:
            self._warn(encoded.kl, epoch, step, model.settings)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the number of active latents, over the examples that were tested."""
        model = model_of(pl_module)
        if not trainer.is_global_zero or self.missing(model):
            return
        examples: Any = trainer.test_dataloaders
        tested = islice(examples.of_all(), int(trainer.num_test_batches[0]))
        if isinstance(model, DiscreteModel):
            self._log(trainer, code_use(count_codes(model, tested)), "test/")
            return
        assert isinstance(model, LatentModel)
        count = int(active(encode(model, tested).point).sum())
        self._log(trainer, {"active_units": count}, "test/")

    def _log(self, trainer: Trainer, figures: Mapping[str, float], prefix: str) -> None:
        named = {f"{prefix}{name}": value for name, value in figures.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)

    def _warn_of_gap(self, gap: float | None, epoch: int, step: int) -> None:
        """Say once that a decoder does as well by the latents of other examples."""
        if self._warned or gap is None or gap >= COLLAPSED_GAP or step < SETTLING_STEPS:
            return
        self._warned = True
        log.warning(
            "Posterior collapse after epoch %d: shuffled latents cost %.2f nats. "
            "Try model.free_nats=20, or model.word_dropout=0.3",
            epoch,
            gap,
        )

    def _warn(self, kl: Tensor, epoch: int, step: int, settings: Any) -> None:
        """Say once that all latents have collapsed, or a third of those that were in use."""
        used = kl >= COLLAPSED_KL
        no_epoch = torch.zeros(len(kl), dtype=torch.int64)
        before = no_epoch if self._last_used is None else self._last_used
        self._last_used = torch.where(used, epoch, before)
        lost = ~used & (self._last_used > 0)
        self._unused_since = 0 if used.any() else self._unused_since or epoch
        if self._warned or step < SETTLING_STEPS:
            return
        count, of = int(lost.sum()), int((self._last_used > 0).sum())
        if not used.any():
            which = f"all {len(kl)} latents are, since epoch {self._unused_since}"
        elif 3 * count >= of:
            numbers = lost.nonzero().flatten().tolist()
            since = [f"{each} (since epoch {self._last_used[each] + 1})" for each in numbers]
            which = f"{count} of {of} latents that were in use are: {', '.join(since)}"
        else:
            return
        self._warned = True
        weight = settings.get("kl_weight")
        remedies = [] if weight is None else [_lower(weight)]
        remedies += [remedy.format(step=step) for key, remedy in _REMEDIES if key in settings]
        advice = f". Try {', or '.join(remedies)}" if remedies else ""
        collapse = "Posterior collapse after epoch %d, KL below %s nats: %s%s"
        log.warning(collapse, epoch, COLLAPSED_KL, which, advice)


def _lower(kl_weight: float) -> str:
    return "model.kl_weight=1" if kl_weight > 1 else "a lower model.kl_weight"
