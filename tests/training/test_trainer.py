"""What the Trainer is given, and what a run says of how it ended."""

import json
import warnings

import pytest
import torch

from conftest import SUBSET, train_in, typed
from vae_lightning import VAEModule

SHORT = ["callbacks=minimal", "logger=none"]
RATE = "+callbacks.rate._target_=lightning.pytorch.callbacks.LearningRateMonitor"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_epochs=0"], "trainer.max_epochs=0: must be greater than 0, or must be -1"),
        (["trainer.max_steps=0"], "trainer.max_steps=0: must be greater than 0, or must be -1"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches=0: must be greater"),
        (["trainer.limit_train_batches=0.0"], "trainer.limit_train_batches=0.0: must be"),
        (["trainer.val_check_interval=1000"], "val_check_interval=1000: an epoch has 3 batches"),
        (
            ["trainer.val_check_interval=3", "trainer.limit_train_batches=2"],
            "val_check_interval=3: an epoch has 2 batches",
        ),
        (
            ["callbacks.early_stopping.patience=1", "trainer.limit_val_batches=0"],
            "callbacks.early_stopping.monitor=val/elbo: this run has no validation",
        ),
        (
            ["callbacks.early_stopping.patience=1", "data.val_size=0"],
            "callbacks.early_stopping.monitor=val/elbo: this run has no validation",
        ),
        ([RATE], "logger=none: a LearningRateMonitor needs a logger"),
    ],
)
def test_a_run_that_would_train_or_validate_nothing_is_refused(
    overrides, message, tmp_path, monkeypatch
):
    with pytest.raises(SystemExit, match="error: ") as error:
        typed("train", *SUBSET, *SHORT, *overrides, directory=tmp_path, patch=monkeypatch)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.val_check_interval=null"],
        ["trainer.val_check_interval=2", "trainer.check_val_every_n_epoch=null"],
        ["trainer.num_sanity_val_steps=1"],
        ["trainer.num_sanity_val_steps=-1"],
    ],
)
def test_what_lightning_takes_is_taken(overrides, tmp_path):
    directory = train_in(tmp_path, *SHORT, "trainer.max_epochs=1", *overrides)
    assert json.loads((directory / "metrics.json").read_text())["run"]["epochs"] == 1


def test_what_is_overfitted_is_the_same_in_every_epoch(tmp_path, monkeypatch):
    seen = []
    taken = VAEModule.training_step

    def noted(self, batch, batch_idx):
        seen.append((batch.indices.tolist(), batch.x.sum().item()))
        return taken(self, batch, batch_idx)

    monkeypatch.setattr(VAEModule, "training_step", noted)
    drawn = ("trainer.overfit_batches=2", "data.binarization=stochastic", "trainer.max_epochs=3")
    train_in(tmp_path, *SHORT, "model.hidden_dims=[4]", "data.batch_size=8", *drawn)
    assert len(seen) == 6
    assert seen[:2] == seen[2:4] == seen[4:]
    assert seen[0] != seen[1]


@pytest.mark.filterwarnings("ignore")  # of Kineto, where there is no GPU
@pytest.mark.parametrize(("profiler", "line"), [("simple", "training_step"), ("pytorch", "aten::")])
def test_a_profile_is_written_into_the_run_directory(tmp_path, profiler, line):
    typed_too = ("trainer.max_epochs=1", "data.batch_size=32", "model.hidden_dims=[4]")
    run = train_in(tmp_path, *SHORT, *typed_too, f"trainer.profiler={profiler}")
    assert line in (run / "fit-profile.txt").read_text()
    assert {each.name for each in tmp_path.iterdir()} == {"outputs"}


def test_an_anomaly_is_looked_for_where_asked_to(tmp_path, monkeypatch):
    asked = []
    taken = VAEModule.training_step
    monkeypatch.setattr(
        VAEModule,
        "training_step",
        lambda self, *batch: asked.append(torch.is_anomaly_enabled()) or taken(self, *batch),
    )
    with warnings.catch_warnings(action="ignore"):  # that it is slow
        train_in(tmp_path, *SHORT, "trainer.max_steps=2", "trainer.detect_anomaly=true")
    assert asked == [True, True]


def test_a_run_too_short_for_its_first_validation_says_so(tmp_path, capsys):
    train_in(tmp_path, *SHORT, "trainer.max_epochs=1", "trainer.check_val_every_n_epoch=4")
    assert "check_val_every_n_epoch=4: nothing is validated in 1 epochs" in capsys.readouterr().out


def test_a_run_that_ends_early_says_so_and_each_improvement_where_asked_to(tmp_path):
    settings = ["patience=1", "min_delta=1000.0", "verbose=true"]
    stop = [f"callbacks.early_stopping.{each}" for each in settings]
    directory = train_in(tmp_path, *SHORT, "trainer.max_epochs=5", *stop)
    lines = (directory / "train.log").read_text()
    assert "Metric val/elbo improved" in lines
    assert "Ended early, in epoch 2: Monitored metric val/elbo did not improve" in lines
    assert json.loads((directory / "metrics.json").read_text())["run"]["epochs"] == 2


def test_a_run_isn_t_ended_early_by_default(tmp_path):
    overshoots = ["optimizer.learning_rate=0.05", "data.batch_size=16"]
    directory = train_in(tmp_path, *SHORT, *overshoots, "trainer.max_epochs=5")
    assert json.loads((directory / "metrics.json").read_text())["run"]["epochs"] == 5
