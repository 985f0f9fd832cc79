"""An experiment from its configuration to its figures: build the parts, fit, test."""

import contextlib
import difflib
import logging
import math
import os
import shutil
import typing
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import lightning
import torch
from filelock import BaseFileLock
from hydra.utils import get_class
from lightning import Callback, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from vae_lightning import interruption, mirror, processes
from vae_lightning.callbacks.mirroring import Mirroring
from vae_lightning.callbacks.progress import Throughput
from vae_lightning.checkpoints import VerifiedFiles, file_of_step, find_checkpoint, step_to_resume
from vae_lightning.configuration import TARGETS, ConfigurationError
from vae_lightning.data import CLASSES, Batches, MNISTDataModule, Seed
from vae_lightning.directories import make_run_directory, save_configuration, use_run_directory
from vae_lightning.likelihoods import kind_of_number
from vae_lightning.module import IMAGE_SHAPE, VAEModule
from vae_lightning.resuming import has_begun, lock_directory, store_configuration

log = logging.getLogger(__name__)
Part = TypeVar("Part")
_NOTHING = contextlib.nullcontext()

_Epochs = Annotated[int, Field(ge=-1)]
_Batches = NonNegativeInt | Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TRAINER_KINDS: dict[str, Any] = {
    "max_epochs": _Epochs,  # with null Lightning would take 1,000
    "max_steps": _Epochs,
    "limit_train_batches": _Batches,
    "limit_val_batches": _Batches,
    "limit_test_batches": _Batches,
    "fast_dev_run": bool | NonNegativeInt,
    "log_every_n_steps": NonNegativeInt,
    "check_val_every_n_epoch": PositiveInt,
    "val_check_interval": PositiveInt | Annotated[float, Field(gt=0, le=1)],
    "accumulate_grad_batches": PositiveInt,
    "gradient_clip_val": Annotated[float, Field(ge=0, allow_inf_nan=False)] | None,
    "num_sanity_val_steps": _Epochs,
    # All of Lightning's but those that ask for packages which the project doesn't.
    "precision": Literal[
        "32-true", "32", 32, "64-true", "64", 64, "bf16-mixed", "bf16", "bf16-true", "16-mixed", "16", 16, "16-true"
    ],
}
"""What Lightning's trainer takes unchecked by its own type hints, and then divides by, clips with or counts down."""


@dataclass
class Experiment:
    """The parts of one training run."""

    module: VAEModule
    data: MNISTDataModule
    trainer: Trainer
    throughput: Throughput
    directory: Path
    seed: int
    lock: BaseFileLock | None
    resumed_step: int | None
    remarks: list[str]
    mirror: mirror.Mirror | None


def build(config: DictConfig) -> Experiment:
    """Build the parts that a training configuration describes, read the data, and make or take the run directory.

    Raises:
        ConfigurationError: a part refuses its values; no directory has been made then. Or there is nothing to resume.
        DatasetUnavailable: the data can't be had.
    """
    quieten_lightning()
    interruption.defer_no_longer()  # which a job of the same sweep may have left so
    interruption.heed()
    seed = require("seed", config.seed, Seed)
    with torch.device("meta"):  # the model's shapes alone
        sketch = build_part("model", VAEModule, config.model, seed=seed)
    data = build_part("data", MNISTDataModule, config.data, seed=seed)
    refuse_meaningless_pairs(sketch, data)
    refuse_too_large(sketch, data)
    lightning.seed_everything(seed, verbose=False)
    module = build_part("model", VAEModule, config.model, seed=seed)
    throughput = Throughput()
    trainer = build_trainer(config, module, data, throughput, Path())  # for nothing: what it refuses leaves no directory behind
    endless = trainer.max_epochs == -1 and trainer.max_steps == -1
    if endless and config.model.get("schedule") in ("one_cycle", "cosine"):
        raise ConfigurationError(
            f"model.schedule={config.model.schedule}: asks for an end, trainer.max_epochs or trainer.max_steps"
        )
    refuse_empty_limits(config.trainer, data)
    processes.refuse_sweeps(trainer)
    processes.quieten(trainer)
    data.prepare_data()
    data.setup()
    directory = Path()
    lock: BaseFileLock | None = None
    mirrored: mirror.Mirror | None = None

    def begin() -> tuple[str, int | None, list[str]]:
        """Make or take the run directory, lock it, and find out where to go on; of several processes the first does so."""
        nonlocal directory, lock, mirrored
        if config.resume is None:
            interruption.defer()  # until report.ending, which removes the directory of a run that hasn't begun
            directory = make_run_directory("train")
        else:
            directory = Path(config.resume)
            use_run_directory(directory)
        lock = lock_directory(directory)
        if config.resume is None:
            if config.mirror is not None:
                config.mirror = mirror.place_of(config.mirror, directory)
            save_configuration(config, directory)
            mirrored = mirror.begin(config, directory)
            return str(directory), None, []
        step: int | None = None
        if has_begun(directory):
            step, remarks = step_to_resume(directory, module, data, trainer)
        else:
            remarks = [f"{directory} was stopped before its first step: starting there"]
        mirrored = mirror.begin(config, directory)
        store_configuration(config)
        (directory / "metrics.json").unlink(missing_ok=True)  # of a shorter run
        return str(directory), step, remarks

    try:
        name, resumed_step, remarks = processes.from_first(trainer, begin)
        directory = Path(name)
        use_run_directory(directory)
        trainer = build_trainer(config, module, data, throughput, directory)
        if mirrored:
            trainer.callbacks.append(Mirroring(mirrored))  # type: ignore[attr-defined]  # after those that write checkpoints
        if config.resume is not None:
            for logger in trainer.loggers:
                logger.purge_step = resumed_step or 0  # type: ignore[attr-defined]  # what follows is logged again
    except BaseException:
        if lock is not None:
            lock.release()
            if config.resume is None:
                shutil.rmtree(directory)
                if mirrored:
                    mirrored.withdraw()
        raise
    return Experiment(module, data, trainer, throughput, directory, seed, lock, resumed_step, remarks, mirrored)


def fit(experiment: Experiment) -> None:
    """Train.

    Raises:
        Interrupted: by SIGTERM or Ctrl-C; what ``resume=`` goes on from is saved.
    """
    step = experiment.resumed_step
    file = None if step is None else file_of_step(experiment.directory, step)
    experiment.trainer.fit(experiment.module, experiment.data, ckpt_path=file, weights_only=True)
    interruption.defer_no_longer()


def test(experiment: Experiment) -> tuple[dict[str, float], Path | None]:
    """Test the best checkpoint, or the last where nothing was held out to choose by.

    Returns:
        The figures, and the checkpoint; None where none was written, as by ``fast_dev_run``: the model is tested as it is.
    """
    trainer = experiment.trainer
    try:
        file = find_checkpoint(experiment.directory) if trainer.is_global_zero else None
    except FileNotFoundError:
        file = None
    file = trainer.strategy.broadcast(file)
    trainer.test(experiment.module, experiment.data, ckpt_path=file, weights_only=True, verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("test/")}, file


# -- parts ------------------------------------------------------------------------------------------------------------


def build_part(group: str, kind: Callable[..., Part] | None, config: DictConfig, **others: Any) -> Part:
    """Call a constructor with the values of a configuration group, checked against its signature.

    Args:
        group: the group's key, to name in an error.
        kind: the constructor; by default the class that the group names as its ``_target_``.
        config: the group.
        **others: values that are not the user's, taken unchecked.

    Raises:
        ConfigurationError: naming the key, its value and what would be right.
    """
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    target = values.pop("_target_", None)
    if kind is None and target not in TARGETS:  # once more, now that interpolations are resolved
        raise ConfigurationError(
            f"{group}._target_={target}: not one of the allowed targets (vae_lightning.configuration.TARGETS)"
        )
    constructor: Callable[..., Part] = kind or get_class(str(target))
    hints = typing.get_type_hints(constructor.__init__, include_extras=True)
    for key, value in values.items():
        if key not in hints:
            raise ConfigurationError(f"unknown key {group}.{key}: {constructor.__name__} takes no such value")
        require(f"{group}.{key}", value, hints[key])
    try:
        return constructor(**{**values, **others})
    except (ValueError, MisconfigurationException, ImportError) as error:
        problem = str(error).splitlines()[0]
        separator = "." if problem.partition("=")[0] in values else ": "  # our own parts name the key first
        raise ConfigurationError(f"{group}{separator}{problem}") from error


def refuse_meaningless_pairs(module: VAEModule, data: MNISTDataModule) -> None:
    """Check that a model can be trained and measured on images of a protocol.

    Raises:
        ConfigurationError: it can't.
    """
    try:
        kind_of_number(module.vae.family.name, data.binarization, data.dequantize)
    except ValueError as error:
        raise ConfigurationError(f"data.{error}") from error
    if module.vae.num_classes not in (0, CLASSES):
        raise ConfigurationError(
            f"model.num_classes={module.vae.num_classes}: the images have {CLASSES} labels, so {CLASSES} or 0"
        )
    if module.vae.num_classes and data.dataset == "larochelle":
        raise ConfigurationError("model.num_classes: the Larochelle split has no labels, so model.num_classes=0")


def refuse_too_large(module: VAEModule, data: MNISTDataModule) -> None:
    """Check that a model's weights, with their gradients, and what a step must hold fit into memory.

    A process that asks for more may be ended by the system, without a word.

    Raises:
        ConfigurationError: they don't.
    """
    weights = sum(weight.numel() for weight in module.parameters())
    pixels, hidden = math.prod(IMAGE_SHAPE), sum(module.hparams["hidden_dims"])
    trained = min(data.batch_size, len(data.train_indices)) * module.num_samples * (2 * module.latent_dim + hidden + pixels)
    tested = min(data.eval_batch_size, len(data.test_indices)) * 5 * module.latent_dim  # loc, scale, noise, sample, KL
    needed, there = 4 * (2 * weights + max(trained, tested)), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        sizes = [f"model.{key}={module.hparams[key]}" for key in ("latent_dim", "hidden_dims", "channels", "num_samples")]
        sizes += [f"data.{key}={data.hparams[key]}" for key in ("batch_size", "eval_batch_size")]
        raise ConfigurationError(
            f"{', '.join(sizes)}: at least {needed / 1e9:,.0f} GB of memory, where there are {there / 1e9:,.0f}"
        )


def refuse_empty_limits(config: DictConfig, data: MNISTDataModule) -> None:
    """Check that what is asked for of each split is a batch at least; Lightning would see it after the training.

    Raises:
        ConfigurationError: it is less.
    """
    validation = data.test_indices if data.validate_on_test else data.val_indices
    for split, indices, size in (
        ("train", data.train_indices, data.batch_size),
        ("val", validation, data.eval_batch_size),
        ("test", data.test_indices, data.eval_batch_size),
    ):
        limit, batches = config.get(f"limit_{split}_batches"), math.ceil(len(indices) / size)
        if isinstance(limit, float) and limit > 0 and batches and int(limit * batches) < 1:
            raise ConfigurationError(f"trainer.limit_{split}_batches={limit}: less than one of the {batches} batches there are")


def build_data_as_trained(config: DictConfig, trained_with: dict[str, Any], module: VAEModule) -> MNISTDataModule:
    """Build the data module by a checkpoint's protocol and read the data; keys of ``config`` that aren't null override it.

    Raises:
        ConfigurationError: a value is refused.
        DatasetUnavailable: the data can't be had.
    """
    interruption.heed()
    overrides = OmegaConf.create({key: value for key, value in config.items() if value is not None and key != "limit_test"})
    kept = {key: value for key, value in trained_with.items() if key not in overrides}
    data = build_part("data", MNISTDataModule, overrides, **kept)
    refuse_meaningless_pairs(module, data)
    data.prepare_data()
    data.setup()
    return data


def choose_split(data: MNISTDataModule, split: Literal["train", "val", "test"], limit: int | None = None) -> Batches:
    """Return a split of data that has been read, or its first images.

    Raises:
        ConfigurationError: there are none.
    """
    try:
        return data.split(split, limit)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def check_label(label: int | None, num_classes: int, asks: str = "") -> None:
    """Check that a model of so many classes knows a label; ``asks`` says what it must have one for, if it must.

    Raises:
        ConfigurationError: it doesn't, or none is given where one must be.
    """
    if label is not None and label >= num_classes:
        known = f"labels from 0 to {num_classes - 1}" if num_classes else "no labels: train one with model=conditional"
        raise ConfigurationError(f"label={label}: this model knows {known}")
    if asks and num_classes and label is None:
        raise ConfigurationError(f"label=null: this model is conditional; say {asks}, label=0 to label={num_classes - 1}")


def require_list(key: str, value: Any, kind: Any) -> Any:
    """Return a list of a configuration if it isn't empty and its elements are of a type.

    Raises:
        ConfigurationError: naming the key, its value and what would be right.
    """
    if isinstance(value, str):
        raise ConfigurationError(f"{key}={value}: must be a list, in most shells with quotes: '{key}=[{value}]'")
    values = OmegaConf.to_container(value) if OmegaConf.is_list(value) else value
    return require(key, values, Annotated[list[kind], Field(min_length=1)])


class Unprofiled(Profiler):
    """Times nothing, and costs less than Lightning's own way to: it is asked to a hundred times a step."""

    def profile(self, action_name: str) -> Any:
        """Return a context that does nothing."""
        return _NOTHING

    def start(self, action_name: str) -> None:
        """Start nothing."""

    def stop(self, action_name: str) -> None:
        """Stop nothing."""


_STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


def without_idle_hooks(callback: Callback) -> Callback:
    """Take from a callback the hooks of a step that it doesn't use: Lightning passes over what can't be called."""
    for hook in _STEP_HOOKS:
        if getattr(type(callback), hook) is getattr(Callback, hook):
            setattr(callback, hook, None)
    return callback


def build_trainer(
    config: DictConfig, module: VAEModule, data: MNISTDataModule, throughput: Throughput, directory: Path
) -> Trainer:
    """Build the trainer with its callbacks and loggers, for a run directory.

    Raises:
        ConfigurationError: a part refuses its values.
    """
    for key, kind in TRAINER_KINDS.items():
        if key in config.trainer:
            require(f"trainer.{key}", config.trainer[key], kind)
    if not torch.cuda.is_available():
        # Lightning's import sets it to 1, by which torch looks for a driver's library at every step of an optimiser.
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    accelerator = choose_accelerator(config.trainer.accelerator)
    if accelerator == "cpu" and config.trainer.get("precision") in ("16-mixed", "16", 16):
        raise ConfigurationError(
            f"trainer.precision={config.trainer.precision}: not on a CPU, where Lightning would take bf16-mixed in its place"
        )
    devices, nodes = (require(f"trainer.{key}", config.trainer[key], PositiveInt) for key in ("devices", "num_nodes"))
    if accelerator == "cpu" and devices > (cores := os.cpu_count() or 1):
        raise ConfigurationError(f"trainer.devices={devices}: more processes than the {cores} cores here")
    environment = processes.environment(devices, nodes)
    several = {"strategy": DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True, timeout=processes.TIMEOUT)}
    callbacks = build_callbacks(config.callbacks, module, data)
    return build_part(
        "trainer",
        Trainer,
        config.trainer,
        accelerator=accelerator,
        use_distributed_sampler=False,  # a data module's batches are shared by its own rule
        **(several if devices * nodes > 1 else {}),
        callbacks=[without_idle_hooks(callback) for callback in (throughput, *callbacks)],
        # Without any, Lightning would add one of its own, that writes among the logs.
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        logger=[build_part(f"logger.{name}", None, logger) for name, logger in config.logger.items() if logger],
        default_root_dir=directory,
        profiler=Unprofiled(),
        plugins=[VerifiedFiles(), environment],
    )


def build_callbacks(config: DictConfig, module: VAEModule, data: MNISTDataModule) -> list[Callback]:
    """Build the callbacks; what goes by a validation figure is left out where no images are held out.

    Raises:
        ConfigurationError: a part refuses its values, or goes by a figure that the module doesn't publish.
    """
    for name, callback in config.items():
        if callback and (monitor := callback.get("monitor")) is not None and monitor not in module.published:
            nearest = difflib.get_close_matches(str(monitor), module.published, n=1) or module.published
            raise ConfigurationError(f"callbacks.{name!s}.monitor={monitor}: no figure of this run; try {nearest[0]}")
    return [
        build_part(f"callbacks.{name}", None, callback)
        for name, callback in ((str(name), callback) for name, callback in config.items())
        if callback and (data.holds_out or not str(callback.get("monitor")).startswith("val/"))
    ]


def choose_accelerator(name: str) -> str:
    """Return Lightning's name of the accelerator: ``auto`` is CUDA or the CPU, and a missing GPU is an error.

    Raises:
        ConfigurationError: there is none of that name, or not here.
    """
    require("trainer.accelerator", name, Literal["auto", "cpu", "gpu", "cuda", "mps"])
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name in ("gpu", "cuda") and not torch.cuda.is_available():
        instead = "cpu or trainer.accelerator=mps" if torch.backends.mps.is_available() else "cpu"
        raise ConfigurationError(f"trainer.accelerator={name}: no CUDA GPU here; type trainer.accelerator={instead}")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError("trainer.accelerator=mps: no Apple GPU here; type trainer.accelerator=auto")
    return name


def require(key: str, value: Any, kind: Any) -> Any:
    """Return a value if it is of a type, ranges included.

    Raises:
        ConfigurationError: naming the key, its value and what would be right.
    """
    if any(abs(number) >= 2**53 for number in _whole_numbers(value)):
        raise ConfigurationError(f"{key}={value!s}: must be below 2^53, past which neither torch nor Lightning counts")
    try:
        return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError as error:
        problems = dict.fromkeys(problem["msg"].replace("Input should", "must") for problem in error.errors())
        raise ConfigurationError(f"{key}={value!s}: {', or '.join(problems)}") from error


def _whole_numbers(value: Any) -> Iterator[int]:
    """Yield the whole numbers in a value, however deep."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(each)
    elif isinstance(value, int):
        yield value


def quieten_lightning() -> None:
    """Keep Lightning's remarks on the hardware and its advertisements off the terminal; warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 asks torch 2.15's tree utilities in a way that they deprecate; nothing here can change that.
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*", category=FutureWarning)
    # A remark on epochs shorter than log_every_n_steps; the module logs each epoch's means whatever its length.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    # A run that trainer.max_steps ends before its first validation; that the figure exists has been checked before.
    warnings.filterwarnings("ignore", message=".*could not find the monitored key")
    # A run that is resumed in the middle of an epoch: the loader keeps no state, for it goes by the Trainer's own count.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    # What it says of the validation with data.val_size=0, which was the user's intention.
    warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
    # On a machine that can start jobs of a cluster, of runs that aren't any.
    warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used")
    # What it says of the means of several processes, which all publish the mean over all of them.
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log\\(.*, sync_dist=True\\)`")
