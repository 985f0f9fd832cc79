"""Evaluation as a user types it, on models of real digits."""

import json
import math
import re

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import DATA, evaluated, train_in, typed
from vae_lightning import MNISTDataModule
from vae_lightning.models.noise import EvaluationNoise
from vae_lightning.models.vae.objectives import log_ratio
from vae_lightning.runs.checkpoints import load_model


@pytest.mark.parametrize("eval_batch_size", [7, 200])
def test_evaluate_returns_the_test_figures_of_the_training_run(
    trained, tmp_path, monkeypatch, eval_batch_size
):
    arguments = [f"data.eval_batch_size={eval_batch_size}", "metrics=[bound]", "samples=1"]
    ours = evaluated(trained, tmp_path, monkeypatch, *arguments)
    theirs = json.loads((trained / "metrics.json").read_text())
    for name, figure in theirs["figures"].items():
        assert ours["figures"][name] == pytest.approx(figure, rel=1e-6)
    assert ours["protocol"] == theirs["protocol"]


def test_evaluate_measures_log_p_and_the_latents_in_use(trained, tmp_path, monkeypatch, capsys):
    figures = evaluated(trained, tmp_path, monkeypatch, "samples=50")["figures"]
    assert figures["test/elbo"] < figures["test/log_marginal"] < 0
    assert 1 <= figures["test/median_effective_samples"] <= 50
    assert 0 < figures["test/log_marginal_estimator_error"] < figures["test/log_marginal_error"]
    assert 0 <= figures["test/active_units"] <= figures["test/latents"] == 3
    assert sum(figures["test/kl_per_dimension"]) == pytest.approx(figures["test/kl"], rel=1e-6)
    shown = capsys.readouterr().out
    for words in (
        "log p(x)",
        "a lower bound in expectation, by 50 importance samples",
        "active latents",
        "none of these is a like",
    ):
        assert words in shown


def test_neither_the_memory_bound_nor_the_batch_size_moves_log_p(trained, tmp_path, monkeypatch):
    arguments = ["samples=40", "metrics=[log_marginal]", "data.limit_test=100"]
    settings = (["memory_mb=1", "data.eval_batch_size=7"], ["memory_mb=500"])
    one, other = (
        evaluated(trained, tmp_path, monkeypatch, *arguments, *each)["figures"] for each in settings
    )
    assert one == pytest.approx(other, rel=1e-5)


def test_another_protocol_or_split_can_be_asked_for_and_is_named(
    trained, tmp_path, monkeypatch, capsys
):
    arguments = ["metrics=[bound]", "data.binarization=static", "split=val", "data.limit_test=20"]
    written = evaluated(trained, tmp_path, monkeypatch, *arguments)
    assert written["protocol"]["binarization"].startswith("static")
    assert (written["run"]["split"], written["run"]["examples"]) == ("val", 20)
    assert "val/elbo" in written["figures"]
    shown = capsys.readouterr().out
    assert "20 val images of mnist_subset, binarisation static" in shown
    assert "another than in training, which had binarization=none" in shown


def test_an_evaluation_is_shown_in_the_training_runs_dashboard(trained, tmp_path, monkeypatch):
    arguments = ["samples=3", "metrics=[log_marginal]", "data.limit_test=10"]
    figures = evaluated(trained, tmp_path, monkeypatch, *arguments)["figures"]
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    shown = events.Scalars("evaluate/test/log_marginal")[-1]
    assert (shown.step, shown.value) == (6, pytest.approx(figures["test/log_marginal"], rel=1e-6))


def test_a_figure_of_another_protocol_is_another_curve_in_the_dashboard(
    trained, tmp_path, monkeypatch
):
    arguments = ["metrics=[bound]", "data.binarization=static", "data.limit_test=10"]
    evaluated(trained, tmp_path, monkeypatch, *arguments)
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    assert "evaluate_static/test/elbo" in events.Tags()["scalars"]


def test_evaluate_measures_what_the_latents_know_and_how_samples_look(
    trained, tmp_path, monkeypatch, capsys
):
    metrics = "metrics=[mutual_information,sample_quality,bound]"
    figures = evaluated(trained, tmp_path, monkeypatch, metrics)["figures"]
    assert 0 < figures["test/mutual_information"] <= figures["test/log_examples"]
    assert figures["test/log_examples"] == pytest.approx(math.log(200))
    # Hoffman & Johnson's identity: their sum is the mean KL, by the same sample for each image.
    vae = load_model(trained)
    data = MNISTDataModule(name="mnist_subset", dir=str(DATA), val_size=80)
    data.setup()
    batch = next(iter(data.split("test")))
    posterior = vae.posterior(batch)
    z = posterior.reparameterize(EvaluationNoise(batch.indices).normal(3)[0])
    kl = log_ratio(z, posterior, vae.prior()).mean().item()
    parts = figures["test/mutual_information"] + figures["test/aggregate_posterior_kl"]
    assert parts == pytest.approx(kl, abs=1e-4)
    assert figures["samples/frechet_distance"] > figures["samples/frechet_distance_floor"] > 0
    assert figures["samples/sample_images"] == 200
    shown = capsys.readouterr().out
    for words in ("I(x; z)", "of at most log 200 = 5.30", "not an FID", "precision", "recall"):
        assert words in shown


MEANINGS = [
    (["data.binarization=static"], "log-likelihoods of discrete images", True),
    (["model.likelihood=discretized_logistic"], "log-likelihoods of discrete images", True),
    (
        ["model.likelihood=gaussian", "data.dequantize=true"],
        "log-densities of dequantised images",
        True,
    ),
    (["model.likelihood=gaussian"], "densities at 256 grey levels, without bound", False),
    (["model.likelihood=continuous_bernoulli"], "densities at 256 grey levels", False),
    ([], "none of these is a likelihood of binary images", False),
]


@pytest.mark.parametrize(("settings", "meaning", "has_bits"), MEANINGS, ids=str)
def test_every_figure_says_what_it_is(tmp_path, monkeypatch, capsys, settings, meaning, has_bits):
    directory = train_in(tmp_path, "trainer.max_epochs=1", "callbacks=minimal", *settings)
    assert meaning in json.loads((directory / "metrics.json").read_text())["protocol"]["meaning"]
    written = evaluated(directory, tmp_path, monkeypatch, "metrics=[bound]")
    assert meaning in written["protocol"]["meaning"]
    shown = capsys.readouterr().out
    assert shown.count(meaning) == 2  # of the training and of the evaluation
    assert ("bits/dimension" in shown) == has_bits
    figures = written["figures"]
    assert ("test/bits_per_dimension" in figures) == has_bits
    if has_bits:
        nats = 784 * math.log(2)
        extra = 8 if "data.dequantize=true" in settings else 0
        bits = -figures["test/elbo"] / nats + extra
        assert figures["test/bits_per_dimension"] == pytest.approx(bits)
        error = figures["test/elbo_error"] / nats
        assert figures["test/bits_per_dimension_error"] == pytest.approx(error)
        assert written["protocol"]["samples"] == 1


def test_a_conditional_model_is_measured_with_its_labels(conditional, tmp_path, monkeypatch):
    measured = evaluated(conditional, tmp_path, monkeypatch, "samples=5")["figures"]
    theirs = json.loads((conditional / "metrics.json").read_text())["figures"]
    assert measured["test/elbo"] == pytest.approx(theirs["test/elbo"], rel=1e-6)
    assert "samples/label_accuracy" in measured


def test_another_protocol_that_the_model_has_no_meaning_for_is_refused(tmp_path, monkeypatch):
    settings = ("trainer.max_epochs=1", "callbacks=minimal", "model.likelihood=gaussian")
    directory = train_in(tmp_path, *settings)
    message = r"model\.likelihood=gaussian: black-and-white images need model\.likelihood=bernoulli"
    with pytest.raises(SystemExit, match=message):
        evaluated(directory, tmp_path, monkeypatch, "data.binarization=static")
    assert not (tmp_path / "outputs" / "evaluate").exists()


def test_a_split_without_images_is_refused(tmp_path, monkeypatch):
    settings = ("trainer.max_epochs=1", "callbacks=minimal", "data.val_size=0")
    directory = train_in(tmp_path, *settings)
    message = "error: split=val: nothing is held out with val_size=0"
    with pytest.raises(SystemExit, match=message):
        evaluated(directory, tmp_path, monkeypatch, "metrics=[bound]", "split=val")
    assert not (tmp_path / "outputs" / "evaluate").exists()


MISTAKES = {
    "metrics=[nll]": (
        "metrics=['nll']: must be 'bound', 'log_marginal', 'active_units', "
        "'mutual_information', 'sample_quality' or 'music'"
    ),
    "metrics=bound": "metrics=bound: must be a list, in most shells with quotes: 'metrics=[bound]'",
    "metrics=[]": "metrics=[]: List should have at least 1 item after validation, not 0",
    "data.limit_test=1": "data.limit_test=1: must be greater than or equal to 2",
    "samples=0": "samples=0: must be greater than 0",
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.items(), ids=MISTAKES.keys())
def test_a_wrong_value_is_refused_before_the_checkpoint_is_looked_for(
    tmp_path, monkeypatch, mistake, message
):
    with pytest.raises(SystemExit) as exit_:
        evaluated("nosuch", tmp_path, monkeypatch, mistake)
    assert exit_.value.code == f"error: {message}"
    assert not list(tmp_path.iterdir())


def test_where_the_data_of_a_checkpoint_is_not_found_its_key_is_named(
    trained, tmp_path, monkeypatch
):
    """A checkpoint holds no folder: a file from elsewhere may not say where data is put."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    told = r"is not there .*\(a checkpoint doesn't store data\.dir: type it as in training\)$"
    with pytest.raises(SystemExit) as exit_:
        typed("evaluate", f"checkpoint={trained}", directory=tmp_path, patch=monkeypatch)
    assert re.search(told, exit_.value.code, re.DOTALL)
    assert len(exit_.value.code.splitlines()) == 2
    arguments = [f"checkpoint={trained}", "data.dir=nowhere"]
    with pytest.raises(SystemExit) as exit_:
        typed("evaluate", *arguments, directory=tmp_path, patch=monkeypatch)
    assert exit_.value.code.endswith("name the folder above mnist_subset with data.dir=…")
    assert not list(tmp_path.iterdir())
