"""What a command says at its end, on the terminal and in ``metrics.json``."""

import json
import logging
import os
import platform
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

from vae_lightning import __version__
from vae_lightning.data import MNISTDataModule
from vae_lightning.experiment import Experiment
from vae_lightning.metrics import ACTIVE_VARIANCE
from vae_lightning.module import VAEModule
from vae_lightning.noise import EVALUATION_SEED

log = logging.getLogger(__name__)

_BINARIZATIONS = {
    "none": "none: grey levels as probabilities, so no figure here is a likelihood of binary images",
    "stochastic": "stochastic: drawn anew at every visit in training, once for validation and test",
    "static": "static: drawn once",
}


def describe(module: VAEModule, data: MNISTDataModule, accelerator: str) -> str:
    """Return a line that says what is about to be trained, on what."""
    weights = sum(weight.numel() for weight in module.parameters())
    sizes = " + ".join(f"{len(indices):,}" for indices in (data.train_indices, data.val_indices, data.test_indices))
    return (
        f"VAE with {module.latent_dim} latents and {weights:,} weights, on {accelerator}; "
        f"{data.dataset}: {sizes} images (training + validation + test)"
    )


def table(figures: dict[str, float], rows: dict[str, Any]) -> str:
    """Return the test figures and further rows as a table."""
    labels = {"test/elbo": "test ELBO", "test/log_likelihood": "log-likelihood", "test/kl": "KL"}
    lines = {labels[name]: f"{figures[name]:.2f} nats per image" for name in labels if name in figures} | rows
    return "\n".join(f"  {label:<16} {value}" for label, value in lines.items())


def write_metrics(
    directory: Path, figures: dict[str, Any], data: MNISTDataModule, run: dict[str, Any], samples: int = 1
) -> Path:
    """Write the figures with the protocol they were taken by to ``metrics.json``."""
    protocol = {
        "data": data.dataset,
        "val_size": len(data.val_indices),
        "split_seed": data.hparams["split_seed"],
        "validate_on_test": data.validate_on_test,
        "binarization": _BINARIZATIONS[data.binarization],
        "samples": samples,
        "evaluation_seed": EVALUATION_SEED,
    }
    versions = {
        "vae_lightning": __version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }
    content = {"figures": figures, "units": "nats per image", "protocol": protocol, "run": run, "versions": versions}
    file = directory / "metrics.json"
    file.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    return file


def measured(
    file: Path,
    directory: Path,
    data: MNISTDataModule,
    split: str,
    images: int,
    samples: int,
    figures: dict[str, Any],
) -> str:
    """Write an evaluation's figures, also into the training run's dashboard, and return them as a table.

    Args:
        file: the checkpoint.
        directory: the evaluation's run directory.
        data: the data measured on.
        split: which part of it.
        images: how many of them.
        samples: importance samples per image.
        figures: what was measured, by name.
    """
    named = {f"{split}/{name}": value for name, value in figures.items()}
    written = write_metrics(directory, named, data, {"checkpoint": str(file), "split": split, "images": images}, samples)
    run = file.parent.parent
    if (run / "tensorboard").is_dir():
        step = torch.load(file, map_location="cpu", weights_only=True)["global_step"]
        with SummaryWriter(str(run / "tensorboard")) as writer:
            for name, value in named.items():
                if not isinstance(value, list):
                    writer.add_scalar(f"evaluate/{name}", value, step)
    rows = {"data": f"{images:,} {split} images of {data.dataset}, binarisation {data.binarization}"}
    labels = {"elbo": "ELBO", "log_likelihood": "log-likelihood", "kl": "KL", "importance_bound": "importance bound"}
    for name, label in labels.items():
        if name in figures:
            rows[label] = f"{figures[name]:.2f} ± {figures[f'{name}_error']:.2f}"
    if "log_marginal" in figures:
        rows["log p(x)"] = (
            f"{figures['log_marginal']:.2f} ± {figures['log_marginal_error']:.2f} over images, "
            f"± {figures['log_marginal_estimator_error']:.3f} of the estimator: a lower bound in expectation, by {samples:,} "
            f"importance samples, of which {figures['median_effective_samples']:.0f} count in the median image"
        )
    if "active_units" in figures:
        latents = len(figures["kl_per_dimension"])
        rows["active latents"] = (
            f"{figures['active_units']} of {latents}: variance of the posterior mean above {ACTIVE_VARIANCE}"
        )
        rows["KL per latent"] = " ".join(f"{kl:.2f}" for kl in sorted(figures["kl_per_dimension"], reverse=True))
    if data.binarization == "none":
        rows["note"] = "grey levels as probabilities: none of these is a likelihood of binary images"
    rows["checkpoint"] = str(file)
    rows["figures"] = str(written)
    return "\n".join(f"  {label:<16} {value}" for label, value in rows.items())


def finish(parts: Experiment, figures: dict[str, float], checkpoint: Path | None) -> None:
    """Write a training run's figures, and say what was reached, where it lies and which commands show it."""
    trainer, directory = parts.trainer, parts.directory
    speed = round(parts.throughput.images_per_second)
    run = {
        "seed": parts.seed,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "precision": trainer.precision,
        "test_images": parts.module.tested_images,
        "images_per_second": speed,
        "checkpoint": str(checkpoint) if checkpoint else None,
    }
    write_metrics(directory, figures, parts.data, run)
    rows = {
        "epochs": f"{trainer.current_epoch} ({trainer.global_step:,} steps)",
        "images/s": f"{speed:,}",
        "tested": f"{checkpoint.stem} checkpoint" if checkpoint else "the model as it is: no checkpoint was written",
    }
    places = [f"This run's files: {directory}"]
    if (directory / "images").is_dir():
        places.append(f"  pictures    {directory / 'images'}")
    if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
        logs = shlex.quote(str(directory.parent))
        places.append(f"  dashboard   {program('tensorboard')} --logdir {logs} --samples_per_plugin images=500")
    if checkpoint:
        places.append(f"  samples     {program('python')} -m vae_lightning.sample {shlex.quote(f'checkpoint={directory}')}")
    log.info("\n%s\n\n  %s", table(figures, rows), "\n  ".join(places))


def program(name: str) -> str:
    """Return what to type for a program of this environment: its name if that finds it, else its path."""
    path = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if found and Path(found) == path else os.path.relpath(path)


@contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Write to a file what is logged on the terminal, with the time, and the traceback of what goes wrong."""
    handler = logging.FileHandler(file)
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
