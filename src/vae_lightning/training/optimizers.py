"""Optimisers and learning-rate schedules by name."""

import bisect
import itertools
import math
import typing
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from lightning import LightningModule, Trainer
from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError, validate_call
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from vae_lightning.configuration.building import OwnClass, class_of
from vae_lightning.models.base import arguments

OptimizerName = Literal["adam", "adamw", "adagrad", "rmsprop", "sgd"]
ScheduleName = Literal["constant", "one_cycle", "cosine", "iwae"]

_OPTIMIZERS: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}

IWAE_PASSES = tuple(3**i for i in range(8))
"""Passes over the data at each rate of Burda et al. (arXiv:1509.00519), 3,280 in all."""

_TRIED_STEPS = 1000


class Optimization:
    """An optimiser and the schedule of its learning rate.

    Attributes:
        settings: the constructor's arguments.
        is_scheduled: whether the learning rate changes.
    """

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        name: OptimizerName | OwnClass = "adam",
        learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3,
        weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
        options: dict[str, Any] | None = None,
        schedule: ScheduleName = "constant",
        schedule_options: dict[str, Any] | None = None,
        schedule_passes: Annotated[Sequence[PositiveInt], Field(min_length=1)] = IWAE_PASSES,
    ) -> None:
        """Choose them.

        Args:
            name: the optimiser: ``adam``, ``adamw``, ``adagrad``, ``rmsprop``, ``sgd``, or the full
                name of one of the user's own.
            learning_rate: its step size.
            weight_decay: λ of a term λ/2 · ‖θ‖² added to the loss. With a loss that is a mean over
                N examples, 1/N is the prior p(θ) = N(0, I) of Kingma & Welling (arXiv:1312.6114).
                AdamW's decay is decoupled from the gradient.
            options: further arguments of torch's class, as ``{"eps": 1e-4}``.
            schedule: of the learning rate: ``constant``; ``one_cycle`` up to the rate and down to
                nothing over the run (Smith & Topin, arXiv:1708.07120); ``cosine`` down to nothing
                over the run; ``iwae``: the rate times 10^(−i/7) at stage i.
            schedule_options: further arguments of torch's ``OneCycleLR``.
            schedule_passes: epochs at each stage of ``iwae``; past the last one the rate stays.

        Raises:
            ValueError: a value is of the wrong type or out of range, or torch refuses an option.
        """
        self.settings = arguments(locals())
        self.name = name
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.options = options or {}
        self.schedule = schedule
        self.schedule_options = schedule_options or {}
        self.schedule_passes = schedule_passes
        self.is_scheduled = schedule != "constant"
        # Build and discard, to reject unknown options before the data is loaded.
        optimizer = self.build([torch.zeros(1)])
        if schedule_options and schedule != "one_cycle":
            raise ValueError(
                f"schedule_options={schedule_options}: are those of schedule=one_cycle"
            )
        if self.is_scheduled:
            self.build_schedule(optimizer, _TRIED_STEPS)

    def configure(self, parameters: Iterable[Tensor], trainer: Trainer) -> Any:
        """Return what Lightning asks of a module: the optimiser, and its schedule if any."""
        # A fused optimiser undoes a loss scale by itself, so gradients can't be clipped before.
        optimizer = self.build(parameters, fused=trainer.precision != "16-mixed")
        if not self.is_scheduled:
            return optimizer
        steps = int(trainer.estimated_stepping_batches)
        schedule, interval = self.build_schedule(optimizer, steps)
        scheduler = {"scheduler": schedule, "interval": interval}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def build(self, parameters: Iterable[Tensor], fused: bool = True) -> Optimizer:
        """Return torch's optimiser of some weights.

        Args:
            parameters: the weights to train.
            fused: one kernel for all weights and the same update, where torch has it.

        Raises:
            ValueError: torch has no such option, or refuses its value.
        """
        if doubled := {"lr", "weight_decay"} & set(self.options):
            keys = ", ".join(sorted(doubled))
            raise ValueError(f"options={self.options}: {keys} has a key of its own")
        kind = _OPTIMIZERS.get(self.name) or class_of("optimizer.name", self.name, Optimizer)
        _check_options("options", kind, self.options)
        settings: dict[str, Any] = {"lr": self.learning_rate, "weight_decay": self.weight_decay}
        if fused and self.name in _OPTIMIZERS and self.name != "rmsprop":
            settings["fused"] = True
        try:
            return kind(parameters, **(settings | self.options))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"options={self.options}: {error}") from error

    def build_schedule(
        self, optimizer: Optimizer, steps: int
    ) -> tuple[LRScheduler, Literal["step", "epoch"]]:
        """Return the schedule over so many optimiser steps, and what it moves with.

        Raises:
            ValueError: torch has no such option, or refuses its value.
        """
        if self.schedule == "one_cycle":
            return _one_cycle(optimizer, steps, self.schedule_options), "step"
        if self.schedule == "cosine":
            return CosineAnnealingLR(optimizer, T_max=steps), "step"
        ends = list(itertools.accumulate(self.schedule_passes))[:-1]

        def rate(epoch: int) -> float:
            return float(10 ** (-bisect.bisect_right(ends, epoch) / 7))

        return LambdaLR(optimizer, rate), "epoch"


def change_rate(checkpoint: dict[str, Any], optimization: Optimization) -> dict[str, float]:
    """Let a run go on from a checkpoint at another learning rate, as typed beside ``resume=``.

    Args:
        checkpoint: as Lightning reads it; the rate of its optimiser is changed.
        optimization: of the run that goes on.

    Returns:
        Each rate of the run by its first step; none if the run has had one rate.
    """
    settings = checkpoint[LightningModule.CHECKPOINT_HYPER_PARAMS_KEY]
    before, now = settings["optimizer"]["learning_rate"], optimization.learning_rate
    rates = dict(settings.get("learning_rates", {}))
    if before != now:
        rates = {"0": before, **rates, str(checkpoint["global_step"]): now}
        for group in checkpoint["optimizer_states"][0]["param_groups"]:
            group["lr"] *= now / before  # an optimiser of the user's own may take a part of it
    return rates


def _one_cycle(optimizer: Optimizer, steps: int, options: dict[str, Any]) -> OneCycleLR:
    _check_options("schedule_options", OneCycleLR, options)
    momentum = "betas" in optimizer.defaults  # Adam's first; other optimisers may have none
    settings: dict[str, Any] = {"cycle_momentum": momentum, **options}
    try:
        schedule = OneCycleLR(optimizer, optimizer.defaults["lr"], steps, **settings)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"schedule_options={options} over {steps} steps: {error}") from error
    for group in optimizer.param_groups:
        ends = [group["initial_lr"], group["min_lr"]]
        turns = [group[end] for end in ("base_momentum", "max_momentum") if end in group]
        if not all(0 <= rate < math.inf for rate in ends) or not all(0 <= t < 1 for t in turns):
            raise ValueError(
                f"schedule_options={options}: the rate goes from {ends[0]} to {ends[1]}, "
                f"the momentum by {turns}"
            )
    return schedule


def _check_options(key: str, constructor: type, options: dict[str, Any]) -> None:
    """Check options by the types of torch's arguments; torch itself would train with any.

    Raises:
        ValueError: there is no such argument, or it is of another type.
    """
    hints = typing.get_type_hints(constructor.__init__)  # type: ignore[misc]
    strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    for name, value in options.items():
        if name not in hints:
            raise ValueError(f"{key}={options}: {constructor.__name__} has no {name}")
        # YAML has no tuples.
        is_pair = typing.get_origin(hints[name]) is tuple and isinstance(value, list)
        try:
            kind: TypeAdapter[Any] = TypeAdapter(hints[name], config=strict)
            kind.validate_python(tuple(value) if is_pair else value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].replace("Input should", "must")
            raise ValueError(f"{key}={options}: {name} {problem}") from error
