"""Compose and check a configuration, run a command with it, and give the run its directory. No torch in this room.

So ``--help`` and a mistyped key are answered at once. Types and ranges are checked later, by the part that a value is for.
"""

import difflib
import functools
import itertools
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl  # the one gate that all compositions go through
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser  # the one way to read the command line as Hydra does
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from vae_lightning import durable, interruption, sweeps

log = logging.getLogger(__name__)

_PACKED = Path(__file__).parent / "configs"
CONFIGS = _PACKED if _PACKED.is_dir() else Path(__file__).parents[2] / "configs"
"""The configs: in the package when it was installed from a wheel, beside ``src/`` in a checkout."""

TARGETS = frozenset(
    {
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.loggers.TensorBoardLogger",
        "vae_lightning.callbacks.BestCheckpoint",
        "vae_lightning.callbacks.Dashboard",
        "vae_lightning.callbacks.LastCheckpoint",
        "vae_lightning.callbacks.LatentPicture",
        "vae_lightning.callbacks.LatentUse",
        "vae_lightning.callbacks.PriorSamples",
        "vae_lightning.callbacks.Progress",
        "vae_lightning.callbacks.Projector",
        "vae_lightning.callbacks.Reconstructions",
        "vae_lightning.logs.RunCSVLogger",
        "vae_lightning.logs.RunLogger",
    }
)
"""Everything that a configuration may name as ``_target_``, by full name: a prefix would let foreign code in."""

HYDRA_TARGETS = frozenset(
    {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    }
)
"""The same for Hydra's own settings."""


# What the best checkpoint is chosen by: each run by the bound that it is trained on, unweighted.
OmegaConf.register_new_resolver(
    "criterion", lambda objective: "val/importance_bound" if objective == "iwae" else "val/elbo", replace=True
)


class ConfigurationError(ValueError):
    """A mistake in what the user typed, told in a line or two."""


# -- commands ---------------------------------------------------------------------------------------------------------


def command(name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Make a command line of a function of a configuration; ``name`` is its root file in ``configs/``.

    A mistake ends it with exit code 1 and a line or two, or the whole traceback where ``HYDRA_FULL_ERROR=1`` is set.
    """

    def decorate(task: Callable[[DictConfig], None]) -> Callable[[], None]:
        @functools.wraps(task)
        def main() -> None:
            traceback_wanted = os.environ.get("HYDRA_FULL_ERROR") == "1"
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises in place of printing
            try:
                with interruption.heeded():
                    _run(name, task)
            except Exception as error:
                if traceback_wanted or not _is_told(error):
                    raise
                sys.exit(f"error: {_explain(name, error)}")
            except KeyboardInterrupt:
                sys.exit(130)

        return main

    return decorate


def _run(name: str, task: Callable[[DictConfig], None]) -> None:
    """Run a task under Hydra, once or for each job of a sweep."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        # Hydra's own answer is the same text after composing and printing the whole configuration, at twice the time.
        print(OmegaConf.load(CONFIGS / f"{name}.yaml").hydra.help.template)
        return
    # Hydra takes overrides on one side of the flags only, where people type them on both; and null for no group, though it
    # is the default of experiment.
    overrides = _typed().overrides
    flags = [each for each in sys.argv[1:] if each not in overrides]
    sys.argv[1:] = [*(each for each in overrides if each != "experiment=null"), *flags]
    typed = _typed()
    if typed.experimental_rerun:
        raise ConfigurationError("--experimental-rerun would run code from a file; repeat the command line instead")
    if typed.config_path or typed.config_name:
        raise ConfigurationError("--config-path, --config-name: not offered; --config-dir adds a folder of configurations")
    hydra._internal.hydra.ConfigLoaderImpl = _GuardedLoader  # type: ignore[attr-defined]
    for override in typed.overrides:
        group = override.removeprefix("~").partition("=")[0]
        if (CONFIGS / group).is_dir() and (override.startswith("~") or override.endswith("=null")):
            options = ", ".join(sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")))
            raise ConfigurationError(f"{override}: a group can't be left out; choose from {options}")
    if typed.overrides and not typed.cfg:
        _check_typed(name, typed)
    if typed.multirun or "hydra.mode=MULTIRUN" in typed.overrides:
        _run_sweep(name, task, typed)
        return
    standing = _standing(_value("hydra.run.dir", typed.overrides) or ".")
    failures: list[Exception] = []

    def checked(config: DictConfig) -> None:
        try:
            overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)  # list() would resolve what they refer to
            check(name, config, overrides)
            _check_references(config)
            if config.get("sweep") is not None:
                raise ConfigurationError(
                    f"sweep={config.sweep}: continues a sweep, with --multirun and the line it was begun by"
                )
            task(config)
        except BaseException as error:
            _remove_if_empty(Path(HydraConfig.get().runtime.output_dir), standing)
            if not isinstance(error, Exception):
                raise
            failures.append(error)

    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(checked)()
    if failures:
        raise failures[0]  # here, where Hydra adds no lines of its own to it


def _typed() -> Any:
    """Return what was typed as Hydra reads it: ``overrides``, ``multirun``, ``config_dir`` and so on."""
    return get_args_parser().parse_known_intermixed_args()[0]


def _value(key: str, overrides: Sequence[str]) -> str | None:
    """Return what was typed for a key, without quotes."""
    values = [each.partition("=")[2] for each in overrides if each.lstrip("+").startswith(f"{key}=")]
    return values[-1].strip("'\"") if values and values[-1] != "null" else None


# -- sweeps -----------------------------------------------------------------------------------------------------------


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
    sys.argv[1:] = line
    typed = _typed()
    with _hydra(typed):
        jobs = [sweeps.Job(overrides) for overrides in _jobs(name, typed.overrides)]
        earlier = sweeps.stored_jobs(Path(continued)) if continued else {}
    standing = _standing(continued or named or ".")
    sweep = Path(continued or named or make_directory(Path("outputs/multirun")))
    sys.argv.insert(1, f"hydra.sweep.dir='{sweep}'")
    logging.getLogger("hydra").setLevel(logging.WARNING)  # the launcher's own line for each job

    def checked(config: DictConfig) -> None:
        settings: Any = HydraConfig.get()
        job, made = jobs[settings.job.num], Path(settings.runtime.output_dir)
        log.info("job %d: %s", settings.job.num, " ".join(job.overrides))
        try:
            check(name, config, job.overrides)
            _check_references(config)
            begun = earlier.get(sweeps.resolve(config, settings))
            if begun and sweeps.is_finished(begun):
                job.problem, job.directory = "", begun
                log.info("finished before, in %s", begun)
                return
            if begun:
                config.resume = str(begun)
            job.directory = begun or sweeps.make_job_directory(made)
            with read_write(settings.runtime):
                settings.runtime.output_dir = str(job.directory)
            task(config)
            job.problem = ""
        except Exception as error:
            if not _is_told(error):
                traceback.print_exc()
            job.problem = _explain(name, error).splitlines()[0]
            log.info(job.problem)
            if settings.runtime.choices["hydra/launcher"] != "basic":
                raise  # from another process Hydra alone brings the news
        except BaseException as stop:  # it ends the sweep; Lightning's answer to SIGTERM is an exit without a code
            job.problem = "interrupted"
            if isinstance(stop, SystemExit):
                stop.code = stop.code or 143
            raise
        finally:
            for directory in {made, job.directory or made}:
                _remove_if_empty(directory, standing)
            if job.directory and not job.directory.exists():
                job.directory = None

    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(checked)()
    finally:
        if not continued and sweep.is_dir() and [path.name for path in sweep.iterdir()] == ["multirun.yaml"]:  # no job left any
            (sweep / "multirun.yaml").unlink()
            _remove_if_empty(sweep, standing)
        begun_here = any(job.problem != sweeps.NOT_RUN for job in jobs)  # else a launcher ran them in other processes
        if begun_here:
            print(f"\n{sweeps.table(jobs)}\n")
        if (
            begun_here
            and sweep.exists()
            and any(job.problem for job in jobs)
            and "sweep" in OmegaConf.load(CONFIGS / f"{name}.yaml")
        ):
            again = shlex.join([*line, f"sweep={sweep}"])
            print(f"What isn't finished is run by:  python -m vae_lightning.{name} {again}\n")
    failed = [f"job {number}, {job.problem}" for number, job in enumerate(jobs) if job.problem]
    if failed and begun_here:
        raise ConfigurationError(f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(failed)}")


def _jobs(name: str, typed: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep, in the order of their numbers, after each choice has been composed once.

    Raises:
        ConfigurationError: a choice is refused.
    """
    parsed = _parse(typed)
    fixed = [each.input_line or "" for each in parsed if not each.is_sweep_override()]
    params = hydra.compose(name, fixed, return_hydra_config=True).hydra.sweeper.params or {}  # a recipe may hold a sweep
    parsed = _parse([*(f"{key}={value}" for key, value in params.items()), *typed])
    choices = [fixed]
    for each in parsed:
        if each.is_discrete_sweep():
            values = [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
            choices += [[*fixed, value] for value in (values if _is_group(each) else values[:1])]
    for choice in choices:
        check(name, hydra.compose(name, choice), choice)
    jobs: list[list[str]] = BasicSweeper.split_arguments(parsed, None)[0]
    return jobs


# -- checks -----------------------------------------------------------------------------------------------------------


def check(name: str, config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse keys that no configuration of ours has, and targets that are not on the list; Hydra must be initialised.

    Callbacks and loggers of another name may be added, if they bring their ``_target_``.

    Raises:
        ConfigurationError: naming the key.
    """
    known = _known_keys(name, overrides)
    added = {key.rpartition(".")[0] for key, _ in _nodes(config) if re.fullmatch(r"(callbacks|logger)\.\w+\._target_", key)}
    for key, _ in _nodes(config):
        if not _is_known(key, known, added):
            raise ConfigurationError(_unknown(key, known))
    for resolve in (False, True) if HydraConfig.initialized() else (False,):  # ${hydra:…} has no value outside of a run
        for key, value in _values(OmegaConf.to_container(config, resolve=resolve)):
            if key.endswith("_target_") and not (isinstance(value, str) and value in TARGETS):
                raise ConfigurationError(f"{key}={value}: not one of the allowed targets, configuration.TARGETS")
            _refuse_address(key, value)


def _refuse_address(key: str, value: Any) -> None:
    """Refuse what Lightning would fetch or write over the network; nothing here is asked for by an address."""
    if isinstance(value, str) and "://" in value:
        raise ConfigurationError(f"{key}={value}: an address, where a path of this machine is asked for")


class _GuardedLoader(ConfigLoaderImpl):
    """Composes as Hydra does, and refuses the settings by which Hydra itself would run foreign code, before it acts on them.

    Runs, jobs of a sweep and flags such as ``--info`` all compose by it. What it refuses may come from a ``--config-dir``.
    """

    def load_configuration(self, config_name: str | None, overrides: list[str], *arguments: Any, **settings: Any) -> DictConfig:
        """Compose.

        Raises:
            ConfigurationError: the composition holds such a setting.
        """
        for override in overrides:
            if "searchpath" in override.partition("=")[0]:  # pkg://… is imported while composing
                raise ConfigurationError(f"{override}: not offered; --config-dir adds a folder of configurations")
        config = super().load_configuration(config_name, overrides, *arguments, **settings)
        _check_hydra(OmegaConf.to_container(config, resolve=False)["hydra"])  # type: ignore[call-overload, index]
        return config


def _check_hydra(settings: Any) -> None:
    """Check Hydra's own settings as they are composed, interpolations unresolved.

    Raises:
        ConfigurationError: naming the key by which a configuration could run foreign code.
    """
    ours = {
        "hydra.callbacks": {},
        "hydra.env": {},
        "hydra.searchpath": [],
        "hydra.output_subdir": None,  # overwrites three files wherever it says
        "hydra.hydra_logging": {"version": 1, "root": None, "disable_existing_loggers": False},
        "hydra.job_logging": OmegaConf.to_container(OmegaConf.load(CONFIGS / "hydra" / "job_logging" / "terminal.yaml")),
        "hydra.job.env_set": {},  # PYTHONPATH among them
        "hydra.job.env_copy": [],
    }
    for key, value in _values({"hydra": settings}):
        unknown = isinstance(value, str) and "${" in value and re.match(r"hydra(\.job)?$|hydra\.(launcher|sweeper)\b", key)
        if unknown or ours.get(key, value) != value:
            raise ConfigurationError(
                f"{key}={value}: not offered; a configuration could run foreign code or overwrite files by it"
            )
        if key.endswith("_target_") and str(value) not in HYDRA_TARGETS:
            raise ConfigurationError(f"{key}={value}: not one of the allowed targets, configuration.HYDRA_TARGETS")
        if key.startswith(("hydra.run.", "hydra.sweep.")):
            _refuse_address(key, value)


def _check_references(config: DictConfig) -> None:
    """Refuse a value that refers to what isn't there; within a run, where ``${hydra:…}`` has its values.

    Raises:
        ConfigurationError: naming the key.
    """
    for key, value in _nodes(config):
        try:
            OmegaConf.select(config, key)
        except OmegaConfBaseException as error:
            raise ConfigurationError(f"{key}={value}: {str(error).splitlines()[0]}") from error


def _is_known(key: str, known: Set[str], added: Set[str]) -> bool:
    """Say whether a key is one of ours, or lies below what was added or below a value of ours: that is the part's to check."""
    free = added | (known - {each.rpartition(".")[0] for each in known})
    return key in known or any(key == each or key.startswith(f"{each}.") for each in free)


def _check_typed(name: str, typed: Any) -> None:
    """Refuse a mistyped key before Hydra composes it, twice and in vain.

    Raises:
        ConfigurationError: naming the key.
    """
    with _hydra(typed):
        known = _known_keys(name, typed.overrides)
        options = GlobalHydra.instance().config_loader().get_group_options
        for key in (each.key_or_group for each in _parse(typed.overrides)):
            part = ".".join(key.split(".")[:2])
            # A callback or logger may have been added, and a group may be the user's own: what is composed will tell.
            added = {part} if part.startswith(("callbacks.", "logger.")) and part not in known else {"hydra"}
            if not _is_known(key, known, added) and not key.startswith("hydra/") and not options(key):
                raise ConfigurationError(_unknown(key, known))


@contextmanager
def _hydra(typed: Any) -> Iterator[None]:
    """Initialise Hydra outside a run, with the search path that was typed."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        if typed.config_dir:
            loader: Any = GlobalHydra.instance().config_loader()
            path, last = loader.get_search_path(), SearchPathQuery(provider="schema")
            path.prepend(provider="command-line", path=f"file://{os.path.abspath(typed.config_dir)}", anchor=last)
            loader.repository.initialize_sources(path)
        yield


def _parse(overrides: Sequence[str]) -> list[Override]:
    return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))


def _is_group(override: Override) -> bool:
    return (CONFIGS / override.key_or_group).is_dir()


def _nodes(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of a configuration in dots, with what it holds."""
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=False)
    items = config.items() if isinstance(config, dict) else ()
    for key, value in items:
        yield f"{prefix}{key}", value
        yield from _nodes(value, f"{prefix}{key}.")


def _values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of plain containers in dots, those in lists included, with what it holds."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in children:
        yield f"{prefix}{key}", value
        yield from _values(value, f"{prefix}{key}.")


def _known_keys(name: str, overrides: Sequence[str]) -> frozenset[str]:
    """Return all keys of a command's configuration, for the groups that the overrides choose."""
    chosen = [
        each.input_line or ""
        for each in _parse(overrides)
        if _is_group(each) and not each.is_add() and not each.is_sweep_override() and each.key_or_group != "experiment"
    ]
    return _composed_keys(name, tuple(chosen), str(GlobalHydra.instance().config_loader().get_search_path()))


@functools.cache  # composing takes longest of all that comes before torch
def _composed_keys(name: str, chosen: tuple[str, ...], search_path: str) -> frozenset[str]:
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    return frozenset(groups | {key for key, _ in _nodes(hydra.compose(name, list(chosen)))})


def _unknown(key: str, known: Set[str]) -> str:
    parent, _, name = key.rpartition(".")
    siblings = {each.rpartition(".")[2]: each for each in known if each.rpartition(".")[0] == parent}
    if nearest := difflib.get_close_matches(name, siblings, n=1):
        return f"unknown key {key}: did you mean {siblings[nearest[0]]}?"
    if parent and siblings:
        return f"unknown key {key}: {parent} has {', '.join(sorted(siblings))}"
    nearest = difflib.get_close_matches(key, known, n=1)
    return f"unknown key {key}: " + (f"did you mean {nearest[0]}?" if nearest else "--cfg job lists all keys")


def _is_told(error: Exception) -> bool:
    """Say whether an error is told in a line or two; any other one is a fault of the project, and keeps its traceback."""
    if isinstance(
        error, ConfigurationError | HydraException | OmegaConfBaseException | YAMLError | FloatingPointError | OSError
    ):
        return True
    return _is_of_memory(error)


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
        with suppress(HydraException), _hydra(typed):
            known = _known_keys(name, typed.overrides)
            for key in (each.key_or_group for each in _parse(typed.overrides)):
                if key not in known and not key.startswith("hydra"):
                    return _unknown(key, known)
        return first_line
    return str(error)


# -- run directories --------------------------------------------------------------------------------------------------


def make_directory(parent: Path) -> Path:
    """Make a directory named after the time below ``parent``; no two processes get the same one."""
    parent.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for attempt in itertools.count(2):
        directory = parent / stamp
        try:
            directory.mkdir()
            return directory
        except FileExistsError:
            stamp = f"{stamp[:19]}_{attempt}"
    raise AssertionError  # itertools.count does not end


def _standing(directory: str) -> Path:
    """Return what exists of a path."""
    path = Path(directory).absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def _remove_if_empty(directory: Path, standing: Path) -> None:
    """Remove a directory that was made for a run which came to nothing, and those above it up to what stood before."""
    directory, standing = directory.resolve(), standing.resolve()
    with suppress(OSError):
        while directory.is_relative_to(standing) and directory != standing:
            if directory.exists():
                directory.rmdir()
            directory = directory.parent


def make_run_directory(name: str) -> Path:
    """Make the directory of this run and let ``${hydra:runtime.output_dir}`` name it.

    It is ``outputs/<command>/<date>_<time>``, or the job's own in a sweep; ``hydra.run.dir=…`` names another,
    which must be empty.

    Raises:
        ConfigurationError: it isn't.
    """
    settings: Any = HydraConfig.get()
    if settings.mode != RunMode.MULTIRUN and settings.run.dir == ".":
        directory = make_directory(Path("outputs") / name)
    else:
        directory = Path(settings.runtime.output_dir)  # Hydra has made it
        if any(directory.iterdir()):
            raise ConfigurationError(f"hydra.run.dir={settings.run.dir}: not empty, and nothing is overwritten")
    use_run_directory(directory)
    return directory


def use_run_directory(directory: Path) -> None:
    """Let ``${hydra:runtime.output_dir}`` name a directory."""
    settings: Any = HydraConfig.get()
    with read_write(settings.runtime):
        settings.runtime.output_dir = str(directory.resolve())


def save_configuration(config: DictConfig, directory: Path) -> None:
    """Write the composed configuration and the overrides into ``.hydra/``, as Hydra does."""
    folder = directory / ".hydra"
    folder.mkdir(exist_ok=True)
    contents = {
        "overrides": HydraConfig.get().overrides.task,
        "hydra": OmegaConf.create({"hydra": HydraConfig.get()}),
        "config": config,
    }
    for name, content in contents.items():
        durable.write(folder / f"{name}.yaml", OmegaConf.to_yaml(content).encode())
