"""An Optuna study in a directory, which any number of processes can begin, join and continue."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

from vae_lightning.errors import ConfigurationError

Direction = Literal["minimize", "maximize"]

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


def hide_password(address: str) -> str:
    """Return the address of a database without the password in it.

    Raises:
        ConfigurationError: it is none.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(address).render_as_string(hide_password=True)
    except ArgumentError as error:
        raise ConfigurationError(
            "storage: no address of a database; write one as sqlite:///trials.db"
        ) from error


@contextmanager
def telling_of(address: str | None) -> Iterator[None]:
    """Tell in a line what a database refuses.

    Raises:
        ConfigurationError: it does.
    """
    if address is None:
        yield
        return
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or error
        raise ConfigurationError(
            f"storage={hide_password(address)}: asks for the Python module {missing}, "
            "which isn't there"
        ) from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        problem = str(error.__cause__ or error).splitlines()[0]
        raise ConfigurationError(f"storage={hide_password(address)}: {problem}") from error


def open_database(address: str) -> BaseStorage:
    """Return the database at an address; make Optuna's tables there if they are missing."""
    waiting = {"timeout": 60} if address.startswith("sqlite") else {}
    return RDBStorage(address, engine_kwargs={"pool_pre_ping": True, "connect_args": waiting})


def open_journal(directory: Path) -> BaseStorage:
    """Return the journal in a directory."""
    file = directory / "study.journal"
    return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalLock(file)))  # type: ignore[arg-type]


class Study:
    """Optuna's study in a directory, as one of the processes sees it that work on it.

    A process holds ``.locks/study`` while it takes a trial, and ``.locks/<number>`` while it trains
    it. The system releases a lock however a process ends, so the next process finds the trial of a
    killed one.

    Attributes:
        directory: the directory of its files; each trial's lie in ``trials/<number>``.
        lock: the lock of the directory.
        study: Optuna's study.
    """

    def __init__(
        self, directory: Path, address: str | None, directions: Sequence[Direction]
    ) -> None:
        """Open the study, or an empty one.

        Args:
            directory: the directory. Its last part is the study's name in a database.
            address: the address of a database; None: a journal in the directory. A journal needs
                less from a file system than SQLite, and a fifth of its time with several workers.
            directions: the better direction of each objective.
        """
        self.directory = directory
        self.lock = FileLock(directory / ".locks" / "study")
        self._is_shared = address is not None
        self._running: FileLock | None = None
        with self.lock:  # else SQLite's tables are made twice
            self._storage = open_journal(directory) if address is None else open_database(address)
            name = directory.resolve().name
            try:
                self.study = optuna.load_study(study_name=name, storage=self._storage)
            except KeyError:
                self.study = optuna.create_study(
                    storage=self._storage,
                    study_name=name,
                    directions=list(directions),
                    load_if_exists=True,
                )

    def remove(self) -> None:
        """Take the study out of its database, and remove its directory."""
        optuna.delete_study(study_name=self.study.study_name, storage=self._storage)
        shutil.rmtree(self.directory)

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
            asked = self.study.ask(distributions)
            self._running = FileLock(self._lock_of(asked.number))
            self._running.acquire(timeout=0)
            if self._is_shared:
                asked.set_user_attr("taken", True)
        return asked

    def let_go(self) -> None:
        """Say that this process is at no trial any more."""
        if self._running is not None:
            self._running.release()
            Path(self._running.lock_file).unlink(missing_ok=True)
            self._running = None

    def put_back(self, trial: FrozenTrial | optuna.Trial) -> None:
        """Queue an interrupted trial again, as another trial with its values and its place."""
        with self.lock:
            if trial.number in {
                each.number for each in self.trials()
            }:  # else killed between the two
                self.study.enqueue_trial(trial.params, user_attrs={"replaces": trial.number})
            self.study.tell(trial.number, state=TrialState.FAIL)
        shutil.rmtree(self.directory_of(trial), ignore_errors=True)
        self._lock_of(trial.number).unlink(missing_ok=True)

    def directory_of(self, trial: FrozenTrial | optuna.Trial) -> Path:
        """Return where a trial's files lie."""
        return self.directory / "trials" / str(trial.number)

    def _running_trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def _lock_of(self, number: int) -> Path:
        return self.directory / ".locks" / str(number)

    def _is_abandoned(self, trial: FrozenTrial) -> bool:
        """Return whether the process that trained a trial is gone.

        Nothing is known about a process whose directory is elsewhere.
        """
        file = self._lock_of(trial.number)
        if not file.exists():  # killed while it asked, or at work elsewhere
            age = datetime.now() - (trial.datetime_start or datetime.now())
            return not self._is_shared or ("taken" not in trial.user_attrs and age > _ASKING)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        return True
