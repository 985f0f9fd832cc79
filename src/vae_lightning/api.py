"""The package from Python: train with ``fit``, and use a trained model with ``load``."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from vae_lightning.data.given import as_images
from vae_lightning.models.base import Autoencoder, Batch, LatentModel, Model
from vae_lightning.models.noise import SamplingNoise

Images = Tensor | np.ndarray | Image.Image | Sequence[Any]
"""One image or several: a tensor, an array, a PIL picture, or a list of such.

Numbers are bytes, or lie in [0, 1]. Shapes are ``[C, H, W]``, ``[H, W, C]`` or, of grey images,
``[H, W]``; all with or without a first axis of images.
"""


class Codes(dict[str, Tensor]):
    """The codes of examples: ``codes.loc`` and ``codes.scale`` of a VAE, each ``[N, D]``."""

    def __getattr__(self, name: str) -> Tensor:
        """Return a column by its name."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"these codes have {', '.join(self)}, not {name}") from None


class TrainedModel:
    """A trained model that takes images as they come, and answers in tensors on the CPU.

    Attributes:
        model: the model itself, in evaluation mode; its methods take ``Batch`` and ``Noise``.
    """

    def __init__(self, model: Model) -> None:
        """Take a model."""
        self.model = model.eval().requires_grad_(False)

    def __repr__(self) -> str:
        """Return what the model is, in a few words."""
        return f"<trained {self.model.describe()} of {list(self.model.data.shape)}>"

    def encode(self, images: Images, label: int | Sequence[int] | None = None) -> Codes:
        """Return the codes of images: of a VAE mean and scale of q(z|x), each ``[N, D]``.

        Args:
            images: see ``Images``.
            label: of a conditional model, their labels, or one for all.

        Raises:
            ValueError: the images have another shape or range, or the model has no codes.
        """
        model = self._of(Autoencoder, "codes")
        with torch.no_grad():
            return Codes(model.encode(self._batch(images, label)))

    def reconstruct(self, images: Images, label: int | Sequence[int] | None = None) -> Tensor:
        """Return images as their codes give them back, ``[N, C, H, W]``; see ``encode``."""
        model: Autoencoder = self._of(Autoencoder, "codes")
        with torch.no_grad():
            return model.reconstruct(self._batch(images, label))

    def decode(
        self, z: Tensor | np.ndarray | Sequence[float], label: int | Sequence[int] | None = None
    ) -> Tensor:
        """Return the images of latents ``[N, D]`` or ``[D]``: ``[N, C, H, W]``.

        Args:
            z: latents.
            label: of a conditional model, their labels, or one for all.

        Raises:
            ValueError: they have another size, or the model has no latents.
        """
        model: LatentModel = self._of(LatentModel, "latents")
        latents = torch.as_tensor(z, dtype=model.dtype)
        if latents.ndim == 1:
            latents = latents.unsqueeze(0)
        if latents.ndim != 2 or latents.shape[1] != model.latent_dim:
            raise ValueError(
                f"latents of shape {list(latents.shape)}; this model takes [N, {model.latent_dim}]"
            )
        with torch.no_grad():
            return model.decode(latents, self._labels(label, len(latents)))

    def sample(
        self,
        n: int = 1,
        label: int | Sequence[int] | None = None,
        seed: int = 0,
        temperature: float = 1.0,
    ) -> Tensor:
        """Return new examples, ``[n, ...]``; the same ones for the same seed.

        Args:
            n: how many.
            label: of a conditional model, their labels, or one for all; by default they are drawn.
            seed: of the noise.
            temperature: below 1 they are closer to what is usual.

        Raises:
            ValueError: a label isn't known, or there are none.
        """
        y = None if label is None else self._labels(label, n)
        with torch.no_grad():
            return self.model.sample(n, SamplingNoise(n, seed), y, temperature)

    def _of(self, kind: type[Any], what: str) -> Any:
        if not isinstance(self.model, kind):
            raise ValueError(f"a {self.model.describe()} has no {what}")
        return self.model

    def _batch(self, images: Images, label: int | Sequence[int] | None) -> Batch:
        data = self.model.data
        if data.is_of_tokens:
            x = torch.as_tensor(np.asarray(images))
            x = x.unsqueeze(0) if x.ndim == len(data.shape) else x
            if tuple(x.shape[1:]) != data.shape or x.is_floating_point():
                raise ValueError(f"tokens are whole numbers [N, {', '.join(map(str, data.shape))}]")
        else:
            x = as_images(images, data.shape)
        return self.model.take(Batch(x, self._labels(label, len(x)), torch.arange(len(x))))

    def _labels(self, label: int | Sequence[int] | None, n: int) -> Tensor | None:
        classes = self.model.num_classes
        if not classes:
            if label is not None:
                raise ValueError(f"label={label}: this model knows no labels")
            return None
        if label is None:
            raise ValueError(f"this model is conditional: give label=0 to label={classes - 1}")
        y = torch.as_tensor(label).long().expand(n) if np.ndim(label) == 0 else torch.tensor(label)
        if len(y) != n or y.min() < 0 or y.max() >= classes:
            raise ValueError(f"label={label}: give one of 0 to {classes - 1}, or {n} of them")
        return y


@dataclass(frozen=True)
class Run:
    """What ``fit`` returns.

    Attributes:
        model: the trained model, of the best checkpoint.
        metrics: the figures of the test split, by name, as ``test/elbo``.
        directory: the run directory, with checkpoints, dashboard and pictures.
    """

    model: TrainedModel
    metrics: dict[str, float]
    directory: Path


def load(path: str | Path) -> TrainedModel:
    """Load a trained model.

    Args:
        path: a run directory or a checkpoint file.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ConfigurationError: the file is damaged, or not a checkpoint of this project; a ValueError.
    """
    from vae_lightning.runs.checkpoints import load_model

    return TrainedModel(load_model(path))


def fit(*overrides: str, data: Any = None, model: Model | None = None) -> Run:
    """Train a model as ``python -m vae_lightning.train`` does, and test it.

    Args:
        *overrides: what would be typed: ``"model.latent_dim=2"``, ``"trainer.max_epochs=3"``.
        data: images in place of ``data=…``: a tensor, an array, or a dataset of images or of pairs
            of image and label. Settings of the split are typed as ``"data.val_share=0.2"``.
        model: a model in place of ``model=…``, built for the data's ``DataSpec``.

    Raises:
        ConfigurationError: a value is refused; a ValueError.
    """
    from vae_lightning.cli.command import command
    from vae_lightning.training import experiment
    from vae_lightning.training.run import run

    results: list[Run] = []

    def task(config: DictConfig) -> None:
        parts = experiment.build(config, data, model)
        figures = run(parts)
        trained = parts.module.model.to("cpu")
        results.append(Run(TrainedModel(trained), figures, parts.directory))

    line = [*(["data=given"] if data is not None else []), *overrides]
    with _typed(line):
        command("train", no_sweep="from Python, call fit once for each job")(task)()
    if not results:
        raise ValueError(f"{' '.join(overrides)}: nothing was trained")
    return results[0]


@contextmanager
def _typed(line: list[str]) -> Iterator[None]:
    """Let a command find a line in place of this process's own, and raise its errors."""
    own, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["fit", *line], "1"
    try:
        yield
    finally:
        sys.argv = own
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before
