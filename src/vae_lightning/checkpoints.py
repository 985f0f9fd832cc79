"""Writing, verifying, finding and loading checkpoints. Nothing in a file is executed: all are read as ``weights_only``."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins import CheckpointIO

from vae_lightning import durable
from vae_lightning.configuration import ConfigurationError
from vae_lightning.data import MNISTDataModule
from vae_lightning.module import VAEModule
from vae_lightning.vae import VAE

# -- writing and verifying --------------------------------------------------------------------------------------------


class VerifiedFiles(CheckpointIO):
    """How the Trainer writes and reads checkpoints: whole or not at all, with the SHA-256 beside them.

    ``<file>.sha256`` is what ``sha256sum --check`` reads. It is written after the checkpoint: a file without one was never
    finished.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            OSError: it can't be written; another file of that name is not a checkpoint any more, all others are untouched.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        digest = hashlib.sha256(content.getbuffer()).hexdigest()
        _sum_of(path).unlink(missing_ok=True)
        durable.write(path, content.getbuffer())
        durable.write(_sum_of(path), f"{digest}  {path.name}\n".encode())

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint, whatever ``weights_only`` says without executing anything in it.

        Raises:
            ConfigurationError: the file is damaged, or not a checkpoint.
        """
        return read(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint and its checksum."""
        _sum_of(Path(path)).unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


def is_verified(file: Path) -> bool:
    """Return whether a checkpoint is whole, by the SHA-256 beside it."""
    try:
        expected = _sum_of(file).read_text().split()[:1]
        return expected == [hashlib.sha256(file.read_bytes()).hexdigest()]
    except (OSError, ValueError):
        return False


def read(file: str | Path) -> dict[str, Any]:
    """Return what a checkpoint file holds, on the CPU; where a SHA-256 lies beside the file, it must be the file's.

    Raises:
        ConfigurationError: the file is damaged, or not a checkpoint.
    """
    file = Path(file)
    with _refusing_foreign_files(file):
        _verify(file)
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return content


def _verify(file: Path) -> None:
    if _sum_of(file.resolve()).exists() and not is_verified(file.resolve()):
        raise ValueError(f"{file}: another SHA-256 than the one noted beside it")


def _sum_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


# -- the checkpoints of a run -----------------------------------------------------------------------------------------


def file_of_step(directory: Path, step: int) -> Path:
    """Return the name of the checkpoint of a run directory that is written after an optimiser step."""
    return directory / "checkpoints" / f"step_{step:08d}.ckpt"


def steps(directory: Path) -> list[int]:
    """Return the optimiser steps after which a run directory has checkpoints, the newest first, verified or not."""
    return sorted((int(file.stem[5:]) for file in (directory / "checkpoints").glob("step_????????.ckpt")), reverse=True)


def keep(directory: Path, generations: int = 2) -> None:
    """Remove all checkpoints of a run but the newest and the best one, and what was never finished."""
    folder = directory / "checkpoints"
    kept = {file_of_step(directory, step).name for step in steps(directory)[:generations]}
    kept |= {link.readlink().name for link in folder.glob("*.ckpt") if link.is_symlink()}
    for file in (*folder.glob("step_*.ckpt"), *folder.glob("best_*.ckpt")):
        if file.name not in kept:
            VerifiedFiles().remove_checkpoint(file)
    for file in folder.glob(".*.tmp"):
        file.unlink()


def newest_whole(directory: Path, max_steps: int) -> tuple[int, dict[str, Any], list[str]]:
    """Return the newest checkpoint that a run can be resumed from: its step, its content, and what to say of those passed over.

    Args:
        directory: the run directory.
        max_steps: how many the run takes: Lightning can't resume after the last, so from the one before; -1: no limit.

    Raises:
        ConfigurationError: none is whole.
    """
    passed_over = []
    for step in steps(directory):
        file = file_of_step(directory, step)
        if not is_verified(file):
            passed_over.append(f"{file} is damaged or unfinished, by its SHA-256: going on from an earlier one")
        elif step != max_steps:
            try:
                return step, read(file), passed_over
            except ConfigurationError:
                passed_over.append(f"{file} is no checkpoint of this project, though whole: going on from an earlier one")
    raise ConfigurationError(
        f"resume={directory}: none of its checkpoints is whole, so that nothing was done; start the run anew"
    )


def step_to_resume(directory: Path, module: VAEModule, data: MNISTDataModule, trainer: Trainer) -> tuple[int, list[str]]:
    """Return the optimiser step whose checkpoint a run goes on from, and what is to be said of it.

    Raises:
        ConfigurationError: no checkpoint is whole, or it is another model's, of other data or another seed.
    """
    step, content, remarks = newest_whole(directory, trainer.max_steps)
    for group, part in (("model", module), ("data", data)):
        stored, built = dict(content[part.CHECKPOINT_HYPER_PARAMS_KEY]), dict(part.hparams)
        if group == "data":  # which other processes may share
            stored["batch_size"] *= content["envelope"].get("processes", 1)
            built["batch_size"] *= trainer.world_size
        for key in built.keys() | stored.keys():
            if built.get(key) != stored.get(key):
                raise ConfigurationError(
                    f"resume={directory}: {group}.{key} is {built.get(key)} in its configuration, "
                    f"{stored.get(key)} in its step {step}"
                )
    if trainer.max_epochs not in (-1, None) and content["epoch"] >= trainer.max_epochs:
        raise ConfigurationError(f"trainer.max_epochs={trainer.max_epochs}: the run is in epoch {content['epoch'] + 1} already")
    return step, [*remarks, f"Going on after step {step:,}"]


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


# -- loading ----------------------------------------------------------------------------------------------------------


def load_module(path: str | Path) -> VAEModule:
    """Load a trained module onto the CPU, from a checkpoint file or a run directory.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ConfigurationError: the file is damaged, or not a checkpoint of this project; a ValueError.
    """
    file = find_checkpoint(path)
    with _refusing_foreign_files(file):
        _verify(file)
        return VAEModule.load_from_checkpoint(file, map_location="cpu", weights_only=True)


def load_data_settings(path: str | Path) -> dict[str, Any]:
    """Return the data module's settings that a checkpoint was trained with, all but the folder of the data.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ConfigurationError: the file is damaged, or not a checkpoint of this project; a ValueError.
    """
    file = find_checkpoint(path)
    checkpoint = read(file)
    with _refusing_foreign_files(file):
        settings = dict(checkpoint[MNISTDataModule.CHECKPOINT_HYPER_PARAMS_KEY])
    settings.pop("dir", None)  # never ours: a file may not say where another machine's data lies or is put
    return settings


def load(path: str | Path) -> VAE:
    """Load a trained model for use, in evaluation mode and on the CPU, from a checkpoint file or a run directory.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ConfigurationError: the file is damaged, or not a checkpoint of this project; a ValueError.
    """
    return load_module(path).eval().requires_grad_(False).vae


@contextmanager
def _refusing_foreign_files(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what a foreign file can make torch, Lightning and the constructors raise has no end
        raise ConfigurationError(f"checkpoint={file}: not a checkpoint of this project, or damaged") from error
