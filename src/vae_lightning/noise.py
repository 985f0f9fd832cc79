"""The noise that latents are made of: each draw a function of what it belongs to, so that no random state is ever saved."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lightning.data import keyed_generator

EVALUATION_SEED = 1312_6114
"""Seed of all evaluation noise, the same for every run, so that figures of different runs compare."""

_BLOCK = 500  # images whose evaluation noise is drawn together


def training_noise(seed: int, batch: int, shape: Sequence[int]) -> Tensor:
    """Return standard normal noise that is a function of the run's seed and the count of batches seen before."""
    return torch.randn(*shape, generator=keyed_generator(seed, batch), dtype=torch.float32)


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
