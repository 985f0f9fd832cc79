"""Run a command with the configuration that was typed, once or for each job of a sweep. No torch in this room.

So ``--help`` and a mistyped key are answered at once.
"""

import functools
import gc
import logging
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser  # the one way to read the command line as Hydra does
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from vae_lightning import guard, interruption, launchers, sweeps
from vae_lightning.configuration import (
    CONFIGS,
    ConfigurationError,
    check,
    check_typed,
    is_group,
    known_keys,
    outside_a_run,
    parse,
    unknown_key,
)
from vae_lightning.directories import make_directory, nearest_standing, remove_if_empty

log = logging.getLogger(__name__)


def command(
    name: str, positional: str | None = None, no_sweep: str = ""
) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a command line of a function of a configuration.

    Args:
        name: its root file in ``configs/``.
        positional: the key that a path is for which is typed without one, or several are.
        no_sweep: of a command without ``--multirun``, why.

    A mistake ends it with exit code 1 and a line or two, or the whole traceback where ``HYDRA_FULL_ERROR=1`` is set.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises in place of printing
            try:
                with interruption.heeded():
                    _run(name, task, positional, no_sweep)
            except Exception as error:
                if traceback_wanted or not _is_told(error):
                    raise
                sys.exit(f"error: {_without_password(_explain(name, error))}")
            except KeyboardInterrupt:
                sys.exit(130)

        return main

    return decorate


def _run(name: str, task: Callable[[DictConfig], None], positional: str | None, no_sweep: str) -> None:
    """Run a task under Hydra, once or for each job of a sweep."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        # Hydra's own answer is the same text after composing and printing the whole configuration, at twice the time.
        print(OmegaConf.load(CONFIGS / f"{name}.yaml").hydra.help.template)
        return
    if positional:
        _name_paths(positional)
    # Hydra takes overrides on one side of the flags only, where people type them on both; and null for no group, though it
    # is the default of experiment.
    overrides = _typed().overrides
    flags = [each for each in sys.argv[1:] if each not in overrides]
    sys.argv[1:] = [*(part for each in overrides if each != "experiment=null" for part in _replacing(each)), *flags]
    typed = _typed()
    if typed.experimental_rerun:
        raise ConfigurationError("--experimental-rerun would run code from a file; repeat the command line instead")
    if typed.config_path or typed.config_name:
        raise ConfigurationError("--config-path, --config-name: not offered; --config-dir adds a folder of configurations")
    guard.install()
    for override in typed.overrides:
        group = override.removeprefix("~").partition("=")[0]
        if (CONFIGS / group).is_dir() and (override.startswith("~") or override.endswith("=null")):
            options = ", ".join(sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")))
            raise ConfigurationError(f"{override}: a group can't be left out; choose from {options}")
    offered = [known or "basic" for known in guard.LAUNCHERS.values()]
    if (launcher := _value("hydra/launcher", typed.overrides)) and launcher not in offered:
        raise ConfigurationError(f"hydra/launcher={launcher}: there is none of that name; choose from {', '.join(offered)}")
    if typed.overrides and not typed.cfg:
        check_typed(name, typed)
    if typed.multirun or "hydra.mode=MULTIRUN" in typed.overrides:
        if no_sweep:
            raise ConfigurationError(f"--multirun: {no_sweep}")
        _run_sweep(name, task, typed)
        return
    if launcher and not (typed.cfg or typed.info):
        raise ConfigurationError(f"hydra/launcher={launcher}: runs the jobs of a sweep, so with --multirun")
    standing = nearest_standing(_value("hydra.run.dir", typed.overrides) or ".")
    failures: list[Exception] = []

    def checked(config: DictConfig) -> None:
        try:
            overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)  # list() would resolve what they refer to
            check(name, config, overrides)
            if HydraConfig.get().run.dir == ".":  # another Hydra has made
                interruption.leave_to_system()
            os.environ.pop("HYDRA_FULL_ERROR")  # or processes that the task starts would take it for the user's
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
    """Let what was typed without a key, or is there under the name that was typed, be the value of a key: a list.

    Raises:
        ConfigurationError: the key was typed as well.
    """
    overrides = _typed().overrides
    paths = [each for each in overrides if "=" not in each or Path(each).exists()]
    if paths and (named := _value(key, [each for each in overrides if each not in paths])):
        raise ConfigurationError(f"{key}={named}: names another beside {paths[0]}; leave out {key}=")
    if paths:
        values = ",".join(QuotedString(path, Quote.single).with_quotes() for path in paths)
        sys.argv[1:] = [*(each for each in sys.argv[1:] if each not in paths), f"{key}=[{values}]"]


def _replacing(override: str) -> list[str]:
    """Return an override, as two for what a search varies: it need not be there, and is replaced where Hydra would merge."""
    key, _, value = override.partition("=")
    return [f"++{key}=null", f"++{key}={value}"] if key.startswith("search.") and value else [override]


def _typed() -> Any:
    """Return what was typed as Hydra reads it: ``overrides``, ``multirun``, ``config_dir`` and so on."""
    return get_args_parser().parse_known_intermixed_args()[0]


def _value(key: str, overrides: Sequence[str]) -> str | None:
    """Return what was typed for a key, without quotes."""
    values = [each.partition("=")[2] for each in overrides if each.lstrip("+").startswith(f"{key}=")]
    return values[-1].strip("'\"") if values and values[-1] != "null" else None


def _run_sweep(name: str, task: Callable[[DictConfig], None], typed: Any) -> None:
    """Run a task for each job of a sweep; with ``sweep=<its directory>`` for those that aren't finished.

    What goes wrong in a job ends that job, and the sweep is told to have failed at its end.

    Raises:
        ConfigurationError: the sweep can't be started, or a job of it failed.
    """
    line = [each for each in sys.argv[1:] if not each.lstrip("+").startswith(("sweep=", "hydra.sweep.dir="))]
    continued, named = _value("sweep", typed.overrides), _value("hydra.sweep.dir", typed.overrides)
    if continued and named:
        raise ConfigurationError(f"sweep={continued}: names the sweep's directory, so leave out hydra.sweep.dir={named}")
    if continued and not sweeps.is_sweep(Path(continued)):
        raise ConfigurationError(f"sweep={continued}: not the directory of a sweep, in which a multirun.yaml lies")
    if named and Path(named).is_dir() and any(Path(named).iterdir()):
        raise ConfigurationError(f"hydra.sweep.dir={named}: not empty; sweep={named} continues the sweep in it")
    if (run := _value("resume", typed.overrides)) is not None:
        raise ConfigurationError(f"resume={run}: goes on with one run; sweep=<its directory> goes on with a sweep")
    sys.argv[1:] = line
    typed = _typed()
    with outside_a_run(typed):
        overrides, launcher = _jobs(name, typed.overrides)
        arranged = launchers.prepare(launcher, len(overrides))
        earlier = sweeps.stored_jobs(Path(continued).absolute()) if continued else {}
    jobs = [sweeps.Job(each) for each in overrides]
    elsewhere = guard.LAUNCHERS[launcher["_target_"]]
    standing = nearest_standing(continued or named or ".")
    sweep = Path(continued or named or make_directory(Path("outputs/multirun"))).absolute()
    arranged.append(f"hydra.sweep.dir={QuotedString(str(sweep), Quote.single).with_quotes()}")
    sys.argv[1:] = [*typed.overrides, *arranged, *line[len(typed.overrides) :]]  # the flags are last
    logging.getLogger("hydra").setLevel(logging.WARNING)  # the launcher's own line for each job
    ledger = sweeps.Ledger(sweep)

    def checked(config: DictConfig) -> None:
        job = functools.partial(_run_job, name, task, ledger, config)
        launchers.run_elsewhere(job, HydraConfig.get().job.num, ledger) if elsewhere else job()

    failure: Exception | None = None
    try:
        ledger.begin(earlier)
        if elsewhere:
            interruption.defer(lambda: launchers.stop(ledger))
        if elsewhere == "submitit_slurm":
            place = os.path.relpath(sweep / ".submitit")
            print(f"{len(jobs)} jobs go to SLURM: squeue --me shows them, {place} holds what they print", flush=True)
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(checked)()
    except Exception as error:
        failure = error
    finally:
        jobs = [ledger.noted(number, job.overrides) for number, job in enumerate(jobs)]
        ledger.end()
        launchers.finish(elsewhere)
        for job in jobs:
            if job.directory:
                remove_if_empty(job.directory, sweep)  # of a process that didn't live to do so
                job.directory = job.directory if job.directory.exists() else None
        if not continued and sweep.is_dir() and {path.name for path in sweep.iterdir()} <= {"multirun.yaml", ".submitit"}:
            (sweep / "multirun.yaml").unlink(missing_ok=True)  # no job left anything
            shutil.rmtree(sweep / ".submitit", ignore_errors=True)
            remove_if_empty(sweep, standing)
        if begun := any(job.problem != sweeps.NOT_RUN for job in jobs):
            print(f"\n{sweeps.table(jobs)}\n")
            if sweep.exists() and any(job.problem for job in jobs) and "sweep" in OmegaConf.load(CONFIGS / f"{name}.yaml"):
                again = shlex.join([*line, f"sweep={os.path.relpath(sweep)}"])
                print(f"What isn't finished is run by:  python -m vae_lightning.{name} {again}\n")
    interruption.check()
    if failure and not begun:
        if elsewhere and not _is_told(failure):
            raise ConfigurationError(f"hydra/launcher={elsewhere}: {str(failure).strip().splitlines()[0]}") from failure
        raise failure
    if failed := [f"job {number}, {job.problem}" for number, job in enumerate(jobs) if job.problem]:
        raise ConfigurationError(f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(failed)}") from failure


def _run_job(name: str, task: Callable[[DictConfig], None], ledger: sweeps.Ledger, config: DictConfig) -> None:
    """Run a job of a sweep where it runs, and note in the ledger what came of it."""
    settings: Any = HydraConfig.get()
    number, made, sweep = settings.job.num, Path(settings.runtime.output_dir), ledger.sweep
    if ledger.is_stopped():
        remove_if_empty(made, sweep)
        return
    overrides: Any = OmegaConf.to_container(settings.overrides.task)
    before = ledger.noted(number, overrides)
    job = sweeps.Job(overrides, sweeps.CUT_OFF, made)
    ledger.note(number, job)
    log.info("job %d: %s", number, " ".join(overrides))
    try:
        os.chdir(settings.runtime.cwd)  # where Ray's workers don't begin
        check(name, config, overrides)
        begun = ledger.earlier().get(sweeps.resolve(config, settings))
        if "resume" in config and sweeps.is_begun(before.directory):
            begun = before.directory  # what runs the jobs has ended this one, and begun it again
        if begun and sweeps.is_finished(begun):
            job.problem, job.directory = "", begun
            log.info("finished before, in %s", os.path.relpath(begun))
            return
        if begun:
            config.resume = str(begun)
        job.directory = begun or sweeps.make_job_directory(made)
        ledger.note(number, job)
        with read_write(settings.runtime):
            settings.runtime.output_dir = str(job.directory)
        task(config)
        job.problem = ""
    except Exception as error:
        if not _is_told(error):
            traceback.print_exc()
        job.problem = _explain(name, error).splitlines()[0]
        log.info(job.problem)
    except BaseException as stop:  # it ends the sweep; Lightning's answer to SIGTERM is an exit without a code
        job.problem = "interrupted"
        if isinstance(stop, SystemExit):
            stop.code = stop.code or 143
        raise
    finally:
        gc.collect()  # a trainer and what it trains hold each other, data and all, until Python looks for such circles
        for directory in {made, job.directory or made}:
            remove_if_empty(directory, sweep)
        with suppress(OSError):  # on a full disk, which the job has told of
            ledger.note(number, job)


def _jobs(name: str, typed: Sequence[str]) -> tuple[list[list[str]], Any]:
    """Compose each choice of a sweep once.

    Returns:
        The overrides of each job, in the order of their numbers, and the settings of what is to run them.

    Raises:
        ConfigurationError: a choice is refused.
    """
    parsed = parse(typed)
    fixed = [each.input_line or "" for each in parsed if not each.is_sweep_override()]
    settings = hydra.compose(name, fixed, return_hydra_config=True).hydra
    params = settings.sweeper.params or {}  # a recipe may hold a sweep
    parsed = parse([*(f"{key}={value}" for key, value in params.items()), *typed])
    choices = [fixed]
    for each in parsed:
        if each.is_discrete_sweep():
            values = [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
            choices += [[*fixed, value] for value in (values if is_group(each) else values[:1])]
    jobs: list[list[str]] = BasicSweeper.split_arguments(parsed, None)[0]
    for choice in choices:
        composed = hydra.compose(name, choice)
        check(name, composed, choice)
        for key in ("trainer.devices", "trainer.num_nodes"):
            if (processes := OmegaConf.select(composed, key, default=1)) != 1:
                alone = shlex.join(each for each in jobs[0] if not each.startswith("hydra"))
                raise ConfigurationError(
                    f"{key}={processes}: a job of a sweep is one process; without --multirun the first is begun by\n"
                    f"python -m vae_lightning.{name} {alone}"
                )
    return jobs, OmegaConf.to_container(settings.launcher)


def _is_told(error: Exception) -> bool:
    """Say whether an error is told in a line or two; any other one is a fault of the project, and keeps its traceback."""
    if isinstance(
        error, ConfigurationError | HydraException | OmegaConfBaseException | YAMLError | FloatingPointError | OSError
    ):
        return True
    return _is_of_memory(error)


def _without_password(text: str) -> str:
    """Return a text without the passwords of the addresses in it."""
    return re.sub(r"(://[^\s:/@]*):\S*@", r"\1:***@", text)


def _is_of_memory(error: Exception) -> bool:
    # torch's are RuntimeErrors of many kinds.
    if not isinstance(error, MemoryError | RuntimeError):
        return False
    return bool(re.search("memory|Storage size", f"{error!r}", re.IGNORECASE))


def _explain(name: str, error: Exception) -> str:
    """Say in a line or two what was wrong."""
    if _is_of_memory(error):
        return f"that needs more memory than there is ({error!s:.120})"
    if not _is_told(error):
        return f"{type(error).__name__}: {error}"
    first_line = str(error).strip().splitlines()[0]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option}: there is none of that name; choose from {', '.join(error.options or ())}"
    if isinstance(error, OverrideParseException):
        if "=" not in error.override:
            return f"{error.override!r} is no override: write key=value"
        key, _, value = error.override.partition("=")
        return (
            f"{error.override}: not understood; a value with signs that mean something to Hydra is quoted: '{key}=\"{value}\"'"
        )
    if isinstance(error, YAMLError):
        return " ".join(str(error).split())
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} is missing: write {error.full_key}=…"
    if first_line.startswith("Ambiguous value"):
        return f"{first_line}: a list is written [2,5]; several runs, one for each value, are asked for by --multirun"
    if isinstance(error, HydraException):
        typed = _typed()
        with suppress(HydraException), outside_a_run(typed):
            launcher = guard.settings_of(_value("hydra/launcher", typed.overrides))
            known = known_keys(name, typed.overrides) | {f"hydra.launcher.{key}" for key in launcher}
            for key in (each.key_or_group for each in parse(typed.overrides)):
                if key not in known and (not key.startswith("hydra") or (launcher and key.startswith("hydra.launcher."))):
                    return unknown_key(key, known)
        cause = str(error.__cause__ or "").partition("\n")[0]  # of a type, as Hydra's own settings have them
        return f"{first_line}: {cause}" if cause else first_line
    return str(error)
