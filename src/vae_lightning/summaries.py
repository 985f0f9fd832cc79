"""What came of many runs: read from their directories, averaged over seeds, written as tables. No torch in this room."""

import csv
import io
import json
import logging
import math
import re
import statistics
import textwrap
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

from vae_lightning import sweeps
from vae_lightning.configuration import ConfigurationError

FINISHED = "finished"
LABELS = {"test/elbo": "test ELBO", "test/log_likelihood": "log-likelihood", "test/kl": "KL"}
"""The figures of a table, as the training run itself calls them; the CSV files have all."""

_MOVES_NO_FIGURE = ("resume", "sweep", "data.dir")  # data counts by its SHA-256, wherever it lies
_COMPARED = ("data", "binarization", "dequantize", "likelihood", "samples", "evaluation_seed", "test_images")
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
_WIDTH = 100


@dataclass
class Job:
    """A run, or a job of a sweep.

    Attributes:
        directory: where its files lie; None: it has none.
        state: ``finished``, and counted; else why it isn't: ``repeated``, ``failed``, ``unfinished``, ``damaged``,
            ``never begun``.
        problem: what is known of it beyond that.
        overrides: what a job without a directory would have been run with.
        seed: None where it couldn't be read.
        settings: the resolved configuration, keys in dots, without the seed and what moves no figure.
        figures: test figures by name, most in nats per image.
        protocol: what the figures were measured by.
    """

    directory: Path | None
    state: str
    problem: str = ""
    overrides: str = ""
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The directory as one would type it from here, or the overrides."""
        return _typed(self.directory) if self.directory else self.overrides

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
        figures: mean and sample standard deviation over the jobs, None of one job, of each figure that all of them have.
        number: its place among the others, from 1.
    """

    settings: dict[str, Any]
    jobs: list[Job]
    figures: dict[str, tuple[float, float | None]]
    number: int = 0


# -- reading ----------------------------------------------------------------------------------------------------------


def find_jobs(directories: Sequence[Path]) -> list[Job]:
    """Return the training runs in directories, however deep, and the jobs that a sweep there asked for and has no trace of.

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
            raise ConfigurationError(f"sweep={directory}: no runs in it; name a sweep's directory, or one of run directories")
        files |= {file.resolve() for file in here}
        asked += [file.resolve() for file in swept]
    runs = sorted((file.parent.parent for file in files), key=_natural)
    # A search keeps a configuration of its own above its runs.
    above = {parent for run in runs for parent in run.parents}
    found = {run: _read(run) for run in runs if run not in above or sweeps.is_finished(run)}
    jobs = {run: job for run, job in found.items() if job}
    _pass_over_repeated(jobs)
    return [*jobs.values(), *(job for file in dict.fromkeys(asked) for job in _never_begun(file, list(jobs)))]


def _natural(path: Path) -> list[str | int]:
    """Let job 10 come after job 9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", str(path))]


def _typed(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _read(directory: Path) -> Job | None:
    """Return the job of a run directory; None: another command's, which trains nothing."""
    job = Job(directory, "damaged")
    file = directory / ".hydra" / "config.yaml"
    try:
        config = _load_yaml(file)
        if "model" not in config:
            return None
        job.seed, job.settings = int(config.pop("seed")), _resolved(config, directory)
        file = directory / "metrics.json"
        if sweeps.is_finished(directory):
            job.figures, job.protocol = _load_figures(file)
            job.state = FINISHED
            return job
    except _DAMAGE as error:
        job.problem = f"{file.relative_to(directory)}, {type(error).__name__}: {' '.join(str(error).split())}"
        return job
    steps = [int(each.stem[5:]) for each in directory.glob("checkpoints/step_*.ckpt") if each.stem[5:].isdecimal()]
    error_line = _last_error(directory / "train.log")
    job.state = "failed" if error_line else "unfinished"
    job.problem = f"saved up to step {max(steps):,}" if steps else "no checkpoint"
    job.problem += f"; {error_line}" if error_line else "; stopped, or at work still"
    return job


def _load_yaml(file: Path) -> Any:
    """Read a file as OmegaConf writes it, in a tenth of the time that OmegaConf takes to."""
    return yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _resolved(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Return a configuration without references, keys in dots, and without what moves no figure."""
    config.pop("logger", None)
    settings: dict[str, Any] = {"runtime": {}}
    if "${hydra:" in str(config):
        settings = _load_yaml(directory / ".hydra" / "hydra.yaml")["hydra"]
    with sweeps.as_in_job(OmegaConf.create(settings)):
        resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    return {key: value for key, value in _leaves(resolved) if key not in _MOVES_NO_FIGURE}


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, node


def _load_figures(file: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the figures of a ``metrics.json`` and its protocol.

    Raises:
        Exception: one of ``_DAMAGE``.
    """
    content = json.loads(file.read_text())
    figures = {name: float(value) for name, value in content["figures"].items() if not isinstance(value, list)}
    for name, value in figures.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}")
    return figures, {**content["protocol"], "test_images": content["run"].get("test_images")}


def _last_error(log: Path) -> str:
    """Return the last line of the traceback that a log ends with; empty: it ends with none."""
    if not log.is_file():
        return ""
    records = re.split(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ", log.read_text(errors="replace"), flags=re.MULTILINE)
    return records[-1].rstrip().splitlines()[-1] if records[-1].startswith("Traceback") else ""


def _pass_over_repeated(jobs: Mapping[Path, Job]) -> None:
    """Let the newest of the finished jobs with one configuration and one seed count alone."""
    newest: dict[Any, Job] = {}
    finished = [run for run, job in jobs.items() if job.state == FINISHED]
    for run in sorted(finished, key=lambda run: (run / "metrics.json").stat().st_mtime_ns, reverse=True):
        job = jobs[run]
        counted = newest.setdefault((job.identity, job.seed), job)
        if counted is not job:
            job.state, job.problem = "repeated", f"configuration and seed of {counted.name}, which is newer and counts"


def _never_begun(file: Path, runs: Iterable[Path]) -> list[Job]:
    """Return the jobs that a ``multirun.yaml`` asks for and that no run of its directory was begun by, as far as it tells."""
    try:
        settings = _load_yaml(file)["hydra"]
        params = settings["sweeper"].get("params") or {}
        line = [*(f"{key}={value}" for key, value in params.items()), *settings["overrides"]["task"]]
        asked: list[list[str]] = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(line), None)[0]
        here = [run for run in runs if run.is_relative_to(file.parent)]
        begun = [set(_load_yaml(run / ".hydra" / "overrides.yaml")) for run in here]
    except (*_DAMAGE, HydraException):
        return []
    wanted = [{each for each in job if not each.startswith("hydra")} for job in asked]
    common = set.intersection(*wanted) if len(wanted) > 1 else set()
    problem = f"or refused at once: asked for in {_typed(file)}"
    return [
        Job(None, "never begun", problem, " ".join(each for each in job if each not in common))
        for job, overrides in zip(asked, wanted, strict=True)
        if not any(overrides <= each for each in begun)
    ]


def learning_curve(job: Job) -> dict[int, float]:
    """Return the validation ELBO of a job by optimiser step, nats per image; empty: no log of it can be read."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator  # takes longer than all else

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of each file that it opens
    assert job.directory is not None
    for table in job.directory.glob("*/metrics.csv"):
        with suppress(*_DAMAGE), table.open(newline="") as lines:
            return {int(row["step"]): float(row["val/elbo"]) for row in csv.DictReader(lines) if row.get("val/elbo")}
    for folder in {events.parent for events in job.directory.glob("*/events.out.tfevents.*")}:
        log = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()  # 0: all of them
        if "val/elbo" in log.Tags()["scalars"]:
            return {event.step: event.value for event in log.Scalars("val/elbo")}
    return {}


# -- averaging --------------------------------------------------------------------------------------------------------


def combine(jobs: Sequence[Job], sort: str) -> list[Combination]:
    """Return the combinations of the finished jobs, sorted by a mean figure, the best first, or by a key.

    Likelihoods and bounds are the better the higher they are, anything else comes from the lowest to the highest.

    Raises:
        ConfigurationError: ``sort`` is neither a figure nor a key of theirs.
    """
    groups: dict[frozenset[str], list[Job]] = {}
    for job in jobs:
        if job.state == FINISHED:
            groups.setdefault(job.identity, []).append(job)
    keys = differing_keys(jobs)
    combinations = [
        Combination({key: group[0].settings[key] for key in keys if key in group[0].settings}, group, _averages(group))
        for group in groups.values()
    ]
    if sort in {name for job in jobs for name in job.figures}:
        sign = -1 if re.search("(elbo|log_likelihood|bound)$", sort) else 1
        combinations.sort(key=lambda each: sign * each.figures[sort][0] if sort in each.figures else math.inf)
    elif any(sort in job.settings for job in jobs):
        combinations.sort(key=lambda each: _ordinal(each.jobs[0].settings.get(sort)))
    else:
        known = [*dict.fromkeys(name for job in jobs for name in job.figures), *keys]
        raise ConfigurationError(f"sort={sort}: no figure or key of these runs; choose from {', '.join(known)}")
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
    return [key for key in keys if len({repr(settings[key]) if key in settings else "" for settings in read}) > 1]


def _averages(jobs: Sequence[Job]) -> dict[str, tuple[float, float | None]]:
    averages = {}
    for name in jobs[0].figures:
        values = [job.figures[name] for job in jobs if name in job.figures]
        if len(values) == len(jobs):
            averages[name] = _mean(values)
    return averages


def mean_curves(
    combinations: Iterable[Combination], most: int
) -> tuple[list[tuple[Combination, list[tuple[int, float, float | None]]]], list[Job]]:
    """Return the mean learning curves of the first combinations that have any, and their jobs that haven't.

    Args:
        combinations: in the order in which they are taken.
        most: how many curves.

    Returns:
        Step, mean and sample standard deviation of each, None of one job, at the steps for which all its jobs have a value.
    """
    curves: list[tuple[Combination, list[tuple[int, float, float | None]]]] = []
    without: list[Job] = []
    for each in combinations:
        if len(curves) == most:
            break
        logged = [learning_curve(job) for job in each.jobs]
        without += [job for job, curve in zip(each.jobs, logged, strict=True) if not curve]
        found = [curve for curve in logged if curve]
        steps = sorted(set.intersection(*map(set, found))) if found else []
        if steps:
            curves.append((each, [(step, *_mean([curve[step] for curve in found])) for step in steps]))
    return curves, without


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


# -- words and tables -------------------------------------------------------------------------------------------------


def text_of(value: Any) -> str:
    """Return a value of the configuration as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def label(settings: Mapping[str, Any], number: int | None = None) -> str:
    """Return settings as a line that fits below a chart: keys by their last word, and the number where not all find room."""
    text = ", ".join(f"{key.rpartition('.')[2]}={text_of(value)}" for key, value in settings.items())
    if len(text) <= 50:
        return text
    return f"no. {number}: {text[:40]}…" if number else f"{text[:49]}…"


def table(combinations: Sequence[Combination], sort: str) -> str:
    """Return a row for each combination, at most 100 characters wide where the settings allow it."""
    figures = {name: _aligned(cells) for name, cells in _cells(combinations, sort).items()}
    counts = [str(len(each.jobs)) for each in combinations]
    columns = [["n", *counts], *([LABELS.get(name, name), *cells] for name, cells in figures.items())]
    columns = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    tokens = [[f"{key}={text_of(value)}" for key, value in each.settings.items()] for each in combinations]
    left = _WIDTH - sum(len(column[0]) + 2 for column in columns) - 7
    wrapped = [["combination"], *(_wrapped(row, left) for row in tokens)]
    width = max(len(line) for lines in wrapped for line in lines)
    rows = []
    for number, (first, *rest) in enumerate(wrapped):
        cells = [str(number or "").rjust(3), first.ljust(width), *(column[number] for column in columns)]
        rows += [f"  {'  '.join(cells)}".rstrip(), *(f"{'':7}{line}" for line in rest)]
    return "\n".join(rows)


def _wrapped(tokens: Sequence[str], width: int) -> list[str]:
    lines = textwrap.wrap(" ".join(tokens), width, break_long_words=False, break_on_hyphens=False) or ["all runs"]
    return lines if len(lines) <= 4 else [*lines[:3], f"… {len(tokens)} keys: summary.csv"]


def _cells(combinations: Sequence[Combination], sort: str) -> dict[str, list[tuple[float, float | None] | None]]:
    """Return the columns of figures that are shown."""
    names = dict.fromkeys([*LABELS, sort])
    columns = {name: [each.figures.get(name) for each in combinations] for name in names}
    return {name: column for name, column in columns.items() if any(column)}


def _aligned(cells: Sequence[tuple[float, float | None] | None]) -> list[str]:
    """Return means and deviations one below the other."""
    means = [f"{cell[0]:.2f}" if cell else "" for cell in cells]
    deviations = ["" if cell is None or cell[1] is None else f"{cell[1]:.2f}" for cell in cells]
    width = max(map(len, deviations))
    return [
        mean.rjust(max(map(len, means))) + (f" ± {deviation:>{width}}" if deviation else " " * (width + 3) * bool(width))
        for mean, deviation in zip(means, deviations, strict=True)
    ]


def remarks(jobs: Sequence[Job], combinations: Sequence[Combination]) -> list[str]:
    """Return what must be known to read the figures: what they are, and where they don't compare."""
    counted = [job for each in combinations for job in each.jobs]
    said = ["mean ± sample standard deviation over the n seeds of a combination, in nats per image"]
    said += list(dict.fromkeys(str(job.protocol.get("meaning")) for job in counted))
    for key in _COMPARED:
        values = dict.fromkeys(text_of(job.protocol.get(key)) for job in counted)
        if len(values) > 1:
            said.append(f"not all compare with each other, for {key} differs: {'; '.join(values)}")
    for each in combinations:
        incomplete = dict.fromkeys(name for job in each.jobs for name in job.figures if name not in each.figures)
        if incomplete:
            said.append(f"not averaged, as not all jobs of combination {each.number} have it: {', '.join(incomplete)}")
    return said


def not_counted(jobs: Sequence[Job]) -> list[tuple[str, str, str, str]]:
    """Return state, name, settings and problem of each job that no mean holds."""
    keys = differing_keys(jobs)
    rows = []
    for job in jobs:
        if job.state != FINISHED:
            settings = {key: job.settings[key] for key in keys[:4] if key in job.settings} | {"seed": job.seed}
            known = " ".join(f"{key}={text_of(value)}" for key, value in settings.items() if job.settings)
            rows.append((job.state, job.name, known, job.problem))
    return rows


def listing(rows: Sequence[tuple[str, str, str, str]], jobs: int) -> str:
    """Return what isn't counted as lines for the terminal."""
    lines = [f"Not counted, {len(rows)} of {jobs} jobs:"]
    for state, name, known, problem in rows:
        lines.append(f"  {state:<11}  {name}  {known}".rstrip())
        lines += textwrap.wrap(problem, _WIDTH, initial_indent=" " * 15, subsequent_indent=" " * 15)
    return "\n".join(lines)


def markdown(
    combinations: Sequence[Combination],
    sort: str,
    said: Sequence[str],
    rows: Sequence[tuple[str, str, str, str]],
    plots: Sequence[str],
) -> str:
    """Return a page with the table, what must be known to read it, what isn't counted, and the plots."""
    keys = list(dict.fromkeys(key for each in combinations for key in each.settings))
    figures = _cells(combinations, sort)
    head = [*keys, "n", *(LABELS.get(name, name) for name in figures)]
    lines = ["# Summary", "", _row(head), _row([*("---" for _ in keys), *("---:" for _ in head[len(keys) :])])]
    for number, each in enumerate(combinations):
        settings = [text_of(each.settings[key]) if key in each.settings else "" for key in keys]
        cells = [_aligned([column[number]])[0] for column in figures.values()]
        lines.append(_row([*settings, str(len(each.jobs)), *cells]))
    lines += ["", f"Sorted by `{sort}`.", "", *(f"- {each}" for each in said)]
    if rows:
        lines += [
            "",
            "## Not counted",
            "",
            _row(["state", "job", "settings", "what is known"]),
            _row(["---"] * 4),
            *map(_row, rows),
        ]
    for name in plots:
        lines += ["", f"![{name.replace('_', ' ')}]({name}.png)"]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def combinations_csv(combinations: Sequence[Combination]) -> str:
    """Return a row for each combination: its settings, the number of its jobs, mean and deviation of each figure."""
    keys = dict.fromkeys(key for each in combinations for key in each.settings)
    figures = dict.fromkeys(name for each in combinations for name in each.figures)
    head = [*keys, "n", *(f"{name} {what}" for name in figures for what in ("mean", "std"))]
    rows = [
        [
            *(text_of(each.settings[key]) if key in each.settings else "" for key in keys),
            len(each.jobs),
            *(value for name in figures for value in each.figures.get(name, (None, None))),
        ]
        for each in combinations
    ]
    return _csv([head, *rows])


def jobs_csv(jobs: Sequence[Job]) -> str:
    """Return a row for each job, counted or not."""
    keys = differing_keys(jobs)
    figures = dict.fromkeys(name for job in jobs for name in job.figures)
    rows = [
        [
            job.name,
            job.state,
            *(text_of(job.settings[key]) if key in job.settings else "" for key in keys),
            job.seed,
            *(job.figures.get(name) for name in figures),
            job.problem,
        ]
        for job in jobs
    ]
    return _csv([["job", "state", *keys, "seed", *figures, "problem"], *rows])


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    written = io.StringIO()
    csv.writer(written).writerows(rows)
    return written.getvalue()
