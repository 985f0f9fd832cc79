"""A user's own pictures, read from a folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import printable

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read. Pillow knows more, and runs Ghostscript, so the file's own program, on EPS."""

_MODES = {1: ("L", "1"), 3: ("RGB",)}  # Pillow's names, by the number of channels
_COLOURS = {1: "grey", 3: "colour"}


def read_folder(folder: str | Path, shape: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Read all pictures of a folder, in the order of their names.

    Args:
        folder: where they are.
        shape: C, H, W of each.

    Returns:
        The images ``[N, C, H, W]`` (uint8), and the names of the files.

    Raises:
        ValueError: there is no such folder, or it holds no file, or one that isn't such a picture;
            the message says what to do.
    """
    folder = Path(expanded(str(folder)))
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    files = sorted(
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
    )
    if not files:
        raise ValueError(f"{folder} holds no pictures")
    return torch.stack([_read(file, shape) for file in files]), [file.name for file in files]


def _read(file: Path, shape: Sequence[int]) -> Tensor:
    channels, height, width = shape
    modes, name = _MODES[channels], printable(file)
    try:
        with Image.open(file, formats=FORMATS) as picture:
            size, mode = picture.size, picture.mode
            if size == (width, height) and mode in modes:  # before any pixel is decoded
                pixels = torch.from_numpy(np.array(picture.convert(modes[0])))
                return pixels.view(height, width, channels).permute(2, 0, 1)
    except Exception as error:  # what a foreign file can make Pillow raise has no end
        raise ValueError(f"{name} is no picture, or damaged: take it out of the folder") from error
    raise ValueError(
        f"{name} is {size[0]} × {size[1]} of mode {mode}, and the model needs {width} × {height} "
        f"{_COLOURS[channels]} pixels (mode {modes[0]}). In Python: "
        f"PIL.Image.open(file).convert('{modes[0]}').resize(({width}, {height})).save(copy)"
    )
