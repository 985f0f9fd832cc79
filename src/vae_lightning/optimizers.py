"""Optimisers and learning-rate schedules by name."""

import bisect
import itertools
import math
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

OptimizerName = Literal["adam", "adamw", "adagrad", "rmsprop", "sgd"]
ScheduleName = Literal["constant", "one_cycle", "cosine", "iwae"]

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}

IWAE_PASSES = [3**i for i in range(8)]
"""Passes over the data at each of the eight rates of Burda et al. (arXiv:1509.00519), 3,280 in all."""


def build_optimizer(
    name: OptimizerName,
    parameters: Iterable[Tensor],
    learning_rate: float,
    weight_decay: float = 0.0,
    options: dict[str, Any] | None = None,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """Make an optimiser.

    Args:
        name: which.
        parameters: the weights to train.
        learning_rate: the step size.
        weight_decay: λ of a term λ/2 · ‖θ‖² added to the loss. With a loss that is a mean over N images, 1/N is the prior
            p(θ) = N(0, I) of Kingma & Welling (arXiv:1312.6114). AdamW's decay is its own, decoupled from the gradient.
        options: further arguments of torch's class, as ``{"eps": 1e-4}``.
        fused: one kernel for all weights and the same update, where torch has it.

    Raises:
        ValueError: torch knows no such option, or refuses its value.
    """
    if doubled := {"lr", "weight_decay"} & set(options or {}):
        raise ValueError(f"optimizer_options={options}: {', '.join(sorted(doubled))} has a key of its own")
    _check_options("optimizer_options", _OPTIMIZERS[name], options)
    settings: dict[str, Any] = {"lr": learning_rate, "weight_decay": weight_decay}
    if fused and name != "rmsprop":
        settings["fused"] = True
    try:
        return _OPTIMIZERS[name](parameters, **{**settings, **(options or {})})
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"optimizer_options={options}: {error}") from error


def _check_options(key: str, constructor: type, options: dict[str, Any] | None) -> None:
    """Check options by the types that torch's class gives its arguments; torch itself takes any, and trains with it.

    Raises:
        ValueError: there is no such argument, or it is of another type.
    """
    hints = typing.get_type_hints(constructor.__init__)  # type: ignore[misc]
    strict = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    for name, value in (options or {}).items():
        if name not in hints:
            raise ValueError(f"{key}={options}: {constructor.__name__} has no {name}")
        is_pair = typing.get_origin(hints[name]) is tuple and isinstance(value, list)  # as YAML has no tuples
        try:
            TypeAdapter(hints[name], config=strict).validate_python(tuple(value) if is_pair else value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].replace("Input should", "must")
            raise ValueError(f"{key}={options}: {name} {problem}") from error


def build_schedule(
    name: Literal["one_cycle", "cosine", "iwae"],
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    passes: Sequence[int],
    options: dict[str, Any] | None = None,
) -> tuple[LRScheduler, Literal["step", "epoch"]]:
    """Make a learning-rate schedule, and say whether it moves with the step or the epoch.

    Args:
        name: ``one_cycle`` up to the learning rate and down to nothing over the run (Smith & Topin,
            arXiv:1708.07120); ``cosine`` down to nothing over the run; ``iwae``: the rate times 10^(−i/7) at stage i.
        optimizer: what it drives.
        total_steps: optimiser steps of the run.
        passes: epochs at each stage of ``iwae``; past the last one the rate stays.
        options: further arguments of torch's ``OneCycleLR``.

    Raises:
        ValueError: torch knows no such option, or refuses its value; or the schedule is another one.
    """
    if options and name != "one_cycle":
        raise ValueError(f"schedule_options={options}: are those of schedule=one_cycle")
    if name == "one_cycle":
        _check_options("schedule_options", OneCycleLR, options)
        momentum = "betas" in optimizer.defaults  # Adam's first; an optimiser without momentum isn't given one
        settings: dict[str, Any] = {"cycle_momentum": momentum, **(options or {})}
        try:
            schedule = OneCycleLR(optimizer, optimizer.defaults["lr"], total_steps, **settings)
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(f"schedule_options={options} over {total_steps} steps: {error}") from error
        for group in optimizer.param_groups:
            ends = [group["initial_lr"], group["min_lr"]]
            turns = [group[end] for end in ("base_momentum", "max_momentum") if end in group]
            if not all(0 <= rate < math.inf for rate in ends) or not all(0 <= turn < 1 for turn in turns):
                raise ValueError(
                    f"schedule_options={options}: the rate goes from {ends[0]} to {ends[1]}, the momentum by {turns}"
                )
        return schedule, "step"
    if name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=total_steps), "step"
    ends = list(itertools.accumulate(passes))[:-1]
    return LambdaLR(optimizer, lambda epoch: 10 ** (-bisect.bisect_right(ends, epoch) / 7)), "epoch"
