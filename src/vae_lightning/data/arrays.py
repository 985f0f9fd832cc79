"""The user's own arrays: ``.npz``, ``.npy``, ``.pt``, or a pair of IDX files."""

import gzip
import logging
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field, PositiveInt, validate_call
from torch import Tensor

from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import printable
from vae_lightning.data.batches import Seed
from vae_lightning.data.datamodule import Binarization, Split
from vae_lightning.data.formats import parse_idx
from vae_lightning.data.own import (
    SPLITS,
    OwnData,
    TestShare,
    ValidationShare,
    digest_of,
    require_room,
)
from vae_lightning.data.protocol import WHITE
from vae_lightning.models.base import DataSpec, arguments

log = logging.getLogger(__name__)

Name = Annotated[str, Field(min_length=1)]

_IMAGES, _LABELS = ("x", "images", "data", "arr_0"), ("y", "labels", "targets", "arr_1")
_WIDEST = 8  # bytes of a number
_LARGEST = 1 << 34  # bytes of a decompressed IDX file


class ArraysDataModule(OwnData):
    """Images in an array: ``[N, H, W]``, ``[N, C, H, W]`` or ``[N, H, W, C]``.

    They are bytes, or floating-point numbers in [0, 1], which are rounded to 256 levels.
    """

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        file: Name | Annotated[list[Name], Field(min_length=2, max_length=2)],
        val_share: ValidationShare = 0.1,
        test_share: TestShare = 0.1,
        memory_mb: PositiveInt = 4000,
        batch_size: PositiveInt = 128,
        eval_batch_size: PositiveInt = 1000,
        split_seed: Seed = 0,
        binarization: Binarization = "none",
        dequantize: bool = False,
        seed: Seed = 1,
    ) -> None:
        """Open the file, and choose the splits. Bytes in an ``.npy`` file stay on disk.

        Args:
            file: an ``.npz`` or ``.pt`` file of images ``x`` and labels ``y``, or of ``x_train``,
                ``y_train``, ``x_val``, …, ``y_test``; an ``.npy`` file of images; a list of two IDX
                files, images and labels.
            val_share: the share that is held out for validation where there is no ``x_val``.
            test_share: the share that is tested where there is no ``x_test``.
            memory_mb: how much memory the images may take, but those that stay on disk.
            batch_size: as in ``DataModule``, and so all that follow.
            eval_batch_size: images per step of validation and test.
            split_seed: which images are held out.
            binarization: ``none``, ``stochastic`` or ``static``.
            dequantize: spread each grey level over its 256th of [0, 1].
            seed: seed of the order in which training images are visited.

        Raises:
            ValueError: the file can't be read, or holds something else.
        """
        settings = arguments(locals(), "file")
        paths = [Path(expanded(each)) for each in ([file] if isinstance(file, str) else file)]
        named = f"file={printable(file)}"
        try:
            found = _read(paths, memory_mb)
            parts = {split: _split_of(found, split) for split in SPLITS}
        except OSError as error:
            raise ValueError(f"{named}: {error.strerror or error}") from error
        except (ValueError, KeyError) as error:
            raise ValueError(f"{named}: {error.args[0]}") from error
        kept = {split: part for split, part in parts.items() if part is not None}
        if "train" not in kept:
            known = (
                f"x or x_train is missing; it holds {', '.join(map(printable, found)) or 'none'}"
            )
            raise ValueError(f"{named}: {known}")
        try:
            images, labels, given = _joined(kept, memory_mb, paths[0].suffix == ".npy")
        except ValueError as error:
            problem = str(error)
            raise ValueError(
                problem if problem.startswith("memory_mb") else f"{named}: {problem}"
            ) from error
        self._images, self._labels = images, labels
        classes = 0 if labels is None else int(labels.max()) + 1
        super().__init__(
            name=printable(paths[0].stem),
            spec=DataSpec(
                tuple(images.shape[1:]), "unit", class_names=tuple(map(str, range(classes)))
            ),
            settings=settings,
            given=given,
        )

    def read_all(self) -> tuple[Tensor, Tensor | None, str]:
        """Return all images, their labels, and a digest of them."""
        return self._images, self._labels, digest_of(self._images, self._labels)


def _read(paths: list[Path], memory_mb: int) -> Mapping[str, Any]:
    """Return the arrays of a file by name. Nothing in a file is executed."""
    for path in paths:
        if not path.is_file():
            raise ValueError("not found" if not path.exists() else "not a file")
    if len(paths) == 2:
        return dict(zip(("x", "y"), map(_idx, paths), strict=True))
    (path,) = paths
    try:
        if path.suffix == ".npy":
            return {"x": np.load(path, mmap_mode="r", allow_pickle=False)}
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                size = sum(each.file_size for each in archive.infolist()) / 1e6
            if size > _WIDEST * memory_mb:
                raise MemoryError(f"{size:,.0f} MB once unpacked, for data.memory_mb={memory_mb}")
            with np.load(path, allow_pickle=False) as content:
                return {name: content[name] for name in content.files}
        if path.suffix in (".pt", ".pth"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the refusal follows
                return _of_torch(torch.load(path, weights_only=True, map_location="cpu"))
    except OSError:
        raise
    except MemoryError as error:
        raise ValueError(str(error) or "more than the memory holds") from error
    except Exception as error:  # what a damaged file can raise has no end
        raise ValueError(f"damaged, or with objects in it ({type(error).__name__})") from error
    if path.name.endswith(("-ubyte", "-ubyte.gz")):
        return {"x": _idx(path)}
    raise ValueError("must be an .npz, .npy or .pt file, or a list of two IDX files")


def _of_torch(content: Any) -> Mapping[str, Any]:
    if isinstance(content, Mapping):
        return content
    if isinstance(content, tuple | list):
        return dict(zip(("x", "y"), content, strict=False))
    return {"x": content}


def _idx(path: Path) -> Tensor:
    try:
        if path.suffix != ".gz":
            return parse_idx(path.read_bytes())
        with gzip.open(path) as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError("far too large")
        return parse_idx(content)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{printable(path.name)} is no IDX file of bytes") from error


def _split_of(found: Mapping[str, Any], split: Split) -> tuple[Tensor, Tensor | None] | None:
    """Return images and labels of a split; None where the file has none of its own."""
    names = [f"{each}_{split}" for each in _IMAGES]
    labels = [f"{each}_{split}" for each in _LABELS]
    if split == "train":
        names, labels = [*names, *_IMAGES], [*labels, *_LABELS]
        if len(found) == 1:
            names += found
    x, y = (next((found[name] for name in each if name in found), None) for each in (names, labels))
    if x is None:
        return None
    return _tensor(x), None if y is None else _tensor(y).flatten()


def _tensor(values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "buif":
        raise ValueError("holds something else than arrays of numbers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an array that can't be written to, which nobody does
        return torch.from_numpy(values)


def _joined(
    parts: Mapping[Split, tuple[Tensor, Tensor | None]], memory_mb: int, is_mapped: bool
) -> tuple[Tensor, Tensor | None, dict[Split, list[int]]]:
    """Return all images, ``[N, C, H, W]``, uint8, their labels, and the places of each split."""
    images = {split: _images(x) for split, (x, _) in parts.items()}
    shapes = {tuple(x.shape[1:]) for x in images.values()}
    if len(shapes) > 1:
        raise ValueError(f"the splits have images of other shapes: {sorted(shapes)}")
    given: dict[Split, list[int]] = {}
    total = 0
    for split, x in images.items():
        given[split] = list(range(total, total + len(x)))
        total += len(x)
    on_disk = is_mapped and len(images) == 1 and images["train"].dtype == torch.uint8
    if not on_disk:
        require_room(total, next(iter(shapes)), memory_mb)
    joined = images["train"] if on_disk else torch.cat([_levels(x) for x in images.values()])
    labelled = [y for _, y in parts.values() if y is not None]
    if len(labelled) < len(parts):
        return joined, None, given
    labels = torch.cat(labelled)
    if len(labels) != total:
        raise ValueError(f"{total:,} images and {len(labels):,} labels")
    numbers = labels.long()  # a byte doesn't compare with 65,536
    if labels.is_floating_point() or numbers.min() < 0 or numbers.max() >= 1 << 16:
        raise ValueError("labels must be whole numbers from 0")
    return joined, numbers, given


def _images(x: Tensor) -> Tensor:
    """Return images with their channels first."""
    if x.ndim == 3:
        x = x.unsqueeze(1)
    elif x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not x.numel():
        raise ValueError(
            f"an array of shape {list(x.shape)}; images are [N, H, W], [N, C, H, W] or "
            "[N, H, W, C], of 1 or 3 channels"
        )
    if x.dtype != torch.uint8 and not x.is_floating_point() and x.dtype != torch.bool:
        raise ValueError(f"numbers of type {x.dtype}; images are uint8, or floats in [0, 1]")
    return x


def _levels(x: Tensor) -> Tensor:
    """Return images as bytes; floating-point numbers are rounded to 256 levels."""
    if x.dtype == torch.uint8:
        return x
    if x.dtype == torch.bool:
        return x.to(torch.uint8) * WHITE
    low, high = x.min().item(), x.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"numbers from {low:.4g} to {high:.4g}; images are uint8, or in [0, 1]")
    return (x * WHITE).round().to(torch.uint8)
