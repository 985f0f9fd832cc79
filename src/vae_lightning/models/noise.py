"""Noise as a function of what it belongs to, so that no random state is ever saved.

Training noise is a function of (seed, batch, row in the batch of all processes), evaluation noise
of the example's index and the number of the sample.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

EVALUATION_SEED = 1312_6114
"""Seed of all evaluation noise: the same for every run, so that figures of runs compare."""

_BLOCK = 500  # examples whose evaluation noise is drawn together

_BATCHES = 50  # batches whose training noise is drawn together
_NUMBERS = 2**24  # and at most how many numbers

_AFTER_STEP = 2  # the last number of a key that is for the time after a step


def keyed_generator(*key: int) -> torch.Generator:
    """Return a CPU generator whose draws are a function of ``key``: one to four whole numbers."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


Draw = Callable[[Sequence[int], torch.Generator], Tensor]


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float32)


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float32)


class _Streams:
    """The three kinds of noise, each call from a stream of its own."""

    def __init__(self) -> None:
        self._calls = 0

    def normal(self, *shape: int, samples: int = 1) -> Tensor:
        """Return standard normal noise, ``[S, B, *shape]``."""
        return self._next(_normal, shape, samples)

    def uniform(self, *shape: int, samples: int = 1) -> Tensor:
        """Return noise uniform on [0, 1), ``[S, B, *shape]``."""
        return self._next(_uniform, shape, samples)

    def integers(self, high: int) -> Tensor:
        """Return whole numbers uniform on 0 … high − 1, ``[B]``."""
        return (self._next(_uniform, (), 1)[0] * high).long().clamp_(max=high - 1)

    def _next(self, draw: Draw, shape: Sequence[int], samples: int) -> Tensor:
        call, self._calls = self._calls, self._calls + 1
        return self._draw(draw, call, shape, samples)

    def _draw(self, draw: Draw, call: int, shape: Sequence[int], samples: int) -> Tensor:
        raise NotImplementedError


# -- training -----------------------------------------------------------------------------------


class TrainingNoise:
    """The noise of a run's batches.

    It is drawn, and moved to a device, for up to fifty batches at once: few steps wait for a copy.
    """

    def __init__(self, seed: int) -> None:
        """Take the run's seed.

        Raises:
            ValueError: no generator takes it.
        """
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: must be a whole number from 0 to {2**32 - 1}")
        self.seed = seed
        self._blocks: dict[tuple[Draw, int], tuple[int, Tensor]] = {}

    def of(
        self,
        batch: int,
        examples: int,
        device: torch.device,
        total: int | None = None,
        first: int = 0,
    ) -> "BatchNoise":
        """Return the noise of a batch.

        Args:
            batch: how many batches the run has seen before.
            examples: rows of this process.
            device: where the noise is needed.
            total: rows of all processes; None: this is the only one.
            first: this process's first row among them.
        """
        return BatchNoise(self, batch, slice(first, first + examples), total or examples, device)

    def after(self, step: int) -> "SamplingNoise":
        """Return noise for ``after_step``, of one row: a function of the seed and the step."""
        return SamplingNoise(1, keyed_generator(self.seed, step, 0, _AFTER_STEP))

    def draw(
        self, draw: Draw, call: int, batch: int, shape: Sequence[int], device: torch.device
    ) -> Tensor:
        """Return the noise of a batch's call, whichever batches were asked for before."""
        first, block = self._blocks.get((draw, call), (0, torch.empty(0)))
        known = block.shape[1:] == tuple(shape) and block.device == device
        if not known or not 0 <= batch - first < len(block):
            together = max(1, min(_BATCHES, _NUMBERS // max(1, math.prod(shape))))
            batches = range(batch, batch + together - batch % together)
            drawn = [draw(shape, keyed_generator(self.seed, each, call)) for each in batches]
            first, block = batch, torch.stack(drawn).to(device)
            self._blocks[draw, call] = first, block
        return block[batch - first]


class BatchNoise(_Streams):
    """The noise of one batch of the training."""

    def __init__(
        self, source: TrainingNoise, batch: int, rows: slice, total: int, device: torch.device
    ) -> None:
        """Take what the noise is a function of: see ``TrainingNoise.of``."""
        super().__init__()
        self.source = source
        self.batch = batch
        self.rows = rows
        self.total = total
        self.device = device

    def _draw(self, draw: Draw, call: int, shape: Sequence[int], samples: int) -> Tensor:
        whole = (samples, self.total, *shape)
        return self.source.draw(draw, call, self.batch, whole, self.device)[:, self.rows]


# -- evaluation ---------------------------------------------------------------------------------


class EvaluationNoise(_Streams):
    """Noise of which each row is a function of the example's index and the sample's number.

    So no figure depends on the batch size, the order of the examples or the run's seed.
    """

    def __init__(self, indices: Tensor | None, first_sample: int = 0) -> None:
        """Take the places of the examples in their file, ``[B]``, and the first sample's number."""
        super().__init__()
        if indices is None:
            raise ValueError("evaluation noise is a function of Batch.indices, which is None")
        self.indices = indices.cpu()
        self.first_sample = first_sample

    def _draw(self, draw: Draw, call: int, shape: Sequence[int], samples: int) -> Tensor:
        noise = torch.empty(samples, len(self.indices), *shape, dtype=torch.float32)
        for block in torch.unique(self.indices // _BLOCK).tolist():
            rows = (self.indices // _BLOCK == block).nonzero().flatten()
            shown = self.indices[rows] % _BLOCK
            for number in range(samples):
                generator = keyed_generator(
                    EVALUATION_SEED, block, self.first_sample + number, call
                )
                table = draw((_BLOCK, *shape), generator)
                noise[number].index_copy_(0, rows, table.index_select(0, shown))
        return noise


# -- sampling -----------------------------------------------------------------------------------


class SamplingNoise(_Streams):
    """Noise for new examples: a function of a seed, the same on every device."""

    def __init__(self, n: int, source: int | torch.Generator = 0) -> None:
        """Take how many examples, and a seed, or a CPU generator to go on with."""
        super().__init__()
        self.n = n
        if isinstance(source, int):
            source = torch.Generator().manual_seed(source)
        self.generator = source

    def integers(self, high: int) -> Tensor:
        """Return whole numbers uniform on 0 … high − 1, ``[n]``."""
        return torch.randint(high, (self.n,), generator=self.generator)

    def _draw(self, draw: Draw, call: int, shape: Sequence[int], samples: int) -> Tensor:
        return draw((samples, self.n, *shape), self.generator)
