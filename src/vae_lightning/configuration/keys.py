"""The keys of a configuration: which there are, and what is said of others. No torch here.

So a mistyped key is answered at once. Types and ranges are checked by the part that a value is for.
"""

import difflib
import functools
import re
from collections.abc import Sequence, Set
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_lightning.configuration import targets
from vae_lightning.configuration.addresses import ADDRESSES, refuse_address
from vae_lightning.configuration.composing import (
    CONFIGS,
    is_group,
    nodes,
    outside_a_run,
    parse,
    values_of,
)
from vae_lightning.errors import ConfigurationError

MOVED = {
    "model.optimizer": "optimizer",
    "model.learning_rate": "optimizer.learning_rate",
    "model.weight_decay": "optimizer.weight_decay",
    "model.optimizer_options": "optimizer.options",
    "model.schedule": "optimizer.schedule",
    "model.schedule_options": "optimizer.schedule_options",
    "model.schedule_passes": "optimizer.schedule_passes",
}
"""Keys of version 0.1, and what they are called now."""


def check(
    name: str, config: DictConfig, overrides: Sequence[str], own: Set[str] = frozenset()
) -> None:
    """Refuse keys that no configuration of ours has, and targets that are not on the list.

    Callbacks and loggers of another name may be added if they bring their ``_target_``. Hydra must
    be initialised.

    Args:
        name: name of the command.
        config: the composed configuration.
        overrides: the typed overrides.
        own: the user's own groups, whose keys are checked by the classes that they configure.

    Raises:
        ConfigurationError: a key or target is refused; the message names the key.
    """
    known = known_keys(name, overrides)
    added = own | {
        key.rpartition(".")[0]
        for key, _ in nodes(config)
        if re.fullmatch(r"(callbacks|logger)\.\w+\._target_", key)
    }
    for key, _ in nodes(config):
        if not _is_known(key, known, added):
            raise ConfigurationError(unknown_key(key, known))
    running = HydraConfig.initialized()  # ${hydra:…} has no value outside of a run
    if running:
        _check_references(config)
    for resolve in (False, True) if running else (False,):
        for key, value in values_of(OmegaConf.to_container(config, resolve=resolve)):
            if key.endswith("_target_") and not (
                isinstance(value, str) and value in targets.TARGETS
            ):
                raise ConfigurationError(
                    f"{key}={value}: not one of the allowed targets (configuration/targets.py)"
                )
            if (name, key) not in ADDRESSES:
                refuse_address(key, value)


def _check_references(config: DictConfig) -> None:
    """Refuse a value that refers to a key that doesn't exist.

    Call it within a run, where ``${hydra:…}`` has its values.

    Raises:
        ConfigurationError: a reference fails; the message names the key.
    """
    for key, value in nodes(config):
        try:
            OmegaConf.select(config, key)
        except OmegaConfBaseException as error:
            raise ConfigurationError(f"{key}={value}: {str(error).splitlines()[0]}") from error


def _is_known(key: str, known: Set[str], added: Set[str]) -> bool:
    """Return whether a key is one of ours, or lies below an added key or below a value of ours.

    What lies below those is checked by the class that receives it.
    """
    free = added | (known - {each.rpartition(".")[0] for each in known})
    return key in known or any(key == each or key.startswith(f"{each}.") for each in free)


def check_typed(name: str, typed: Any) -> None:
    """Refuse a mistyped key before Hydra composes it, twice and in vain.

    Raises:
        ConfigurationError: naming the key.
    """
    with outside_a_run(typed):
        known = known_keys(name, typed.overrides)
        options = GlobalHydra.instance().config_loader().get_group_options
        for key in (each.key_or_group for each in parse(typed.overrides)):
            part = ".".join(key.split(".")[:2])
            # A callback or logger may have been added, and a group may be the user's own. Then
            # only the composed configuration shows it.
            added = (
                {part}
                if part.startswith(("callbacks.", "logger.")) and part not in known
                else {"hydra"}
            )
            if (
                not _is_known(key, known, added)
                and not key.startswith("hydra/")
                and not options(key)
            ):
                raise ConfigurationError(unknown_key(key, known))


def known_keys(name: str, overrides: Sequence[str]) -> frozenset[str]:
    """Return all keys of a command's configuration, for the groups that the overrides choose."""
    chosen = [
        each.input_line or ""
        for each in parse(overrides)
        if is_group(each)
        and not each.is_add()
        and not each.is_sweep_override()
        and each.key_or_group != "experiment"
    ]
    return _composed_keys(
        name, tuple(chosen), str(GlobalHydra.instance().config_loader().get_search_path())
    )


@functools.cache  # composing takes longest of all that comes before torch
def _composed_keys(name: str, chosen: tuple[str, ...], search_path: str) -> frozenset[str]:
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()} - {"search"}
    keys = {key for key, _ in nodes(hydra.compose(name, list(chosen)))}
    if "search" in keys:  # below it lie the keys that it varies, and no others
        keys = {key for key in keys if not key.startswith("search.")}
        keys |= {f"search.{key}" for key in keys}
    return frozenset(groups | keys)


def unknown_key(key: str, known: Set[str]) -> str:
    """Return what to say of an unknown key: its new name, the nearest key, or its neighbours."""
    start = "search." * key.startswith("search.")
    for earlier, now in MOVED.items():
        if f"{key}.".startswith(f"{start}{earlier}."):
            moved = start + now + key.removeprefix(start + earlier)
            return f"{key}: is called {moved} since version 0.2"
    parent, _, name = key.rpartition(".")
    siblings = {
        each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == parent
    }
    if nearest := difflib.get_close_matches(name, siblings, n=1):
        return f"unknown key {key}: did you mean {siblings[nearest[0]]}?"
    if parent and siblings:
        return f"unknown key {key}: {parent} has {', '.join(sorted(siblings))}"
    nearest = difflib.get_close_matches(key, known, n=1)
    return f"unknown key {key}: " + (
        f"did you mean {nearest[0]}?" if nearest else "--cfg job lists all keys"
    )
