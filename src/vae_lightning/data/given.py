"""Images that are given in Python: a tensor, an array, pictures, or a dataset of such."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import ConfigDict, PositiveInt, validate_call
from torch import Tensor

from vae_lightning.data.batches import Seed
from vae_lightning.data.datamodule import Binarization
from vae_lightning.data.own import OwnData, TestShare, ValidationShare, digest_of
from vae_lightning.data.pictures import Background, Form, fitted
from vae_lightning.data.protocol import WHITE
from vae_lightning.models.base import DataSpec, arguments


class GivenData(OwnData):
    """Images of a call of ``vae_lightning.fit``."""

    @validate_call(config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    def __init__(
        self,
        given: tuple[Any] | None = None,
        val_share: ValidationShare = 0.1,
        test_share: TestShare = 0.1,
        batch_size: PositiveInt = 128,
        eval_batch_size: PositiveInt = 1000,
        split_seed: Seed = 0,
        binarization: Binarization = "none",
        dequantize: bool = False,
        seed: Seed = 1,
    ) -> None:
        """Take the images, and choose the splits; see ``FolderDataModule`` for the rest.

        Args:
            given: in a tuple, a tensor, an array, or a dataset whose items are images or pairs of
                an image and a label.
            val_share: the share that is held out for validation.
            test_share: the share that is tested.
            batch_size: as in ``DataModule``, and so all that follow.
            eval_batch_size: images per step of validation and test.
            split_seed: which images are held out.
            binarization: ``none``, ``stochastic`` or ``static``.
            dequantize: spread each grey level over its 256th of [0, 1].
            seed: seed of the order in which training images are visited.

        Raises:
            ValueError: there are no images, or something else.
        """
        settings = arguments(locals(), "given")
        if given is None:
            raise ValueError("only in Python, by vae_lightning.fit(…, data=images)")
        x, labels = _items(given[0])
        images = as_images(x, None)
        self._images = (images * WHITE).round().to(torch.uint8)
        self._labels = None if labels is None else torch.as_tensor(labels).long()
        if self._labels is not None and self._labels.min() < 0:
            raise ValueError("labels must be whole numbers from 0")
        classes = 0 if self._labels is None else int(self._labels.max()) + 1
        names = tuple(map(str, range(classes)))
        super().__init__(
            name="given",
            spec=DataSpec(tuple(images.shape[1:]), "unit", class_names=names),
            settings=settings,
            given={"train": range(len(images))},
        )

    def read_all(self) -> tuple[Tensor, Tensor | None, str]:
        """Return all images, their labels, and a digest of them."""
        return self._images, self._labels, digest_of(self._images, self._labels)


def _items(given: Any) -> tuple[Any, list[int] | None]:
    """Return the images of what was given, and their labels, if any."""
    if isinstance(given, Tensor | np.ndarray):
        return given, None
    if isinstance(given, str | Mapping) or not (
        hasattr(given, "__len__") and hasattr(given, "__getitem__")
    ):
        kinds = "a tensor, an array, or a dataset of images or of (image, label) pairs"
        raise ValueError(f"a {type(given).__name__}; data= takes {kinds}")
    items = [given[number] for number in range(len(given))]
    if items and isinstance(items[0], tuple | list) and len(items[0]) == 2:
        return [item[0] for item in items], [int(item[1]) for item in items]
    return items, None


def as_images(
    images: Any, shape: Sequence[int] | None, settings: Mapping[str, Any] = MappingProxyType({})
) -> Tensor:
    """Return images as a model takes them, ``[N, C, H, W]``, float32 in [0, 1].

    Args:
        images: a tensor, an array, a PIL picture, or a list of such; one image or several.
        shape: C, H, W of the model; None: those of the images. PIL pictures are brought to it.
        settings: of the data that the model was trained on, by which PIL pictures are read.

    Raises:
        ValueError: they have another shape or range.
    """
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, list | tuple):
        if not images:
            raise ValueError("no images")
        arrays = [_array(each, shape, settings) for each in images]
        if len({each.shape for each in arrays}) > 1:
            raise ValueError("images of several shapes; bring them to one")
        images = np.stack(arrays)
    x = as_tensor(images)
    if x.dtype == torch.uint8:
        x = x.float() / WHITE
    elif x.dtype == torch.bool:
        x = x.float()
    elif not x.is_floating_point():
        raise ValueError(f"numbers of type {x.dtype}; images are uint8, or floats in [0, 1]")
    x = _channels_first(x.float(), shape)
    if not (x.numel() and x.min() >= 0 and x.max() <= 1):
        span = f"from {x.min():.4g} to {x.max():.4g}" if x.numel() else "of no pixel"
        raise ValueError(f"values {span}; images are uint8, or floats in [0, 1]")
    return x


def as_tensor(numbers: Any) -> Tensor:
    """Return numbers as a tensor on the CPU, without a gradient.

    An array is copied: torch takes none that is flipped or of foreign byte order, and warns of one
    that is read-only.

    Raises:
        ValueError: they aren't numbers.
    """
    if isinstance(numbers, np.ma.MaskedArray):
        raise ValueError("a masked array; fill it first, as with array.filled(0)")
    if isinstance(numbers, np.ndarray):
        numbers = numbers.astype(numbers.dtype.newbyteorder("="))
    try:
        tensor = torch.as_tensor(numbers).detach().cpu()
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"a {type(numbers).__name__} that isn't all numbers") from error
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _array(image: Any, shape: Sequence[int] | None, settings: Mapping[str, Any]) -> np.ndarray:
    if not isinstance(image, Image.Image):
        return np.asarray(image)
    if shape is None:
        grey = image.mode in ("1", "L", "LA", "I", "I;16")
        shape = (1 if grey else 3, image.height, image.width)
    background: Background = settings.get("background", "black")
    form = Form(shape, settings.get("fit", "crop"), background, settings.get("invert") is True)
    return fitted(image, form).numpy()


def _channels_first(x: Tensor, shape: Sequence[int] | None) -> Tensor:
    """Return images as ``[N, C, H, W]``."""
    given = list(x.shape)
    if shape is None:  # several images: of one it isn't known what its first axis is
        x = x.unsqueeze(1) if x.ndim == 3 else x
        if x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
            x = x.permute(0, 3, 1, 2)
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            wanted = "[N, H, W], [N, C, H, W] or [N, H, W, C], of 1 or 3 channels"
            raise ValueError(f"images of shape {given}; give {wanted}")
        return x.contiguous()
    channels, height, width = shape
    last = (height, width, channels)
    if tuple(x.shape[-3:]) == last and tuple(x.shape[-3:]) != tuple(shape):
        x = x.movedim(-1, -3)
    elif (
        channels == 1
        and tuple(x.shape[-2:]) == (height, width)
        and (x.ndim == 2 or tuple(x.shape[-3:]) != tuple(shape))
    ):
        x = x.unsqueeze(-3)
    x = x.unsqueeze(0) if x.ndim == 3 else x
    if x.ndim != 4 or tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(
            f"images of shape {given}; this model takes [N, {channels}, {height}, {width}]"
        )
    return x.contiguous()
