"""Going on with a run where it stopped: with the configuration stored there, from its newest checkpoint that is whole."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_lightning import durable
from vae_lightning.configuration import ConfigurationError, check
from vae_lightning.mirror import place_of

if TYPE_CHECKING:
    from filelock import BaseFileLock

BEGUN = ".hydra/begun"
"""A file that says that a run has had a checkpoint, should they all be deleted."""

REPLACEABLE = (
    "trainer.max_epochs",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "callbacks",
    "logger",
    "data.dir",
    "mirror",
)
"""What may be typed beside ``resume=``: keys, and groups with all that is in them."""


# What Hydra adds, and Lightning to the line of the processes that it starts.
_NOT_TYPED = ("hydra.mode=", 'hydra.run.dir="."', "hydra.job.name=train_ddp_process_", "hydra.output_subdir=null")


def stored_configuration(composed: DictConfig, address: str | None = None) -> DictConfig:
    """Return the configuration of the run that ``resume`` names, in which what was typed replaces what may be replaced.

    Args:
        composed: what was typed, on top of the defaults: groups are taken from it.
        address: where the run was fetched from, and is mirrored to from now on.

    Raises:
        ConfigurationError: the directory is no run's, its configuration is refused, or something was typed that a run can't
            change on its way.
    """
    directory = Path(str(composed.resume)).expanduser()
    typed = typed_beside_resume()
    folder = directory / ".hydra"
    if not folder.is_dir():
        raise ConfigurationError(f"resume={directory}: no run directory; name one that train has made, as outputs/train/<run>")
    try:
        config = OmegaConf.load(folder / "config.yaml")
        overrides = OmegaConf.to_container(OmegaConf.load(folder / "overrides.yaml"), resolve=False)
        begun_in = Path(OmegaConf.load(folder / "hydra.yaml").hydra.runtime.cwd)
        if not isinstance(config, DictConfig) or not isinstance(overrides, list):
            raise TypeError("other content than expected")
    except (OSError, TypeError, AttributeError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigurationError(f"resume={directory}: no run directory that train has made ({error!s:.100})") from error
    max_epochs = config.get("trainer", {}).get("max_epochs")
    processes = _processes(config)
    _find_data(config, begun_in)
    place = config.mirror = address or config.get("mirror")
    for override in OverridesParser.create().parse_overrides(list(typed)):
        _replace(config, override, composed)
    _find_data(config, Path.cwd())
    if max_epochs != config.trainer.max_epochs:
        _refuse_another_length(config)
    if processes != _processes(config):
        _share_anew(config, processes)
    check("train", config, [*map(str, overrides), *typed])
    if config.mirror not in (None, place):
        config.mirror = place_of(config.mirror, directory)
    if not config.callbacks.get("last"):
        raise ConfigurationError(f"resume={directory}: without callbacks.last a run keeps nothing to go on from")
    config.resume = str(directory)
    return config


def _find_data(config: DictConfig, begun_in: Path) -> None:
    """Let a folder of the data that was named from another directory be found from any."""
    named = config.get("data", {}).get("dir")
    if isinstance(named, str):
        config.data.dir = str(begun_in / Path(named).expanduser())


def typed_beside_resume() -> list[str]:
    """Return the overrides that were typed beside ``resume=``; none where a sweep goes on with a job of its own."""
    settings: Any = HydraConfig.get()
    of_hydra = [each for each in settings.overrides.hydra if not each.startswith(_NOT_TYPED)]
    typed = [*settings.overrides.task, *(of_hydra if settings.mode != RunMode.MULTIRUN else ())]
    beside = [each for each in typed if not each.startswith("resume=")]
    return beside if len(beside) < len(typed) else []


def store_configuration(config: DictConfig) -> None:
    """Let a resumed run be resumed once more with what was typed now."""
    folder = Path(config.resume) / ".hydra"
    if typed := typed_beside_resume():
        overrides: Any = OmegaConf.to_container(OmegaConf.load(folder / "overrides.yaml"), resolve=False)
        durable.write(folder / "overrides.yaml", OmegaConf.to_yaml([*overrides, *typed]).encode())
    stored: Any = OmegaConf.load(folder / "config.yaml")
    if typed or stored.get("mirror") != config.mirror:
        durable.write(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.merge(config, {"resume": None})).encode())


def _replace(config: DictConfig, override: Override, composed: DictConfig) -> None:
    """Put what was typed into a stored configuration."""
    key = override.key_or_group
    if not any(key == each or key.startswith(f"{each}.") for each in REPLACEABLE):
        raise ConfigurationError(
            f"{override.input_line}: a run keeps what it was begun with; beside resume= go only {', '.join(REPLACEABLE)}"
        )
    if key in ("callbacks", "logger"):
        config[key] = composed[key]
    elif override.is_delete():
        parent, _, name = key.rpartition(".")
        OmegaConf.select(config, parent).pop(name, None)
    else:
        OmegaConf.update(config, key, override.value(), force_add=True)


def _refuse_another_length(config: DictConfig) -> None:
    model: Any = config.model
    for name in ("schedule", "kl_schedule"):
        if model[name] != "constant":
            raise ConfigurationError(
                f"trainer.max_epochs={config.trainer.max_epochs}: model.{name}={model[name]} goes by the length of the run, "
                "which is kept"
            )


def _processes(config: DictConfig) -> int:
    """Return how many processes a configuration asks for; one, where it says nothing that can be counted."""
    trainer: Any = config.get("trainer", {})
    counts = [trainer.get(key, 1) for key in ("devices", "num_nodes")]
    return math.prod(each if isinstance(each, int) else 1 for each in counts)


def _share_anew(config: DictConfig, before: int) -> None:
    """Let other processes than before take the same batches together: a run keeps the images of its steps.

    Raises:
        ConfigurationError: they can't be shared.
    """
    together, now = config.data.batch_size * before, _processes(config)
    if now < 1 or together % now:
        raise ConfigurationError(
            f"trainer.devices={config.trainer.devices}: the run's batches of {together} can't be shared by {now} processes"
        )
    config.data.batch_size = together // now


def is_finished(config: DictConfig) -> bool:
    """Return whether a run has been trained as long as its configuration says, and tested: its figures are written last."""
    directory = Path(config.resume)
    before: Any = OmegaConf.load(directory / ".hydra" / "config.yaml")
    return (directory / "metrics.json").exists() and before.trainer.max_epochs == config.trainer.max_epochs


def has_begun(directory: Path) -> bool:
    """Return whether a run has come to its first step, before which it writes its first checkpoint."""
    names = {file.name for file in directory.glob("checkpoints/*.ckpt")} - {"step_00000000.ckpt"}  # last.ckpt comes after it
    return bool(names) or any((directory / name).exists() for name in (BEGUN, "images", "metrics.json"))


def lock_directory(directory: Path) -> "BaseFileLock":
    """Return the lock of a run directory, taken.

    Raises:
        ConfigurationError: another process has it.
    """
    from filelock import FileLock, Timeout  # here, for a mistyped key waits for what is imported above

    lock = FileLock(directory / ".hydra" / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigurationError(f"resume={directory}: another process is training there") from error
    return lock
