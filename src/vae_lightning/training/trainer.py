"""The Trainer of a run, with its callbacks and loggers."""

import difflib
import inspect
import logging
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, LearningRateMonitor
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, NonNegativeInt, PositiveInt
from torch.nn.parallel import DistributedDataParallel

from vae_lightning.configuration.building import build_part, require
from vae_lightning.data.datamodule import DataModule
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.checkpoints import VerifiedFiles
from vae_lightning.training import processes
from vae_lightning.training.callbacks.checkpoints import refuse_names_of_run
from vae_lightning.training.callbacks.progress import Throughput
from vae_lightning.training.module import VAEModule
from vae_lightning.training.speedups import Unprofiled, skip_driver_check, without_idle_hooks

log = logging.getLogger(__name__)

CRITERION = "criterion"
"""As a callback's ``monitor``: the figure that the model is chosen by, in validation."""

_Share = Annotated[float, Field(gt=0, le=1)]
_Batches = NonNegativeInt | Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_NoLimit = Literal[-1]
TRAINER_KINDS: dict[str, Any] = {
    "max_epochs": PositiveInt | _NoLimit,  # with null Lightning would take 1,000
    "max_steps": PositiveInt | _NoLimit,
    "limit_train_batches": PositiveInt | _Share,  # without any the figures would be of no training
    "limit_val_batches": _Batches,
    "limit_test_batches": _Batches,
    "overfit_batches": _Batches,
    "profiler": Literal["simple", "pytorch"] | None,
    "detect_anomaly": bool,
    "fast_dev_run": bool | NonNegativeInt,
    "log_every_n_steps": NonNegativeInt,
    "check_val_every_n_epoch": PositiveInt | None,
    "val_check_interval": PositiveInt | _Share | None,
    "accumulate_grad_batches": PositiveInt,
    "gradient_clip_val": Annotated[float, Field(ge=0, allow_inf_nan=False)] | None,
    "num_sanity_val_steps": NonNegativeInt | _NoLimit,
    # All of Lightning's, except those that need packages which the project doesn't.
    "precision": Literal[
        *("32-true", "32", 32, "64-true", "64", 64, "bf16-mixed", "bf16", "bf16-true"),
        *("16-mixed", "16", 16, "16-true"),
    ],
}
"""What Lightning's Trainer takes unchecked, and then divides by, clips with or counts down."""


PROFILERS: dict[str, Callable[..., Profiler]] = {
    "simple": SimpleProfiler,
    "pytorch": PyTorchProfiler,
}
"""Lightning's profilers by name."""


def build_trainer(
    config: DictConfig, module: VAEModule, data: DataModule, throughput: Throughput, directory: Path
) -> Trainer:
    """Build the Trainer with its callbacks and loggers, for a run directory.

    Raises:
        ConfigurationError: a part refuses its values.
    """
    for key, kind in TRAINER_KINDS.items():
        if key in config.trainer:
            require(f"trainer.{key}", config.trainer[key], kind)
    skip_driver_check()
    accelerator = choose_accelerator(config.trainer.accelerator)
    precision = config.trainer.get("precision")
    if accelerator == "cpu" and precision in ("16-mixed", "16", 16):
        raise ConfigurationError(
            f"trainer.precision={precision}: not on a CPU, where Lightning would use bf16-mixed"
        )
    counts = {key: config.trainer[key] for key in ("devices", "num_nodes")}
    devices, nodes = (
        require(f"trainer.{key}", count, PositiveInt) for key, count in counts.items()
    )
    if accelerator == "cpu" and devices > (cores := os.cpu_count() or 1):
        raise ConfigurationError(
            f"trainer.devices={devices}: more processes than the {cores} cores here"
        )
    environment = processes.environment(devices, nodes)
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    strategy: dict[str, Any] = {
        "timeout": processes.TIMEOUT,
        "gradient_as_bucket_view": True,
        buffers: False,  # what the processes would exchange before each step is equal in all
    }
    several = {"strategy": DDPStrategy(**strategy)}
    loggers = {str(name): logger for name, logger in config.logger.items() if logger}
    validated = data.holds_out and config.trainer.get("limit_val_batches") != 0
    callbacks = build_callbacks(config.callbacks, module, validated, directory)
    for callback in callbacks:
        if isinstance(callback, LearningRateMonitor) and not loggers:
            raise ConfigurationError(
                "logger=none: a LearningRateMonitor needs a logger; leave out one of the two"
            )
    refuse_names_of_run(callbacks, directory)
    return build_part(
        "trainer",
        Trainer,
        config.trainer,
        accelerator=accelerator,
        use_distributed_sampler=False,  # batches are shared by the data module's own rule
        **(several if devices * nodes > 1 else {}),
        callbacks=[without_idle_hooks(callback) for callback in (throughput, *callbacks)],
        # Without any, Lightning would add one of its own, which writes among the logs.
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        logger=[
            build_part(f"logger.{name}", Logger, logger)  # type: ignore[type-abstract]
            for name, logger in loggers.items()
        ],
        default_root_dir=directory,
        profiler=(
            PROFILERS[profiler](dirpath=directory, filename="profile")
            if (profiler := config.trainer.get("profiler"))
            else Unprofiled()
        ),
        plugins=[VerifiedFiles(), environment],
    )


def build_callbacks(
    config: DictConfig, module: VAEModule, validated: bool, directory: Path
) -> list[Callback]:
    """Build the callbacks; those that monitor validation are left out where there is none.

    Raises:
        ConfigurationError: a part refuses its values, monitors a figure that isn't published, is to
            end a run by a validation that there isn't, or would write outside the run directory.
    """
    built = []
    for name, callback in config.items():
        if not callback or callback.get("patience", 0) is None:  # of early_stopping, by default
            continue
        if callback.get("dirpath") is not None:
            callback = _in_directory(str(name), callback, directory)
        monitor = callback.get("monitor")
        if monitor == CRITERION:
            criterion = module.model.criterion
            monitor, better = f"val/{criterion}", module.model.figures[criterion].better
            mode = "min" if better == "min" else "max"
            if callback.get("mode", "max") not in (
                "max",
                mode,
            ):  # max is in the file of the callback
                raise ConfigurationError(
                    f"callbacks.{name!s}.mode={callback.mode}: {monitor} is compared by {mode}; "
                    f"leave out callbacks.{name!s}.mode"
                )
            callback = OmegaConf.merge(callback, {"monitor": monitor, "mode": mode})
        if monitor is not None and monitor not in module.published:
            near = difflib.get_close_matches(str(monitor), module.published, n=1)
            nearest = (near or module.published)[0]
            raise ConfigurationError(
                f"callbacks.{name!s}.monitor={monitor}: no figure of this run; try {nearest}"
            )
        if not validated and str(monitor).startswith("val/"):
            if callback._target_ == "lightning.pytorch.callbacks.EarlyStopping":
                raise ConfigurationError(
                    f"callbacks.{name!s}.monitor={monitor}: this run has no validation; it needs "
                    "images for it (data.val_size) and batches of it (trainer.limit_val_batches)"
                )
        else:
            part = build_part(f"callbacks.{name!s}", Callback, callback)
            label, classes = getattr(part, "label", None), module.model.num_classes
            if classes and isinstance(label, int) and label >= classes:
                known = f"this model knows labels from 0 to {classes - 1}"
                raise ConfigurationError(f"callbacks.{name!s}.label={label}: {known}")
            built.append(part)
    return built


def _in_directory(name: str, callback: DictConfig, directory: Path) -> DictConfig:
    """Return a callback's settings with its folder in the run directory.

    Raises:
        ConfigurationError: the folder lies elsewhere.
    """
    dirpath = require(f"callbacks.{name}.dirpath", callback.dirpath, str)
    folder = (directory / dirpath).resolve()
    is_rehearsed = directory == Path()  # built once before there is a directory
    if not is_rehearsed and not folder.is_relative_to(directory.resolve()):
        raise ConfigurationError(
            f"callbacks.{name}.dirpath={dirpath}: outside of the run directory; "
            f"type a folder in it, as callbacks.{name}.dirpath=mine"
        )
    return cast("DictConfig", OmegaConf.merge(callback, {"dirpath": str(folder)}))


def choose_accelerator(name: str) -> str:
    """Return the name of the accelerator, which is also torch's: ``cpu``, ``cuda`` or ``mps``.

    ``auto`` is CUDA or the CPU, ``gpu`` is CUDA.

    Raises:
        ConfigurationError: there is none of that name, or not here.
    """
    require("trainer.accelerator", name, Literal["auto", "cpu", "gpu", "cuda", "mps"])
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name in ("gpu", "cuda") and not torch.cuda.is_available():
        has_mps = torch.backends.mps.is_available()
        instead = "cpu or trainer.accelerator=mps" if has_mps else "cpu"
        raise ConfigurationError(
            f"trainer.accelerator={name}: no CUDA GPU here; type trainer.accelerator={instead}"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError(
            "trainer.accelerator=mps: no Apple GPU here; type trainer.accelerator=auto"
        )
    return "cuda" if name == "gpu" else name


def refuse_empty_limits(trainer: Trainer, config: DictConfig, data: DataModule) -> None:
    """Check that each split has a batch, and that an epoch is long enough to be validated in.

    Lightning would see it late, or in an assertion of its own.

    Raises:
        ConfigurationError: one hasn't, or it isn't.
    """
    validation = data.test_indices if data.validate_on_test else data.val_indices
    for split, indices, size in (
        ("train", data.train_indices, data.batch_size),
        ("val", validation, data.eval_batch_size),
        ("test", data.test_indices, data.eval_batch_size),
    ):
        overfits = split != "test" and config.get("overfit_batches")
        key = "overfit_batches" if overfits else f"limit_{split}_batches"
        limit, batches = config.get(key), math.ceil(len(indices) / size)
        if isinstance(limit, float) and limit > 0 and batches and int(limit * batches) < 1:
            raise ConfigurationError(
                f"trainer.{key}={limit}: less than one of the {batches} batches ({split})"
            )
    every, epochs = config.get("check_val_every_n_epoch"), trainer.max_epochs
    if isinstance(every, int) and len(validation) and 0 < (epochs or 0) < every:
        log.warning(
            "trainer.check_val_every_n_epoch=%d: nothing is validated in %d epochs, so no step is "
            "the best, and none ends the run early",
            every,
            epochs,
        )
    interval = config.get("val_check_interval")
    limit = config.get("overfit_batches") or config.get("limit_train_batches", 1.0)
    steps = math.ceil(len(data.train_indices) / (data.batch_size * trainer.world_size))
    steps = min(limit, steps) if isinstance(limit, int) else int(limit * steps)
    in_epoch = trainer.check_val_every_n_epoch is not None  # else counted through the epochs
    if isinstance(interval, int) and interval > steps and in_epoch:
        raise ConfigurationError(
            f"trainer.val_check_interval={interval}: an epoch has {steps} batches; type up to "
            f"{steps}, or trainer.check_val_every_n_epoch=null to count through the epochs"
        )


def quieten_lightning() -> None:
    """Keep Lightning's remarks on the hardware and its advertisements off the terminal."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(EarlyStopping.__module__).setLevel(logging.INFO)  # with verbose=true
    for message, category in (
        # Lightning 2.6 uses torch 2.15's tree utilities in a way that they deprecate.
        (".*isinstance\\(treespec, LeafSpec\\).*", FutureWarning),
        # The module logs each epoch's means, however short the epoch.
        ("The number of training batches .* is smaller than the logging interval", Warning),
        # A run that trainer.max_steps ends before its first validation.
        (".*could not find the monitored key", Warning),
        # The loader needs no state: it uses the Trainer's own count.
        ("You're resuming from a checkpoint that ended before the epoch ended", Warning),
        # Of the validation with data.val_size=0, which was the user's intention.
        ("Total length of `list` across ranks is zero", Warning),
        # On a machine that can start jobs of a cluster, of runs that aren't such jobs.
        ("The `srun` command is available on your system but is not used", Warning),
        # A model that contains a trained one, which isn't trained on.
        ("Found .* module\\(s\\) in eval mode at the start of training", Warning),
        # All processes publish the mean over all of them.
        ("It is recommended to use `self.log\\(.*, sync_dist=True\\)`", Warning),
    ):
        warnings.filterwarnings("ignore", message=message, category=category)
