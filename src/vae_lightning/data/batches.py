"""Whole batches by index from one tensor, in an order that is a function of (seed, epoch)."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.data import SequentialSampler

from vae_lightning.data.protocol import WHITE
from vae_lightning.models.base import Batch
from vae_lightning.models.noise import keyed_generator

Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that NumPy and torch both take."""

_DRAWING = 1  # the last number of a key that is for what is drawn of the examples


class Share(NamedTuple):
    """Which of several processes this one is. Each takes its rows of every batch."""

    number: int = 0
    processes: int = 1

    def rows(self, examples: int) -> slice:
        """Return this process's rows of a batch. No share is larger than another by two."""
        first, end = (examples * each // self.processes for each in (self.number, self.number + 1))
        return slice(first, end)


ALL = Share()
"""The share of the only process."""


class Batches:
    """A loader for data that fits in memory: a batch is one selection by index, without workers.

    Examples come in the order of their indices. A batch is made where the examples are; the order
    of an epoch is moved there at once. Of several processes each takes its rows of each batch, so
    all have as many batches; a share of the last one may be empty.
    """

    def __init__(
        self, x: Tensor, y: Tensor | None, indices: Tensor, batch_size: int, share: Share = ALL
    ) -> None:
        """Take the data.

        Args:
            x: all examples of a file, ``[N, ...]``; uint8 stands for levels of [0, 1].
            y: their labels ``[N]``, on the same device; None: there are none.
            indices: which examples to visit, on the CPU.
            batch_size: examples in a batch of one process.
            share: which rows of each batch are this process's; by default all.
        """
        self.x = x
        self.y = y
        self.indices = indices
        self.batch_size = batch_size
        self.share = share

    @property
    def total(self) -> int:
        """Examples in a batch of all processes together."""
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
        order = self.order().to(self.x.device)
        for position, index in enumerate(torch.split(order, self.total)[done:], done):
            rows = self.share.rows(len(index))
            x = self.select(index, rows, position)
            if x.dtype == torch.uint8:
                x = x.float().div_(WHITE)
            own, total = index[rows], len(index) if self.share.processes > 1 else None
            y = None if self.y is None else self.y.index_select(0, own)
            yield Batch(x, y, own, total, rows.start)

    def select(self, index: Tensor, rows: slice, position: int) -> Tensor:
        """Return this process's examples of a batch, given its position in the epoch."""
        return self.x.index_select(0, index[rows])  # x[index] takes many times as long

    def done(self) -> int:
        """Return how many batches of the epoch were taken before, in a resumed run."""
        return 0


class ShuffledBatches(Batches):
    """The same in a new order in each epoch, a function of (seed, epoch)."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None,
        indices: Tensor,
        batch_size: int,
        seed: int,
        drawing: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        progress: Callable[[], int] = int,
        share: Share = ALL,
        is_fixed: bool = False,
    ) -> None:
        """Take the data and the seed.

        Args:
            x: as in ``Batches``.
            y: as in ``Batches``.
            indices: as in ``Batches``.
            batch_size: as in ``Batches``.
            seed: seed of the order.
            drawing: draws the examples anew at each visit; its generator is a function of
                (seed, epoch, position).
            progress: returns, when the first batch is needed, how many batches of the epoch were
                taken before; by default none.
            share: as in ``Batches``.
            is_fixed: every epoch is the first one, in the order of the indices.
        """
        super().__init__(x, y, indices, batch_size, share)
        self.is_fixed = is_fixed
        self.progress = progress
        self.seed = seed
        self.drawing = drawing
        self.epoch = 0

    @property
    def sampler(self) -> "ShuffledBatches | SequentialSampler":
        """What Lightning calls ``set_epoch`` on before each epoch, or sees that nothing changes."""
        return SequentialSampler(self.indices) if self.is_fixed else self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def order(self) -> Tensor:
        """Return the indices in the order of this epoch's visit."""
        if self.is_fixed:
            return self.indices
        # RandomState is the one generator whose stream NumPy has promised never to change.
        order = np.random.RandomState([self.seed, self.epoch]).permutation(len(self.indices))
        return self.indices[torch.from_numpy(order)]

    def done(self) -> int:
        """Return how many batches of the epoch were taken before, in a resumed run."""
        return self.progress()

    def select(self, index: Tensor, rows: slice, position: int) -> Tensor:
        """Return this process's examples of a batch, given its position in the epoch."""
        if self.drawing is None:
            return super().select(index, rows, position)
        # All rows are drawn, so that a row is the same however many processes there are.
        generator = keyed_generator(self.seed, self.epoch, position, _DRAWING)
        return self.drawing(self.x.index_select(0, index), generator)[rows]
