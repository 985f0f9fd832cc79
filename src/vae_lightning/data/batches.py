"""Whole batches by index from one tensor, in an order that is a function of (seed, epoch)."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that NumPy and torch both take."""


class Share(NamedTuple):
    """Which of several processes this one is, each of which takes its rows of every batch."""

    number: int = 0
    processes: int = 1

    def rows(self, images: int) -> slice:
        """Return its rows of a batch of so many images; together the shares are the batch, and none is larger by two."""
        return slice(images * self.number // self.processes, images * (self.number + 1) // self.processes)


ALL = Share()
"""The share of the only process."""


class Batch(NamedTuple):
    """What a step receives.

    Attributes:
        images: ``[B, C, H, W]``, float32 in [0, 1].
        labels: ``[B]``, int64.
        indices: ``[B]``, int64; each image's position in its file.
        total: how many images all processes have together in this batch; None: these are all.
        first: the place of this process's first among them.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    total: int | None = None
    first: int = 0

    def to(self, device: torch.device) -> "Batch":
        """Return the same batch on a device. Lightning asks for this once, where it would look through a plain tuple."""
        return Batch(self.images.to(device), self.labels.to(device), self.indices.to(device), self.total, self.first)

    def take(self, rows: Tensor | list[int]) -> "Batch":
        """Return some of its images, by their places."""
        return Batch(self.images[rows], self.labels[rows], self.indices[rows])


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
    at once. Of several processes each takes its rows of each batch, so that all have as many batches; one of the last may be
    empty.
    """

    def __init__(self, images: Tensor, labels: Tensor, indices: Tensor, batch_size: int, share: Share = ALL) -> None:
        """Take all images ``[N, C, H, W]`` (uint8, or float32 in [0, 1]) and labels ``[N]`` of a file, and which to visit.

        Images and labels lie on one device, the indices on the CPU. ``batch_size`` is one process's.
        """
        self.images = images
        self.labels = labels
        self.indices = indices
        self.batch_size = batch_size
        self.share = share

    @property
    def total(self) -> int:
        """Images in a batch of all processes together."""
        return self.batch_size * self.share.processes

    def of_all(self) -> Self:
        """Return the same batches whole, whatever this process's share of them is."""
        whole = copy.copy(self)
        whole.batch_size, whole.share = self.total, ALL
        return whole

    def order(self) -> Tensor:
        """Return the indices in the order of the visit."""
        return self.indices

    def __len__(self) -> int:
        """Return the number of batches, a last short one included."""
        return math.ceil(len(self.indices) / self.total)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one epoch that are still to come."""
        done = self.done()
        order = self.order().to(self.images.device)
        for position, index in enumerate(torch.split(order, self.total)[done:], done):
            rows = self.share.rows(len(index))
            images = self.select(index, rows, position)
            if images.dtype == torch.uint8:
                images = images.float().div_(255)
            own, total = index[rows], len(index) if self.share.processes > 1 else None
            yield Batch(images, self.labels.index_select(0, own), own, total, rows.start)

    def select(self, index: Tensor, rows: slice, position: int) -> Tensor:
        """Return the images that a process is shown of a batch, given the batch's position in the epoch."""
        return self.images.index_select(0, index[rows])  # images[index] takes many times as long

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
        share: Share = ALL,
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
            share: which rows of each batch are this process's; by default all.
        """
        super().__init__(images, labels, indices, batch_size, share)
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

    def select(self, index: Tensor, rows: slice, position: int) -> Tensor:
        """Return the images that a process is shown of a batch, given the batch's position in the epoch."""
        if self.drawing is None:
            return super().select(index, rows, position)
        # All of them are drawn, so that a row is the same however many processes there are. The last number of the key sets
        # this apart from the noise of the training steps.
        return self.drawing(self.images.index_select(0, index), keyed_generator(self.seed, self.epoch, position, 1))[rows]
