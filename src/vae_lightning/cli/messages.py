"""What a command says of an error: a line or two."""

import re
from contextlib import suppress

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from vae_lightning.cli.command_line import typed_line, value_of
from vae_lightning.configuration import hydra_settings
from vae_lightning.configuration.composing import outside_a_run, parse
from vae_lightning.configuration.keys import known_keys, unknown_key
from vae_lightning.errors import ConfigurationError


def is_reported(error: Exception) -> bool:
    """Return whether an error is reported in a line or two.

    Any other error is a bug in the project and keeps its traceback.
    """
    if isinstance(
        error,
        ConfigurationError
        | HydraException
        | OmegaConfBaseException
        | YAMLError
        | FloatingPointError
        | OSError,
    ):
        return True
    return _is_of_memory(error)


def without_password(text: str) -> str:
    """Return a text without the passwords of the addresses in it."""
    return re.sub(r"(://[^\s:/@]*):\S*@", r"\1:***@", text)


def _is_of_memory(error: Exception) -> bool:
    # torch's are RuntimeErrors of many kinds.
    if not isinstance(error, MemoryError | RuntimeError):
        return False
    return bool(re.search("memory|Storage size", f"{error!r}", re.IGNORECASE))


def explain(name: str, error: Exception) -> str:
    """Say in a line or two what was wrong."""
    if _is_of_memory(error):
        return f"that needs more memory than there is ({error!s:.120})"
    if not is_reported(error):
        return f"{type(error).__name__}: {error}"
    first_line = str(error).strip().splitlines()[0]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return (
            f"{group}={option}: there is none of that name; "
            f"choose from {', '.join(error.options or ())}"
        )
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            return f"{error.override!r} is no override: write key=value"
        key, _, value = error.override.partition("=")
        return (
            f"{error.override}: not understood; "
            f"a value with signs that mean something to Hydra is quoted: '{key}=\"{value}\"'"
        )
    if isinstance(error, YAMLError):
        return " ".join(str(error).split())
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing: write {error.full_key}=…"
    if first_line.startswith("Ambiguous value"):
        return (
            f"{first_line}: a list is written [2,5]; "
            "several runs, one for each value, are asked for by --multirun"
        )
    if isinstance(error, HydraException):
        typed = typed_line()
        with suppress(HydraException), outside_a_run(typed):
            launcher = hydra_settings.settings_of(value_of("hydra/launcher", typed.overrides))
            known = known_keys(name, typed.overrides) | {
                f"hydra.launcher.{key}" for key in launcher
            }
            for key in (each.key_or_group for each in parse(typed.overrides)):
                if key not in known and (
                    not key.startswith("hydra") or (launcher and key.startswith("hydra.launcher."))
                ):
                    return unknown_key(key, known)
        cause = str(error.__cause__ or "").partition("\n")[
            0
        ]  # of a type, as Hydra's own settings have them
        return f"{first_line}: {cause}" if cause else first_line
    return str(error)
