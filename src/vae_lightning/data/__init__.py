"""MNIST and its relatives: where the files come from, how they are split, the order in which images are visited."""

from vae_lightning.data.batches import Batch, Batches, Seed, keyed_generator
from vae_lightning.data.folder import read_folder
from vae_lightning.data.mnist import CLASSES, MNISTDataModule

__all__ = ["CLASSES", "Batch", "Batches", "MNISTDataModule", "Seed", "keyed_generator", "read_folder"]
