"""Arrangements of examples: tensors in, pictures out.

Nothing is rescaled: the modality lays examples out as they are.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vae_lightning.data.modality import Modality

Decode = Callable[[Tensor], Tensor]
"""The examples ``[n, ...]`` of latents ``[n, D]``."""


def reconstruction_grid(modality: Modality, originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Draw originals ``[n, ...]`` with their reconstructions below them; returns ``[3, H, W]``."""
    return modality.picture(torch.cat([originals, reconstructions]), columns=len(originals))


def code_colours(code: Tensor) -> Tensor:
    """Return a colour for each code of grids ``[n, h, w]``: ``[n, 3, h, w]`` in [0, 1]."""
    hue = (code * 0.618034) % 1.0  # steps of the golden ratio: neighbouring numbers lie far apart
    offsets = torch.tensor([1.0, 2 / 3, 1 / 3])[:, None, None]
    colours: Tensor = (6 * ((hue[:, None] + offsets) % 1.0 - 0.5).abs() - 1).clamp(0, 1)
    return colours


def code_grid(modality: Modality, originals: Tensor, code: Tensor, decoded: Tensor) -> Tensor:
    """Draw images ``[n, C, H, W]``, below them their codes, and what these decode to.

    Each code of a grid ``[n, h, w]`` has a colour of its own. Returns ``[3, H, W]``.
    """
    shown = torch.nn.functional.interpolate(code_colours(code), originals.shape[-2:])
    rows = [each.expand(-1, 3, -1, -1) for each in (originals, shown, decoded)]
    return modality.picture(torch.cat(rows), columns=len(originals))


def sample_grid(modality: Modality, samples: Tensor, columns: int | None = None) -> Tensor:
    """Draw samples ``[n, ...]`` in rows, by default as a square; returns ``[3, H, W]``."""
    return modality.picture(samples, columns or math.ceil(math.sqrt(len(samples))))


def manifold_grid(modality: Modality, decode: Decode, side: int = 20) -> Tensor:
    """Decode a ``side`` × ``side`` grid on the unit square, sent through the inverse Gaussian CDF.

    Kingma & Welling (arXiv:1312.6114), Figure 4, for two latents: equal steps are equal shares of
    the prior. Returns ``[3, H, W]``.
    """
    values = equal_shares(side)
    # The second latent rises upwards, as on paper.
    across, down = torch.meshgrid(values, values.flip(0), indexing="xy")
    return modality.picture(decode(torch.stack([across, down], dim=-1).view(-1, 2)), columns=side)


def equal_shares(count: int) -> Tensor:
    """Return values ``[count]`` that each stand for an equal share of a standard normal."""
    shares: Tensor = torch.special.ndtri((torch.arange(count) + 0.5) / count)
    return shares


def traversal_grid(
    modality: Modality,
    decode: Decode,
    start: Tensor,
    latents: Sequence[int],
    columns: int = 11,
    reach: float = 3.0,
) -> Tensor:
    """Move one latent at a time from −``reach`` to ``reach``, a row for each.

    Args:
        modality: how examples are drawn.
        decode: the decoder.
        start: where the other latents stay, ``[D]``.
        latents: which to move, from above.
        columns: steps in a row.
        reach: in standard deviations of the prior.

    Returns:
        ``[3, H, W]``.
    """
    rows = start.repeat(len(latents), columns, 1)
    for row, latent in zip(rows, latents, strict=True):
        row[:, latent] = torch.linspace(-reach, reach, columns)
    return modality.picture(decode(rows.flatten(0, 1)), columns)


def interpolation_grid(
    modality: Modality, decode: Decode, starts: Tensor, ends: Tensor, columns: int = 11
) -> Tensor:
    """Walk from each start to its end, ``[n, D]`` each: straight in one row, then on the sphere.

    Returns ``[3, H, W]``.
    """
    steps = torch.linspace(0, 1, columns).view(-1, 1)
    pairs = zip(starts, ends, strict=True)
    rows = [walk(start, end, steps) for start, end in pairs for walk in (torch.lerp, slerp)]
    return modality.picture(decode(torch.cat(rows)), columns)


ATTRIBUTE_STEPS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""How often a direction is added to a latent."""


def direction_grid(modality: Modality, decode: Decode, start: Tensor, directions: Tensor) -> Tensor:
    """Walk from a latent ``[D]`` along each direction ``[n, D]``, a row for each: ``[3, H, W]``."""
    steps = torch.tensor(ATTRIBUTE_STEPS)[:, None]
    rows = [start + steps * direction for direction in directions]
    return modality.picture(decode(torch.cat(rows)), columns=len(steps))


def slerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Interpolate along the great circle between two directions (Shoemake 1985); ``[n, D]``.

    Lengths are interpolated, too.

    Args:
        start: ``[D]``.
        end: ``[D]``.
        weight: how far along, ``[n, 1]`` in [0, 1].
    """
    angle = torch.acos((start @ end / (start.norm() * end.norm())).clamp(-1, 1))
    # The same direction, opposite ones, or none, at the origin: there is no one circle.
    if not angle.sin() >= 1e-4:
        return torch.lerp(start, end, weight)
    direction = (
        torch.sin((1 - weight) * angle) * start / start.norm()
        + torch.sin(weight * angle) * end / end.norm()
    ) / angle.sin()
    walked: Tensor = direction * torch.lerp(start.norm(), end.norm(), weight)
    return walked
