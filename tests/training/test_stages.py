"""Two stages: a VQ-VAE, and a prior over the codes of its run."""

import json
import shutil

import pytest
import torch

from conftest import SUBSET, evaluated, train_in, typed
from vae_lightning.errors import ConfigurationError
from vae_lightning.models.base import target_of
from vae_lightning.models.prior.model import Prior
from vae_lightning.runs.checkpoints import load_model
from vae_lightning.training import stages

VQVAE = ("model=vqvae", "model.codes=8", "model.channels=[4,6]", "model.residual_channels=4")
PRIOR = ("model=prior", "model.width=16", "model.layers=1", "data=codes", "data.batch_size=64")
FAST = ("callbacks=minimal", "logger=none", "optimizer.learning_rate=1e-2")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The run of a small VQ-VAE."""
    directory = tmp_path_factory.mktemp("first")
    return train_in(
        directory, *VQVAE, "data.batch_size=64", "data.val_size=60", *FAST, "trainer.max_epochs=2"
    )


def train_prior(directory, first, patch, epochs=2):
    line = (*PRIOR, f"data.run={first}", SUBSET[1], *FAST, f"trainer.max_epochs={epochs}")
    typed("train", *line, directory=directory, patch=patch)
    return max((directory / "outputs" / "train").iterdir())


@pytest.fixture(scope="module")
def second(tmp_path_factory, first):
    """The run of a prior over its codes."""
    with pytest.MonkeyPatch.context() as patch:
        return train_prior(tmp_path_factory.mktemp("second"), first, patch)


def state_of(run):
    file = run / "checkpoints" / "last.ckpt"
    return torch.load(file, weights_only=True)["state_dict"]


def test_a_stopped_vqvae_goes_on_bitwise_with_its_codebook(first, tmp_path, monkeypatch):
    settings = (*VQVAE, "data.batch_size=64", "data.val_size=60", *FAST)
    stopped = train_in(tmp_path, *settings, "trainer.max_epochs=1")
    before = state_of(stopped)["model.quantizer.codebook"]
    line = (f"resume={stopped}", "trainer.max_epochs=2")
    typed("train", *line, directory=tmp_path, patch=monkeypatch)
    ours, theirs = state_of(stopped), state_of(first)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not torch.equal(before, ours["model.quantizer.codebook"])


def test_the_prior_has_the_trained_weights_and_leaves_them(first, second):
    inner = "model.autoencoder."
    ours = {name: value for name, value in state_of(second).items() if name.startswith(inner)}
    best = torch.load(first / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert {name.replace(inner, "model.") for name in ours} == set(best)
    for name, value in ours.items():
        assert torch.equal(value, best[name.replace(inner, "model.")])


def test_the_prior_learns_and_has_the_data_of_the_first_run(second):
    metrics = json.loads((second / "metrics.json").read_text())
    assert metrics["protocol"]["data"] == "mnist_subset"
    assert metrics["protocol"]["val_size"] == 60
    assert metrics["figures"]["test/log_prior"] > -49 * 2.0794 + 0.2  # log 8 for each
    assert metrics["run"]["codes_of"].endswith(", step 12")


def test_both_runs_are_named(first, second):
    metrics = json.loads((second / "metrics.json").read_text())
    assert metrics["run"]["codes_of"].startswith(str(first))


def test_a_stopped_prior_goes_on_bitwise_without_the_first_run(
    first, second, tmp_path, monkeypatch
):
    moved = tmp_path / "moved"
    shutil.copytree(first, moved, symlinks=True)
    stopped = train_prior(tmp_path, moved, monkeypatch, epochs=1)
    shutil.rmtree(moved)
    line = (f"resume={stopped}", "trainer.max_epochs=2")
    typed("train", *line, directory=tmp_path, patch=monkeypatch)
    ours, theirs = state_of(stopped), state_of(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_commands_need_the_prior_s_checkpoint_alone(second, tmp_path, monkeypatch):
    file = tmp_path / "alone.ckpt"
    file.write_bytes((second / "checkpoints" / "best.ckpt").read_bytes())
    for name, more in (("sample", ("temperature=0.5", "top_k=3")), ("visualize", (SUBSET[1],))):
        typed(name, f"checkpoint={file}", *more, directory=tmp_path, patch=monkeypatch)
        assert any((tmp_path / "outputs" / name).glob("*/samples.png"))
    measured = evaluated(file, tmp_path, monkeypatch, "metrics=[bound,log_marginal]", "samples=3")
    figures = measured["figures"]
    assert figures["test/elbo"] < figures["test/log_marginal"]
    trained = json.loads((second / "metrics.json").read_text())["figures"]
    assert figures["test/elbo"] == pytest.approx(trained["test/elbo"], abs=1e-3)
    assert figures["test/elbo_of_nearest"] < figures["test/log_marginal"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model=prior",), r"error: model=prior: .* type data=codes data\.run="),
        (("data=codes", "model=prior"), r"error: data=codes: of which run\? type data\.run="),
        (("data=codes", "data.run=here"), r"error: data=codes: only a prior learns codes"),
        (("data=codes", "model=prior", "data.run=here"), r"error: data\.run=here: "),
    ],
)
def test_lines_that_mean_nothing_are_refused(tmp_path, monkeypatch, arguments, message):
    with pytest.raises(SystemExit, match=message):
        typed("train", *arguments, directory=tmp_path, patch=monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_a_first_run_that_was_trained_anew_is_refused(first, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(first, other, symlinks=True)
    model = load_model(other)
    described = {"run": str(other), "step": 12, "sha256": "0" * 64}
    settings = {"target": target_of(type(model)), "settings": model.settings, **described}
    prior = Prior(model.data, settings, width=8, layers=1, heads=2)
    with pytest.raises(ConfigurationError, match="its checkpoint is another one"):
        stages.load(prior)


def test_a_run_without_codes_is_refused(trained, tmp_path, monkeypatch):
    line = ("model=prior", "data=codes", f"data.run={trained}")
    with pytest.raises(SystemExit, match=r"its model has no codes \(VAE with 3 latents\)"):
        typed("train", *line, directory=tmp_path, patch=monkeypatch)
