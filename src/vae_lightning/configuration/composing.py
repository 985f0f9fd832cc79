"""What was typed, and the configuration that Hydra composes of it."""

import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

_PACKED = Path(__file__).parents[1] / "configs"
CONFIGS = _PACKED if _PACKED.is_dir() else Path(__file__).parents[3] / "configs"
"""The configs: in the package when it was installed from a wheel, beside ``src/`` in a checkout."""


@contextmanager
def outside_a_run(typed: Any) -> Iterator[None]:
    """Initialise Hydra outside a run, with the search path that was typed."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        if typed.config_dir:
            loader: Any = GlobalHydra.instance().config_loader()
            path, last = loader.get_search_path(), SearchPathQuery(provider="schema")
            path.prepend(
                provider="command-line",
                path=f"file://{os.path.abspath(typed.config_dir)}",
                anchor=last,
            )
            loader.repository.initialize_sources(path)
        yield


def parse(overrides: Sequence[str]) -> list[Override]:
    """Return what was typed as Hydra understands it; Hydra must be initialised."""
    return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(
        list(overrides)
    )


def group_options(group: str) -> list[str]:
    """Return the files of a group, the user's own included; Hydra must be initialised."""
    # The loader's own get_group_options first makes a copy of all files: 15 ms.
    loader: Any = GlobalHydra.instance().config_loader()
    options: list[str] = loader.repository.get_group_options(group)
    return options


@functools.cache
def groups_of(command: str) -> frozenset[str]:
    """Return the groups of a command: those that its root file chooses from."""
    root: Any = OmegaConf.load(CONFIGS / f"{command}.yaml")
    entries = [each for each in root.defaults if OmegaConf.is_dict(each)]
    return frozenset(
        str(group) for each in entries for group in each if not str(group).startswith("override ")
    )


def is_group(override: Override) -> bool:
    """Return whether an override chooses a file of one of our groups: ``model=convolutional``."""
    return (CONFIGS / override.key_or_group).is_dir()


def nodes(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of a configuration in dots, with what it holds."""
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=False)
    items = config.items() if isinstance(config, dict) else ()
    for key, value in items:
        yield f"{prefix}{key}", value
        yield from nodes(value, f"{prefix}{key}.")


def values_of(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of plain containers in dots, those in lists included, with what it holds."""
    children = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, value in children:
        yield f"{prefix}{key}", value
        yield from values_of(value, f"{prefix}{key}.")
