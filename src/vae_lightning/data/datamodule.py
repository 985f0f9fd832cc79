"""The LightningDataModule that every data set is: splits, seeds, loaders."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor

from vae_lightning.data.batches import ALL, Batches, Share, ShuffledBatches
from vae_lightning.data.modality import IMAGES, Modality
from vae_lightning.data.protocol import WHITE, binarize, dequantize
from vae_lightning.models.base import Batch, DataSpec, target_of
from vae_lightning.models.noise import keyed_generator

Binarization = Literal["none", "stochastic", "static"]
File = Literal["train", "test"]
Split = Literal["train", "val", "test"]

_BINARIZATIONS = {
    "none": "none: grey levels",
    "stochastic": "stochastic: drawn anew at every visit in training, once for validation and test",
    "static": "static: drawn once",
}


class DataModule(LightningDataModule, ABC):
    """A data set that fits in memory: a training file and a test file of examples.

    The test set is kept apart. Validation examples are taken from the training file by
    ``split_seed``, so that runs with different seeds are validated on the same examples; fixed
    binarisation uses ``split_seed`` as well. A subclass says what the data is and reads it:
    ``read``, and ``prepare_data`` where files have to be fetched. Its constructor takes plain
    values, among them ``seed``.

    Attributes:
        modality: how the examples are looked at, written and read.
        name: of the data set.
        settings: the arguments of the constructor, without the folder of the data: the protocol
            that checkpoints store.
        pairs: labels between whose first examples interpolations go; by default neighbours.
        label_noun: what a label is called beside a legend.
    """

    modality: ClassVar[Modality] = IMAGES
    pairs: ClassVar[Sequence[tuple[int, int]]] = ()
    label_noun: str = "label"
    name: str  # Lightning's own may be None

    def __init__(
        self,
        *,
        name: str,
        spec: DataSpec,
        sizes: tuple[int, int] | None,
        settings: Mapping[str, Any],
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        val_size: int = 0,
        split_seed: int = 0,
        validate_on_test: bool = False,
        binarization: Binarization = "none",
        dequantize: bool = False,
        seed: int = 1,
    ) -> None:
        """Choose the splits; nothing is read before ``setup``.

        Args:
            name: of the data set.
            spec: of the examples as they are in the files; uint8 files hold ``unit`` values.
            sizes: examples in the training file and in the test file; None: ``setup`` finds out
                and sets the indices of the splits.
            settings: the subclass's arguments.
            batch_size: examples per training step of each process.
            eval_batch_size: examples per step of validation and test; changes no figure that is of
                an example alone.
            val_size: how many training examples are held out for validation; 0: none.
            split_seed: which ones.
            validate_on_test: look at the test examples after each epoch; nothing may be chosen by
                what they show. Needs ``val_size=0``.
            binarization: ``none`` takes grey levels as probabilities; ``stochastic`` draws each
                pixel black or white anew at every visit in training, and once for validation and
                test; ``static`` draws once for all.
            dequantize: spread each grey level over its 256th of [0, 1], anew at every visit in
                training, and once for validation and test.
            seed: seed of the order in which training examples are visited.

        Raises:
            ValueError: the values don't go together.
        """
        super().__init__()
        train_size, test_size = sizes or (val_size + 1, 0)
        if val_size >= train_size:
            there = f"{name} has {train_size} training {self.modality.noun}s"
            raise ValueError(f"val_size={val_size}: {there}, so at most {train_size - 1}")
        if validate_on_test and val_size:
            raise ValueError(
                f"validate_on_test=true: nothing is held out then, so val_size={val_size} must be 0"
            )
        if dequantize and binarization != "none":
            raise ValueError(
                f"dequantize=true: spreads grey levels, and binarization={binarization} leaves none"
            )
        values = "binary" if binarization != "none" else "continuous" if dequantize else spec.values
        self.spec = DataSpec(spec.shape, values, spec.vocabulary, spec.class_names)
        self.name = name
        self.settings = dict(settings)
        self.save_hyperparameters(
            {"data": {"target": target_of(type(self)), "settings": self.settings}}
        )
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.validate_on_test = validate_on_test
        self.binarization = binarization
        self.dequantize = dequantize
        self.split_seed = split_seed
        self.seed = seed
        self.is_sized = sizes is not None
        order = self.split_order(train_size if sizes else 0)
        self.val_indices = order[:val_size].sort().values
        self.train_indices = order[val_size:].sort().values
        self.test_indices = torch.arange(test_size)
        self.x: dict[str, Tensor] = {}
        self.y: dict[str, Tensor | None] = {}

    @abstractmethod
    def read(self, file: File) -> tuple[Tensor, Tensor | None]:
        """Return all examples of a file, ``[N, ...]``, and their labels ``[N]``, int64, if any."""

    def split_order(self, size: int) -> Tensor:
        """Return the training examples in an order whose first ones are held out."""
        # RandomState is the one generator whose stream NumPy has promised never to change.
        return torch.from_numpy(np.random.RandomState(self.split_seed).permutation(size))

    def take_drawing(self, drawing: Tensor) -> Tensor | None:
        """Bring a drawing ``[H, W]`` in [0, 1], white on black, to the form of an example.

        None: this data isn't drawn by hand, and the explorer shows no canvas.
        """
        return None

    @property
    def holds_out(self) -> bool:
        """Whether validation examples are held out, so that something may be chosen by them."""
        return len(self.val_indices) > 0

    @property
    def is_drawn(self) -> bool:
        """Whether pixels of the files are drawn black or white here."""
        return self.binarization != "none"

    @property
    def suits_classifier(self) -> bool:
        """Whether the shipped classifier, which measures samples, knows these examples."""
        return False

    @property
    def device(self) -> torch.device:
        """Where batches are made: on the device that trains; on the CPU without a trainer."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        # Whether Apple's MPS selects bytes by index hasn't been tried.
        return torch.device("cpu") if device.type == "mps" else device

    @property
    def share(self) -> Share:
        """Which of the processes that train together this one is."""
        return Share(self.trainer.global_rank, self.trainer.world_size) if self.trainer else ALL

    def setup(self, stage: str | None = None) -> None:
        """Read the whole set into memory, once, whatever the stage."""
        if not self.x:
            files: tuple[File, File] = ("train", "test")
            for number, file in enumerate(files):
                x, self.y[file] = self.read(file)
                if self.is_drawn:
                    drawn = binarize(x, keyed_generator(self.split_seed, number))
                    if self.binarization == "stochastic" and file == "train":
                        drawn[self.train_indices] = x[self.train_indices]  # drawn at each visit
                    x = drawn
                self.x[file] = x

    def train_dataloader(self) -> ShuffledBatches:
        """Return the training examples in an order that is a function of (seed, epoch)."""
        x, y = (self._placed(each["train"]) for each in (self.x, self.y))
        assert x is not None
        return ShuffledBatches(
            x,
            y,
            self.train_indices,
            self.batch_size,
            self.seed,
            self.drawing(),
            self._batches_done,
            self.share,
            is_fixed=bool(self.trainer and self.trainer.overfit_batches),  # type: ignore[attr-defined]
        )

    def drawing(self) -> Callable[[Tensor, torch.Generator], Tensor] | None:
        """Return what draws training examples anew at each visit; None: they stay as they are."""
        if self.is_drawn and self.binarization == "stochastic":
            return binarize
        return dequantize if self.dequantize else None

    def _placed(self, values: Tensor | None) -> Tensor | None:
        return None if values is None else values.to(self.device)

    def _batches_done(self) -> int:
        """Return how many batches of this epoch a resumed run has taken, by the Trainer's count."""
        in_training = self.trainer and self.trainer.training
        return int(self.trainer.fit_loop.batch_idx) + 1 if self.trainer and in_training else 0

    def val_dataloader(self) -> Batches | list[Batches]:
        """Return the validation examples; with ``validate_on_test`` the test examples; or none."""
        if self.validate_on_test:
            return self.test_dataloader()
        if not self.holds_out:
            return []
        return self.split("val", share=self.share)

    def test_dataloader(self) -> Batches:
        """Return the test examples."""
        return self.split("test", share=self.share)

    def split(self, name: Split, limit: int | None = None, share: Share = ALL) -> Batches:
        """Return a split for evaluation, in the order of its file and without a new draw.

        Args:
            name: which split.
            limit: only its first examples.
            share: a process's share of each batch; by default the split is whole.

        Raises:
            ValueError: the split is empty.
        """
        splits: dict[Split, tuple[File, Tensor]] = {
            "train": ("train", self.train_indices),
            "val": ("train", self.val_indices),
            "test": ("test", self.test_indices),
        }
        file, indices = splits[name]
        if not len(indices):
            raise ValueError(f"split={name}: nothing is held out with val_size=0")
        x = self.x[file]
        if name == "train" and self.is_drawn and self.binarization == "stochastic":
            x = binarize(x, keyed_generator(self.split_seed, 0))
        if self.dequantize:
            number = ("train", "test").index(file)
            x = dequantize(x, keyed_generator(self.split_seed, number, 1))
        y = self._placed(self.y[file])
        return Batches(x.to(self.device), y, indices[:limit], self.eval_batch_size, share)

    def training_examples(self) -> Batches:
        """Return the training examples as they are in memory, before a draw at each visit."""
        return Batches(self.x["train"], self.y["train"], self.train_indices, self.eval_batch_size)

    def grey(self, file: File, n: int) -> Tensor:
        """Return a file's first ``n`` images as they were read, ``[n, C, H, W]`` in [0, 1]."""
        return self.read(file)[0][:n].float() / WHITE

    def examples(self, n: int) -> Batch:
        """Return the first ``n`` validation examples; without any, the first of the test set."""
        held_out = self.holds_out
        file, indices = ("train", self.val_indices) if held_out else ("test", self.test_indices)
        return next(iter(Batches(self.x[file], self.y[file], indices[:n], n)))

    def protocol(self) -> dict[str, Any]:
        """Return the protocol of the data as ``metrics.json`` states it."""
        protocol = {
            "data": self.name,
            "val_size": len(self.val_indices),
            "split_seed": self.split_seed,
            "validate_on_test": self.validate_on_test,
        }
        if self.spec.is_of_tokens:
            return protocol
        drawn = {"binarization": _BINARIZATIONS[self.binarization], "dequantize": self.dequantize}
        return protocol | drawn
