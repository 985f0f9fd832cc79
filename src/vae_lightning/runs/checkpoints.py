"""Writing, verifying, finding and loading checkpoints.

Nothing in a file is executed: all are read with ``weights_only``.
"""

import hashlib
import io
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins import CheckpointIO

from vae_lightning.configuration.building import class_of
from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import override, printable
from vae_lightning.data.datamodule import DataModule
from vae_lightning.errors import ConfigurationError
from vae_lightning.models.base import DataSpec, Model
from vae_lightning.runs import atomic_files
from vae_lightning.runs.resume import RATE, SCHEDULES

log = logging.getLogger(__name__)

_OF_MODULE = LightningModule.CHECKPOINT_HYPER_PARAMS_KEY
_OF_DATA = DataModule.CHECKPOINT_HYPER_PARAMS_KEY

_OURS = re.compile(r"(?:step|best)_(?:[0-9]{8}|[1-9][0-9]{8,})\.ckpt")
"""The names of the checkpoints that a run writes, and so may remove."""

_UNFINISHED = re.compile(rf"\.{_OURS.pattern}(?:\.sha256)?\.tmp|\.(?:last|best)\.ckpt\.tmp")
"""The temporary names of these and of the links to them."""

_CONTENT = "the content of the data"

_FIELDS: dict[tuple[str, ...], type] = {
    ("state_dict",): dict,
    ("epoch",): int,
    ("global_step",): int,
    (_OF_MODULE, "seed"): int,
    (_OF_MODULE, "optimizer"): dict,
    (_OF_MODULE, "model", "target"): str,
    (_OF_MODULE, "model", "settings"): dict,
    (_OF_MODULE, "model", "data"): dict,
    (_OF_DATA, "data", "target"): str,
    (_OF_DATA, "data", "settings"): dict,
}
"""The fields of a checkpoint that commands use, with their types."""

_FIELDS_TO_RESUME: dict[tuple[str, ...], type] = {
    ("pytorch-lightning_version",): str,
    ("loops", "fit_loop"): dict,
    ("callbacks",): dict,
    ("optimizer_states",): list,
    ("lr_schedulers",): list,
    ("figures",): dict,
    ("envelope", "processes"): int,
    (_OF_MODULE, "trainer"): dict,
}
"""Those that a run needs as well, to go on."""

_LARGEST = 2**53
"""Larger numbers are no counters."""


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
        if not _sum_of(file).is_file():  # nor is a pipe waited at
            return False
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
    names = _names(directory / "checkpoints", _OURS)
    return sorted((int(name[5:-5]) for name in names if name.startswith("step_")), reverse=True)


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    return [file.name for file in folder.glob("*") if pattern.fullmatch(file.name)]


def is_of_run(name: str) -> bool:
    """Return whether a file's name is one that a run's own checkpoints may have."""
    return bool(_OURS.fullmatch(name))


def keep(directory: Path, generations: int = 2) -> None:
    """Remove a run's unfinished checkpoints, and all but the best and the newest few.

    Files of other names aren't the run's, and stay.
    """
    folder = directory / "checkpoints"
    kept = {file_of_step(directory, step).name for step in steps(directory)[:generations]}
    kept |= {link.readlink().name for link in folder.glob("*.ckpt") if link.is_symlink()}
    for name in _names(folder, _OURS):
        if name not in kept:
            VerifiedFiles().remove_checkpoint(folder / name)
    for name in _names(folder, _UNFINISHED):
        (folder / name).unlink()


def restore_links(directory: Path) -> None:
    """Put links in the place of copies of the checkpoints that ``last`` and ``best`` named.

    Some programs copy a link's file.

    Raises:
        ConfigurationError: a file of such a name is none of the run's checkpoints.
    """
    folder = directory / "checkpoints"
    for name in ("last.ckpt", "best.ckpt"):
        link = folder / name
        if link.is_symlink() or not link.exists():
            continue
        digest = hashlib.sha256(link.read_bytes()).hexdigest() if link.is_file() else ""
        for found in sorted(_names(folder, _OURS)):
            noted = _sum_of(folder / found)
            if noted.is_file() and noted.read_bytes().split()[:1] == [digest.encode()]:
                link.unlink()
                atomic_files.point(link, found)
                break
        else:
            raise ConfigurationError(
                f"{override('resume', directory)}: checkpoints/{name} is none of this run's "
                "checkpoints, and would be replaced; give it another name"
            )


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
    restore_links(directory)
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
                    f"{override('resume', directory)}: its step {step} was written by "
                    "vae-lightning 0.1, and only version 0.1 reads it"
                ) from error
            except ConfigurationError:
                passed_over.append(
                    f"{file} is no checkpoint of this project, though whole: "
                    "going on from an earlier one"
                )
    raise ConfigurationError(
        f"{override('resume', directory)}: none of its checkpoints is whole, so that nothing was "
        "done; start the run anew"
    )


def step_to_resume(
    directory: Path,
    module: LightningModule,
    data: DataModule,
    trainer: Trainer,
    typed: Sequence[str] = (),
) -> tuple[int, list[str]]:
    """Return the step whose checkpoint a run goes on from, and what to say of it.

    Args:
        directory: the run directory.
        module: of the run.
        data: of the run.
        trainer: of the run.
        typed: the overrides beside ``resume=``, of which the learning rate may differ.

    Raises:
        ConfigurationError: no checkpoint is whole, or it is another model's, of other data, of
            another optimiser, Trainer or seed, or of an earlier version.
    """
    step, content, remarks = newest_whole(directory, trainer.max_steps)
    with _refusing_to_resume(directory, step):
        _check_fields(content, _FIELDS | _FIELDS_TO_RESUME)
        _check_progress(content, step, trainer)
        _check_files_of_callbacks(content)
    saved, built = _settings(content), _settings(hyper_parameters(module, data))
    # Other processes may share a batch.
    if "data.batch_size" in saved:
        saved["data.batch_size"] *= content["envelope"].get("processes", 1)
    if "data.batch_size" in built:
        built["data.batch_size"] *= trainer.world_size
    if all(saved.get(key, "constant") == "constant" for key in SCHEDULES):
        for settings in (saved, built):
            settings.pop("trainer.max_epochs", None)  # a run may be made longer
    if any(each.startswith(f"{RATE}=") for each in typed) and saved[RATE] != built[RATE]:
        remarks.append(f"{RATE} goes from {saved[RATE]} to {built[RATE]}")
        del saved[RATE], built[RATE]
    for key in dict.fromkeys([*built, *saved]):
        if built.get(key) != saved.get(key):
            if key == _CONTENT:
                raise ConfigurationError(
                    f"{override('resume', directory)}: the images of {printable(data.name)} aren't "
                    "those that it was trained on; begin a new run, with init= from its weights"
                )
            raise ConfigurationError(
                f"{override('resume', directory)}: {printable(key)[:100]} is "
                f"{printable(built.get(key))[:100]} in its configuration, "
                f"{printable(saved.get(key))[:100]} in its step {step}"
            )
    with _refusing_to_resume(directory, step):
        learnt = [weight for weight in module.parameters() if weight.requires_grad]
        _check_optimizer(content, learnt)
    if trainer.max_epochs not in (-1, None) and content["epoch"] >= trainer.max_epochs:
        raise ConfigurationError(
            f"trainer.max_epochs={trainer.max_epochs}: the run is in epoch {content['epoch'] + 1}"
        )
    return step, [*remarks, f"Going on after step {step:,}"]


def refuse_other_data(directory: Path, data: DataModule) -> None:
    """Check that a run's newest checkpoint is of some data, before any of that is fetched or read.

    Raises:
        ConfigurationError: no checkpoint is whole, or it is of other data.
    """
    step, content, _ = newest_whole(directory, -1)
    with _refusing_to_resume(directory, step):
        _check_fields(content, _FIELDS)
        saved, built = content[_OF_DATA]["data"], data.hparams["data"]
        names = [saved["settings"].get("name"), built["settings"].get("name")]
    if saved["target"] != built["target"] or names[0] != names[1]:
        was, now = (
            printable(each["settings"].get("name", each["target"])) for each in (saved, built)
        )
        raise ConfigurationError(
            f"{override('resume', directory)}: data.name is {now[:100]} in its configuration, "
            f"{was[:100]} in its step {step}"
        )


@contextmanager
def _refusing_to_resume(directory: Path, step: int) -> Iterator[None]:
    """Turn whatever a checkpoint's wrong fields raise into one line."""
    try:
        yield
    except Exception as error:
        raise ConfigurationError(
            f"{override('resume', directory)}: can't go on from its step {step}: not a checkpoint "
            f"of this project ({printable(error)[:100]})"
        ) from error


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
    settings[_CONTENT] = data.get("content")
    return settings | {"the spec of the data": model["data"]}


def _check_fields(content: Any, fields: Mapping[tuple[str, ...], type]) -> None:
    """Check that a checkpoint has fields of the right types, and plain values for settings.

    Raises:
        ValueError: it hasn't; the message names the field.
    """
    for place, kind in fields.items():
        value = content
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{'.'.join(place)} is missing, or no {kind.__name__}")
        if isinstance(value, int) and not 0 <= value < _LARGEST:
            raise ValueError(f"{'.'.join(place)} is out of range")
    for name in (_OF_MODULE, _OF_DATA):
        if not _is_plain(content[name]):
            raise ValueError(f"{name} holds more than plain values")


def _check_files_of_callbacks(content: Mapping[str, Any]) -> None:
    """Check that a ModelCheckpoint remembers only files of its own folder: it deletes them.

    Raises:
        ValueError: it names others.
    """
    for state in content.get("callbacks", {}).values():
        if not isinstance(state, dict) or "dirpath" not in state:
            continue
        folder = Path(str(state["dirpath"])).resolve()
        named = [*state.get("best_k_models", {})]
        named += [value for key, value in state.items() if key.endswith("_model_path")]
        for file in named:
            if file and not Path(str(file)).resolve().is_relative_to(folder):
                raise ValueError("callbacks: a ModelCheckpoint names files of other folders")


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _check_progress(content: Mapping[str, Any], step: int, trainer: Trainer) -> None:
    """Check that Lightning's counters are those of a run at a step.

    Raises:
        ValueError: they aren't.
    """
    loops: dict[str, Any] = content["loops"]["fit_loop"]
    _check_counters("loops", loops, trainer.fit_loop.state_dict())
    done = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
    if not content["global_step"] == done["completed"] == step:
        raise ValueError(f"global_step isn't {step}")
    if content["epoch"] != loops["epoch_progress"]["current"]["processed"]:
        raise ValueError("epoch isn't that of its loops")
    size = content[_OF_DATA]["data"]["settings"].get("batch_size", 1)
    if content["envelope"]["processes"] < 1 or type(size) is not int:
        raise ValueError("batch_size or processes")


def _check_optimizer(content: Mapping[str, Any], weights: Sequence[torch.Tensor]) -> None:
    """Check what an optimiser remembers of its weights: torch's kernels trust the sizes.

    Raises:
        ValueError: it isn't of these weights.
    """
    [optimizer] = content["optimizer_states"]
    [group] = optimizer["param_groups"]
    if list(group["params"]) != list(range(len(weights))):
        raise ValueError("optimizer_states is of other weights")
    if not _is_plain(group) or not _is_plain(content["lr_schedulers"]):
        raise ValueError("optimizer_states or lr_schedulers holds more than plain values")
    for number, kept in optimizer["state"].items():
        for name, value in kept.items():
            shape = torch.Size() if name == "step" else weights[number].shape
            if value is not None and not (_is_whole(value) and value.shape == shape):
                raise ValueError(f"optimizer_states: {name} isn't of its weight")


def _is_whole(value: Any) -> bool:
    """Return whether a value is a tensor of real numbers, each of which is in memory."""
    if type(value) is not torch.Tensor or value.layout != torch.strided:
        return False
    end = (value.storage_offset() + value.numel()) * value.element_size()
    return value.is_floating_point() and bool(end <= value.untyped_storage().nbytes())


def _check_counters(place: str, found: Any, expected: Any) -> None:
    if not isinstance(expected, dict):
        if type(found) is not type(expected) or not 0 <= found < _LARGEST:
            raise ValueError(f"{place} is no counter")
        return
    if not isinstance(found, dict) or found.keys() != expected.keys():
        raise ValueError(f"{place} holds other counters")
    for key, value in expected.items():
        _check_counters(f"{place}.{key}", found[key], value)
    order = [found[key] for key in ("ready", "started", "processed", "completed") if key in found]
    if order != sorted(order, reverse=True):
        raise ValueError(f"{place} completed more than it began")


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint file that ``path`` names.

    That is the file itself, or a run directory's best checkpoint, else its last. Of a folder of
    runs the newest is taken, which is logged.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path) if Path(path).exists() else Path(expanded(str(path)))
    if path.is_file():
        return path
    if file := _checkpoint_of(path):
        return file
    if not path.is_dir():
        instead = "type a checkpoint file or a run directory, as outputs/train/<run>"
        if path.stem in ("best", "last"):
            instead = f"name its run: outputs/train/<run>/checkpoints/{path.stem}.ckpt"
        raise FileNotFoundError(f"{override('checkpoint', path)}: not found; {instead}")
    runs = {run: file for run in path.iterdir() if (file := _checkpoint_of(run))}
    if not runs:
        raise FileNotFoundError(
            f"{override('checkpoint', path)}: holds no checkpoints/best.ckpt or last.ckpt, "
            "and no runs that do"
        )
    newest = max(runs, key=lambda run: (runs[run].stat().st_mtime_ns, run))
    log.info("%s holds runs; the newest is %s", path, newest)
    return runs[newest]


def _checkpoint_of(run: Path) -> Path | None:
    folder = run if run.name == "checkpoints" else run / "checkpoints"
    files = (folder / f"{name}.ckpt" for name in ("best", "last"))
    return next(filter(Path.is_file, files), None)


# -- loading ------------------------------------------------------------------------------------


def load_model(path: str | Path) -> Model:
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
        _check_fields(content, _FIELDS)
        stored = content[_OF_MODULE]["model"]
        trained_for, settings = DataSpec(**stored["data"]), stored["settings"]
        kind = class_of(f"{file}: model", printable(stored["target"]), Model)  # type: ignore[type-abstract]
        start = "model."  # the module's attribute
        weights = {
            name.removeprefix(start): weight
            for name, weight in content["state_dict"].items()
            if name.startswith(start)
        }
        with torch.device("meta"):
            sketch = kind(trained_for, **settings)
        _check_sizes(weights, sketch, file.stat().st_size)
        model = kind(trained_for, **settings)
        model.load_state_dict(weights)
    if spec and spec != trained_for:
        try:
            with torch.device("meta"):
                sketch = kind(spec, **settings)
        except ValueError as error:
            raise ConfigurationError(f"model.{printable(str(error).splitlines()[0])}") from error
        with _refusing_foreign_files(file):
            _check_sizes(weights, sketch, file.stat().st_size)
            model = kind(spec, **settings)
            model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def _check_sizes(weights: Mapping[str, torch.Tensor], sketch: Model, size: int) -> None:
    """Check that a model has the weights of a file, so that it takes no more memory than these.

    Args:
        weights: in the file, by name.
        sketch: the model, without memory for its weights.
        size: of the file, in bytes. A tensor in it may repeat the same few numbers.

    Raises:
        ValueError: it has other weights, they are larger than the file, or not finite.
    """
    expected = sketch.state_dict(keep_vars=True)
    if {name: weight.shape for name, weight in weights.items()} != {
        name: weight.shape for name, weight in expected.items()
    }:
        raise ValueError("the weights are those of another model")
    for name, weight in weights.items():
        real = weight.is_floating_point()
        if real != expected[name].is_floating_point():
            raise ValueError("the weights are of another type")
        if real and not torch.isfinite(weight).all():
            raise ValueError("the weights are not finite")
    once = {id(weight): weight.numel() for weight in expected.values()}  # some may be shared
    smallest = min((weight.element_size() for weight in weights.values()), default=0)
    if sum(once.values()) * smallest > size:
        raise ValueError("the weights are larger than the file")


def data_of(file: Path, content: Mapping[str, Any]) -> tuple[type[DataModule], dict[str, Any]]:
    """Return the class of the data that a checkpoint was trained on, and its settings.

    Raises:
        ConfigurationError: the content isn't a checkpoint's, or names a class that isn't allowed.
    """
    with _refusing_foreign_files(file):
        _check_fields(content, _FIELDS)
        stored = content[_OF_DATA]["data"]
        kind = class_of(f"{file}: data", printable(stored["target"]), DataModule)  # type: ignore[type-abstract]
        settings = dict(stored["settings"])
        # Never ours: a file may not say where the data of another machine lies or is put.
        for key in ("dir", "file"):
            settings.pop(key, None)
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
