"""What is drawn of grey levels: black-and-white pixels, or values spread over [0, 1]."""

import torch
from torch import Tensor

from vae_lightning.models.base import LEVELS

WHITE = LEVELS - 1
"""The highest level of a byte."""


def binarize(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each pixel white with its grey level as probability.

    Args:
        images: grey levels, uint8.
        generator: where the draws come from, on the CPU.

    Returns:
        The same shape and type, 0 or the highest level.
    """
    draws = torch.rand(images.shape, generator=generator, dtype=torch.float32).to(images.device)
    # Draws lie in [0, 1): the highest level is always white, 0 never.
    return (draws < images.float() / WHITE).to(torch.uint8) * WHITE


def dequantize(images: Tensor, generator: torch.Generator) -> Tensor:
    """Spread each grey level evenly over its 256th of [0, 1], so that a density can be fitted.

    A model's log-density of the result is, in expectation, a lower bound on its log-mass of the
    grey levels (Theis et al. 2016, arXiv:1511.01844), on the scale of [0, 256].

    Args:
        images: grey levels, uint8.
        generator: where the draws come from, on the CPU.

    Returns:
        The same shape, float32 in [0, 1].
    """
    draws = torch.rand(images.shape, generator=generator, dtype=torch.float32).to(images.device)
    return (images.float() + draws) / LEVELS
