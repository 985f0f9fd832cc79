"""The variational autoencoder: a prior, a posterior and a likelihood, each a distribution.

Shapes: ``B`` images in a batch, ``D`` latent dimensions, ``C H W`` an image; ``...`` is any number of leading dimensions.
"""

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vae_lightning.likelihoods import bernoulli


class DiagonalNormal(Independent[Normal]):
    """A Gaussian over ``[..., D]`` whose dimensions are independent: N(loc, diag(scale²))."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        """Take the mean and the standard deviation, each ``[..., D]``."""
        super().__init__(Normal(loc, scale, validate_args=False), 1, validate_args=False)
        self.loc = loc
        self.scale = scale

    def reparameterize(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise ``[..., D]`` into a sample through which gradients reach loc and scale.

        Kingma & Welling (arXiv:1312.6114), section 2.4. The noise comes from outside, so that a run can be repeated.
        """
        return self.loc + self.scale * noise


class VAE(nn.Module):
    """A variational autoencoder with prior N(0, I), a diagonal Gaussian posterior and a Bernoulli likelihood.

    Labels ``y`` may be passed everywhere; this model is unconditional and ignores them.
    """

    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent_dim: int) -> None:
        """Join the networks.

        Args:
            encoder: maps images ``[..., C, H, W]`` to loc and scale, each ``[..., D]``.
            decoder: maps latents ``[..., D]`` to logits ``[..., C, H, W]``.
            latent_dim: D.
        """
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.register_buffer("prior_loc", torch.zeros(latent_dim))
        self.register_buffer("prior_scale", torch.ones(latent_dim))

    @property
    def prior(self) -> DiagonalNormal:
        """The distribution p(z) over ``[D]``."""
        return DiagonalNormal(self.prior_loc, self.prior_scale)

    def posterior(self, x: Tensor, y: Tensor | None = None) -> DiagonalNormal:
        """Return q(z|x) over ``[D]`` for images ``[..., C, H, W]`` in [0, 1]."""
        return DiagonalNormal(*self.encoder(x))

    def likelihood(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """Return p(x|z) over ``[C, H, W]`` for latents ``[..., D]``."""
        return bernoulli(self.decoder(z))

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Decode the posterior mean of images ``[B, C, H, W]``: the mean of p(x|z), same shape, in [0, 1]."""
        return self.likelihood(self.posterior(x, y).loc, y).mean

    def sample(self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Decode ``n`` draws from the prior: the mean of p(x|z), ``[n, C, H, W]`` in [0, 1].

        Args:
            n: how many images.
            y: labels ``[n]``, ignored here.
            generator: a CPU generator, so that the same seed gives the same images on every device.
        """
        prior = self.prior
        noise = torch.randn(n, prior.event_shape[0], generator=generator, dtype=torch.float32)
        return self.likelihood(prior.reparameterize(noise.to(prior.loc)), y).mean
