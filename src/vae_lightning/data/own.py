"""What data sets of a user's own have in common: splits by share, and a limit on the memory."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from vae_lightning.data.datamodule import DataModule, File, Split
from vae_lightning.models.base import DataSpec

ValidationShare = Annotated[float, Field(ge=0, lt=1)]
TestShare = Annotated[float, Field(gt=0, lt=1)]

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class OwnData(DataModule):
    """Images ``[C, H, W]`` of the user's own, in one tensor. The splits are places in it."""

    def __init__(
        self,
        *,
        name: str,
        spec: DataSpec,
        settings: Mapping[str, Any],
        given: Mapping[Split, Sequence[int]],
    ) -> None:
        """Choose the splits.

        Args:
            name: of the data set.
            spec: of the images.
            settings: the subclass's arguments.
            given: the places of the images of each split. Where ``val`` or ``test`` is missing, a
                share of ``train`` is held out, by ``split_seed``.

        Raises:
            ValueError: no image is left for training.
        """
        keys = ("batch_size", "eval_batch_size", "split_seed", "binarization", "dequantize", "seed")
        chosen = {key: settings[key] for key in keys}
        super().__init__(name=name, spec=spec, sizes=None, settings=settings, **chosen)
        splits = {split: torch.tensor(places) for split, places in given.items()}
        total = sum(map(len, splits.values()))
        order = self.split_order(len(splits["train"]))
        rest = splits["train"][order]
        held_out: tuple[Split, ...] = ("test", "val")
        for split in held_out:
            if split not in splits:
                share = settings[f"{split}_share"]
                count = max(1, round(share * total)) if share else 0
                splits[split], rest = rest[:count], rest[count:]
        if not len(rest):
            raise ValueError(f"{total} images: too few; at least one is trained on")
        self.train_indices = rest.sort().values
        self.val_indices, self.test_indices = (splits[each].sort().values for each in SPLITS[1:])
        self.is_sized = True

    @abstractmethod
    def read_all(self) -> tuple[Tensor, Tensor | None, str]:
        """Return all images, ``[N, C, H, W]``, uint8, their labels, and a digest of them."""

    @cached_property
    def _all(self) -> tuple[Tensor, Tensor | None, str]:
        return self.read_all()

    def prepare_data(self) -> None:
        """Read the images."""
        _ = self._all

    def read(self, file: File) -> tuple[Tensor, Tensor | None]:
        """Return all images ``[N, C, H, W]`` and their labels; the splits choose among them."""
        return self._all[:2]

    def setup(self, stage: str | None = None) -> None:
        """Read the images, once, and note which ones they are."""
        super().setup(stage)
        self.hparams["data"]["content"] = self._all[2]

    def take_drawing(self, drawing: Tensor) -> Tensor | None:
        """Bring a drawing to the size of the images; None where they have colours."""
        channels, *size = self.spec.shape
        if channels > 1:
            return None
        scaled = interpolate(drawing[None, None], size=size, mode="bilinear", antialias=True)
        return scaled[0].clamp(0, 1)

    def protocol(self) -> dict[str, Any]:
        """Return the protocol, with the digest of the images once they have been read."""
        content = self.hparams["data"].get("content")
        return super().protocol() | ({"content": content[:12]} if content else {})


def require_room(images: int, shape: Sequence[int], memory_mb: int) -> None:
    """Check that images fit into the memory that they may take.

    Raises:
        ValueError: they don't; the message says what would.
    """
    channels, height, width = shape
    needed = images * channels * height * width / 1e6
    if needed > memory_mb:
        would = int(min(height, width) * np.sqrt(memory_mb / needed))
        raise ValueError(
            f"memory_mb={memory_mb}: {images:,} images of {height} × {width} take "
            f"{needed:,.0f} MB; a size of {would} would fit, or type "
            f"data.memory_mb={int(needed) + 1}"
        )


def digest_of(images: Tensor, labels: Tensor | None) -> str:
    """Return a SHA-256 over images and labels."""
    digest = hashlib.sha256()
    for part in torch.split(images, 1000):  # they may lie on disk
        digest.update(part.contiguous().numpy().data)
    if labels is not None:
        digest.update(labels.numpy().tobytes())
    return digest.hexdigest()
