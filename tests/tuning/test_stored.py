"""A study's directory after it was renamed, copied, damaged, or made by somebody else."""

import json
import os
import re
import shutil
import signal
import subprocess

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.trial import TrialState

from conftest import DATA, SUBSET, typed
from vae_lightning.configuration.quoting import override
from vae_lightning.training import experiment
from vae_lightning.tuning import report, search, study

pytestmark = pytest.mark.slow

LINE = [
    *(*SUBSET, "trainer.max_epochs=1", "logger=none", "model.hidden_dims=[8]"),
    *("data.batch_size=200", "~search.model", "~search.data"),
    *(
        "search.optimizer.learning_rate={float:[1e-4,0.1],log:true}",
        "search.model.latent_dim=[2,3]",
    ),
]
DATABASE = "storage=sqlite:///trials.db"


def tune(directory, patch, *arguments):
    typed("tune", *arguments, directory=directory, patch=patch)


def refusal(directory, patch, *arguments):
    with pytest.raises(SystemExit) as exit_:
        tune(directory, patch, *arguments)
    return str(exit_.value.code)


def content(directory):
    """Return all that lies in a directory, with what the files hold and the links name."""
    return {
        str(path.relative_to(directory)): os.readlink(path)
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in directory.rglob("*")
    }


def outcomes(directory, address=None, name=None):
    opened = study.Study(directory, address, ["maximize"], name)
    return [(each.params, each.values, each.state) for each in opened.trials()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with a study of two trials in ``mine``, another in ``shared`` and ``trials.db``."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        tune(folder, patch, *LINE, "trials=2", "study=mine")
        tune(folder, patch, *LINE, "trials=2", "study=shared", DATABASE)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "folder", symlinks=True)


@pytest.fixture
def nothing_runs(monkeypatch):
    monkeypatch.setattr(experiment, "build", lambda _: pytest.fail("a trial was begun"))


# -- renamed and copied ----------------------------------------------------------------------------


@pytest.mark.parametrize("line", [LINE, SUBSET[1:]], ids=["its own line", "study= alone"])
@pytest.mark.parametrize("kind", ["renamed", "copied"])
def test_a_study_whose_directory_has_another_name_goes_on(folder, monkeypatch, kind, line):
    before = outcomes(folder / "mine")
    other = folder / "deep" / "other"
    other.parent.mkdir()
    if kind == "renamed":
        (folder / "mine").rename(other)
    else:
        shutil.copytree(folder / "mine", other, symlinks=True)
    tune(folder, monkeypatch, *line, "trials=3", "study=deep/other")
    assert outcomes(other)[:2] == before
    assert len(outcomes(other)) == 3
    assert kind == "renamed" or outcomes(folder / "mine") == before


def test_a_copy_without_hidden_files_goes_on(folder, monkeypatch):
    shutil.rmtree(folder / "mine" / ".hydra")
    shutil.rmtree(folder / "mine" / ".locks")
    tune(folder, monkeypatch, SUBSET[1], "trials=3", "study=mine")
    assert len(outcomes(folder / "mine")) == 3
    kept = OmegaConf.load(folder / "mine" / ".hydra" / "config.yaml")
    assert kept.model.hidden_dims == [8]  # what the study was begun with, which wasn't typed


def test_directories_that_share_a_database_share_its_study(folder, monkeypatch, capsys):
    shutil.copytree(folder / "shared", folder / "copy", symlinks=True)
    (folder / "shared").rename(folder / "renamed")
    for count, name in ((3, "renamed"), (4, "copy")):
        tune(folder, monkeypatch, *LINE, f"trials={count}", f"study={name}", DATABASE)
        assert (
            f"{name}: works on the study shared in sqlite:///trials.db" in capsys.readouterr().out
        )
    found = optuna.load_study(study_name="shared", storage=f"sqlite:///{folder}/trials.db").trials
    assert [each.state for each in found] == [TrialState.COMPLETE] * 4
    assert (folder / "renamed" / "trials" / "2").is_dir()
    assert not (folder / "copy" / "trials" / "2").exists()
    assert (folder / "copy" / "trials" / "3").is_dir()


def test_the_lock_in_a_copied_directory_takes_no_trial_from_the_original(tmp_path):
    address, space = f"sqlite:///{tmp_path}/trials.db", {}
    (tmp_path / "original").mkdir()
    original = study.Study(tmp_path / "original", address, ["maximize"])
    original.draw_by(1, pruning=False)
    assert original.ask(9, space).number == 0
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    copied = study.Study(tmp_path / "copy", address, ["maximize"], "original")
    copied.draw_by(1, pruning=False)
    assert copied.ask(9, space).number == 1
    assert [each.state for each in original.study.trials] == [TrialState.RUNNING] * 2
    copied.let_go()
    (tmp_path / "original").rename(tmp_path / "renamed")
    original._running.release()  # as the system does for a process that is killed
    again = study.Study(tmp_path / "renamed", address, ["maximize"], "original")
    again.draw_by(1, pruning=False)
    again.ask(9, space)
    assert original.study.trials[0].state == TrialState.FAIL


# -- lost and damaged ------------------------------------------------------------------------------


def write_lines(journal, lines):
    journal.write_text("".join(f"{each}\n" for each in lines))


def of_another_program(mine):
    (mine / "study.journal").unlink()
    storage = study.open_journal(mine)
    other = optuna.create_study(storage=storage, study_name="mine")
    other.add_trial(optuna.trial.create_trial(value=1.0))


def with_a_second_study(mine):
    optuna.create_study(storage=study.open_journal(mine), study_name="second")
    (mine / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {output_dir: /x/third, cwd: /}}")


def damaged(line, text):
    def damage(mine):
        lines = (mine / "study.journal").read_text().splitlines()
        lines[line] = text
        write_lines(mine / "study.journal", lines)

    return damage


LOST = {
    "missing": (
        lambda mine: (mine / "study.journal").unlink(),
        "study.journal is missing or empty",
    ),
    "emptied": (lambda mine: (mine / "study.journal").write_text(""), "is missing or empty; put"),
    "cut in its first line": (
        lambda mine: (mine / "study.journal").write_text('{"op_code":0,"wor'),
        "study.journal holds no whole line; put",
    ),
    "first line": (damaged(0, "{"), "can't be used (line 1 is damaged)"),
    "last line": (damaged(-1, "\0\0\0"), "can't be used (line "),
    "deep line": (damaged(3, "[" * 100_000), "can't be used (line 4 is damaged)"),
    "line of a list": (damaged(3, "[1]"), "can't be used (line 4 is damaged)"),
    "line of an unknown kind": (damaged(3, '{"op_code": 77}'), "study.journal in it can't be used"),
    "line without its fields": (damaged(3, '{"op_code": 4}'), "study.journal in it can't be used"),
    "line of no study": (damaged(0, '{"op_code": 10}'), "holds trials of the study mine, which"),
    "picture": (
        lambda mine: (mine / "study.journal").write_bytes(b"\x89PNG\r\n\x1a\n\0\0"),
        "can't be used (line 1 is damaged)",
    ),
    "another program's": (of_another_program, "the study mine in study.journal in it is another"),
    "two studies": (with_a_second_study, "holds trials of the study third, which isn't in"),
    "settings of no study": (
        lambda mine: (mine / ".hydra" / "config.yaml").write_text("seed: 1\n"),
        ".hydra/ in it can't be used ('storage')",
    ),
    "settings of a list": (
        lambda mine: (mine / ".hydra" / "config.yaml").write_text("[1, 2]\n"),
        ".hydra/ in it can't be used (",
    ),
    "settings that are no YAML": (
        lambda mine: (mine / ".hydra" / "config.yaml").write_bytes(b"a: [\0\x1b]2;x\x07"),
        ".hydra/ in it can't be used (",
    ),
    "settings of another type": (
        lambda mine: (mine / ".hydra" / "config.yaml").write_text("{storage: 5, data: {dir: 5}}"),
        ".hydra/ in it can't be used (storage and data.dir must be texts)",
    ),
}


@pytest.mark.parametrize("line", [LINE, SUBSET[1:]], ids=["its own line", "study= alone"])
@pytest.mark.parametrize("name", LOST)
@pytest.mark.usefixtures("nothing_runs")
def test_trials_without_a_readable_study_are_refused_and_stay(folder, monkeypatch, name, line):
    lose, message = LOST[name]
    lose(folder / "mine")
    before = content(folder / "mine")
    told = refusal(folder, monkeypatch, *line, "trials=9", "study=mine")
    assert told.startswith("error: study=mine: ")
    assert message in told
    assert told.endswith("type another study=")
    assert told.isprintable()
    assert content(folder / "mine") == before


@pytest.mark.usefixtures("nothing_runs")
def test_trials_alone_are_refused_and_stay(folder, monkeypatch):
    for path in (folder / "mine").iterdir():
        if path.name != "trials":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = content(folder / "mine")
    for arguments in ([], [DATABASE]):
        told = refusal(folder, monkeypatch, *LINE, *arguments, "trials=9", "study=mine")
        assert told.startswith("error: study=mine: holds trials of ")
        left = content(folder / "mine")
        assert {key: left[key] for key in before} == before
        assert left.keys() - before.keys() <= {".locks", ".locks/study"}


@pytest.mark.usefixtures("nothing_runs")
def test_trials_whose_database_is_lost_are_refused_and_no_new_one_is_made(folder, monkeypatch):
    before = content(folder / "shared")
    for lose in (lambda: os.truncate(folder / "trials.db", 0), (folder / "trials.db").unlink):
        lose()
        told = refusal(folder, monkeypatch, *LINE, DATABASE, "trials=9", "study=shared")
        assert told.startswith("error: study=shared: holds trials of ")
        assert content(folder / "shared") == before
    assert not (folder / "trials.db").exists()


@pytest.mark.parametrize(
    ("typed_too", "message"),
    {
        "seed=9": "seed=9: the study in mine was begun with 1; ",
        "model.activation=nosuch": "model.activation=nosuch: must be 'relu'",
        "hydra.run.dir=other": "study=mine: names the directory, so leave out hydra.run.dir=other",
        DATABASE: "study=mine: its trials are in its directory, so leave out storage=",
        "storage=nosuch://h/db": "storage=nosuch://…: must be one of sqlite",
    }.items(),
)
@pytest.mark.usefixtures("nothing_runs")
def test_a_refused_value_costs_nothing_of_a_study_without_its_settings(
    folder, monkeypatch, typed_too, message
):
    shutil.rmtree(folder / "mine" / ".hydra")
    before = content(folder / "mine")
    told = refusal(folder, monkeypatch, *LINE, typed_too, "trials=9", "study=mine")
    assert told.startswith(f"error: {message}")
    assert content(folder / "mine") == before


@pytest.mark.usefixtures("nothing_runs")
def test_a_run_is_no_study_and_nothing_is_written_into_it(folder, monkeypatch):
    before = content(folder / "mine")
    told = refusal(folder, monkeypatch, *LINE, "study=mine/trials/0")
    assert told == "error: study=mine/trials/0: not a study's directory, and not empty"
    told = refusal(folder, monkeypatch, *LINE, "study=mine/tune.log")
    assert told == "error: study=mine/tune.log: not a directory"
    assert content(folder / "mine") == before


@pytest.mark.parametrize("name", ["notes.txt", "trials/1.csv", ".hydra/config.yaml"])
@pytest.mark.usefixtures("nothing_runs")
def test_a_directory_of_other_files_is_no_study_and_stays(tmp_path, monkeypatch, name):
    (tmp_path / "here" / name).parent.mkdir(parents=True)
    (tmp_path / "here" / name).write_text("notes")
    before = content(tmp_path)
    told = refusal(tmp_path, monkeypatch, *LINE, "study=here")
    assert told.startswith("error: study=here: ")
    assert content(tmp_path) == before


STEPS = {
    "the first lock": (study, "open_journal"),
    "the study": (optuna, "create_study"),
    "the plan": (optuna.Study, "set_user_attr"),
    "the settings": (search, "save_configuration"),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["journal", "database"])
def test_a_search_that_was_killed_as_it_began_begins_again(tmp_path, monkeypatch, kind, step, when):
    place, name = STEPS[step]
    if kind == "database" and name == "open_journal":
        name = "open_database"
    arguments = [*LINE, "trials=1", "study=here", *([DATABASE] if kind == "database" else [])]
    original = getattr(place, name)

    def killed(*given, **named):
        if when == "after":
            original(*given, **named)
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(search.Search, "withdraw", lambda _: False)
        patch.setattr(place, name, killed)
        assert refusal(tmp_path, patch, *arguments) == "137"
    assert (tmp_path / "here" / ".locks").is_dir()
    tune(tmp_path, monkeypatch, *arguments)
    assert (tmp_path / "here" / "experiment" / "best.yaml").exists()


# -- what isn't ours -------------------------------------------------------------------------------


def test_a_study_leaves_the_user_s_own_files_alone(folder, monkeypatch):
    mine = folder / "mine"
    own = {
        "notes.txt": "notes",
        "trials/notes.txt": "notes",
        "trials/1/own.txt": "notes",
        "experiment/own.yaml": "seed: 3",
        "history.png.old": "picture",
        ".locks/notes": "notes",
    }
    for name, text in own.items():
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).write_text(text)
    tune(folder, monkeypatch, SUBSET[1], "trials=3", "study=mine")
    assert {name: (mine / name).read_text() for name in own} == own
    states = [each.state for each in study.Study(mine, None, ["maximize"]).trials()]
    assert states == [TrialState.COMPLETE] * 3


@pytest.mark.parametrize("kind", ["a journal cut short", "a folder where the next trial would be"])
@pytest.mark.usefixtures("nothing_runs")
def test_trials_that_the_study_does_not_know_are_refused_and_stay(folder, monkeypatch, kind):
    mine = folder / "mine"
    number = 2
    if "journal" in kind:  # of the lines before its first trial
        lines = (mine / "study.journal").read_text().splitlines()
        write_lines(mine / "study.journal", lines[:2])
        number = 0
    else:
        (mine / "trials" / "2" / "checkpoints").mkdir(parents=True)
        (mine / "trials" / "2" / "checkpoints" / "own.ckpt").write_text("weights")
    before = content(mine)
    told = refusal(folder, monkeypatch, SUBSET[1], "trials=5", "study=mine")
    assert told.startswith(f"error: study=mine: trials/{number} in it is of no trial of the study")
    assert content(mine) == before


def test_a_search_that_comes_to_nothing_leaves_what_others_put_beside_it(tmp_path, monkeypatch):
    def stop(parts):
        (tmp_path / "here" / "notes.txt").write_text("notes")
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(experiment, "fit", stop)
    assert refusal(tmp_path, monkeypatch, *LINE, "study=here") == "143"
    assert content(tmp_path) == {"here": None, "here/notes.txt": b"notes"}


@pytest.mark.parametrize("kind", ["journal", "database"])
def test_a_search_that_comes_to_nothing_leaves_another_process_s_trial(tmp_path, monkeypatch, kind):
    arguments = [DATABASE] if kind == "database" else []
    others = []

    def join_and_stop(parts):
        address = f"sqlite:///{tmp_path}/trials.db" if arguments else None
        other = study.Study(tmp_path / "here", address, ["maximize"])
        other.draw_by(1, pruning=False)
        others.append((other, other.ask(9, {})))
        other.directory_of(others[0][1]).mkdir()
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(experiment, "fit", join_and_stop)
    assert refusal(tmp_path, monkeypatch, *LINE, *arguments, "study=here") == "143"
    [(other, trial)] = others
    assert other.study.tell(trial, 1.0).state == TrialState.COMPLETE
    assert other.directory_of(trial).is_dir()
    assert (tmp_path / "here" / ".locks" / str(trial.number)).exists()


def test_a_search_that_is_refused_leaves_an_empty_directory_and_one_of_a_database_as_found(
    tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    searched = ["search.model.activation=[nosuch]", "study=here"]
    arguments = [each for each in LINE if not each.startswith("search.model")]
    for address in ([], ["storage=sqlite:///here/trials.db"]):
        told = refusal(tmp_path, monkeypatch, *arguments, *searched, *address)
        assert "all of 3 trials were refused" in told
        assert (tmp_path / "here").is_dir()
    assert list(content(tmp_path)) == ["here", "here/trials.db"]
    tune(tmp_path, monkeypatch, *LINE, "study=here", *address, "trials=1")
    assert (tmp_path / "here" / "experiment" / "best.yaml").exists()


def test_another_program_s_study_of_that_name_stays_in_its_database(tmp_path, monkeypatch):
    address = f"sqlite:///{tmp_path}/trials.db"
    optuna.create_study(storage=address, study_name="here").set_user_attr("theirs", 1)
    told = refusal(tmp_path, monkeypatch, *LINE, DATABASE, "study=here")
    assert told.startswith("error: study=here: the study here in sqlite:///trials.db is another")
    assert optuna.load_study(study_name="here", storage=address).user_attrs == {"theirs": 1}
    assert list(content(tmp_path)) == ["trials.db"]


LINKS = [
    *("tune.log", "study.journal", "history.png", "experiment", "experiment/best.yaml", "trials"),
    *("trials/0/train.log", ".locks", ".locks/study", ".locks/7", ".hydra/config.yaml"),
]


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.usefixtures("nothing_runs")
def test_a_study_with_a_link_in_it_is_refused_and_nothing_is_written(folder, monkeypatch, name):
    link, target = folder / "mine" / name, folder / "target"
    if link.exists():
        link.rename(target)
    else:
        target.write_text("keys")
    link.symlink_to(target)
    before = content(folder)
    told = refusal(folder, monkeypatch, *LINE, "trials=9", "study=mine")
    assert told.startswith(f"error: study=mine: {name} in it is a link to {target}, and nothing")
    assert content(folder) == before


def test_a_pipe_in_a_study_is_refused_and_not_waited_at(folder, monkeypatch):
    os.mkfifo(folder / "mine" / "trials" / "0" / "pipe")
    told = refusal(folder, monkeypatch, *LINE, "trials=9", "study=mine")
    assert told.startswith("error: study=mine: trials/0/pipe in it is neither a file nor a folder")


def test_the_recipe_and_the_pictures_replace_a_link_and_never_follow_it(folder, monkeypatch):
    (folder / "target").write_text("keys")
    names = ["history.png", "importance.png", "experiment/best.yaml"]

    def fit(parts):
        for name in names:
            (folder / "mine" / name).unlink()
            (folder / "mine" / name).symlink_to(folder / "target")
        monkeypatch.undo()
        monkeypatch.chdir(folder)
        experiment.fit(parts)

    monkeypatch.setattr(experiment, "fit", fit)
    tune(folder, monkeypatch, SUBSET[1], "trials=3", "study=mine")
    assert (folder / "target").read_text() == "keys"
    assert not any((folder / "mine" / name).is_symlink() for name in names)


# -- hostile ---------------------------------------------------------------------------------------

ESCAPE = "\x1b]2;x\x07\nsecond line"


def set_plan(**changes):
    def change(line):
        if "plan" in line.get("user_attr", {}):
            plan = line["user_attr"]["plan"]
            for path, value in changes.items():
                *above, last = path.split("__")
                node = plan
                for each in above:
                    node = node[each]
                if value is KeyError:
                    del node[last]
                else:
                    node[last] = value
        return line

    return change


def whole_plan(plan):
    return lambda line: (
        {**line, "user_attr": {"plan": plan}} if "plan" in line.get("user_attr", {}) else line
    )


def set_on(op_code, **values):
    return lambda line: {**line, **values} if line["op_code"] == op_code else line


def figures(value):
    return lambda line: (
        {**line, "user_attr": {"figures": value}}
        if "figures" in line.get("user_attr", {})
        else line
    )


def replaces(value):
    return set_on(4, user_attrs={"replaces": value})


LATENT = "model.latent_dim"
INT = '{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 1, "high": 9}}'
HOSTILE = {
    "plan of nothing at all": whole_plan(None),
    "plan of a number": whole_plan(5),
    "empty plan": whole_plan({}),
    "plan of texts": whole_plan({"config": "x", "overrides": "x", "chosen": "x"}),
    "plan of nothing": whole_plan({"config": {}, "overrides": [], "chosen": {}}),
    "no model": set_plan(config__model=KeyError),
    "model of a list": set_plan(config__model=[]),
    "data of no class": set_plan(config__data={}),
    "unknown key": set_plan(**{f"config__{ESCAPE}": 1}),
    "unknown target": set_plan(config__model={"_target_": f"os.system{ESCAPE}"}),
    "trainer without devices": set_plan(config__trainer={}),
    "seed of text": set_plan(config__seed=ESCAPE),
    "pruning of text": set_plan(config__pruning=ESCAPE),
    "objectives of text": set_plan(config__objectives=[ESCAPE]),
    "searched value of text": set_plan(config__search={"model": {"latent_dim": ESCAPE}}),
    "nothing searched": set_plan(config__search={}),
    "other search": set_plan(config__search={"model": {"latent_dim": [2, 3]}}),
    "reference": set_plan(config__seed="${oc.env:HOME}"),
    "broken reference": set_plan(config__seed="${nosuch:"),
    "overrides of numbers": set_plan(overrides=[5]),
    "override that isn't one": set_plan(overrides=[f"x=[{ESCAPE}"]),
    "override of a file": set_plan(overrides=["model=../../../etc/passwd"]),
    "chosen of numbers": set_plan(chosen={"model": 5}),
    "replaces itself": replaces(0),
    "replaces none": replaces(-1),
    "replaces a later one": replaces(7),
    "replaces text": replaces(ESCAPE),
    "replaces a list": replaces([0]),
    "replaces a truth": replaces(True),
    "attributes of a list": set_on(4, user_attrs=[1]),
    "queue of a list": set_on(4, system_attrs=[1]),
    "queued outside": set_on(4, system_attrs={"fixed_params": {LATENT: 99}}),
    "queued unknown": set_on(4, system_attrs={"fixed_params": {"x": 1}}),
    "other parameter": set_on(5, param_name=ESCAPE),
    "other distribution": set_on(5, distribution=INT, param_value_internal=3.0),
    "unknown distribution": set_on(5, distribution='{"name": "os.system", "attributes": {}}'),
    "parameter outside": set_on(5, param_value_internal=1e9),
    "parameter of text": set_on(5, param_value_internal="x"),
    "no result": set_on(6, values=None),
    "two results": set_on(6, values=[1.0, 2.0]),
    "result of text": set_on(6, values=[ESCAPE]),
    "result that isn't a number": set_on(6, values=[float("nan")]),
    "unknown state": set_on(6, state=99),
    "failed without a reason": lambda line: (
        {**line, "user_attr": {"refused": True}} if line["op_code"] == 8 else line
    ),
    "reason of a list": lambda line: (
        {**line, "user_attr": {"problem": [1]}} if line["op_code"] == 8 else line
    ),
    "step of text": set_on(7, step=ESCAPE),
    "figure of text": set_on(7, intermediate_value=ESCAPE),
    "figures of text": figures(ESCAPE),
    "no figures": figures({}),
    "no epoch": figures({"criterion": 1.0, "epoch": ESCAPE}),
    "direction of none": set_on(0, directions=[0]),
    "other direction": set_on(0, directions=[1]),
    "two directions": set_on(0, directions=[1, 1]),
    "unknown direction": set_on(0, directions=[9]),
}


def change_journal(mine, change):
    journal = mine / "study.journal"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    changed = [change(json.loads(json.dumps(line))) for line in lines]
    assert changed != lines
    write_lines(journal, map(json.dumps, changed))


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.usefixtures("nothing_runs")
def test_a_hostile_study_is_refused_in_a_line_and_nothing_of_it_runs(folder, monkeypatch, name):
    change_journal(folder / "mine", HOSTILE[name])
    before = content(folder / "mine")
    told = refusal(folder, monkeypatch, SUBSET[1], "trials=9", "study=mine")
    assert told.startswith("error: study=mine: ")
    assert told.isprintable()
    assert os.environ["HOME"] not in told or name != "reference"
    assert content(folder / "mine") == before


def test_a_study_that_differs_in_a_hostile_value_is_refused_in_a_line(folder, monkeypatch):
    change_journal(folder / "mine", set_plan(config__model__activation=ESCAPE))
    told = refusal(folder, monkeypatch, *LINE, "trials=9", "study=mine")
    assert told.startswith("error: model.activation=relu: the study in mine was begun with \\x1b]2")
    assert told.isprintable()


def test_a_study_that_names_files_of_its_own_chooses_none_of_them(folder, monkeypatch):
    chosen = {"model": "../../elsewhere", "optimizer": str(folder / "own"), "data": "mnist_subset"}
    (folder / "own.yaml").write_text("x: 1")
    change_journal(folder / "mine", set_plan(chosen=chosen))
    tune(folder, monkeypatch, SUBSET[1], "trials=2", "study=mine")
    recipe = (folder / "mine" / "experiment" / "best.yaml").read_text()
    assert OmegaConf.create(recipe).defaults == [{"override /data": "mnist_subset"}]


def test_what_a_study_says_reaches_the_terminal_and_the_recipe_as_one_line(
    folder, monkeypatch, capsys
):
    opened = study.Study(folder / "mine", None, ["maximize"])
    opened.draw_by(1, pruning=False)
    trial = opened.ask(3, {})
    trial.set_user_attr("problem", ESCAPE)
    opened.study.tell(trial, state=TrialState.FAIL)
    tune(folder, monkeypatch, SUBSET[1], "trials=3", "study=mine")
    shown = capsys.readouterr().out
    assert r"trial 2 failed: \x1b]2;x\x07\nsecond line" in shown
    assert "\x1b" not in shown + (folder / "mine" / "tune.log").read_text()


def test_a_space_of_text_is_shown_in_one_line():
    assert report.shown(f"a b{ESCAPE}").isprintable()


def test_the_address_of_a_hostile_study_is_shown_in_one_line(folder, monkeypatch):
    settings = folder / "mine" / ".hydra" / "config.yaml"
    settings.write_text(json.dumps({"storage": ESCAPE, "data": {"dir": None}}))
    told = refusal(folder, monkeypatch, *LINE, "trials=9", "study=mine")
    assert told.startswith("error: study=mine: its trials are in \\x1b]2;x\\x07\\nsecond line, so")


# -- storage ---------------------------------------------------------------------------------------

INJECTED = {  # the files of a folder of configurations, and what is typed with it
    "recipe": ({"experiment/x.yaml": "storage: ADDRESS"}, ["experiment=x"]),
    "recipe that claims that it was typed": (
        {"experiment/x.yaml": "storage: ADDRESS\nhydra: {overrides: {task: ['storage=ADDRESS']}}"},
        ["experiment=x"],
    ),
    "group": ({"search/x.yaml": "# @package _global_\nstorage: ADDRESS"}, ["search=x"]),
}


@pytest.mark.parametrize("name", INJECTED)
@pytest.mark.parametrize("address", ["mssql+evil://h/db", "sqlite:///x.db"])
def test_a_database_is_named_on_the_command_line_only(tmp_path, monkeypatch, name, address):
    (tmp_path / "evil.py").write_text("open('executed', 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    files, arguments = INJECTED[name]
    for file, text in files.items():
        (tmp_path / "own" / file).parent.mkdir(parents=True, exist_ok=True)
        head = "" if text.startswith("#") else "# @package _global_\n"
        (tmp_path / "own" / file).write_text(head + text.replace("ADDRESS", address))
    before = content(tmp_path)
    told = refusal(tmp_path, monkeypatch, *LINE[:5], *arguments, "--config-dir", "own")
    assert told.startswith("error: storage: comes from a recipe or a folder of configurations, and")
    assert "type storage=" in told
    assert content(tmp_path) == before


# -- printed commands ------------------------------------------------------------------------------

NAMES = [
    *("a=b", "a b", "it's", "a,b[c]{d}(e)", "#a;b&c|d>e", "~x", "$HOME`x`\\", "é%20", '"x"', "-x"),
    *("!x*?", "null", "1", "a:b@c"),
]


def as_bash_reads(line):
    """Return the arguments of a printed line after the module's name."""
    script = f"python() {{ printf '%s\\0' \"$@\"; }}\n{re.sub('^[^ ]*python', 'python', line)}"
    found = subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout
    arguments = found.decode().split("\0")[:-1]
    assert arguments[0] == "-m"
    return arguments[2:]


@pytest.mark.parametrize("name", NAMES)
def test_the_printed_commands_can_be_pasted_whatever_the_directory_is_called(
    folder, monkeypatch, capsys, name
):
    (folder / "mine").rename(folder / name)
    (folder / "data").mkdir()
    shutil.copytree(DATA, folder / "data" / name)
    stop = pytest.MonkeyPatch()
    stop.setattr(experiment, "fit", lambda _: signal.raise_signal(signal.SIGTERM))
    own = [override("study", folder / name), override("data.dir", f"data/{name}"), "trials=3"]
    assert refusal(folder, monkeypatch, *own) == "143"
    stop.undo()
    [line] = re.findall(r"Go on with\n +(.*)", capsys.readouterr().out)
    tune(folder, monkeypatch, *as_bash_reads(line))
    shown = capsys.readouterr().out
    assert "2 of 3 trials so far" in shown
    assert len(outcomes(folder / name)) == 3
    [line] = re.findall(r"as a recipe: (.*)", shown)
    [remark] = re.findall(
        "^#   (.*)", (folder / name / "experiment" / "best.yaml").read_text(), re.M
    )
    for each in (line, remark):
        typed("train", *as_bash_reads(each), "--cfg", "job", directory=folder, patch=monkeypatch)
        composed = OmegaConf.create(capsys.readouterr().out)
        assert composed.model.hidden_dims == [8]
    assert line.startswith(remark)


def test_a_study_s_directory_may_lie_in_the_home_directory(folder, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(folder))
    tune(folder / "mine", monkeypatch, SUBSET[1], "study=~/mine", "trials=2")
    assert f"{folder}/mine: 2 of 2 trials so far" in capsys.readouterr().out


def test_a_recipe_s_head_has_a_line_for_each_remark(folder, monkeypatch):
    name = "a\nseed: 9"
    (folder / "mine").rename(folder / name)
    tune(folder, monkeypatch, SUBSET[1], f"study='{name}'", "trials=2")
    recipe = (folder / name / "experiment" / "best.yaml").read_text()
    assert "seed" not in OmegaConf.create(recipe)
