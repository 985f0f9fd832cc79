"""The search as a user types it: what it tries, refuses, survives, and ends with."""

import csv
import gc
import json
import re
import shlex
import signal
from types import SimpleNamespace

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from optuna.trial import TrialState

from conftest import DATA, SUBSET, build_vae, run, train_in, typed
from vae_lightning import VAEModule
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.checkpoints import read
from vae_lightning.training import experiment
from vae_lightning.tuning import search, study
from vae_lightning.tuning.objectives import read_objectives

pytestmark = pytest.mark.slow

QUICK = ["trainer.max_epochs=2", "logger=none", "model.hidden_dims=[8]", "data.batch_size=200"]
SPACE = [
    "~search.model",
    "~search.data",
    "search.optimizer.learning_rate={float:[1e-4,0.1],log:true}",
    "search.model.latent_dim=[2,3]",
]


def tune(directory, patch, *arguments):
    """Search, by the settings of all tests here but for those that are typed with other values."""
    keys = {each.partition("=")[0] for each in arguments}
    usual = [each for each in (*SUBSET, *QUICK, *SPACE) if each.partition("=")[0] not in keys]
    typed("tune", *usual, *arguments, directory=directory, patch=patch)


def trials_of(directory, directions=("maximize",)):
    return study.Study(directory, None, directions).trials()


def outcomes(directory):
    return [
        (trial.params, trial.values, trial.state, trial.intermediate_values)
        for trial in trials_of(directory)
    ]


def refusal(directory, patch, *arguments):
    with pytest.raises(SystemExit) as exit_:
        tune(directory, patch, *arguments)
    return str(exit_.value.code)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of seven trials, of which the last two may be pruned."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        tune(directory, patch, "trials=7", "study=here")
    return directory / "here"


def test_the_recipe_trains_the_best_trial_again_to_the_last_bit(whole, tmp_path):
    trials = trials_of(whole)
    best = max(
        (trial for trial in trials if trial.state == TrialState.COMPLETE),
        key=lambda trial: trial.value,
    )
    again = train_in(
        tmp_path, f"--config-dir={whole}", "experiment=best", "callbacks=minimal", "logger=csv"
    )
    first, second = (
        read(run / "checkpoints" / "best.ckpt")
        for run in (whole / "trials" / str(best.number), again)
    )
    assert first["state_dict"].keys() == second["state_dict"].keys()
    assert all(
        torch.equal(first["state_dict"][name], second["state_dict"][name])
        for name in first["state_dict"]
    )
    assert first["hyper_parameters"] == second["hyper_parameters"]
    with (again / "csv" / "metrics.csv").open() as table:
        elbos = [float(row["val/elbo"]) for row in csv.DictReader(table) if row["val/elbo"]]
    assert (
        torch.tensor(max(elbos), dtype=torch.float32).item()
        == best.value
        == best.user_attrs["figures"]["elbo"]
        == max(best.intermediate_values.values())
    )
    recipe = (whole / "experiment" / "best.yaml").read_text()
    assert str(DATA) not in recipe
    assert "callbacks" not in recipe


def test_a_study_shows_its_best_and_prunes_what_is_not(whole):
    states = {
        state: [trial for trial in trials_of(whole) if trial.state == state] for state in TrialState
    }
    assert states[TrialState.PRUNED]
    assert len(states[TrialState.COMPLETE]) + len(states[TrialState.PRUNED]) == 7
    for trial in states[TrialState.PRUNED]:
        assert list(trial.intermediate_values) == [1]
        assert sorted(path.name for path in (whole / "trials" / str(trial.number)).iterdir()) == [
            ".hydra",
            "train.log",
        ]
    log = (whole / "tune.log").read_text()
    line = r"\d+/7   trial \d+   (?:ELBO|pruned at ELBO) -\d+\.\d\d   .*learning_rate="
    assert len(re.findall(line, log)) == 7
    ranked = [float(each) for each in re.findall(r"\n +\d+  (-\d+\.\d\d) .*here/trials/\d+", log)]
    assert ranked == sorted(ranked, reverse=True)
    assert len(ranked) == min(10, len(states[TrialState.COMPLETE]))
    assert f"by {len(states[TrialState.COMPLETE])} trials only: 50 or more would tell" in log
    assert all(
        (whole / name).read_bytes().startswith(b"\x89PNG")
        for name in ("history.png", "importance.png")
    )
    assert not (whole / "front.png").exists()
    assert "epoch 1/2" in (whole / "trials" / "0" / "train.log").read_text()


def test_a_study_that_was_broken_off_goes_on_as_the_same_one(whole, tmp_path, monkeypatch, capsys):
    fit, ends = experiment.fit, {1: signal.SIGTERM, 3: signal.SIGINT, 5: None}

    def fit_until_stopped(parts):
        number = int(parts.directory.name)
        if number in ends:
            if (end := ends.pop(number)) is not None:
                signal.raise_signal(end)  # heeded after the first step
            else:
                # As little as a killed process does.
                monkeypatch.setattr(study.Study, "put_back", lambda *_: None)
                raise SystemExit(137)
        fit(parts)

    monkeypatch.setattr(experiment, "fit", fit_until_stopped)
    for code, *arguments in (
        (143, *SUBSET, *QUICK, *SPACE, "trials=7"),
        (130, f"data.dir={DATA}", "trials=7"),
        (137, f"data.dir={DATA}"),
    ):
        with pytest.raises(SystemExit) as exit_, monkeypatch.context() as patch:
            typed("tune", *arguments, "study=here", directory=tmp_path, patch=patch)
        assert exit_.value.code == code
        assert (TrialState.RUNNING in {trial.state for trial in trials_of(tmp_path / "here")}) == (
            code == 137
        )
        assert (
            code == 137
            or f"vae_lightning.tune study=here trials=7 data.dir={DATA}\n"
            in capsys.readouterr().out
        )
    monkeypatch.undo()
    killed = sorted((tmp_path / "here" / "trials" / "5").rglob("*"))
    tune(tmp_path, monkeypatch, "trials=7", "study=here")
    assert killed
    assert sorted((tmp_path / "here" / "trials" / "5").rglob("*")) == killed
    assert outcomes(tmp_path / "here") == outcomes(whole)
    assert not ends
    assert (tmp_path / "here" / "experiment" / "best.yaml").read_text().count("latent_dim") == 1


def test_a_trial_that_fails_is_recorded_with_its_reason_and_passed_over(
    tmp_path, monkeypatch, capsys
):
    step = VAEModule.training_step

    def nan_or_out_of_memory(module, batch, batch_idx):
        number = HydraConfig.get().runtime.output_dir.rpartition("/")[2]
        if number == "1":
            raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB\nsecond line")
        loss = step(module, batch, batch_idx)
        return loss * torch.nan if number == "0" else loss

    monkeypatch.setattr(VAEModule, "training_step", nan_or_out_of_memory)
    space = [
        "search.model.kl_schedule=[constant,linear]",
        "search.trainer.gradient_clip_val=[1.0,null]",
    ]
    tune(tmp_path, monkeypatch, "trials=5", "study=here", "trainer.max_epochs=1", *space)
    trials = trials_of(tmp_path / "here")
    linear = [
        trial
        for trial in trials
        if trial.params["model.kl_schedule"] == "linear" and trial.number > 1
    ]
    assert {trial.number for trial in trials if trial.state == TrialState.FAIL} == {
        0,
        1,
        *(each.number for each in linear),
    }
    assert [trial.user_attrs.get("refused") for trial in trials[:2]] == [False, False]
    assert re.match(
        r"weight .* is not finite after step 1|train/\w+ is nan at step 2",
        trials[0].user_attrs["problem"],
    )
    assert trials[1].user_attrs["problem"] == "CUDA out of memory. Tried to allocate 20 GiB"
    assert linear
    assert all("needs kl_schedule_steps" in trial.user_attrs["problem"] for trial in linear)
    shown = capsys.readouterr().out
    assert shown.count("failed: ") == 2 * (2 + len(linear))
    assert not list((tmp_path / "here" / "trials" / "0").glob("checkpoints"))
    assert not (tmp_path / "here" / "trials" / str(linear[0].number)).exists()


def test_where_every_trial_is_refused_the_search_ends_with_the_reason_and_leaves_nothing(
    tmp_path, monkeypatch
):
    searched = "search.model.activation=[nosuch,nosuch_either]"
    error = refusal(tmp_path, monkeypatch, searched, "study=deep/down/here")
    last = r"model.activation=nosuch\w*: must be 'relu'"
    assert re.match(rf"error: all of 3 trials were refused, the last by: {last}", error)
    assert not list(tmp_path.iterdir())


def test_what_every_trial_would_refuse_is_refused_before_the_first(tmp_path, monkeypatch):
    error = refusal(tmp_path, monkeypatch, "model.activation=nosuch", "study=deep/down/here")
    assert error.startswith("error: model.activation=nosuch: must be 'relu'")
    assert not list(tmp_path.iterdir())


def test_what_is_searched_may_complete_a_configuration(tmp_path, monkeypatch):
    arguments = ["model.kl_schedule=linear", "search.model.kl_schedule_steps=[4,8]"]
    tune(tmp_path, monkeypatch, "trials=1", "trainer.max_epochs=1", "study=here", *arguments)
    [trial] = trials_of(tmp_path / "here")
    assert trial.state == TrialState.COMPLETE


def test_a_figure_that_is_better_the_lower_is_minimised(tmp_path, monkeypatch, capsys):
    arguments = ["trials=3", "trainer.max_epochs=1", "study=here", "pruning=false"]
    tune(tmp_path, monkeypatch, *arguments, "objectives=[loss]")
    trials = trials_of(tmp_path / "here", ("minimize",))
    losses = [trial.value for trial in trials]
    assert losses == [trial.user_attrs["figures"]["criterion"] for trial in trials]
    shown = capsys.readouterr().out
    ranked = re.findall(r"\n +(\d+)  \d+\.\d\d .*here/trials/\d+", shown)
    assert [losses[int(number)] for number in ranked] == sorted(losses)
    assert f"best        trial {ranked[0]}, as a recipe: " in shown
    recipe = (tmp_path / "here" / "experiment" / "best.yaml").read_text()
    assert f"validation loss {min(losses):.2f}, in epoch 1." in recipe


def test_a_trial_whose_model_lacks_the_figure_is_refused():
    elbo = read_objectives(["elbo"], build_vae())
    lacking = read_objectives(["importance_bound"], build_vae(objective="iwae"))
    metrics = {"val/elbo": torch.tensor(-100.0)}
    trainer = SimpleNamespace(sanity_checking=False, callback_metrics=metrics, current_epoch=4)
    reporting = search.Reporting(None, elbo, elbo[0])
    reporting.on_validation_end(trainer, None)
    assert reporting.best == {"elbo": -100.0, "criterion": -100.0, "epoch": 5}
    with pytest.raises(ConfigurationError, match=r"no figure importance_bound$"):
        search.Reporting(None, lacking, lacking[0]).on_validation_end(trainer, None)


def test_a_signal_in_the_first_trial_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "fit", lambda _: signal.raise_signal(signal.SIGTERM))
    assert refusal(tmp_path, monkeypatch) == "143"
    assert not list(tmp_path.iterdir())


def test_two_objectives_end_with_a_front_and_the_highest_bound_of_it(tmp_path, monkeypatch, capsys):
    searched = ["search=rate_distortion", "search.model.latent_dim={int:[2,4]}"]
    arguments = [*SUBSET, *QUICK, *searched, "trials=4", "study=here"]
    typed("tune", *arguments, directory=tmp_path, patch=monkeypatch)
    trials = trials_of(tmp_path / "here", ("minimize", "minimize"))
    for trial in trials:
        rate, distortion = trial.values
        elbo = trial.user_attrs["figures"]["criterion"]
        assert elbo == pytest.approx(-rate - distortion, abs=1e-3)
        assert 2 <= trial.params["model.latent_dim"] <= 4
        assert not trial.intermediate_values
    shown = capsys.readouterr().out
    front = {
        int(number)
        for number in re.findall(r"\n +(\d+) +\d+\.\d\d +\d+\.\d\d .*here/trials/\d+", shown)
    }
    dominated = {
        each.number
        for each in trials
        if any(
            o.values != each.values
            and all(a <= b for a, b in zip(o.values, each.values, strict=True))
            for o in trials
        )
    }
    assert front == {trial.number for trial in trials} - dominated
    best = max(trials, key=lambda trial: trial.user_attrs["figures"]["criterion"])
    assert best.number in front
    assert f"best        trial {best.number}, as a recipe: " in shown
    assert (tmp_path / "here" / "front.png").exists()


def test_no_part_of_a_trial_outlives_it(tmp_path, monkeypatch):
    def modules():
        return sum(type(each) is VAEModule for each in gc.get_objects())

    gc.collect()
    before, most, fit = modules(), [], experiment.fit

    def count(parts):
        most.append(modules() - before)
        fit(parts)

    monkeypatch.setattr(experiment, "fit", count)
    tune(tmp_path, monkeypatch, "trials=2", "trainer.max_epochs=1")
    assert most == [1, 1]


def test_the_password_of_a_database_is_neither_shown_nor_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        study, "open_database", lambda address: study.open_journal(tmp_path / "here")
    )
    secret = "storage=postgresql://me:s3cret@nowhere/trials"
    tune(tmp_path, monkeypatch, "trials=1", "trainer.max_epochs=1", "study=here", secret)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "fit", lambda _: signal.raise_signal(signal.SIGTERM))
        # As with PGPASSWORD: another way to the same database.
        alone = ["trials=2", "trainer.max_epochs=1", secret.replace(":s3cret", "")]
        assert refusal(tmp_path, patch, "study=here", *alone) == "143"
    again = shlex.split(capsys.readouterr().out.rpartition("Go on with\n")[2])
    assert "storage='postgresql://me@nowhere/trials'" in again
    error = refusal(tmp_path, monkeypatch, "study=here", "trials=2", secret, "seed=4")
    assert error.startswith("error: seed=4: the study in here was begun with 1; ")
    error = refusal(
        tmp_path, monkeypatch, "study=here", "trials=2", secret.replace("nowhere", "elsewhere")
    )
    place = "postgresql://me:***@nowhere/trials"
    assert error == f"error: study=here: its trials are in {place}, so type its storage="
    for mistake in (f"{secret}?ssl=1", "data.dir=ftp://me:s3cret@h/data"):
        error = refusal(tmp_path, monkeypatch, mistake)
        assert "me:***@" in error
        assert "s3cret" not in error + capsys.readouterr().out
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"s3cret" not in file.read_bytes()


REFUSALS = {
    "study=taken": "study=taken: not a study's directory, and not empty",
    "storage=trials.db": "storage: not the address of a database; write one like sqlite:///trials.db",
    "data.val_size=0": "data.val_size=0: a search goes by images that are held out for it, and "
    "never by the test images",
    "data.validate_on_test=true": "data.validate_on_test=True: a search goes by images that are "
    "held out",
    "objectives=[rate,distortion]": "pruning=true: a trial is compared by one figure, and "
    "objectives=[rate,distortion] are two",
    "objectives=[ebo]": "objectives=[ebo]: must be [criterion], one of [loss], [elbo], ",
    "objectives=[kl]": "objectives=[kl]: must be [criterion], one of [loss], [elbo], ",
    "--multirun seed=1,2": "--multirun: a search is no sweep; what it varies is written "
    "search.model.latent_dim=[2,5,10]",
    "model.latent_dim=5": "model.latent_dim=5: is searched; with ~search.model.latent_dim it is "
    "that in every trial",
    "trainer.devices=2": "trainer.devices: a trial is trained by one process; several search at "
    "once",
    "search=nosuch": "search=nosuch: not found; choose from default, rate_distortion",
    "search.model.latnet_dim=[2]": "unknown key search.model.latnet_dim: did you mean "
    "search.model.latent_dim?",
    "search.model.learning_rate=[1e-3]": "search.model.learning_rate: is called "
    "search.optimizer.learning_rate since version 0.2",
    "search.seed=[1,2]": "search.seed: not offered; data.batch_size and all of model, optimizer "
    "and trainer can be searched",
}


@pytest.mark.parametrize(("mistake", "message"), REFUSALS.items(), ids=REFUSALS.keys())
def test_a_mistake_is_told_and_leaves_nothing(tmp_path, monkeypatch, mistake, message):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert refusal(tmp_path, monkeypatch, *mistake.split()).startswith(f"error: {message}")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "taken"]


OTHERS = {
    "model.kl_weight=2.0": "model.kl_weight=2.0: the study in here was begun with 1.0; go on with "
    "it by",
    "optimizer.name=sgd": "optimizer.name=sgd: the study in here was begun with adam; ",
    "search.model.latent_dim=[2,5]": "search.model.latent_dim=[2, 5]: the study in here was begun "
    "with [2, 3]",
    "storage=sqlite:///other.db": "study=here: its trials are in its directory, so leave out "
    "storage=",
}


@pytest.mark.parametrize(("other", "message"), OTHERS.items(), ids=OTHERS.keys())
def test_what_is_not_the_study_s_own_is_refused(whole, monkeypatch, other, message):
    before = (whole / "study.journal").read_bytes()
    assert refusal(whole.parent, monkeypatch, "study=here", "trials=8", other).startswith(
        f"error: {message}"
    )
    assert (whole / "study.journal").read_bytes() == before


def test_a_study_that_has_all_its_trials_says_what_was_best_once_more(whole, monkeypatch, capsys):
    before = outcomes(whole)
    typed("tune", "study=here", "trials=7", directory=whole.parent, patch=monkeypatch)
    assert outcomes(whole) == before
    shown = capsys.readouterr().out
    assert shown.startswith("here: 7 of 7 trials so far\n")
    assert "as a recipe: " in shown


def test_a_typo_and_help_are_answered_without_torch_or_optuna(tmp_path):
    for arguments in (["search.model.latnet_dim=[2]"], ["--help"]):
        environment = {"PYTHONPROFILEIMPORTTIME": "1"}
        finished = run("tune", *arguments, cwd=tmp_path, environment=environment)
        imported = set(re.findall(r"\| +(\w+)$", finished.stderr, flags=re.MULTILINE))
        assert "hydra" in imported
        assert not imported & {"torch", "optuna", "numpy", "pydantic"}
    assert not list(tmp_path.iterdir())


def test_the_missing_extra_is_told_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert (
        refusal(tmp_path, monkeypatch)
        == "error: optuna is missing: pip install 'vae-lightning[tune]'"
    )


def test_the_plan_of_a_study_is_checked_when_it_is_joined_as_if_it_were_typed(
    whole, tmp_path, monkeypatch
):
    (tmp_path / "here" / ".locks").mkdir(parents=True)
    lines = [json.loads(line) for line in (whole / "study.journal").read_text().splitlines()]
    for line in lines:
        if "plan" in line.get("user_attr", {}):
            line["user_attr"]["plan"]["config"]["callbacks"]["best"]["_target_"] = "os.system"
    (tmp_path / "here" / "study.journal").write_text(
        "".join(f"{json.dumps(line)}\n" for line in lines)
    )
    with pytest.raises(SystemExit) as exit_:
        typed("tune", "study=here", directory=tmp_path, patch=monkeypatch)
    assert str(exit_.value.code).startswith(
        "error: study=here: callbacks.best._target_=os.system: not one of the allowed targets"
    )
