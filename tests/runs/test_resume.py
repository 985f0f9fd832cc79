"""A run that was stopped and resumed equals the run that wasn't, bit by bit.

``make chaos`` tries every step.
"""

import json
import random
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from lightning import Trainer
from omegaconf import OmegaConf
from torch.utils._python_dispatch import TorchDispatchMode

from chaos.faults import flipped
from chaos.runs import (
    MINIMAL,
    SMALL,
    VARIATIONS,
    differences,
    finite,
    names_what_is_not_finite,
    run_of,
    signalled,
    spoilt,
    stopped_and_resumed,
    stretches,
    train,
    trained,
)
from conftest import DATA, build_module, evaluated
from vae_lightning.runs import atomic_files, provenance
from vae_lightning.runs.checkpoints import VerifiedFiles, file_of_step
from vae_lightning.training.callbacks import checkpoints
from vae_lightning.training.callbacks.checkpoints import LastCheckpoint

STOPS = {
    "all callbacks": (4,),
    "validation in the middle of an epoch": (1, 2, 3),
    "max_steps": (7,),
    "accumulated gradients": (3,),
    "validation between accumulated gradients": (1,),
    "stochastic binarisation, KL warm-up, one-cycle": (5,),
}


@pytest.mark.parametrize("name", VARIATIONS)
@pytest.mark.slow
def test_a_run_that_was_stopped_and_resumed_ends_the_same(name, tmp_path):
    arguments = [*SMALL, *VARIATIONS[name][0]]
    assert train(tmp_path / "whole", *arguments) == 0
    whole = run_of(tmp_path / "whole")
    assert (
        differences(stopped_and_resumed(tmp_path / "stopped", arguments, *STOPS[name]), whole) == []
    )


# -- nothing is begun anew without a word, and nothing is mixed -----------------------------------

SHORT = [*SMALL, MINIMAL, "trainer.max_epochs=1", "callbacks.last.every_n_steps=1"]


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """A run directory, stopped after three of four steps, and the one of a run that wasn't."""
    directory = tmp_path_factory.mktemp("stopped")
    with signalled([3]):
        assert train(directory / "stopped", *SHORT) == 143
    return run_of(directory / "stopped"), trained(directory / "whole", *SHORT)


@pytest.fixture
def stopped(stopped_once, tmp_path):
    return Path(shutil.copytree(stopped_once[0], tmp_path / "run", symlinks=True))


def contents(directory):
    """Return what lies in a directory, but for the lock and what is told of the attempt."""
    files = (
        file
        for file in directory.rglob("*")
        if file.is_file() and file.name not in (".lock", "train.log")
    )
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def refused(run, *typed):
    """Return the error of a resume that is refused, and check that it changed nothing."""
    before = contents(run)
    error = train(run.parent, f"resume={run}", *typed)
    assert isinstance(error, str)
    assert len(error.splitlines()) <= 2
    assert contents(run) == before
    return error


def test_a_damaged_checkpoint_is_told_of_and_the_one_before_it_taken(stopped, stopped_once, capsys):
    file = file_of_step(stopped, 3)
    file.write_bytes(flipped(file.read_bytes(), random.Random(1)))
    assert train(stopped.parent, f"resume={stopped}") == 0
    assert (
        f"{file} is damaged or unfinished, by its SHA-256: going on from an earlier one"
        in capsys.readouterr().out
    )
    assert stretches(stopped)[-1][0] == 2
    assert differences(stopped, stopped_once[1]) == []


@pytest.mark.slow
def test_a_run_that_was_killed_between_its_last_checkpoint_and_its_name_names_it_at_last(
    stopped_once, tmp_path
):
    run = Path(shutil.copytree(stopped_once[1], tmp_path / "run", symlinks=True))
    (run / "metrics.json").unlink()
    atomic_files.point(run / "checkpoints" / "last.ckpt", "step_00000003.ckpt")
    assert train(tmp_path, f"resume={run}") == 0
    assert differences(run, stopped_once[1]) == []


@pytest.mark.parametrize("damage", ["flipped", "no sums", "empty", "gone"])
def test_where_no_checkpoint_is_whole_nothing_is_done(stopped, damage):
    for file in (stopped / "checkpoints").iterdir():
        if damage == "flipped" and file.suffix == ".ckpt" and not file.is_symlink():
            file.write_bytes(flipped(file.read_bytes(), random.Random(1)))
        elif (damage == "no sums" and file.suffix == ".sha256") or damage == "gone":
            file.unlink()
        elif damage == "empty" and not file.is_symlink():
            file.write_bytes(b"")
    assert refused(stopped).endswith(
        "none of its checkpoints is whole, so that nothing was done; start the run anew"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.latent_dim", 3),
        ("optimizer.learning_rate", 0.5),
        ("optimizer.name", "adamw"),
        ("data.batch_size", 40),
        ("data.binarization", "static"),
        ("seed", 7),
        ("trainer.gradient_clip_val", 0.5),
        ("trainer.accumulate_grad_batches", 2),
        ("trainer.precision", "bf16-mixed"),
        ("trainer.check_val_every_n_epoch", 2),
        ("trainer.limit_train_batches", 0.5),
    ],
)
@pytest.mark.slow
def test_another_model_data_trainer_or_seed_is_refused_by_its_key(stopped, key, value):
    if key != "optimizer.learning_rate":  # which may be typed
        assert refused(stopped, f"{key}={value}").startswith(
            f"error: {key}={value}: a run keeps what it was begun with"
        )
    file = stopped / ".hydra" / "config.yaml"
    config = OmegaConf.load(file)
    OmegaConf.update(config, key, value)
    OmegaConf.save(config, file)
    told = rf": {re.escape(key)} is {value} in its configuration, \S+ in its step 3$"
    assert re.search(told, refused(stopped))


def test_a_checkpoint_of_another_run_is_refused(stopped, tmp_path):
    with signalled([3]):
        assert train(tmp_path / "other", *SHORT, "model.latent_dim=5") == 143
    for file in (run_of(tmp_path / "other") / "checkpoints").glob("step_*"):
        shutil.copy(file, stopped / "checkpoints")
    assert "model.latent_dim is 2 in its configuration, 5 in its step 3" in refused(stopped)


@pytest.mark.parametrize(
    "typed",
    [
        "trainer.precision=bf16-mixed",
        "trainer.max_steps=3",
        "+model.nosuch=1",
        "experiment=aevb",
        "~data.name",
        "hydra.run.dir=x",
    ],
)
def test_what_a_run_cannot_change_on_its_way_is_refused_by_its_key(stopped, typed):
    assert typed.lstrip("+~").partition("=")[0] in refused(stopped, typed)


def test_fewer_epochs_than_were_begun_are_refused(stopped):
    assert refused(stopped, "trainer.max_epochs=0").startswith("error: trainer.max_epochs=0")


@pytest.mark.slow
def test_a_finished_run_says_so_and_goes_on_where_more_epochs_are_asked_for(
    stopped_once, tmp_path, capsys
):
    run = Path(shutil.copytree(stopped_once[1], tmp_path / "run", symlinks=True))
    before = contents(run)
    assert train(tmp_path, f"resume={run}") == 0
    assert f"{run} is finished: its figures are in {run}/metrics.json" in capsys.readouterr().out
    assert contents(run) == before
    longer = trained(tmp_path / "longer", *SHORT, "trainer.max_epochs=2")
    assert train(tmp_path, f"resume={run}", "trainer.max_epochs=2") == 0
    assert [
        each for each in differences(run, longer) if not each.startswith("tensors ")
    ] == []  # the words on how it was made
    capsys.readouterr()
    assert train(tmp_path, f"resume={run}") == 0
    assert "is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        (["optimizer.schedule=one_cycle"], "optimizer.schedule=one_cycle"),
        (["model.kl_schedule=linear", "model.kl_schedule_steps=3"], "model.kl_schedule=linear"),
    ],
)
def test_another_length_is_refused_where_a_schedule_depends_on_it(tmp_path, typed, key):
    with signalled([1]):
        assert train(tmp_path, *SHORT, *typed) == 143
    assert refused(run_of(tmp_path), "trainer.max_epochs=2") == (
        f"error: trainer.max_epochs=2: {key} depends on the length of the run, which is kept"
    )


def test_a_length_that_was_edited_is_refused_where_a_schedule_depends_on_it(tmp_path):
    with signalled([1]):
        assert train(tmp_path, *SHORT, "optimizer.schedule=one_cycle") == 143
    file = run_of(tmp_path) / ".hydra" / "config.yaml"
    config = OmegaConf.load(file)
    config.trainer.max_epochs = 2
    OmegaConf.save(config, file)
    told = "trainer.max_epochs is 2 in its configuration, 1 in its step 1"
    assert refused(run_of(tmp_path)).endswith(told)


@pytest.mark.slow
def test_a_learning_rate_that_is_typed_holds_from_there_on_and_is_recorded(stopped, capsys):
    line = (f"resume={stopped}", "optimizer.learning_rate=1e-4", "trainer.max_epochs=2")
    with signalled([5]):
        assert train(stopped.parent, *line) == 143
    assert "optimizer.learning_rate goes from 0.001 to 0.0001" in capsys.readouterr().out
    assert train(stopped.parent, f"resume={stopped}") == 0
    kept = torch.load(stopped / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 8
    assert kept["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(1e-4)
    assert kept["hyper_parameters"]["optimizer"]["learning_rate"] == 1e-4
    written = json.loads((stopped / "metrics.json").read_text())["run"]
    assert written["learning_rates"] == {"0": 1e-3, "3": 1e-4}


def test_a_smaller_rate_makes_smaller_steps(stopped, stopped_once):
    assert train(stopped.parent, f"resume={stopped}", "optimizer.learning_rate=1e-5") == 0
    before, slow, usual = (
        torch.load(file_of_step(run, step), weights_only=True)["state_dict"]
        for run, step in ((stopped, 3), (stopped, 4), (stopped_once[1], 4))
    )
    for name, weight in before.items():
        moved, moves = ((each[name] - weight).abs().max() for each in (slow, usual))
        assert moved <= 0.02 * moves


def test_a_rate_that_a_schedule_sets_is_kept(tmp_path):
    with signalled([1]):
        assert train(tmp_path, *SHORT, "optimizer.schedule=one_cycle") == 143
    assert refused(run_of(tmp_path), "optimizer.learning_rate=1e-4") == (
        "error: optimizer.learning_rate=0.0001: optimizer.schedule=one_cycle sets the rate, "
        "and is kept"
    )


@pytest.mark.slow
def test_averaged_weights_are_what_is_tested_and_are_resumed_bitwise(tmp_path, monkeypatch):
    arguments = [*SMALL, "callbacks=[minimal,ema]", "callbacks.ema.decay=0.9"]
    assert train(tmp_path / "whole", *arguments) == 0
    whole = run_of(tmp_path / "whole")
    assert differences(stopped_and_resumed(tmp_path / "stopped", arguments, 5), whole) == []
    best = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)
    averaged, current = best["state_dict"], best["current_model_state"]
    assert any(not torch.equal(each, averaged[name]) for name, each in current.items())
    tested = json.loads((whole / "metrics.json").read_text())["figures"]["test/elbo"]
    measured = evaluated(whole, tmp_path, monkeypatch, "metrics=[bound]")["figures"]["test/elbo"]
    assert measured == pytest.approx(tested, abs=1e-3)


@pytest.mark.parametrize("inside", ["checkpoints", "checkpoints/last.ckpt"])
def test_what_lies_in_a_run_directory_names_it(stopped, inside):
    told = str(train(stopped.parent, f"resume={stopped}/{inside}"))
    assert told.endswith(f"no run directory; type resume={stopped}")


EARLY = ["callbacks.early_stopping.min_delta=1000", "trainer.max_epochs=4"]


def test_the_preset_ends_a_run_early_and_several_loggers_log_it(tmp_path):
    several = ("callbacks.early_stopping.patience=1", "logger=[tensorboard,csv]")
    run = trained(tmp_path, *SMALL, *EARLY, "+callbacks=early_stopping", *several)
    assert "Ended early, in epoch 2: " in (run / "train.log").read_text()
    assert list(run.glob("tensorboard/events*"))
    assert "val/elbo" in (run / "csv" / "metrics.csv").read_text()
    stored = OmegaConf.load(run / ".hydra" / "config.yaml").callbacks
    assert {"early_stopping", "reconstructions", "last"} <= set(stored)


@pytest.mark.slow
def test_a_run_that_ended_early_goes_on_with_more_patience(tmp_path, capsys):
    arguments = [*SHORT, *EARLY]
    patient = trained(tmp_path / "patient", *arguments, "callbacks.early_stopping.patience=3")
    run = trained(tmp_path / "ended", *arguments, "callbacks.early_stopping.patience=1")
    assert "Ended early, in epoch 2: " in (run / "train.log").read_text()
    capsys.readouterr()
    assert train(tmp_path, f"resume={run}") == 0
    assert "is finished" in capsys.readouterr().out
    assert train(tmp_path, f"resume={run}", "callbacks.early_stopping.patience=3") == 0
    assert "is finished" not in capsys.readouterr().out
    assert stretches(run)[-1][0] == 8
    ended, others = (
        torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (run, patient)
    )
    assert ended["global_step"] == others["global_step"] == 16
    weights = others["state_dict"]
    assert all(torch.equal(each, weights[name]) for name, each in ended["state_dict"].items())


@pytest.mark.parametrize("kind", ["nosuch", "empty", "a file", "a sweep's"])
def test_what_is_no_run_directory_is_refused(tmp_path, kind):
    directory = tmp_path / "place"
    if kind == "a file":
        directory.touch()
    elif kind != "nosuch":
        directory.mkdir()
    if kind == "a sweep's":
        (directory / "multirun.yaml").touch()
    before = sorted(tmp_path.rglob("*"))
    error = train(tmp_path, f"resume={directory}")
    assert str(error).startswith(f"error: resume={directory}: no run directory")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("key", "value"), [("trainer", None), ("data", 3), ("callbacks", "x"), ("model", [1])]
)
def test_a_stored_configuration_with_another_thing_in_a_group_s_place_is_refused(
    stopped, key, value
):
    file = stopped / ".hydra" / "config.yaml"
    config = OmegaConf.load(file)
    config[key] = value
    OmegaConf.save(config, file)
    assert refused(stopped).endswith(f"no run directory that train has made ({key} is no group)")


@pytest.mark.parametrize(
    "content",
    ["", "[" * 100_000, '{"run": {"epochs": 1e400}}', "[]"],
    ids=["empty", "deep", "infinite", "a list"],
)
def test_figures_that_are_none_do_not_keep_a_run_from_its_end(stopped, content):
    (stopped / "metrics.json").write_text(content)
    assert train(stopped.parent, f"resume={stopped}") == 0
    assert json.loads((stopped / "metrics.json").read_text())["run"]["steps"] == 4


def test_a_directory_that_is_trained_in_is_left_alone(stopped):
    with FileLock(stopped / ".hydra" / ".lock"):
        assert refused(stopped) == f"error: resume={stopped}: another process is training there"


def test_a_run_is_resumed_from_any_directory_though_its_data_was_named_from_another(
    stopped_once, tmp_path
):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "digits").symlink_to(DATA)
    with signalled([3]):
        assert train(tmp_path / "here", *SHORT, "data.dir=digits") == 143
    run = run_of(tmp_path / "here")
    assert train(tmp_path / "there", f"resume=../here/{run.relative_to(tmp_path / 'here')}") == 0
    assert differences(run, stopped_once[1]) == []


@pytest.mark.parametrize("name", ["first", "configured", "first checkpoint"])
def test_a_run_that_never_came_to_its_first_step_is_begun_there(
    stopped_once, tmp_path, capsys, name
):
    """As a process that was killed leaves it: its first checkpoint is missing or unfinished."""
    run = tmp_path / "run"
    shutil.copytree(stopped_once[0] / ".hydra", run / ".hydra")
    (run / ".hydra" / "begun").unlink()
    if name != "configured":
        (run / "checkpoints").mkdir()
    if name == "first checkpoint":
        shutil.copy(file_of_step(stopped_once[0], 2), file_of_step(run, 0))
        (run / "checkpoints" / ".step_00000000.ckpt.sha256.tmp").touch()
    assert train(tmp_path, f"resume={run}") == 0
    assert "was stopped before its first step: starting there" in capsys.readouterr().out
    assert differences(run, stopped_once[1]) == []


def test_a_run_that_goes_on_elsewhere_says_so(stopped, tmp_path, capsys, monkeypatch):
    again = Path(shutil.copytree(stopped, tmp_path / "again", symlinks=True))
    assert train(tmp_path, f"resume={again}") == 0
    assert "Not bitwise" not in capsys.readouterr().out
    here = provenance.envelope(torch.device("cpu"))
    monkeypatch.setattr(checkpoints, "envelope", lambda device: {**here, "threads": 64})
    assert train(tmp_path, f"resume={stopped}") == 0
    assert (
        f"Not bitwise the run that it was: threads {here['threads']} then, 64 now"
        in capsys.readouterr().out
    )


@pytest.mark.slow
def test_deterministic_runs_are_the_same(tmp_path):
    runs = [
        trained(tmp_path / name, *SHORT, "trainer.deterministic=true")
        for name in ("first", "second")
    ]
    assert differences(*runs) == []


# -- numbers that aren't finite -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantity", "value", "step"), [("loss", "nan", 3), ("gradient", "inf", 2)]
)
@pytest.mark.slow
def test_what_is_not_finite_ends_the_run_unsaved_and_the_run_goes_on_without_it(
    stopped_once, tmp_path, quantity, value, step
):
    with spoilt(quantity, float(value), step):
        assert names_what_is_not_finite(str(train(tmp_path, *SHORT)), step)
        run = run_of(tmp_path)
        assert all(finite(file) for file in run.rglob("*.ckpt"))
        told = str(train(tmp_path / "other", *SHORT, "optimizer.learning_rate=0.002"))
        longer = str(train(tmp_path, f"resume={run}", "trainer.accelerator=cpu"))
        assert names_what_is_not_finite(longer, step)
    keys = [each.partition("=")[0] for each in shlex.split(longer.splitlines()[1])]
    assert keys.count("trainer.accelerator") == 1
    assert train(tmp_path, f"resume={run}") == 0
    assert differences(run, stopped_once[1]) == []
    # The run's files are named, and the line goes on with a tenth of the rate.
    place, _, line = told.splitlines()[1].partition(". With a tenth of the rate:  ")
    other = run_of(tmp_path / "other").relative_to(tmp_path / "other")
    assert re.fullmatch(rf"Its files, saved up to step [12]: {other}", place)
    _, dash, module, *overrides = shlex.split(line)
    assert (dash, module) == ("-m", "vae_lightning.train")
    assert train(tmp_path / "again", *overrides) == 0
    again = OmegaConf.load(run_of(tmp_path / "again") / ".hydra" / "config.yaml")
    assert again.optimizer.learning_rate == pytest.approx(0.0002)
    assert again.data.batch_size == 80


def test_no_step_waits_for_the_device(subset, tmp_path, monkeypatch):
    """Between two points at which a run logs or saves, no tensor is turned into a number."""
    waits = []

    class Waiting(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), others=None):
            if function in (
                torch.ops.aten._local_scalar_dense.default,
                torch.ops.aten.equal.default,
            ):
                waits.append(trainer.global_step)
            return function(*arguments, **(others or {}))

    trainer = Trainer(
        max_steps=12,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=6,
        limit_val_batches=0,
        callbacks=[LastCheckpoint(every_n_steps=6)],
        plugins=[VerifiedFiles()],
    )
    with Waiting():
        trainer.fit(build_module(latent_dim=2, hidden_dims=[16]), subset)
    assert {0, 6, 12} <= set(waits)  # what is saved is checked
    assert set(waits) <= {0, 6, 10, 11, 12}  # an epoch has ten
