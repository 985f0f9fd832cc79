"""Functions that draw: tensors in, pictures out. Nothing is rescaled: 0 is black and 1 is white in every picture."""

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

Decode = Callable[[Tensor], Tensor]
"""The mean images ``[n, C, H, W]`` of latents ``[n, D]``."""


def grid(images: Tensor, columns: int, zoom: int = 2) -> Tensor:
    """Lay images ``[n, C, H, W]`` out in rows, each pixel drawn as ``zoom`` × ``zoom``; returns ``[3, H', W']``."""
    enlarged = images.repeat_interleave(zoom, dim=-2).repeat_interleave(zoom, dim=-1)
    picture: Tensor = make_grid(enlarged, nrow=columns, padding=zoom, pad_value=0.5)
    return picture


def reconstruction_grid(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Draw originals ``[n, C, H, W]`` with their reconstructions below them; returns ``[3, H', W']``."""
    return grid(torch.cat([originals, reconstructions]), columns=len(originals))


def sample_grid(samples: Tensor, columns: int | None = None) -> Tensor:
    """Draw samples ``[n, C, H, W]`` in rows, by default as a square, 64 of them as 8 × 8; returns ``[3, H', W']``."""
    return grid(samples, columns or math.ceil(math.sqrt(len(samples))))


def manifold_grid(decode: Decode, side: int = 20) -> Tensor:
    """Decode a ``side`` × ``side`` grid on the unit square, sent through the inverse Gaussian CDF; returns ``[3, H', W']``.

    Kingma & Welling (arXiv:1312.6114), Figure 4, for two latents: equal steps are equal shares of the prior.
    """
    values = equal_shares(side)
    across, down = torch.meshgrid(values, values.flip(0), indexing="xy")  # the second latent rises upwards, as on paper
    return grid(decode(torch.stack([across, down], dim=-1).view(-1, 2)), columns=side)


def equal_shares(count: int) -> Tensor:
    """Return values ``[count]`` that each stand for an equal share of a standard normal distribution."""
    shares: Tensor = torch.special.ndtri((torch.arange(count) + 0.5) / count)
    return shares


def traversal_grid(decode: Decode, start: Tensor, latents: Sequence[int], columns: int = 11, reach: float = 3.0) -> Tensor:
    """Move one latent at a time from −``reach`` to ``reach``, a row for each; returns ``[3, H', W']``.

    Args:
        decode: the decoder.
        start: where the other latents stay, ``[D]``.
        latents: which to move, from above.
        columns: steps in a row.
        reach: in standard deviations of the prior.
    """
    rows = start.repeat(len(latents), columns, 1)
    for row, latent in zip(rows, latents, strict=True):
        row[:, latent] = torch.linspace(-reach, reach, columns)
    return grid(decode(rows.flatten(0, 1)), columns)


def interpolation_grid(decode: Decode, starts: Tensor, ends: Tensor, columns: int = 11) -> Tensor:
    """Walk from each start to its end, ``[n, D]`` each: straight in one row, and on the sphere in the next; ``[3, H', W']``."""
    steps = torch.linspace(0, 1, columns).view(-1, 1)
    rows = [walk(start, end, steps) for start, end in zip(starts, ends, strict=True) for walk in (torch.lerp, slerp)]
    return grid(decode(torch.cat(rows)), columns)


def slerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Interpolate along the great circle between two directions (Shoemake 1985), with lengths in between; ``[n, D]``.

    Args:
        start: ``[D]``.
        end: ``[D]``.
        weight: how far along, ``[n, 1]`` in [0, 1].
    """
    angle = torch.acos((start @ end / (start.norm() * end.norm())).clamp(-1, 1))
    if angle.sin() < 1e-4:  # the same direction, or opposite ones, between which there is no one circle
        return torch.lerp(start, end, weight)
    direction = (
        torch.sin((1 - weight) * angle) * start / start.norm() + torch.sin(weight * angle) * end / end.norm()
    ) / angle.sin()
    walked: Tensor = direction * torch.lerp(start.norm(), end.norm(), weight)
    return walked


_COMPRESSION = 3  # of 9: sooner than the usual 6, and larger by a twentieth


def png(picture: Tensor) -> bytes:
    """Return a picture ``[3, H, W]`` in [0, 1], or ``[1, H, W]`` for a grey one, as a PNG file's content.

    Where no pixel has a colour the file holds one channel: it is compressed and written sooner.
    """
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    if (pixels == pixels[:1]).all():
        pixels = pixels[:1]
    written = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(written, "png", compress_level=_COMPRESSION)
    return written.getvalue()


def save_png(picture: Tensor, file: Path) -> None:
    """Write a picture ``[3, H, W]`` or ``[1, H, W]`` in [0, 1] to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(picture))
