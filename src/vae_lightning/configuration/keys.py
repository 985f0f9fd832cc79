"""The keys of a configuration: which there are, and what is said of others. No torch here.

So a mistyped key is answered at once. Types and ranges are checked by the part that a value is for.
"""

import difflib
import functools
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from vae_lightning.configuration import elsewhere, targets
from vae_lightning.configuration.addresses import ADDRESSES, refuse_address
from vae_lightning.configuration.composing import (
    CONFIGS,
    group_options,
    groups_of,
    is_group,
    nodes,
    outside_a_run,
    parse,
    values_of,
)
from vae_lightning.configuration.quoting import printable
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

_OF_HYDRA = re.compile(
    r"hydra\.(run\.dir|sweep|launcher|sweeper\.(params|max_batch_size)|verbose|mode)(\.|$)"
)
"""What of Hydra's own settings a command uses."""

_SET_BY_HYDRA = re.compile(
    r"hydra\.(runtime|overrides|job\.(num|id|override_dirname|config_name))(\.|$)"
)

_OF_RECIPES = frozenset({"model", "data"})
"""The groups whose files have other keys than the default's, and which a recipe may choose."""

_PARTS = re.compile(r"(callbacks|logger)\.\w+")
"""What may be added to a run, and left out of it."""


def check(
    name: str, config: DictConfig, overrides: Sequence[str], own: Set[str] = frozenset()
) -> None:
    """Refuse what no part of a command would read, and targets that are not on the list.

    Callbacks and loggers of another name may be added if they bring their ``_target_``. Hydra must
    be initialised.

    Args:
        name: name of the command.
        config: the composed configuration.
        overrides: the typed overrides.
        own: the user's own groups, whose keys are checked by the classes that they configure.

    Raises:
        ConfigurationError: a key, a target or a value in place of a group is refused, or a key of
            the trainer is missing; the message names the key.
    """
    composed, hydra_settings = _compositions(name, overrides)
    added = own | {
        key.rpartition(".")[0]
        for key, _ in nodes(config)
        if key.endswith("._target_") and _PARTS.fullmatch(key.removesuffix("._target_"))
    }
    for key, _ in nodes(config):
        if not _is_known(key, composed, added):
            raise ConfigurationError(
                _without_package(key, overrides) or unknown_key(key, known_keys(name, overrides))
            )
    running = HydraConfig.initialized()  # ${hydra:…} has no value outside of a run
    if running:
        _check_references(config)
        if HydraConfig.get().job.config_name == name:
            _refuse_idle_settings(hydra_settings)
    for resolve in (False, True) if running else (False,):
        for key, value in values_of(OmegaConf.to_container(config, resolve=resolve)):
            if key.endswith("_target_") and not targets.is_allowed(value):
                raise ConfigurationError(
                    f"{key}={printable(value)}: {targets.refusal(printable(value))}"
                )
            if (name, key) not in ADDRESSES:
                refuse_address(key, value)
    _check_groups(config, composed, own, running)
    _refuse_without_patience(config, composed)
    if "trainer" in groups_of(name):
        for needed in OmegaConf.load(CONFIGS / "trainer" / "default.yaml"):
            if needed not in config.trainer:  # Lightning's own default would be another
                raise ConfigurationError(
                    f"trainer.{needed!s} is missing: a file of your own for the trainer begins "
                    "with\ndefaults: [default]"
                )


def _check_references(config: DictConfig) -> None:
    """Refuse a value that refers to a key that doesn't exist.

    Call it within a run, where ``${hydra:…}`` has its values.

    Raises:
        ConfigurationError: a reference fails; the message names the key.
    """
    for key, value in nodes(config):
        try:
            OmegaConf.select(config, key)
        except Exception as error:  # a resolver raises what it likes
            problem = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigurationError(f"{key}={printable(value)}: {problem}") from error


def _check_groups(
    config: DictConfig, composed: Mapping[str, Any], own: Set[str], resolve: bool
) -> None:
    """Refuse a single value where settings belong: ``trainer=null`` in a recipe."""
    for key, value in values_of(OmegaConf.to_container(config, resolve=resolve)):
        holds_settings = isinstance(composed.get(key), dict) or _PARTS.fullmatch(key)
        is_left_out = value is None and _PARTS.fullmatch(key)
        is_reference = not resolve and isinstance(value, str)
        if (
            holds_settings
            and not isinstance(value, dict)
            and not (is_left_out or is_reference or key in own)
        ):
            raise ConfigurationError(
                f"{key}={printable(value)}: holds settings, so type {key}.<name>=…"
            )


def _refuse_without_patience(config: DictConfig, composed: Mapping[str, Any]) -> None:
    """Refuse settings of early stopping where ``patience=null`` leaves it out.

    Raises:
        ConfigurationError: naming the setting.
    """
    values = dict(nodes(config.get("callbacks", {}), "callbacks."))
    for key, value in values.items():
        patience = f"{key.rpartition('.')[0]}.patience"
        if values.get(patience, 0) is None and value != composed.get(key):
            raise ConfigurationError(
                f"{key}={printable(value)}: changes nothing without a patience; "
                f"type {patience}=… as well"
            )


def _refuse_idle_settings(ours: Mapping[str, Any]) -> None:
    """Refuse settings of Hydra that change nothing here.

    Raises:
        ConfigurationError: naming the key.
    """
    settings = OmegaConf.to_container(HydraConfig.get(), resolve=False)
    for key, value in values_of({"hydra": settings}):
        by_lightning = key == "hydra.job.name" and str(value).startswith("train_ddp_process_")
        if (
            not isinstance(value, dict | list)
            and not (_OF_HYDRA.match(key) or _SET_BY_HYDRA.match(key) or by_lightning)
            and (key not in ours or ours[key] != value)
        ):
            raise ConfigurationError(
                f"{key}={printable(value)}: changes nothing here; of Hydra's settings there are "
                "hydra.run.dir, hydra.sweep.dir, hydra.sweep.subdir, hydra.launcher"
            )


def _is_known(key: str, composed: Mapping[str, Any], added: Set[str]) -> bool:
    """Return whether a key is one of ours, or lies below an added key or below a value of ours.

    What lies below those is checked by the class that receives it.
    """
    if key in composed:
        return True
    parts = key.split(".")
    above = [".".join(parts[:length]) for length in range(1, len(parts))]
    return any(
        each in added or (each in composed and not isinstance(composed[each], dict))
        for each in (*above, key)
    )


def check_typed(name: str, typed: Any) -> None:
    """Refuse what was mistyped before Hydra composes it, twice and in vain.

    Raises:
        ConfigurationError: naming the key.
    """
    with outside_a_run(typed):
        overrides = parse(typed.overrides)
        choices = [each for each in overrides if each.key_or_group in groups_of(name)]
        for each in choices:
            _check_choice(each)
        composed, _ = _compositions(name, typed.overrides)
        known = known_keys(name, typed.overrides)
        for each in overrides:
            key = each.key_or_group
            if each in choices and not each.package:
                continue
            if key == "hydra" or key.startswith("hydra."):
                if each.is_delete() or key == "hydra":
                    raise ConfigurationError(
                        f"{each.input_line}: not offered; type a setting, as hydra.run.dir=…"
                    )
            elif not key.startswith("hydra/"):
                _check_key(each, composed, known)


def _check_choice(override: Override) -> None:
    """Refuse to leave out a group, or to choose what is no name of a file."""
    options = ", ".join(group_options(override.key_or_group))
    value = override.value()
    if override.is_delete() or value in (None, []):
        raise ConfigurationError(
            f"{override.input_line}: a group can't be left out; choose from {options}"
        )
    names = value if isinstance(value, list) else [value]
    if not override.is_sweep_override() and not all(isinstance(each, str) for each in names):
        raise ConfigurationError(f"{override.input_line}: not found; choose from {options}")


def _check_key(override: Override, composed: Mapping[str, Any], known: Set[str]) -> None:
    key = override.key_or_group
    if not key:
        raise ConfigurationError(f"{override.input_line}: no key; type key=value")
    if is_group(override) and not override.package and isinstance(composed.get(key), dict):
        raise ConfigurationError(
            f"{override.input_line}: {key} holds settings here, so type {key}.<name>=…"
        )
    part = ".".join(key.split(".")[:2])
    # A callback or logger may have been added, and a group may be the user's own. Then only the
    # composed configuration shows it.
    added = {part} if _PARTS.fullmatch(part) and part not in composed else set()
    is_own_group = not is_group(override) and bool(group_options(key))
    if not is_own_group and not _is_known(key, composed, added):
        raise ConfigurationError(unknown_key(key, known))
    if override.is_delete():
        if key in composed and not _PARTS.fullmatch(key) and not key.startswith("search."):
            raise ConfigurationError(
                f"{override.input_line}: can't be left out; type {key}=… to change it"
            )
        return
    parent, _, last = key.rpartition(".")
    value = composed.get(parent)
    is_element = isinstance(value, list) and last.isdecimal()
    if value is not None and not isinstance(value, dict) and not is_element:
        raise ConfigurationError(
            f"{override.input_line}: {parent} holds a value, no settings; type {parent}=…"
        )


def known_keys(name: str, overrides: Sequence[str]) -> frozenset[str]:
    """Return all keys of a command's configuration, for the groups that the overrides choose."""
    return frozenset({*_compositions(name, overrides)[0], *groups_of(name)})


def _compositions(
    name: str, overrides: Sequence[str]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return a command's configuration, and Hydra's, for the groups that the overrides choose.

    Returns:
        The values by their keys in dots. What a search varies has no values.
    """
    typed = parse(overrides)
    chosen = [
        each.input_line or ""
        for each in typed
        if is_group(each)
        and not each.is_add()
        and not each.is_delete()
        and not each.is_sweep_override()
        and each.key_or_group != "experiment"
        and isinstance(each.value(), str | list)
        and (each.key_or_group in groups_of(name) or each.key_or_group.startswith("hydra/"))
    ]
    search_path = str(GlobalHydra.instance().config_loader().get_search_path())
    names = {each.key_or_group for each in typed}
    for each in typed if "experiment" in groups_of(name) else ():
        recipe = each.value() if each.key_or_group == "experiment" else None
        if isinstance(recipe, str) and recipe in group_options("experiment"):
            choices = _choices(name, recipe, search_path)
            chosen += [f"{group}={choices[group]}" for group in _OF_RECIPES - names]
    return _composed(name, tuple(chosen), search_path)


@functools.cache
def _choices(name: str, recipe: str, search_path: str) -> Mapping[str, Any]:
    """Return the file of each group in the configuration of a recipe."""
    composed = hydra.compose(name, [f"experiment={recipe}"], return_hydra_config=True)
    choices: Mapping[str, Any] = composed.hydra.runtime.choices
    return choices


@functools.cache  # composing takes longest of all that comes before torch
def _composed(
    name: str, chosen: tuple[str, ...], search_path: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    composed = hydra.compose(name, list(chosen), return_hydra_config=True)
    values = dict(nodes(composed))
    of_hydra = dict(values_of({"hydra": OmegaConf.to_container(composed.hydra, resolve=False)}))
    ours = {key: value for key, value in values.items() if not f"{key}.".startswith("hydra.")}
    if "search" in ours:  # below it lie the keys that it varies, and no others
        ours = {key: value for key, value in ours.items() if not key.startswith("search.")}
        ours |= {
            f"search.{key}": value if isinstance(value, dict) else None
            for key, value in ours.items()
            if key != "search"
        }
        for key, _ in nodes(OmegaConf.load(CONFIGS / "search" / "default.yaml")):
            ours.setdefault(key, None)  # for the sizes of a VAE, which another model may not have
    return ours, of_hydra


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
    near = functools.partial(difflib.get_close_matches, name, siblings if parent else (), n=1)
    if nearest := near(cutoff=0.9):  # a slip of the finger
        return f"unknown key {key}: did you mean {siblings[nearest[0]]}?"
    if instead := elsewhere.instead_of(name, {each.removeprefix(start) for each in known}):
        return f"unknown key {key}: did you mean {start}{instead}?"
    if why := elsewhere.why_absent(name):
        return f"unknown key {key}: {why}"
    if nearest := near():
        return f"unknown key {key}: did you mean {siblings[nearest[0]]}?"
    if key.partition(".")[2] in known:
        return f"unknown key {key}: did you mean {key.partition('.')[2]}?"
    group, part = (*key.split("."), "")[:2]
    if group == "callbacks" and (CONFIGS / group / f"{part}.yaml").is_file():
        return f"unknown key {key}: callbacks=[minimal,{part}] adds callbacks.{part}"
    if group == "logger" and group in known and not siblings:
        return f"unknown key {key}: there is no logger; logger=csv and logger=tensorboard add one"
    if parent and siblings:
        return f"unknown key {key}: {parent} has {', '.join(sorted(siblings))}"
    nearest = difflib.get_close_matches(key, known, n=1)
    return f"unknown key {key}: " + (
        f"did you mean {nearest[0]}?" if nearest else "--cfg job lists all keys"
    )


def _without_package(key: str, overrides: Sequence[str]) -> str | None:
    """Return what to say of a recipe that doesn't begin with the line that puts it in its place."""
    group = key.partition(".")[0]
    if group != "experiment" and not key.startswith("search.search"):
        return None
    loader: Any = GlobalHydra.instance().config_loader()
    for each in parse(overrides):
        if each.key_or_group != group or each.is_sweep_override():
            continue
        chosen = each.value()
        for option in chosen if isinstance(chosen, list) else [chosen]:
            found = loader.repository.load_config(f"{group}/{option}")
            if found and found.header.get("package") is None:
                file = Path(found.path.removeprefix("file://")) / group / f"{option}.yaml"
                return (
                    f"{group}={option}: no part gets its values; "
                    f"let {file} begin with the line\n# @package _global_"
                )
    return None
