"""The noise that latents are made of: each draw a function of what it belongs to, so that no random state is ever saved."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lightning.data import keyed_generator

EVALUATION_SEED = 1312_6114
"""Seed of all evaluation noise, the same for every run, so that figures of different runs compare."""

_BLOCK = 500  # images whose evaluation noise is drawn together

_BATCHES = 50  # batches whose training noise is drawn together
_NUMBERS = 2**24  # and at most how many numbers


def training_noise(seed: int, batch: int, shape: Sequence[int]) -> Tensor:
    """Return standard normal noise that is a function of the run's seed and the count of batches seen before."""
    return torch.randn(*shape, generator=keyed_generator(seed, batch), dtype=torch.float32)


class TrainingNoise:
    """The noise of a run's batches, drawn and moved to a device for some of them at once, so that few steps wait for a copy."""

    def __init__(self, seed: int) -> None:
        """Take the run's seed."""
        self.seed = seed
        self._first = 0
        self._block = torch.empty(0)

    def of(self, batch: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """Return the ``training_noise`` of a batch, whichever were asked for before."""
        block = self._block
        known = 0 <= batch - self._first < len(block) and block.shape[1:] == tuple(shape) and block.device == device
        if not known:
            together = max(1, min(_BATCHES, _NUMBERS // math.prod(shape)))
            batches = range(batch, batch + together - batch % together)
            self._first = batch
            self._block = torch.stack([training_noise(self.seed, each, shape) for each in batches]).to(device)
        return self._block[batch - self._first]


def evaluation_noise(indices: Tensor, latent_dim: int, samples: Sequence[int] = (0,)) -> Tensor:
    """Return standard normal noise ``[S, B, D]``, each row a function of the image's index and the sample's alone.

    So no figure moves with the batch size, the order of the images or the seed of the training.
    """
    indices = indices.cpu()
    noise = torch.empty(len(samples), len(indices), latent_dim, dtype=torch.float32)
    for block in torch.unique(indices // _BLOCK).tolist():
        rows = (indices // _BLOCK == block).nonzero().flatten()
        shown = indices[rows] % _BLOCK
        for number, sample in enumerate(samples):
            generator = keyed_generator(EVALUATION_SEED, block, sample)
            table = torch.randn(_BLOCK, latent_dim, generator=generator, dtype=torch.float32)
            noise[number].index_copy_(0, rows, table.index_select(0, shown))
    return noise
