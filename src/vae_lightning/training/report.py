"""What a training run says at its beginning and at its end."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import OmegaConf

from vae_lightning.configuration.quoting import command, override, printable, program, shell_word
from vae_lightning.data.datamodule import DataModule
from vae_lightning.errors import ConfigurationError
from vae_lightning.models.base import CodePrior, DiscreteModel, Model
from vae_lightning.runs import signals
from vae_lightning.runs.checkpoints import read, steps
from vae_lightning.runs.directory import remove
from vae_lightning.runs.loggers import RunWandbLogger
from vae_lightning.runs.metrics_file import unit, write_metrics
from vae_lightning.runs.mirror import PATIENCE
from vae_lightning.training import processes
from vae_lightning.training.experiment import Experiment

log = logging.getLogger(__name__)


def describe(model: Model, data: DataModule, trainer: Trainer) -> str:
    """Return a line that says what is about to be trained, on what."""
    device, processes_ = trainer.strategy.root_device.type, trainer.world_size
    where = device if processes_ == 1 else f"{device} in {processes_} processes"
    weights = sum(weight.numel() for weight in model.parameters())
    splits = (data.train_indices, data.val_indices, data.test_indices)
    sizes = " + ".join(f"{len(indices):,}" for indices in splits)
    return (
        f"{model.describe()} and {weights:,} weights, on {where}; {data.name}: {sizes} "
        f"{data.modality.noun}s (training + validation + test)"
    )


def table(figures: Mapping[str, float], model: Model, noun: str, rows: Mapping[str, Any]) -> str:
    """Return the test figures, the criterion first, and further rows as a table."""
    lines = {}
    for name in dict.fromkeys((model.comparison, *model.terms, *model.shown)):
        if f"test/{name}" in figures:
            figure = model.figures[name]
            label = f"{'test ' * (name == model.comparison)}{figure.label}"
            digits = 2 if figure.unit else 3
            value = f"{figures[f'test/{name}']:.{digits}f}"
            lines[label] = f"{value} {unit(figure, noun)}".rstrip()
    lines |= rows
    return "\n".join(f"  {label:<16} {value}" for label, value in lines.items())


def finish(parts: Experiment, figures: dict[str, float], checkpoint: Path | None) -> None:
    """Write a training run's figures; print them, the places of its files and further commands."""
    trainer, directory = parts.trainer, parts.directory
    model, noun = parts.module.model, parts.data.modality.noun
    speed = round(parts.throughput.examples_per_second)
    step = read(checkpoint)["global_step"] if checkpoint else trainer.global_step
    run = {
        "seed": parts.seed,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "processes": trainer.world_size,
        "precision": trainer.precision,
        "test_examples": parts.module.tested,
        "examples_per_second": speed,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "checkpoint_step": step,
    }
    if isinstance(model, CodePrior):
        run["codes_of"] = model.codes_of
    if rates := parts.module.hparams.get("learning_rates"):
        run["learning_rates"] = dict(rates)  # by their first steps
    write_metrics(directory, figures, model, parts.data, run)
    rows = {
        "epochs": f"{trainer.current_epoch} ({trainer.global_step:,} steps)",
        f"{noun}s/s": f"{speed:,}",
        "tested": f"{checkpoint.stem} checkpoint, of step {step:,}"
        if checkpoint
        else "the model as it is: no checkpoint was written",
        "note": model.meaning,
    }
    places = [f"This run's files: {directory}"]
    if parts.mirror:
        places.append(f"  mirror      {parts.mirror.address}")
    if (directory / "images").is_dir():
        places.append(f"  pictures    {directory / 'images'}")
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        logs = str(directory.parent)
        logs = f"./{logs}" if logs.startswith(("~", "-")) else logs  # TensorBoard expands ~ itself
        places.append(
            f"  dashboard   {program('tensorboard')} --logdir {shell_word(logs)} "
            "--samples_per_plugin images=500"
        )
    if checkpoint and isinstance(model, DiscreteModel):  # whose samples need a prior
        of_codes = override("data.run", directory)
        places.append(f"  its prior   {command('train', 'experiment=prior', of_codes)}")
    elif checkpoint:
        places.append(f"  samples     {command('sample', override('checkpoint', directory))}")
    log.info("\n%s\n\n  %s", table(figures, model, noun, rows), "\n  ".join(places))


@contextmanager
def ending(parts: Experiment) -> Iterator[None]:
    """Release the run directory at the end.

    After a signal, print the resume command, or delete the directory if no step was taken.

    Raises:
        FloatingPointError: a number isn't finite; the message says how to go on.
    """
    try:
        signals.defer_no_longer()
        yield
        if parts.mirror:
            parts.mirror.complete()
    except FloatingPointError as error:
        processes.leave_to_first(parts.trainer)
        raise FloatingPointError(f"{error}\n{_after_divergence(parts)}") from error
    except RuntimeError as error:
        if not processes.has_lost_another(error):
            raise
        raise ConfigurationError(
            "another process of this run has ended; "
            f"go on with all of them by {override('resume', parts.directory)}"
        ) from error
    except signals.Interrupted:
        processes.leave_to_first(parts.trainer)
        step = max(parts.trainer.global_step, parts.resumed_step or 0)
        if step == 0 and parts.resumed_step is None:
            remove(parts.directory)
            if parts.mirror:
                parts.mirror.withdraw()
        elif steps(parts.directory):
            log.info(
                "Stopped after %s steps; what was done is saved. Go on with\n  %s",
                f"{step:,}",
                command("train", override("resume", parts.directory)),
            )
            if parts.mirror:
                try:
                    parts.mirror.complete(PATIENCE)
                except OSError as error:
                    log.warning(error)
        raise
    finally:
        for logger in parts.trainer.loggers:
            if isinstance(logger, RunWandbLogger):
                logger.finish()
        if parts.lock is not None:
            parts.lock.release()


def _after_divergence(parts: Experiment) -> str:
    """Return where the files of a run are that has diverged, and what to try in its place."""
    directory, rate = parts.directory, parts.module.optimization.learning_rate / 10
    saved = steps(directory)
    kept = f", saved up to step {saved[0]:,}" if saved else ""
    file = directory / ".hydra" / "overrides.yaml"
    typed: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else []
    left_out = ("optimizer.learning_rate=", "hydra.run.dir=", "resume=")
    again = [printable(each) for each in typed if not str(each).lstrip("+").startswith(left_out)]
    last = {each.lstrip("+").partition("=")[0]: each for each in again}  # typed beside resume= too
    line = command("train", *last.values(), f"optimizer.learning_rate={rate:g}")
    return f"Its files{kept}: {directory}. With a tenth of the rate:  {line}"
