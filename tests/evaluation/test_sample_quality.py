"""Sample quality: distances that are zero at the data, rise with noise and fall with training."""

import pytest
import torch
from safetensors import safe_open

from conftest import DATA, SUBSET, build_vae, typed
from vae_lightning.evaluation.classifier import WEIGHTS, load_classifier
from vae_lightning.evaluation.sample_quality import (
    features,
    frechet_distance,
    precision_and_recall,
    sample_quality,
)
from vae_lightning.runs.checkpoints import load_model


@pytest.fixture(scope="module")
def classifier():
    return load_classifier()


def images(subset, file):
    return subset.grey(file, 400)


def test_the_shipped_classifier_recognises_digits_that_it_never_saw(classifier, subset):
    recognised = (classifier(images(subset, "test")).argmax(1) == subset.y["test"]).double().mean()
    assert recognised > 0.97  # of 200 of MNIST's test images
    assert WEIGHTS.stat().st_size < 1 << 20
    with safe_open(WEIGHTS, "pt") as file:
        assert float(file.metadata()["test_accuracy"]) > 0.99
        assert "vae_lightning.train_classifier" in file.metadata()["command"]


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    mixing = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.8, 0.2], [0.0, 0.0, 0.5]], dtype=torch.float64)
    other = base @ (2 * mixing) + 1
    distance = frechet_distance(base, other)
    shift = (base.mean(0) - other.mean(0)).square().sum().item()
    first, second = base.T.cov(), other.T.cov()
    values = torch.linalg.eigvals(first @ second).real.sqrt().sum()
    assert distance == pytest.approx(
        shift + (first.trace() + second.trace() - 2 * values).item(), rel=1e-9
    )
    assert frechet_distance(base, base) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(base, 3 * base) == pytest.approx(
        (3 - 1) ** 2 * first.trace().item(), rel=1e-3, abs=0.2
    )


def test_precision_and_recall_tell_missing_modes_from_bad_samples():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, 300, 2, generator=generator).double()
    right = right + 100
    real = torch.cat([left, right])
    other = torch.randn(300, 2, generator=generator).double()
    precision, recall = precision_and_recall(other, real)  # one of two modes, faithfully
    assert precision > 0.85
    assert 0.4 < recall < 0.5
    precision, recall = precision_and_recall(other - 1000, real)
    assert (precision, recall) == (0, 0)
    assert precision_and_recall(real, real) == (1, 1)


def test_the_distance_rises_and_precision_falls_under_added_noise(classifier, subset):
    test, train = images(subset, "test"), images(subset, "train")
    noise = torch.rand(train.shape, generator=torch.Generator().manual_seed(0))
    figures = []
    for level in (0.0, 0.2, 0.4, 0.8):
        noisy = features(classifier, (train + level * noise).clamp(0, 1))
        real = features(classifier, test)
        figures.append((frechet_distance(noisy, real), -precision_and_recall(noisy, real)[0]))
    assert figures == sorted(figures)
    assert figures[-1][0] > 2 * figures[0][0]


@pytest.mark.slow
def test_samples_come_nearer_to_the_data_as_a_model_trains(subset, tmp_path, monkeypatch):
    arguments = [
        "trainer.max_epochs=30",
        "optimizer.learning_rate=5e-3",
        "data.batch_size=32",
        "seed=1",
        "logger=none",
    ]
    typed(
        "train",
        *SUBSET,
        *arguments,
        "~callbacks.reconstructions",
        "~callbacks.prior_samples",
        directory=tmp_path,
        patch=monkeypatch,
    )
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    torch.manual_seed(1)
    test, train = images(subset, "test"), subset.grey("train", 200)
    before, after = (
        sample_quality(model.eval(), test, train) for model in (build_vae(), load_model(directory))
    )
    assert after["frechet_distance"] < 0.7 * before["frechet_distance"]
    assert after["frechet_distance_floor"] < after["frechet_distance"]
    assert after["frechet_distance_floor"] == before["frechet_distance_floor"]
    assert after["precision"] > before["precision"]
    assert after["sample_images"] == 200


@pytest.mark.slow
def test_the_classifier_is_trained_by_its_command(tmp_path, monkeypatch, capsys):
    typed(
        "train_classifier",
        "data.name=mnist_subset",
        f"data.dir={DATA}",
        "epochs=15",
        directory=tmp_path,
        patch=monkeypatch,
    )
    [written] = tmp_path.glob("outputs/train_classifier/*/classifier.safetensors")
    with safe_open(written, "pt") as file:
        assert float(file.metadata()["test_accuracy"]) > 0.7
        assert file.metadata()["command"] == (
            "python -m vae_lightning.train_classifier "
            "seed=1 epochs=15 data.batch_size=128 data.name=mnist_subset"
        )
    assert "of the test images are recognised" in capsys.readouterr().out
