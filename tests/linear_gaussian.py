"""A model whose log p(x) is known: linear, with Gaussian noise, in float64."""

import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from vae_lightning.models.distributions import DiagonalNormal
from vae_lightning.models.vae.objectives import kl_per_dimension, log_ratio


def noise_of(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standard(dim):
    return DiagonalNormal(
        torch.zeros(dim, dtype=torch.float64), torch.ones(dim, dtype=torch.float64)
    )


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(W z, σ²).

    The loadings W are orthogonal, so the posterior's dimensions are independent.
    """

    def __init__(self, pixels=7, dim=3, images=5, sigma=0.6):
        q, _ = torch.linalg.qr(noise_of(pixels, dim, seed=11))
        self.w = q * torch.tensor([1.5, 0.8, 0.3], dtype=torch.float64)
        self.sigma = sigma
        covariance = self.w @ self.w.T + sigma**2 * torch.eye(pixels, dtype=torch.float64)
        marginal = MultivariateNormal(torch.zeros(pixels, dtype=torch.float64), covariance)
        self.x = noise_of(images, dim, seed=12) @ self.w.T + sigma * noise_of(
            images, pixels, seed=13
        )
        self.log_marginal = marginal.log_prob(self.x)
        precision = 1 + (self.w**2).sum(0) / sigma**2
        self.loc = self.x @ self.w / sigma**2 / precision
        self.scale = (1 / precision).sqrt().expand_as(self.loc)
        self.prior = standard(dim)

    def log_likelihood(self, z):
        return Independent(Normal(z @ self.w.T, self.sigma), 1).log_prob(self.x)

    def estimates(self, samples, loc, scale, seed=0):
        posterior = DiagonalNormal(loc, scale)
        z = posterior.reparameterize(noise_of(samples, *loc.shape, seed=seed))
        kl = kl_per_dimension(posterior.loc, posterior.scale)
        return self.log_likelihood(z), log_ratio(z, posterior, self.prior), kl
