"""The LightningModule: one shared step for training, validation and test, and what is logged of it."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from lightning import LightningModule
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, validate_call
from torch import Tensor

from vae_lightning.data import Batch
from vae_lightning.networks import MLPDecoder, MLPEncoder
from vae_lightning.objectives import Bound, evidence_lower_bound
from vae_lightning.vae import VAE

EVALUATION_SEED = 1312_6114
"""Seed of all evaluation noise, the same for every run, so that figures of different runs compare."""

_BLOCK = 500  # images whose evaluation noise is drawn together


def _generator(*key: int) -> torch.Generator:
    """Return a CPU generator whose draws are a function of ``key``."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def training_noise(seed: int, batch: int, shape: Sequence[int]) -> Tensor:
    """Return standard normal noise that is a function of the run's seed and the count of batches seen before."""
    return torch.randn(*shape, generator=_generator(seed, batch), dtype=torch.float32)


def evaluation_noise(indices: Tensor, latent_dim: int) -> Tensor:
    """Return standard normal noise ``[B, D]`` whose every row is a function of that image's index alone.

    So no figure moves with the batch size, the order of the images or the seed of the training.
    """
    indices = indices.cpu()
    noise = torch.empty(len(indices), latent_dim, dtype=torch.float32)
    for block in torch.unique(indices // _BLOCK).tolist():
        rows = indices // _BLOCK == block
        table = torch.randn(_BLOCK, latent_dim, generator=_generator(EVALUATION_SEED, block), dtype=torch.float32)
        noise[rows] = table[indices[rows] % _BLOCK]
    return noise


class _Means:
    """Means over images of named values, summed as tensors so that nothing waits for the device."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.clear()

    def clear(self) -> None:
        self.sums: Tensor | None = None
        self.images = 0

    def update(self, *values: Tensor) -> None:
        """Add one value per image, each ``[B]``, in the order of the names."""
        # Apple's MPS knows no float64; elsewhere it keeps sums over 60,000 images exact to the last logged digit.
        dtype = torch.float32 if values[0].device.type == "mps" else torch.float64
        self.add(torch.stack([value.detach() for value in values]).sum(dim=1, dtype=dtype), len(values[0]))

    def add(self, sums: Tensor | None, images: int) -> None:
        """Add sums over ``images`` images, ``[len(names)]``."""
        if sums is not None:
            self.sums = sums if self.sums is None else self.sums + sums
            self.images += images

    def means(self, prefix: str, suffix: str = "") -> dict[str, float]:
        """Return ``{prefix + name + suffix: mean}``; empty if there were no images."""
        if self.sums is None:
            return {}
        means = (self.sums / self.images).tolist()
        return {f"{prefix}{name}{suffix}": mean for name, mean in zip(self.names, means, strict=True)}


class VAEModule(LightningModule):
    """A VAE with its loss, its optimiser and its figures.

    The loss is the batch mean of minus the ELBO. All logged figures are nats per image, means weighted by images:
    ``train/…`` over the steps since the last logged one, ``train/…_epoch`` over the epoch, ``val/…`` and ``test/…`` over the
    whole split. ``loss_at_posterior_mean`` decodes the posterior mean in place of a sample, as the PyTorch VAE example prints
    it: it is lower than the loss, and no bound on anything.
    """

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        latent_dim: PositiveInt = 20,
        hidden_dims: Sequence[PositiveInt] = (400,),
        learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3,
        image_shape: Sequence[PositiveInt] = (1, 28, 28),
        seed: NonNegativeInt = 1,
    ) -> None:
        """Build the model from plain values, which are kept in its checkpoints.

        Args:
            latent_dim: D, the size of the code.
            hidden_dims: widths of the encoder's hidden layers; the decoder mirrors them.
            learning_rate: Adam's step size.
            image_shape: C, H, W.
            seed: seed of the noise in training. The initial weights come from torch's global generator.

        Raises:
            ValidationError: a value is of the wrong type or out of range.
        """
        super().__init__()
        self.save_hyperparameters()
        self.latent_dim = latent_dim
        self.learning_rate = learning_rate
        self.seed = seed
        self.vae = VAE(
            encoder=MLPEncoder(image_shape, hidden_dims, latent_dim),
            decoder=MLPDecoder(latent_dim, list(hidden_dims)[::-1], image_shape),
            latent_dim=latent_dim,
        )
        self.window = _Means("loss", "elbo", "log_likelihood", "kl")
        self.epoch = _Means("loss", "elbo", "log_likelihood", "kl")
        self.evaluation = _Means("loss", "elbo", "log_likelihood", "kl", "loss_at_posterior_mean")

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct images ``[B, C, H, W]``."""
        return self.vae.reconstruct(x)

    def bound(self, batch: Batch, noise: Tensor) -> Bound:
        """Return the ELBO of a batch and its terms, each ``[B]``, at z = loc + scale · noise (noise is ``[B, D]``)."""
        posterior = self.vae.posterior(batch.images, batch.labels)
        z = posterior.reparameterize(noise.to(posterior.loc))
        return evidence_lower_bound(batch.images, self.vae.likelihood(z, batch.labels), posterior, self.vae.prior)

    # -- training -----------------------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss: the batch mean of minus the ELBO."""
        seen = self.trainer.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        bound = self.bound(batch, training_noise(self.seed, seen, (len(batch.images), self.latent_dim)))
        loss = -bound.elbo
        self.window.update(loss, bound.elbo, *bound)
        return loss.mean()

    def on_train_batch_end(self, *_: object) -> None:
        """Log the means since the last time, every ``trainer.log_every_n_steps`` optimiser steps."""
        if self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._publish(self.window.means("train/"))
            self._close_window()

    def on_train_epoch_end(self) -> None:
        """Log the means over the whole epoch."""
        self._close_window()
        self._publish(self.epoch.means("train/", "_epoch"))
        self.epoch.clear()

    def _close_window(self) -> None:
        self.epoch.add(self.window.sums, self.window.images)
        self.window.clear()

    # -- validation and test ------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch) -> None:
        """Add a batch to the figures of the validation."""
        self._evaluate(batch)

    def test_step(self, batch: Batch) -> None:
        """Add a batch to the figures of the test."""
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation set."""
        self._publish(self.evaluation.means("val/"))
        self.evaluation.clear()

    def on_test_epoch_end(self) -> None:
        """Log the means over the test set."""
        self._publish(self.evaluation.means("test/"))
        self.evaluation.clear()

    def _evaluate(self, batch: Batch) -> None:
        bound = self.bound(batch, evaluation_noise(batch.indices, self.latent_dim))
        at_mean = self.bound(batch, torch.zeros(len(batch.images), self.latent_dim))
        self.evaluation.update(-bound.elbo, bound.elbo, *bound, -at_mean.elbo)

    # -- both ---------------------------------------------------------------------------------------------------------

    def _publish(self, figures: dict[str, float]) -> None:
        """Hand figures to callbacks by name, and to the loggers at the number of optimiser steps done.

        Lightning's own step axis starts at 0 and differs between the stages by one.
        """
        if figures and not self.trainer.sanity_checking:
            self.log_dict(figures, logger=False)
            for logger in self.loggers:
                logger.log_metrics(figures, step=self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam in its fused form: one kernel for all weights, the same update."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=True)
