"""How one kind of example is looked at, written and read."""

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from vae_lightning.configuration.paths import expanded
from vae_lightning.data.pictures import (
    SUFFIXES,
    Background,
    Form,
    files_of,
    looks,
    read_pictures,
)
from vae_lightning.data.protocol import WHITE

log = logging.getLogger(__name__)

_COMPRESSION = 3  # of 9: sooner than the usual 6, and larger by a twentieth


class Modality(Protocol):
    """One kind of example: images, music.

    Attributes:
        noun: what figures are per and the progress bar counts, as in "nats per image".
        formats: what makes a file of an example ``[...]``, by the file's suffix; the first is the
            usual one.
    """

    noun: str

    @property
    def formats(self) -> Mapping[str, Callable[[Tensor], bytes]]:
        """See above."""

    def picture(self, x: Tensor, columns: int) -> Tensor:
        """Lay examples ``[n, ...]`` out as one picture, ``[3, H, W]`` in [0, 1]."""

    def read(
        self, folder: Path, shape: Sequence[int], settings: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[Tensor, list[str]]:
        """Read a user's own examples ``[n, *shape]`` from a folder, with their file names.

        Args:
            folder: where they are; or one file.
            shape: of an example.
            settings: of the data that the model was trained on.

        Raises:
            ValueError: the folder holds something else; the message says what.
        """


class Images:
    """Images ``[C, H, W]`` in [0, 1], grey or colour. Nothing is rescaled: 0 is black, 1 white."""

    noun = "image"
    formats: Mapping[str, Callable[[Tensor], bytes]] = MappingProxyType({"png": lambda x: png(x)})

    def picture(self, x: Tensor, columns: int, zoom: int = 2) -> Tensor:
        """Lay images ``[n, C, H, W]`` out in rows, each pixel drawn as ``zoom`` × ``zoom``."""
        from torchvision.utils import make_grid  # its import takes a second

        enlarged = x.repeat_interleave(zoom, dim=-2).repeat_interleave(zoom, dim=-1)
        picture: Tensor = make_grid(enlarged, nrow=columns, padding=zoom, pad_value=0.5)
        return picture

    def read(
        self, folder: Path, shape: Sequence[int], settings: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[Tensor, list[str]]:
        """Read all pictures of a folder: uint8, ``[n, C, H, W]``, and the files' names.

        They are brought to the form of those that the model was trained on.
        """
        folder = Path(expanded(str(folder)))
        is_file = folder.is_file() and folder.suffix.lower() in SUFFIXES
        files = [folder] if is_file else files_of(folder)
        background: Background = settings.get("background", "black")
        if "invert" in settings:
            invert = bool(settings["invert"])
        elif invert := shape[0] == 1 and looks(files, background)[1]:
            log.info("%s: dark on bright, so they are inverted", folder)
        form = Form(shape, settings.get("fit", "crop"), background, invert)
        names = [str(file.relative_to(folder.parent if is_file else folder)) for file in files]
        return read_pictures(files, form), names


IMAGES = Images()
"""The modality of images."""


def png(picture: Tensor) -> bytes:
    """Return a picture ``[3, H, W]`` or ``[1, H, W]`` in [0, 1] as the content of a PNG file.

    Where no pixel has a colour the file holds one channel: it is compressed and written sooner.
    """
    pixels = (picture.clamp(0, 1) * WHITE).round().to(torch.uint8).cpu()
    if (pixels == pixels[:1]).all():
        pixels = pixels[:1]
    written = io.BytesIO()
    image = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy())
    image.save(written, "png", compress_level=_COMPRESSION)
    return written.getvalue()


def save_png(picture: Tensor, file: Path) -> None:
    """Write a picture ``[3, H, W]`` or ``[1, H, W]`` in [0, 1] to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(picture))
