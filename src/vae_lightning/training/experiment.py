"""A training run from its configuration to its figures: build the parts, fit, test."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from filelock import BaseFileLock
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from vae_lightning.configuration.building import build_part, require, require_memory
from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import override, printable
from vae_lightning.data.batches import Seed
from vae_lightning.data.datamodule import DataModule
from vae_lightning.errors import ConfigurationError
from vae_lightning.models.base import Model
from vae_lightning.runs import mirror, signals
from vae_lightning.runs.checkpoints import (
    file_of_step,
    find_checkpoint,
    refuse_other_data,
    step_to_resume,
)
from vae_lightning.runs.directory import (
    make_run_directory,
    remove,
    save_configuration,
    use_run_directory,
)
from vae_lightning.runs.processor import flush_denormals
from vae_lightning.runs.resume import (
    has_begun,
    lock_directory,
    store_configuration,
    typed_beside_resume,
)
from vae_lightning.training import processes, stages
from vae_lightning.training.callbacks.mirroring import Mirroring
from vae_lightning.training.callbacks.progress import Throughput
from vae_lightning.training.module import VAEModule
from vae_lightning.training.optimizers import Optimization
from vae_lightning.training.trainer import build_trainer, quieten_lightning, refuse_empty_limits

log = logging.getLogger(__name__)

_ELSEWHERE = ("_target_", "accelerator", "devices", "num_nodes")
"""The settings of the Trainer that a run may be resumed without; it keeps all others."""


@dataclass
class Experiment:
    """The parts of one training run."""

    module: VAEModule
    data: DataModule
    trainer: Trainer
    throughput: Throughput
    directory: Path
    seed: int
    lock: BaseFileLock | None
    resumed_step: int | None
    remarks: list[str]
    mirror: mirror.Mirror | None


def build(config: DictConfig, given: Any = None, model: Model | None = None) -> Experiment:
    """Build the parts of a training configuration, read the data, make or take the run directory.

    Args:
        config: the configuration.
        given: images in Python, in place of files.
        model: a model in Python, in place of ``config.model``.

    Raises:
        ConfigurationError: a part refuses its values, and no directory has been made then; or there
            is nothing to resume.
        DatasetUnavailable: the data can't be had.
    """
    quieten_lightning()
    flush_denormals()
    signals.defer_no_longer()  # which a job of the same sweep may have left so
    signals.heed()
    seed = require("seed", config.seed, Seed)
    stages.resolve(config)
    optimization = build_part("optimizer", Optimization, config.optimizer)
    sketch, data = build_sketch(config, seed, given, model)
    if data.is_sized:
        refuse_too_large(sketch, data)
    lightning.seed_everything(seed, verbose=False)
    model = model or build_part("model", Model, config.model, data=data.spec)  # type: ignore[type-abstract]
    origin: dict[str, Any] = {}
    is_new = config.resume is None or not has_begun(Path(config.resume))
    if is_new:
        stages.load(model)
    if config.get("init") is not None:  # a trial of a search has no such key
        config.init = str(Path(expanded(require("init", config.init, str))).absolute())
        origin = stages.begin_from(model, config.init) if is_new else {}
    module = VAEModule(model, optimization, seed)
    if origin:
        module.hparams["init"] = origin
        module.is_begun = True
    kept: Any = OmegaConf.to_container(config.trainer, resolve=True)
    module.hparams["trainer"] = {key: kept[key] for key in kept if key not in _ELSEWHERE}
    throughput = Throughput()
    # Build and discard, so that a refused value leaves no directory.
    trainer = build_trainer(config, module, data, throughput, Path())
    endless = trainer.max_epochs == -1 and trainer.max_steps == -1
    if endless and optimization.schedule in ("one_cycle", "cosine"):
        raise ConfigurationError(
            f"optimizer.schedule={optimization.schedule}: needs an end, "
            "trainer.max_epochs or trainer.max_steps"
        )
    if data.is_sized:
        refuse_empty_limits(trainer, config.trainer, data)
    processes.refuse_sweeps(trainer)
    processes.quieten(trainer)
    if not is_new:
        refuse_other_data(Path(config.resume), data)
    data.prepare_data()
    data.setup()
    if not data.is_sized:
        refuse_too_large(sketch, data)
        refuse_empty_limits(trainer, config.trainer, data)
    directory = Path()
    lock: BaseFileLock | None = None
    mirrored: mirror.Mirror | None = None

    def begin() -> tuple[str, int | None, list[str]]:
        """Make or take the run directory, lock it, and find out where to go on.

        Of several processes the first one does so.
        """
        nonlocal directory, lock, mirrored
        if config.resume is None:
            # Until report.ending, which removes the directory of a run without a step.
            signals.defer()
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
            typed = typed_beside_resume()
            step, remarks = step_to_resume(directory, module, data, trainer, typed)
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
        if config.resume is None and trainer.is_global_zero:
            refuse_taken(trainer.loggers)
        if mirrored:  # after the callbacks that write checkpoints
            trainer.callbacks.append(Mirroring(mirrored))  # type: ignore[attr-defined]
        if config.resume is not None:
            for logger in trainer.loggers:  # what follows is logged again
                logger.purge_step = resumed_step or 0  # type: ignore[attr-defined]
    except BaseException:
        if lock is not None:
            lock.release()
            if config.resume is None:
                remove(directory)
                if mirrored:
                    mirrored.withdraw()
        raise
    return Experiment(
        module, data, trainer, throughput, directory, seed, lock, resumed_step, remarks, mirrored
    )


def build_sketch(
    config: DictConfig, seed: int, given: Any = None, model: Model | None = None
) -> tuple[Model, DataModule]:
    """Build the data module, which reads nothing yet, and the model without memory for its weights.

    Raises:
        ConfigurationError: a part refuses its values, or the two don't go together.
    """
    # In a tuple: Lightning compares the arguments of a data module by ==.
    others = {} if given is None else {"given": (given,)}
    data = build_part("data", DataModule, config.data, seed=seed, **others)  # type: ignore[type-abstract]
    if model is not None:
        if model.data != data.spec:
            raise ConfigurationError(f"model: is of {model.data}, and the data is {data.spec}")
        return model, data
    with torch.device("meta"):
        sketch = build_part("model", Model, config.model, data=data.spec)  # type: ignore[type-abstract]
    return sketch, data


def fit(experiment: Experiment) -> None:
    """Train.

    Raises:
        Interrupted: by a signal; what ``resume=`` goes on from is saved.
        ConfigurationError: a callback or logger refuses this run.
    """
    step = experiment.resumed_step
    file = None if step is None else file_of_step(experiment.directory, step)
    trainer = experiment.trainer

    def is_restored() -> bool:
        """Return whether an epoch has been trained since: all that was restored has been used."""
        return trainer.global_step - (step or 0) > trainer.num_training_batches

    try:
        with _restoring(experiment, is_restored):
            trainer.fit(experiment.module, experiment.data, ckpt_path=file, weights_only=True)
    except MisconfigurationException as error:  # a callback or logger of the user's choice
        raise ConfigurationError(f"trainer: {str(error).splitlines()[0]}") from error
    signals.defer_no_longer()
    for callback in trainer.early_stopping_callbacks if trainer.should_stop else ():
        reason = str(callback.stopping_reason_message).removesuffix(" Signaling Trainer to stop.")
        log.info("Ended early, in epoch %d: %s", trainer.current_epoch, reason)


def test(experiment: Experiment) -> tuple[dict[str, float], Path | None]:
    """Test the best checkpoint, or the last where nothing was held out to choose by.

    Returns:
        The figures, and the checkpoint. Where none was written, as by ``fast_dev_run``, it is None
        and the model is tested as it is.
    """
    trainer = experiment.trainer
    try:
        file = find_checkpoint(experiment.directory) if trainer.is_global_zero else None
    except FileNotFoundError:
        file = None
    file = trainer.strategy.broadcast(file)
    module, data = experiment.module, experiment.data
    with _restoring(experiment, lambda: module.tested > 0):
        trainer.test(module, data, ckpt_path=file, weights_only=True, verbose=False)
    measured = trainer.callback_metrics.items()
    return {name: value.item() for name, value in measured if name.startswith("test/")}, file


@contextmanager
def _restoring(experiment: Experiment, is_restored: Callable[[], bool]) -> Iterator[None]:
    """Turn what Lightning makes of a foreign checkpoint into one line, in a run that is resumed.

    Args:
        experiment: the run.
        is_restored: says whether all of the checkpoint has been used; errors after that stay.

    Raises:
        ConfigurationError: something failed before that.
    """
    try:
        yield
    except (
        ConfigurationError,
        MisconfigurationException,
        OSError,
        FloatingPointError,
        MemoryError,
    ):
        raise
    except Exception as error:
        of_memory = isinstance(error, RuntimeError) and "memory" in str(error).lower()
        lost = isinstance(error, RuntimeError) and processes.has_lost_another(error)
        if experiment.resumed_step is None or of_memory or lost or is_restored():
            raise
        problem = printable(next(iter(str(error).splitlines()), ""))[:200]
        raise ConfigurationError(
            f"{override('resume', experiment.directory)}: can't go on from its step "
            f"{experiment.resumed_step} ({type(error).__name__}: {problem}); "
            "the checkpoint is damaged, or of another program"
        ) from error


def refuse_taken(loggers: Sequence[Logger]) -> None:
    """Check that a new run logs into no folder of an earlier one, as a typed ``save_dir`` may.

    Raises:
        ConfigurationError: a logger would.
    """
    for logger in loggers:
        place = Path(logger.log_dir or "")
        if logger.log_dir and place.is_dir() and any(place.iterdir()):
            raise ConfigurationError(
                f"{override('save_dir', logger.save_dir or '')}: {place} holds what another run "
                "has logged; type another folder, or leave it out"
            )


def refuse_too_large(model: Model, data: DataModule) -> None:
    """Check that the weights with their gradients, and what a step holds, fit into memory.

    Raises:
        ConfigurationError: they don't.
    """
    weights = sum(weight.numel() for weight in model.parameters())
    trained = min(data.batch_size, len(data.train_indices)) * model.numbers_per_example(True)
    tested = min(data.eval_batch_size, len(data.test_indices)) * model.numbers_per_example(False)
    sizes = [f"model.{key}={value}" for key, value in model.settings.items() if _is_size(value)]
    sizes += [f"data.{key}={getattr(data, key)}" for key in ("batch_size", "eval_batch_size")]
    require_memory(", ".join(sizes), 2 * weights + max(trained, tested))


def _is_size(value: object) -> bool:
    """Return whether a setting is a size: a whole number above 1, or a list of such."""
    sizes = value if isinstance(value, list) and value else [value]
    return all(isinstance(size, int) and size > 1 for size in sizes)
