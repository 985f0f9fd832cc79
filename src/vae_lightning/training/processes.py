"""Several processes that train one model: what the first one finds out, and what all agree on."""

import json
import logging
import os
import re
import shlex
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Trainer
from lightning.pytorch.plugins.environments import (  # type: ignore[attr-defined]
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import signals

Environment = LightningEnvironment | SLURMEnvironment | TorchElasticEnvironment
"""How the processes of a run come about and find each other."""

_SHARED = "VAE_LIGHTNING_SHARED"  # what the first process tells those that it starts itself

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for another, such as the first while it draws an epoch's pictures."""


def environment(devices: int, nodes: int) -> Environment:
    """Return how the processes of a run are started and find each other.

    torchrun starts them, or srun, or the first process does.

    Raises:
        ConfigurationError: the number of started processes isn't the one in the configuration.
    """
    asked = f"trainer.devices={devices} trainer.num_nodes={nodes}"
    if TorchElasticEnvironment.detect():
        by, started = "torchrun", int(os.environ["WORLD_SIZE"])
    else:
        by, started = "srun", int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if started > 1 and started != devices * nodes:
        raise ConfigurationError(
            f"{asked}: {devices * nodes} of one run, where {by} has started {started}"
        )
    if started > 1:
        # Lightning's own requeueing off: a requeued job goes on from the run's own checkpoints.
        return (
            TorchElasticEnvironment() if by == "torchrun" else SLURMEnvironment(auto_requeue=False)
        )
    if nodes > 1:
        raise ConfigurationError(
            f"{asked}: start the processes by torchrun or srun on each machine, "
            "as docs/scaling.md says"
        )
    return LightningEnvironment()


def from_first(trainer: Trainer, find_out: Callable[[], Any]) -> Any:
    """Return what the first process of a run finds out.

    The first process calls ``find_out`` and sends the result to the others.

    Args:
        trainer: the trainer, which knows the processes.
        find_out: returns something that JSON can hold. An error in it ends all processes.

    Raises:
        SystemExit: in the other processes, if ``find_out`` failed in the first, which reports why.
    """
    if trainer.world_size == 1:
        return find_out()
    if (told := os.environ.get(_SHARED)) is not None and not trainer.is_global_zero:
        return json.loads(told)
    if _by_another(trainer):
        trainer.strategy.setup_environment()  # all started at once, so results come only by message
        if not trainer.is_global_zero:
            if (found := trainer.strategy.broadcast(None)) is None:
                raise SystemExit(1)
            return found
    found = None
    try:
        found = find_out()
    finally:
        trainer.strategy.broadcast(found)  # nothing, where there is no connection yet
    os.environ[_SHARED] = json.dumps(found)
    return found


def refuse_sweeps(trainer: Trainer) -> None:
    """Check that a run whose first process starts the others isn't a job of a sweep.

    Raises:
        ConfigurationError: it is one. The first process starts the others with its own command
            line, so each would begin the sweep again.
    """
    settings: Any = HydraConfig.get()
    if trainer.world_size > 1 and settings.mode == RunMode.MULTIRUN and not _by_another(trainer):
        line = shlex.join(settings.overrides.task)
        raise ConfigurationError(
            f"trainer.devices={trainer.num_devices}: a job of a sweep is one process; "
            f"without --multirun this one is begun by  python -m vae_lightning.train {line}"
        )


def _by_another(trainer: Trainer) -> bool:
    """Return whether torchrun or srun starts all processes at once, and not the first process."""
    return not isinstance(trainer.strategy.cluster_environment, LightningEnvironment)  # type: ignore[attr-defined]


def quieten(trainer: Trainer) -> None:
    """Let only the first process say what all know."""
    if not trainer.is_global_zero:
        logging.getLogger().setLevel(logging.ERROR)


def leave_to_first(trainer: Trainer) -> None:
    """End a process where all of a run come to the same end, of which the first one tells.

    Raises:
        SystemExit: this is another one.
    """
    if not trainer.is_global_zero:
        raise SystemExit(0)


def has_lost_another(error: RuntimeError) -> bool:
    """Return whether an error says that another process of the run is gone.

    Torch has no class for this error.
    """
    return bool(
        re.search(
            r"gloo.*(peer|timed out)|NCCL.*(remote|abort|timeout|peer)",
            str(error),
            re.IGNORECASE | re.DOTALL,
        )
    )


class Agreement:
    """Whether a signal came to some process: all know it at the same step, one after it came."""

    def __init__(self) -> None:
        """Join the other processes; called by all of them at the same time."""
        self._group = torch.distributed.new_group(
            backend="gloo"
        )  # on the CPU, so that no step waits for a GPU
        self._answer: tuple[torch.Tensor, Any] | None = None

    def after_step(self) -> bool:
        """Return whether one had come to some process a step ago, which is then noted in each."""
        noted = self._take()
        number = torch.tensor(signals.noted() or 0)
        largest = torch.distributed.ReduceOp.MAX
        group: Any = self._group
        work = torch.distributed.all_reduce(number, largest, group, async_op=True)
        self._answer = number, work
        return noted

    def at_end(self) -> bool:
        """Return whether one has come to some process until now, which is then noted in each."""
        self.after_step()
        return self._take()

    def _take(self) -> bool:
        if self._answer is None:
            return False
        number, work = self._answer
        work.wait()
        self._answer = None
        if signal := int(number):
            signals.note(signal)
        return bool(signal)
