"""Run a command once for each job of a sweep."""

import functools
import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override, ValueType
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from vae_lightning.cli.command_line import typed_line, value_of
from vae_lightning.cli.messages import explain, is_reported
from vae_lightning.configuration import hydra_settings
from vae_lightning.configuration.composing import (
    CONFIGS,
    group_options,
    is_group,
    outside_a_run,
    parse,
)
from vae_lightning.configuration.keys import check
from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import command, override, printable
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import signals
from vae_lightning.runs.directory import (
    adopt,
    is_begun,
    is_finished,
    is_sweep,
    make,
    make_directory,
    nearest_standing,
    refuse_links,
    remove,
    remove_if_empty,
)
from vae_lightning.sweeps import launchers, stored
from vae_lightning.sweeps.ledger import (
    CUT_OFF,
    INTERRUPTED,
    LOCK,
    MOVABLE,
    NOT_RUN,
    Job,
    Ledger,
    locked,
    make_job_directory,
    refuse_another_line,
    resolve,
    stored_jobs,
    table,
)

log = logging.getLogger(__name__)


def run_sweep(name: str, task: Callable[[DictConfig], None], typed: Any) -> None:
    """Run a task for each job of a sweep, or for its unfinished jobs with ``sweep=<directory>``.

    An error in a job ends only that job. The sweep reports it after its last job.

    Raises:
        ConfigurationError: the sweep can't be started, or one of its jobs failed.
    """
    continued, named = _named(typed)
    line = [
        each
        for each in sys.argv[1:]
        if not each.lstrip("+").startswith(("sweep=", "hydra.sweep.dir="))
    ]
    sys.argv[1:] = line
    typed = typed_line()
    standing = nearest_standing(str(continued or named or "."))
    with ExitStack() as stack:
        if continued:
            stack.enter_context(locked(continued))
        with outside_a_run(typed):
            overrides, launcher = _jobs(name, typed.overrides)
            earlier = _begun_earlier(name, continued, overrides) if continued else {}
            arranged = launchers.prepare(launcher, len(overrides))
        sweep = (continued or _made(named)).absolute()
        if not continued:
            stack.enter_context(locked(sweep))
        arranged.append(override("hydra.sweep.dir", sweep))
        sys.argv[1:] = [
            *typed.overrides,
            *arranged,
            *line[len(typed.overrides) :],
        ]  # the flags are last
        _run_jobs(
            name,
            task,
            Ledger(sweep),
            earlier,
            [Job(each) for each in overrides],
            hydra_settings.LAUNCHERS[launcher["_target_"]],
            line,
            None if continued else standing,
        )


def _named(typed: Any) -> tuple[Path | None, Path | None]:
    """Return the directory of the sweep that is continued, and the one that a new one is given.

    Raises:
        ConfigurationError: one can't be used.
    """
    continued, named = (
        value_of("sweep", typed.overrides),
        value_of("hydra.sweep.dir", typed.overrides),
    )
    if continued and named:
        raise ConfigurationError(
            f"sweep={continued}: names the sweep's directory, so leave out hydra.sweep.dir={named}"
        )
    if (run := value_of("resume", typed.overrides)) is not None:
        raise ConfigurationError(
            f"resume={run}: goes on with one run; sweep=<its directory> goes on with a sweep"
        )
    if continued:
        place = Path(expanded(continued))
        if not is_sweep(place):
            raise ConfigurationError(
                f"sweep={continued}: not the directory of a sweep, in which a multirun.yaml lies"
            )
        refuse_links(place, "sweep")
        return place, None
    if named:
        place = Path(expanded(named))
        if place.is_dir() and any(place.iterdir()):
            instead = "type a directory that isn't there, or an empty one"
            if is_sweep(place):
                instead = f"{override('sweep', place)} continues the sweep in it"
            raise ConfigurationError(f"hydra.sweep.dir={named}: not empty; {instead}")
        return None, place
    return None, None


def _made(named: Path | None) -> Path:
    """Make the directory of a new sweep, so that ``remove`` may remove what comes into it."""
    if named is None:
        return make_directory(Path("outputs/multirun"))
    if named.is_dir():
        adopt(named)
    else:
        named.parent.mkdir(parents=True, exist_ok=True)
        make(named)
    return named


def _begun_earlier(name: str, sweep: Path, overrides: Sequence[Sequence[str]]) -> dict[str, Path]:
    """Return the jobs that a sweep has begun, by their resolved configuration.

    A line says what of its jobs the sweep hasn't begun.

    Raises:
        ConfigurationError: the directory is another command's, or its jobs are of another line.
    """
    place = printable(os.path.relpath(sweep))
    earlier = stored_jobs(sweep)
    try:
        owner = stored.load_yaml(sweep / "multirun.yaml")["hydra"]["job"]["config_name"]
    except stored.DAMAGE as error:
        owner = name if earlier else f"damaged ({stored.problem_of(error)})"
    if owner != name:
        raise ConfigurationError(
            f"sweep={place}: not a sweep of {name}; its multirun.yaml is {printable(owner)}"
        )
    typed = []
    for number, each in enumerate(overrides):
        composed = hydra.compose(name, list(each), return_hydra_config=True)
        settings: Any = composed.hydra
        with open_dict(composed):
            settings.job.num = number
            del composed["hydra"]
        with suppress(OmegaConfBaseException):  # which the job itself reports
            typed.append(resolve(composed, settings))
    new = refuse_another_line(place, typed, earlier)
    if earlier and new:
        common = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
        names = [" ".join(each for each in overrides[job] if each not in common) for job in new[:5]]
        more = f"; and {len(new) - 5} more" if len(new) > 5 else ""
        print(f"New in {place}: {printable('; '.join(names))}{more}", flush=True)
    if left := len(set(earlier) - set(typed)):
        print(f"Not of this line, so left as they are in {place}: jobs: {left}", flush=True)
    return earlier


def _run_jobs(
    name: str,
    task: Callable[[DictConfig], None],
    ledger: Ledger,
    earlier: dict[str, Path],
    jobs: list[Job],
    elsewhere: str | None,
    line: Sequence[str],
    standing: Path | None,
) -> None:
    """Let Hydra run the jobs of a sweep, and report what came of them.

    Args:
        name: of the command.
        task: what runs a job.
        ledger: of the sweep.
        earlier: the jobs that the sweep has begun, by their resolved configuration.
        jobs: those of the line.
        elsewhere: the launcher that runs them in other processes; None: they run in this one.
        line: the typed arguments without the sweep's directory.
        standing: what existed of the path of a new sweep; None: the sweep is continued.

    Raises:
        ConfigurationError: a job failed, or none could be begun.
    """
    sweep = ledger.sweep
    of_hydra = logging.getLogger("hydra")
    level = of_hydra.level
    of_hydra.setLevel(logging.WARNING)  # the launcher's own line for each job

    def checked(config: DictConfig) -> None:
        job = functools.partial(_run_job, name, task, ledger, config)
        launchers.run_elsewhere(job, HydraConfig.get().job.num, ledger) if elsewhere else job()

    failure: Exception | None = None
    try:
        ledger.begin(earlier)
        if elsewhere:
            signals.defer(lambda: launchers.stop(ledger))
        if elsewhere == "submitit_slurm":
            place = printable(os.path.relpath(sweep / ".submitit"))
            print(
                f"{len(jobs)} jobs go to SLURM: squeue --me shows them, "
                f"{place} holds what they print",
                flush=True,
            )
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(checked)()
    except Exception as error:
        failure = error
    finally:
        jobs = [ledger.noted(number, job.overrides) for number, job in enumerate(jobs)]
        ledger.end()
        launchers.finish(elsewhere)
        of_hydra.setLevel(level)
        for job in jobs:
            if job.directory:
                remove_if_empty(job.directory, sweep)  # of a process that didn't live to do so
                job.directory = job.directory if job.directory.exists() else None
        if standing:
            _remove_if_idle(sweep, standing)
        if begun := any(job.problem != NOT_RUN for job in jobs):
            print(f"\n{table(jobs)}\n")
            if (
                sweep.exists()
                and any(job.problem for job in jobs)
                and "sweep" in OmegaConf.load(CONFIGS / f"{name}.yaml")
            ):
                again = command(name, *line, override("sweep", Path(os.path.relpath(sweep))))
                print(f"What isn't finished is run by:  {again}\n")
    signals.check()
    if failure and not begun:
        if elsewhere and not is_reported(failure):
            raise ConfigurationError(
                f"hydra/launcher={elsewhere}: {str(failure).strip().splitlines()[0]}"
            ) from failure
        raise failure
    if failed := [
        f"job {number}, {job.problem}{_in_words(job.directory)}"
        for number, job in enumerate(jobs)
        if job.problem
    ]:
        raise ConfigurationError(
            f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(failed)}"
        ) from failure


def _in_words(directory: Path | None) -> str:
    return f" (in {printable(os.path.relpath(directory))})" if directory else ""


def _remove_if_idle(sweep: Path, standing: Path) -> None:
    """Remove the directory of a new sweep in which no job has left anything."""
    if sweep.is_dir() and {each.name for each in sweep.iterdir()} <= {
        "multirun.yaml",
        ".submitit",
        LOCK,
    }:
        for file in ("multirun.yaml", LOCK):
            (sweep / file).unlink(missing_ok=True)
        remove(sweep / ".submitit")
        remove_if_empty(sweep, standing)


def _run_job(
    name: str, task: Callable[[DictConfig], None], ledger: Ledger, config: DictConfig
) -> None:
    """Run a job of a sweep where it runs, and note in the ledger what came of it."""
    settings: Any = HydraConfig.get()
    number, made, sweep = settings.job.num, Path(settings.runtime.output_dir), ledger.sweep
    if ledger.is_stopped() or signals.noted() is not None:  # Hydra may have swallowed a signal
        remove_if_empty(made, sweep)
        signals.check()
        return
    overrides: Any = OmegaConf.to_container(settings.overrides.task)
    before = ledger.noted(number, overrides)
    job = Job(overrides, CUT_OFF, made)
    ledger.note(number, job)
    log.info("job %d: %s", number, printable(" ".join(overrides)))
    try:
        with signals.held():
            _prepare(name, ledger, config, job, before)
        if job.problem:
            task(config)
            job.problem = ""
    except Exception as error:
        if signals.noted() is not None:  # what a library has made of it
            job.problem = INTERRUPTED
            signals.check()
        if not is_reported(error):
            traceback.print_exc()
        job.problem = printable(explain(name, error).splitlines()[0])
        log.info(job.problem)
    except (
        BaseException
    ) as stop:  # it ends the sweep; Lightning's answer to SIGTERM is an exit without a code
        job.problem = INTERRUPTED
        if isinstance(stop, SystemExit):
            stop.code = stop.code or 143
        raise
    finally:
        with signals.held():
            gc.collect()  # the trainer and its model refer to each other, which keeps the data
            for directory in {made, job.directory or made}:
                remove_if_empty(directory, sweep)
            with suppress(OSError):  # on a full disk, which the job has reported
                ledger.note(number, job)


def _prepare(name: str, ledger: Ledger, config: DictConfig, job: Job, before: Job) -> None:
    """Check a job, and find its directory: of an earlier run that it goes on with, or a new one.

    Args:
        name: of the command.
        ledger: of the sweep.
        config: of the job.
        job: whose problem is empty at the end if it was finished earlier.
        before: the same job as it was noted by a process that was ended.

    Raises:
        ConfigurationError: the job is refused.
    """
    settings: Any = HydraConfig.get()
    os.chdir(settings.runtime.cwd)  # where Ray's workers don't begin
    check(name, config, job.overrides)
    begun = ledger.earlier().get(resolve(config, settings))
    if "resume" in config and is_begun(before.directory):
        begun = before.directory  # what runs the jobs has ended this one, and begun it again
    if begun and is_finished(begun) and not _is_damaged(begun):
        job.problem, job.directory = "", begun
        log.info("finished before, in %s", printable(os.path.relpath(begun)))
        return
    typed = list(job.overrides)
    if begun:
        config.resume = str(begun)
        # As typed beside resume=, by which a run may go on at another place.
        typed = [override("resume", begun), *_moved(config, begun, job.overrides)]
    job.directory = begun or make_job_directory(Path(settings.runtime.output_dir))
    ledger.note(settings.job.num, job)
    with read_write(settings.runtime), read_write(settings.overrides):
        settings.runtime.output_dir = str(job.directory)
        settings.overrides.task = typed


def _is_damaged(run: Path) -> bool:
    try:
        stored.measured(run)
    except stored.DAMAGE:
        return True
    return False


def _moved(config: DictConfig, begun: Path, overrides: Sequence[str]) -> list[str]:
    """Return the overrides by which a job goes on at another place than it was begun."""
    before = OmegaConf.create(stored.load_configuration(begun))
    return [
        each
        for each in overrides
        if (key := each.lstrip("+").partition("=")[0]) in MOVABLE
        and OmegaConf.select(before, key) != OmegaConf.select(config, key)
    ]


def _jobs(name: str, typed: Sequence[str]) -> tuple[list[list[str]], Any]:
    """Compose each choice of a sweep once.

    Returns:
        The overrides of each job, by job number, and the settings of the launcher that runs them.

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
            if not values:
                raise ConfigurationError(f"{each.input_line}: {_why_empty(each)}")
            choices += [[*fixed, value] for value in (values if is_group(each) else values[:1])]
        elif each.is_sweep_override():
            raise ConfigurationError(
                f"{each.input_line}: names no values; list them, or type range(start,stop,step)"
            )
    jobs: list[list[str]] = BasicSweeper.split_arguments(parsed, None)[0]
    for choice in choices:
        composed = hydra.compose(name, choice)
        check(name, composed, choice)
        for key in ("trainer.devices", "trainer.num_nodes"):
            if (processes := OmegaConf.select(composed, key, default=1)) != 1:
                alone = [each for each in jobs[0] if not each.startswith("hydra")]
                raise ConfigurationError(
                    f"{key}={processes}: a job of a sweep is one process; "
                    f"without --multirun the first is begun by\n{command(name, *alone)}"
                )
    return jobs, OmegaConf.to_container(settings.launcher)


def _why_empty(typed: Override) -> str:
    """Return what to say of values that are none."""
    key = typed.key_or_group
    if typed.value_type == ValueType.RANGE_SWEEP:
        return "holds no value; type range(start,stop) with a stop that is beyond the start"
    if options := group_options(key):
        return f"matches none of {', '.join(options)}"
    return f"glob chooses files of a group, which {key} isn't; list the values: {key}=1,2,3"
