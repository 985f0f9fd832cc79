"""A study is known by what is in it; a search that is refused leaves all that it finds as it is."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from optuna.trial import TrialState

from conftest import SUBSET, typed
from vae_lightning.configuration import quoting
from vae_lightning.training import experiment
from vae_lightning.tuning import study

pytestmark = pytest.mark.slow

QUICK = ["trainer.max_epochs=1", "logger=none", "callbacks=minimal", "model.hidden_dims=[8]"]
SPACE = ["~search.model", "~search.data", "search.optimizer.learning_rate=[1e-3,1e-2]"]
LINE = [*SUBSET, *QUICK, *SPACE, "model.latent_dim=2", "data.batch_size=200"]


def tune(directory, patch, *arguments):
    typed("tune", *LINE, *arguments, directory=directory, patch=patch)


def refusal(directory, patch, *arguments):
    with pytest.raises(SystemExit) as exit_:
        tune(directory, patch, *arguments)
    error = str(exit_.value.code)
    assert error.startswith("error: ")
    assert len(error.splitlines()) <= 2
    return error


def contents(directory):
    """Return all that lies in a directory, but for locks and the log of what was tried."""
    files = (file for file in directory.rglob("*") if file.is_file() or file.is_symlink())
    return {
        str(file.relative_to(directory)): file.read_bytes() if file.is_file() else None
        for file in files
        if ".locks" not in file.parts and file.name != "tune.log"
    }


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A directory with a study of two trials, ``mine``, and one in a database, ``shared``."""
    directory = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        tune(directory, patch, "trials=2", "study=mine")
        tune(directory, patch, "trials=2", "study=shared", "storage=sqlite:///trials.db")
    return directory


@pytest.fixture
def here(searched, tmp_path):
    return Path(shutil.copytree(searched, tmp_path / "here", symlinks=True))


def complete(directory):
    trials = study.Study(directory, None, ["maximize"]).trials()
    return [trial.number for trial in trials if trial.state == TrialState.COMPLETE]


@pytest.mark.parametrize("how", ["renamed", "copied"])
def test_a_renamed_or_copied_study_goes_on(here, monkeypatch, how):
    if how == "renamed":
        (here / "mine").rename(here / "other")
    else:
        shutil.copytree(here / "mine", here / "other")
    tune(here, monkeypatch, "trials=3", "study=other")
    assert complete(here / "other") == [0, 1, 2]
    if how == "copied":
        assert complete(here / "mine") == [0, 1]


def test_a_renamed_study_in_a_database_goes_on(here, monkeypatch):
    (here / "shared").rename(here / "other")
    tune(here, monkeypatch, "trials=3", "study=other", "storage=sqlite:///trials.db")
    assert sorted(each.name for each in (here / "other" / "trials").iterdir()) == ["0", "1", "2"]


DAMAGE = {
    "no journal": lambda mine: (mine / "study.journal").unlink(),
    "an empty journal": lambda mine: (mine / "study.journal").write_bytes(b""),
    "a damaged journal": lambda mine: (mine / "study.journal").write_bytes(b"x\n" * 9),
    "nothing but trials": lambda mine: [
        shutil.rmtree(mine / each) if (mine / each).is_dir() else (mine / each).unlink()
        for each in (".hydra", ".locks", "study.journal", "tune.log")
    ],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_trials_without_a_readable_study_are_left_alone(here, monkeypatch, damage):
    DAMAGE[damage](here / "mine")
    before = contents(here)
    assert refusal(here, monkeypatch, "trials=4", "study=mine").startswith("error: study=mine: ")
    assert contents(here) == before


def test_a_lost_database_is_not_begun_anew(here, monkeypatch):
    (here / "trials.db").unlink()
    before = contents(here)
    error = refusal(here, monkeypatch, "trials=4", "study=shared", "storage=sqlite:///trials.db")
    assert "trials.db" in error
    assert contents(here) == before


@pytest.mark.parametrize("refused", ["model.latent_dim=0", "pruning=3", "optimizer.name=nosuch"])
@pytest.mark.parametrize("without", ["", ".hydra"])
def test_a_refused_override_takes_nothing_from_a_study(here, monkeypatch, refused, without):
    if without:
        shutil.rmtree(here / "mine" / without)
    before = contents(here / "mine" / "trials")
    journal = (here / "mine" / "study.journal").read_bytes()
    key = refused.partition("=")[0]
    line = [each for each in LINE if not each.startswith(f"{key}=")]
    with pytest.raises(SystemExit, match="error: "):
        typed("tune", *line, refused, "trials=4", "study=mine", directory=here, patch=monkeypatch)
    assert contents(here / "mine" / "trials") == before
    assert (here / "mine" / "study.journal").read_bytes() == journal


@pytest.mark.parametrize("names", [["notes.txt"], ["trials/1.csv"], [".hydra/config.yaml"]])
def test_a_directory_of_other_files_is_left_alone(tmp_path, monkeypatch, names):
    for name in names:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("mine")
    refusal(tmp_path, monkeypatch, "trials=1", "study=mine")
    left = contents(tmp_path / "mine")
    assert left == dict.fromkeys(names, b"mine")


def test_a_signal_before_the_first_trial_leaves_what_the_user_put_there(tmp_path, monkeypatch):
    """What a search made is removed, and a file that came meanwhile isn't."""

    def interrupted(config):
        (tmp_path / "mine" / "notes.txt").write_text("mine")
        os.kill(os.getpid(), signal.SIGTERM)
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "build", interrupted)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        tune(tmp_path, monkeypatch, "trials=1", "study=mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["tune.log", "study.journal", ".locks", "trials/0/train.log"])
def test_a_study_with_a_link_in_it_is_refused(here, monkeypatch, place):
    victim = here / "victim"
    victim.write_text("theirs")
    path = here / "mine" / place
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(victim)
    assert "is a link to" in refusal(here, monkeypatch, "trials=4", "study=mine")
    assert victim.read_text() == "theirs"


def spoilt(line):
    """Yield the line of a journal in forms that no search writes."""
    entry = json.loads(line)
    if entry.get("op_code") == 2:  # an attribute of the study: the plan
        for plan in (None, 3, [], {}, {"config": {}, "overrides": [], "chosen": {}}):
            yield json.dumps(entry | {"user_attr": {"plan": plan}})
    elif entry.get("op_code") == 8:  # an attribute of a trial
        for attributes in ({"replaces": 0}, {"replaces": 99}, {"replaces": "x"}, {"figures": 3}):
            yield json.dumps(entry | {"user_attr": attributes})
    elif entry.get("op_code") == 6:  # the end of a trial
        for values in (["x"], [], [1, 2, 3]):
            yield json.dumps(entry | {"values": values})


def test_a_journal_from_elsewhere_ends_in_a_line(here, monkeypatch):
    file = here / "mine" / "study.journal"
    lines = file.read_text().splitlines()
    tried = 0
    for number, line in enumerate(lines):
        for other in spoilt(line):
            file.write_text("\n".join([*lines[:number], other, *lines[number + 1 :]]) + "\n")
            error = refusal(here, monkeypatch, "trials=2", "study=mine")
            assert error.startswith("error: study=mine: "), other
            tried += 1
    assert tried > 8


def test_a_database_of_a_recipe_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    recipe = "# @package _global_\nstorage: sqlite:///x.db\n"
    (tmp_path / "mine" / "experiment" / "x.yaml").write_text(recipe)
    arguments = ["--config-dir", "mine", "experiment=x", "trials=1"]
    assert "only from the command line" in refusal(tmp_path, monkeypatch, *arguments)
    assert not (tmp_path / "x.db").exists()


@pytest.mark.parametrize("name", ["a=b c", "a'b,c", "a[b{", "a(#;", "~a", "é$x"])
def test_the_line_that_goes_on_with_a_study_can_be_pasted(tmp_path, monkeypatch, capsys, name):
    fit = experiment.fit

    def interrupted(parts):
        fit(parts)
        os.kill(os.getpid(), signal.SIGTERM)

    named = quoting.override("study", Path(name))
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "fit", interrupted)
        with pytest.raises(SystemExit):
            tune(tmp_path, patch, "trials=2", named)
    line = capsys.readouterr().out.rpartition("Go on with\n")[2].strip()
    words = subprocess.run(
        ["bash", "-c", f'printf "%s\\0" {line}'], capture_output=True, text=True, check=True
    ).stdout.split("\0")[3:-1]
    typed("tune", *words, directory=tmp_path, patch=monkeypatch)
    assert complete(tmp_path / name)[-1] >= 1
