"""A search: trials, each a training run with some values replaced, until there are as many as asked for, and what was best."""

import gc
import logging
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from optuna.trial import TrialState
from pydantic import PositiveInt

from vae_lightning import experiment, findings, interruption, report, space
from vae_lightning.configuration import ConfigurationError, check
from vae_lightning.data import Seed
from vae_lightning.directories import make_run_directory, run_of_its_own, save_configuration, use_run_directory
from vae_lightning.findings import NAMES, shown
from vae_lightning.study import DIRECTIONS, Study, hide_password, telling_of

log = logging.getLogger(__name__)

_PASSED_OVER = (ConfigurationError, FloatingPointError, MemoryError, RuntimeError)  # torch's lack of memory is a RuntimeError
_PATIENCE = 3  # trials that may be refused, if all are, before the fault is looked for in what was typed


class Reporting(Callback):
    """Keeps the validation figures of a trial's best epoch, and ends a trial that Optuna would prune.

    Attributes:
        best: ``elbo``, ``rate`` and ``distortion`` in nats per image, and the ``epoch``; empty before the first validation.
        pruned: whether it was ended.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        """Take the trial."""
        self.trial = trial
        self.best: dict[str, float] = {}
        self.pruned = False
        self._elbo: float | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the figures if they are the best."""
        if trainer.sanity_checking:
            return
        figures = trainer.callback_metrics
        self._elbo, rate, log_likelihood = (float(figures[f"val/{name}"]) for name in ("elbo", "kl", "log_likelihood"))
        if not self.best or self._elbo > self.best["elbo"]:
            self.best = {"elbo": self._elbo, "rate": rate, "distortion": -log_likelihood, "epoch": trainer.current_epoch + 1}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the epoch's ELBO, and end if the trial isn't worth going on with."""
        interruption.check()
        if self._elbo is not None and len(self.trial.study.directions) == 1:  # with several Optuna takes no reports
            self.trial.report(self._elbo, trainer.current_epoch + 1)
            self._elbo = None
            at_its_end = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
            if not at_its_end and self.trial.should_prune():
                self.pruned = trainer.should_stop = True


@contextmanager
def opened(config: DictConfig) -> Iterator["Search"]:
    """Begin or join the study that a configuration names; where nothing comes of a new one, nothing is left of it.

    Raises:
        ConfigurationError: a value is refused, the study is another one, or its database can't be reached.
    """
    for name in ("optuna", "alembic"):  # they tell each step
        logging.getLogger(name).setLevel(logging.WARNING)
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    experiment.require("storage", config.storage, str | None)
    with telling_of(config.storage):
        search = Search(config)
        with report.log_to(search.directory / "tune.log"):
            try:
                log.info("%s: %d of %d trials so far", search.directory, len(search.study.ended()), search.count)
                yield search
            except BaseException as error:
                if search.is_nothing:
                    search.study.remove()
                elif isinstance(error, interruption.Interrupted):
                    log.info("Stopped. Go on with\n  %s", search.command)
                raise


class Search:
    """A search, as one of the processes that work on it sees it.

    Attributes:
        directory: the study's.
        study: where its trials are kept.
        plan: what they have in common, in plain containers, as it is kept in the study: ``config``, those of the ``overrides``
            that a trial has too, and the files ``chosen`` by group.
    """

    def __init__(self, config: DictConfig) -> None:
        """Begin the study, or join it.

        Raises:
            ConfigurationError: a value is refused, or the study was begun with another one.
        """
        overrides: list[str] = list(HydraConfig.get().overrides.task)
        self.count: int = experiment.require("trials", config.trials, PositiveInt)
        self._data_dir: str | None = config.data.dir
        self._take(space.plan_of(config, overrides, HydraConfig.get().runtime.choices))
        for each in overrides:
            if (key := space.key_of(each)) in self.space.distributions:
                raise ConfigurationError(f"{each}: is searched; with ~search.{key} it is that in every trial")
        self._address: str | None = config.storage and hide_password(config.storage)
        self.directory = _make_directory(experiment.require("study", config.study, str | None))
        stored = self.directory / ".hydra" / "config.yaml"
        if self._data_dir is None and stored.exists() and (kept := OmegaConf.load(stored).data.dir) is not None:
            begun_in = OmegaConf.load(stored.with_name("hydra.yaml")).hydra.runtime.cwd
            self._data_dir = str(Path(begun_in) / Path(kept).expanduser())
        try:
            self._refuse_another_database(stored)
            self.study = Study(self.directory, config.storage, self.plan["config"]["objectives"])
            with self.study.lock:
                goes_on = {space.key_of(each) for each in overrides} <= {*space.BESIDE, "data.dir"}
                self._begun_here = not self._join(goes_on)
                if not stored.exists():
                    self._store(config, overrides)
        except BaseException:
            if not stored.exists():
                shutil.rmtree(self.directory)
            raise
        self.study.draw_by(self.plan["config"]["seed"], self.plan["config"]["pruning"])

    def _take(self, plan: dict[str, Any]) -> None:
        """Check what trials have in common, as far as it isn't for the parts of a trial to check.

        Raises:
            ConfigurationError: a value is refused.
        """
        config = plan["config"]
        check("train", space.of_a_trial(config, {}, None), plan["overrides"])
        experiment.require("seed", config["seed"], Seed)
        objectives, pruning = config["objectives"], experiment.require("pruning", config["pruning"], bool)
        if tuple(experiment.require_list("objectives", objectives, str)) not in DIRECTIONS:
            raise ConfigurationError(f"objectives={objectives}: must be [elbo], or [rate,distortion]")
        if pruning and len(objectives) > 1:
            raise ConfigurationError(
                "pruning=true: a trial is compared by one figure, and objectives=[rate,distortion] are two; type pruning=false"
            )
        for group, key, value in (
            ("data", "val_size", 0),
            ("data", "validate_on_test", True),
            ("trainer", "limit_val_batches", 0),
        ):
            if config[group].get(key) == value:
                raise ConfigurationError(
                    f"{group}.{key}={value!s}: a search goes by images that are held out for it, and never by the test images"
                )
        self.plan, self.space = plan, space.read_space(config)
        for key in ("devices", "num_nodes"):
            if config["trainer"][key] != 1 or f"trainer.{key}" in self.space.distributions:
                raise ConfigurationError(
                    f"trainer.{key}: a trial is trained by one process; several search at once by one line with study="
                )

    def _refuse_another_database(self, stored: Path) -> None:
        """Check that the directory's study is in the database that was typed."""
        if not stored.exists():
            return
        kept = OmegaConf.load(stored).storage
        if kept != self._address:
            where = f"in {kept}, so type its storage=" if kept else "in its directory, so leave out storage="
            raise ConfigurationError(f"study={self.directory}: its trials are {where}")

    def _join(self, goes_on: bool) -> bool:
        """Take what the study's trials have in common, if it was begun before; else put it there.

        Args:
            goes_on: whether nothing else was typed than to go on with it.

        Raises:
            ConfigurationError: something else was typed than the study was begun with, or it is another program's.
        """
        stored = self.study.study.user_attrs.get("plan")
        if stored is None:
            if self.study.trials():
                raise ConfigurationError(f"study={self.directory}: the database has another program's study of that name")
            self.study.study.set_user_attr("plan", self.plan)
            return False
        if not goes_on and (found := space.changes(self.plan["config"], stored["config"])):
            key, value = space.first_of(found)
            before = OmegaConf.select(OmegaConf.create(stored["config"]), key)
            raise ConfigurationError(
                f"{key}={value}: the study in {self.directory} was begun with {before}; go on with it by its own line, or by "
                f"study= and trials= alone"
            )
        self._take(stored)
        return True

    def _store(self, config: DictConfig, overrides: list[str]) -> None:
        """Write the study's ``.hydra/``, without a password."""
        shown = [each if space.key_of(each) != "storage" else f"storage={self._address}" for each in overrides]
        with run_of_its_own("tune", self.directory, shown):
            composed: Any = OmegaConf.merge(config, {"storage": self._address})
            save_configuration(composed, self.directory)

    @property
    def is_nothing(self) -> bool:
        """Whether this process has begun the study, and nothing has been done in it that would be missed."""
        return self._begun_here and not any(
            each.state == TrialState.RUNNING or (each.state.is_finished() and not each.user_attrs.get("refused"))
            for each in self.study.trials()
        )

    @property
    def command(self) -> str:
        """What goes on with the study."""
        beside = {"study": self.directory, "trials": self.count, "storage": self._address, "data.dir": self._data_dir}
        typed = [f"{key}={value}" for key, value in beside.items() if value is not None]
        return shlex.join([report.program("python"), "-m", "vae_lightning.tune", *typed])

    # -- trials -------------------------------------------------------------------------------------------------------

    def ask(self) -> optuna.Trial | None:
        """Take the next trial, if there is one left to do."""
        interruption.defer()  # from here on a signal waits for what is written of a trial; its training has an ear for it
        trial = self.study.ask(self.count, self.space.distributions)
        if trial is None:
            interruption.defer_no_longer()
        return trial

    def run(self, trial: optuna.Trial) -> None:
        """Train a trial and record what it came to; one that can't be trained is recorded as failed.

        Raises:
            ConfigurationError: all trials so far were refused.
            Interrupted: by SIGTERM or Ctrl-C; the trial will be done anew.
        """
        began, values = time.perf_counter(), self.space.values(trial.params)
        try:
            state, figures, outcome = self._outcome(trial, values)
            interruption.defer()
            self.study.study.tell(trial, figures, state)
        except BaseException:
            interruption.defer()
            self.study.put_back(trial)
            raise
        finally:
            self.study.let_go()
            gc.collect()  # the trainer and its parts refer to each other
        if state != TrialState.COMPLETE:
            shutil.rmtree(self.study.directory_of(trial) / "checkpoints", ignore_errors=True)
        ended = self.study.ended()
        tried, seconds = " ".join(f"{key}={shown(value)}" for key, value in values.items()), time.perf_counter() - began
        log.info("%d/%d   trial %d   %s   %s   %.1f s", len(ended), self.count, trial.number, outcome, tried, seconds)
        refused = [each.user_attrs["problem"] for each in ended if each.user_attrs.get("refused")]
        if len(ended) == len(refused) >= _PATIENCE:
            raise ConfigurationError(f"all of {len(ended)} trials were refused, the last by: {refused[-1]}")

    def _outcome(self, trial: optuna.Trial, values: dict[str, Any]) -> tuple[TrialState, list[float] | None, str]:
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
            return TrialState.PRUNED, None, f"pruned at ELBO {best['elbo']:.2f}"
        objectives = self.plan["config"]["objectives"]
        words = ", ".join(f"{NAMES[name]} {best[name]:.2f}" for name in objectives)
        return TrialState.COMPLETE, [best[name] for name in objectives], words

    def _train(self, trial: optuna.Trial, values: dict[str, Any]) -> Reporting:
        """Train a trial in its directory, with its lines in its own log."""
        directory, reporting = self.study.directory_of(trial), Reporting(trial)
        config = space.of_a_trial(self.plan["config"], values, self._data_dir)
        replaced = ({"data.dir": self._data_dir} if self._data_dir else {}) | values
        overrides = [*self.plan["overrides"], *(f"{key}={value}" for key, value in replaced.items())]
        with run_of_its_own("train", directory, overrides), _off_the_terminal():
            parts = experiment.build(config)
            try:
                with report.log_to(directory / "train.log"):
                    log.info(report.describe(parts.module, parts.data, parts.trainer))
                    parts.trainer.callbacks.append(reporting)  # type: ignore[attr-defined]
                    experiment.fit(parts)
            finally:
                if parts.lock:
                    parts.lock.release()
        if not reporting.best:
            raise ConfigurationError("it ends before its first validation, so that there is nothing to compare it by")
        return reporting

    def finish(self) -> None:
        """Say which trials were best, and write the recipe of the best one and the pictures.

        Raises:
            ConfigurationError: none was completed.
        """
        with self.study.lock:
            text = findings.tell(self.study, self.plan, self.space, self._data_dir)
        log.info("\n%s", text)


def _make_directory(named: str | None) -> Path:
    """Make the study's directory, or take the one that was named.

    Raises:
        ConfigurationError: other files lie in it.
    """
    if named is None:
        directory = make_run_directory("tune")
    else:
        directory = Path(named).expanduser()
        if (run := HydraConfig.get().run.dir) != ".":
            raise ConfigurationError(f"study={named}: names the directory, so leave out hydra.run.dir={run}")
        if directory.exists() and not (directory / ".locks").is_dir() and any(directory.iterdir()):
            raise ConfigurationError(f"study={named}: not a study's directory, and not empty")
        interruption.heed()
        directory.mkdir(parents=True, exist_ok=True)
        use_run_directory(directory)
    (directory / ".locks").mkdir(exist_ok=True)
    return directory


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
