"""Encoders and decoders: tensors in, the parameters of a distribution out."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Activation = Literal["relu", "tanh", "softplus", "silu"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus, "silu": nn.SiLU}


def _layers(widths: Sequence[int], activation: Activation) -> list[nn.Module]:
    """Return ``Linear`` and an activation for each pair of neighbouring widths."""
    return [layer for n, m in itertools.pairwise(widths) for layer in (nn.Linear(n, m), _ACTIVATIONS[activation]())]


def initialize_normal(network: nn.Module, scale: float) -> None:
    """Draw all weights and biases from N(0, scale²); Kingma & Welling (arXiv:1312.6114), section 5, take scale² = 0.01."""
    for weight in network.parameters():
        nn.init.normal_(weight, std=scale)


class MLPEncoder(nn.Module):
    """An image through fully connected layers to the mean and scale of a Gaussian.

    One head computes the means and the log-variances (Kingma & Welling, arXiv:1312.6114, Appendix C.2): one matrix product
    where two heads would take two.
    """

    def __init__(
        self, image_shape: Sequence[int], hidden_dims: Sequence[int], latent_dim: int, activation: Activation = "relu"
    ) -> None:
        """Build the layers; ``hidden_dims`` are the widths between the pixels and the head."""
        super().__init__()
        widths = [math.prod(image_shape), *hidden_dims]
        self.layers = nn.Sequential(nn.Flatten(-3), *_layers(widths, activation), nn.Linear(widths[-1], 2 * latent_dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images ``[..., C, H, W]`` to loc and scale, each ``[..., D]``."""
        loc, log_variance = self.layers(x).chunk(2, dim=-1)
        return loc, (0.5 * log_variance).exp()


class MLPDecoder(nn.Module):
    """A latent through fully connected layers to one logit per pixel."""

    def __init__(
        self, latent_dim: int, hidden_dims: Sequence[int], image_shape: Sequence[int], activation: Activation = "relu"
    ) -> None:
        """Build the layers; ``hidden_dims`` are the widths between the latent and the pixels."""
        super().__init__()
        widths = [latent_dim, *hidden_dims]
        self.layers = nn.Sequential(
            *_layers(widths, activation), nn.Linear(widths[-1], math.prod(image_shape)), nn.Unflatten(-1, tuple(image_shape))
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map latents ``[..., D]`` to logits ``[..., C, H, W]``."""
        logits: Tensor = self.layers(z)
        return logits
