"""The results of many runs: read from their directories and averaged over seeds.

This module doesn't import torch.
"""

import csv
import json
import logging
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.directory import is_finished
from vae_lightning.sweeps.ledger import as_in_job

FINISHED = "finished"
_MOVES_NO_FIGURE = (
    "resume",
    "sweep",
    "mirror",
    "data.dir",
)  # data counts by its SHA-256, wherever it lies
_DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
    yaml.YAMLError,
    OmegaConfBaseException,
)
"""What reading a file raises that is broken off, or another than expected."""
_EARLIER = "written by version 0.1, and only version 0.1 summarizes it"

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
            ``unfinished``, ``damaged`` or ``never begun``.
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
        return _from_here(self.directory) if self.directory else self.overrides

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
    files, asked = set(), []
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
        files |= {file.resolve() for file in here}
        asked += [file.resolve() for file in swept]
    runs = sorted((file.parent.parent for file in files), key=_natural)
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
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", str(path))]


def _from_here(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _read(directory: Path) -> Job | None:
    """Return the job of a run directory; None: another command's, which trains nothing."""
    job = Job(directory, "damaged")
    file = directory / ".hydra" / "config.yaml"
    try:
        config = _load_yaml(file)
        if isinstance(config, dict) and "model" not in config:
            return None
        job.settings = _resolved(config, directory)
        job.seed = job.settings.pop("seed")
        for key in _MOVES_NO_FIGURE:
            job.settings.pop(key, None)
        file = directory / "metrics.json"
        if is_finished(directory):
            _load_figures(file, job)
            job.state = FINISHED
            return job
    except _DAMAGE as error:
        job.problem = (
            f"{file.relative_to(directory)}, {type(error).__name__}: {' '.join(str(error).split())}"
        )
        return job
    steps = [
        int(each.stem[5:])
        for each in directory.glob("checkpoints/step_*.ckpt")
        if each.stem[5:].isdecimal()
    ]
    error_line = _last_error(directory / "train.log")
    job.state = "failed" if error_line else "unfinished"
    job.problem = f"saved up to step {max(steps):,}" if steps else "no checkpoint"
    job.problem += f"; {error_line}" if error_line else "; stopped, or at work still"
    return job


def _load_yaml(file: Path) -> Any:
    """Read a file as OmegaConf writes it, in a tenth of the time that OmegaConf takes to."""
    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)(file.read_text()).get_single_data()


def _resolved(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return a configuration by dotted key, with references resolved and without its loggers."""
    if "${criterion:" in str(config):  # a resolver that only version 0.1 has
        raise ValueError(_EARLIER)
    config.pop("logger", None)
    settings: dict[str, Any] = {"runtime": {}}
    if "${hydra:" in str(config):
        settings = _load_yaml(directory / ".hydra" / "hydra.yaml")["hydra"]
    with as_in_job(OmegaConf.create(settings)):
        resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    return dict(_leaves(resolved))


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _load_figures(file: Path, job: Job) -> None:
    """Read a ``metrics.json`` into a job.

    Raises:
        Exception: one of ``_DAMAGE``.
    """
    content = json.loads(file.read_text())
    if "described" not in content:
        raise ValueError(_EARLIER)
    values = content["figures"].items()
    figures = {name: float(value) for name, value in values if not isinstance(value, list)}
    for name, value in figures.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
    job.protocol = {**content["protocol"], "test_examples": content["run"].get("test_examples")}
    job.described = {name: dict(how) for name, how in content["described"].items()}
    job.criterion, job.terms = str(content["comparison"]), list(content["terms"])
    job.figures = figures


def _last_error(log: Path) -> str:
    """Return the last line of the traceback that a log ends with; empty: it ends with none."""
    if not log.is_file():
        return ""
    records = re.split(
        r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ",
        log.read_text(errors="replace"),
        flags=re.MULTILINE,
    )
    return records[-1].rstrip().splitlines()[-1] if records[-1].startswith("Traceback") else ""


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

    Empty if a file can't be read.
    """
    try:
        settings = _load_yaml(file)["hydra"]
        params = settings["sweeper"].get("params") or {}
        line = [
            *(f"{key}={value}" for key, value in params.items()),
            *settings["overrides"]["task"],
        ]
        asked: list[list[str]] = BasicSweeper.split_arguments(
            OverridesParser.create().parse_overrides(line), None
        )[0]
        here = [run for run in runs if run.is_relative_to(file.parent)]
        begun = [set(_load_yaml(run / ".hydra" / "overrides.yaml")) for run in here]
    except (*_DAMAGE, HydraException):
        return []
    wanted = [{each for each in job if not each.startswith("hydra")} for job in asked]
    common = set.intersection(*wanted) if len(wanted) > 1 else set()
    problem = f"or refused at once: asked for in {_from_here(file)}"
    return [
        Job(None, "never begun", problem, " ".join(each for each in job if each not in common))
        for job, overrides in zip(asked, wanted, strict=True)
        if not any(overrides <= each for each in begun)
    ]


def learning_curve(job: Job, name: str) -> dict[int, float]:
    """Return a validation figure of a job by optimiser step; empty if no log of it can be read."""
    from tensorboard.backend.event_processing.event_accumulator import (
        SCALARS,
        EventAccumulator,
    )  # takes longer than all else

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each file that it opens
    assert job.directory is not None
    for table in job.directory.glob("*/metrics.csv"):
        with suppress(*_DAMAGE), table.open(newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if row.get(name)]
            values = {int(row["step"]): float(row[name]) for row in rows}
            return {step: value for step, value in values.items() if math.isfinite(value)}
    for folder in {events.parent for events in job.directory.glob("*/events.out.tfevents.*")}:
        log = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()  # 0: all of them
        if name in log.Tags()["scalars"]:
            return {
                event.step: event.value for event in log.Scalars(name) if math.isfinite(event.value)
            }
    return {}


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
