"""What a command says at its end, on the terminal and in ``metrics.json``."""

import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch

from vae_lightning import __version__
from vae_lightning.data import MNISTDataModule
from vae_lightning.experiment import Experiment
from vae_lightning.module import EVALUATION_SEED, VAEModule

log = logging.getLogger(__name__)


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
    lines = {
        "test ELBO": f"{figures['test/elbo']:.2f} nats per image",
        "log-likelihood": f"{figures['test/log_likelihood']:.2f}",
        "KL": f"{figures['test/kl']:.2f}",
        **rows,
    }
    return "\n".join(f"  {label:<16} {value}" for label, value in lines.items())


def write_metrics(directory: Path, figures: dict[str, float], data: MNISTDataModule, run: dict[str, Any]) -> Path:
    """Write the figures with the protocol they were taken by to ``metrics.json``."""
    protocol = {
        "data": data.dataset,
        "val_size": len(data.val_indices),
        "split_seed": data.hparams["split_seed"],
        "binarization": "none: grey levels as probabilities, so no figure here is a likelihood of binary images",
        "samples": 1,
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
    file.write_text(json.dumps(content, indent=2) + "\n")
    return file


def finish(parts: Experiment, figures: dict[str, float], checkpoint: Path | None) -> None:
    """Write a training run's figures, and say what was reached, where it lies and which commands show it."""
    trainer, directory = parts.trainer, parts.directory
    speed = round(parts.throughput.images_per_second)
    run = {
        "seed": parts.seed,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "images_per_second": speed,
        "checkpoint": str(checkpoint),
    }
    write_metrics(directory, figures, parts.data, run)
    tested = f"{checkpoint.stem} checkpoint" if checkpoint else "the model as it is: fast_dev_run keeps no checkpoint"
    log.info(
        "\n%s\n\n  %s\n    %s\n    %s\n    %s",
        table(figures, {"epochs": trainer.current_epoch, "images/s": f"{speed:,}", "tested": tested}),
        f"This run's files: {directory}",
        f"pictures    {directory / 'images'}",
        f"dashboard   {program('tensorboard')} --logdir {directory.parent} --samples_per_plugin images=500",
        f"samples     {program('python')} -m vae_lightning.sample checkpoint={directory}",
    )


def program(name: str) -> str:
    """Return what to type for a program of this environment: its name if that finds it, else its path."""
    path = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if found and Path(found) == path else os.path.relpath(path)


@contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Write to a file what is logged on the terminal, with the time."""
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
