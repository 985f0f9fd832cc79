"""Distributions over latents, which are drawn from given noise."""

from typing import TYPE_CHECKING

from torch import Tensor
from torch.distributions import Independent, Normal

from vae_lightning.models.base import Noise

if TYPE_CHECKING:
    IndependentNormal = Independent[Normal]
else:
    IndependentNormal = Independent  # which takes no type in torch 2.7


class DiagonalNormal(IndependentNormal):
    """A Gaussian over ``[..., D]`` whose dimensions are independent: N(loc, diag(scale²))."""

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        """Take the mean and the standard deviation, each ``[..., D]``."""
        super().__init__(Normal(loc, scale, validate_args=False), 1, validate_args=False)
        self.loc = loc
        self.scale = scale

    def reparameterize(self, noise: Tensor) -> Tensor:
        """Turn standard normal noise ``[..., D]`` into a sample with gradients to loc and scale.

        Kingma & Welling (arXiv:1312.6114), section 2.4.
        """
        return self.loc + self.scale * noise

    def draw(self, noise: Noise, samples: int = 1, temperature: float = 1.0) -> Tensor:
        """Return samples ``[S, B, D]``, with gradients to loc and scale."""
        drawn = noise.normal(self.loc.shape[-1], samples=samples).to(self.loc)
        return self.reparameterize(drawn if temperature == 1 else temperature * drawn)
