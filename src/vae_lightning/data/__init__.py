"""MNIST and its relatives: where the files come from, how they are split, the order in which images are visited."""

from vae_lightning.data.batches import Batch
from vae_lightning.data.mnist import MNISTDataModule

__all__ = ["Batch", "MNISTDataModule"]
