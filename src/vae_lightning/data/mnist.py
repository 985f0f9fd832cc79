"""The LightningDataModule that owns MNIST."""

from typing import Annotated, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, validate_call
from torch import Tensor

from vae_lightning.data.batches import ALL, Batch, Batches, Seed, Share, ShuffledBatches, binarize, dequantize, keyed_generator
from vae_lightning.data.sources import DATASETS, data_folder, fetch, read

CLASSES = 10
"""Labels of MNIST and its relatives."""

LAROCHELLE_VALIDATION = 10_000
"""Validation images of the Larochelle split."""


class MNISTDataModule(LightningDataModule):
    """Training, validation and test images of MNIST or of a set in its format.

    The canonical test set is kept apart. The validation images are taken from the training file by ``split_seed``, so that runs
    with different seeds are validated on the same images; fixed binarisation goes by ``split_seed`` as well.
    """

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
        binarization: Literal["none", "stochastic", "static"] = "none",
        dequantize: bool = False,
        seed: Seed = 1,
    ) -> None:
        """Choose the set and its split; nothing is read before ``setup``.

        Args:
            name: which set.
            dir: where its files lie or will be put; by default the user's cache folder.
            batch_size: images per training step, of each process.
            eval_batch_size: images per step of validation and test, of each process; moves no figure.
            val_size: how many of the training images are held out for validation; 0 for none.
            split_seed: which ones.
            validate_on_test: look at the test images after each epoch, as the PyTorch VAE example does. Asks for
                ``val_size=0``, and nothing may be chosen by what they show.
            binarization: ``none`` takes grey levels as probabilities; ``stochastic`` draws each pixel black or white anew at
                every visit in training, and once for validation and test; ``static`` once for all.
            dequantize: spread each grey level evenly over its 256th of [0, 1], anew at every visit in training, and once for
                validation and test.
            seed: seed of the order in which training images are visited.

        Raises:
            ValidationError: a value is of the wrong type or out of range.
            ValueError: the values don't go together.
        """
        super().__init__()
        self.save_hyperparameters(ignore=["dir"])  # the file system of one machine is no part of the protocol
        train_size = DATASETS[name].train_size
        if val_size >= train_size:
            raise ValueError(f"val_size={val_size}: {name} has {train_size} training images, so at most {train_size - 1}")
        if validate_on_test and val_size:
            raise ValueError(f"validate_on_test=true: nothing is held out then, so val_size={val_size} must be 0")
        if dequantize and binarization != "none":
            raise ValueError(f"dequantize=true: spreads grey levels, of which binarization={binarization} leaves none")
        if name == "larochelle" and (val_size, binarization) != (LAROCHELLE_VALIDATION, "static"):
            raise ValueError(
                f"val_size={val_size}: the Larochelle split brings its own {LAROCHELLE_VALIDATION:,} validation images, drawn "
                f"once: val_size={LAROCHELLE_VALIDATION} binarization=static, as data=larochelle sets them"
            )
        self.dataset = name
        self.folder = data_folder(name, dir)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.validate_on_test = validate_on_test
        self.binarization = binarization
        self.dequantize = dequantize
        self.split_seed = split_seed
        self.seed = seed
        # RandomState is the one generator whose stream NumPy has promised never to change.
        order = torch.from_numpy(np.random.RandomState(split_seed).permutation(train_size))
        if name == "larochelle":
            order = torch.arange(train_size).roll(val_size)  # the validation file follows the training file
        self.val_indices = order[:val_size].sort().values
        self.train_indices = order[val_size:].sort().values
        self.test_indices = torch.arange(DATASETS[name].test_size)
        self.images: dict[str, Tensor] = {}
        self.labels: dict[str, Tensor] = {}

    @property
    def holds_out(self) -> bool:
        """Whether validation images are held out, so that something may be chosen by them."""
        return len(self.val_indices) > 0

    @property
    def device(self) -> torch.device:
        """Where batches are made: on the device that trains, so that no step waits for a copy; on the CPU without a trainer."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        # Whether Apple's MPS selects bytes by index hasn't been tried.
        return torch.device("cpu") if device.type == "mps" else device

    @property
    def share(self) -> Share:
        """Which of the processes that train together this one is."""
        return Share(self.trainer.global_rank, self.trainer.world_size) if self.trainer else ALL

    def prepare_data(self) -> None:
        """Fetch the files if they aren't there, verified by checksum."""
        fetch(self.dataset, self.folder)

    def setup(self, stage: str | None = None) -> None:
        """Read the whole set into memory, once, whatever the stage."""
        if not self.images:
            for number, file in enumerate(("train", "test")):
                images, self.labels[file] = read(self.dataset, self.folder, file)
                if self.binarization != "none" and self.dataset != "larochelle":
                    drawn = binarize(images, keyed_generator(self.split_seed, number))
                    if self.binarization == "stochastic" and file == "train":
                        drawn[self.train_indices] = images[self.train_indices]  # drawn at each visit
                    images = drawn
                self.images[file] = images

    def train_dataloader(self) -> ShuffledBatches:
        """Return the training images in an order that is a function of (seed, epoch)."""
        drawing = binarize if self.binarization == "stochastic" else dequantize if self.dequantize else None
        images, labels = self.images["train"].to(self.device), self.labels["train"].to(self.device)
        progress = self._batches_done
        return ShuffledBatches(images, labels, self.train_indices, self.batch_size, self.seed, drawing, progress, self.share)

    def _batches_done(self) -> int:
        """Return how many batches of this epoch a run that goes on has been through, by the Trainer's own count."""
        return int(self.trainer.fit_loop.batch_idx) + 1 if self.trainer and self.trainer.training else 0

    def val_dataloader(self) -> Batches | list[Batches]:
        """Return the validation images; with ``validate_on_test`` the test images; without either nothing."""
        if self.validate_on_test:
            return self.test_dataloader()
        if not self.holds_out:
            return []
        return self.split("val", share=self.share)

    def test_dataloader(self) -> Batches:
        """Return the test images."""
        return self.split("test", share=self.share)

    def split(self, name: Literal["train", "val", "test"], limit: int | None = None, share: Share = ALL) -> Batches:
        """Return a split for evaluation, in the order of its file and without a new draw; ``limit`` takes its first images.

        It is whole, unless a process takes its share.

        Raises:
            ValueError: the split has no images.
        """
        file, indices = {
            "train": ("train", self.train_indices),
            "val": ("train", self.val_indices),
            "test": ("test", self.test_indices),
        }[name]
        if not len(indices):
            raise ValueError(f"split={name}: no images are held out with val_size=0")
        images = self.images[file]
        if name == "train" and self.binarization == "stochastic":
            images = binarize(images, keyed_generator(self.split_seed, 0))
        if self.dequantize:
            images = dequantize(images, keyed_generator(self.split_seed, ("train", "test").index(file), 1))
        labels = self.labels[file].to(self.device)
        return Batches(images.to(self.device), labels, indices[:limit], self.eval_batch_size, share)

    @property
    def shows_digits(self) -> bool:
        """Whether the images are grey-level digits: what the shipped classifier knows."""
        return self.dataset in ("mnist", "mnist_subset")

    def grey(self, file: Literal["train", "test"], n: int) -> Tensor:
        """Return the grey levels of a file's first ``n`` images, whatever the protocol draws of them: ``[n, 1, 28, 28]``."""
        return read(self.dataset, self.folder, file)[0][:n].float() / 255

    def examples(self, n: int) -> Batch:
        """Return the first ``n`` validation images, or test images where none are held out."""
        file, indices = ("train", self.val_indices) if self.holds_out else ("test", self.test_indices)
        return next(iter(Batches(self.images[file], self.labels[file], indices[:n], n)))
