"""What a command says of an error: a line or two."""

import errno
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from vae_lightning.cli.command_line import parsed, typed_line, value_of
from vae_lightning.configuration import hydra_settings
from vae_lightning.configuration.composing import group_options, outside_a_run, parse
from vae_lightning.configuration.keys import known_keys, unknown_key
from vae_lightning.configuration.quoting import override, shell_word
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


def _is_of_memory(error: Exception) -> bool:
    # torch's are RuntimeErrors of many kinds.
    if not isinstance(error, MemoryError | RuntimeError):
        return False
    words = "MemoryError|bad_alloc|Storage size|(out of|enough|allocate) memory"
    return bool(re.search(words, f"{error!r}", re.IGNORECASE))


def explain(name: str, error: Exception) -> str:
    """Say in a line or two what was wrong."""
    if _is_of_memory(error):
        return f"that needs more memory than there is ({error!s:.120})"
    if not is_reported(error):
        return f"{type(error).__name__}: {error}"
    first_line = str(error).strip().splitlines()[0].removeprefix("Error merging override ")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _not_found(error.missing_cfg_file)
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            instead = "type key=value"
            if any(each.endswith("=") for each in sys.argv[1:-1]):
                instead = "type it without spaces around ="
            elif name == "train" and (Path(error.override) / ".hydra").is_dir():
                instead = f"{override('resume', error.override)} goes on with a run"
            return f"{error.override!r}: not a setting; {instead}"
        key, _, value = error.override.partition("=")
        if found := re.fullmatch(r"\((.+)\)", value):
            return f"{error.override}: not understood; a list is typed as '{key}=[{found[1]}]'"
        quoted = override(key, value)
        if parsed(quoted) is None:
            return f"{error.override}: {key} is no key; --cfg job lists all keys"
        return f"{error.override}: not understood; as a text it is typed {shell_word(quoted)}"
    if isinstance(error, YAMLError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename and error.strerror:
        problem = f"{os.fsdecode(error.filename)}: {error.strerror}"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR):
            problem += "; hydra.run.dir=… names another directory for a run"
        return problem
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing: type {error.full_key}=…"
    if first_line.startswith("Ambiguous value"):
        return f"{first_line}: a list is typed as [2,5]; --multirun trains once for each value"
    if isinstance(error, HydraException):
        typed = typed_line()
        with suppress(HydraException, ConfigurationError), outside_a_run(typed):
            launcher = hydra_settings.settings_of(value_of("hydra/launcher", typed.overrides))
            known = known_keys(name, typed.overrides) | {
                f"hydra.launcher.{key}" for key in launcher
            }
            for key in (each.key_or_group for each in parse(typed.overrides)):
                if key not in known and (
                    not key.startswith("hydra") or (launcher and key.startswith("hydra.launcher."))
                ):
                    return unknown_key(key, known)
        # Of a type, as Hydra's own settings have them; or of a file.
        cause = str(error.__cause__ or "").partition("\n")[0]
        if first_line.endswith(":"):
            return " ".join(line.strip() for line in str(error).splitlines()[:2])
        return f"{first_line}: {cause}" if cause else first_line
    if isinstance(error, OmegaConfBaseException):
        named = error.full_key
        if named == "hydra.runtime.output_dir":  # which Hydra makes of what was typed
            named = "hydra.sweep.dir" if typed_line().multirun else "hydra.run.dir"
        return f"{named}: {first_line}" if named else first_line
    return str(error)


def _not_found(file: str) -> str:
    """Return what to say of a file of a group that is missing: ``model/nosuch``."""
    found = re.fullmatch("((?:hydra/)?[^/]+)/(.*)", file)
    if found is None:
        return f"{file}: not found"
    group, option = found.groups()
    options: list[str] = []
    with suppress(HydraException, ConfigurationError), outside_a_run(typed_line()):
        options = group_options(group)
    return f"{group}={option}: not found" + (f"; choose from {', '.join(options)}" * bool(options))
