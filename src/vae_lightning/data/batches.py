"""Whole batches by index from one tensor, in an order that is a function of (seed, epoch)."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


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


class Batches:
    """A loader for a data set that fits in memory: each batch is one selection by index, with no workers and no collation.

    The images come in the order of their indices.
    """

    def __init__(self, images: Tensor, labels: Tensor, indices: Tensor, batch_size: int) -> None:
        """Take all images ``[N, C, H, W]`` (uint8) and labels ``[N]`` of a file, and which of them to visit."""
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
        """Yield the batches of one epoch."""
        for index in torch.split(self.order(), self.batch_size):
            yield Batch(self.images[index].float() / 255, self.labels[index], index)


class ShuffledBatches(Batches):
    """The same in a new order in each epoch, a function of (seed, epoch)."""

    def __init__(self, images: Tensor, labels: Tensor, indices: Tensor, batch_size: int, seed: int) -> None:
        """Take the seed of the order as well."""
        super().__init__(images, labels, indices, batch_size)
        self.seed = seed
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
