"""A user's own pictures in place of a data set."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 28
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read. Pillow knows more, and runs Ghostscript, so the file's own program, on EPS."""


def read_folder(folder: str | Path) -> tuple[Tensor, list[str]]:
    """Read all pictures of a folder, in the order of their names.

    Returns:
        The images ``[N, 1, 28, 28]`` (uint8, white digits on black as in MNIST), and the files' names.

    Raises:
        ValueError: there is no such folder, or it holds no file, or one that is no picture of 28 × 28 grey pixels; the message
            says what to do.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise ValueError(f"{folder} holds no pictures")
    return torch.stack([_read(file) for file in files]), [file.name for file in files]


def _read(file: Path) -> Tensor:
    try:
        with Image.open(file, formats=FORMATS) as picture:
            width, height = picture.size
            mode = picture.mode
            if (width, height) == (SIDE, SIDE) and mode in ("L", "1"):  # before any pixel is decoded
                return torch.from_numpy(np.array(picture.convert("L"))).unsqueeze(0)
    except Exception as error:  # what a foreign file can make Pillow raise has no end
        raise ValueError(f"{file} is no picture, or damaged: take it out of the folder") from error
    raise ValueError(
        f"{file} is {width} × {height} of mode {mode}, and 28 × 28 grey pixels (mode L) are asked for. "
        "In Python: PIL.Image.open(file).convert('L').resize((28, 28)).save(file)"
    )
