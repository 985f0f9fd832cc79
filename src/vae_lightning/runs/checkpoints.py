"""Writing, verifying, finding and loading checkpoints.

Nothing in a file is executed: all are read with ``weights_only``.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO

from vae_lightning.configuration.building import class_of
from vae_lightning.data.datamodule import DataModule
from vae_lightning.errors import ConfigurationError
from vae_lightning.models.base import DataSpec, Model
from vae_lightning.runs import atomic_files
from vae_lightning.runs.resume import SCHEDULES

_OF_MODULE = LightningModule.CHECKPOINT_HYPER_PARAMS_KEY
_OF_DATA = DataModule.CHECKPOINT_HYPER_PARAMS_KEY


class EarlierVersion(ConfigurationError):
    """A checkpoint of version 0.1, which this version doesn't read."""


# -- writing and verifying -------------------------------------------------------------------------


class VerifiedFiles(CheckpointIO):
    """How the Trainer writes and reads checkpoints: whole or not at all, with a SHA-256 file.

    ``sha256sum --check`` reads ``<file>.sha256``. It is written after the checkpoint, so a
    checkpoint without one was never finished.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the file can't be written. An earlier file of that name is no longer a
                checkpoint; all others are unchanged.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        digest = hashlib.sha256(content.getbuffer()).hexdigest()
        _sum_of(path).unlink(missing_ok=True)
        atomic_files.write(path, content.getbuffer())
        atomic_files.write(_sum_of(path), f"{digest}  {path.name}\n".encode())

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
    """Return what a checkpoint file holds, on the CPU.

    If the file has a ``.sha256`` file, the sum must match.

    Raises:
        ConfigurationError: the file is damaged, or not a checkpoint.
    """
    file = Path(file)
    with _refusing_foreign_files(file):
        _verify(file)
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        _refuse_earlier_versions(file, content)
        return content


def _verify(file: Path) -> None:
    if _sum_of(file.resolve()).exists() and not is_verified(file.resolve()):
        raise ValueError(f"{file}: another SHA-256 than the one noted beside it")


def _sum_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.sha256")


# -- the checkpoints of a run ----------------------------------------------------------------------


def file_of_step(directory: Path, step: int) -> Path:
    """Return the path of the checkpoint that a run writes after an optimiser step."""
    return directory / "checkpoints" / f"step_{step:08d}.ckpt"


def steps(directory: Path) -> list[int]:
    """Return the optimiser steps of a run directory's checkpoints, newest first, unverified."""
    return sorted(
        (int(file.stem[5:]) for file in (directory / "checkpoints").glob("step_????????.ckpt")),
        reverse=True,
    )


def keep(directory: Path, generations: int = 2) -> None:
    """Remove a run's unfinished checkpoints, and all but the best and the newest few."""
    folder = directory / "checkpoints"
    kept = {file_of_step(directory, step).name for step in steps(directory)[:generations]}
    kept |= {link.readlink().name for link in folder.glob("*.ckpt") if link.is_symlink()}
    for file in (*folder.glob("step_*.ckpt"), *folder.glob("best_*.ckpt")):
        if file.name not in kept:
            VerifiedFiles().remove_checkpoint(file)
    for file in folder.glob(".*.tmp"):
        file.unlink()


def newest_whole(directory: Path, max_steps: int) -> tuple[int, dict[str, Any], list[str]]:
    """Return the newest checkpoint that a run can be resumed from.

    Args:
        directory: the run directory.
        max_steps: how many steps the run takes; -1: no limit. Lightning can't resume after the last
            step, so the checkpoint before it is used.

    Returns:
        Its step, its content, and a message for each newer checkpoint that can't be used.

    Raises:
        ConfigurationError: none is whole, or the newest is of an earlier version.
    """
    passed_over = []
    for step in steps(directory):
        file = file_of_step(directory, step)
        if not is_verified(file):
            passed_over.append(
                f"{file} is damaged or unfinished, by its SHA-256: going on from an earlier one"
            )
        elif step != max_steps:
            try:
                return step, read(file), passed_over
            except EarlierVersion as error:
                raise ConfigurationError(
                    f"resume={directory}: its step {step} was written by vae-lightning 0.1, "
                    "and only version 0.1 reads it"
                ) from error
            except ConfigurationError:
                passed_over.append(
                    f"{file} is no checkpoint of this project, though whole: "
                    "going on from an earlier one"
                )
    raise ConfigurationError(
        f"resume={directory}: none of its checkpoints is whole, so that nothing was done; "
        "start the run anew"
    )


def step_to_resume(
    directory: Path, module: LightningModule, data: DataModule, trainer: Trainer
) -> tuple[int, list[str]]:
    """Return the step whose checkpoint a run goes on from, and what to say of it.

    Raises:
        ConfigurationError: no checkpoint is whole, or it is another model's, of other data, of
            another optimiser, Trainer or seed, or of an earlier version.
    """
    step, content, remarks = newest_whole(directory, trainer.max_steps)
    saved, built = _settings(content), _settings(hyper_parameters(module, data))
    # Other processes may share a batch.
    if "data.batch_size" in saved:
        saved["data.batch_size"] *= content["envelope"].get("processes", 1)
    if "data.batch_size" in built:
        built["data.batch_size"] *= trainer.world_size
    if all(saved.get(key, "constant") == "constant" for key in SCHEDULES):
        for settings in (saved, built):
            settings.pop("trainer.max_epochs", None)  # a run may be made longer
    for key in dict.fromkeys([*built, *saved]):
        if built.get(key) != saved.get(key):
            raise ConfigurationError(
                f"resume={directory}: {key} is {built.get(key)} in its configuration, "
                f"{saved.get(key)} in its step {step}"
            )
    if trainer.max_epochs not in (-1, None) and content["epoch"] >= trainer.max_epochs:
        raise ConfigurationError(
            f"trainer.max_epochs={trainer.max_epochs}: the run is in epoch {content['epoch'] + 1}"
        )
    return step, [*remarks, f"Going on after step {step:,}"]


def hyper_parameters(module: LightningModule, data: DataModule) -> dict[str, Any]:
    """Return what Lightning stores of the parts of a run in a checkpoint."""
    return {
        _OF_MODULE: dict(module.hparams),
        _OF_DATA: dict(data.hparams),
    }


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in a checkpoint's content, as a configuration names them."""
    stored = content[_OF_MODULE]
    model, data = stored["model"], content[_OF_DATA]["data"]
    settings = {"model._target_": model["target"], "data._target_": data["target"]}
    settings["seed"] = stored["seed"]
    groups = {
        "model": model["settings"],
        "optimizer": stored["optimizer"],
        "data": data["settings"],
        "trainer": stored["trainer"],
    }
    for group, values in groups.items():
        settings |= {f"{group}.{key}": value for key, value in values.items()}
    # Last: a setting that changes the spec is what the user typed.
    return settings | {"the spec of the data": model["data"]}


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint file that ``path`` names.

    That is the file itself, or a run directory's best checkpoint, else its last.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    for name in ("best", "last"):
        if (file := path / "checkpoints" / f"{name}.ckpt").is_file():
            return file
    what = (
        "holds no checkpoints/best.ckpt or last.ckpt"
        if path.is_dir()
        else "is neither a file nor a run directory"
    )
    raise FileNotFoundError(f"checkpoint={path}: {what}")


# -- loading ------------------------------------------------------------------------------------


def load(path: str | Path) -> Model:
    """Load a trained model for use, in evaluation mode and on the CPU.

    Args:
        path: a checkpoint file or a run directory.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ConfigurationError: the file is damaged, not a checkpoint of this project, or of an earlier
            version; a ValueError.
    """
    file = find_checkpoint(path)
    return build_model(file, read(file))


def build_model(file: Path, content: Mapping[str, Any], spec: DataSpec | None = None) -> Model:
    """Build the model of a checkpoint, in evaluation mode and on the CPU.

    Args:
        file: the checkpoint, for the error.
        content: what it holds.
        spec: of the data; by default what the model was trained for.

    Raises:
        ConfigurationError: the content isn't a checkpoint's, or names a class that isn't allowed.
    """
    with _refusing_foreign_files(file):
        stored = content[_OF_MODULE]["model"]
        trained_for, settings = DataSpec(**stored["data"]), stored["settings"]
        kind = class_of(f"{file}: model", stored["target"], Model)  # type: ignore[type-abstract]
        start = "model."  # the module's attribute
        weights = {
            name.removeprefix(start): weight
            for name, weight in content["state_dict"].items()
            if name.startswith(start)
        }
        model = kind(trained_for, **settings)
        model.load_state_dict(weights)
    if spec and spec != trained_for:
        try:
            model = kind(spec, **settings)
        except ValueError as error:
            raise ConfigurationError(f"model.{str(error).splitlines()[0]}") from error
        model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def data_of(file: Path, content: Mapping[str, Any]) -> tuple[type[DataModule], dict[str, Any]]:
    """Return the class of the data that a checkpoint was trained on, and its settings.

    Raises:
        ConfigurationError: the content isn't a checkpoint's, or names a class that isn't allowed.
    """
    with _refusing_foreign_files(file):
        stored = content[_OF_DATA]["data"]
        kind = class_of(f"{file}: data", stored["target"], DataModule)  # type: ignore[type-abstract]
        settings = dict(stored["settings"])
        # Never ours: a file may not say where the data of another machine lies or is put.
        settings.pop("dir", None)
        return kind, settings


@contextmanager
def _refusing_foreign_files(file: Path) -> Iterator[None]:
    """Turn whatever a foreign file makes torch and the constructors raise into one line."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"checkpoint={file}: not a checkpoint of this project, or damaged"
        ) from error


def _refuse_earlier_versions(file: Path, content: Any) -> None:
    """Refuse a checkpoint of version 0.1, whose settings were those of one model.

    Raises:
        EarlierVersion: it is one.
    """
    stored = content.get(_OF_MODULE) if isinstance(content, dict) else None
    if isinstance(stored, dict) and "latent_dim" in stored:
        raise EarlierVersion(
            f"checkpoint={file}: written by vae-lightning 0.1, and only version 0.1 reads it"
        )
