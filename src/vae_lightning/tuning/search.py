"""A search: a number of trials, each a training run with some values replaced, and the best one."""

import gc
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState
from pydantic import PositiveInt

from vae_lightning.configuration.addresses import check_database
from vae_lightning.configuration.building import require, require_list
from vae_lightning.configuration.keys import check
from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import command, override, printable
from vae_lightning.data.batches import Seed
from vae_lightning.errors import ConfigurationError
from vae_lightning.models.base import Model
from vae_lightning.runs import signals
from vae_lightning.runs.directory import (
    adopt,
    make,
    make_run_directory,
    nearest_standing,
    refuse_links,
    remove,
    run_of_its_own,
    save_configuration,
    use_run_directory,
)
from vae_lightning.runs.log_file import log_to
from vae_lightning.training import experiment, report
from vae_lightning.training.trainer import CRITERION
from vae_lightning.tuning import search_space, stored
from vae_lightning.tuning.objectives import Objective, read_objectives
from vae_lightning.tuning.report import shown, tell
from vae_lightning.tuning.study import JOURNAL, Study, clear, file_of, telling_of

log = logging.getLogger(__name__)

_PASSED_OVER = (
    ConfigurationError,
    FloatingPointError,
    MemoryError,
    RuntimeError,
)  # torch's lack of memory is a RuntimeError
_OF_SQLITE = ("", "-journal", "-wal", "-shm")  # the files of a database
_PATIENCE = (
    3  # trials that may be refused, if all are, before the fault is looked for in what was typed
)


class Reporting(Callback):
    """Keeps the validation figures of a trial's best epoch, and ends a trial that would be pruned.

    Attributes:
        best: each objective by name, the ``criterion``, and the ``epoch``; empty before the first
            validation.
        pruned: whether the trial was ended.
    """

    def __init__(
        self, trial: optuna.Trial, objectives: Sequence[Objective], criterion: Objective
    ) -> None:
        """Take the trial, what it is compared by, and what its best epoch is chosen by."""
        self.trial = trial
        self.objectives = objectives
        self.criterion = criterion
        self.best: dict[str, float] = {}
        self.pruned = False
        self._latest: float | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the figures if they are the best.

        Raises:
            ConfigurationError: this trial's model has no such figure.
        """
        if trainer.sanity_checking:
            return
        published = trainer.callback_metrics.items()
        figures = {name.removeprefix("val/"): float(value) for name, value in published}
        for each in (*self.objectives, self.criterion):
            if each.source not in figures:
                raise ConfigurationError(f"the model of this trial has no figure {each.source}")
        criterion = self.criterion.of(figures)
        values = {each.name: each.of(figures) for each in self.objectives}
        self._latest = values[self.objectives[0].name]
        if not self.best or self.criterion.is_better(criterion, self.best["criterion"]):
            epoch = trainer.current_epoch + 1
            self.best = {**values, "criterion": criterion, "epoch": epoch}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the epoch's figure, and end if the trial isn't worth going on with."""
        signals.check()
        # With several objectives Optuna takes no reports.
        if self._latest is not None and len(self.objectives) == 1:
            epoch = trainer.current_epoch + 1
            self.trial.report(self._latest, epoch)
            self._latest = None
            ends = epoch == trainer.max_epochs or trainer.global_step == trainer.max_steps
            if not ends and self.trial.should_prune():
                self.pruned = trainer.should_stop = True


@contextmanager
def opened(config: DictConfig) -> Iterator["Search"]:
    """Begin or join the study that a configuration names; remove a new one if nothing was done.

    Raises:
        ConfigurationError: a value is refused, the study is another one, or its database can't be
            reached.
    """
    for name in ("optuna", "alembic"):  # they tell each step
        logging.getLogger(name).setLevel(logging.WARNING)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    storage = require("storage", config.storage, str | None)
    with telling_of(storage and check_database(storage)):
        search = Search(config)
        with log_to(search.directory / "tune.log"):
            try:
                if search.shared_as:
                    log.info(
                        "%s: works on the study %s in %s, as every copy of this directory does",
                        search.directory,
                        *map(printable, search.shared_as),
                    )
                log.info(
                    "%s: %d of %d trials so far",
                    search.directory,
                    len(search.study.ended()),
                    search.count,
                )
                yield search
            except BaseException as error:
                if not search.withdraw() and isinstance(error, signals.Interrupted):
                    log.info("Stopped. Go on with\n  %s", search.command)
                raise


class Search:
    """A search, as one of the processes that work on it sees it.

    Attributes:
        directory: the directory of the study.
        study: where its trials are kept.
        shared_as: the study's name in its database and that database's address, if the directory
            has another name: it was renamed, or copied.
        plan: what the trials have in common, in plain containers, as the study keeps it:
            ``config``, those ``overrides`` that a trial has too, and the files ``chosen`` by group.
    """

    def __init__(self, config: DictConfig) -> None:
        """Begin the study, or join it.

        Raises:
            ConfigurationError: a value is refused, or the study was begun with another one.
        """
        overrides: list[str] = list(HydraConfig.get().overrides.task)
        self.count: int = require("trials", config.trials, PositiveInt)
        self._data_dir: str | None = config.data.get("dir")
        self._take(search_space.plan_of(config, overrides, HydraConfig.get().runtime.choices))
        for each in overrides:
            if (key := search_space.key_of(each)) in self.space.distributions:
                raise ConfigurationError(
                    f"{each}: is searched; with ~search.{key} it is that in every trial"
                )
        self._address: str | None = config.storage and check_database(config.storage)
        self.shared_as: tuple[str, str] | None = None
        self._is_made_here = False
        self._own: list[Path] = []  # the directories of trials that this process made
        try:
            self._make_directory(require("study", config.study, str | None))
            self._open(config, overrides)
        except BaseException:
            self.withdraw()
            raise
        self.study.draw_by(self.plan["config"]["seed"], self.plan["config"]["pruning"])

    def _make_directory(self, named: str | None) -> None:
        """Make the study's directory, or take the one that was named.

        Raises:
            ConfigurationError: other files lie in it, or links.
        """
        if named is None:
            self.directory = make_run_directory("tune")
            self._standing, self._is_made_here = self.directory.parent, True
        else:
            self.directory = directory = Path(expanded(named))
            if (run := HydraConfig.get().run.dir) != ".":
                raise ConfigurationError(
                    f"study={named}: names the directory, so leave out hydra.run.dir={run}"
                )
            self._standing, self._is_made_here = nearest_standing(str(directory)), False
            signals.heed()
            if not directory.exists():
                directory.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError):  # of another process that begins the study too
                    make(directory)
                    self._is_made_here = True
            if not directory.is_dir():
                raise ConfigurationError(f"study={named}: not a directory")
            if not self._is_made_here:
                self._is_made_here = self._refuse_foreign(named)
            use_run_directory(directory)

    def _refuse_foreign(self, named: str) -> bool:
        """Refuse a directory that is neither empty nor a study's.

        Returns:
            Whether it is empty, so that all that comes into it is this search's.

        Raises:
            ConfigurationError: it is another, or has links in it.
        """
        there = {path.name for path in self.directory.iterdir()}
        if not there:
            adopt(self.directory)
            return True
        database = self._address and file_of(self._address)
        names = {f"{database.name}{each}" for each in _OF_SQLITE} if database else set()
        is_database_alone = (
            database and database.resolve().parent == self.directory.resolve() and there <= names
        )
        if not there & {".locks", JOURNAL, "trials"} and not is_database_alone:
            raise ConfigurationError(f"study={named}: not a study's directory, and not empty")
        refuse_links(self.directory, "study")
        return False

    def _open(self, config: DictConfig, overrides: list[str]) -> None:
        """Open the study in the directory, and take what its trials have in common.

        Raises:
            ConfigurationError: it can't be read, or was begun with other values.
        """
        kept = stored.read_kept(self.directory)
        if self._data_dir is None and kept is not None:
            self._data_dir = kept.data_dir
        journal = self.directory / JOURNAL
        if kept is not None or (journal.is_file() and journal.stat().st_size):
            self._refuse_another_database(kept.storage if kept else None)
        directions = [each.direction for each in self.objectives]
        name = kept.name if kept else self.directory.resolve().name
        self.study = Study(self.directory, config.storage, directions, name)
        if self._address and name != self.directory.resolve().name:
            self.shared_as = (name, self._address)
        with self.study.lock:
            goes_on = {search_space.key_of(each) for each in overrides} <= {
                *search_space.BESIDE,
                "data.dir",
            }
            self._join(goes_on)
            self.study.refuse_unknown()
            if kept is None:
                self._store(config, overrides)

    def _take(self, plan: dict[str, Any]) -> None:
        """Check what trials have in common, as far as it isn't for the parts of a trial to check.

        Raises:
            ConfigurationError: a value is refused.
        """
        config = plan["config"]
        check("train", search_space.of_a_trial(config, {}, None), plan["overrides"])
        require("seed", config["seed"], Seed)
        pruning = require("pruning", config["pruning"], bool)
        names = require_list("objectives", config["objectives"], str)
        for group, key, value in (
            ("data", "val_size", 0),
            ("data", "validate_on_test", True),
            ("trainer", "limit_val_batches", 0),
        ):
            if config[group].get(key) == value:
                raise ConfigurationError(
                    f"{group}.{key}={value!s}: a search goes by images that are held out for it, "
                    "and never by the test images"
                )
        self.plan, self.space = plan, search_space.read_space(config)
        sketch = self._sketch()
        self.objectives = objectives = read_objectives(names, sketch)
        self.criterion = (
            objectives[0] if len(objectives) == 1 else read_objectives([CRITERION], sketch)[0]
        )
        if pruning and len(objectives) > 1:
            raise ConfigurationError(
                "pruning=true: a trial is compared by one figure, "
                "and objectives=[rate,distortion] are two; type pruning=false"
            )
        for key in ("devices", "num_nodes"):
            if config["trainer"][key] != 1 or f"trainer.{key}" in self.space.distributions:
                raise ConfigurationError(
                    f"trainer.{key}: a trial is trained by one process; "
                    "several search at once by one line with study="
                )

    def _sketch(self) -> Model:
        """Return the model that trials start from, without memory for its weights.

        The search may complete a configuration, so its first values are tried as well.

        Raises:
            ConfigurationError: the configuration is refused with and without them.
        """
        config = self.plan["config"]
        try:
            bare = search_space.of_a_trial(config, {}, None)
            return experiment.build_sketch(bare, config["seed"])[0]
        except ConfigurationError:
            with suppress(ConfigurationError):
                first = search_space.of_a_trial(config, self.space.first(), None)
                return experiment.build_sketch(first, config["seed"])[0]
            raise

    def _refuse_another_database(self, kept: str | None) -> None:
        """Check that the directory's study is in the database that was typed.

        Args:
            kept: the address that was typed when it was begun.
        """
        if _without_password(kept) != _without_password(self._address):
            where = (
                f"in {printable(kept)}, so type its storage="
                if kept
                else "in its directory, so leave out storage="
            )
            raise ConfigurationError(f"study={self.directory}: its trials are {where}")

    def _join(self, goes_on: bool) -> None:
        """Take what the study's trials have in common, if it was begun before; else put it there.

        Args:
            goes_on: whether nothing else was typed than to go on with it.

        Raises:
            ConfigurationError: the typed values differ from the study's, or another program made
                the study.
        """
        study = self.study.study
        attributes, trials = study.user_attrs, study.get_trials(deepcopy=False)
        directions = [each.name.lower() for each in study.directions]
        if "plan" not in attributes:
            if attributes or trials or directions != [each.direction for each in self.objectives]:
                where = self._address or f"{JOURNAL} in it"
                raise ConfigurationError(
                    f"study={self.directory}: the study {printable(study.study_name)} in {where} "
                    "is another program's; type another study="
                )
            study.set_user_attr("plan", self.plan)
            return
        plan = attributes["plan"]
        with stored.refusing(self.directory, "the study"):
            stored.check_plan(plan)
        if not goes_on and (found := search_space.changes(self.plan["config"], plan["config"])):
            key, value = search_space.first_of(found)
            before = search_space.value_of(plan["config"], key)
            begun = "without it" if before is None else f"with {printable(before)}"
            raise ConfigurationError(
                f"{printable(key)}={value}: the study in {self.directory} was begun {begun}; go on "
                "with it by its own line, or by study= and trials= alone"
            )
        try:
            with stored.refusing(self.directory, "the study"):
                self._take(plan)
        except ConfigurationError as error:
            said = printable(" ".join(str(error).splitlines()))
            named = f"study={self.directory}: "
            raise ConfigurationError(named + said.removeprefix(named)) from error
        with stored.refusing(self.directory, "the study"):
            if directions != [each.direction for each in self.objectives]:
                raise ValueError("its directions are not those of its objectives")
            stored.check_trials(trials, self.space, len(self.objectives))

    def _store(self, config: DictConfig, overrides: list[str]) -> None:
        """Write the study's ``.hydra/``, without a password."""
        shown = [
            each
            if search_space.key_of(each) != "storage"
            else override("storage", self._address or "")
            for each in overrides
        ]
        # Another directory may have begun the study, by a line with other values than this one's.
        own = {key: config[key] for key in search_space.BESIDE} | {"storage": self._address}
        composed = OmegaConf.create(self.plan["config"] | own)
        if "dir" in composed.data:
            composed.data.dir = self._data_dir
        with run_of_its_own("tune", self.directory, shown):
            save_configuration(composed, self.directory)

    def withdraw(self) -> bool:
        """Remove the study's directory if this process made it, and nothing was done in it.

        Returns:
            Whether it did.
        """
        if not self._is_made_here:
            return False
        study: Study | None = getattr(self, "study", None)
        journal = self.directory / JOURNAL
        try:
            if study is not None:
                return study.withdraw(self._own, self._standing)
            is_begun = journal.is_file() and stored.check_journal(journal)
            return not is_begun and clear(self.directory, self._standing)
        except Exception:  # what made the search fail makes this fail too, and is reported
            return False

    @property
    def command(self) -> str:
        """What goes on with the study; a password is left to the driver's own ways to have it."""
        typed = [override("study", self.directory), f"trials={self.count}"]
        if (address := _without_password(self._address)) is not None:
            typed.append(override("storage", address))
        if self._data_dir is not None:
            typed.append(override("data.dir", self._data_dir))
        return command("tune", *typed)

    # -- trials ------------------------------------------------------------------------------------

    def ask(self) -> optuna.Trial | None:
        """Take the next trial, if there is one left to do."""
        # From here on a signal waits until the trial is recorded. Training itself checks for it.
        signals.defer()
        trial = self.study.ask(self.count, self.space.distributions)
        if trial is None:
            signals.defer_no_longer()
        return trial

    def run(self, trial: optuna.Trial) -> None:
        """Train a trial and record its result; a trial that can't be trained is recorded as failed.

        Raises:
            ConfigurationError: all trials so far were refused.
            Interrupted: by SIGTERM or Ctrl-C; the trial will be trained again.
        """
        began, values = time.perf_counter(), self.space.values(trial.params)
        before = len(self._own)
        try:
            state, figures, outcome = self._outcome(trial, values)
            signals.defer()
            self.study.study.tell(trial, figures, state)
        except BaseException:
            signals.defer()
            self.study.put_back(trial, self._own[before:])
            raise
        finally:
            self.study.let_go()
            gc.collect()  # the trainer and its parts refer to each other
        if state != TrialState.COMPLETE:
            for directory in self._own[before:]:
                remove(directory / "checkpoints")
        ended = self.study.ended()
        tried, seconds = (
            " ".join(f"{key}={shown(value)}" for key, value in values.items()),
            time.perf_counter() - began,
        )
        log.info(
            "%d/%d   trial %d   %s   %s   %.1f s",
            len(ended),
            self.count,
            trial.number,
            outcome,
            tried,
            seconds,
        )
        refused = [each.user_attrs["problem"] for each in ended if each.user_attrs.get("refused")]
        if len(ended) == len(refused) >= _PATIENCE:
            raise ConfigurationError(
                f"all of {len(ended)} trials were refused, the last by: {printable(refused[-1])}"
            )

    def _outcome(
        self, trial: optuna.Trial, values: dict[str, Any]
    ) -> tuple[TrialState, list[float] | None, str]:
        """Train a trial, and return what to tell Optuna of it, and the user."""
        try:
            reporting = self._train(trial, values)
        except _PASSED_OVER as error:
            problem = str(error).strip().partition("\n")[0][:200] or type(error).__name__
            trial.set_user_attr("problem", problem)
            trial.set_user_attr("refused", isinstance(error, ConfigurationError))
            return TrialState.FAIL, None, f"failed: {problem}"
        best = reporting.best
        trial.set_user_attr("figures", best)
        if reporting.pruned:
            return (
                TrialState.PRUNED,
                None,
                f"pruned at {self.criterion.figure.label} {best['criterion']:.2f}",
            )
        named = self.objectives
        words = ", ".join(f"{each.figure.label} {best[each.name]:.2f}" for each in named)
        return TrialState.COMPLETE, [best[each.name] for each in named], words

    def _train(self, trial: optuna.Trial, values: dict[str, Any]) -> Reporting:
        """Train a trial in its directory, with its lines in its own log."""
        directory, reporting = (
            self.study.directory_of(trial),
            Reporting(trial, self.objectives, self.criterion),
        )
        config = search_space.of_a_trial(self.plan["config"], values, self._data_dir)
        replaced = ({"data.dir": self._data_dir} if self._data_dir else {}) | values
        overrides = [
            *self.plan["overrides"],
            *(search_space.typed(key, value) for key, value in replaced.items()),
        ]
        with run_of_its_own("train", directory, overrides), _off_the_terminal():
            parts = experiment.build(config)
            self._own.append(parts.directory)
            try:
                with log_to(directory / "train.log"):
                    log.info(report.describe(parts.module.model, parts.data, parts.trainer))
                    parts.trainer.callbacks.append(reporting)  # type: ignore[attr-defined]
                    experiment.fit(parts)
            finally:
                if parts.lock:
                    parts.lock.release()
        if not reporting.best:
            raise ConfigurationError(
                "it ends before its first validation, so that there is nothing to compare it by"
            )
        return reporting

    def finish(self) -> None:
        """Say which trials were best, and write the recipe of the best one and the pictures.

        Raises:
            ConfigurationError: none was completed.
        """
        with self.study.lock:
            text = tell(
                self.study, self.plan, self.space, self.objectives, self.criterion, self._data_dir
            )
        log.info("\n%s", text)


def _without_password(address: str | None) -> str | None:
    """Return an address as ``check_database`` shows it, without the stars for a password."""
    return address and address.replace(":***@", "@")


@contextmanager
def _off_the_terminal() -> Iterator[None]:
    """Keep a trial's own lines to its own log meanwhile; warnings are shown."""
    handlers = {handler: handler.level for handler in logging.getLogger().handlers}
    try:
        for handler in handlers:
            handler.setLevel(logging.WARNING)
        yield
    finally:
        for handler, level in handlers.items():
            handler.setLevel(level)
