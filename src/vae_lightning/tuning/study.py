"""An Optuna study in a directory, which any number of processes can begin, join and continue."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from vae_lightning.configuration.addresses import check_database
from vae_lightning.configuration.quoting import printable
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.directory import make, remove, remove_if_empty
from vae_lightning.tuning.stored import (
    TRACES,
    check_journal,
    check_replacements,
    refusing,
)

Direction = Literal["minimize", "maximize"]

JOURNAL = "study.journal"
"""The file in a study's directory that holds its trials, if no database does."""

_ASKING = timedelta(minutes=1)  # far more than a database takes to hand out a trial


class Sampler(BaseSampler):
    """Optuna's TPE, whose draws for a trial are a function of the seed and of the trial's place.

    So no random state is kept. With one worker, a study that was stopped and continued has the same
    trials as one that wasn't stopped.
    """

    def __init__(self, seed: int) -> None:
        """Take the seed."""
        self.seed = seed

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Seed the draws of a trial."""
        place = place_of(trial, study.get_trials(deepcopy=False))
        self._tpe = TPESampler(
            seed=int(np.random.SeedSequence([self.seed, place]).generate_state(1)[0])
        )

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return what is drawn together."""
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw it."""
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw a value by itself."""
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)


def place_of(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> int:
    """Return the number that a trial would have if none had been interrupted.

    A later trial replaces each interrupted one.
    """
    while (replaced := trial.user_attrs.get("replaces")) is not None:
        trial = trials[replaced]
    return trial.number - sum("replaces" in each.user_attrs for each in trials[: trial.number])


class JournalLock:
    """The lock for adding a line to a journal: the system releases it however a process ends.

    With Optuna's own lock, others would wait half a minute after a process was killed. This one
    also removes an incomplete line, which a full disk or a killed process leaves. Optuna would
    write after it, and could then no longer read its journal.
    """

    def __init__(self, file: Path) -> None:
        """Take the journal."""
        self._file = file
        self._lock = FileLock(file.parent / ".locks" / "journal")

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        with self._file.open("rb+") as journal:
            if journal.seek(0, os.SEEK_END):
                journal.seek(-1, os.SEEK_END)
                if journal.read() != b"\n":
                    journal.seek(0)
                    journal.truncate(journal.read().rfind(b"\n") + 1)
        return True

    def release(self) -> None:
        """Let go of it."""
        self._lock.release()


@contextmanager
def telling_of(address: str | None) -> Iterator[None]:
    """Turn a database's errors into one line.

    Args:
        address: the address of the database, without its password; None: there is none.

    Raises:
        ConfigurationError: the database refuses something.
    """
    if address is None:
        yield
        return
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        problem = printable(str(error.__cause__ or error).splitlines()[0])
        raise ConfigurationError(f"storage={address}: {problem}") from error


def file_of(address: str) -> Path | None:
    """Return the file of an SQLite database; None: the address is another database's."""
    from sqlalchemy.engine import make_url

    url = make_url(address)
    return Path(url.database or "") if url.get_backend_name() == "sqlite" else None


def open_database(address: str) -> BaseStorage:
    """Return the database at an address; make Optuna's tables there if they are missing.

    Raises:
        ConfigurationError: the address isn't offered, its driver is missing, or another version of
            Optuna made the tables.
    """
    shown = check_database(address)
    waiting = {"timeout": 60} if address.startswith("sqlite") else {}
    try:
        return RDBStorage(address, engine_kwargs={"pool_pre_ping": True, "connect_args": waiting})
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or error
        raise ConfigurationError(
            f"storage={shown}: needs the Python module {missing}, which isn't installed"
        ) from error
    except RuntimeError as error:
        raise ConfigurationError(f"storage={shown}: {printable(error)}") from error


def open_journal(directory: Path) -> BaseStorage:
    """Return the journal in a directory.

    Raises:
        ConfigurationError: it is damaged, or no journal.
    """
    file = directory / JOURNAL
    backend = JournalFileBackend(str(file), lock_obj=JournalLock(file))  # type: ignore[arg-type]
    with refusing(directory, f"{JOURNAL} in it"):
        check_journal(file)
        return JournalStorage(backend)


class Study:
    """Optuna's study in a directory, as one of the processes sees it that work on it.

    A process holds ``.locks/study`` while it takes a trial, and ``.locks/<number>`` while it trains
    it. The system releases a lock however a process ends, so the next process finds the trial of a
    killed one.

    Attributes:
        directory: the directory of its files; each trial's lie in ``trials/<number>``.
        lock: the lock of the directory.
        study: Optuna's study.
        is_new: whether this process began it.
    """

    def __init__(
        self,
        directory: Path,
        address: str | None,
        directions: Sequence[Direction],
        name: str | None = None,
    ) -> None:
        """Open the study, or begin one where no trace of another lies.

        A journal holds one study, whose name doesn't matter.

        Args:
            directory: the directory.
            address: the address of a database; None: a journal in the directory. A journal needs
                less from a file system than SQLite, and a fifth of its time with several workers.
            directions: the better direction of each objective.
            name: the study's name in a database; None: the directory's.

        Raises:
            ConfigurationError: the study can't be read, or it is missing and its trials are there.
        """
        self.directory = directory
        self.lock = FileLock(directory / ".locks" / "study")
        self.is_new = self._has_asked = False
        self._is_shared = address is not None
        self._running: FileLock | None = None
        self._refuse_lost(address)
        with suppress(FileExistsError):
            make(directory / ".locks")
        # The same for every machine that shares the directory, and another for a copy of it.
        self._place = (directory / ".locks").stat().st_ino
        name = name or directory.resolve().name
        with self.lock:  # else SQLite's tables are made twice
            self._storage = open_journal(directory) if address is None else open_database(address)
            if address is None:
                names = [each.study_name for each in self._storage.get_all_studies()]
                name = names[0] if len(names) == 1 else name
            try:
                self.study = optuna.load_study(study_name=name, storage=self._storage)
            except KeyError:
                self._refuse_missing(name, address)
                self.study, self.is_new = self._begin(name, directions)
            trials = self.study.get_trials(deepcopy=False)
            with refusing(directory, "the study"):
                check_replacements(trials)

    def _refuse_lost(self, address: str | None) -> None:
        """Refuse a directory of trials whose study is missing, before a new one is made in it.

        Raises:
            ConfigurationError: it is one.
        """
        if (trace := self._trace()) is None:
            return
        file = self.directory / JOURNAL if address is None else file_of(address)
        lost = file is not None and not file.is_file()
        if file is not None and not lost and address is None:
            with refusing(self.directory, f"{JOURNAL} in it"):
                lost = not check_journal(file)
        if lost:
            missing = file is None or not file.is_file() or not file.stat().st_size
            problem = "is missing or empty" if missing else "holds no whole line"
            raise ConfigurationError(
                f"study={self.directory}: holds {trace} of a study, but {file} {problem}; "
                "put the file back, or type another study="
            )

    def _refuse_missing(self, name: str, address: str | None) -> None:
        """Refuse to begin a study where one was begun before.

        Raises:
            ConfigurationError: there are traces of it.
        """
        where = f"storage={check_database(address)}" if address else JOURNAL
        if trace := self._trace():
            raise ConfigurationError(
                f"study={self.directory}: holds {trace} of the study {printable(name)}, "
                f"which isn't in {where}; put that back, or type another study="
            )
        if address is None and (self.directory / JOURNAL).stat().st_size:
            raise ConfigurationError(
                f"study={self.directory}: {JOURNAL} in it holds no study, or several; "
                "put back a copy that holds one, or type another study="
            )

    def _trace(self) -> str | None:
        return next((each for each in TRACES if (self.directory / each).exists()), None)

    def _begin(self, name: str, directions: Sequence[Direction]) -> tuple[optuna.Study, bool]:
        """Begin a study, unless a process elsewhere is faster; say whether this one did."""
        try:
            begun = optuna.create_study(
                storage=self._storage, study_name=name, directions=list(directions)
            )
            return begun, True
        except optuna.exceptions.DuplicatedStudyError:
            return optuna.load_study(study_name=name, storage=self._storage), False

    def refuse_unknown(self) -> None:
        """Refuse a directory that holds trials which the study doesn't know, and would overwrite.

        Raises:
            ConfigurationError: it does.
        """
        there = [
            int(each.name) for each in self.directory.glob("trials/*") if each.name.isdecimal()
        ]
        known = len(self.study.get_trials(deepcopy=False))
        if unknown := [number for number in sorted(there) if number >= known]:
            raise ConfigurationError(
                f"study={self.directory}: trials/{unknown[0]} in it is of no trial of the study, "
                f"which has {known}; put back what the study had, or type another study="
            )

    def withdraw(self, own: Sequence[Path], standing: Path) -> bool:
        """Give up a study that this process began, and its files, unless a trial was trained.

        Args:
            own: the directories of trials that this process made.
            standing: what there was of the directory's path before this process made it.

        Returns:
            Whether it did.
        """
        with self.lock:
            if not self.is_new:  # of a database, so its files here are none but this process's
                if not self._is_shared or self._has_asked:
                    return False
                return clear(self.directory, standing)
            if self._trained():
                return False
            for each in own:
                self._remove(each)
            if not clear(self.directory, standing):
                return False
            if self._is_shared:
                optuna.delete_study(study_name=self.study.study_name, storage=self._storage)
            return True

    def _trained(self) -> bool:
        """Return whether a trial was begun and not refused."""
        return any(
            each.state == TrialState.RUNNING
            or (each.state.is_finished() and not each.user_attrs.get("refused"))
            for each in self.trials()
        )

    def draw_by(self, seed: int, pruning: bool) -> None:
        """Say how values are drawn, and whether trials are ended early."""
        self.study.sampler = Sampler(seed)
        self.study.pruner = MedianPruner() if pruning else NopPruner()

    def trials(self) -> list[FrozenTrial]:
        """Return the trials that count: all but those that were broken off and replaced."""
        trials = self.study.get_trials(deepcopy=False)
        replaced = {each.user_attrs.get("replaces") for each in trials}
        return [each for each in trials if each.number not in replaced]

    def ended(self) -> list[FrozenTrial]:
        """Return those of them that are done, whatever they came to."""
        return [each for each in self.trials() if each.state.is_finished()]

    def ask(self, count: int, distributions: dict[str, BaseDistribution]) -> optuna.Trial | None:
        """Take the next trial, which is this process's until ``let_go``; None after ``count``."""
        with self.lock:
            for trial in self._running_trials():
                # Asked again: it may have been ended, and let go of, since the first time.
                if self._is_abandoned(trial) and trial.number in {
                    each.number for each in self._running_trials()
                }:
                    self.put_back(trial)
            trials = self.trials()
            if len(trials) >= count and not any(
                each.state == TrialState.WAITING for each in trials
            ):
                return None
            self._has_asked = True
            asked = self.study.ask(distributions)
            self._running = FileLock(self._lock_of(asked.number))
            self._running.acquire(timeout=0)
            if self._is_shared:
                asked.set_user_attr("taken", self._place)
        return asked

    def let_go(self) -> None:
        """Say that this process is at no trial any more."""
        if self._running is not None:
            self._running.release()
            Path(self._running.lock_file).unlink(missing_ok=True)
            self._running = None

    def put_back(self, trial: FrozenTrial | optuna.Trial, own: Sequence[Path] = ()) -> None:
        """Queue an interrupted trial again, as another trial with its values and its place.

        Args:
            trial: the trial.
            own: its directory, if this process made it; that of another process stays.
        """
        with self.lock:
            if trial.number in {
                each.number for each in self.trials()
            }:  # else killed between the two
                self.study.enqueue_trial(trial.params, user_attrs={"replaces": trial.number})
            self.study.tell(trial.number, state=TrialState.FAIL)
            self._lock_of(trial.number).unlink(missing_ok=True)
        for directory in own:
            self._remove(directory)

    def _remove(self, directory: Path) -> None:
        """Remove the directory of a trial, if this process made it."""
        remove(directory)
        remove_if_empty(directory, self.directory)

    def directory_of(self, trial: FrozenTrial | optuna.Trial) -> Path:
        """Return where a trial's files lie."""
        return self.directory / "trials" / str(trial.number)

    def _running_trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _lock_of(self, number: int) -> Path:
        return self.directory / ".locks" / str(number)

    def _is_abandoned(self, trial: FrozenTrial) -> bool:
        """Return whether the process that trained a trial is gone.

        Nothing is known about a process whose directory is elsewhere. A copy of that directory
        holds a copy of its lock, which says nothing.
        """
        file = self._lock_of(trial.number)
        taken = trial.user_attrs.get("taken")  # True: by an earlier version of this code
        if not file.exists():  # killed while it asked, or at work elsewhere
            age = datetime.now() - (trial.datetime_start or datetime.now())
            return not self._is_shared or (taken is None and age > _ASKING)
        if self._is_shared and taken not in (None, True, self._place):
            return False
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        return True


def clear(directory: Path, standing: Path) -> bool:
    """Remove what a study begins with from a directory that this process made.

    Whatever else lies there stays: a trial of another process, or a file of the user's.

    Args:
        directory: the directory.
        standing: what there was of its path before.

    Returns:
        Whether it did; a directory in which a trial lies isn't touched.
    """
    locks = directory / ".locks"
    known = {"study", "journal"}
    if (directory / "trials").exists() or (
        locks.exists() and not {path.name for path in locks.iterdir()} <= known
    ):
        return False
    for name in (JOURNAL, "tune.log"):
        (directory / name).unlink(missing_ok=True)
    for folder in (directory / ".hydra", locks):
        remove(folder)
    remove_if_empty(directory, standing)
    return True
