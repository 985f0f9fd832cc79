"""Resume a run where it stopped: its stored configuration and its newest whole checkpoint."""

import itertools
import json
import math
from collections.abc import Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_lightning.configuration import quoting
from vae_lightning.configuration.composing import group_options, is_group, parse
from vae_lightning.configuration.keys import check
from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import printable
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import atomic_files
from vae_lightning.runs.directory import refuse_links
from vae_lightning.runs.mirror import place_of

if TYPE_CHECKING:
    from filelock import BaseFileLock

BEGUN = ".hydra/begun"
"""A file that says that a run has had a checkpoint, should they all be deleted."""

RATE = "optimizer.learning_rate"

REPLACEABLE = (
    "trainer.max_epochs",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    RATE,
    "callbacks",
    "logger",
    "data.dir",
    "data.file",
    "mirror",
)
"""What may be typed beside ``resume=``: keys, and groups with all that is in them."""

_RUN_DIRECTORY = "${hydra:runtime.output_dir}"

SCHEDULES = ("optimizer.schedule", "model.kl_schedule")
"""The keys of schedules, which depend on the length of the run."""

# What Hydra adds, and Lightning to the line of the processes that it starts.
_NOT_TYPED = (
    "hydra.mode=",
    'hydra.run.dir="."',
    "hydra.job.name=train_ddp_process_",
    "hydra.output_subdir=null",
)


def stored_configuration(composed: DictConfig, address: str | None = None) -> DictConfig:
    """Return the configuration of the run that ``resume`` names, with the typed changes to it.

    Args:
        composed: the typed overrides on top of the defaults; groups are taken from it.
        address: where the run was fetched from, and is mirrored to from now on.

    Raises:
        ConfigurationError: the directory is not a run's, its configuration is refused, or an
            override was typed that a run can't change on its way.
    """
    directory = Path(expanded(str(composed.resume)))
    named = quoting.override("resume", directory)
    typed = typed_beside_resume()
    folder = directory / ".hydra"
    if not folder.is_dir():
        within = next((each for each in directory.parents if (each / ".hydra").is_dir()), None)
        instead = "name one that train has made, as outputs/train/<run>"
        if within is not None and within.name and directory.exists():
            instead = f"type {quoting.override('resume', within)}"
        raise ConfigurationError(f"{named}: no run directory; {instead}")
    refuse_links(directory, "resume")
    try:
        config = OmegaConf.load(folder / "config.yaml")
        overrides = OmegaConf.to_container(OmegaConf.load(folder / "overrides.yaml"), resolve=False)
        begun_in = Path(OmegaConf.load(folder / "hydra.yaml").hydra.runtime.cwd)
        if not isinstance(config, DictConfig) or not isinstance(overrides, list):
            raise TypeError("other content than expected")
        for group in ("model", "optimizer", "data", "trainer", "callbacks", "logger"):
            if group in config and not isinstance(config[group], DictConfig):
                raise TypeError(f"{group} is no group")
    except (
        OSError,
        TypeError,
        AttributeError,
        UnicodeDecodeError,
        yaml.YAMLError,
        OmegaConfBaseException,
        RecursionError,  # of lists in lists, a thousand deep
    ) as error:
        raise ConfigurationError(
            f"{named}: no run directory that train has made ({printable(error)[:100]})"
        ) from error
    if "model" in config and "optimizer" not in config:
        raise ConfigurationError(
            f"{named}: begun by version 0.1, and only version 0.1 goes on with it"
        )
    max_epochs = config.get("trainer", {}).get("max_epochs")
    processes, rate = _processes(config), OmegaConf.select(config, RATE)
    _find_data(config, begun_in)
    place = config.mirror = address or config.get("mirror")
    replaced = OverridesParser.create().parse_overrides(list(typed))
    for override in replaced:
        _replace(config, override, composed)
    _refuse_places_elsewhere(config, directory, {each.key_or_group for each in replaced})
    _find_data(config, Path.cwd())
    if max_epochs != config.trainer.max_epochs:
        _refuse_another_length(config)
    schedule = OmegaConf.select(config, "optimizer.schedule", default="constant")
    if rate != (typed_rate := OmegaConf.select(config, RATE)) and schedule != "constant":
        raise ConfigurationError(
            f"{RATE}={typed_rate}: optimizer.schedule={schedule} sets the rate, and is kept"
        )
    if processes != _processes(config):
        _share_anew(config, processes)
    kept, own = _without_own_files(overrides)
    check("train", config, [*kept, *typed], own)
    if config.mirror not in (None, place):
        config.mirror = place_of(config.mirror, directory)
    if not config.callbacks.get("last"):
        raise ConfigurationError(
            f"{named}: without callbacks.last a run keeps nothing to go on from"
        )
    config.resume = str(directory)
    return config


def _without_own_files(overrides: Sequence[object]) -> tuple[list[str], set[str]]:
    """Leave out the overrides that chose a file of the user's own, which isn't here any more.

    Neither is what ``data=codes`` chose: the data of another run stands in its place.

    Returns:
        The other overrides, and the groups of which there were such files.
    """
    kept, own = [], set()
    for each in parse(list(map(str, overrides))):
        group = each.key_or_group
        replaced = (group, each.value()) == ("data", "codes")
        if is_group(each) and (replaced or each.value() not in group_options(group)):
            own.add(group)
        else:
            kept.append(each.input_line or "")
    return kept, own


_PLACES = {
    "callbacks": ("dirpath", "filename"),
    "logger": ("save_dir", "name", "version", "sub_dir"),
}
"""What says where a callback or a logger writes, by the group."""


def _refuse_places_elsewhere(config: DictConfig, directory: Path, typed: Set[str]) -> None:
    """Check that a stored configuration writes into the run directory and nowhere else.

    Raises:
        ConfigurationError: it names another place, which wasn't typed now.
    """
    for group, keys in _PLACES.items():
        parts: Any = OmegaConf.to_container(config.get(group) or OmegaConf.create(), resolve=False)
        for name, key in itertools.product(parts, keys):
            value = parts[name].get(key) if isinstance(parts[name], dict) else None
            place = f"{group}.{name}.{key}"
            above = {group, f"{group}.{name}", place}
            if not isinstance(value, str) or value == _RUN_DIRECTORY or above & typed:
                continue
            path = Path(value) if key == "save_dir" else directory / value
            if "${" in value or not path.resolve().is_relative_to(directory.resolve()):
                yours = (
                    f"if that is yours, type {printable(f'{group}.{name}')} beside it, as when the "
                    "run was begun"
                )
                inside = "a callback writes into its run directory only"
                raise ConfigurationError(
                    f"{quoting.override('resume', directory)}: its configuration writes to another "
                    f"place, {printable(place)}={printable(value)[:100]}; "
                    f"{yours if group == 'logger' else inside}"
                )


def _find_data(config: DictConfig, begun_in: Path) -> None:
    """Let a folder of the data that was named from another directory be found from any."""
    for key in ("dir", "file"):
        named = config.get("data", {}).get(key)
        if isinstance(named, str):
            config.data[key] = str(begun_in / expanded(named))
        elif OmegaConf.is_list(named):
            config.data[key] = [str(begun_in / expanded(str(each))) for each in named]


def typed_beside_resume() -> list[str]:
    """Return the overrides typed with ``resume=``; none if a sweep continues one of its jobs."""
    settings: Any = HydraConfig.get()
    of_hydra = [each for each in settings.overrides.hydra if not each.startswith(_NOT_TYPED)]
    typed = [*settings.overrides.task, *(of_hydra if settings.mode != RunMode.MULTIRUN else ())]
    beside = [each for each in typed if not each.startswith("resume=")]
    return beside if len(beside) < len(typed) else []


def store_configuration(config: DictConfig) -> None:
    """Let a resumed run be resumed once more with what was typed now."""
    folder = Path(config.resume) / ".hydra"
    if typed := typed_beside_resume():
        overrides: Any = OmegaConf.to_container(
            OmegaConf.load(folder / "overrides.yaml"), resolve=False
        )
        atomic_files.write(
            folder / "overrides.yaml", OmegaConf.to_yaml([*overrides, *typed]).encode()
        )
    stored: Any = OmegaConf.load(folder / "config.yaml")
    if typed or stored.get("mirror") != config.mirror:
        atomic_files.write(
            folder / "config.yaml",
            OmegaConf.to_yaml(OmegaConf.merge(config, {"resume": None})).encode(),
        )


def _replace(config: DictConfig, override: Override, composed: DictConfig) -> None:
    """Put what was typed into a stored configuration."""
    key = override.key_or_group
    if not any(key == each or key.startswith(f"{each}.") for each in REPLACEABLE):
        raise ConfigurationError(
            f"{override.input_line}: a run keeps what it was begun with; "
            f"beside resume= go only {', '.join(REPLACEABLE)}"
        )
    if key in ("callbacks", "logger"):
        config[key] = composed[key]
    elif override.is_delete():
        parent, _, name = key.rpartition(".")
        OmegaConf.select(config, parent).pop(name, None)
    else:
        OmegaConf.update(config, key, override.value(), force_add=True)


def _refuse_another_length(config: DictConfig) -> None:
    for key in SCHEDULES:
        schedule = OmegaConf.select(config, key, default="constant")
        if schedule != "constant":
            raise ConfigurationError(
                f"trainer.max_epochs={config.trainer.max_epochs}: {key}={schedule} depends on the "
                "length of the run, which is kept"
            )


def _processes(config: DictConfig) -> int:
    """Return how many processes a configuration sets; 1 if it sets no number."""
    trainer: Any = config.get("trainer", {})
    counts = [trainer.get(key, 1) for key in ("devices", "num_nodes")]
    return math.prod(each if isinstance(each, int) else 1 for each in counts)


def _share_anew(config: DictConfig, before: int) -> None:
    """Set the batch size so that another number of processes takes the same batches together.

    Each step of the run keeps its images.

    Raises:
        ConfigurationError: the batches can't be shared.
    """
    together, now = config.data.batch_size * before, _processes(config)
    if now < 1 or together % now:
        raise ConfigurationError(
            f"trainer.devices={config.trainer.devices}: "
            f"the run's batches of {together} can't be shared by {now} processes"
        )
    config.data.batch_size = together // now


def is_finished(config: DictConfig) -> bool:
    """Return whether a run has been trained as long as its configuration says, and tested.

    Its figures are written last.
    """
    directory = Path(config.resume)
    try:
        epochs = int(json.loads((directory / "metrics.json").read_bytes())["run"]["epochs"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False  # not there, or damaged: it is written anew
    before: Any = OmegaConf.load(directory / ".hydra" / "config.yaml")
    if before.callbacks != config.callbacks and epochs < config.trainer.max_epochs:
        return False  # another patience may let a run go on that was ended early
    return bool(before.trainer.max_epochs == config.trainer.max_epochs)


def has_begun(directory: Path) -> bool:
    """Return whether a run has begun its first step, before which it writes a checkpoint."""
    names = {file.name for file in directory.glob("checkpoints/*.ckpt")} - {
        "step_00000000.ckpt"
    }  # last.ckpt comes after it
    return bool(names) or any(
        (directory / name).exists() for name in (BEGUN, "images", "metrics.json")
    )


def lock_directory(directory: Path) -> "BaseFileLock":
    """Return the lock of a run directory, taken.

    Raises:
        ConfigurationError: another process has it.
    """
    from filelock import (
        FileLock,
        Timeout,
    )  # here, for a mistyped key waits for what is imported above

    lock = FileLock(directory / ".hydra" / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigurationError(
            f"{quoting.override('resume', directory)}: another process is training there"
        ) from error
    return lock
