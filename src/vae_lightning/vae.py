"""The variational autoencoder: a prior, a posterior and a likelihood, each a distribution.

Shapes: ``B`` images in a batch, ``D`` latent dimensions, ``C H W`` an image; ``...`` is any number of leading dimensions.
"""

import itertools

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vae_lightning.likelihoods import Likelihood

_DECODED_TOGETHER = 500  # latents of a sample: their layers fit into a processor's cache


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
    """A variational autoencoder with prior N(0, I) and a diagonal Gaussian posterior.

    With ``num_classes`` it is conditional on a label: p(x|z, y) and q(z|x, y). Labels may be passed everywhere; an
    unconditional model ignores them, a conditional one refuses to do without them, except that ``sample`` draws them.
    """

    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, likelihood: Likelihood, latent_dim: int, num_classes: int = 0
    ) -> None:
        """Join the networks.

        Args:
            encoder: maps images ``[..., C, H, W]`` and labels to loc and scale, each ``[..., D]``.
            decoder: maps latents ``[..., D]`` and labels to parameters of each pixel, ``[..., P·C, H, W]``.
            likelihood: makes p(x|z) of them.
            latent_dim: D.
            num_classes: of the labels; 0: unconditional.
        """
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.family = likelihood
        self.num_classes = num_classes
        self.register_buffer("prior_loc", torch.zeros(latent_dim))
        self.register_buffer("prior_scale", torch.ones(latent_dim))

    @property
    def prior(self) -> DiagonalNormal:
        """The distribution p(z) over ``[D]``."""
        return DiagonalNormal(self.prior_loc, self.prior_scale)

    def posterior(self, x: Tensor, y: Tensor | None = None) -> DiagonalNormal:
        """Return q(z|x) over ``[D]`` for images ``[..., C, H, W]`` in [0, 1]."""
        return DiagonalNormal(*self.encoder(x, y))

    def likelihood(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """Return p(x|z) over ``[C, H, W]`` for latents ``[..., D]``."""
        distribution: Distribution = self.family(self.decoder(z, y))
        return distribution

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Decode the posterior mean of images ``[B, C, H, W]``: the mean of p(x|z), same shape, in [0, 1]."""
        return self.likelihood(self.posterior(x, y).loc, y).mean

    def sample(
        self, n: int, y: Tensor | None = None, generator: torch.Generator | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Decode ``n`` draws from the prior: the mean of p(x|z), ``[n, C, H, W]`` in [0, 1].

        Args:
            n: how many images.
            y: labels ``[n]``; drawn uniformly where a conditional model has none.
            generator: a CPU generator, so that the same seed gives the same images on every device.
            temperature: multiplies the prior's scale: below 1 more typical images, above 1 more various ones.
        """
        prior = self.prior
        noise = torch.randn(n, prior.event_shape[0], generator=generator, dtype=torch.float32)
        if self.num_classes and y is None:
            y = torch.randint(self.num_classes, (n,), generator=generator).to(prior.loc.device)
        z = prior.reparameterize(temperature * noise.to(prior.loc))
        labels = itertools.repeat(None) if y is None else torch.split(y, _DECODED_TOGETHER)
        images = z.new_empty(0)
        for first, part in zip(range(0, max(n, 1), _DECODED_TOGETHER), labels, strict=False):
            mean = self.likelihood(z[first : first + _DECODED_TOGETHER], part).mean
            if not first:
                images = mean.new_empty(n, *mean.shape[1:])
            images[first : first + _DECODED_TOGETHER] = mean  # in its place at once: to join all at the end is a pass over all
        return images
