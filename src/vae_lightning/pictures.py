"""Functions that draw: tensors in, pictures out. Nothing is rescaled: 0 is black and 1 is white in every picture."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid


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


def save_png(picture: Tensor, file: Path) -> None:
    """Write a picture ``[3, H, W]`` in [0, 1] to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file)
