"""What a search varies: the space, the configuration of a trial, and the recipe of the best one."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import hydra
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import Field

from vae_lightning.configuration import quoting
from vae_lightning.configuration.building import require, require_list
from vae_lightning.configuration.composing import CONFIGS
from vae_lightning.errors import ConfigurationError

log = logging.getLogger(__name__)

BESIDE = ("trials", "study", "storage")
"""What may be another each time that a study is gone on with."""

OWN = ("search", "objectives", "pruning", *BESIDE)
"""The keys of a search that are not its trials'."""

_RANGES: dict[str, tuple[Any, Any]] = {
    "int": (int, IntDistribution),
    "float": (Annotated[float, Field(allow_inf_nan=False)], FloatDistribution),
}
_FORMS = "a list, {int: [2, 64]} or {float: [1e-4, 1e-2], log: true}"
_PARTS = ("model", "optimizer", "data", "trainer", "callbacks", "logger")
_OF_ANOTHER_FIGURE = ("model.likelihood", "model.num_classes", "trainer.limit_val_batches")


@dataclass
class Space:
    """What varies.

    Attributes:
        distributions: by key, as Optuna has them.
        choices: of those that take one of a list.
    """

    distributions: dict[str, BaseDistribution]
    choices: dict[str, list[Any]]

    def first(self) -> dict[str, Any]:
        """Return the first value of each, as values of the configuration."""
        return {
            key: self.choices[key][0] if key in self.choices else cast("Any", each).low
            for key, each in self.distributions.items()
        }

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what Optuna calls by plain names as values of the configuration."""
        return {
            key: next(each for each in self.choices[key] if _plain(each) == value)
            if key in self.choices
            else value
            for key, value in params.items()
        }


def read_space(config: dict[str, Any]) -> Space:
    """Read what varies from ``search`` in a configuration.

    A line names what ``search=default`` varies and this model doesn't have.

    Raises:
        ConfigurationError: naming the key.
    """
    space = Space({}, {})
    default: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "search" / "default.yaml"))
    usual = dict(_dimensions(default["search"]))
    for key, node in _dimensions(config["search"]):
        name = f"search.{key}"
        part, value = key.split("."), cast("Any", config)
        while part and isinstance(value, dict) and part[0] in value:
            value = value[part.pop(0)]
        if part and usual.get(key) == node:
            log.info("search=default: this model has no %s, which isn't searched", key)
            continue
        if part or isinstance(value, dict):
            raise ConfigurationError(
                f"{name}: {key} is no value of the configuration; what is searched is {_FORMS}"
            )
        if key != "data.batch_size" and (
            not key.startswith(("model.", "optimizer.", "trainer.")) or key in _OF_ANOTHER_FIGURE
        ):
            raise ConfigurationError(
                f"{name}: not offered; "
                "data.batch_size and all of model, optimizer and trainer can be searched "
                f"that leaves the figure the same, so not {', '.join(_OF_ANOTHER_FIGURE)}"
            )
        if isinstance(node, list):
            space.choices[key] = require_list(name, node, Any)
            space.distributions[key] = CategoricalDistribution([_plain(each) for each in node])
        else:
            space.distributions[key] = _range(name, node)
    if not space.distributions:
        raise ConfigurationError("search: names nothing that varies")
    return space


def _dimensions(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key that varies in dots, with what it takes."""
    for name, below in node.items():
        key = f"{prefix}{name}"
        if isinstance(below, list) or (isinstance(below, dict) and below.keys() & _RANGES.keys()):
            yield key, below
        elif isinstance(below, dict):
            yield from _dimensions(below, f"{key}.")
        else:
            raise ConfigurationError(f"search.{key}={below}: must be {_FORMS}")


def _range(name: str, node: dict[str, Any]) -> BaseDistribution:
    """Return the distribution of a whole number or a real one.

    Raises:
        ConfigurationError: it isn't written as one.
    """
    kinds = [each for each in _RANGES if each in node]
    if len(kinds) > 1 or (unknown := node.keys() - {*kinds, "log", "step"}):
        raise ConfigurationError(
            f"{name}={node}: must be {_FORMS}"
            + ("" if len(kinds) > 1 else f"; no {', '.join(unknown)}")
        )
    kind, distribution = _RANGES[kinds[0]]
    bounds: Any = Annotated[list[kind], Field(min_length=2, max_length=2)]  # type: ignore[valid-type]
    low, high = require(f"{name}.{kinds[0]}", node[kinds[0]], bounds)
    log = require(f"{name}.log", node.get("log", False), bool)
    step = require(f"{name}.step", node.get("step"), Annotated[kind, Field(gt=0)] | None)
    try:
        with warnings.catch_warnings(action="error"):  # where Optuna would move a bound
            found: BaseDistribution = distribution(
                low, high, log=log, **({"step": step} if step is not None else {})
            )
            return found
    except (ValueError, UserWarning) as error:
        raise ConfigurationError(f"{name}={node}: {error!s}") from error


def _plain(value: Any) -> Any:
    """Return a choice as Optuna keeps it: a list as text."""
    return json.dumps(value) if isinstance(value, list | dict) else value


# -- configurations --------------------------------------------------------------------------------


def of_a_trial(
    config: dict[str, Any], values: Mapping[str, Any], data_dir: str | None
) -> DictConfig:
    """Return the training configuration of a trial: the search's, with the trial's values."""
    trial = OmegaConf.create(
        {key: value for key, value in config.items() if key not in OWN}
        | {"resume": None, "sweep": None, "mirror": None}
    )
    folder = {"data.dir": data_dir} if "dir" in config["data"] else {}
    for key, value in {**values, **folder}.items():
        OmegaConf.update(trial, key, value, merge=False)
    return trial


def changes(config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ between nested containers, nested in the same way.

    None stands for a value that only ``base`` has.
    """
    found: dict[str, Any] = {}
    for key in {**base, **config}:
        value, other = config.get(key), base.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            if below := changes(value, other):
                found[key] = below
        elif value != other or type(value) is not type(other):
            found[key] = value
    return found


def first_of(found: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the first of ``changes``: its key in dots, and its value."""
    key, value = next(iter(found.items()))
    if isinstance(value, dict) and value:
        below, value = first_of(value)
        return f"{key}.{below}", value
    return key, value


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """Return a value of nested containers by its key in dots; None: there is none."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None  # type: ignore[assignment]
    return config


def typed(key: str, value: Any) -> str:
    """Return an override that sets a key to a value, as Hydra reads it."""
    if isinstance(value, str):
        return quoting.override(key, value)
    return f"{key}={_as_typed(value)}"


def _as_typed(value: Any) -> str:
    """Return what to type for a value that isn't text by itself."""
    if isinstance(value, str):
        return quoting.override("", value).removeprefix("=")
    if isinstance(value, list):
        return f"[{','.join(map(_as_typed, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_as_typed(each)}" for key, each in value.items()) + "}"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def recipe(trial: DictConfig, choices: Mapping[str, str], remarks: Sequence[str]) -> str:
    """Return an ``experiment`` with which a plain ``train`` repeats a trial.

    It holds the chosen files and the values in which the trial differs from them, as YAML.

    Args:
        trial: the configuration of the trial.
        choices: the file that was chosen, by group.
        remarks: the lines at its head.
    """
    usual: dict[str, Any] = {}
    for each in OmegaConf.load(CONFIGS / "tune.yaml").defaults:
        usual |= each if OmegaConf.is_dict(each) else {}
    # A file of the user's own is another's only by its values; so is an experiment.
    chosen = {
        group: choices[group]
        for group in _PARTS
        if choices.get(group) in {file.stem for file in (CONFIGS / group).glob("*.yaml")}
    }
    base = hydra.compose("train", [f"{group}={option}" for group, option in chosen.items()])
    containers: list[Any] = [OmegaConf.to_container(each, resolve=False) for each in (trial, base)]
    differing = changes(*containers)
    differing.get("data", {}).pop("dir", None)  # where the data lies is no part of a recipe
    others = [
        {f"override /{group}": option} for group, option in chosen.items() if option != usual[group]
    ]
    content = ({"defaults": others} if others else {}) | {
        key: value for key, value in differing.items() if value != {}
    }
    head = "".join(f"# {quoting.printable(line)}\n" for line in ("@package _global_", *remarks))
    return head + OmegaConf.to_yaml(OmegaConf.create(content))


def plan_of(
    config: DictConfig, overrides: Sequence[str], choices: Mapping[str, str | None]
) -> dict[str, Any]:
    """Return what all trials of a search have in common, in plain containers.

    Args:
        config: as it was composed.
        overrides: as they were typed.
        choices: by group, the file that was chosen.
    """
    container: Any = OmegaConf.to_container(config, resolve=False)
    if "dir" in container["data"]:  # where the data is may differ between workers
        container["data"]["dir"] = None
    return {
        "config": {key: value for key, value in container.items() if key not in BESIDE},
        "overrides": [
            each
            for each in overrides
            if key_of(each).split(".")[0] not in OWN and key_of(each) != "data.dir"
        ],
        "chosen": {group: option for group, option in choices.items() if option},
    }


def key_of(override: str) -> str:
    """Return the key of an override."""
    return override.lstrip("+~").partition("=")[0]
