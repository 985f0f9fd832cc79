"""What makes a step of Lightning's Trainer faster.

Where a time stands, it was measured on two CPU cores, at about 6.5 ms a step. The Bernoulli's own
gradient is in ``models/likelihoods.py``.
"""

import contextlib
import gc
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning import Callback, LightningModule
from lightning.pytorch.profilers import Profiler

from vae_lightning.runs.processor import denormals, flush_denormals

_NOTHING = contextlib.nullcontext()

_STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class QuickModule(LightningModule):
    """A LightningModule whose bookkeeping costs less, and whose denormal numbers count as zero."""

    def setup(self, stage: str) -> None:
        """Flush denormal numbers, if whoever built the Trainer hasn't."""
        if denormals() != "flushed":
            flush_denormals()

    def __setattr__(self, name: str, value: Any) -> None:
        """Skip nn.Module's check for weights for Lightning's note of the hook that runs.

        Lightning sets ``_current_fx_name`` about fifty times a step.
        """
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def with_signature(step: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the signature of a training step, which Lightning asks for at each step: 16 µs."""
    step.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
    return step


class Unprofiled(Profiler):
    """A profiler that measures nothing, for less than Lightning's own such profiler costs."""

    def profile(self, action_name: str) -> Any:
        """Return a context that does nothing."""
        return _NOTHING

    def start(self, action_name: str) -> None:
        """Start nothing."""

    def stop(self, action_name: str) -> None:
        """Stop nothing."""


def without_idle_hooks(callback: Callback) -> Callback:
    """Take from a callback the hooks of a step that it leaves empty: 85 µs.

    Lightning passes over what can't be called.
    """
    for hook in _STEP_HOOKS:
        if getattr(type(callback), hook) is getattr(Callback, hook):
            setattr(callback, hook, None)
    return callback


def skip_driver_check() -> None:
    """Keep torch from looking for a GPU driver's library at each step of an optimiser.

    Lightning's import sets the variable to 1.
    """
    if not torch.cuda.is_available():
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"


@contextlib.contextmanager
def freed() -> Iterator[None]:
    """Free what a block has made and dropped.

    A figure of matplotlib holds itself in cycles of some 5,000 objects. Twenty of them would wait
    for Python's next full collection, which takes longer than drawing one. While none is old, a
    look at the young objects is enough.
    """
    enabled = gc.isenabled()
    gc.disable()  # nothing grows old meanwhile
    try:
        yield
    finally:
        gc.collect(0)
        if enabled:
            gc.enable()
