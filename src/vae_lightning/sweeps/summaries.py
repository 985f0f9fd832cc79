"""The results of many runs: read from their directories and averaged over seeds.

This module doesn't import torch.
"""

import csv
import itertools
import logging
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from vae_lightning.configuration.quoting import printable
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.directory import is_finished
from vae_lightning.sweeps import stored
from vae_lightning.sweeps.ledger import as_in_job

FINISHED = "finished"
_MOVES_NO_FIGURE = (
    "resume",
    "sweep",
    "mirror",
    "data.dir",
)  # data counts by its SHA-256, wherever it lies
QUICK_PASS = "quick pass"
_MOST_CSV = 100_000_000
_MOST_STEPS = 10**15
_MOST_JOBS = 100_000
_FIELD = 1_000_000
"""The longest cell of a table of figures that is read."""

Mean = tuple[float, float | None]
"""Mean and sample standard deviation; None: of one value."""

Curve = list[tuple[int, float, float | None]]
"""Optimiser step, mean and sample standard deviation."""


@dataclass
class Job:
    """A run, or a job of a sweep.

    Attributes:
        directory: the directory of its files; None if it has none.
        state: ``finished`` if it counts; else why it doesn't: ``repeated``, ``failed``,
            ``unfinished``, ``damaged``, ``quick pass`` or ``never begun``.
        problem: what else is known about the state.
        overrides: the overrides of a job without a directory.
        seed: the seed; None if it couldn't be read.
        settings: the resolved configuration by dotted key, without the seed and without keys that
            change no figure.
        figures: test figures by name, most in nats per image.
        protocol: how the figures were measured.
        described: label, unit and better direction of each figure, by its name.
        criterion: the test figure that such runs are compared by.
        terms: the test figures that are shown with it.
    """

    directory: Path | None
    state: str
    problem: str = ""
    overrides: str = ""
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    described: dict[str, dict[str, str]] = field(default_factory=dict)
    criterion: str = ""
    terms: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The directory as one would type it from here, or the overrides."""
        return printable(_from_here(self.directory) if self.directory else self.overrides)

    @cached_property
    def identity(self) -> frozenset[str]:
        """The settings, told apart by type as well."""
        return frozenset(f"{key}={value!r}" for key, value in self.settings.items())


@dataclass
class Combination:
    """Finished jobs that differ in their seeds only.

    Attributes:
        settings: what sets it apart from the other combinations.
        jobs: one for each seed.
        figures: over the jobs, of each figure that all of them have.
        number: its place among the others, from 1.
    """

    settings: dict[str, Any]
    jobs: list[Job]
    figures: dict[str, Mean]
    number: int = 0


# -- reading ---------------------------------------------------------------------------------------


def find_jobs(directories: Sequence[Path]) -> list[Job]:
    """Return the training runs in directories, at any depth, and the missing jobs of their sweeps.

    Raises:
        ConfigurationError: one isn't a directory, or holds no run.
    """
    if not directories:
        raise ConfigurationError("sweep=[]: name a directory at least")
    found_in, asked = set(), []
    for directory in directories:
        if not directory.is_dir():
            raise ConfigurationError(f"sweep={directory}: no such directory")
        here = set(directory.rglob(".hydra/config.yaml"))
        swept = list(directory.rglob("multirun.yaml"))
        if not here and not swept:
            raise ConfigurationError(
                f"sweep={directory}: no runs in it; "
                "name a sweep's directory, or one of run directories"
            )
        found_in |= {file.parent.parent.resolve() for file in here}
        asked += [file.parent.resolve() / file.name for file in swept]
    runs = sorted(found_in, key=_natural)
    # A search keeps a configuration of its own above its runs.
    above = {parent for run in runs for parent in run.parents}
    found = {run: _read(run) for run in runs if run not in above or is_finished(run)}
    jobs = {run: job for run, job in found.items() if job}
    _pass_over_repeated(jobs)
    return [
        *jobs.values(),
        *(job for file in dict.fromkeys(asked) for job in _never_begun(file, list(jobs))),
    ]


def _natural(path: Path) -> list[str | int]:
    """Let job 10 come after job 9."""
    parts = re.split(r"([0-9]{1,16})", str(path))
    return [int(part) if part.isdecimal() else part for part in parts]


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _read(directory: Path) -> Job | None:
    """Return the job of a run directory; None: another command's, which trains nothing."""
    job = Job(directory, "damaged")
    name = ".hydra/config.yaml"
    try:
        config = stored.load_configuration(directory)
        if "model" not in config:
            return None
        job.settings = _resolved(config, directory)
        seed = job.settings.pop("seed")
        if type(seed) is not int:
            raise TypeError(f"seed is {seed}")
        job.seed = seed
        for key in _MOVES_NO_FIGURE:
            job.settings.pop(key, None)
        if stored.is_quick(job.settings.get("trainer.fast_dev_run")):
            job.state, job.problem = QUICK_PASS, "trainer.fast_dev_run measures nothing"
            return job
        name = "metrics.json"
        if is_finished(directory):
            measured = stored.measured(directory)
            if measured.criterion not in measured.figures:
                raise KeyError(measured.criterion)
            job.figures, job.protocol = measured.figures, measured.protocol
            job.described = measured.described
            job.criterion, job.terms = measured.criterion, measured.terms
            job.state = FINISHED
            return job
        name = "train.log"
        error_line = _last_error(directory / name)
    except stored.DAMAGE as error:
        job.problem = f"{name}, {stored.problem_of(error)}"
        return job
    steps = [
        int(each.stem[5:])
        for each in directory.glob("checkpoints/step_*.ckpt")
        if re.fullmatch("[0-9]{8,16}", each.stem[5:])
    ]
    job.state = "failed" if error_line else "unfinished"
    job.problem = f"saved up to step {max(steps):,}" if steps else "no checkpoint"
    job.problem += f"; {error_line}" if error_line else "; stopped, or at work still"
    return job


def _resolved(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return a configuration by dotted key, with references resolved and without its loggers."""
    if "${criterion:" in str(config):  # a resolver that only version 0.1 has
        raise ValueError(stored.EARLIER)
    config.pop("logger", None)
    settings: dict[str, Any] = {"runtime": {}}
    if "${hydra:" in str(config):
        settings = stored.load_yaml(directory / ".hydra" / "hydra.yaml")["hydra"]
    with as_in_job(OmegaConf.create(settings)):
        resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    return {printable(key): value for key, value in stored.leaves(resolved)}


def _last_error(log: Path) -> str:
    """Return the last line of the traceback that a log ends with; empty: it ends with none."""
    if not log.exists():
        return ""
    records = re.split(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ",
        stored.text(log, end=100_000),
        flags=re.MULTILINE,
    )
    last = records[-1].rstrip().splitlines()
    return printable(last[-1])[:300] if records[-1].startswith("Traceback") else ""


def _pass_over_repeated(jobs: Mapping[Path, Job]) -> None:
    """Let the newest of the finished jobs with one configuration and one seed count alone."""
    newest: dict[Any, Job] = {}
    finished = [run for run, job in jobs.items() if job.state == FINISHED]
    for run in sorted(
        finished, key=lambda run: (run / "metrics.json").stat().st_mtime_ns, reverse=True
    ):
        job = jobs[run]
        counted = newest.setdefault((job.identity, job.seed), job)
        if counted is not job:
            job.state, job.problem = (
                "repeated",
                f"configuration and seed of {counted.name}, which is newer and counts",
            )


def _never_begun(file: Path, runs: Iterable[Path]) -> list[Job]:
    """Return the jobs of a ``multirun.yaml`` that match no run in its directory.

    It is a job of its own if it can't be read.
    """
    place = _from_here(file)
    try:
        settings = stored.load_yaml(file)["hydra"]
        params = settings["sweeper"].get("params") or {}
        line = [
            *(f"{key}={value}" for key, value in params.items()),
            *settings["overrides"]["task"],
        ]
        parsed = OverridesParser.create().parse_overrides(line)
        count = 1
        for each in parsed:
            if each.is_discrete_sweep():  # before they are listed, which may take all memory
                count *= sum(1 for _ in itertools.islice(each.sweep_iterator(), _MOST_JOBS + 1))
            if count > _MOST_JOBS:
                raise ValueError(f"more than {_MOST_JOBS:,} jobs")
        asked: list[list[str]] = BasicSweeper.split_arguments(parsed, None)[0]
    except (*stored.DAMAGE, HydraException) as error:
        return [Job(None, "damaged", stored.problem_of(error), place)]
    begun = []
    for run in runs:
        if run.is_relative_to(file.parent):
            with suppress(*stored.DAMAGE):  # then its job is listed as never begun too
                begun.append(set(stored.load_yaml(run / ".hydra" / "overrides.yaml")))
    wanted = [{each for each in job if not each.startswith("hydra")} for job in asked]
    common = set.intersection(*wanted) if len(wanted) > 1 else set()
    problem = printable(f"or refused at once: asked for in {place}")
    return [
        Job(None, "never begun", problem, " ".join(each for each in job if each not in common))
        for job, overrides in zip(asked, wanted, strict=True)
        if not any(overrides <= each for each in begun)
    ]


def learning_curve(job: Job, name: str) -> dict[int, float]:
    """Return a validation figure of a job by optimiser step; empty if no log of it can be read."""
    assert job.directory is not None
    for table in job.directory.glob("*/metrics.csv"):
        with suppress(*stored.DAMAGE, csv.Error):
            csv.field_size_limit(_FIELD)
            rows = csv.DictReader(stored.text(table, _MOST_CSV).splitlines())
            values = {int(row["step"]): float(row[name]) for row in rows if row.get(name)}
            return _curve(values)
    for folder in {events.parent for events in job.directory.glob("*/events.out.tfevents.*")}:
        # What damaged records raise is of many kinds.
        with suppress(Exception):
            if curve := _logged(folder, name):
                return curve
    return {}


def _logged(folder: Path, name: str) -> dict[int, float]:
    """Return a figure by step from TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import (
        SCALARS,
        EventAccumulator,
    )  # takes longer than all else

    for file in folder.iterdir():
        # A pipe would be waited at. The projector's files lie in folders.
        if not (file.is_file() or (file.is_dir() and "tfevents" not in file.name)):
            raise ValueError(f"{file.name} is no file")
    logging.getLogger("tensorboard").setLevel(logging.CRITICAL)  # it speaks of each file it opens
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()  # 0: all of them
    if name not in events.Tags()["scalars"]:
        return {}
    return _curve({event.step: event.value for event in events.Scalars(name)})


def _curve(values: Mapping[int, float]) -> dict[int, float]:
    """Leave out what can't be drawn."""
    return {
        step: value
        for step, value in values.items()
        if 0 <= step < _MOST_STEPS and math.isfinite(value) and abs(value) <= stored.LARGEST
    }


# -- averaging -------------------------------------------------------------------------------------


def criterion_of(jobs: Iterable[Job]) -> str:
    """Return the test figure that finished jobs are compared by: one that all of them have."""
    finished = [job for job in jobs if job.state == FINISHED]
    names = list(dict.fromkeys(job.criterion for job in finished))
    shared = [name for name in names if all(name in job.figures for job in finished)]
    return next(iter(shared or names), "")


def monitored(combinations: Iterable[Combination]) -> str:
    """Return the validation figure that finished jobs are compared by."""
    criterion = criterion_of(job for each in combinations for job in each.jobs)
    return f"val/{criterion.rpartition('/')[2]}"


def described(jobs: Iterable[Job], name: str) -> dict[str, str]:
    """Return label, unit and better direction of a figure, as the first job that has it says."""
    plain = {"label": name, "unit": "", "better": "min"}
    return next((job.described[name] for job in jobs if name in job.described), plain)


def combine(jobs: Sequence[Job], sort: str) -> list[Combination]:
    """Return the combinations of the finished jobs, sorted by a mean figure or by a key.

    The best figure comes first, if the model says which direction is better. Otherwise values come
    from the lowest to the highest.

    Raises:
        ConfigurationError: ``sort`` is neither a figure nor a key of the jobs.
    """
    groups: dict[frozenset[str], list[Job]] = {}
    for job in jobs:
        if job.state == FINISHED:
            groups.setdefault(job.identity, []).append(job)
    keys = differing_keys(jobs)
    combinations = [
        Combination(
            {key: group[0].settings[key] for key in keys if key in group[0].settings},
            group,
            _averages(group),
        )
        for group in groups.values()
    ]
    if sort in {name for job in jobs for name in job.figures}:
        sign = -1 if described(jobs, sort)["better"] == "max" else 1
        combinations.sort(
            key=lambda each: sign * each.figures[sort][0] if sort in each.figures else math.inf
        )
    elif any(sort in job.settings for job in jobs):
        combinations.sort(key=lambda each: _ordinal(each.jobs[0].settings.get(sort)))
    else:
        known = [*dict.fromkeys(name for job in jobs for name in job.figures), *keys]
        raise ConfigurationError(
            f"sort={sort}: no figure or key of these runs; choose from {', '.join(known)}"
        )
    for number, each in enumerate(combinations, 1):
        each.number = number
    return combinations


def _ordinal(value: Any) -> tuple[bool, float, str]:
    """Let numbers come in their order, and before anything else."""
    is_number = isinstance(value, int | float)
    return not is_number, value if is_number else 0.0, str(value)


def differing_keys(jobs: Iterable[Job]) -> list[str]:
    """Return the keys of the configuration in which jobs differ."""
    read = [job.settings for job in jobs if job.settings]
    keys = dict.fromkeys(key for settings in read for key in settings)
    return [
        key
        for key in keys
        if len({repr(settings[key]) if key in settings else "" for settings in read}) > 1
    ]


def _averages(jobs: Sequence[Job]) -> dict[str, Mean]:
    averages = {}
    for name in jobs[0].figures:
        values = [job.figures[name] for job in jobs if name in job.figures]
        if len(values) == len(jobs):
            averages[name] = _mean(values)
    return averages


def mean_curves(
    combinations: Sequence[Combination], most: int
) -> tuple[list[tuple[Combination, Curve]], list[Job]]:
    """Return the mean learning curves of the first combinations that have any.

    Args:
        combinations: in the order in which they are taken.
        most: how many curves.

    Returns:
        The curves, at the steps for which all jobs of a combination have a value, and the jobs
        without a curve.
    """
    name = monitored(combinations)
    curves: list[tuple[Combination, Curve]] = []
    without: list[Job] = []
    for each in combinations:
        if len(curves) == most:
            break
        logged = [learning_curve(job, name) for job in each.jobs]
        without += [job for job, curve in zip(each.jobs, logged, strict=True) if not curve]
        found = [curve for curve in logged if curve]
        steps = sorted(set.intersection(*map(set, found))) if found else []
        if steps:
            curves.append(
                (each, [(step, *_mean([curve[step] for curve in found])) for step in steps])
            )
    return curves, without


def _mean(values: Sequence[float]) -> Mean:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
