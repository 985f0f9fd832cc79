"""Reading a user's own pictures: any size, depth and colours, brought to the form of a model."""

import os
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import printable
from vae_lightning.data.protocol import WHITE

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read. Pillow knows more, and runs Ghostscript, so the file's own program, on EPS."""

SUFFIXES = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)
"""Names of pictures end so, in capitals or not. Other files of a folder are left out."""

LARGEST = 1 << 26
"""The most pixels of a picture that is read. A file of a few bytes can claim any number."""

Fit = Literal["crop", "pad", "stretch"]
Background = Literal["black", "white"]

_SAMPLE = 200  # pictures that are looked at to choose the channels and whether to invert
_THUMBNAIL = 32
_COLOURED = 24  # of 255, how far the channels of a coloured pixel lie apart
_BRIGHT, _DARK = 180, 110  # of 255
_CLEARLY = 0.9  # of the pictures


@dataclass(frozen=True)
class Form:
    """The form that pictures are brought to.

    Attributes:
        shape: C, H, W; one channel is grey, three are red, green and blue.
        fit: ``crop`` cuts the middle out, ``pad`` fills up with the background, ``stretch`` changes
            the proportions.
        background: what shows through transparent pixels, and fills up.
        invert: turn dark ink on bright paper into bright ink on dark.
    """

    shape: Sequence[int]
    fit: Fit = "crop"
    background: Background = "black"
    invert: bool = False

    @property
    def paper(self) -> Background:
        """What is filled up with: the background, before an inversion its opposite."""
        if not self.invert:
            return self.background
        return "white" if self.background == "black" else "black"


def files_of(
    folder: str | Path, suffixes: Set[str] = SUFFIXES, noun: str = "pictures"
) -> list[Path]:
    """Return the files of some kind in a folder and its subfolders, in the order of their names.

    Run directories in it, which hold files of their own, are left out.

    Raises:
        ValueError: there is no such folder, it holds no such file, or a link that leads out of it.
    """
    folder = Path(expanded(str(folder)))
    if not folder.is_dir():
        raise ValueError(f"{printable(folder)} is no folder")
    root, found = folder.resolve(), []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not (name.startswith(".") or Path(parent, name, ".hydra").is_dir())
        )
        for name in [*folders, *names]:
            path = Path(parent, name)
            is_one = name not in folders and path.suffix.lower() in suffixes
            if name.startswith(".") or not (is_one or name in folders):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise ValueError(f"{printable(path)} is a link out of the folder; put a copy there")
            if is_one and path.is_file():
                found.append(path)
    if not found:
        known = ", ".join(sorted(each.removeprefix(".") for each in suffixes))
        raise ValueError(f"{printable(folder)} holds no {noun} ({known})")
    return sorted(found)


def read_pictures(files: Sequence[Path], form: Form) -> Tensor:
    """Read pictures of any size and bring them to one form, in parallel.

    Args:
        files: where they are.
        form: what they are brought to.

    Returns:
        ``[N, C, H, W]``, uint8.

    Raises:
        ValueError: some can't be read; the message names the first ones.
    """
    pictures = torch.empty((len(files), *form.shape), dtype=torch.uint8)

    def read(number: int) -> str | None:
        try:
            pictures[number] = read_picture(files[number], form)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        done = threads.map(read, range(len(files)))
        bar = tqdm(done, "Reading pictures", len(files), leave=False, disable=None)
        mistakes = [each for each in bar if each]
    if mistakes:
        more = f", and {len(mistakes) - 3} more" if len(mistakes) > 3 else ""
        raise ValueError(f"{'; '.join(mistakes[:3])}{more}: take them out of the folder")
    return pictures


def read_picture(file: Path, form: Form) -> Tensor:
    """Read one picture: ``[C, H, W]``, uint8.

    The first frame of an animation is read, and turned as a camera says (EXIF).

    Raises:
        ValueError: it is no picture, damaged or too large.
    """
    _, height, width = form.shape
    return _brought_to(_open(file, form.paper, (2 * width, 2 * height)), form)


def fitted(picture: Image.Image, form: Form) -> Tensor:
    """Bring a picture that is open to a form: ``[C, H, W]``, uint8."""
    return _brought_to(_eight_bits(ImageOps.exif_transpose(picture), form.paper), form)


def _brought_to(picture: Image.Image, form: Form) -> Tensor:
    channels, height, width = form.shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    size, resample = (width, height), Image.Resampling.BICUBIC
    if picture.size != size and form.fit == "crop":
        picture = ImageOps.fit(picture, size, resample)
    elif picture.size != size and form.fit == "pad":
        picture = ImageOps.pad(picture, size, resample, form.paper)
    elif picture.size != size:
        picture = picture.resize(size, resample)
    pixels = torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1)
    return WHITE - pixels if form.invert else pixels


def _open(file: Path, background: Background, enough: tuple[int, int]) -> Image.Image:
    """Return a picture in 8-bit grey or RGB, upright and without transparency."""
    name = printable("/".join(file.parts[-2:]))
    try:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.mode == "F" or (picture.mode == "I" and picture.format == "TIFF"):
                raise ValueError(f"{name} has 32 bits for each pixel; 8 and 16 are read")
            if picture.width * picture.height > LARGEST:
                raise ValueError(f"{name} has more than {LARGEST:,} pixels")
            picture.draft(None, enough)  # a JPEG is decoded no larger than need be
            upright = ImageOps.exif_transpose(picture)
            return _eight_bits(upright, background)
    except ValueError as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name} is no picture, or damaged") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has more than {LARGEST:,} pixels") from error
    except Exception as error:  # what a foreign file can make Pillow raise has no end
        raise ValueError(f"{name} is no picture, or damaged") from error


def _eight_bits(picture: Image.Image, background: Background) -> Image.Image:
    mode = picture.mode
    if mode.startswith("I"):  # grey of 16 bits
        levels = np.asarray(picture).astype(np.int64) // 257
        return Image.fromarray(levels.clip(0, WHITE).astype(np.uint8))
    if "transparency" in picture.info or mode.endswith(("A", "a")):
        opaque = picture.convert("RGBA")
        below = Image.new("RGBA", opaque.size, background)
        return Image.alpha_composite(below, opaque).convert("RGB")
    return picture.convert("L" if mode in ("1", "L") else "RGB")


def looks(files: Sequence[Path], background: Background) -> tuple[bool, bool]:
    """Return whether pictures have colours, and whether they are dark ink on bright paper.

    Two hundred of them are looked at, spread over all. Pictures that can't be read don't count.
    """
    chosen = files[:: max(1, len(files) // _SAMPLE)]
    form = Form((3, _THUMBNAIL, _THUMBNAIL), "stretch", background)

    def thumbnail(file: Path) -> Tensor | None:
        try:
            return read_picture(file, form)
        except ValueError:
            return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        seen = [each for each in threads.map(thumbnail, chosen) if each is not None]
    if not seen:
        return False, False
    pictures = torch.stack(seen).short()
    apart = pictures.amax(1) - pictures.amin(1)
    has_colours = bool(((apart > _COLOURED).float().mean((1, 2)) > 0.005).any())
    grey = pictures.float().mean(1)
    edge = torch.ones_like(grey[0], dtype=torch.bool)
    edge[2:-2, 2:-2] = False
    is_paper = grey[:, edge].mean(1) > _BRIGHT
    ink = (grey < _DARK).float().mean((1, 2))
    is_written_on = is_paper & (ink > 0.002) & (ink < 0.5)
    return has_colours, is_written_on.float().mean().item() >= _CLEARLY
