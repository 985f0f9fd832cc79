"""log p(x), effective samples and active latents against what is known."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from linear_gaussian import LinearGaussian
from vae_lightning.evaluation.estimators import (
    ImportanceEstimate,
    active,
    bits_per_dimension,
    log_aggregate_posterior,
    standard_error,
)
from vae_lightning.models.vae.objectives import importance_weighted


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
        torch.testing.assert_close(
            estimated(weights, together).log_marginal, bound, rtol=1e-12, atol=0
        )


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
    means = (
        torch.randn(10_000, 3, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0.05, 0.2, 1.0])
        + 5
    )
    assert active(means).tolist() == [False, True, True]


def test_of_one_example_no_latent_is_active():
    assert not active(torch.tensor([[3.0, -5.0]])).any()
    assert active(torch.tensor([[3.0, 1.0], [-3.0, 1.0]])).tolist() == [True, False]


def test_the_standard_error_is_the_means():
    values = torch.randn(2000, 100, generator=torch.Generator().manual_seed(0))
    stated = sum(standard_error(row) for row in values) / len(values)
    assert stated == pytest.approx(values.mean(1).std().item(), rel=0.05)
    assert standard_error(torch.tensor([1.0, 3.0])) == pytest.approx(1.0)


def posteriors(images=600, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(images, dim, generator=generator, dtype=torch.float64)
    scale = 0.05 + torch.rand(images, dim, generator=generator, dtype=torch.float64)
    return (
        loc,
        scale,
        loc + scale * torch.randn(images, dim, generator=generator, dtype=torch.float64),
    )


def test_the_aggregate_posterior_is_the_mean_of_the_posteriors():
    loc, scale, z = posteriors()
    densities = Independent(Normal(loc, scale), 1).log_prob(z.unsqueeze(1))  # [M, N]
    expected = densities.exp().mean(1).log()
    torch.testing.assert_close(
        log_aggregate_posterior(z, loc, scale), expected, rtol=1e-9, atol=1e-9
    )


def test_mutual_information_and_the_aggregate_posteriors_kl_add_up_to_the_mean_kl():
    """Hoffman & Johnson 2016. The aggregate's KL is integrated on its own as well."""
    loc, scale, z = posteriors(images=5, dim=1)
    posterior, prior = (
        Independent(Normal(loc, scale), 1),
        Independent(Normal(torch.zeros(1).double(), torch.ones(1).double()), 1),
    )
    aggregate = log_aggregate_posterior(z, loc, scale)
    information = (posterior.log_prob(z) - aggregate).mean()
    kl = (posterior.log_prob(z) - prior.log_prob(z)).mean()
    torch.testing.assert_close(information + (aggregate - prior.log_prob(z)).mean(), kl)
    grid = torch.linspace(-8, 8, 40_001, dtype=torch.float64).unsqueeze(1)
    q = log_aggregate_posterior(grid, loc, scale)
    integrated = torch.trapezoid(q.exp() * (q - prior.log_prob(grid)), grid.flatten())
    many = [
        posteriors(images=5, dim=1)[:2],
        torch.randn(20_000, 5, 1, generator=torch.Generator().manual_seed(1)).double(),
    ]
    draws = (many[0][0] + many[0][1] * many[1]).flatten(0, 1)
    sampled = log_aggregate_posterior(draws, loc, scale) - prior.log_prob(draws)
    assert abs(sampled.mean() - integrated) < 4 * sampled.std() / len(sampled) ** 0.5


def test_mutual_information_is_at_most_log_n_and_reaches_it_where_posteriors_lie_apart():
    loc, scale, z = posteriors()
    for width, near in ((1.0, False), (1e-3, True)):
        z_ = loc + width * (z - loc)
        each = Independent(Normal(loc, width * scale), 1).log_prob(z_) - log_aggregate_posterior(
            z_, loc, width * scale
        )
        assert (each <= math.log(600) + 1e-5).all()
        assert (abs(each.mean() - math.log(600)) < 0.02) == near


def test_posteriors_that_are_all_the_same_carry_no_information():
    loc, scale, z = (
        torch.zeros(50, 2),
        torch.ones(50, 2),
        torch.randn(50, 2, generator=torch.Generator().manual_seed(0)),
    )
    each = Independent(Normal(loc, scale), 1).log_prob(z) - log_aggregate_posterior(z, loc, scale)
    torch.testing.assert_close(each, torch.zeros(50).double(), rtol=0, atol=1e-5)


def test_a_uniform_model_takes_eight_bits_a_dimension():
    assert bits_per_dimension(784 * math.log(1 / 256), 784, density=False) == pytest.approx(8)
    assert bits_per_dimension(0.0, 784, density=True) == pytest.approx(
        8
    )  # the uniform density on [0, 1] is 1
