"""Finding and loading checkpoints. Nothing in a file is executed: all are read with ``weights_only=True``."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vae_lightning.configuration import ConfigurationError
from vae_lightning.data import MNISTDataModule
from vae_lightning.module import VAEModule
from vae_lightning.vae import VAE


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint file that ``path`` names: the file itself, or a run directory's best, else its last.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    for name in ("best", "last"):
        if (file := path / "checkpoints" / f"{name}.ckpt").is_file():
            return file
    what = "holds no checkpoints/best.ckpt or last.ckpt" if path.is_dir() else "is neither a file nor a run directory"
    raise FileNotFoundError(f"checkpoint={path}: {what}")


def load_module(path: str | Path) -> VAEModule:
    """Load a trained module onto the CPU, from a checkpoint file or a run directory.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ConfigurationError: the file is not a checkpoint of this project; a ValueError.
    """
    file = find_checkpoint(path)
    with _refusing_foreign_files(file):
        return VAEModule.load_from_checkpoint(file, map_location="cpu", weights_only=True)


def load_data_settings(path: str | Path) -> dict[str, Any]:
    """Return the data module's settings that a checkpoint was trained with, all but the folder of the data.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ConfigurationError: the file is not a checkpoint of this project; a ValueError.
    """
    file = find_checkpoint(path)
    with _refusing_foreign_files(file):
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        return dict(checkpoint[MNISTDataModule.CHECKPOINT_HYPER_PARAMS_KEY])


def load(path: str | Path) -> VAE:
    """Load a trained model for use, in evaluation mode and on the CPU, from a checkpoint file or a run directory.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ConfigurationError: the file is not a checkpoint of this project; a ValueError.
    """
    return load_module(path).eval().requires_grad_(False).vae


@contextmanager
def _refusing_foreign_files(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what a foreign file can make torch, Lightning and the constructors raise has no end
        raise ConfigurationError(f"checkpoint={file}: not a checkpoint of this project, or damaged") from error
