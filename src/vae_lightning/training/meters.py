"""Means of figures over examples, whatever the batches and the processes."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from vae_lightning.models.base import Figure


class Means:
    """Means over examples of named values, summed as tensors and only when they are needed.

    Until then nothing waits for the device.
    """

    def __init__(self, *names: str) -> None:
        """Take the names of the values."""
        self.names = names
        self.clear()

    def clear(self) -> None:
        """Start anew."""
        self._values: list[Tensor] = []  # of batches that are yet to be summed, in turn
        self._sums: list[Tensor] = []  # of each batch before, ``[len(names)]``
        self.examples = 0
        self.gathered = 0  # batches whose sums are those of all processes
        self.gathered_examples = 0

    def update(self, *values: Tensor) -> None:
        """Add one value per example, each ``[B]``, in the order of the names."""
        if self._values and len(values[0]) != len(self._values[0]):
            self.sums()
        self._values.extend(value.detach() for value in values)
        self.examples += len(values[0])

    def sums(self) -> list[Tensor]:
        """Return the sums of each batch, ``[len(names)]``."""
        if self._values:
            # Apple's MPS has no float64. Elsewhere it keeps sums over 60,000 examples exact to the
            # last logged digit.
            on_mps = self._values[0].device.type == "mps"
            dtype = torch.float32 if on_mps else torch.float64
            sums = torch.stack(self._values).sum(-1, dtype=dtype)
            self._sums += sums.view(-1, len(self.names)).unbind()
            self._values = []
        return self._sums

    def gather(self, strategy: Strategy) -> None:
        """Let each process know the sums of all; each has had as many batches."""
        fresh = self.sums()[self.gathered :]
        if fresh:
            examples = fresh[0].new_tensor([self.examples - self.gathered_examples])
            summed = strategy.reduce(torch.cat([*fresh, examples]), reduce_op="sum")
            *sums, examples = torch.split(summed, len(self.names))
            self._sums[self.gathered :] = sums
            self.examples = self.gathered_examples + int(examples)
            self.gathered, self.gathered_examples = len(self._sums), self.examples

    def add(self, other: "Means") -> None:
        """Add what another one has summed."""
        if sums := other.sums():
            self._sums.append(torch.stack(sums).sum(0))
            self.examples += other.examples

    def means(self, prefix: str, suffix: str = "") -> dict[str, float]:
        """Return ``{prefix + name + suffix: mean}``; empty if there were no examples."""
        if not (sums := self.sums()):
            return {}
        means = (torch.stack(sums).sum(0) / self.examples).tolist()
        named = zip(self.names, means, strict=True)
        return {f"{prefix}{name}{suffix}": mean for name, mean in named}

    def not_finite(self) -> tuple[int, str, float] | None:
        """Return position, name and value of the first sum that isn't finite, if there is one."""
        sums = self.sums()
        for position, of_batch in enumerate(torch.stack(sums).tolist() if sums else []):
            for name, value in zip(self.names, of_batch, strict=True):
                if not math.isfinite(value):
                    return position, name, value
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, for a run that is resumed."""
        sums = self.sums()
        return {"sums": torch.stack(sums) if sums else [], "examples": self.examples}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from there, on a device."""
        self.clear()
        self._sums, self.examples = [sums.to(device) for sums in state["sums"]], state["examples"]
        self.gathered, self.gathered_examples = len(self._sums), self.examples


def counts_of(figures: Mapping[str, Figure]) -> list[str]:
    """Return the counts by which figures are divided and which aren't figures themselves."""
    return [
        name
        for name in dict.fromkeys(each.per for each in figures.values())
        if name and name not in figures
    ]


def per_count(means: Mapping[str, float], figures: Mapping[str, Figure]) -> dict[str, float]:
    """Divide those means that are per note or per step, and leave the counts out.

    A figure whose count is 0 is left out, too: there was nothing to be right about.

    Args:
        means: over examples, by ``<prefix>/<name>``.
        figures: by name.
    """
    divided = {}
    for tag, mean in means.items():
        prefix, _, name = tag.rpartition("/")
        if name in figures and (count := figures[name].per):
            if means[f"{prefix}/{count}"]:
                divided[tag] = mean / means[f"{prefix}/{count}"]
        elif name in figures:
            divided[tag] = mean
    return divided


class TrainingFigures:
    """The figures of a training run: means over the steps since the last log, and over the epoch.

    Attributes:
        window: the figures since the last logged step.
        epoch: the figures of the epoch so far, without the window.
        latest: the last means that were logged.
    """

    def __init__(self, *names: str) -> None:
        """Take the names of the figures."""
        self.window = Means(*names)
        self.epoch = Means(*names)
        self.latest: dict[str, float] = {}
        self._logged_step = 0
        self._window_from = 0  # optimiser steps done when the window was opened

    def is_due(self, step: int, every: int) -> bool:
        """Return whether to log after a step; once, where a step takes several batches."""
        return bool(every) and step % every == 0 and step != self._logged_step

    def close_window(self, step: int, logged: dict[str, float] | None = None) -> None:
        """Begin a new window after a step, at which means may have been logged."""
        self.epoch.add(self.window)
        self.window.clear()
        self._window_from = step
        if logged is not None:
            self.latest, self._logged_step = logged, step

    def not_finite(self, batches_per_step: int) -> str:
        """Return the first figure of the window that isn't finite, and its step, or nothing."""
        if not (found := self.window.not_finite()):
            return ""
        batches, name, value = found
        step = self._window_from + batches // batches_per_step + 1
        return f"train/{name} is {value} at step {step}"

    def state_dict(self) -> dict[str, Any]:
        """Return what is yet to be logged, for a run that is resumed."""
        return {
            "window": self.window.state_dict(),
            "epoch": self.epoch.state_dict(),
            "latest": self.latest,
            "logged_step": self._logged_step,
            "window_from": self._window_from,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from there, on a device."""
        self.window.load_state_dict(state["window"], device)
        self.epoch.load_state_dict(state["epoch"], device)
        self.latest = state["latest"]
        self._logged_step, self._window_from = state["logged_step"], state["window_from"]
