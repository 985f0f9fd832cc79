"""Pictures after an epoch, in TensorBoard and as PNG files, drawn so that epochs and runs compare."""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from pydantic import ConfigDict, PositiveInt, validate_call
from torch import Tensor

from vae_lightning.pictures import reconstruction_grid, sample_grid, save_png
from vae_lightning.vae import VAE

PRIOR_SEED = 0
"""Seed of the latents of the prior samples: the same latents in every epoch and every run."""


class EpochPicture(Callback, ABC):
    """Draws a picture every ``every_n_epochs`` epochs, leaving the model's mode and the random state as they were."""

    name: str

    def __init__(self, every_n_epochs: int, count: int) -> None:
        """Take how often to draw, and how many images to show."""
        self.every_n_epochs = every_n_epochs
        self.count = count

    @abstractmethod
    def draw(self, trainer: Trainer, vae: VAE) -> Tensor:
        """Return the picture, ``[3, H, W]`` in [0, 1]; the model is in evaluation mode."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw, and write to ``images/`` in the run directory and to TensorBoard."""
        epoch = trainer.current_epoch + 1
        if epoch % self.every_n_epochs or not trainer.is_global_zero:
            return
        training = pl_module.training
        pl_module.eval()
        with torch.no_grad():
            vae: VAE = pl_module.vae  # type: ignore[assignment]
            picture = self.draw(trainer, vae).float().cpu()
        pl_module.train(training)
        save_png(picture, Path(trainer.default_root_dir) / "images" / f"{self.name}_{epoch:03d}.png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(f"images/{self.name}", picture, trainer.global_step)


class Reconstructions(EpochPicture):
    """Originals above their reconstructions, always the same validation images."""

    name = "reconstructions"

    @validate_call(config=ConfigDict(strict=True))
    def __init__(self, every_n_epochs: PositiveInt = 1, count: PositiveInt = 16) -> None:
        """Take how often to draw, and how many images to show."""
        super().__init__(every_n_epochs, count)

    def draw(self, trainer: Trainer, vae: VAE) -> Tensor:
        """Return the picture, ``[3, H, W]`` in [0, 1]."""
        examples = trainer.datamodule.examples(self.count)  # type: ignore[attr-defined]
        images, labels = examples.images.to(vae.prior_loc), examples.labels.to(vae.prior_loc.device)
        return reconstruction_grid(images, vae.reconstruct(images, labels))


class PriorSamples(EpochPicture):
    """Images decoded from the prior, always from the same latents."""

    name = "prior_samples"

    @validate_call(config=ConfigDict(strict=True))
    def __init__(self, every_n_epochs: PositiveInt = 1, count: PositiveInt = 64) -> None:
        """Take how often to draw, and how many images to show."""
        super().__init__(every_n_epochs, count)

    def draw(self, trainer: Trainer, vae: VAE) -> Tensor:
        """Return the picture, ``[3, H, W]`` in [0, 1]."""
        return sample_grid(vae.sample(self.count, generator=torch.Generator().manual_seed(PRIOR_SEED)))
