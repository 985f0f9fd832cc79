"""MNIST and sets in its format."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, validate_call
from torch import Tensor
from torch.nn.functional import interpolate

from vae_lightning.data.batches import Seed
from vae_lightning.data.catalogue import DATASETS, data_folder
from vae_lightning.data.datamodule import Binarization, DataModule, File
from vae_lightning.data.download import fetch, read
from vae_lightning.models.base import DataSpec, arguments

SIDE = 28
BOX = 20

LAROCHELLE_VALIDATION = 10_000
"""Validation images of the Larochelle split."""


class MNISTDataModule(DataModule):
    """Training, validation and test images of MNIST or of a set in its format, ``[1, 28, 28]``."""

    pairs: ClassVar = ((0, 1), (2, 3), (4, 9), (7, 8))

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        name: Literal["mnist", "fashion_mnist", "kmnist", "larochelle", "mnist_subset"] = "mnist",
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
        """Choose the set and its splits; nothing is read before ``setup``.

        Args:
            name: which set.
            dir: where its files are or will be put; by default the user's cache folder.
            batch_size: as in ``DataModule``, and so all that follow.
            eval_batch_size: images per step of validation and test.
            val_size: how many of the training images are held out for validation.
            split_seed: which ones.
            validate_on_test: look at the test images after each epoch, as the PyTorch example does.
            binarization: ``none``, ``stochastic`` or ``static``.
            dequantize: spread each grey level over its 256th of [0, 1].
            seed: seed of the order in which training images are visited.

        Raises:
            ValueError: a value is of the wrong type or out of range, or values don't go together.
        """
        settings = arguments(locals(), "dir")  # a folder of one machine is no part of the protocol
        dataset = DATASETS[name]
        if name == "larochelle" and (val_size, binarization) != (LAROCHELLE_VALIDATION, "static"):
            raise ValueError(
                f"val_size={val_size}: the Larochelle split brings its own "
                f"{LAROCHELLE_VALIDATION:,} validation images, drawn once: "
                f"val_size={LAROCHELLE_VALIDATION} binarization=static, "
                "as data=larochelle sets them"
            )
        self.folder = data_folder(name, dir)
        self.drawn_before = name == "larochelle"
        self.label_noun = "digit" if self.suits(name) else "label"
        super().__init__(
            name=name,
            spec=DataSpec((1, SIDE, SIDE), "unit", class_names=dataset.class_names),
            sizes=(dataset.train_size, dataset.test_size),
            settings=settings,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            val_size=val_size,
            split_seed=split_seed,
            validate_on_test=validate_on_test,
            binarization=binarization,
            dequantize=dequantize,
            seed=seed,
        )

    @staticmethod
    def suits(name: str) -> bool:
        """Return whether a set holds grey-level digits, which the shipped classifier knows."""
        return name in ("mnist", "mnist_subset")

    @property
    def suits_classifier(self) -> bool:
        """Whether the images are grey-level digits."""
        return self.suits(self.name)

    @property
    def is_drawn(self) -> bool:
        """Whether pixels are drawn here: those of the Larochelle split were drawn before."""
        return super().is_drawn and not self.drawn_before

    def split_order(self, size: int) -> Tensor:
        """Return the training images in an order whose first ones are held out."""
        if self.drawn_before:  # the validation file follows the training file
            return torch.arange(size).roll(LAROCHELLE_VALIDATION)
        return super().split_order(size)

    def prepare_data(self) -> None:
        """Fetch the files if they aren't there, verified by checksum."""
        fetch(self.name, self.folder)

    def read(self, file: File) -> tuple[Tensor, Tensor | None]:
        """Return all images ``[N, 1, 28, 28]``, uint8, and labels ``[N]``, int64, of a file."""
        return read(self.name, self.folder, file)

    def take_drawing(self, drawing: Tensor) -> Tensor:
        """Bring a drawing to MNIST's form: its ink in a box of 20 × 20, centred in 28 × 28.

        LeCun et al. (1998) did so with NIST's digits: the centre of mass is in the middle. One of
        MNIST's own digits, wherever it lies, comes back as it is.

        Args:
            drawing: ``[H, W]`` in [0, 1], white on black.

        Returns:
            ``[1, 28, 28]`` in [0, 1]; black where nothing was drawn.
        """
        rows, columns = drawing.amax(1).nonzero().flatten(), drawing.amax(0).nonzero().flatten()
        image = torch.zeros(1, SIDE, SIDE)
        if not len(rows):
            return image
        ink = drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = (max(1, round(BOX * length / max(ink.shape))) for length in ink.shape)
        if (height, width) != ink.shape:
            whole = ink[None, None]
            ink = interpolate(whole, size=(height, width), mode="bilinear", antialias=True)[0, 0]
            ink = ink.clamp(0, 1)
        # In MNIST the middle is pixel 14, counted from 0. Ink of at most 20 pixels stays inside
        # there, unless its mass lies at an edge of its box: then it keeps to the frame.
        top, left = (
            min(max(round(SIDE / 2 - middle), 0), SIDE - length)
            for middle, length in zip(_middle(ink), ink.shape, strict=True)
        )
        image[0, top : top + height, left : left + width] = ink
        return image


def _middle(ink: Tensor) -> tuple[float, float]:
    """Return the row and the column of the centre of mass."""
    mass = ink.double().sum()
    rows, columns = (
        ink.double().sum(other) @ torch.arange(ink.shape[1 - other]).double() / mass
        for other in (1, 0)
    )
    return rows.item(), columns.item()
