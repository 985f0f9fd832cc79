"""What a command says at its end, on the terminal and in ``metrics.json``."""

import json
import logging
import math
import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from vae_lightning import durable, interruption, processes
from vae_lightning.checkpoints import load_data_settings, read, steps
from vae_lightning.configuration import ConfigurationError
from vae_lightning.data import Batches, MNISTDataModule
from vae_lightning.experiment import Experiment
from vae_lightning.likelihoods import kind_of_number
from vae_lightning.logs import Dispensable, EventWriter
from vae_lightning.metrics import ACTIVE_VARIANCE, bits_per_dimension
from vae_lightning.mirror import PATIENCE
from vae_lightning.module import IMAGE_SHAPE, VAEModule
from vae_lightning.noise import EVALUATION_SEED
from vae_lightning.provenance import versions

log = logging.getLogger(__name__)

PROTOCOL = ("binarization", "dequantize")
"""What an evaluation may change of the data's protocol."""

_BINARIZATIONS = {
    "none": "none: grey levels",
    "stochastic": "stochastic: drawn anew at every visit in training, once for validation and test",
    "static": "static: drawn once",
}
_MEANINGS = {
    "mass": "log-likelihoods of discrete images",
    "density": "log-densities of dequantised images in [0, 1]",
}
_CROSS_ENTROPIES = {
    "bernoulli": "grey levels as probabilities: none of these is a likelihood of binary images",
    "continuous_bernoulli": "densities at 256 grey levels: no likelihoods of images; data.dequantize=true makes them",
    "gaussian": "densities at 256 grey levels, without bound: no likelihoods of images; data.dequantize=true makes them",
}


def describe(module: VAEModule, data: MNISTDataModule, trainer: Trainer) -> str:
    """Return a line that says what is about to be trained, on what."""
    device = trainer.strategy.root_device.type
    where = device if trainer.world_size == 1 else f"{device} in {trainer.world_size} processes"
    weights = sum(weight.numel() for weight in module.parameters())
    sizes = " + ".join(f"{len(indices):,}" for indices in (data.train_indices, data.val_indices, data.test_indices))
    return (
        f"VAE with {module.latent_dim} latents and {weights:,} weights, on {where}; "
        f"{data.dataset}: {sizes} images (training + validation + test)"
    )


def table(figures: dict[str, float], rows: dict[str, Any]) -> str:
    """Return the test figures and further rows as a table."""
    labels = {"test/elbo": "test ELBO", "test/log_likelihood": "log-likelihood", "test/kl": "KL"}
    lines = {labels[name]: f"{figures[name]:.2f} nats per image" for name in labels if name in figures} | rows
    return "\n".join(f"  {label:<16} {value}" for label, value in lines.items())


def write_metrics(
    directory: Path, figures: dict[str, Any], module: VAEModule, data: MNISTDataModule, run: dict[str, Any], samples: int = 1
) -> Path:
    """Write the figures with the protocol they were taken by to ``metrics.json``."""
    protocol = {
        "data": data.dataset,
        "val_size": len(data.val_indices),
        "split_seed": data.hparams["split_seed"],
        "validate_on_test": data.validate_on_test,
        "binarization": _BINARIZATIONS[data.binarization],
        "dequantize": data.dequantize,
        "likelihood": module.vae.family.name,
        "objective": f"{module.estimator} of {module.num_samples}",
        "meaning": meaning(module, data),
        "samples": samples,
        "evaluation_seed": EVALUATION_SEED,
    }
    content = {
        "figures": figures,
        "units": "nats per image, but for shares, counts, bits and distances",
        "protocol": protocol,
        "run": run,
        "versions": versions(),
    }
    file = directory / "metrics.json"
    durable.write(file, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return file


def measured(
    file: Path,
    directory: Path,
    module: VAEModule,
    data: MNISTDataModule,
    images: Batches,
    split: str,
    samples: int,
    figures: dict[str, Any],
    quality: dict[str, Any],
) -> str:
    """Write an evaluation's figures, also into the training run's dashboard, and return them as a table.

    Args:
        file: the checkpoint.
        directory: the evaluation's run directory.
        module: the model.
        data: the data measured on.
        images: those of them that were looked at.
        split: which part they are of.
        samples: importance samples per image.
        figures: what was measured of the split, by name.
        quality: what was measured of the model's samples.
    """
    count, family = len(images.indices), module.vae.family.name
    kind = kind_of_number(family, data.binarization, data.dequantize)
    best = next((name for name in ("log_marginal", "elbo") if name in figures), None)
    if best and kind != "neither":
        pixels = math.prod(IMAGE_SHAPE)
        figures["bits_per_dimension"] = bits_per_dimension(figures[best], pixels, kind == "density")
        figures["bits_per_dimension_error"] = figures[f"{best}_error"] / (pixels * math.log(2))
    named = {f"{split}/{name}": value for name, value in figures.items()}
    named |= {f"samples/{name}": value for name, value in quality.items()}
    run_ = {"checkpoint": str(file), "split": split, "images": count}
    written = write_metrics(directory, named, module, data, run_, samples if "log_marginal" in figures else 1)
    trained_with = load_data_settings(file)
    differences = [f"{key}={trained_with[key]}" for key in PROTOCOL if trained_with[key] != getattr(data, key)]
    # Another protocol's figures would be one curve with those of the training's own.
    tag = "evaluate" if not differences else f"evaluate_{data.binarization}{'_dequantized' * data.dequantize}"
    run = file.parent.parent
    if (run / "tensorboard").is_dir():
        step = read(file)["global_step"]
        with EventWriter(run / "tensorboard") as writer:
            for name, value in named.items():
                if not isinstance(value, list):
                    writer.add_scalar(f"{tag}/{name}", value, step)
    dequantized = ", dequantised" if data.dequantize else ""
    rows = {"data": f"{count:,} {split} images of {data.dataset}, binarisation {data.binarization}{dequantized}"}
    if differences:
        rows["protocol"] = f"another than in training, which had {', '.join(differences)}"
    rows |= _rows(figures | quality, samples, module.num_samples, count)
    rows |= {"note": meaning(module, data), "checkpoint": str(file), "figures": str(written)}
    return "\n".join(f"  {label:<16} {value}" for label, value in rows.items())


def _rows(figures: dict[str, Any], samples: int, trained_samples: int, images: int) -> dict[str, str]:
    """Return an evaluation's figures in words, by their labels."""
    rows = {}
    labels = {"elbo": "ELBO", "log_likelihood": "log-likelihood", "kl": "KL", "importance_bound": "importance bound"}
    for name, label in labels.items():
        if name in figures:
            rows[label] = f"{figures[name]:.2f} ± {figures[f'{name}_error']:.2f}"
    if "importance_bound" in figures:
        rows["importance bound"] += f", of {trained_samples} samples, as in training"
    if "log_marginal" in figures:
        rows["log p(x)"] = (
            f"{figures['log_marginal']:.2f} ± {figures['log_marginal_error']:.2f} over images, "
            f"± {figures['log_marginal_estimator_error']:.3f} of the estimator: a lower bound in expectation, by {samples:,} "
            f"importance samples, of which {figures['median_effective_samples']:.0f} count in the median image"
            + (": too few, so that bound and error may be far off" if figures["median_effective_samples"] < 5 else "")
        )
    if "bits_per_dimension" in figures:
        source = "log p(x)" if "log_marginal" in figures else "the ELBO"
        rows["bits/dimension"] = f"{figures['bits_per_dimension']:.4f} ± {figures['bits_per_dimension_error']:.4f}, by {source}"
    if "active_units" in figures:
        kls = sorted(figures["kl_per_dimension"], reverse=True)
        shown = [f"{kl:.2f}" for kl in kls if kl >= 0.01]
        if len(shown) < len(kls):
            shown.append(f"and {len(kls) - len(shown)} below 0.01")
        rows["active latents"] = f"{figures['active_units']} of {len(kls)}: variance of the mean above {ACTIVE_VARIANCE}"
        rows["KL per latent"] = " ".join(shown)
    if "mutual_information" in figures:
        information, limit = figures["mutual_information"], figures["log_images"]
        error = figures["mutual_information_error"]
        rows["I(x; z)"] = f"{information:.2f} ± {error:.2f}, of at most log {images:,} = {limit:.2f}" + (
            ": so near its limit it says little" if limit - information < 0.5 else ""
        )
        kl, error = figures["aggregate_posterior_kl"], figures["aggregate_posterior_kl_error"]
        rows["KL(q(z), p(z))"] = f"{kl:.2f} ± {error:.2f}, the aggregate posterior's over these images"
    if "sample_images" in figures:
        count = f"{figures['sample_images']:,}"
        words = "on the features of this project's digit classifier: no FID"
        rows["Fréchet distance"] = f"{_beside(figures, 'frechet_distance')}, {words}"
        rows["precision"] = f"{_beside(figures, 'precision')}, of {count} samples among as many test images"
        rows["recall"] = f"{_beside(figures, 'recall')}"
    if "label_accuracy" in figures:
        rows["labels"] = f"{100 * figures['label_accuracy']:.1f} % of the samples are recognised as the label asked for"
    return rows


def _beside(figures: dict[str, Any], name: str) -> str:
    return f"{figures[name]:.3f} (training images: {figures[f'{name}_floor']:.3f})"


def meaning(module: VAEModule, data: MNISTDataModule) -> str:
    """Say in words what the figures of a model are on images of a protocol."""
    name = module.vae.family.name
    kind = kind_of_number(name, data.binarization, data.dequantize)
    return _MEANINGS.get(kind) or _CROSS_ENTROPIES[name]


def finish(parts: Experiment, figures: dict[str, float], checkpoint: Path | None) -> None:
    """Write a training run's figures, and say what was reached, where it lies and which commands show it."""
    trainer, directory = parts.trainer, parts.directory
    speed = round(parts.throughput.images_per_second)
    step = read(checkpoint)["global_step"] if checkpoint else trainer.global_step
    run = {
        "seed": parts.seed,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "processes": trainer.world_size,
        "precision": trainer.precision,
        "test_images": parts.module.tested_images,
        "images_per_second": speed,
        "checkpoint": str(checkpoint) if checkpoint else None,
        "checkpoint_step": step,
    }
    write_metrics(directory, figures, parts.module, parts.data, run)
    rows = {
        "epochs": f"{trainer.current_epoch} ({trainer.global_step:,} steps)",
        "images/s": f"{speed:,}",
        "tested": f"{checkpoint.stem} checkpoint, of step {step:,}"
        if checkpoint
        else "the model as it is: no checkpoint was written",
        "note": meaning(parts.module, parts.data),
    }
    places = [f"This run's files: {directory}"]
    if parts.mirror:
        places.append(f"  mirror      {parts.mirror.address}")
    if (directory / "images").is_dir():
        places.append(f"  pictures    {directory / 'images'}")
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        logs = shlex.quote(str(directory.parent))
        places.append(f"  dashboard   {program('tensorboard')} --logdir {logs} --samples_per_plugin images=500")
    if checkpoint:
        places.append(f"  samples     {program('python')} -m vae_lightning.sample {shlex.quote(f'checkpoint={directory}')}")
    log.info("\n%s\n\n  %s", table(figures, rows), "\n  ".join(places))


@contextmanager
def ending(parts: Experiment) -> Iterator[None]:
    """Let go of the run directory at the end; after a signal, say how to go on, or leave nothing where nothing was done."""
    try:
        interruption.defer_no_longer()
        yield
        if parts.mirror:
            parts.mirror.complete()
    except FloatingPointError:
        processes.leave_to_first(parts.trainer)
        raise
    except RuntimeError as error:
        if not processes.has_lost_another(error):
            raise
        raise ConfigurationError(
            f"another process of this run has ended; go on with all of them by resume={parts.directory}"
        ) from error
    except interruption.Interrupted:
        processes.leave_to_first(parts.trainer)
        step = max(parts.trainer.global_step, parts.resumed_step or 0)
        if step == 0 and parts.resumed_step is None:
            shutil.rmtree(parts.directory)
            if parts.mirror:
                parts.mirror.withdraw()
        elif steps(parts.directory):
            command = f"{program('python')} -m vae_lightning.train {shlex.quote(f'resume={parts.directory}')}"
            log.info("Stopped after %s steps; what was done is saved. Go on with\n  %s", f"{step:,}", command)
            if parts.mirror:
                try:
                    parts.mirror.complete(PATIENCE)
                except OSError as error:
                    log.warning(error)
        raise
    finally:
        if parts.lock is not None:
            parts.lock.release()


def program(name: str) -> str:
    """Return what to type for a program of this environment: its name if that finds it, else its path."""
    path = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if found and Path(found) == path else os.path.relpath(path)


class LogFile(logging.FileHandler):
    """A file of what is logged, which a full disk ends with a warning where ``logging`` prints a traceback for each line."""

    def __init__(self, file: Path) -> None:
        """Open the file."""
        super().__init__(file)
        self.files = Dispensable("Lines")

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self.files.write(self.baseFilename, super().emit, record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Hand on what the system refuses."""
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what a full disk left in the buffer is tried once more
            super().close()


@contextmanager
def log_to(file: Path | None) -> Iterator[None]:
    """Write to a file what is logged on the terminal, with the time, and the traceback of what goes wrong; None: to none."""
    if file is None:
        yield
        return
    handler = LogFile(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception:
        handler.emit(logging.makeLogRecord({"msg": traceback.format_exc().rstrip()}))
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
