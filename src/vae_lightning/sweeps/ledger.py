"""What a sweep leaves: which of its jobs are finished, and the table at its end.

Its jobs may run in other processes and on other machines, so they and the sweep's own process
communicate through files. This module doesn't import torch.
"""

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vae_lightning.configuration.quoting import printable
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import atomic_files
from vae_lightning.runs.directory import is_finished, make
from vae_lightning.sweeps import stored

NOT_RUN = "not run"
CUT_OFF = "ended without a word: killed, or out of memory"
INTERRUPTED = "interrupted"
QUICK_PASS = "trainer.fast_dev_run: a quick pass, which measures nothing"

LOCK = ".lock"
"""The file in a sweep's directory that the sweep's own process has locked."""

MOVABLE = ("trainer.accelerator", "data.dir", "data.file")
"""The keys by which a job may go on at another place than it was begun."""

_OURS = re.compile(r"stop|earlier|[0-9]+|\.(earlier|[0-9]+)\.tmp")
"""The names of the files in ``.jobs``; the last are what a killed process leaves of one."""


@dataclass
class Job:
    """A job of a sweep.

    Attributes:
        overrides: what it is run with.
        problem: why it isn't finished; empty: it is.
        directory: where its files lie; None: it left none.
    """

    overrides: Sequence[str]
    problem: str = NOT_RUN
    directory: Path | None = None


@dataclass
class Ledger:
    """How a sweep's process and its jobs communicate: files in ``<sweep>/.jobs`` while it runs.

    Attributes:
        sweep: the sweep's directory.
    """

    sweep: Path

    def begin(self, earlier: dict[str, Path]) -> None:
        """Begin, with the jobs that there are from earlier, by their resolved configuration."""
        self.end()  # of a sweep whose process was killed
        self._file("").mkdir(parents=True, exist_ok=True)
        atomic_files.write(
            self._file("earlier"),
            json.dumps({text: str(path) for text, path in earlier.items()}).encode(),
        )

    def earlier(self) -> dict[str, Path]:
        """Return the jobs that there are from earlier."""
        return {
            text: Path(path)
            for text, path in json.loads(self._file("earlier").read_bytes()).items()
        }

    def note(self, number: int, job: Job) -> None:
        """Write down how far a job has come, which its process may not live to tell."""
        content = {"problem": job.problem, "directory": job.directory and str(job.directory)}
        atomic_files.write(self._file(number), json.dumps(content).encode())

    def noted(self, number: int, overrides: Sequence[str]) -> Job:
        """Return a job as it was noted."""
        try:
            noted = json.loads(self._file(number).read_bytes())
        except FileNotFoundError:
            return Job(overrides)
        return Job(overrides, noted["problem"], noted["directory"] and Path(noted["directory"]))

    def stop(self) -> None:
        """Let all jobs end: those that run, and those that haven't begun."""
        self._file("stop").touch()

    def is_stopped(self) -> bool:
        """Return whether all jobs are to end."""
        return self._file("stop").exists()

    def end(self) -> None:
        """Remove the files, by their names."""
        with suppress(OSError):  # another's file is left in it
            for file in self._file("").iterdir():
                if _OURS.fullmatch(file.name):
                    file.unlink()
            self._file("").rmdir()

    def _file(self, name: str | int) -> Path:
        return self.sweep / ".jobs" / f"{name}"


@contextmanager
def locked(sweep: Path) -> Iterator[None]:
    """Keep other processes from running the same sweep while the body runs.

    The system releases the lock however this process ends.

    Raises:
        ConfigurationError: another process runs the sweep.
    """
    from filelock import (
        FileLock,
        Timeout,
    )  # here, for a mistyped key waits for what is imported above

    lock = FileLock(sweep / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        place = printable(os.path.relpath(sweep))
        raise ConfigurationError(
            f"sweep={place}: a sweep is running there; wait for its end, or stop it with Ctrl-C"
        ) from error
    try:
        yield
    finally:
        lock.release()


def resolve(config: DictConfig, settings: DictConfig) -> str:
    """Return a job's configuration as text, with its references resolved.

    What may change on the way is left out: where the data lie, and what the job is trained on. So
    is the mirror: a run directory holds the run's own place, but the sweep's command line holds one
    address for all.

    Args:
        config: the configuration.
        settings: Hydra's own settings of that job. Where it runs makes no difference.
    """
    with as_in_job(settings):
        plain: Any = OmegaConf.to_container(config, resolve=True)
    plain.pop("mirror", None)
    for key in MOVABLE:
        group, _, name = key.partition(".")
        plain.get(group, {}).pop(name, None)
    return OmegaConf.to_yaml(OmegaConf.create(plain), sort_keys=True)


@contextmanager
def as_in_job(settings: DictConfig) -> Iterator[None]:
    """Make ``${hydra:…}`` refer to a job's own settings in the body, except for where it runs."""
    context: Any = OmegaConf.create({"hydra": OmegaConf.to_container(settings, resolve=False)})
    context.hydra.runtime.output_dir = "."
    hydra_config = HydraConfig.instance()
    present, hydra_config.cfg = hydra_config.cfg, context
    try:
        yield
    finally:
        hydra_config.cfg = present


def stored_jobs(sweep: Path) -> dict[str, Path]:
    """Return the job directories of a sweep by their resolved configuration.

    Of several with the same one, the finished one counts, else the newest.
    """
    jobs: dict[str, Path] = {}
    for file in sorted(sweep.rglob(".hydra/config.yaml"), key=lambda file: file.stat().st_mtime_ns):
        directory = file.parent.parent
        with suppress(*stored.DAMAGE):  # broken off while it was written
            config: Any = OmegaConf.create(stored.load_configuration(directory))
            settings: Any = OmegaConf.create(stored.load_yaml(file.with_name("hydra.yaml")))
            text = resolve(config, settings.hydra)
            if text not in jobs or not is_finished(jobs[text]):
                jobs[text] = directory
    return jobs


def refuse_another_line(sweep: str, typed: Sequence[str], begun: Mapping[str, Path]) -> list[int]:
    """Compare the jobs of a line with those that a sweep has begun.

    All may be among those, or all of those among them: then values were added to the line.

    Args:
        sweep: as it was typed.
        typed: the resolved configuration of each job of the line.
        begun: the jobs of the sweep, by theirs.

    Returns:
        The numbers of the jobs that the sweep hasn't begun.

    Raises:
        ConfigurationError: naming the keys that have changed.
    """
    new = [number for number, text in enumerate(typed) if text not in begun]
    gone = [_flat(text) for text in begun if text not in typed]
    if new and gone:
        job = _flat(typed[new[0]])
        before = min(gone, key=lambda other: len(job.items() ^ other.items()))
        changed = [key for key in {**before, **job} if before.get(key) != job.get(key)]
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        was, now = (
            ", ".join(f"{key}={one[key]}" if key in one else f"no {key}" for key in changed[:3])
            for one in (before, job)
        )
        raise ConfigurationError(
            f"sweep={sweep}: was begun with {was}{more}, and this line has {now}; "
            "repeat its line, to which values may be added, or leave out sweep= for a new sweep"
        )
    return new


def _flat(text: str) -> dict[str, str]:
    """Return the values of a resolved configuration as text, by dotted key."""
    return {
        printable(key): "null" if value is None else printable(value)
        for key, value in stored.leaves(OmegaConf.to_container(OmegaConf.create(text)))
    }


def make_job_directory(directory: Path) -> Path:
    """Return a job's directory, or make the next free one if it holds another job's files."""
    if not any(directory.iterdir()):
        return directory
    for number in itertools.count(2):
        other = directory.with_name(f"{directory.name}_{number}")
        with suppress(FileExistsError):
            make(other)
            return other
    raise AssertionError  # itertools.count does not end


def table(jobs: Sequence[Job]) -> str:
    """Return a row for each job.

    It has the job's number, the overrides it differs in, the figure that its checkpoint was chosen
    by, its directory, and what went wrong. A quick pass has no figure.
    """
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    read = [_measured(job) for job in jobs]
    finished = [each for each in read if isinstance(each, stored.Measured)]
    names = dict.fromkeys(each.criterion for each in finished)
    shared = [name for name in names if all(name in each.figures for each in finished)]
    name = next(iter(shared or names), "")
    label = "figure"
    if shared and name in finished[0].described:
        label = f"test {finished[0].described[name]['label']}"
    rows = [("job", "overrides", label, "directory")]
    for number, (job, each) in enumerate(zip(jobs, read, strict=True)):
        place = os.path.relpath(job.directory) if job.directory else ""
        value, problem = "", each
        if isinstance(each, stored.Measured):
            value, problem = written(each.figures[name]) if name in each.figures else "", ""
        differs = " ".join(override for override in job.overrides if override not in common)
        last = ": ".join(filter(None, (place, str(problem))))
        rows.append((str(number), printable(differs), value, printable(last)))
    width, wide = (max(len(row[column]) for row in rows) for column in (1, 2))
    return "\n".join(
        f"  {number:>3}  {overrides:<{width}}  {figure:>{wide}}  {place}"
        for number, overrides, figure, place in rows
    )


def written(figure: float) -> str:
    """Return a figure as it stands in a table."""
    return f"{figure:.2f}" if abs(figure) < 1e9 else f"{figure:.3g}"


def _measured(job: Job) -> stored.Measured | str:
    """Return what a finished job has measured, or why it shows no figure."""
    if job.problem or job.directory is None or not is_finished(job.directory):
        return job.problem
    try:
        if stored.is_quick_pass(job.directory):
            return QUICK_PASS
        return stored.measured(job.directory)
    except stored.DAMAGE as error:
        return f"its files are damaged: {stored.problem_of(error)}"
