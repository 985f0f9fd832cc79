"""Building what a configuration names, from values that are checked first."""

import importlib
import inspect
import math
import os
import typing
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from vae_lightning.configuration import targets
from vae_lightning.configuration.quoting import printable
from vae_lightning.errors import ConfigurationError

Part = TypeVar("Part")

OwnClass = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")]
"""The full name of a class of the user's own, where a name of ours may stand as well."""


def build_part(group: str, kind: type[Part], config: DictConfig, **others: Any) -> Part:
    """Build the class that a configuration group names, with values checked by its signature.

    Args:
        group: the group's key, to name in an error.
        kind: what the class must be.
        config: the group.
        **others: values that are not the user's, taken unchecked.

    Raises:
        ConfigurationError: naming the key, its value and what would be right.
    """
    values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    constructor = class_of(f"{group}._target_", values.pop("_target_", None), kind)
    hints = typing.get_type_hints(constructor.__init__, include_extras=True)
    for key, value in values.items():
        if value == "???":
            raise ConfigurationError(f"{group}.{key} is missing: type {group}.{key}=…")
        if key not in hints:
            raise ConfigurationError(
                f"unknown key {group}.{key}: {constructor.__name__} takes no such value"
            )
        require(f"{group}.{key}", value, hints[key])
    for key, parameter in inspect.signature(constructor).parameters.items():
        is_named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if is_named and parameter.default is parameter.empty and key not in {**values, **others}:
            raise ConfigurationError(f"{group}.{key} is missing: type {group}.{key}=…")
    try:
        return constructor(**{**values, **others})
    except ConfigurationError:  # which names its key
        raise
    except (ValueError, MisconfigurationException, ImportError) as error:
        problem = _first_line(error)
        separator = (
            "." if problem.partition("=")[0] in values else ": "
        )  # our own parts name the key first
        raise ConfigurationError(f"{group}{separator}{problem}") from error


def _first_line(error: Exception) -> str:
    """Return what an error says, of a wrong type which argument it was."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}={printable(first['input'])}: {first['msg']}"
    return str(error).splitlines()[0]


def class_of(key: str, target: Any, kind: type[Part]) -> type[Part]:
    """Return the class that a configuration or a checkpoint names.

    Args:
        key: what names it, for the error.
        target: its full name.
        kind: what it must be a subclass of.

    Raises:
        ConfigurationError: it isn't on the list of allowed targets, or is of another kind.
    """
    if target is None:
        raise ConfigurationError(
            f"{printable(key)} is missing: a file of your own names a class, or begins with "
            "another file's settings, as defaults: [vae]"
        )
    named = f"{printable(key)}={printable(target)}"
    if not targets.is_allowed(target):
        raise ConfigurationError(f"{named}: {targets.refusal(printable(target))}")
    try:
        module, _, name = str(target).rpartition(".")
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # what a user's module can raise has no end
        problem = printable(error)[:200].strip() or type(error).__name__
        raise ConfigurationError(f"{named}: can't be imported ({problem})") from error
    if not isinstance(found, type):
        raise ConfigurationError(f"{named}: is no class")
    if target not in targets.TARGETS and not targets.lies_in_allowed(found.__module__):
        raise ConfigurationError(
            f"{named}: is of {found.__module__}, which isn't allowed; a class must be defined in "
            "the allowed package"
        )
    if not issubclass(found, kind):
        raise ConfigurationError(f"{named}: must be {_a(kind.__name__)}")
    return found


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def require_list(key: str, value: Any, kind: Any) -> Any:
    """Return a list of a configuration if it isn't empty and its elements are of a type.

    Raises:
        ConfigurationError: naming the key, its value and what would be right.
    """
    if isinstance(value, str):
        require(key, [value], list[kind])
        raise ConfigurationError(
            f"{key}={value}: must be a list, in most shells with quotes: '{key}=[{value}]'"
        )
    values = OmegaConf.to_container(value) if OmegaConf.is_list(value) else value
    return require(key, values, Annotated[list[kind], Field(min_length=1)])


def require(key: str, value: Any, kind: Any) -> Any:
    """Return a value if it is of a type, ranges included.

    Raises:
        ConfigurationError: naming the key, its value and what would be right.
    """
    typed = f"{key}={printable(value)}"
    adapter = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        accepted = adapter.validate_python(value, strict=True)
    except ValidationError as error:
        if isinstance(value, int | float | str) and all(map(_wants_list, error.errors())):
            raise ConfigurationError(
                f"{typed}: must be a list, in most shells with quotes: '{key}=[{printable(value)}]'"
            ) from error
        found = error.errors()
        of_names = [each for each in found if each["type"] != "string_pattern_mismatch"]
        problems = dict.fromkeys(
            each["msg"].replace("Input should", "must").replace("Value should", "must")
            for each in of_names or found
        )
        raise ConfigurationError(f"{typed}: {', or '.join(problems)}") from error
    if any(abs(number) >= 2**53 for number in _whole_numbers(value)):
        raise ConfigurationError(
            f"{typed}: must be below 2^53, past which neither torch nor Lightning counts"
        )
    if any(math.isfinite(number) and not _fits(number) for number in _floats(value)):
        raise ConfigurationError(
            f"{typed}: must be 0, or of a size from 1.2e-38 to 3.4e38, as float32 holds"
        )
    if not all(map(math.isfinite, _floats(value))):  # which the types of other packages allow
        raise ConfigurationError(f"{typed}: must be a finite number")
    return accepted


def require_memory(settings: str, numbers: int) -> None:
    """Check that so many float32 numbers fit into memory.

    The system may end a process that takes more, without a word.

    Args:
        settings: what decides on their number, for the error.
        numbers: how many there are at the same time.

    Raises:
        ConfigurationError: they don't fit.
    """
    needed, there = 4 * numbers, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ConfigurationError(
            f"{settings}: at least {needed / 1e9:,.0f} GB of memory, "
            f"and there are {there / 1e9:,.0f}"
        )


def _wants_list(problem: ErrorDetails) -> bool:
    """Return whether all that is wrong with a value is that it isn't a list."""
    wanted = problem.get("ctx", {}).get("class")
    return problem["type"] in ("list_type", "sequence_str") or wanted == "Sequence"


def _whole_numbers(value: Any) -> Iterator[int]:
    """Yield the whole numbers in a value, however deep."""
    return (each for each in _scalars(value) if isinstance(each, int))


def _floats(value: Any) -> Iterator[float]:
    """Yield the numbers in a value that aren't whole, however deep."""
    return (each for each in _scalars(value) if isinstance(each, float))


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _scalars(each)
    else:
        yield value


def _fits(number: float) -> bool:
    """Return whether float32, in which models compute, holds a number with all its digits."""
    return number == 0 or 2**-126 <= abs(number) <= (2 - 2**-23) * 2.0**127
