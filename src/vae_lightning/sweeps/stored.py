"""Read what runs have left, whoever wrote it: no file makes a reader wait, crash or run code.

This module doesn't import torch.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf.errors import OmegaConfBaseException

from vae_lightning.configuration.quoting import printable

DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
    yaml.YAMLError,
    OmegaConfBaseException,
)
"""What reading a file raises that is broken off, or another than expected."""

LARGEST = 1e100
"""No figure of a run is larger; means and deviations of larger ones overflow."""

_MOST_BYTES = 10_000_000
_DEEPEST = 50
EARLIER = "written by version 0.1, and only version 0.1 summarizes it"


@dataclass
class Measured:
    """What is in a run's ``metrics.json``.

    Attributes:
        figures: single figures by name, finite.
        protocol: how they were measured.
        described: label, unit and better direction of each figure, by its name.
        criterion: the test figure that such runs are compared by.
        terms: the test figures that are shown with it.
    """

    figures: dict[str, float]
    protocol: dict[str, Any]
    described: dict[str, dict[str, str]]
    criterion: str
    terms: list[str]


def text(file: Path, most: int = _MOST_BYTES, end: int | None = None) -> str:
    """Return the text of a file, or of its end only.

    Args:
        file: a regular file, or a link to one. Nothing else is waited for.
        most: how many bytes it may hold.
        end: how many of its last bytes are read, whatever it holds.

    Raises:
        OSError: it can't be read.
        ValueError: it isn't a regular file, is too large, or isn't UTF-8.
    """
    with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
        status = os.fstat(opened.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if end is not None:
            opened.seek(max(0, status.st_size - end))
            return opened.read(end).decode(errors="replace")
        content = opened.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most:,} bytes")
    return content.decode()


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads plain values, and refuses a key that is there twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            raise ValueError("a key is there twice")
        return mapping


def load_yaml(file: Path) -> Any:
    """Read a file as OmegaConf writes it, in a tenth of the time that OmegaConf takes.

    Raises:
        Exception: one of ``DAMAGE``.
    """
    content, depth = text(file), 0
    for event in yaml.parse(content, Loader=_Loader):  # deep nesting would crash the next line
        if isinstance(event, yaml.AliasEvent):  # a few of them can stand for terabytes
            raise ValueError(f"*{event.anchor} refers to another place, which no run writes")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} levels deep")
    return _Loader(content).get_single_data()


def load_configuration(directory: Path) -> dict[str, Any]:
    """Return the stored configuration of a run, its references unresolved.

    Raises:
        Exception: one of ``DAMAGE``.
    """
    config = load_yaml(directory / ".hydra" / "config.yaml")
    if not isinstance(config, dict):
        raise TypeError("holds no keys")
    return config


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a configuration, whole lists among them, by dotted key."""
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def is_quick_pass(directory: Path) -> bool:
    """Return whether a run was trained with ``trainer.fast_dev_run``, so that it measures nothing.

    Raises:
        Exception: one of ``DAMAGE``.
    """
    trainer = load_configuration(directory).get("trainer")
    return isinstance(trainer, dict) and is_quick(trainer.get("fast_dev_run"))


def is_quick(fast_dev_run: Any) -> bool:
    """Return whether a value of ``trainer.fast_dev_run`` leaves out most batches."""
    return isinstance(fast_dev_run, int) and fast_dev_run > 0


def measured(directory: Path) -> Measured:
    """Read the ``metrics.json`` of a run. Its texts are made printable.

    Raises:
        Exception: one of ``DAMAGE``.
    """
    content = json.loads(text(directory / "metrics.json"), object_pairs_hook=_unique)
    if "described" not in content:
        raise ValueError(EARLIER)
    figures = {}
    for name, value in content["figures"].items():
        if isinstance(value, list):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} is no number")
        if not math.isfinite(value) or abs(value) > LARGEST:
            raise ValueError(f"{name} is {value}")
        figures[printable(name)] = float(value)
    criterion, terms = content["comparison"], content["terms"]
    if not (isinstance(terms, list) and all(isinstance(each, str) for each in (criterion, *terms))):
        raise TypeError("comparison and terms don't name figures")
    return Measured(
        figures,
        {**content["protocol"], "test_examples": content["run"].get("test_examples")},
        {
            printable(name): {key: printable(how[key]) for key in ("label", "unit", "better")}
            for name, how in content["described"].items()
        },
        printable(criterion),
        [printable(each) for each in terms],
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(keys := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return keys


def problem_of(error: Exception) -> str:
    """Return what is wrong with a file, in a line of reasonable length."""
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())}")[:300]
