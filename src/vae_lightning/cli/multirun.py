"""Run a command once for each job of a sweep."""

import functools
import gc
import logging
import os
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
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, read_write

from vae_lightning.cli.command_line import typed_line, value_of
from vae_lightning.cli.messages import explain, is_reported
from vae_lightning.configuration import hydra_settings
from vae_lightning.configuration.composing import CONFIGS, is_group, outside_a_run, parse
from vae_lightning.configuration.keys import check
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import signals
from vae_lightning.runs.directory import (
    is_begun,
    is_finished,
    is_sweep,
    make_directory,
    nearest_standing,
    remove_if_empty,
)
from vae_lightning.sweeps import launchers
from vae_lightning.sweeps.ledger import (
    CUT_OFF,
    NOT_RUN,
    Job,
    Ledger,
    make_job_directory,
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
    line = [
        each
        for each in sys.argv[1:]
        if not each.lstrip("+").startswith(("sweep=", "hydra.sweep.dir="))
    ]
    continued, named = (
        value_of("sweep", typed.overrides),
        value_of("hydra.sweep.dir", typed.overrides),
    )
    if continued and named:
        raise ConfigurationError(
            f"sweep={continued}: names the sweep's directory, so leave out hydra.sweep.dir={named}"
        )
    if continued and not is_sweep(Path(continued)):
        raise ConfigurationError(
            f"sweep={continued}: not the directory of a sweep, in which a multirun.yaml lies"
        )
    if named and Path(named).is_dir() and any(Path(named).iterdir()):
        raise ConfigurationError(
            f"hydra.sweep.dir={named}: not empty; sweep={named} continues the sweep in it"
        )
    if (run := value_of("resume", typed.overrides)) is not None:
        raise ConfigurationError(
            f"resume={run}: goes on with one run; sweep=<its directory> goes on with a sweep"
        )
    sys.argv[1:] = line
    typed = typed_line()
    with outside_a_run(typed):
        overrides, launcher = _jobs(name, typed.overrides)
        arranged = launchers.prepare(launcher, len(overrides))
        earlier = stored_jobs(Path(continued).absolute()) if continued else {}
    jobs = [Job(each) for each in overrides]
    elsewhere = hydra_settings.LAUNCHERS[launcher["_target_"]]
    standing = nearest_standing(continued or named or ".")
    sweep = Path(continued or named or make_directory(Path("outputs/multirun"))).absolute()
    arranged.append(f"hydra.sweep.dir={QuotedString(str(sweep), Quote.single).with_quotes()}")
    sys.argv[1:] = [
        *typed.overrides,
        *arranged,
        *line[len(typed.overrides) :],
    ]  # the flags are last
    logging.getLogger("hydra").setLevel(logging.WARNING)  # the launcher's own line for each job
    ledger = Ledger(sweep)

    def checked(config: DictConfig) -> None:
        job = functools.partial(_run_job, name, task, ledger, config)
        launchers.run_elsewhere(job, HydraConfig.get().job.num, ledger) if elsewhere else job()

    failure: Exception | None = None
    try:
        ledger.begin(earlier)
        if elsewhere:
            signals.defer(lambda: launchers.stop(ledger))
        if elsewhere == "submitit_slurm":
            place = os.path.relpath(sweep / ".submitit")
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
        for job in jobs:
            if job.directory:
                remove_if_empty(job.directory, sweep)  # of a process that didn't live to do so
                job.directory = job.directory if job.directory.exists() else None
        if (
            not continued
            and sweep.is_dir()
            and {path.name for path in sweep.iterdir()} <= {"multirun.yaml", ".submitit"}
        ):
            (sweep / "multirun.yaml").unlink(missing_ok=True)  # no job left anything
            shutil.rmtree(sweep / ".submitit", ignore_errors=True)
            remove_if_empty(sweep, standing)
        if begun := any(job.problem != NOT_RUN for job in jobs):
            print(f"\n{table(jobs)}\n")
            if (
                sweep.exists()
                and any(job.problem for job in jobs)
                and "sweep" in OmegaConf.load(CONFIGS / f"{name}.yaml")
            ):
                again = shlex.join([*line, f"sweep={os.path.relpath(sweep)}"])
                print(f"What isn't finished is run by:  python -m vae_lightning.{name} {again}\n")
    signals.check()
    if failure and not begun:
        if elsewhere and not is_reported(failure):
            raise ConfigurationError(
                f"hydra/launcher={elsewhere}: {str(failure).strip().splitlines()[0]}"
            ) from failure
        raise failure
    if failed := [f"job {number}, {job.problem}" for number, job in enumerate(jobs) if job.problem]:
        raise ConfigurationError(
            f"{len(failed)} of {len(jobs)} jobs failed: {'; '.join(failed)}"
        ) from failure


def _run_job(
    name: str, task: Callable[[DictConfig], None], ledger: Ledger, config: DictConfig
) -> None:
    """Run a job of a sweep where it runs, and note in the ledger what came of it."""
    settings: Any = HydraConfig.get()
    number, made, sweep = settings.job.num, Path(settings.runtime.output_dir), ledger.sweep
    if ledger.is_stopped():
        remove_if_empty(made, sweep)
        return
    overrides: Any = OmegaConf.to_container(settings.overrides.task)
    before = ledger.noted(number, overrides)
    job = Job(overrides, CUT_OFF, made)
    ledger.note(number, job)
    log.info("job %d: %s", number, " ".join(overrides))
    try:
        os.chdir(settings.runtime.cwd)  # where Ray's workers don't begin
        check(name, config, overrides)
        begun = ledger.earlier().get(resolve(config, settings))
        if "resume" in config and is_begun(before.directory):
            begun = before.directory  # what runs the jobs has ended this one, and begun it again
        if begun and is_finished(begun):
            job.problem, job.directory = "", begun
            log.info("finished before, in %s", os.path.relpath(begun))
            return
        if begun:
            config.resume = str(begun)
        job.directory = begun or make_job_directory(made)
        ledger.note(number, job)
        with read_write(settings.runtime):
            settings.runtime.output_dir = str(job.directory)
        task(config)
        job.problem = ""
    except Exception as error:
        if not is_reported(error):
            traceback.print_exc()
        job.problem = explain(name, error).splitlines()[0]
        log.info(job.problem)
    except (
        BaseException
    ) as stop:  # it ends the sweep; Lightning's answer to SIGTERM is an exit without a code
        job.problem = "interrupted"
        if isinstance(stop, SystemExit):
            stop.code = stop.code or 143
        raise
    finally:
        gc.collect()  # the trainer and its model refer to each other, which keeps the data alive
        for directory in {made, job.directory or made}:
            remove_if_empty(directory, sweep)
        with suppress(OSError):  # on a full disk, which the job has reported
            ledger.note(number, job)


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
            choices += [[*fixed, value] for value in (values if is_group(each) else values[:1])]
    jobs: list[list[str]] = BasicSweeper.split_arguments(parsed, None)[0]
    for choice in choices:
        composed = hydra.compose(name, choice)
        check(name, composed, choice)
        for key in ("trainer.devices", "trainer.num_nodes"):
            if (processes := OmegaConf.select(composed, key, default=1)) != 1:
                alone = shlex.join(each for each in jobs[0] if not each.startswith("hydra"))
                raise ConfigurationError(
                    f"{key}={processes}: a job of a sweep is one process; "
                    "without --multirun the first is begun by\n"
                    f"python -m vae_lightning.{name} {alone}"
                )
    return jobs, OmegaConf.to_container(settings.launcher)
