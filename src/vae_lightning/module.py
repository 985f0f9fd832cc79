"""The LightningModule: one shared step for training, validation and test, and what is logged of it."""

import inspect
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.strategies import Strategy
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, validate_call
from torch import Tensor

from vae_lightning.data import Batch, Seed
from vae_lightning.likelihoods import Likelihood, LikelihoodName
from vae_lightning.networks import Activation, NetworkName, PosteriorScale, build_networks
from vae_lightning.noise import TrainingNoise, evaluation_noise
from vae_lightning.objectives import importance_weighted, kl_per_dimension, kl_weight_at, log_ratio, sgvb_a, sgvb_b
from vae_lightning.optimizers import IWAE_PASSES, OptimizerName, ScheduleName, build_optimizer, build_schedule
from vae_lightning.vae import VAE

IMAGE_SHAPE = (1, 28, 28)
"""C, H, W of MNIST and its relatives."""

_DECODED_TOGETHER = 2_000  # images times samples that are decoded at once in validation

FinitePositive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FiniteNonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Means:
    """Means over images of named values, summed as tensors, and when they are asked for: nothing waits for the device."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.clear()

    def clear(self) -> None:
        self._values: list[Tensor] = []  # of batches that are yet to be summed, one after another: as many as there are names
        self._sums: list[Tensor] = []  # of each batch before, ``[len(names)]``
        self.images = 0
        self.gathered = 0  # batches whose sums are those of all processes
        self.gathered_images = 0

    def update(self, *values: Tensor) -> None:
        """Add one value per image, each ``[B]``, in the order of the names."""
        if self._values and len(values[0]) != len(self._values[0]):
            self.sums()
        self._values.extend(value.detach() for value in values)
        self.images += len(values[0])

    def sums(self) -> list[Tensor]:
        """Return the sums of each batch, ``[len(names)]``."""
        if self._values:
            # Apple's MPS knows no float64; elsewhere it keeps sums over 60,000 images exact to the last logged digit.
            dtype = torch.float32 if self._values[0].device.type == "mps" else torch.float64
            self._sums += torch.stack(self._values).sum(-1, dtype=dtype).view(-1, len(self.names)).unbind()
            self._values = []
        return self._sums

    def gather(self, strategy: Strategy) -> None:
        """Let each process know the sums of all; each has had as many batches."""
        fresh = self.sums()[self.gathered :]
        if fresh:
            images = fresh[0].new_tensor([self.images - self.gathered_images])
            *sums, images = torch.split(strategy.reduce(torch.cat([*fresh, images]), reduce_op="sum"), len(self.names))
            self._sums[self.gathered :] = sums
            self.images = self.gathered_images + int(images)
            self.gathered, self.gathered_images = len(self._sums), self.images

    def add(self, other: "_Means") -> None:
        """Add what another one has summed."""
        if sums := other.sums():
            self._sums.append(torch.stack(sums).sum(0))
            self.images += other.images

    def means(self, prefix: str, suffix: str = "") -> dict[str, float]:
        """Return ``{prefix + name + suffix: mean}``; empty if there were no images."""
        if not (sums := self.sums()):
            return {}
        means = (torch.stack(sums).sum(0) / self.images).tolist()
        return {f"{prefix}{name}{suffix}": mean for name, mean in zip(self.names, means, strict=True)}

    def not_finite(self) -> tuple[int, str, float] | None:
        """Return the position, the name and the value of the first sum that isn't finite, if there is one."""
        sums = self.sums()
        for position, of_batch in enumerate(torch.stack(sums).tolist() if sums else []):
            for name, value in zip(self.names, of_batch, strict=True):
                if not math.isfinite(value):
                    return position, name, value
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, for a run that is resumed."""
        sums = self.sums()
        return {"sums": torch.stack(sums) if sums else [], "images": self.images}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from there, on a device."""
        self.clear()
        self._sums, self.images = [sums.to(device) for sums in state["sums"]], state["images"]
        self.gathered, self.gathered_images = len(self._sums), self.images


class VAEModule(LightningModule):
    """A VAE with its loss, its optimiser and its figures.

    The loss is the batch mean of minus the objective, over the batches of all processes together where there are several. All
    logged figures are nats per image, means weighted by images:
    ``train/…`` over the steps since the last logged one, ``train/…_epoch`` over the epoch, ``val/…`` and ``test/…`` over the
    whole split. ``elbo``, ``log_likelihood`` and ``kl`` are the unweighted bound and its terms whatever the objective, with the
    KL in closed form. In validation and test they come from one sample per image, and the loss is minus that bound;
    ``loss_at_posterior_mean`` decodes the posterior mean in place of a sample, as the PyTorch VAE example prints it: it is
    lower than the loss, and no bound on anything. An importance-weighted run logs ``importance_bound`` of ``num_samples``
    samples as well.
    """

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        latent_dim: PositiveInt = 20,
        network: NetworkName = "mlp",
        hidden_dims: Sequence[PositiveInt] = (400,),
        channels: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (32, 64),
        activation: Activation = "relu",
        posterior_scale: PosteriorScale = "exp",
        initial_scale: FinitePositive | None = None,
        initial_mean: bool = False,
        likelihood: LikelihoodName = "bernoulli",
        pixel_scale: FinitePositive | Literal["learnt", "per_pixel"] = 0.1,
        num_classes: NonNegativeInt = 0,
        objective: Literal["sgvb_b", "sgvb_a", "iwae"] = "sgvb_b",
        num_samples: PositiveInt = 1,
        kl_weight: FiniteNonNegative = 1.0,
        kl_schedule: Literal["constant", "linear", "cyclical"] = "constant",
        kl_schedule_steps: NonNegativeInt = 0,
        free_bits: FiniteNonNegative = 0.0,
        optimizer: OptimizerName = "adam",
        learning_rate: FinitePositive = 1e-3,
        weight_decay: FiniteNonNegative = 0.0,
        optimizer_options: dict[str, Any] | None = None,
        schedule: ScheduleName = "constant",
        schedule_options: dict[str, Any] | None = None,
        schedule_passes: Annotated[Sequence[PositiveInt], Field(min_length=1)] = tuple(IWAE_PASSES),
        compile: bool = False,
        seed: Seed = 1,
    ) -> None:
        """Build the model from plain values, which are kept in its checkpoints.

        Args:
            latent_dim: D, the size of the code.
            network: ``mlp``, or ``convolutional``: convolutions before the encoder's hidden layers and after the decoder's.
            hidden_dims: widths of the encoder's hidden layers; the decoder mirrors them.
            channels: of the convolutions, each of which halves the image's sides.
            activation: between the layers.
            posterior_scale: how the posterior's scale is made positive: see ``networks.MLPEncoder``.
            initial_scale: standard deviation of all initial weights and biases; by default torch's own initialisation.
            initial_mean: whether the decoder starts from the mean of the training images: its last bias is their logits.
            likelihood: the family p(x|z): see ``likelihoods.Likelihood``.
            pixel_scale: its scale, where it has one: a number, ``learnt`` or ``per_pixel``.
            num_classes: of the labels on which the model is conditional; 0: none.
            objective: ``sgvb_b`` (KL in closed form), ``sgvb_a`` (all sampled) or ``iwae`` (the importance-weighted bound).
            num_samples: samples per image in training: L of the SGVB estimators, K of the importance-weighted bound.
            kl_weight: β.
            kl_schedule: how the KL's weight comes to β: see ``objectives.kl_weight_at``.
            kl_schedule_steps: over how many optimiser steps.
            free_bits: λ, nats per latent dimension whose KL costs nothing.
            optimizer: see ``optimizers.build_optimizer``.
            learning_rate: its step size.
            weight_decay: λ of λ/2 · ‖θ‖².
            optimizer_options: further arguments of torch's optimiser.
            schedule: of the learning rate: see ``optimizers.build_schedule``.
            schedule_options: further arguments of torch's ``OneCycleLR``.
            schedule_passes: epochs at each stage of the ``iwae`` schedule.
            compile: whether training goes through ``torch.compile``; the weights and their names are the same.
            seed: seed of the noise in training. The initial weights come from torch's global generator.

        Raises:
            ValidationError: a value is of the wrong type or out of range.
            ValueError: the values don't go together.
        """
        super().__init__()
        self.save_hyperparameters()
        weighted = kl_weight != 1 or kl_schedule != "constant"
        if objective == "iwae" and (weighted or free_bits):
            raise ValueError(
                "objective=iwae: its bound has no KL term of its own, so kl_weight=1, no kl_schedule and no free_bits"
            )
        if objective == "sgvb_a" and free_bits:
            raise ValueError(f"free_bits={free_bits}: asks for the KL in closed form, objective=sgvb_b")
        if kl_schedule != "constant" and not kl_schedule_steps:
            raise ValueError(f"kl_schedule={kl_schedule}: asks for kl_schedule_steps, the optimiser steps that it takes")
        # For nothing, so that options which torch doesn't know are refused here and not after the data has been read.
        built = build_optimizer(optimizer, [torch.zeros(1)], learning_rate, weight_decay, optimizer_options)
        if schedule != "constant":
            build_schedule(schedule, built, 1000, schedule_passes, schedule_options)
        elif schedule_options:
            raise ValueError(f"schedule_options={schedule_options}: are those of schedule=one_cycle")
        self.latent_dim = latent_dim
        self.estimator = objective
        self.num_samples = num_samples
        self.free_bits = free_bits
        self.training_noise = TrainingNoise(seed)
        family = Likelihood(likelihood, pixel_scale)
        encoder, decoder = build_networks(
            network,
            IMAGE_SHAPE,
            latent_dim,
            hidden_dims,
            channels,
            activation,
            posterior_scale,
            family.parameters_per_pixel,
            num_classes,
            initial_scale,
        )
        if initial_mean and (network != "mlp" or family.parameters_per_pixel > 1):
            raise ValueError("initial_mean=true: asks for network=mlp and a decoder that computes no pixel_scale")
        self.vae = VAE(encoder, decoder, family, latent_dim, num_classes)
        terms = ("loss", "elbo", "log_likelihood", "kl")
        self.training_objective = torch.compile(self.objective) if compile else self.objective
        self.latest: dict[str, float] = {}  # the last means that were logged in training
        self._logged_step = 0
        self._window_from = 0  # optimiser steps done when the window was opened
        self.window = _Means(*terms)
        self.epoch = _Means(*terms)
        bound = ("importance_bound",) if objective == "iwae" else ()
        self.evaluation = _Means(*terms, "loss_at_posterior_mean", *bound)
        self.tested_images = 0
        self.published = [
            *(f"val/{name}" for name in self.evaluation.names),
            *(f"train/{name}_epoch" for name in terms),
        ]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the name of a hook, noted fifty times a step, without asking whether it is a weight."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Reconstruct images ``[B, C, H, W]``."""
        return self.vae.reconstruct(x, y)

    def setup(self, stage: str) -> None:
        """Let the decoder start from the mean of the training images, if it is to."""
        if stage == "fit" and self.hparams["initial_mean"]:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            mean = data.images["train"].index_select(0, data.train_indices).float().mean(0) / 255
            bias: Any = self.vae.decoder.layers[-1].bias  # type: ignore[union-attr,index]
            with torch.no_grad():
                bias.copy_(mean.clamp(1e-3, 1 - 1e-3).logit().flatten())  # some pixels are always black

    # -- the shared step ----------------------------------------------------------------------------------------------

    def log_likelihood(self, batch: Batch, z: Tensor) -> Tensor:
        """Return log p(x|z) of a batch at latents ``[S, B, D]``: ``[S, B]``."""
        return self.vae.likelihood(z, batch.labels).log_prob(batch.images)

    def objective(self, batch: Batch, noise: Tensor, kl_weight: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the model is trained to raise, and the terms of its bound, at z = loc + scale · noise.

        Args:
            batch: B images.
            noise: standard normal, ``[S, B, D]``.
            kl_weight: the KL's weight at this step.

        Returns:
            The objective, log p(x|z) averaged over the samples, and the KL in closed form, each ``[B]``.
        """
        posterior = self.vae.posterior(batch.images, batch.labels)
        z = posterior.reparameterize(noise.to(posterior.loc))
        log_likelihood = self.log_likelihood(batch, z)
        kl = kl_per_dimension(posterior.loc, posterior.scale)
        if self.estimator == "sgvb_b":
            objective = sgvb_b(log_likelihood, kl, kl_weight, self.free_bits)
        elif self.estimator == "sgvb_a":
            objective = sgvb_a(log_likelihood, log_ratio(z, posterior, self.vae.prior), kl_weight)
        else:
            objective = importance_weighted(log_likelihood, log_ratio(z, posterior, self.vae.prior))
        return objective, log_likelihood.mean(0), kl.sum(-1)

    # -- training -----------------------------------------------------------------------------------------------------

    @property
    def kl_weight(self) -> float:
        """The KL's weight at this step."""
        settings = self.hparams
        return kl_weight_at(self.global_step, settings["kl_weight"], settings["kl_schedule"], settings["kl_schedule_steps"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss: the batch mean of minus the objective."""
        seen = self.trainer.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        images = len(batch.images)
        noise = self.training_noise.of(seen, (self.num_samples, batch.total or images, self.latent_dim), batch.images.device)
        if batch.total:
            noise = noise[:, batch.first : batch.first + images]
        objective, log_likelihood, kl = self.training_objective(batch, noise, self.kl_weight)
        with torch.no_grad():
            self.window.update(-objective, log_likelihood - kl, log_likelihood, kl)
        if batch.total:  # the mean of the processes' gradients is then that of all images, whatever their shares
            return -objective.sum() * (self.trainer.world_size / batch.total)
        return -objective.mean()

    training_step.__signature__ = inspect.signature(training_step)  # type: ignore[attr-defined]  # asked for at each step

    def on_train_start(self) -> None:
        """Log what was due at the step that a run goes on from."""
        self.on_train_batch_end()

    def on_train_batch_end(self, *_: object) -> None:
        """Log the means since the last time, every ``trainer.log_every_n_steps`` optimiser steps."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (
            every and self.global_step % every == 0 and self.global_step != self._logged_step
        ):  # once, if it takes several batches
            self.refuse_what_is_not_finite()
            self.latest = self.window.means("train/")
            self._log(self.latest | self._scheduled())  # for callbacks, Lightning would take a millisecond and a half
            self._close_window()
            self._logged_step = self.global_step

    def on_train_epoch_end(self) -> None:
        """Log the means over the whole epoch."""
        self.refuse_what_is_not_finite()
        self._close_window()
        self._publish(self.epoch.means("train/", "_epoch"))
        self.epoch.clear()

    def refuse_what_is_not_finite(self) -> None:
        """Check the training's figures that wait to be logged.

        Raises:
            FloatingPointError: one isn't finite, or wasn't at an earlier step.
        """
        self._gather(self.window)
        if found := self.window.not_finite():
            batches, name, value = found
            step = self._window_from + batches // self.trainer.accumulate_grad_batches + 1
            raise FloatingPointError(f"train/{name} is {value} at step {step}; try a lower model.learning_rate")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums of what is yet to be logged."""
        self._gather(self.window)
        checkpoint["figures"] = {
            "window": self.window.state_dict(),
            "epoch": self.epoch.state_dict(),
            "latest": self.latest,
            "logged_step": self._logged_step,
            "window_from": self._window_from,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        figures = checkpoint["figures"]
        self.window.load_state_dict(figures["window"], self.device)
        self.epoch.load_state_dict(figures["epoch"], self.device)
        self.latest = figures["latest"]
        self._logged_step, self._window_from = figures["logged_step"], figures["window_from"]

    def _scheduled(self) -> dict[str, float]:
        """Return what the next step takes by a schedule, where there is one: the KL's weight, the learning rate."""
        figures = {}
        if self.hparams["kl_schedule"] != "constant":
            figures["train/kl_weight"] = self.kl_weight
        if self.hparams["schedule"] != "constant":
            figures["train/learning_rate"] = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        return figures

    def _close_window(self) -> None:
        self.epoch.add(self.window)
        self.window.clear()
        self._window_from = self.global_step

    # -- validation and test ------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch) -> None:
        """Add a batch to the figures of the validation."""
        self.evaluation.update(*self.measure(batch).values())

    def test_step(self, batch: Batch) -> None:
        """Add a batch to the figures of the test."""
        self.evaluation.update(*self.measure(batch).values())

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation set."""
        self._gather(self.evaluation)
        self._publish(self.evaluation.means("val/"))
        self.evaluation.clear()

    def on_test_epoch_end(self) -> None:
        """Log the means over the test set."""
        self._gather(self.evaluation)
        self._publish(self.evaluation.means("test/"))
        self.tested_images = self.evaluation.images
        self.evaluation.clear()

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """Return the figures of validation and test for each image of a batch, each ``[B]``, without autocast."""
        with torch.autocast(self.device.type, enabled=False):
            return self._measure(batch)

    def _measure(self, batch: Batch) -> dict[str, Tensor]:
        posterior = self.vae.posterior(batch.images, batch.labels)
        noise = evaluation_noise(batch.indices, self.latent_dim)
        log_likelihood = self.log_likelihood(batch, posterior.reparameterize(noise.to(posterior.loc)))[0]
        at_mean = self.log_likelihood(batch, posterior.loc.unsqueeze(0))[0]
        kl = kl_per_dimension(posterior.loc, posterior.scale).sum(-1)
        return {
            "loss": kl - log_likelihood,
            "elbo": log_likelihood - kl,
            "log_likelihood": log_likelihood,
            "kl": kl,
            "loss_at_posterior_mean": kl - at_mean,
            **({"importance_bound": self.importance_bound(batch)} if self.estimator == "iwae" else {}),
        }

    def importance_bound(self, batch: Batch) -> Tensor:
        """Return the importance-weighted bound of ``num_samples`` samples, ``[B]``, a few images at a time."""
        bounds = []
        for rows in torch.split(torch.arange(len(batch.images)), max(1, _DECODED_TOGETHER // self.num_samples)):
            part = batch.take(rows)
            noise = evaluation_noise(part.indices, self.latent_dim, range(self.num_samples))
            bounds.append(self.objective(part, noise)[0])
        return torch.cat(bounds)

    # -- both ---------------------------------------------------------------------------------------------------------

    def _gather(self, means: _Means) -> None:
        """Add up what the processes that train together have summed, where there are several."""
        if self.trainer.world_size > 1:
            means.gather(self.trainer.strategy)

    def _publish(self, figures: dict[str, float]) -> None:
        """Hand figures to callbacks by name, and to the loggers.

        Raises:
            FloatingPointError: a figure isn't finite.
        """
        self._log(figures)
        if figures and not self.trainer.sanity_checking:
            self.log_dict(figures, logger=False)

    def _log(self, figures: dict[str, float]) -> None:
        """Hand figures to the loggers at the number of optimiser steps done.

        Lightning's own step axis starts at 0 and differs between the stages by one.

        Raises:
            FloatingPointError: a figure isn't finite.
        """
        for name, figure in figures.items():
            if not math.isfinite(figure):
                raise FloatingPointError(f"{name} is {figure} after {self.global_step} steps; try a lower model.learning_rate")
        if figures and not self.trainer.sanity_checking:
            for logger in self.loggers:
                logger.log_metrics(figures, step=self.global_step)

    def configure_optimizers(self) -> Any:
        """Return the optimiser, and the schedule of its learning rate where there is one."""
        settings = self.hparams
        optimizer = build_optimizer(
            settings["optimizer"],
            self.parameters(),
            settings["learning_rate"],
            settings["weight_decay"],
            settings["optimizer_options"],
            # A fused optimiser undoes a loss scale by itself, so that gradients can't be clipped before.
            fused=self.trainer.precision != "16-mixed",
        )
        if settings["schedule"] == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule, interval = build_schedule(
            settings["schedule"], optimizer, steps, settings["schedule_passes"], settings["schedule_options"]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}
