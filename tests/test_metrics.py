"""log p(x), effective samples and active latents against what is known."""

import pytest
import torch

from test_objectives import LinearGaussian
from vae_lightning.metrics import ImportanceEstimate, active, standard_error
from vae_lightning.objectives import importance_weighted


def log_weights(samples, seed=0):
    model = LinearGaussian()
    log_likelihood, ratio, _ = model.estimates(samples, model.loc + 0.2, model.scale * 1.3, seed)
    return log_likelihood - ratio, model.log_marginal


def estimated(weights, together):
    estimate = ImportanceEstimate(weights.shape[1])
    for part in weights.split(together):
        estimate.update(part)
    return estimate


def test_the_estimate_is_the_importance_weighted_bound_however_it_is_cut():
    weights, _ = log_weights(5000)
    bound = importance_weighted(weights, torch.zeros_like(weights))
    for together in (1, 100, 5000):
        torch.testing.assert_close(estimated(weights, together).log_marginal, bound, rtol=1e-12, atol=0)


def test_the_stated_variance_is_that_of_repeated_estimates():
    repeats = [estimated(log_weights(400, seed)[0], 400) for seed in range(300)]
    spread = torch.stack([repeat.log_marginal for repeat in repeats]).var(0)
    stated = torch.stack([repeat.variance for repeat in repeats]).mean(0)
    torch.testing.assert_close(stated, spread, rtol=0.4, atol=0)


def test_effective_samples_lie_between_one_and_all():
    even = estimated(torch.zeros(50, 2).double(), 7)
    torch.testing.assert_close(even.effective_samples, torch.tensor([50.0, 50.0]).double())
    assert (even.variance < 1e-12).all()
    one = torch.full((50, 1), -1000.0)
    one[3] = 0
    torch.testing.assert_close(estimated(one, 7).effective_samples, torch.ones(1).double())


def test_a_latent_is_active_by_the_variance_of_its_posterior_mean():
    means = torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.05, 0.2, 1.0]) + 5
    assert active(means).tolist() == [False, True, True]


def test_the_standard_error_is_the_means():
    values = torch.randn(2000, 100, generator=torch.Generator().manual_seed(0))
    stated = sum(standard_error(row) for row in values) / len(values)
    assert stated == pytest.approx(values.mean(1).std().item(), rel=0.05)
    assert standard_error(torch.tensor([1.0, 3.0])) == pytest.approx(1.0)
