"""Several processes share a study; when any is killed the rest go on, and the study is the same."""

import signal
import subprocess
import sys
from collections import Counter
from datetime import timedelta

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState
from sqlalchemy.engine import make_url

from conftest import LONG
from vae_lightning.configuration.addresses import DATABASES, check_database
from vae_lightning.errors import ConfigurationError
from vae_lightning.tuning import study as studies
from vae_lightning.tuning.study import Study, place_of

SPACE = {"x": FloatDistribution(-1, 1), "n": IntDistribution(1, 9)}
WORKER = """
import os, signal, sys, time
from pathlib import Path
import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from vae_lightning.tuning.study import Study

directory, address, killed = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "killed"
study = Study(directory, address or None, ["maximize"])
study.draw_by(1, pruning=False)
(directory / f"{os.getpid()}.ready").touch()
while len(list(directory.glob("*.ready"))) < 2:
    time.sleep(0.01)
space = {"x": FloatDistribution(-1, 1), "n": IntDistribution(1, 9)}
while (trial := study.ask(12, space)) is not None:
    print(trial.number, flush=True)
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
    study.study.tell(trial, -trial.params["x"] ** 2)
    study.let_go()
"""


def opened(directory):
    (directory / ".locks").mkdir(parents=True, exist_ok=True)
    study = Study(directory, None, ["maximize"])
    study.draw_by(1, pruning=False)
    return study


def go_on(study, count, stop_at=None):
    """Do trials, but the one of a number, which is broken off."""
    while (trial := study.ask(count, SPACE)) is not None:
        if trial.number == stop_at:
            return trial
        study.study.tell(trial, -(trial.params["x"] ** 2) - trial.params["n"])
        study.let_go()
    return None


def done(study):
    return [
        (trial.params, trial.values)
        for trial in sorted(study.trials(), key=lambda each: place_of(each, study.study.trials))
    ]


def test_a_study_that_was_broken_off_again_and_again_is_the_one_that_it_would_have_been(tmp_path):
    whole = opened(tmp_path / "whole")
    go_on(whole, 20)
    assert len({tuple(params.values()) for params, _ in done(whole)}) == 20
    broken = opened(tmp_path / "broken")
    for stop_at in (0, 3, 4, 12, 15, 23):  # after ten trials values are no longer drawn blindly
        trial = go_on(broken, 20, stop_at)
        broken.let_go()  # as the system does for a process that is killed
        broken = opened(tmp_path / "broken")
        assert trial.number not in {
            each.number for each in broken.trials() if each.state.is_finished()
        }
    go_on(broken, 20)
    assert done(broken) == done(whole)
    assert Counter(trial.state for trial in broken.study.trials) == {
        TrialState.COMPLETE: 20,
        TrialState.FAIL: 6,
    }


def test_a_trial_that_a_process_is_at_is_left_to_it(tmp_path):
    ours = opened(tmp_path)
    trial = ours.ask(3, SPACE)
    go_on(opened(tmp_path), 3)
    assert [each.state for each in ours.study.trials] == [
        TrialState.RUNNING,
        TrialState.COMPLETE,
        TrialState.COMPLETE,
    ]
    ours.study.tell(trial, 0.0)


def test_a_killed_process_between_two_writes_leaves_nothing_that_is_done_twice(
    tmp_path, monkeypatch
):
    study = opened(tmp_path)
    go_on(study, 3, stop_at=1)
    study.let_go()

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path).ask(3, SPACE)  # it has put the trial back, and not ended it yet
    go_on(opened(tmp_path), 3)
    go_on(opened(tmp_path / "whole"), 3)
    assert done(opened(tmp_path)) == done(opened(tmp_path / "whole"))
    assert Counter(trial.state for trial in opened(tmp_path).study.trials) == {
        TrialState.COMPLETE: 3,
        TrialState.FAIL: 1,
    }


def test_a_trial_that_ends_while_another_process_looks_is_not_taken_for_a_broken_one(
    tmp_path, monkeypatch
):
    one, another = opened(tmp_path), opened(tmp_path)
    trial, is_abandoned = one.ask(2, SPACE), another._is_abandoned

    def in_between(looked_at):
        one.study.tell(trial, -1.0)
        one.let_go()
        return is_abandoned(looked_at)

    monkeypatch.setattr(another, "_is_abandoned", in_between)
    assert another.ask(2, SPACE).number == 1
    assert [each.state for each in another.study.trials] == [
        TrialState.COMPLETE,
        TrialState.RUNNING,
    ]


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
@pytest.mark.slow
def test_processes_at_once_share_the_trials_and_one_that_is_killed_loses_none(tmp_path, kind):
    address = f"sqlite:///{tmp_path}/trials.db" if kind == "sqlite" else ""
    (tmp_path / ".locks").mkdir()
    command = [sys.executable, "-c", WORKER, str(tmp_path), address]
    workers = [
        subprocess.Popen(
            [*command, fate], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for fate in ("killed", "spared")
    ]
    told = [worker.communicate(timeout=LONG) for worker in workers]
    assert [worker.returncode for worker in workers] == [-signal.SIGKILL, 0], told
    numbers = [int(number) for output, _ in told for number in output.split()]
    assert sorted(numbers) == list(range(13))
    study = Study(tmp_path, address or None, ["maximize"])
    assert Counter(trial.state for trial in study.study.trials) == {
        TrialState.COMPLETE: 12,
        TrialState.FAIL: 1,
    }
    assert len({trial.params["x"] for trial in study.trials()}) == 12


def test_a_trial_of_a_database_is_another_machine_s_unless_it_was_never_taken(
    tmp_path, monkeypatch
):
    (tmp_path / ".locks").mkdir()
    study = Study(tmp_path, f"sqlite:///{tmp_path}/trials.db", ["maximize"])
    study.draw_by(1, pruning=False)
    study.study.ask().set_user_attr("taken", True)  # as elsewhere, where this directory isn't
    study.study.ask()  # by a process that was killed in the middle of it, or is about to take it
    study.ask(9, SPACE)
    assert [trial.state for trial in study.study.trials] == [TrialState.RUNNING] * 3
    monkeypatch.setattr(studies, "_ASKING", timedelta(0))
    study.let_go()
    study.ask(9, SPACE)
    assert [trial.state.name for trial in study.study.trials] == [
        "RUNNING",
        "FAIL",
        "RUNNING",
        "RUNNING",
    ]
    assert study.study.trials[3].user_attrs["replaces"] == 1


def test_a_line_that_was_left_unfinished_costs_that_line_only(tmp_path):
    study = opened(tmp_path)
    go_on(study, 2)
    with (tmp_path / "study.journal").open("ab") as journal:
        journal.write(b'{"op_code":6,"worker_')
    go_on(study, 3)
    go_on(opened(tmp_path), 4)
    assert [each.state for each in opened(tmp_path).study.trials] == [TrialState.COMPLETE] * 4


@pytest.mark.parametrize(
    ("address", "message"),
    {
        "mysql://me:s3cret@h/db": "storage=mysql://me:***@h/db: needs the Python module MySQLdb, "
        "which isn't installed",
        "sqlite:////nosuch/trials.db": "storage=sqlite:////nosuch/trials.db: .*unable to open",
    }.items(),
)
def test_a_database_that_cannot_be_had_is_told_without_its_password(address, message):
    def have():
        with studies.telling_of(check_database(address)):
            studies.open_database(address)

    with pytest.raises(ConfigurationError) as error:
        have()
    assert error.match(message.replace("+", r"\+").replace("***", r"\*\*\*"))
    assert "s3cret" not in str(error.value)


ADDRESSES = {
    "trials.db": "storage: not the address of a database; write one like sqlite:///trials.db",
    "postgresql+nosuch://me:s3cret@h/db": "storage=postgresql+nosuch://…: must be one of sqlite",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3D/tmp/x.so": "storage=mssql+pyodbc://…: must be one of",
    "sqlite+pysqlcipher://:s3cret@/x.db": "storage=sqlite+pysqlcipher://…: must be one of sqlite",
    "postgresql://me:s3cret@h/db?sslkey=engine:x:s3cret": "storage=postgresql://me:***@h/db: takes "
    "no parameter sslkey, only sslmode; leave it out",
    "postgresql://me:s3cret@h/db?sslmode=s3cret": "storage=postgresql://me:***@h/db: sslmode must "
    "be one of disable, allow, prefer, require, verify-ca, verify-full",
    "postgresql://h/db?sslmode=require&sslmode=allow": "storage=postgresql://h/db: sslmode must",
    "postgresql:///db?host=/tmp": "storage=postgresql:///db: takes no parameter host, only",
    "postgresql://h/db?plugin=x": "storage=postgresql://h/db: takes no parameter plugin, only",
    "postgresql://h/a b": "storage=postgresql://h/a b: must name a database, by letters",
    "postgresql://h": "storage=postgresql://h: must name a database, by letters",
    "mysql+pymysql://h/db?init_command=x": "storage=mysql+pymysql://h/db: takes no parameter "
    "init_command, none; leave it out",
    "mysql://h/db?read_default_file=x": "storage=mysql://h/db: takes no parameter read_default",
    "sqlite:///x.db?uri=true&vfs=x": "storage=sqlite:///x.db: takes no parameter uri, none",
    "sqlite:///file:x.db": "storage=sqlite:///file%3Ax.db: must name a file",
    "sqlite://": "storage=sqlite://: must name a file; write it like sqlite:///trials.db",
    "sqlite:///:memory:": "storage=sqlite:///%3Amemory%3A: must name a file",
}


@pytest.mark.parametrize(("address", "message"), ADDRESSES.items(), ids=ADDRESSES.keys())
def test_a_database_is_one_of_a_list_and_takes_no_parameter_that_could_run_or_read(
    monkeypatch, address, message
):
    monkeypatch.setattr("sqlalchemy.engine.URL.get_dialect", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigurationError) as error:
        studies.open_database(address)
    assert str(error.value).startswith(message)
    assert "s3cret" not in str(error.value)


def test_an_encrypted_connection_can_be_asked_for():
    address = "postgresql+psycopg2://me:s3cret@h:5/db?sslmode=verify-full"
    assert check_database(address) == address.replace("s3cret", "***")


@pytest.mark.parametrize("name", DATABASES)
def test_each_database_of_the_list_is_one_of_sqlalchemy_s_own(name):
    dialect = make_url(f"{name}://h/db").get_dialect()
    assert dialect.__module__.startswith("sqlalchemy.dialects.")
