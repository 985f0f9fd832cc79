"""What a sweep leaves: which of its jobs are finished, and the table at its end.

Its jobs may run in other processes and on other machines, so they and the sweep's own process
communicate through files. This module doesn't import torch.
"""

import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from vae_lightning.runs import atomic_files
from vae_lightning.runs.directory import is_finished

NOT_RUN = "not run"
CUT_OFF = "ended without a word: killed, or out of memory"


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
        self._file("").mkdir(parents=True)
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
        """Remove the files."""
        shutil.rmtree(self._file(""), ignore_errors=True)

    def _file(self, name: str | int) -> Path:
        return self.sweep / ".jobs" / f"{name}"


def resolve(config: DictConfig, settings: DictConfig) -> str:
    """Return a job's configuration as text, with its references resolved.

    The mirror is left out: a run directory holds the run's own place, but the sweep's command line
    holds one address for all.

    Args:
        config: the configuration.
        settings: Hydra's own settings of that job. Where it runs makes no difference.
    """
    with as_in_job(settings):
        plain: Any = OmegaConf.to_container(config, resolve=True)
    plain.pop("mirror", None)
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
        with suppress(
            OSError, YAMLError, OmegaConfBaseException, AttributeError
        ):  # broken off while it was written
            config: Any = OmegaConf.load(file)
            text = resolve(config, OmegaConf.load(file.with_name("hydra.yaml")).hydra)
            if text not in jobs or not is_finished(jobs[text]):
                jobs[text] = directory
    return jobs


def make_job_directory(directory: Path) -> Path:
    """Return a job's directory, or make the next free one if it holds another job's files."""
    if not any(directory.iterdir()):
        return directory
    for number in itertools.count(2):
        other = directory.with_name(f"{directory.name}_{number}")
        with suppress(FileExistsError):
            other.mkdir()
            return other
    raise AssertionError  # itertools.count does not end


def table(jobs: Sequence[Job]) -> str:
    """Return a row for each job.

    It has the job's number, the overrides it differs in, the figure that its checkpoint was chosen
    by, its directory, and what went wrong.
    """
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    metrics = [None if job.problem else _metrics(job) for job in jobs]
    finished = [each for each in metrics if each]
    names = dict.fromkeys(each["comparison"] for each in finished)
    shared = [name for name in names if all(name in each["figures"] for each in finished)]
    name = next(iter(shared or names), "")
    label = f"test {finished[0]['described'][name]['label']}" if shared else "figure"
    rows = [("job", "overrides", label, "directory")]
    for number, (job, each) in enumerate(zip(jobs, metrics, strict=True)):
        place = os.path.relpath(job.directory) if job.directory else ""
        value = f"{each['figures'][name]:.2f}" if each and name in each["figures"] else ""
        differs = " ".join(override for override in job.overrides if override not in common)
        problem = ": ".join(filter(None, (place, job.problem)))
        rows.append((str(number), differs, value, problem))
    width, wide = (max(len(row[column]) for row in rows) for column in (1, 2))
    return "\n".join(
        f"  {number:>3}  {overrides:<{width}}  {figure:>{wide}}  {place}"
        for number, overrides, figure, place in rows
    )


def _metrics(job: Job) -> dict[str, Any] | None:
    """Return what is in the ``metrics.json`` of a finished job."""
    if job.directory is None or not is_finished(job.directory):
        return None
    content: dict[str, Any] = json.loads((job.directory / "metrics.json").read_text())
    return content
