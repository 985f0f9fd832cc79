"""CIFAR-10, read from its binary archive: torchvision's reader unpickles files."""

import io
import tarfile
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, validate_call
from torch import Tensor

from vae_lightning.data.batches import Seed
from vae_lightning.data.catalogue import PHOTOGRAPHS, data_folder
from vae_lightning.data.datamodule import Binarization, DataModule, File
from vae_lightning.data.download import content_of, fetch
from vae_lightning.errors import DatasetUnavailable
from vae_lightning.models.base import DataSpec, arguments

_SHAPE = (3, 32, 32)
_BATCHES = {
    "train": tuple(f"cifar-10-batches-bin/data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("cifar-10-batches-bin/test_batch.bin",),
}


class CIFAR10(DataModule):
    """Colour photographs of ten kinds of things, ``[3, 32, 32]``."""

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        dir: Annotated[str, Field(min_length=1)] | None = None,
        batch_size: PositiveInt = 128,
        eval_batch_size: PositiveInt = 1000,
        val_size: NonNegativeInt = 5000,
        split_seed: Seed = 0,
        validate_on_test: bool = False,
        binarization: Binarization = "none",
        dequantize: bool = False,
        seed: Seed = 1,
    ) -> None:
        """Choose the splits; nothing is read before ``setup``.

        Args:
            dir: where the archive is or will be put; by default the user's cache folder.
            batch_size: as in ``DataModule``, and so all that follow.
            eval_batch_size: images per step of validation and test.
            val_size: how many of the 50,000 training images are held out for validation.
            split_seed: which ones.
            validate_on_test: look at the test images after each epoch.
            binarization: ``none``, ``stochastic`` or ``static``.
            dequantize: spread each level over its 256th of [0, 1].
            seed: seed of the order in which training images are visited.

        Raises:
            ValueError: a value is of the wrong type or out of range, or values don't go together.
        """
        settings = arguments(locals(), "dir")
        dataset = PHOTOGRAPHS["cifar10"]
        self.folder = data_folder("cifar10", dir)
        super().__init__(
            name="cifar10",
            spec=DataSpec(_SHAPE, "unit", class_names=dataset.class_names),
            sizes=(dataset.train_size, dataset.test_size),
            settings=settings,
            **settings,
        )

    def prepare_data(self) -> None:
        """Fetch the archive if it isn't there, verified by checksum."""
        fetch("cifar10", self.folder)

    def read(self, file: File) -> tuple[Tensor, Tensor | None]:
        """Return all images ``[N, 3, 32, 32]``, uint8, and labels ``[N]``, int64, of a file."""
        [(name, digest)] = PHOTOGRAPHS["cifar10"].files.items()
        return parse_archive(content_of(self.folder / name, digest), file)


def parse_archive(content: bytes, file: File) -> tuple[Tensor, Tensor]:
    """Return the images and labels of the archive's training or test part.

    A record is a byte for the label, then the red, the green and the blue of 32 × 32 pixels.

    Returns:
        ``[N, 3, 32, 32]``, uint8, and ``[N]``, int64.

    Raises:
        DatasetUnavailable: the archive holds something else.
    """
    length = 1 + int(np.prod(_SHAPE))
    records = []
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            for name in _BATCHES[file]:
                member = archive.extractfile(name)
                assert member is not None
                records.append(np.frombuffer(member.read(), np.uint8).reshape(-1, length))
    except (tarfile.TarError, KeyError, ValueError, AssertionError, OSError, EOFError) as error:
        raise DatasetUnavailable(f"not CIFAR-10's binary archive ({error})") from error
    joined = torch.from_numpy(np.concatenate(records))
    return joined[:, 1:].reshape(-1, *_SHAPE), joined[:, 0].long()
