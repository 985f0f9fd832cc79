"""The variational autoencoder: a prior, a posterior and a likelihood, each a distribution.

Shapes: ``B`` examples in a batch, ``S`` samples, ``D`` latent dimensions, ``C H W`` an image.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, validate_call
from torch import Tensor
from torch.distributions import Distribution

from vae_lightning.models import base
from vae_lightning.models.base import Batch, DataSpec, Export, Figure, Latents, Noise
from vae_lightning.models.distributions import DiagonalNormal
from vae_lightning.models.likelihoods import build_likelihood, kind_of_number, meaning
from vae_lightning.models.noise import SamplingNoise
from vae_lightning.models.vae import networks, objectives, settings

_DECODED_TOGETHER = 2_000  # examples times samples that are decoded at once in validation


class VAE(base.LatentModel):
    """A VAE with prior N(0, I) and a diagonal Gaussian posterior (arXiv:1312.6114).

    ``elbo``, ``log_likelihood`` and ``kl`` are the unweighted bound and its terms, whatever the
    objective. In validation they come from one sample, and the loss is minus that bound.
    ``loss_at_posterior_mean`` decodes the posterior mean instead, as the PyTorch VAE example
    prints it: it is lower than the loss, and not a bound.
    """

    prior_loc: Tensor
    prior_scale: Tensor

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        data: DataSpec,
        latent_dim: PositiveInt = 20,
        network: settings.NetworkName = "mlp",
        hidden_dims: Sequence[PositiveInt] = (400,),
        channels: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (32, 64),
        activation: settings.Activation = "relu",
        posterior_scale: settings.PosteriorScale = "exp",
        initial_scale: settings.Positive | None = None,
        initial_mean: bool = False,
        likelihood: settings.LikelihoodName = "bernoulli",
        pixel_scale: settings.PixelScale = 0.1,
        num_classes: NonNegativeInt = 0,
        objective: settings.Objective = "sgvb_b",
        num_samples: PositiveInt = 1,
        kl_weight: settings.NonNegative = 1.0,
        kl_schedule: settings.KLSchedule = "constant",
        kl_schedule_steps: NonNegativeInt = 0,
        free_bits: settings.NonNegative = 0.0,
        compile: bool = False,
    ) -> None:
        """Build the networks.

        Args:
            data: the spec of the data, ``[C, H, W]`` images.
            latent_dim: D.
            network: ``mlp``, ``convolutional``, or the full name of a ``networks.Network``.
            hidden_dims: widths of the encoder's hidden layers; the decoder mirrors them.
            channels: of the convolutions, each of which halves the sides of the image.
            activation: between the layers.
            posterior_scale: how the posterior's scale is made positive: see ``MLPEncoder``.
            initial_scale: standard deviation of all initial weights; None: torch's own.
            initial_mean: whether the decoder starts from the mean of the training images.
            likelihood: the family p(x|z): see ``likelihoods.Likelihood``.
            pixel_scale: its scale, where it has one: a number, ``learnt`` or ``per_pixel``.
            num_classes: labels that the model is conditional on: p(x|z, y), q(z|x, y); 0: none.
            objective: ``sgvb_b`` (KL in closed form), ``sgvb_a`` (sampled), ``iwae`` (the
                importance-weighted bound).
            num_samples: samples per image in training: L of the SGVB estimators, K of ``iwae``.
            kl_weight: β.
            kl_schedule: how the KL's weight comes to β: see ``objectives.kl_weight_at``.
            kl_schedule_steps: over how many optimiser steps.
            free_bits: λ, nats per latent whose KL costs nothing.
            compile: whether the loss goes through ``torch.compile``.

        Raises:
            ValueError: a value is of the wrong type or out of range, or values don't go together.
        """
        super().__init__(data, base.arguments(locals(), "data"))
        settings.refuse_pairs(data, self.settings)
        self.quantity = kind_of_number(likelihood, data.values)
        self.meaning = meaning(likelihood, self.quantity)
        self.latent_dim, self.num_classes = latent_dim, num_classes
        self.estimator, self.num_samples, self.free_bits = objective, num_samples, free_bits
        self.kl_settings: tuple[float, settings.KLSchedule, int] = (
            kl_weight,
            kl_schedule,
            kl_schedule_steps,
        )
        self.family = build_likelihood(likelihood, pixel_scale)
        parameters = self.family.parameters_per_pixel
        self.encoder, self.decoder = networks.build_networks(
            network, data.shape, latent_dim, hidden_dims, channels, activation, posterior_scale,
            parameters, num_classes, initial_scale,
        )  # fmt: skip
        self.register_buffer("prior_loc", torch.zeros(latent_dim))
        self.register_buffer("prior_scale", torch.ones(latent_dim))
        self.figures = {
            **base.LatentModel.figures,
            "loss_at_posterior_mean": Figure("loss at the posterior mean", better="min"),
        }
        if objective == "iwae":
            self.criterion = "importance_bound"  # of so many samples: it compares with no other
            self.figures["importance_bound"] = Figure("importance bound")
        self.training_objective = torch.compile(self.objective) if compile else self.objective

    # -- the distributions ----------------------------------------------------------------------

    def prior(self, y: Tensor | None = None) -> DiagonalNormal:
        """Return p(z) over ``[D]``, whatever the label."""
        return DiagonalNormal(self.prior_loc, self.prior_scale)

    def posterior(self, batch: Batch) -> DiagonalNormal:
        """Return q(z|x), or q(z|x, y), over ``[B, D]``."""
        return DiagonalNormal(*self.encoder(batch.x, batch.y))

    def likelihood(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """Return p(x|z), or p(x|z, y), over ``[C, H, W]`` for latents ``[..., D]``."""
        distribution: Distribution = self.family(self.decoder(z, y))
        return distribution

    def log_likelihood(self, batch: Batch, z: Tensor) -> Tensor:
        """Return log p(x|z) at latents ``[S, B, D]``: ``[S, B]``."""
        log_prob: Tensor = self.likelihood(z, batch.y).log_prob(batch.x)
        return log_prob

    # -- training and evaluation ----------------------------------------------------------------

    def objective(
        self, batch: Batch, noise: Tensor, kl_weight: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what training raises and the terms of its bound, at z = loc + scale · noise.

        Args:
            batch: B examples.
            noise: standard normal, ``[S, B, D]``.
            kl_weight: the weight of the KL at this step.

        Returns:
            The objective, the mean of log p(x|z) over the samples, and the KL, each ``[B]``.
        """
        posterior = self.posterior(batch)
        z = posterior.reparameterize(noise.to(posterior.loc))
        log_likelihood = self.log_likelihood(batch, z)
        kl = objectives.kl_per_dimension(posterior.loc, posterior.scale)
        if self.estimator == "sgvb_b":
            objective = objectives.sgvb_b(log_likelihood, kl, kl_weight, self.free_bits)
        elif self.estimator == "sgvb_a":
            objective = objectives.sgvb_a(
                log_likelihood, objectives.log_ratio(z, posterior, self.prior()), kl_weight
            )
        else:
            objective = objectives.importance_weighted(
                log_likelihood, objectives.log_ratio(z, posterior, self.prior())
            )
        return objective, log_likelihood.mean(0), kl.sum(-1)

    def loss(self, batch: Batch, noise: Noise, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return minus the objective, ``[B]``, and ELBO, log-likelihood and KL, each ``[B]``."""
        drawn = noise.normal(self.latent_dim, samples=self.num_samples)
        weight = objectives.kl_weight_at(step, *self.kl_settings)
        objective, log_likelihood, kl = self.training_objective(batch, drawn, weight)
        log_likelihood, kl = log_likelihood.detach(), kl.detach()
        return -objective, {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}

    def schedule(self, step: int) -> dict[str, float]:
        """Return the weight of the KL at a step, if it changes."""
        changes = self.kl_settings[1] != "constant"
        return {"kl_weight": objectives.kl_weight_at(step, *self.kl_settings)} if changes else {}

    def measure(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Return the figures of each example, ``[B]``."""
        weighted = self.estimator == "iwae"
        drawn = noise.normal(self.latent_dim, samples=self.num_samples if weighted else 1)
        posterior = self.posterior(batch)
        z = posterior.reparameterize(drawn[:1].to(posterior.loc))
        log_likelihood = self.log_likelihood(batch, z)[0]
        at_mean = self.log_likelihood(batch, posterior.loc.unsqueeze(0))[0]
        kl = objectives.kl_per_dimension(posterior.loc, posterior.scale).sum(-1)
        figures = {
            "loss": kl - log_likelihood,
            "elbo": log_likelihood - kl,
            "log_likelihood": log_likelihood,
            "kl": kl,
            "loss_at_posterior_mean": kl - at_mean,
        }
        if weighted:
            figures["importance_bound"] = self.importance_bound(batch, drawn)
        return figures

    def importance_bound(self, batch: Batch, noise: Tensor) -> Tensor:
        """Return the importance-weighted bound at noise ``[S, B, D]``: ``[B]``, in parts."""
        together = max(1, _DECODED_TOGETHER // len(noise))
        parts = torch.split(torch.arange(len(batch.x)), together)
        return torch.cat([self.objective(batch.take(rows), noise[:, rows])[0] for rows in parts])

    # -- use ------------------------------------------------------------------------------------

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean of p(x|z) for latents ``[n, D]``: ``[n, C, H, W]`` in [0, 1]."""
        return self.likelihood(z, y).mean

    def point(self, batch: Batch) -> Tensor:
        """Return the posterior mean, ``[B, D]``."""
        return self.posterior(batch).loc

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return mean and standard deviation of q(z|x): ``loc`` and ``scale``, each ``[B, D]``."""
        posterior = self.posterior(batch)
        return {"loc": posterior.loc, "scale": posterior.scale}

    def kl_of_each_latent(self, posterior: Latents) -> Tensor | None:
        """Return the KL of each latent, ``[B, D]``."""
        assert isinstance(posterior, DiagonalNormal)
        return objectives.kl_per_dimension(posterior.loc, posterior.scale)

    def initialize(self, examples: Iterable[Batch]) -> None:
        """Let the decoder start from the mean of the training images, if it is to."""
        if self.settings["initial_mean"]:
            networks.start_from_mean(self.decoder, examples)

    def exports(self) -> dict[str, Export]:
        """Return the encoder and the decoder with its likelihood's mean."""
        z = self.prior().draw(SamplingNoise(base.EXPORT_ROWS))[0]
        y = torch.arange(base.EXPORT_ROWS) % (self.num_classes or 1)
        labels = {"y": y} if self.num_classes else {}
        x = self.decode(z, y)  # its own samples: examples of the kind that it knows
        decoder = networks.MeanDecoder(self.decoder, self.family)
        means, image = "mean and standard deviation of q(z|x)", "the mean of p(x|z)"
        return {
            "encoder": Export(self.encoder, {"x": x} | labels, ["loc", "scale"], means),
            "decoder": Export(decoder, {"z": z} | labels, ["image"], image, self.decode),
        }

    def numbers_per_example(self, training: bool) -> int:
        """Return how many numbers a step holds for an image at least."""
        if not training:
            return 5 * self.latent_dim  # loc, scale, noise, sample, KL
        hidden: int = sum(self.settings["hidden_dims"])
        pixels = super().numbers_per_example(training)
        return self.num_samples * (2 * self.latent_dim + hidden + pixels)

    def describe(self) -> str:
        """Return what the model is, in a few words."""
        return f"VAE with {self.latent_dim} latents"

    def protocol(self) -> dict[str, str]:
        """Return family and objective."""
        objective = f"{self.estimator} of {self.num_samples}"
        return {"likelihood": self.family.name, "objective": objective}
