"""The bound against the example's formula, closed forms, and finite differences."""

import torch
from torch.nn import functional as F

from vae_lightning.likelihoods import bernoulli
from vae_lightning.objectives import evidence_lower_bound
from vae_lightning.vae import DiagonalNormal


def gaussian(batch, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    scale = torch.rand(batch, dim, generator=generator, dtype=torch.float64) + 0.3
    return loc, scale


def standard(dim):
    return DiagonalNormal(torch.zeros(dim, dtype=torch.float64), torch.ones(dim, dtype=torch.float64))


def bound_of(x, logits, loc, scale):
    return evidence_lower_bound(x, bernoulli(logits), DiagonalNormal(loc, scale), standard(loc.shape[-1]))


def test_minus_the_bound_is_the_loss_of_the_pytorch_example_per_image():
    loc, scale = gaussian(16, 20)
    x = torch.rand(16, 1, 28, 28, dtype=torch.float64)
    logits = torch.randn(16, 1, 28, 28, dtype=torch.float64)
    log_variance = 2 * scale.log()
    cross_entropy = F.binary_cross_entropy(torch.sigmoid(logits), x, reduction="sum")
    kl = -0.5 * torch.sum(1 + log_variance - loc.pow(2) - log_variance.exp())
    loss = -bound_of(x, logits, loc, scale).elbo.mean()
    torch.testing.assert_close(loss, (cross_entropy + kl) / 16, rtol=1e-10, atol=0)


def test_the_terms_are_per_image_and_their_difference_is_the_bound():
    loc, scale = gaussian(5, 3)
    bound = bound_of(torch.rand(5, 1, 4, 4).double(), torch.randn(5, 1, 4, 4).double(), loc, scale)
    assert bound.log_likelihood.shape == bound.kl.shape == bound.elbo.shape == (5,)
    torch.testing.assert_close(bound.elbo, bound.log_likelihood - bound.kl)


def test_the_closed_form_kl_agrees_with_monte_carlo():
    loc, scale = gaussian(4, 6)
    posterior, prior, samples = DiagonalNormal(loc, scale), standard(6), 200_000
    noise = torch.randn(samples, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = posterior.reparameterize(noise)
    ratios = posterior.log_prob(z) - prior.log_prob(z)  # [S, B]
    kl = bound_of(torch.zeros(4, 1, 1, 1).double(), torch.zeros(4, 1, 1, 1).double(), loc, scale).kl
    assert (abs(ratios.mean(0) - kl) < 4 * ratios.std(0) / samples**0.5).all()


def test_the_kl_of_the_prior_to_itself_is_zero_and_of_anything_else_positive():
    x = logits = torch.zeros(1, 1, 1, 1).double()
    zero, one = torch.zeros(1, 4).double(), torch.ones(1, 4).double()
    assert bound_of(x, logits, zero, one).kl.item() == 0
    assert bound_of(x, logits, zero, 0.9 * one).kl.item() > 0
    assert bound_of(x, logits, zero + 0.1, one).kl.item() > 0


def test_the_reparameterised_gradient_matches_finite_differences():
    loc, scale = gaussian(3, 2)
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    weights = torch.randn(16, 2, generator=generator, dtype=torch.float64)
    x = torch.rand(3, 1, 4, 4, generator=generator, dtype=torch.float64)

    def elbo(loc, scale):
        z = DiagonalNormal(loc, scale).reparameterize(noise)
        return bound_of(x, (z @ weights.T).view(3, 1, 4, 4), loc, scale).elbo

    assert torch.autograd.gradcheck(elbo, (loc.requires_grad_(), scale.requires_grad_()))
