"""The bound against the example's formula, closed forms, and finite differences."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from linear_gaussian import LinearGaussian, noise_of, standard
from vae_lightning.models.distributions import DiagonalNormal
from vae_lightning.models.likelihoods import BernoulliImage
from vae_lightning.models.vae.objectives import (
    importance_weighted,
    kl_per_dimension,
    kl_weight_at,
    log_ratio,
    sgvb_a,
    sgvb_b,
)


def gaussian(batch, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    scale = torch.rand(batch, dim, generator=generator, dtype=torch.float64) + 0.3
    return loc, scale


def kl_of(loc, scale):
    return kl_per_dimension(loc, scale)


def bound_of(x, logits, loc, scale):
    return sgvb_b(BernoulliImage(logits).log_prob(x).unsqueeze(0), kl_of(loc, scale))


def test_minus_the_bound_is_the_loss_of_the_pytorch_example_per_image():
    loc, scale = gaussian(16, 20)
    x = torch.rand(16, 1, 28, 28, dtype=torch.float64)
    logits = torch.randn(16, 1, 28, 28, dtype=torch.float64)
    log_variance = 2 * scale.log()
    cross_entropy = F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="sum")
    kl = -0.5 * torch.sum(1 + log_variance - loc.pow(2) - log_variance.exp())
    loss = -bound_of(x, logits, loc, scale).mean()
    torch.testing.assert_close(loss, (cross_entropy + kl) / 16, rtol=1e-10, atol=0)


def test_the_closed_form_kl_agrees_with_monte_carlo():
    loc, scale = gaussian(4, 6)
    posterior, prior, samples = DiagonalNormal(loc, scale), standard(6), 200_000
    z = posterior.reparameterize(noise_of(samples, 4, 6))
    ratios = log_ratio(z, posterior, prior)  # [S, B]
    assert (
        abs(ratios.mean(0) - kl_of(loc, scale).sum(-1)) < 4 * ratios.std(0) / samples**0.5
    ).all()


def test_the_kl_of_the_prior_to_itself_is_zero_and_of_anything_else_positive():
    zero, one = torch.zeros(1, 4).double(), torch.ones(1, 4).double()
    assert kl_of(zero, one).sum() == 0
    assert (kl_of(zero, 0.9 * one) > 0).all()
    assert (kl_of(zero + 0.1, one) > 0).all()


def test_the_reparameterised_gradient_matches_finite_differences():
    loc, scale = gaussian(3, 2)
    noise, weights = noise_of(3, 2), noise_of(16, 2, seed=2)
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)

    def elbo(loc, scale):
        z = DiagonalNormal(loc, scale).reparameterize(noise)
        return bound_of(x, (z @ weights.T).view(3, 1, 4, 4), loc, scale)

    assert torch.autograd.gradcheck(elbo, (loc.requires_grad_(), scale.requires_grad_()))


# -- a linear-Gaussian model, whose log p(x) is known in closed form ------------------------------


def test_at_the_exact_posterior_the_bound_is_log_p_and_estimator_a_has_no_variance_while_b_has():
    model = LinearGaussian()
    log_likelihood, ratio, kl = model.estimates(1000, model.loc, model.scale)
    each = log_likelihood - ratio
    torch.testing.assert_close(each, model.log_marginal.expand_as(each))
    assert ((log_likelihood - kl.sum(-1)).std(0) > 0.1).all()


def test_at_another_posterior_the_bound_is_below_log_p():
    model = LinearGaussian()
    log_likelihood, ratio, kl = model.estimates(20_000, model.loc + 0.2, model.scale * 1.3)
    for bound in (sgvb_a(log_likelihood, ratio), sgvb_b(log_likelihood, kl)):
        assert (bound < model.log_marginal - 0.05).all()


def test_estimators_a_and_b_agree_in_expectation_in_value_and_gradient():
    model = LinearGaussian()
    loc, scale = (model.loc + 0.2).requires_grad_(), (model.scale * 1.3).requires_grad_()
    values, gradients = [], []
    for seed in range(400):
        log_likelihood, ratio, kl = model.estimates(50, loc, scale, seed)
        difference = (sgvb_a(log_likelihood, ratio) - sgvb_b(log_likelihood, kl)).sum()
        values.append(difference.detach())
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(difference, (loc, scale))])
        )
    for draws in (torch.stack(values), torch.stack(gradients)):
        assert (abs(draws.mean(0)) < 4 * draws.std(0) / 400**0.5).all()


def test_the_importance_weighted_estimate_agrees_with_log_p_at_an_inexact_posterior():
    model = LinearGaussian()
    samples = 100_000
    log_likelihood, ratio, _ = model.estimates(samples, model.loc + 0.1, model.scale * 1.2)
    weights = (log_likelihood - ratio - model.log_marginal).exp()  # their mean is 1
    error = weights.std(0) / samples**0.5  # of log p, to first order
    assert (abs(importance_weighted(log_likelihood, ratio) - model.log_marginal) < 4 * error).all()


@pytest.mark.slow
def test_iwae_bound_rises_with_samples():
    model = LinearGaussian()
    log_likelihood, ratio, _ = model.estimates(64_000, model.loc + 0.3, model.scale * 0.7)
    bounds = []
    for k in (1, 4, 16, 64):  # the same samples, in groups of k
        groups = [
            each.view(k, -1, each.shape[-1]).transpose(0, 1) for each in (log_likelihood, ratio)
        ]
        bounds.append(
            torch.stack([importance_weighted(*pair) for pair in zip(*groups, strict=True)]).mean(0)
        )
    for lower, higher in itertools.pairwise([*bounds, model.log_marginal]):
        assert (lower < higher).all()


def test_with_one_sample_the_importance_weighted_bound_is_estimator_a():
    log_likelihood, ratio = noise_of(1, 5), noise_of(1, 5, seed=3)
    torch.testing.assert_close(
        importance_weighted(log_likelihood, ratio), sgvb_a(log_likelihood, ratio)
    )


def test_the_importance_weighted_gradient_weights_good_samples_more():
    log_likelihood = torch.tensor([[-100.0], [-101.0], [-110.0]], requires_grad=True)
    importance_weighted(log_likelihood, torch.zeros(3, 1)).sum().backward()
    torch.testing.assert_close(log_likelihood.grad, torch.softmax(log_likelihood.detach(), dim=0))
    assert log_likelihood.grad[0] > log_likelihood.grad[1] > log_likelihood.grad[2]


def test_the_importance_weighted_bound_survives_extreme_weights():
    assert torch.isfinite(
        importance_weighted(torch.tensor([[-1e5], [-2e5]]), torch.zeros(2, 1))
    ).all()


def test_the_objectives_gradients_match_finite_differences():
    log_likelihood, ratio = noise_of(4, 3).requires_grad_(), noise_of(4, 3, seed=1).requires_grad_()
    kl = noise_of(3, 2, seed=2).abs().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *terms: sgvb_a(*terms, kl_weight=0.7), (log_likelihood, ratio)
    )
    assert torch.autograd.gradcheck(
        lambda *terms: sgvb_b(*terms, kl_weight=0.7, free_bits=0.3), (log_likelihood, kl)
    )
    assert torch.autograd.gradcheck(importance_weighted, (log_likelihood, ratio))


# -- the KL's weight ------------------------------------------------------------------------------


def test_free_bits_take_the_larger_of_lambda_and_the_batch_mean_of_each_dimension():
    kl = torch.tensor(
        [[0.1, 2.0], [0.2, 0.0]], dtype=torch.float64, requires_grad=True
    )  # means 0.15 and 1.0
    loss = -sgvb_b(torch.zeros(1, 2).double(), kl, free_bits=0.5).mean()
    torch.testing.assert_close(loss.item(), 0.5 + 1.0)
    loss.backward()
    assert torch.equal(
        kl.grad, torch.tensor([[0.0, 0.5], [0.0, 0.5]], dtype=torch.float64)
    )  # none below, all above


def test_the_kls_weight_scales_its_term_only():
    log_likelihood, ratio, kl = noise_of(2, 3), noise_of(2, 3, seed=1), noise_of(3, 4, seed=2)
    for weight in (0.0, 0.5, 4.0):
        torch.testing.assert_close(
            sgvb_b(log_likelihood, kl, weight), log_likelihood.mean(0) - weight * kl.sum(1)
        )
        torch.testing.assert_close(
            sgvb_a(log_likelihood, ratio, weight), (log_likelihood - weight * ratio).mean(0)
        )


def test_the_linear_schedule_rises_to_the_weight_and_stays():
    weights = [kl_weight_at(step, 2.0, "linear", 4) for step in range(7)]
    assert weights == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_the_cyclical_schedule_has_four_cycles_and_half_of_each_rises():
    weights = [kl_weight_at(step, 1.0, "cyclical", 32) for step in range(34)]
    cycle = [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert weights == [*(4 * cycle), 1.0, 1.0]


def test_the_constant_schedule_is_constant():
    assert {kl_weight_at(step, 0.3, "constant", 0) for step in (0, 1, 1000)} == {0.3}
