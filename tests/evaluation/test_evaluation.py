"""Evaluation of models whose figures are known."""

import torch
from torch.distributions import Independent, Normal

from conftest import build_vae
from linear_gaussian import LinearGaussian
from vae_lightning.evaluation.measure import _bytes_per_sample, _measure, evaluate
from vae_lightning.evaluation.report import _rows
from vae_lightning.evaluation.sample_quality import sample_quality
from vae_lightning.models.base import Batch, DataSpec, LatentModel
from vae_lightning.models.distributions import DiagonalNormal


class Known(LatentModel):
    """The linear-Gaussian model with a posterior that is not quite its own."""

    def __init__(self):
        super().__init__(DataSpec((1, 1, 7), "continuous"), {})
        self.known = LinearGaussian()
        self.latent_dim = self.known.loc.shape[1]
        self.decoder = torch.nn.Linear(self.latent_dim, 7).double()

    def prior(self, y=None):
        return self.known.prior

    def posterior(self, batch):
        rows = (batch.x.flatten(1).unsqueeze(1) == self.known.x).all(-1).int().argmax(1)
        return DiagonalNormal(self.known.loc[rows] + 0.1, self.known.scale[rows] * 1.2)

    def log_likelihood(self, batch, z):
        pixels = Independent(Normal(z @ self.known.w.T, self.known.sigma), 1)
        return pixels.log_prob(batch.x.flatten(1))

    def decode(self, z, y=None):
        return self.decoder(z).view(-1, 1, 1, 7)

    def point(self, batch):
        return self.posterior(batch).loc


class OneBatch(list):
    indices = torch.arange(5)


def batch_of(known):
    return Batch(known.x.view(5, 1, 1, 7), None, torch.arange(5))


def test_log_p_of_the_linear_gaussian_model_is_its_closed_form():
    known = Known()
    figures = evaluate(
        known, OneBatch([batch_of(known.known)]), ["log_marginal"], samples=20_000, memory_mb=10
    )
    truth = known.known.log_marginal.mean().item()
    assert abs(figures["log_marginal"] - truth) < 4 * figures["log_marginal_estimator_error"]
    assert figures["log_marginal_estimator_error"] < 0.01


def test_neither_images_nor_samples_decoded_together_move_log_p():
    known, bar = Known(), type("Bar", (), {"update": lambda *_: None})()
    whole, cut = (
        _measure(known, batch_of(known.known), ["log_marginal"], 500, memory, bar)["log_marginal"]
        for memory in (10**9, 500)
    )
    assert 500 // _bytes_per_sample(known) < 5  # so that images were cut as well
    torch.testing.assert_close(cut, whole, rtol=1e-9, atol=0)


def test_a_convolutional_decoder_is_known_to_take_more_memory():
    wide = build_vae(network="convolutional", channels=[32, 64])
    assert _bytes_per_sample(wide) > 4 * 2 * 32 * 14 * 14 > _bytes_per_sample(build_vae())


def test_label_accuracy_counts_samples_that_show_their_label(subset):
    images, labels = subset.grey("train", 400), subset.y["train"][:400]

    class Copies:
        """A conditional model that knows digits by heart, with labels that are off by an offset."""

        num_classes = 10
        device = torch.device("cpu")
        offset = 0

        def sample(self, n, noise, y):
            places = [
                torch.nonzero(labels == label).flatten()[0]
                for label in ((y + self.offset) % 10).tolist()
            ]
            return images[torch.stack(places)]

    model = Copies()
    assert sample_quality(model, images[:100], images[100:200])["label_accuracy"] > 0.85
    model.offset = 1
    assert sample_quality(model, images[:100], images[100:200])["label_accuracy"] < 0.15


def test_mutual_information_near_its_limit_is_said_to_say_little():
    figures = {
        "mutual_information_error": 0.1,
        "aggregate_posterior_kl_error": 0.1,
        "mutual_information": 8.8,
        "log_examples": 9.21,
        "aggregate_posterior_kl": 15.0,
    }
    described = build_vae(), "image", 1, 10_000
    assert "near its limit" in _rows(figures, *described)["I(x; z)"]
    assert (
        "near its limit" not in _rows({**figures, "mutual_information": 8.6}, *described)["I(x; z)"]
    )
