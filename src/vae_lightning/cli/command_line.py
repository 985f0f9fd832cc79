"""The command line as Hydra reads it, and as people type it."""

import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser  # the only way to read it as Hydra does
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_lightning.configuration import elsewhere, targets
from vae_lightning.configuration.composing import groups_of, outside_a_run
from vae_lightning.configuration.keys import known_keys
from vae_lightning.configuration.paths import PATHS, expanded, takes_path
from vae_lightning.configuration.quoting import override, shell_word
from vae_lightning.errors import ConfigurationError

_HYDRAS_OWN = re.compile(r"['\"\\$]")
"""The signs by which a value is a quoted text or a reference."""


def typed_line() -> Any:
    """Return the command line as Hydra reads it: ``overrides``, ``multirun`` and so on."""
    return _read()[0]


def _read() -> tuple[Any, list[str]]:
    """Return the command line as Hydra reads it, and the flags that Hydra doesn't know.

    Raises:
        ConfigurationError: a flag lacks its value, or has a wrong one.
    """
    parser = get_args_parser()
    parser.exit_on_error = False
    parser.allow_abbrev = False  # --config and --exp are other projects' flags
    try:
        return parser.parse_known_intermixed_args()
    except ArgumentError as error:
        problem = error.message.replace("_", "-")
        raise ConfigurationError(f"{error.argument_name or 'options'}: {problem}") from error


def value_of(key: str, overrides: Sequence[str]) -> str | None:
    """Return what was typed for a key as Hydra reads it; None: nothing, or ``null``.

    The choices of a sweep are returned as typed, and so is a reference that has no value yet.
    """
    typed = [each for each in overrides if each.lstrip("+").startswith(f"{key}=")]
    if not typed:
        return None
    [found] = OverridesParser.create().parse_overrides(typed[-1:])
    value: Any = found.value()
    if found.is_sweep_override():
        return typed[-1].partition("=")[2]
    setup_globals()  # ${now:…} has a value then
    with suppress(OmegaConfBaseException):
        value = OmegaConf.create({"value": value}).value
    return None if value is None else str(value)


def arrange(name: str, positional: str | None, several: bool) -> None:
    """Rewrite the command line so that Hydra reads what was meant.

    Hydra takes overrides on one side of the flags only, but people type them on both. It takes a
    path for an expression, merges what a search varies, and refuses null for every group, though
    null is the default of ``experiment``.

    Args:
        name: of the command.
        positional: the key that receives paths typed without a key.
        several: whether that key takes several paths.

    Raises:
        ConfigurationError: an argument is refused.
    """
    for each in sys.argv[1:]:
        try:
            each.encode()
        except UnicodeEncodeError as error:
            raise ConfigurationError(
                f"{each!r}: no text in this terminal's encoding; type LC_ALL=C.UTF-8 before python"
            ) from error
    typed, unknown = _read()
    if unknown:
        raise ConfigurationError(_answer_flag(name, unknown[0], typed))
    overrides: list[str] = typed.overrides
    _refuse_split_lists(overrides)
    overrides = _without_allowed(overrides)
    if positional:
        overrides = _name_paths(name, positional, several, overrides)
    _refuse_repetitions(overrides)
    meant = [_as_meant(name, each, typed.multirun) for each in overrides]
    arranged = [part for each in meant if not _is_no_recipe(each) for part in _replacing(each)]
    sys.argv[1:] = [*arranged, *_flags(typed)]


def _without_allowed(overrides: Sequence[str]) -> list[str]:
    """Allow the packages that ``allow=[my_package]`` names, and return the other overrides.

    So it is on no list of overrides that is stored. The processes that Lightning starts for this
    one find what was typed here in their environment.
    """
    typed = [each for each in overrides if re.match(r"\+*allow=", each)]
    _refuse_repetitions(typed)
    if typed or "LOCAL_RANK" not in os.environ:
        value = typed[0].partition("=")[2].strip() if typed else "[]"
        if value.startswith("[") and value.endswith("]"):
            value = value[1:-1]
        targets.allow([each.strip(" '\"") for each in value.split(",") if each.strip()])
    return [each for each in overrides if each not in typed]


def _flags(typed: Any) -> list[str]:
    """Return the flags of a command line."""
    flags = [
        f"--{each.replace('_', '-')}"
        for each in ("run", "multirun", "resolve", "shell_completion")
        if getattr(typed, each)
    ]
    for each in ("cfg", "package", "config_dir", "info"):
        if (value := getattr(typed, each)) is not None:
            value = expanded(value) if each == "config_dir" else value
            flags.append(f"--{each.replace('_', '-')}={value}")
    return flags


def _answer_flag(name: str, flag: str, typed: Any) -> str:
    """Return what to type for a flag as other projects have it: ``--epochs 3``."""
    word, equals, value = flag.lstrip("-").partition("=")
    line = sys.argv[1:]
    beside = line[line.index(flag) + 1 :] if flag in line and not equals else []
    if beside and not beside[0].startswith("-") and "=" not in beside[0]:
        value, flag = beside[0], f"{flag} {beside[0]}"
    with outside_a_run(typed):
        known = known_keys(name, [])
    plain = word.replace("-", "_")
    instead = plain if plain in known else elsewhere.instead_of(word, known)
    if instead is None:
        ends = [each for each in known if each.rpartition(".")[2] == plain]
        instead = ends[0] if len(ends) == 1 else None
    if instead is None:
        why = elsewhere.why_absent(word)
        return f"{flag}: {why or 'not an option; settings are typed as key=value, see --help'}"
    typed_here = instead if "=" in instead else f"{instead}={value or '…'}"
    return f"{flag}: settings are typed without dashes: {typed_here}"


def _refuse_split_lists(overrides: Sequence[str]) -> None:
    """Refuse ``key=[400, 200]`` without quotes, which the shell makes two arguments of."""
    for number, first in enumerate(overrides):
        key, _, value = first.partition("=")
        if not value.startswith(("[", "{")) or takes_path(key) or _is_closed(value):
            continue
        for end in range(number + 2, len(overrides) + 1):
            parts = overrides[number:end]
            if _is_closed(" ".join(parts)):
                raise ConfigurationError(
                    f"{' '.join(parts)}: the shell has split it at its spaces; "
                    f"type {shell_word(''.join(parts))}"
                )


def _is_closed(text: str) -> bool:
    return all(text.count(one) == text.count(other) for one, other in ("[]", "{}"))


def _name_paths(name: str, key: str, several: bool, overrides: Sequence[str]) -> list[str]:
    """Make the paths that were typed without a key the value of a key.

    A path is an argument without ``=``, or one that exists under exactly the typed name.

    Raises:
        ConfigurationError: the key was typed as well, or takes one path only.
    """
    paths = [
        each
        for each in overrides
        if ("=" not in each and (not each.startswith("~") or each.startswith("~/")))
        or Path(each).exists()
    ]
    rest = [each for each in overrides if each not in paths]
    if not paths:
        return rest
    if named := next((each for each in rest if each.lstrip("+").startswith(f"{key}=")), None):
        raise ConfigurationError(f"{named}, {paths[0]}: both name the {key}; keep one")
    if len(paths) > 1 and not several:
        raise ConfigurationError(
            f"{' '.join(paths)}: {name} takes one {key}; other settings are typed as key=value"
        )
    if len(paths) == 1 and not several:
        return [*rest, override(key, expanded(paths[0]))]
    quoted = (QuotedString(expanded(path), Quote.single).with_quotes() for path in paths)
    return [*rest, f"{key}=[{','.join(quoted)}]"]


def _as_meant(name: str, typed: str, multirun: bool) -> str:
    """Return an override as Hydra has to read it.

    A path may hold any sign: where Hydra wouldn't read it as this very text, it is quoted. Quotes
    and references are Hydra's, and so are several values with ``--multirun``. A ``~`` at its start
    is the home directory.

    Raises:
        ConfigurationError: a path is empty.
    """
    prefix, key, value = _parts(typed)
    if key == "callbacks" and prefix == "+" and re.fullmatch(r"\w+", value or ""):
        return f"callbacks=[default,{value}]"  # in addition to those of a run
    if key in groups_of(name):
        return f"{key}={value}" if prefix in ("+", "++") else typed
    if prefix == "~" or not takes_path(key) or value is None:
        return typed
    if not value:
        raise ConfigurationError(f"{typed}: empty; type a path, or leave out {key}=")
    value, prefix = expanded(value), "" if key in PATHS else prefix
    found = parsed(f"{key}={value}")
    meaning = None if found is None else found.value()
    if meaning == "":
        raise ConfigurationError(f"{typed}: empty; type a path, or leave out {key}=")
    if found is not None and found.is_sweep_override():
        if multirun and not key.startswith(("hydra.", "sweep")):
            return f"{prefix}{key}={value}"
    elif found is not None and (
        meaning is None or (key in ("sweep", "data.file") and isinstance(meaning, list))
    ):
        return f"{prefix}{key}={value}"
    elif isinstance(meaning, str) and _HYDRAS_OWN.search(value):
        home = override(key, expanded(meaning)) if meaning.startswith("~") else f"{key}={value}"
        return f"{prefix}{home}"
    if found is not None and meaning == value:
        return f"{prefix}{key}={value}"
    return f"{prefix}{override(key, value)}"


def _parts(typed: str) -> tuple[str, str, str | None]:
    """Return the prefix of an override, its key, and its value; None: it has none."""
    key, equals, value = typed.partition("=")
    plain = key.lstrip("+~")
    return key.removesuffix(plain), plain, value if equals else None


def parsed(typed: str) -> Override | None:
    """Return an override as Hydra reads it; None: Hydra can't."""
    try:
        return OverridesParser.create().parse_overrides([typed])[0]
    except HydraException:
        return None


def _is_no_recipe(typed: str) -> bool:
    found = parsed(typed) if typed.startswith("experiment=") else None
    return found is not None and not found.is_sweep_override() and found.value() is None


def _refuse_repetitions(overrides: Sequence[str]) -> None:
    """Refuse a key that is typed twice, of which Hydra would take the last.

    Raises:
        ConfigurationError: naming both.
    """
    if any(each.startswith("hydra.job.name=train_ddp_process_") for each in overrides):
        return  # of a process that Lightning has started by this one's line and settings of its own
    seen: dict[str, str] = {}
    for each in overrides:
        key = _parts(each)[1]
        if key in seen:
            raise ConfigurationError(f"{seen[key]}, {each}: {key} is typed twice; keep one")
        seen[key] = each


def _replacing(typed: str) -> list[str]:
    """Return an override as it is, or as two if it sets what a search varies.

    The two add the key if it is missing, and replace its value where Hydra would merge.
    """
    key, _, value = typed.partition("=")
    return [f"++{key}=null", f"++{key}={value}"] if key.startswith("search.") and value else [typed]
