"""Compose and check a configuration. No torch in this room.

So a mistyped key is answered at once. Types and ranges are checked later, by the part that a value is for.
"""

import difflib
import functools
import importlib.util
import os
import re
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_PACKED = Path(__file__).parent / "configs"
CONFIGS = _PACKED if _PACKED.is_dir() else Path(__file__).parents[2] / "configs"
"""The configs: in the package when it was installed from a wheel, beside ``src/`` in a checkout."""

TARGETS = frozenset(
    {
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "vae_lightning.callbacks.BestCheckpoint",
        "vae_lightning.callbacks.Dashboard",
        "vae_lightning.callbacks.LastCheckpoint",
        "vae_lightning.callbacks.LatentPicture",
        "vae_lightning.callbacks.LatentUse",
        "vae_lightning.callbacks.PriorSamples",
        "vae_lightning.callbacks.Progress",
        "vae_lightning.callbacks.Projector",
        "vae_lightning.callbacks.Reconstructions",
        "vae_lightning.logs.RunCSVLogger",
        "vae_lightning.logs.RunLogger",
    }
)
"""Everything that a configuration may name as ``_target_``, by full name: a prefix would let foreign code in."""

SCHEMES = {"file": None, "memory": None, "s3": "s3fs"}
"""Where a run may be mirrored to, by fsspec's name, with the package that is asked for: what is tried here, and takes its
credentials from the environment. ``memory`` is gone with the process, and there for the tests."""

# What the best checkpoint is chosen by: each run by the bound that it is trained on, unweighted.
OmegaConf.register_new_resolver(
    "criterion", lambda objective: "val/importance_bound" if objective == "iwae" else "val/elbo", replace=True
)


ADDRESSES = frozenset({("tune", "storage")})
"""The keys that take an address, each with its command."""


class ConfigurationError(ValueError):
    """A mistake in what the user typed, told in a line or two."""


def check(name: str, config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse keys that no configuration of ours has, and targets that are not on the list; Hydra must be initialised.

    Callbacks and loggers of another name may be added, if they bring their ``_target_``.

    Raises:
        ConfigurationError: naming the key.
    """
    known = known_keys(name, overrides)
    added = {key.rpartition(".")[0] for key, _ in _nodes(config) if re.fullmatch(r"(callbacks|logger)\.\w+\._target_", key)}
    for key, _ in _nodes(config):
        if not _is_known(key, known, added):
            raise ConfigurationError(unknown_key(key, known))
    running = HydraConfig.initialized()  # ${hydra:…} has no value outside of a run
    if running:
        _check_references(config)
    for resolve in (False, True) if running else (False,):
        for key, value in values_of(OmegaConf.to_container(config, resolve=resolve)):
            if key.endswith("_target_") and not (isinstance(value, str) and value in TARGETS):
                raise ConfigurationError(f"{key}={value}: not one of the allowed targets, configuration.TARGETS")
            if (name, key) not in ADDRESSES:
                refuse_address(key, value)


def refuse_address(key: str, value: Any) -> None:
    """Refuse what Lightning would fetch or write over the network; only a run's mirror is asked for by an address."""
    is_address = isinstance(value, str) and "://" in value
    if (key == "mirror" and value is not None) or (key == "resume" and is_address):
        if "${" not in str(value):  # it is looked at once more when its parts are known
            check_address(key, value)
    elif is_address:
        raise ConfigurationError(f"{key}={value}: an address, where a path of this machine is asked for")


def check_address(key: str, address: Any) -> None:
    """Refuse what isn't the address of a mirror.

    Raises:
        ConfigurationError: naming the key, and of the address no more than is sure to hold no secret.
    """
    scheme, separator, path = str(address).partition("://")
    if not isinstance(address, str) or not separator:
        raise ConfigurationError(f"{key}={address}: must be an address, as s3://bucket/folder or file:///folder")
    if scheme not in SCHEMES:
        raise ConfigurationError(f"{key}={scheme}://…: must be one of {', '.join(f'{each}://' for each in SCHEMES)}")
    rooted = path.removeprefix("/") if scheme == "file" else path
    if not re.fullmatch(r"(?:(?!\.\.?(?:/|$))[\w .=,+-]+(?:/|$))+", rooted) or (scheme == "file") == (rooted == path):
        raise ConfigurationError(
            f"{key}={scheme}://…: must be an address as s3://bucket/folder or file:///folder, of letters, digits and signs "
            "among . _ - = + and comma; credentials belong into the environment"
        )
    package = SCHEMES[scheme]
    if package and importlib.util.find_spec(package) is None:
        raise ConfigurationError(
            f"{key}={address}: asks for {package}, which isn't installed; pip install 'vae-lightning[{scheme}]'"
        )


def _check_references(config: DictConfig) -> None:
    """Refuse a value that refers to what isn't there; within a run, where ``${hydra:…}`` has its values.

    Raises:
        ConfigurationError: naming the key.
    """
    for key, value in _nodes(config):
        try:
            OmegaConf.select(config, key)
        except OmegaConfBaseException as error:
            raise ConfigurationError(f"{key}={value}: {str(error).splitlines()[0]}") from error


def _is_known(key: str, known: Set[str], added: Set[str]) -> bool:
    """Say whether a key is one of ours, or lies below what was added or below a value of ours: that is the part's to check."""
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
            # A callback or logger may have been added, and a group may be the user's own: what is composed will tell.
            added = {part} if part.startswith(("callbacks.", "logger.")) and part not in known else {"hydra"}
            if not _is_known(key, known, added) and not key.startswith("hydra/") and not options(key):
                raise ConfigurationError(unknown_key(key, known))


@contextmanager
def outside_a_run(typed: Any) -> Iterator[None]:
    """Initialise Hydra outside a run, with the search path that was typed."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        if typed.config_dir:
            loader: Any = GlobalHydra.instance().config_loader()
            path, last = loader.get_search_path(), SearchPathQuery(provider="schema")
            path.prepend(provider="command-line", path=f"file://{os.path.abspath(typed.config_dir)}", anchor=last)
            loader.repository.initialize_sources(path)
        yield


def parse(overrides: Sequence[str]) -> list[Override]:
    """Return what was typed as Hydra understands it; Hydra must be initialised."""
    return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))


def is_group(override: Override) -> bool:
    """Return whether an override chooses a file of one of our groups, as ``model=convolutional``."""
    return (CONFIGS / override.key_or_group).is_dir()


def _nodes(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of a configuration in dots, with what it holds."""
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=False)
    items = config.items() if isinstance(config, dict) else ()
    for key, value in items:
        yield f"{prefix}{key}", value
        yield from _nodes(value, f"{prefix}{key}.")


def values_of(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of plain containers in dots, those in lists included, with what it holds."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield f"{prefix}{key}", value
        yield from values_of(value, f"{prefix}{key}.")


def known_keys(name: str, overrides: Sequence[str]) -> frozenset[str]:
    """Return all keys of a command's configuration, for the groups that the overrides choose."""
    chosen = [
        each.input_line or ""
        for each in parse(overrides)
        if is_group(each) and not each.is_add() and not each.is_sweep_override() and each.key_or_group != "experiment"
    ]
    return _composed_keys(name, tuple(chosen), str(GlobalHydra.instance().config_loader().get_search_path()))


@functools.cache  # composing takes longest of all that comes before torch
def _composed_keys(name: str, chosen: tuple[str, ...], search_path: str) -> frozenset[str]:
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()} - {"search"}
    keys = {key for key, _ in _nodes(hydra.compose(name, list(chosen)))}
    if "search" in keys:  # below it lie the keys that it varies, and no others
        keys = {key for key in keys if not key.startswith("search.")}
        keys |= {f"search.{key}" for key in keys}
    return frozenset(groups | keys)


def unknown_key(key: str, known: Set[str]) -> str:
    """Return what to say of a key that none of ours is: the nearest, or its neighbours."""
    parent, _, name = key.rpartition(".")
    siblings = {each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == parent}
    if nearest := difflib.get_close_matches(name, siblings, n=1):
        return f"unknown key {key}: did you mean {siblings[nearest[0]]}?"
    if parent and siblings:
        return f"unknown key {key}: {parent} has {', '.join(sorted(siblings))}"
    nearest = difflib.get_close_matches(key, known, n=1)
    return f"unknown key {key}: " + (f"did you mean {nearest[0]}?" if nearest else "--cfg job lists all keys")
