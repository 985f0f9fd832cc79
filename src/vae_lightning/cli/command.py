"""Run a command with the typed configuration, once or for each job of a sweep.

This module doesn't import torch, so ``--help`` and a mistyped key are answered at once.
"""

import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vae_lightning import __version__
from vae_lightning.cli.command_line import arrange, typed_line, value_of
from vae_lightning.cli.messages import explain, is_reported
from vae_lightning.cli.multirun import run_sweep
from vae_lightning.configuration import hydra_settings, targets
from vae_lightning.configuration.composing import CONFIGS
from vae_lightning.configuration.idle import idle_settings
from vae_lightning.configuration.keys import check, check_typed
from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import printable_lines, without_password
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import signals, streams
from vae_lightning.runs.directory import nearest_standing, remove_if_empty

log = logging.getLogger(__name__)


def command(
    name: str, positional: str | None = None, several: bool = False, no_sweep: str = ""
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a command-line program of a function that takes a configuration.

    A mistake ends the program with exit code 1 and a line or two. With ``HYDRA_FULL_ERROR=1`` it
    prints the whole traceback.

    Args:
        name: the command's root file in ``configs/``.
        positional: the key that receives paths typed without a key.
        several: whether that key takes several paths.
        no_sweep: why the command can't run with ``--multirun``; empty if it can.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            streams.install()
            allowed = targets.allowed()
            traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises in place of printing
            try:
                if _answer(name):
                    return
                if "${" in os.getcwd():
                    raise ConfigurationError(
                        "the name of this folder, or of one above it, has ${ in it, which Hydra "
                        "reads as a reference; work in another folder"
                    )
                with signals.heeded():
                    _refuse_flags(typed_line())
                    arrange(name, positional, several)
                    _run(name, task, no_sweep)
            except Exception as error:
                if traceback_wanted or not is_reported(error):
                    raise
                sys.exit(printable_lines(f"error: {without_password(explain(name, error))}"))
            except KeyboardInterrupt:
                sys.exit(130)
            finally:
                targets.allow(allowed)  # what was typed holds for this command alone

        return main

    return decorate


_TYPED_ONLY = {"train": "resume", "tune": "storage"}
"""What a command takes from the command line only."""


def _answer(name: str) -> bool:
    """Answer what needs no configuration, and return whether that was all."""
    if "--version" in sys.argv[1:]:
        print(f"vae-lightning {__version__}")
        return True
    if {"-h", "--help"} & set(sys.argv[1:]):
        # Hydra would print the same text, but first compose and print the whole configuration.
        # That takes twice the time.
        print(OmegaConf.load(CONFIGS / f"{name}.yaml").hydra.help.template)
        return True
    return False


def _run(name: str, task: Callable[[DictConfig], None], no_sweep: str) -> None:
    """Run a task under Hydra, once or for each job of a sweep."""
    typed = typed_line()
    hydra_settings.install()
    if typed.shell_completion:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(task)()
        return
    multirun = typed.multirun or value_of("hydra.mode", typed.overrides) == "MULTIRUN"
    launcher = value_of("hydra/launcher", typed.overrides)
    offered = [known or "basic" for known in hydra_settings.LAUNCHERS.values()]
    if launcher and launcher not in offered:
        raise ConfigurationError(
            f"hydra/launcher={launcher}: not found; choose from {', '.join(offered)}"
        )
    if typed.overrides:
        check_typed(name, typed)
    if multirun and no_sweep:
        raise ConfigurationError(f"--multirun: {no_sweep}")
    if not (typed.cfg or typed.info):
        _refuse_idle_settings(typed.overrides, multirun)
    if multirun:
        run_sweep(name, task, typed)
        return
    named = [value_of(key, typed.overrides) for key in ("hydra.run.dir", "study")]
    standing = nearest_standing(expanded(next(filter(None, named), ".")))
    failures: list[Exception] = []

    def checked(config: DictConfig) -> None:
        try:
            overrides: Any = OmegaConf.to_container(
                HydraConfig.get().overrides.task
            )  # list() would resolve what they refer to
            check(name, config, overrides)
            # Not what the configuration notes as typed: a recipe can add to that.
            key = _TYPED_ONLY.get(name)
            if key and config[key] is not None and value_of(key, typed.overrides) is None:
                raise ConfigurationError(
                    f"{key}: comes from a recipe or a folder of configurations, and is taken only "
                    f"from the command line; type {key}=…, or {key}=null"
                )
            if "LOCAL_RANK" not in os.environ:  # of several processes the first one says it
                for line in idle_settings(config, overrides):
                    log.warning(line)
            if HydraConfig.get().run.dir == ".":  # another Hydra has made
                signals.leave_to_system()
            os.environ.pop(
                "HYDRA_FULL_ERROR"
            )  # or processes that the task starts would take it for the user's
            if name != "summarize" and sys.stderr.isatty() and "LOCAL_RANK" not in os.environ:
                print("Loading PyTorch …", file=sys.stderr, flush=True)  # summarize needs none
            task(config)
        except BaseException as error:
            remove_if_empty(Path(HydraConfig.get().runtime.output_dir), standing)
            if not isinstance(error, Exception):
                raise
            failures.append(error)

    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(checked)()
    if failures:
        raise failures[0]  # here, where Hydra adds no lines of its own to it


def _refuse_flags(typed: Any) -> None:
    """Refuse flags that aren't offered, and those that don't go together.

    Raises:
        ConfigurationError: naming them.
    """
    if typed.experimental_rerun:
        raise ConfigurationError(
            "--experimental-rerun would run code from a file; repeat the command line instead"
        )
    if typed.config_path or typed.config_name:
        raise ConfigurationError(
            "--config-path, --config-name: not offered; "
            "--config-dir adds a folder of configurations"
        )
    if typed.hydra_help:
        raise ConfigurationError(
            "--hydra-help: not offered; --help lists the settings that matter most, "
            "--cfg job all of them"
        )
    shown = {
        "--run": typed.run,
        "--multirun": typed.multirun,
        "--cfg": typed.cfg,
        "--info": typed.info,
        "--shell-completion": typed.shell_completion,
    }
    if len(both := [flag for flag, value in shown.items() if value]) > 1:
        raise ConfigurationError(f"{', '.join(both)}: don't go together; keep one")
    if not typed.cfg and (
        alone := "--resolve" * typed.resolve or "--package" * bool(typed.package)
    ):
        raise ConfigurationError(f"{alone}: changes only what --cfg job prints; type both")


def _refuse_idle_settings(overrides: Sequence[str], multirun: bool) -> None:
    """Refuse settings that only a sweep has, without one, and the other way round.

    Raises:
        ConfigurationError: naming the setting.
    """
    for each in overrides:
        key = each.lstrip("+").partition("=")[0]
        if not multirun and re.match(r"hydra[/.](launcher|sweep|sweeper)\b", key):
            raise ConfigurationError(f"{each}: only of a sweep, so with --multirun")
        if multirun and key == "hydra.run.dir":
            directory = each.partition("=")[2]
            raise ConfigurationError(
                f"{each}: of a single run; a sweep has hydra.sweep.dir={directory}"
            )
