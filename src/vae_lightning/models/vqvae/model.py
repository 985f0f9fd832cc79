"""The VQ-VAE: an encoder to a grid of codes, a codebook, and a decoder of the grid.

van den Oord, Vinyals & Kavukcuoglu 2017, "Neural Discrete Representation Learning"
(arXiv:1711.00937). Shapes: ``B`` examples, ``S`` samples, ``C H W`` an image, ``h w`` the grid,
``K`` codes of ``D`` numbers.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, validate_call
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lightning.configuration.building import OwnClass
from vae_lightning.models import base
from vae_lightning.models.base import Batch, DataSpec, Export, Figure, Noise
from vae_lightning.models.likelihoods import (
    LikelihoodName,
    PixelScale,
    build_likelihood,
    kind_of_number,
    meaning,
)
from vae_lightning.models.noise import keyed_generator
from vae_lightning.models.vae.networks import halved
from vae_lightning.models.vqvae.quantizer import Quantizer

_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Residual(nn.Module):
    """Maps plus what two convolutions, 3×3 and 1×1, make of them."""

    def __init__(self, channels: int, hidden: int) -> None:
        """Take the channels of the maps, and of those between the convolutions."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map ``[B, channels, h, w]`` to the same shape."""
        added: Tensor = maps + self.layers(maps)
        return added


class VQVAE(base.DiscreteModel):
    """A VAE whose posterior chooses, for each position of a grid, one of K codes.

    The loss is −log p(x|z) at the chosen codes plus the commitment cost, both summed over an
    example. The gradient goes straight through the choice to the encoder; the codebook follows the
    encoder by moving averages. A deterministic code has no entropy, so ``loss`` is no bound on
    log p(x): a prior over the codes makes one.
    """

    terms: ClassVar[Sequence[str]] = ("log_likelihood", "commitment")
    figures: Mapping[str, Figure] = MappingProxyType(
        {
            "loss": Figure("loss", better="min"),
            "log_likelihood": Figure("log-likelihood"),
            "commitment": Figure("commitment cost", better="none"),
        }
    )
    criterion = "log_likelihood"

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        data: DataSpec,
        codes: Annotated[int, Field(ge=2)] = 128,
        code_dim: PositiveInt = 16,
        channels: Annotated[Sequence[PositiveInt], Field(min_length=1)] = (32, 64),
        residual_blocks: NonNegativeInt = 2,
        residual_channels: PositiveInt = 32,
        commitment: _NonNegative = 0.25,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
        temperature: _NonNegative = 0.0,
        temperature_steps: NonNegativeInt = 0,
        likelihood: LikelihoodName | OwnClass = "bernoulli",
        pixel_scale: PixelScale = 0.1,
    ) -> None:
        """Build the networks.

        Args:
            data: the spec of the data, ``[C, H, W]`` images.
            codes: K.
            code_dim: D.
            channels: of the encoder's convolutions, each of which halves the image's sides; the
                decoder mirrors them.
            residual_blocks: blocks at the grid, before the codes and after them.
            residual_channels: channels between the two convolutions of a block.
            commitment: weight of ‖e − c‖², the squared distance of the encoder's output to the
                code, summed over the grid.
            decay: how much of the codebook's moving averages is kept at a step.
            temperature: τ of the codes that training draws, ∝ exp(−‖e − c‖² / τ); 0: the nearest.
            temperature_steps: optimiser steps over which τ rises from 0 to that.
            likelihood: the family p(x|z): see ``likelihoods.Likelihood``.
            pixel_scale: its scale, where it has one: a number, ``learnt`` or ``per_pixel``.

        Raises:
            ValueError: a value is of the wrong type or out of range, or values don't go together.
        """
        super().__init__(data, base.arguments(locals(), "data"))
        if len(data.shape) != 3:
            raise ValueError(f"model=vqvae: needs images [C, H, W], and these are {data.shape}")
        self.quantity_with_prior = kind_of_number(likelihood, data.values)
        self.meaning_with_prior = meaning(likelihood, self.quantity_with_prior)
        self.meaning = "log p(x|z) at the nearest codes: no bound on log p(x) without a prior"
        self.codes, self.code_shape = codes, halved(data.shape, channels)
        self.commitment = commitment
        self.temperatures = temperature, temperature_steps
        self.family = build_likelihood(likelihood, pixel_scale)
        colours, widest = data.shape[0], channels[-1]
        out = self.family.parameters_per_pixel * colours
        residual = [Residual(widest, residual_channels) for _ in range(2 * residual_blocks)]
        down: list[nn.Module] = []
        for n, m in zip((colours, *channels), channels, strict=False):
            down += [nn.Conv2d(n, m, 4, stride=2, padding=1), nn.ReLU()]
        up: list[nn.Module] = []
        for n, m in zip(channels[::-1], (*channels[-2::-1], out), strict=True):
            up += [nn.ReLU(), nn.ConvTranspose2d(n, m, 4, stride=2, padding=1)]
        self.encoder = nn.Sequential(
            *down[:-1], *residual[:residual_blocks], nn.ReLU(), nn.Conv2d(widest, code_dim, 1)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(code_dim, widest, 3, padding=1), *residual[residual_blocks:], *up
        )
        self.quantizer = Quantizer(codes, code_dim, decay)

    # -- training and evaluation ----------------------------------------------------------------

    def initialize(self, examples: Iterable[Batch]) -> None:
        """Let the codebook start from what the encoder makes of the first batch."""
        batch = self.take(next(iter(examples)))
        with torch.no_grad():
            self.quantizer.start(self.embed(batch).flatten(0, -2), keyed_generator(self.codes))

    def loss(self, batch: Batch, noise: Noise, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return −log p(x|z) plus the commitment cost, ``[B]``, and its terms, ``[B]``."""
        embedded = self.embed(batch)
        temperature = self.temperature_at(step)
        # Half precision would choose other codes than evaluation does.
        with torch.no_grad(), torch.autocast(batch.x.device.type, enabled=False):
            code = base.draw_codes(self.scores(embedded), noise, temperature)[0]
        chosen = self.quantizer(code)
        if self.training:
            self.quantizer.see(embedded, code, batch.first, batch.total)
        log_likelihood = self._log_likelihood(embedded + (chosen - embedded).detach(), batch.x)
        commitment = self._commitment(embedded, chosen)
        terms = {"log_likelihood": log_likelihood.detach(), "commitment": commitment.detach()}
        return commitment - log_likelihood, terms

    def after_step(self, noise: Noise) -> None:
        """Move the codebook."""
        self.quantizer.update(noise)

    def measure(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Return loss, log p(x|z) and commitment cost at the nearest codes, each ``[B]``."""
        embedded = self.embed(batch)
        chosen = self.quantizer(self.scores(embedded).argmax(-1))
        log_likelihood = self._log_likelihood(chosen, batch.x)
        commitment = self._commitment(embedded, chosen)
        return {
            "loss": commitment - log_likelihood,
            "log_likelihood": log_likelihood,
            "commitment": commitment,
        }

    def temperature_at(self, step: int) -> float:
        """Return τ at an optimiser step, counted from 0."""
        temperature, steps = self.temperatures
        return temperature * min(1.0, step / steps) if steps else temperature

    def schedule(self, step: int) -> dict[str, float]:
        """Return the temperature at a step, if it changes."""
        return {"temperature": self.temperature_at(step)} if self.temperatures[1] else {}

    def _commitment(self, embedded: Tensor, chosen: Tensor) -> Tensor:
        return self.commitment * (embedded - chosen.detach()).square().flatten(1).sum(1)

    def _log_likelihood(self, chosen: Tensor, x: Tensor) -> Tensor:
        log_prob: Tensor = self.likelihood(chosen).log_prob(x)
        return log_prob

    # -- the interface of discrete models --------------------------------------------------------

    def embed(self, batch: Batch) -> Tensor:
        """Return what the encoder makes of images, ``[B, h, w, D]``."""
        embedded: Tensor = self.encoder(batch.x).to(batch.x.dtype)
        return embedded.permute(0, 2, 3, 1)

    def scores(self, embedded: Tensor) -> Tensor:
        """Return minus the squared distances of positions ``[..., D]`` to codes, ``[..., K]``."""
        return self.quantizer.scores(embedded)

    @property
    def code_vectors(self) -> Tensor:
        """The codebook, ``[K, D]``."""
        return self.quantizer.codebook

    def likelihood(self, chosen: Tensor) -> Distribution:
        """Return p(x|z) over ``[C, H, W]`` for numbers of codes ``[B, h, w, D]``."""
        parameters = self.decoder(chosen.permute(0, 3, 1, 2)).to(chosen.dtype)
        distribution: Distribution = self.family(parameters)
        return distribution

    def decode_codes(self, code: Tensor) -> Tensor:
        """Return the mean of p(x|z) for grids ``[n, h, w]``: ``[n, C, H, W]`` in [0, 1]."""
        return self.likelihood(self.quantizer(code)).mean

    def log_likelihood_of(self, batch: Batch, code: Tensor) -> Tensor:
        """Return log p(x|code) at grids ``[S, B, h, w]``: ``[S, B]``."""
        parts = [self._log_likelihood(self.quantizer(each), batch.x) for each in code]
        return torch.stack(parts)

    def sample(
        self, n: int, noise: Noise, y: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Decode grids of codes drawn uniformly, ``[n, C, H, W]``.

        They look like no data, for which a prior over the codes is trained: ``model=prior``.
        """
        uniform = noise.uniform(*self.code_shape)[0]
        return self.decode_codes((uniform * self.codes).long().to(self.device))

    # -- use ------------------------------------------------------------------------------------

    def exports(self) -> dict[str, Export]:
        """Return the encoder to codes and the decoder of codes."""
        rows = torch.arange(base.EXPORT_ROWS * self.code_shape[0] * self.code_shape[1])
        code = (rows * 7 % self.codes).view(base.EXPORT_ROWS, *self.code_shape).to(self.device)
        x = self.decode_codes(code)
        encoder, decoder = _Encoder(self), _Decoder(self)
        means = "the mean of p(x|z)"
        return {
            "encoder": Export(encoder, {"x": x}, ["code"], "the code nearest to each position"),
            "decoder": Export(decoder, {"code": code}, ["image"], means, self.decode_codes),
        }

    def numbers_per_example(self, training: bool) -> int:
        """Return how many numbers a step holds for an image at least."""
        positions, widest = math.prod(self.code_shape), max(self.settings["channels"])
        pixels = super().numbers_per_example(training)
        return int(pixels + positions * (self.codes + widest))

    def describe(self) -> str:
        """Return what the model is, in a few words."""
        grid = "×".join(map(str, self.code_shape))
        return f"VQ-VAE with a {grid} grid of {self.codes} codes"

    def protocol(self) -> dict[str, str]:
        """Return the family."""
        return {"likelihood": self.family.name}


class _Encoder(nn.Module):
    """Images to codes, for other programs."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.encoder, self.quantizer = model.encoder, model.quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer.scores(self.encoder(x).permute(0, 2, 3, 1)).argmax(-1)


class _Decoder(nn.Module):
    """Codes to images, for other programs."""

    def __init__(self, model: VQVAE) -> None:
        super().__init__()
        self.quantizer, self.decoder, self.family = model.quantizer, model.decoder, model.family

    def forward(self, code: Tensor) -> Any:
        return self.family(self.decoder(self.quantizer(code).permute(0, 3, 1, 2))).mean
