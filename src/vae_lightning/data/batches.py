"""Whole batches by index from one tensor, in an order that is a function of (seed, epoch)."""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that NumPy and torch both take."""


class Batch(NamedTuple):
    """What a step receives.

    Attributes:
        images: ``[B, C, H, W]``, float32 in [0, 1].
        labels: ``[B]``, int64.
        indices: ``[B]``, int64; each image's position in its file.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on a device. Lightning asks for this once, where it would look through a plain tuple."""
        return Batch(self.images.to(device), self.labels.to(device), self.indices.to(device))


def keyed_generator(*key: int) -> torch.Generator:
    """Return a CPU generator whose draws are a function of ``key``: whole numbers from 0, at most four."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def binarize(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each pixel white with its grey level as probability.

    Args:
        images: grey levels, uint8.
        generator: where the draws come from, on the CPU.

    Returns:
        The same shape and type, 0 or 255.
    """
    draws = torch.rand(images.shape, generator=generator, dtype=torch.float32).to(images.device)
    return (draws < images.float() / 255).to(torch.uint8) * 255  # draws lie in [0, 1): 255 is always white, 0 never


def dequantize(images: Tensor, generator: torch.Generator) -> Tensor:
    """Spread each grey level evenly over its 256th of [0, 1], so that a density can be fitted.

    A model's log-density of the result is, in expectation, a lower bound on its log-mass of the grey levels (Theis et al. 2016,
    arXiv:1511.01844), on the scale of [0, 256].

    Args:
        images: grey levels, uint8.
        generator: where the draws come from, on the CPU.

    Returns:
        The same shape, float32 in [0, 1].
    """
    draws = torch.rand(images.shape, generator=generator, dtype=torch.float32).to(images.device)
    return (images.float() + draws) / 256


class Batches:
    """A loader for a data set that fits in memory: each batch is one selection by index, with no workers and no collation.

    The images come in the order of their indices. A batch is made where the images lie; the order of an epoch is moved there
    at once.
    """

    def __init__(self, images: Tensor, labels: Tensor, indices: Tensor, batch_size: int) -> None:
        """Take all images ``[N, C, H, W]`` (uint8, or float32 in [0, 1]) and labels ``[N]`` of a file, and which to visit.

        Images and labels lie on one device, the indices on the CPU.
        """
        self.images = images
        self.labels = labels
        self.indices = indices
        self.batch_size = batch_size

    def order(self) -> Tensor:
        """Return the indices in the order of the visit."""
        return self.indices

    def __len__(self) -> int:
        """Return the number of batches, a last short one included."""
        return math.ceil(len(self.indices) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one epoch that are still to come."""
        done = self.done()
        order = self.order().to(self.images.device)
        for position, index in enumerate(torch.split(order, self.batch_size)[done:], done):
            images = self.draw(self.images.index_select(0, index), position)  # [index] takes many times as long
            if images.dtype == torch.uint8:
                images = images.float().div_(255)
            yield Batch(images, self.labels.index_select(0, index), index)

    def draw(self, images: Tensor, position: int) -> Tensor:
        """Return the images that a batch shows, given the batch's position in the epoch."""
        return images

    def done(self) -> int:
        """Return how many batches of the epoch were taken before, in a run that goes on."""
        return 0


class ShuffledBatches(Batches):
    """The same in a new order in each epoch, a function of (seed, epoch)."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor,
        batch_size: int,
        seed: int,
        drawing: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        progress: Callable[[], int] = int,
    ) -> None:
        """Take the seed as well.

        Args:
            images: all images of a file.
            labels: theirs.
            indices: which to visit.
            batch_size: images in a batch.
            seed: seed of the order.
            drawing: what is drawn of the images anew at each visit, a function of (seed, epoch, position).
            progress: says, when the first batch is asked for, how many of the epoch were taken before; by default none.
        """
        super().__init__(images, labels, indices, batch_size)
        self.progress = progress
        self.seed = seed
        self.drawing = drawing
        self.epoch = 0

    @property
    def sampler(self) -> "ShuffledBatches":
        """What Lightning calls ``set_epoch`` on before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return the indices in the order of this epoch's visit."""
        # RandomState is the one generator whose stream NumPy has promised never to change.
        return self.indices[torch.from_numpy(np.random.RandomState([self.seed, self.epoch]).permutation(len(self.indices)))]

    def done(self) -> int:
        """Return how many batches of the epoch were taken before, in a run that goes on."""
        return self.progress()

    def draw(self, images: Tensor, position: int) -> Tensor:
        """Return the images that a batch shows, given the batch's position in the epoch."""
        # The last number sets this apart from the noise of the training steps.
        return self.drawing(images, keyed_generator(self.seed, self.epoch, position, 1)) if self.drawing else images
