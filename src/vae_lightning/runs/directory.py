"""The directories that commands write to: unique, and removed again if nothing was written there.

Only what this process made is removed with all that is in it. This module doesn't import torch.
"""

import copy
import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from vae_lightning.configuration.quoting import printable
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import atomic_files, signals

_MADE: set[tuple[int, int]] = set()
"""The directories that this process made, by device and inode."""

_FOUND_EMPTY: set[tuple[int, int]] = set()
"""Those that it found empty, and that it was to write into."""

_OF_A_RUN = (
    ".hydra",
    "checkpoints",
    "csv",
    "images",
    "tensorboard",
    "metrics.json",
    "train.log",
)
"""What a run that has just begun may have written into one of those."""

_WRITING = ".writing"

_POINTERS = tuple(
    f"checkpoints/{each}" for each in ("best.ckpt", "last.ckpt", ".best.ckpt.tmp", ".last.ckpt.tmp")
)


def make(directory: Path) -> None:
    """Make a directory, so that ``remove`` may remove it.

    Raises:
        FileExistsError: something of that name is there.
    """
    directory.mkdir()
    _MADE.add(_identity(directory))


def adopt(directory: Path) -> None:
    """Let ``remove`` take what a run writes out of a directory that was found empty."""
    _FOUND_EMPTY.add(_identity(directory))


def remove(directory: Path) -> bool:
    """Remove a directory with all that is in it, if this process made it or one that it lies in.

    One that this process found empty stays, and in it whatever a run doesn't write.

    Returns:
        Whether it did; else nothing was touched.
    """
    if directory.is_symlink() or not directory.is_dir():
        return False
    place = directory.absolute()
    if not any(_identity(each) in _MADE | _FOUND_EMPTY for each in (place, *place.parents)):
        return False
    if _identity(place) in _FOUND_EMPTY:
        for each in (directory / name for name in _OF_A_RUN):
            if not remove(each):
                each.unlink(missing_ok=True)
        return True
    _MADE.discard(_identity(place))  # its number may be another's soon
    shutil.rmtree(directory)
    return True


def _identity(directory: Path) -> tuple[int, int]:
    status = directory.stat()
    return status.st_dev, status.st_ino


def refuse_links(directory: Path, key: str) -> None:
    """Refuse a directory from which a write could reach another place.

    Links are refused, but ``best.ckpt`` and ``last.ckpt`` that name a file beside them, and what
    Weights & Biases leaves in its own folder; so is
    whatever is neither a file nor a folder, as a pipe that a reader would wait at.

    Args:
        directory: of a run, a sweep or a study.
        key: what named it, for the error.

    Raises:
        ConfigurationError: naming the link.
    """
    for folder, _, _ in os.walk(directory):
        # Of a study, other processes may be at trials, and remove files meanwhile.
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                name = os.path.relpath(entry.path, directory)
                if "wandb" in Path(name).parts[:-1]:  # its own links to its logs; we write none
                    continue
                if entry.is_symlink():
                    place = ""
                    with suppress(FileNotFoundError):
                        place = os.readlink(entry.path)
                    if name.endswith(_POINTERS) and os.path.basename(place) == place:
                        continue
                    problem = f"is a link to {place}"
                elif entry.is_file() or entry.is_dir():
                    continue
                else:
                    problem = "is neither a file nor a folder"
                raise ConfigurationError(
                    f"{key}={directory}: {printable(name)} in it {printable(problem)}, "
                    "and nothing is written there; put the real file in its place"
                )


def make_directory(parent: Path) -> Path:
    """Make a directory named after the time below ``parent``; no two processes get the same one."""
    parent.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in itertools.count(2):
        directory = parent / stamp
        try:
            make(directory)
            return directory
        except FileExistsError:
            stamp = f"{stamp[:19]}_{attempt}"
    raise AssertionError  # itertools.count does not end


def nearest_standing(directory: str) -> Path:
    """Return what exists of a path."""
    path = Path(directory).absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def remove_if_empty(directory: Path, standing: Path) -> None:
    """Remove a directory that a run left empty, and those above it up to ``standing``."""
    directory, standing = directory.resolve(), standing.resolve()
    with suppress(OSError):
        while directory.is_relative_to(standing) and directory != standing:
            if directory.exists():
                identity = _identity(directory)
                directory.rmdir()
                for known in (_MADE, _FOUND_EMPTY):
                    known.discard(identity)
            directory = directory.parent


def make_run_directory(name: str) -> Path:
    """Make the directory of this run and let ``${hydra:runtime.output_dir}`` name it.

    It is ``outputs/<command>/<date>_<time>``, or the job's own in a sweep. ``hydra.run.dir=…``
    names another, which must be empty.

    Raises:
        ConfigurationError: it isn't empty.
    """
    signals.heed()
    settings: Any = HydraConfig.get()
    is_named = any(each.startswith("hydra.run.dir=") for each in settings.overrides.hydra)
    if settings.mode != RunMode.MULTIRUN and settings.run.dir == "." and not is_named:
        directory = make_directory(Path("outputs") / name)
    else:
        directory = Path(settings.runtime.output_dir)  # Hydra has made it
        if any(directory.iterdir()):
            raise ConfigurationError(
                f"hydra.run.dir={settings.run.dir}: not empty, and nothing is overwritten"
            )
        adopt(directory)
    use_run_directory(directory)
    return directory


def use_run_directory(directory: Path) -> None:
    """Let ``${hydra:runtime.output_dir}`` name a directory."""
    settings: Any = HydraConfig.get()
    with read_write(settings.runtime):
        settings.runtime.output_dir = str(directory.resolve())


@contextmanager
def run_of_its_own(name: str, directory: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Run the body as its own command, with Hydra's settings for the given overrides and directory.

    The directory is empty or new. It is removed again if it is empty at the end.
    """
    hydra_config: Any = HydraConfig.instance()
    outer, settings = hydra_config.cfg, copy.deepcopy(hydra_config.cfg)
    standing = nearest_standing(str(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    if not directory.exists():
        make(directory)
    OmegaConf.set_readonly(settings.hydra, False)
    settings.hydra.job.name = settings.hydra.job.config_name = name
    settings.hydra.job.override_dirname = ",".join(overrides)
    settings.hydra.run.dir = str(directory)
    settings.hydra.runtime.output_dir = str(directory.resolve())
    settings.hydra.overrides.task = list(overrides)
    hydra_config.cfg = settings
    try:
        yield
    finally:
        hydra_config.cfg = outer
        remove_if_empty(directory, standing)


def save_configuration(config: DictConfig, directory: Path) -> None:
    """Write the composed configuration and the overrides into ``.hydra/``, as Hydra does."""
    folder = directory / ".hydra"
    folder.mkdir(exist_ok=True)
    contents = {
        "overrides": HydraConfig.get().overrides.task,
        "hydra": OmegaConf.create({"hydra": HydraConfig.get()}),
        "config": config,
    }
    for name, content in contents.items():
        atomic_files.write(folder / f"{name}.yaml", OmegaConf.to_yaml(content).encode())


@contextmanager
def new_run_directory(name: str, config: DictConfig) -> Iterator[Path]:
    """Make the directory of this run, and a folder in it for the body to write into.

    At the end all that was written goes up into the directory. If the body fails, it is removed.

    Raises:
        ConfigurationError: ``hydra.run.dir=…`` names a directory that isn't empty, or that another
            has written into meanwhile.
    """
    directory = make_run_directory(name)
    writing = directory / _WRITING
    try:
        make(writing)
    except FileExistsError as error:
        raise ConfigurationError(f"{directory}: another command is writing there") from error
    try:
        save_configuration(config, writing)
        yield writing
        written = list(writing.iterdir())
        for each in written:
            if (directory / each.name).exists():
                raise ConfigurationError(
                    f"{directory / each.name}: put there meanwhile, and nothing is overwritten"
                )
        for each in written:
            each.rename(directory / each.name)
        writing.rmdir()
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(directory)  # which a full disk doesn't name
        remove(writing)
        raise


def is_sweep(directory: Path) -> bool:
    """Say whether a directory is a sweep's."""
    return (directory / "multirun.yaml").is_file()


def is_begun(directory: Path | None) -> bool:
    """Say whether a job has begun in a directory: its configuration is written first."""
    return directory is not None and (directory / ".hydra" / "config.yaml").is_file()


def is_finished(directory: Path) -> bool:
    """Say whether a job has come to its end: its figures are written last."""
    return (directory / "metrics.json").is_file()
