"""Run a command with the typed configuration, once or for each job of a sweep.

This module doesn't import torch, so ``--help`` and a mistyped key are answered at once.
"""

import functools
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from vae_lightning import __version__
from vae_lightning.cli.command_line import typed_line, value_of
from vae_lightning.cli.messages import explain, is_reported, without_password
from vae_lightning.cli.multirun import run_sweep
from vae_lightning.configuration import hydra_settings
from vae_lightning.configuration.composing import CONFIGS
from vae_lightning.configuration.keys import check, check_typed
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import signals
from vae_lightning.runs.directory import (
    nearest_standing,
    remove_if_empty,
)

log = logging.getLogger(__name__)


def command(
    name: str, positional: str | None = None, no_sweep: str = ""
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a command-line program of a function that takes a configuration.

    A mistake ends the program with exit code 1 and a line or two. With ``HYDRA_FULL_ERROR=1`` it
    prints the whole traceback.

    Args:
        name: the command's root file in ``configs/``.
        positional: the key that receives paths typed without a key.
        no_sweep: why the command can't run with ``--multirun``; empty if it can.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises in place of printing
            try:
                with signals.heeded():
                    _run(name, task, positional, no_sweep)
            except Exception as error:
                if traceback_wanted or not is_reported(error):
                    raise
                sys.exit(f"error: {without_password(explain(name, error))}")
            except KeyboardInterrupt:
                sys.exit(130)

        return main

    return decorate


def _run(
    name: str, task: Callable[[DictConfig], None], positional: str | None, no_sweep: str
) -> None:
    """Run a task under Hydra, once or for each job of a sweep."""
    if "--version" in sys.argv[1:]:
        print(f"vae-lightning {__version__}")
        return
    if {"-h", "--help"} & set(sys.argv[1:]):
        # Hydra would print the same text, but first compose and print the whole configuration.
        # That takes twice the time.
        print(OmegaConf.load(CONFIGS / f"{name}.yaml").hydra.help.template)
        return
    if positional:
        _name_paths(positional)
    # Hydra takes overrides on one side of the flags only, but people type them on both. It refuses
    # null for every group, though null is the default of experiment.
    overrides = typed_line().overrides
    flags = [each for each in sys.argv[1:] if each not in overrides]
    sys.argv[1:] = [
        *(part for each in overrides if each != "experiment=null" for part in _replacing(each)),
        *flags,
    ]
    typed = typed_line()
    if typed.experimental_rerun:
        raise ConfigurationError(
            "--experimental-rerun would run code from a file; repeat the command line instead"
        )
    if typed.config_path or typed.config_name:
        raise ConfigurationError(
            "--config-path, --config-name: not offered; "
            "--config-dir adds a folder of configurations"
        )
    hydra_settings.install()
    for override in typed.overrides:
        group = override.removeprefix("~").partition("=")[0]
        if (CONFIGS / group).is_dir() and (override.startswith("~") or override.endswith("=null")):
            options = ", ".join(sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")))
            raise ConfigurationError(
                f"{override}: a group can't be left out; choose from {options}"
            )
    offered = [known or "basic" for known in hydra_settings.LAUNCHERS.values()]
    if (launcher := value_of("hydra/launcher", typed.overrides)) and launcher not in offered:
        raise ConfigurationError(
            f"hydra/launcher={launcher}: there is none of that name; "
            f"choose from {', '.join(offered)}"
        )
    if typed.overrides and not typed.cfg:
        check_typed(name, typed)
    if typed.multirun or "hydra.mode=MULTIRUN" in typed.overrides:
        if no_sweep:
            raise ConfigurationError(f"--multirun: {no_sweep}")
        run_sweep(name, task, typed)
        return
    if launcher and not (typed.cfg or typed.info):
        raise ConfigurationError(
            f"hydra/launcher={launcher}: runs the jobs of a sweep, so with --multirun"
        )
    standing = nearest_standing(value_of("hydra.run.dir", typed.overrides) or ".")
    failures: list[Exception] = []

    def checked(config: DictConfig) -> None:
        try:
            overrides: Any = OmegaConf.to_container(
                HydraConfig.get().overrides.task
            )  # list() would resolve what they refer to
            check(name, config, overrides)
            if HydraConfig.get().run.dir == ".":  # another Hydra has made
                signals.leave_to_system()
            os.environ.pop(
                "HYDRA_FULL_ERROR"
            )  # or processes that the task starts would take it for the user's
            task(config)
        except BaseException as error:
            remove_if_empty(Path(HydraConfig.get().runtime.output_dir), standing)
            if not isinstance(error, Exception):
                raise
            failures.append(error)

    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(checked)()
    if failures:
        raise failures[0]  # here, where Hydra adds no lines of its own to it


def _name_paths(key: str) -> None:
    """Collect the typed paths into a list, and make that the value of a key.

    A path is an argument without ``=``, or one that exists under exactly the typed name.

    Raises:
        ConfigurationError: the key was typed as well.
    """
    overrides = typed_line().overrides
    paths = [each for each in overrides if "=" not in each or Path(each).exists()]
    if paths and (named := value_of(key, [each for each in overrides if each not in paths])):
        raise ConfigurationError(
            f"{key}={named}: names another beside {paths[0]}; leave out {key}="
        )
    if paths:
        values = ",".join(QuotedString(path, Quote.single).with_quotes() for path in paths)
        sys.argv[1:] = [*(each for each in sys.argv[1:] if each not in paths), f"{key}=[{values}]"]


def _replacing(override: str) -> list[str]:
    """Return an override as it is, or as two if it sets what a search varies.

    The two add the key if it is missing, and replace its value where Hydra would merge.
    """
    key, _, value = override.partition("=")
    return (
        [f"++{key}=null", f"++{key}={value}"] if key.startswith("search.") and value else [override]
    )
