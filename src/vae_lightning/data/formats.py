"""The file formats of the data sets: IDX, and ``.amat``."""

import math
import struct

import numpy as np
import torch
from torch import Tensor

from vae_lightning.data.protocol import WHITE


def parse_idx(content: bytes) -> Tensor:
    """Return what an IDX file of bytes holds: two zero bytes, the type, the shape, the values."""
    dimensions = content[3]
    shape = struct.unpack_from(f">{dimensions}i", content, 4)
    values = np.frombuffer(content, np.uint8, count=math.prod(shape), offset=4 + 4 * dimensions)
    return torch.from_numpy(values.reshape(shape).copy())


def write_idx(values: np.ndarray) -> bytes:
    """Return an array of bytes as an IDX file."""
    return (
        struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
    )


def parse_amat(content: bytes) -> Tensor:
    """Return the images of a file of lines with 784 noughts and ones each.

    Returns:
        ``[N, 1, 28, 28]``, uint8; each pixel is 0 or the highest grey level.

    Raises:
        ValueError: the file holds something else.
    """
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    signs = np.frombuffer(b" ".join(lines), np.uint8)
    if (
        any(len(line) != 2 * 784 - 1 for line in lines)
        or not np.isin(signs[::2], (48, 49)).all()
        or (signs[1::2] != 32).any()
    ):
        raise ValueError("not rows of 784 noughts and ones")
    return torch.from_numpy((signs[::2] - 48) * np.uint8(WHITE)).view(-1, 1, 28, 28)
