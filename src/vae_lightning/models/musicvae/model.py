"""MusicVAE: a VAE over windows of music, of one voice or several.

Roberts et al. 2018 (arXiv:1803.05428). Shapes: ``B`` sequences of ``T`` steps of ``V`` voices,
``S`` samples, ``K`` tokens, ``D`` latents.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, validate_call
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.models import base
from vae_lightning.models.base import Batch, DataSpec, Export, Figure, Latents, Noise
from vae_lightning.models.distributions import DiagonalNormal
from vae_lightning.models.musicvae.networks import (
    FIRST_PITCH,
    HOLD,
    REST,
    Conductor,
    Decoder,
    Encoder,
    Guide,
    StepEmbedding,
    Steps,
    Voices,
    is_there,
)
from vae_lightning.models.noise import SamplingNoise
from vae_lightning.models.vae import objectives

_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(ge=0, lt=1)]


class MusicVAE(base.LatentModel):
    """A VAE whose encoder and decoder are LSTMs over steps of 16ths.

    p(x|z) takes one step after another and, within a step, one voice after another: each is a
    choice among K tokens, so it is a mass. Tokens that can't be, such as a hold in the first step,
    have none. Whether the latent is used, the KL doesn't say: ``latent_gap`` does.
    """

    shown: ClassVar[Sequence[str]] = ("latent_gap", "token_accuracy", "onset_accuracy", "exact")
    importance_samples: ClassVar[int] = 50
    quantity: Literal["mass", "density", "neither"] = "mass"
    meaning: str = "a mass of the tokens on the grid of 16ths"
    prior_loc: Tensor
    prior_scale: Tensor

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        data: DataSpec,
        latent_dim: PositiveInt = 128,
        decoder: Literal["flat", "hierarchical"] = "flat",
        embedding_dim: PositiveInt = 64,
        encoder_dim: PositiveInt = 256,
        decoder_dim: PositiveInt = 256,
        parts: PositiveInt = 16,
        guide_dim: PositiveInt = 128,
        step_dim: PositiveInt = 128,
        word_dropout: _Share = 0.0,
        dropout: _Share = 0.0,
        kl_weight: _NonNegative = 1.0,
        kl_schedule: objectives.KLSchedule = "constant",
        kl_schedule_steps: NonNegativeInt = 0,
        free_nats: _NonNegative = 0.0,
        bar: PositiveInt = 16,
    ) -> None:
        """Build the networks.

        Args:
            data: the spec of the data, tokens ``[T, V]``.
            latent_dim: D.
            decoder: ``flat``, or ``hierarchical``: a conductor gives one state per bar.
            embedding_dim: numbers of a step's embedding.
            encoder_dim: size of the encoder's state, in each direction.
            decoder_dim: size of the decoder's state.
            parts: of equal length. The encoder averages its states over each, and a flat decoder
                is told of the latent by a linear map for each.
            guide_dim: how many numbers that are; of a hierarchical one, the conductor's state.
            step_dim: width of the layer that makes a step's tokens of the state.
            word_dropout: share of steps that training hides from the decoder, which then has the
                latent to go by.
            dropout: share of the decoder's state that training drops.
            kl_weight: β.
            kl_schedule: how the KL's weight comes to β: see ``objectives.kl_weight_at``.
            kl_schedule_steps: over how many optimiser steps.
            free_nats: nats of the whole KL of a sequence that cost nothing.
            bar: steps of a bar: places in it are told apart, and the conductor goes by it.

        Raises:
            ValueError: a value is of the wrong type or out of range, or values don't go together.
        """
        super().__init__(data, base.arguments(locals(), "data"))
        if data.values not in ("tokens", "sets") or len(data.shape) != 2:
            raise ValueError(
                "model=musicvae: needs music, tokens [T, V]; type data=melodies or data=chorales"
            )
        steps, voices = data.shape
        if steps % bar and (decoder == "hierarchical" or data.values == "tokens"):
            raise ValueError(f"bar={bar}: {steps} steps are no whole number of such bars")
        if steps % parts:
            raise ValueError(f"parts={parts}: must divide {steps} steps")
        if kl_schedule != "constant" and not kl_schedule_steps:
            raise ValueError(
                f"kl_schedule={kl_schedule}: over how many steps? kl_schedule_steps=1000"
            )
        self.latent_dim, self.steps, self.voices = latent_dim, steps, voices
        self.lists_sets = data.values == "sets"
        if self.lists_sets:
            self.meaning = "a mass of each step's set of pitches"
        self.kl_settings: tuple[float, objectives.KLSchedule, int] = (
            kl_weight,
            kl_schedule,
            kl_schedule_steps,
        )
        self.free_nats, self.word_dropout, self.dropout = free_nats, word_dropout, dropout
        vocabulary = data.vocabulary

        def embedding() -> StepEmbedding:
            return StepEmbedding(voices, vocabulary, bar, embedding_dim)

        self.encoder = Encoder(
            embedding(), embedding_dim, encoder_dim, latent_dim, parts, self.lists_sets
        )
        guide: Guide | Conductor
        if decoder == "flat":
            part, guide = steps // parts, Guide(latent_dim, parts, guide_dim)
        else:
            part, guide = bar, Conductor(latent_dim, steps // bar, guide_dim)
        self.decoder = Decoder(
            Steps(embedding(), embedding_dim, decoder_dim, guide, guide_dim, part),
            Voices(voices, vocabulary, decoder_dim, step_dim),
            self.lists_sets,
        )
        self.register_buffer("prior_loc", torch.zeros(latent_dim))
        self.register_buffer("prior_scale", torch.ones(latent_dim))
        self.figures = _figures(self.lists_sets)

    # -- the distributions ----------------------------------------------------------------------

    def prior(self, y: Tensor | None = None) -> DiagonalNormal:
        """Return p(z) over ``[D]``."""
        return DiagonalNormal(self.prior_loc, self.prior_scale)

    def posterior(self, batch: Batch) -> DiagonalNormal:
        """Return q(z|x) over ``[B, D]``."""
        return DiagonalNormal(*self.encoder(batch.x))

    def log_likelihood(self, batch: Batch, z: Tensor) -> Tensor:
        """Return log p(x|z) at latents ``[S, B, D]``: ``[S, B]``."""
        return torch.stack([self._log_prob(batch.x, self.logits(batch.x, each)) for each in z])

    def logits(self, x: Tensor, z: Tensor, noise: Noise | None = None) -> Tensor:
        """Return the logits of each token given those before it, ``[B, T, V, K]``.

        Args:
            x: tokens ``[B, T, V]``.
            z: latents ``[B, D]``.
            noise: by which steps are hidden and states dropped in training; None: none are.
        """
        if noise is None:
            return self.decoder(x, z)  # type: ignore[no-any-return]
        kept = mask = None
        if self.word_dropout:
            kept = noise.uniform(self.steps)[0].to(z.device) >= self.word_dropout
        if self.dropout:  # the same numbers of the state at all steps
            uniform = noise.uniform(self.settings["decoder_dim"])[0].to(z)
            mask = (uniform >= self.dropout) / (1 - self.dropout)
        return self.decoder(x, z, kept, mask)  # type: ignore[no-any-return]

    def _log_prob(self, x: Tensor, logits: Tensor) -> Tensor:
        """Return the sum of the tokens' log-probabilities, ``[B]``."""
        nats = F.cross_entropy(logits.flatten(0, 2), x.flatten(), reduction="none").view_as(x)
        if self.lists_sets:
            nats = nats * is_there(x, True)[..., None]
        return -nats.flatten(1).sum(1)

    # -- training and evaluation ----------------------------------------------------------------

    def loss(self, batch: Batch, noise: Noise, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return minus the objective, ``[B]``, and ELBO, log-likelihood and KL, each ``[B]``.

        The objective is log p(x|z) − β · max(KL − free nats, 0), as in the paper's code.
        """
        posterior = self.posterior(batch)
        z = posterior.draw(noise)[0]
        log_likelihood = self._log_prob(batch.x, self.logits(batch.x, z, noise))
        kl = objectives.kl_per_dimension(posterior.loc, posterior.scale).sum(-1)
        weight = objectives.kl_weight_at(step, *self.kl_settings)
        loss = weight * (kl - self.free_nats).clamp(min=0) - log_likelihood
        terms = {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl}
        return loss, {name: term.detach() for name, term in terms.items()}

    def schedule(self, step: int) -> dict[str, float]:
        """Return the weight of the KL at a step, if it changes."""
        changes = self.kl_settings[1] != "constant"
        return {"kl_weight": objectives.kl_weight_at(step, *self.kl_settings)} if changes else {}

    def measure(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Return the figures of each example, ``[B]``, and the counts that shares are of.

        ``latent_gap`` compares log p(x|z) at the example's own z with that at the next one's in the
        batch, which is of another piece: a decoder that doesn't use its latent has none, and
        neither has a batch of one.
        """
        x = batch.x
        posterior = self.posterior(batch)
        z = posterior.draw(noise)[0]
        logits = self.logits(x, z)
        log_likelihood = self._log_prob(x, logits)
        shuffled = self._log_prob(x, self.logits(x, z.roll(1, 0)))
        kl = objectives.kl_per_dimension(posterior.loc, posterior.scale).sum(-1)
        elbo = log_likelihood - kl
        there = is_there(x, self.lists_sets)
        figures = {
            "loss": -elbo,
            "elbo": elbo,
            "log_likelihood": log_likelihood,
            "kl": kl,
            "latent_gap": log_likelihood - shuffled,
            "nats_per_step": -elbo,
            "nats_per_note": -elbo,
            "steps": there.sum(1),
            "notes": (x >= FIRST_PITCH).flatten(1).sum(1),
        }
        free = self._greedy(posterior.loc) if not self.lists_sets else None
        if free is None:
            return {name: figure.to(elbo) for name, figure in figures.items()}
        given = self.logits(x, posterior.loc).argmax(-1)
        kinds = {
            "onset": x >= FIRST_PITCH,
            "hold": x == HOLD,
            "rest": x == REST,
            "token": torch.ones_like(x, dtype=torch.bool),
        }
        for kind, is_one in kinds.items():
            count = "notes" if kind == "onset" else f"{kind}s"
            figures[count] = is_one.flatten(1).sum(1)
            figures[f"forced_{kind}_accuracy"] = (is_one & (given == x)).flatten(1).sum(1)
            figures[f"{kind}_accuracy"] = (is_one & (free == x)).flatten(1).sum(1)
        figures["exact"] = (free == x).flatten(1).all(1)
        return {name: figure.to(elbo) for name, figure in figures.items()}

    # -- use ------------------------------------------------------------------------------------

    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the most likely token of each voice at each step, ``[n, T, V]``.

        The decoder sees what it chose before, and nothing of an example.
        """
        return self._greedy(z)

    def sample(
        self, n: int, noise: Noise, y: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Draw latents from the prior and tokens from p(x|z), ``[n, T, V]``.

        Args:
            n: how many.
            noise: of ``n`` rows.
            y: not used: there are no labels.
            temperature: the logits are divided by it; 0 takes the most likely tokens.
        """
        z = self.prior().draw(noise)[0]
        uniform = noise.uniform(self.steps, self.voices)[0].to(z.device)
        if not temperature:
            return self._greedy(z)

        def choose(logits: Tensor, step: int, voice: int) -> Tensor:
            return base.choose(logits / temperature, uniform[None, :, step, voice])[0]

        return self._run(z, choose)

    def _greedy(self, z: Tensor) -> Tensor:
        return self._run(z, lambda logits, step, voice: logits.argmax(-1))

    def _run(self, z: Tensor, choose: Callable[[Tensor, int, int], Tensor]) -> Tensor:
        """Return tokens ``[n, T, V]`` of latents, each chosen by its logits, step and voice."""
        x = torch.zeros(len(z), self.steps, self.voices, dtype=torch.int64, device=z.device)
        network = self.decoder.steps
        told = network.guide(z)
        state = network.first_state(told[:, 0])
        for step in range(self.steps):
            before = x[:, step - 1] if step else None
            output, state = network.next_state(before, step, told, state)
            for voice in range(self.voices):
                logits = self.decoder.of_step(output, x[:, step], step)
                x[:, step, voice] = choose(logits[:, voice].to(z.dtype), step, voice)
        return x

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

    def exports(self) -> dict[str, Export]:
        """Return the encoder, and the decoder, whose logits depend on the tokens before them."""
        z = self.prior().draw(SamplingNoise(base.EXPORT_ROWS))[0]
        x = self._greedy(z)
        means, follows = "mean and standard deviation of q(z|x)", "logits of each token"
        known = f"{follows}, given the latent and the tokens before it in time, then in voice"
        return {
            "encoder": Export(self.encoder, {"x": x}, ["loc", "scale"], means),
            "decoder": Export(self.decoder, {"x": x, "z": z}, ["logits"], known),
        }

    def numbers_per_example(self, training: bool) -> int:
        """Return how many numbers a step holds for a sequence at least."""
        states = 4 * self.settings["decoder_dim"] + 8 * self.settings["encoder_dim"]
        of_step = states + self.voices * (self.data.vocabulary + self.settings["step_dim"])
        return self.steps * int(of_step)

    def describe(self) -> str:
        """Return what the model is, in a few words."""
        return f"MusicVAE with {self.latent_dim} latents and a {self.settings['decoder']} decoder"

    def protocol(self) -> dict[str, str]:
        """Return the decoder."""
        return {"likelihood": "categorical", "decoder": self.settings["decoder"]}


def _figures(lists_sets: bool) -> Mapping[str, Figure]:
    figures = {
        **base.LatentModel.figures,
        "latent_gap": Figure("gap to shuffled latents"),
        "nats_per_step": Figure("minus ELBO per step", "nats per step", "min", per="steps"),
        "nats_per_note": Figure("minus ELBO per note", "nats per note", "min", per="notes"),
    }
    if lists_sets:
        return figures
    for start, how in (("", "free-running"), ("forced_", "teacher-forced")):
        for kind, count in (
            ("token", "tokens"),
            ("onset", "notes"),
            ("hold", "holds"),
            ("rest", "rests"),
        ):
            label = f"{kind}s right, {how}"
            figures[f"{start}{kind}_accuracy"] = Figure(label, "", per=count)
    return {**figures, "exact": Figure("sequences exact, free-running", "")}
