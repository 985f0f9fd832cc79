"""The package from Python: train with ``fit``, and use a trained model with ``load``."""

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from torch import Tensor

from vae_lightning.configuration import targets
from vae_lightning.data.given import as_images, as_tensor
from vae_lightning.errors import ConfigurationError
from vae_lightning.models.base import Autoencoder, Batch, LatentModel, Model
from vae_lightning.models.noise import SamplingNoise

Images = Tensor | np.ndarray | Image.Image | Sequence[Any]
"""One image or several: a tensor, an array, a PIL picture, or a list of such.

Numbers are bytes, or lie in [0, 1]. Shapes are ``[C, H, W]``, ``[H, W, C]`` or, of grey images,
``[H, W]``; all with or without a first axis of images.
"""


_GIVEN = "vae_lightning.data.given.GivenData"


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
        settings: of the data that it was trained on, by which PIL pictures are read.
    """

    def __init__(self, model: Model, settings: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Take a model, and the settings of its data."""
        self.model, self.settings = model.eval(), settings

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
        latents = as_tensor(z).to(model.dtype)
        if latents.ndim == 1:
            latents = latents.unsqueeze(0)
        if latents.ndim != 2 or latents.shape[1] != model.latent_dim:
            raise ValueError(
                f"latents of shape {list(latents.shape)}; this model takes [N, {model.latent_dim}]"
            )
        if not latents.isfinite().all():
            raise ValueError("latents must be finite numbers")
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
        if type(n) is not int or n < 1 or not 0 <= temperature < math.inf:
            raise ValueError(f"n={n}, temperature={temperature}: give n from 1, temperature from 0")
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise ValueError(f"seed={seed}: give a whole number from 0 to {2**32 - 1}")
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
            x = as_images(images, data.shape, self.settings)
        return self.model.take(Batch(x, self._labels(label, len(x)), torch.arange(len(x))))

    def _labels(self, label: int | Sequence[int] | None, n: int) -> Tensor | None:
        classes = self.model.num_classes
        if not classes:
            if label is not None:
                raise ValueError(f"label={label}: this model knows no labels")
            return None
        if label is None:
            raise ValueError(f"this model is conditional: give label=0 to label={classes - 1}")
        try:
            given = torch.from_numpy(np.array(label))
        except TypeError as error:
            raise ValueError(f"label={label}: give one of 0 to {classes - 1}") from error
        y = given.expand(n) if given.ndim == 0 else given
        whole = y.dtype in (torch.int64, torch.int32, torch.uint8) and y.ndim == 1
        if not whole or len(y) != n or y.min() < 0 or y.max() >= classes:
            raise ValueError(f"label={label}: give one of 0 to {classes - 1}, or {n} of them")
        return y.long()


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


def load(path: str | Path, allow: Sequence[str] = ()) -> TrainedModel:
    """Load a trained model.

    Args:
        path: a run directory or a checkpoint file.
        allow: packages of your own whose classes it may name; ``["__main__"]`` for those of this
            script or notebook.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ConfigurationError: the file is damaged, or not a checkpoint of this project; a ValueError.
    """
    from vae_lightning.runs import checkpoints

    if isinstance(allow, str):
        raise ConfigurationError(f'allow={allow}: must be a list, ["{allow}"]')
    if not isinstance(path, str | Path) or not str(path):
        raise ConfigurationError(f"{path!r}: give a run directory or a checkpoint file")
    before = targets.allowed()
    targets.allow(allow)
    try:
        file = checkpoints.find_checkpoint(path)
        content = checkpoints.read(file)
        settings = checkpoints.data_of(file, content)[1]
        return TrainedModel(checkpoints.build_model(file, content), settings)
    finally:
        targets.allow(before)


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
    from vae_lightning.cli.messages import explain
    from vae_lightning.runs import mirror, resume
    from vae_lightning.training import experiment
    from vae_lightning.training.run import run

    results: list[Run] = []

    def task(config: DictConfig) -> None:
        with mirror.fetched(config) as address:
            if config.resume is not None:
                config = resume.stored_configuration(config, address)
                if resume.is_finished(config):
                    raise ConfigurationError(
                        f"resume={config.resume}: is finished; vae_lightning.load takes it"
                    )
                if data is not None and config.data.get("_target_") != _GIVEN:
                    raise ConfigurationError("data: the run is of other data; leave out data=")
            parts = experiment.build(config, data, model)
        figures = run(parts)
        trained = TrainedModel(parts.module.model.to("cpu"), parts.data.settings)
        results.append(Run(trained, figures, parts.directory))

    if not all(isinstance(each, str) for each in overrides):
        raise ConfigurationError('overrides are given one by one: fit("seed=1", "data=mnist")')
    if not (model is None or isinstance(model, Model)):
        raise ConfigurationError("model: give a Model that has been built, as VAE(spec)")
    is_new = not any(each.startswith("resume=") for each in overrides)
    line = [*(["data=given"] if data is not None and is_new else []), *overrides]
    try:
        with _typed(line):
            command("train", no_sweep="from Python, call fit once for each job")(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(explain("train", error)) from error
    if not results:
        raise ConfigurationError(f"{' '.join(overrides)}: nothing was trained")
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
