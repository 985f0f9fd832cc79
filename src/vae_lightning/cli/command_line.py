"""The command line as Hydra reads it."""

from collections.abc import Sequence
from typing import Any

from hydra._internal.utils import get_args_parser  # the only way to read it as Hydra does


def typed_line() -> Any:
    """Return the command line as Hydra reads it: ``overrides``, ``multirun`` and so on."""
    return get_args_parser().parse_known_intermixed_args()[0]


def value_of(key: str, overrides: Sequence[str]) -> str | None:
    """Return what was typed for a key, without quotes."""
    values = [
        each.partition("=")[2] for each in overrides if each.lstrip("+").startswith(f"{key}=")
    ]
    return values[-1].strip("'\"") if values and values[-1] != "null" else None
