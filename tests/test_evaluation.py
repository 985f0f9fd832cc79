"""Evaluation of models whose figures are known."""

import torch

from test_objectives import LinearGaussian
from vae_lightning import VAEModule
from vae_lightning.data import Batch
from vae_lightning.evaluation import _bytes_per_sample, _measure, evaluate, sample_quality
from vae_lightning.report import _rows
from vae_lightning.vae import DiagonalNormal


class Known:
    """What evaluation asks of a module, over the linear-Gaussian model and a posterior that is not quite its own."""

    device = torch.device("cpu")

    def __init__(self):
        self.model = LinearGaussian()
        self.latent_dim = self.model.loc.shape[1]
        self.vae = self
        self.prior = self.model.prior
        self.decoder = torch.nn.Linear(self.latent_dim, 7).double()

    def posterior(self, x, y):
        rows = (x.flatten(1).unsqueeze(1) == self.model.x.unsqueeze(0)).all(-1).int().argmax(1)
        return DiagonalNormal(self.model.loc[rows] + 0.1, self.model.scale[rows] * 1.2)

    def log_likelihood(self, batch, z):
        mean = z @ self.model.w.T
        return torch.distributions.Normal(mean, self.model.sigma).log_prob(batch.images.flatten(1)).sum(-1)

    def sample(self, n):
        return self.decoder(torch.zeros(n, self.latent_dim).double())


class OneBatch(list):
    indices = torch.arange(5)


def batch_of(model):
    return Batch(model.x.view(5, 1, 1, 7), torch.zeros(5).long(), torch.arange(5))


def test_log_p_of_the_linear_gaussian_model_is_its_closed_form():
    known = Known()
    figures = evaluate(known, OneBatch([batch_of(known.model)]), ["log_marginal"], samples=20_000, memory_mb=10)
    truth = known.model.log_marginal.mean().item()
    assert abs(figures["log_marginal"] - truth) < 4 * figures["log_marginal_estimator_error"]
    assert figures["log_marginal_estimator_error"] < 0.01


def test_neither_images_nor_samples_decoded_together_move_log_p():
    known, bar = Known(), type("Bar", (), {"update": lambda *_: None})()
    whole, cut = (
        _measure(known, batch_of(known.model), ["log_marginal"], 500, memory, bar)["log_marginal"] for memory in (10**9, 500)
    )
    assert 500 // _bytes_per_sample(known) < 5  # so that images were cut as well
    torch.testing.assert_close(cut, whole, rtol=1e-9, atol=0)


def test_a_convolutional_decoder_is_known_to_take_more_memory():
    wide = VAEModule(network="convolutional", channels=[32, 64])
    assert _bytes_per_sample(wide) > 4 * 2 * 32 * 14 * 14 > _bytes_per_sample(VAEModule())


def test_label_accuracy_counts_samples_that_show_their_label(subset):
    images, labels = subset.grey("train", 400), subset.labels["train"][:400]

    class Copies(torch.nn.Module):
        """A conditional model that knows real digits by heart, and mistakes the labels by an offset."""

        num_classes = 10
        offset = 0

        def sample(self, n, y, generator):
            places = [torch.nonzero(labels == label).flatten()[0] for label in ((y + self.offset) % 10).tolist()]
            return images[torch.stack(places)]

    module = type("Module", (), {"vae": Copies(), "device": torch.device("cpu")})()
    assert sample_quality(module, images[:100], images[100:200])["label_accuracy"] > 0.85
    module.vae.offset = 1
    assert sample_quality(module, images[:100], images[100:200])["label_accuracy"] < 0.15


def test_mutual_information_near_its_limit_is_said_to_say_little():
    figures = {
        "mutual_information_error": 0.1,
        "aggregate_posterior_kl_error": 0.1,
        "mutual_information": 8.8,
        "log_images": 9.21,
        "aggregate_posterior_kl": 15.0,
    }
    assert "near its limit" in _rows(figures, 1, 1, 10_000)["I(x; z)"]
    assert "near its limit" not in _rows({**figures, "mutual_information": 8.6}, 1, 1, 10_000)["I(x; z)"]
