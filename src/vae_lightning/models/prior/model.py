"""A learnt prior over the codes of a trained model: what makes it generate, and a bound.

The second stage of van den Oord et al. 2017, "Neural Discrete Representation Learning"
(arXiv:1711.00937), with a causal transformer for their PixelCNN. Shapes: ``B`` examples, ``S``
samples, ``P`` positions of the grid in the order of reading, ``K`` codes.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, validate_call
from torch import Tensor

from vae_lightning.configuration.building import class_of
from vae_lightning.configuration.quoting import printable
from vae_lightning.models import base
from vae_lightning.models.base import Batch, DataSpec, DiscreteModel, Export, Figure, Noise
from vae_lightning.models.prior.transformer import Cache, Transformer

_DRAWN_TOGETHER = 500  # grids whose keys and values are held at once: 37 MB by default


class Prior(base.CodePrior):
    """p(z) over the codes z of a trained model, whose weights stay as they are.

    Training lowers −log p(z) of codes that are drawn anew at each visit, z ~ q(z|x) ∝
    exp(score / τ). With the decoder's p(x|z) that makes a bound on log p(x), the ELBO:
    log p(x|z) + log p(z) − log q(z|x). With the most likely codes in place of drawn ones,
    log p(x|z) + log p(z) is a bound as well, and a lower one.
    """

    terms: ClassVar[Sequence[str]] = ("log_prior",)
    figures: Mapping[str, Figure] = MappingProxyType(
        {
            "loss": Figure("loss", better="min"),
            "elbo": Figure("ELBO"),
            "log_likelihood": Figure("log-likelihood"),
            "log_prior": Figure("log p(z)"),
            "entropy": Figure("−log q(z|x)", better="none"),
            "elbo_of_nearest": Figure("ELBO, nearest codes"),
        }
    )

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        data: DataSpec,
        autoencoder: dict[str, Any] | None = None,
        width: PositiveInt = 64,
        layers: PositiveInt = 3,
        heads: PositiveInt = 4,
        num_classes: NonNegativeInt = 0,
        temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.2,
    ) -> None:
        """Build the transformer, and the trained model without its weights.

        Args:
            data: the spec of the data, which is the trained model's.
            autoencoder: the trained model: ``target``, ``settings``, and the ``run`` and ``step``
                that its weights come from. Training fills it in, from ``data.run``.
            width: of the transformer.
            layers: its blocks.
            heads: of the attention; they divide the width.
            num_classes: labels that the prior is conditional on: p(z|y); 0: none.
            temperature: τ of the codes that are drawn.

        Raises:
            ValueError: a value is of the wrong type or out of range, or values don't go together.
        """
        super().__init__(data, base.arguments(locals(), "data"))
        if autoencoder is None:
            raise ValueError(
                "autoencoder=null: a prior learns the codes of a trained model; "
                "type data=codes data.run=<run of a VQ-VAE>"
            )
        if width % heads:
            raise ValueError(f"heads={heads}: must divide width={width}")
        if num_classes not in (0, len(data.class_names)):
            labels = f"{len(data.class_names)} labels" if data.class_names else "no labels"
            raise ValueError(f"num_classes={num_classes}: the data has {labels}")
        kind = class_of("model.autoencoder.target", autoencoder.get("target"), DiscreteModel)  # type: ignore[type-abstract]
        self.autoencoder = kind(data, **autoencoder["settings"]).requires_grad_(False).eval()
        self.quantity = self.autoencoder.quantity_with_prior
        self.meaning = self.autoencoder.meaning_with_prior
        self.num_classes, self.temperature = num_classes, temperature
        positions = math.prod(self.autoencoder.code_shape)
        self.transformer = Transformer(
            self.autoencoder.codes, positions, width, layers, heads, num_classes
        )

    def train(self, mode: bool = True) -> "Prior":
        """Change the mode of the transformer; the trained model stays in evaluation mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    # -- the distributions ------------------------------------------------------------------------

    def log_prior(self, code: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(z), or log p(z|y), of grids ``[B, *grid]``: ``[B]``, in nats."""
        flat = code.flatten(1)
        logits = self.transformer(flat, self._labels(y, len(flat), flat.device))
        log_probs = logits.float() if logits.dtype is not torch.float64 else logits
        chosen: Tensor = log_probs.log_softmax(-1).gather(-1, flat[..., None])
        return chosen.flatten(1).sum(1)

    def _labels(self, y: Tensor | None, count: int, device: torch.device) -> Tensor:
        if not self.num_classes:
            return torch.zeros(count, dtype=torch.int64, device=device)
        if y is None:
            raise ValueError("a label-conditional prior needs labels y")
        return y

    # -- training and evaluation ------------------------------------------------------------------

    def loss(self, batch: Batch, noise: Noise, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return −log p(z) of codes drawn now, ``[B]``, and its term, ``[B]``."""
        # Half precision would choose other codes than evaluation does.
        with torch.no_grad(), torch.autocast(batch.x.device.type, enabled=False):
            scores = self.autoencoder.scores(self.autoencoder.embed(batch))
            code = base.draw_codes(scores, noise, self.temperature)[0]
        log_prior = self.log_prior(code, batch.y)
        return -log_prior, {"log_prior": log_prior.detach()}

    def measure(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Return the figures of each example by one draw of its codes, each ``[B]``."""
        scores = self.autoencoder.scores(self.autoencoder.embed(batch))
        log_likelihood, log_prior, log_q = self.drawn(batch, scores, noise)
        nearest = scores.argmax(-1)
        of_nearest = self.autoencoder.log_likelihood_of(batch, nearest[None])[0]
        return {
            "loss": -log_prior[0],
            "elbo": (log_likelihood + log_prior - log_q)[0],
            "log_likelihood": log_likelihood[0],
            "log_prior": log_prior[0],
            "entropy": -log_q[0],
            "elbo_of_nearest": of_nearest + self.log_prior(nearest, batch.y),
        }

    # -- use --------------------------------------------------------------------------------------

    def sample(
        self,
        n: int,
        noise: Noise,
        y: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """Draw grids of codes, one position after the other, and decode them, ``[n, ...]``.

        Args:
            n: how many.
            noise: of ``n`` rows.
            y: labels ``[n]``; drawn uniformly where a conditional prior is given none.
            temperature: divides the logits: below 1 more typical, above 1 more various; 0: the
                most likely code at each position.
            top_k: draw from the so many most likely codes only.
        """
        if self.num_classes and y is None:
            y = noise.integers(self.num_classes)
        code = self.draw_grids(n, noise, y, temperature, top_k)
        parts = [self.autoencoder.decode_codes(part) for part in torch.split(code, _DRAWN_TOGETHER)]
        return torch.cat(parts)

    def draw_grids(
        self,
        n: int,
        noise: Noise,
        y: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """Return grids drawn from the prior, ``[n, *grid]``: see ``sample``."""
        uniform = noise.uniform(self.transformer.position.shape[0])[0].to(self.device)
        labels = self._labels(None if y is None else y.to(self.device), n, self.device)
        parts = [
            self._draw(*part, temperature, top_k)
            for part in zip(
                torch.split(uniform, _DRAWN_TOGETHER),
                torch.split(labels, _DRAWN_TOGETHER),
                strict=True,
            )
        ]
        return torch.cat(parts).view(n, *self.autoencoder.code_shape)

    def _draw(
        self, uniform: Tensor, labels: Tensor, temperature: float, top_k: int | None
    ) -> Tensor:
        """Return rows of codes, by a uniform number for each ``[B, P]`` and labels ``[B]``."""
        before = labels
        caches: Sequence[Cache | None] = [None] * len(self.transformer.blocks)
        drawn = []
        for position in range(uniform.shape[1]):
            logits, caches = self.transformer.step(before, position, caches)
            if top_k is not None and top_k < logits.shape[-1]:
                likely = logits.topk(top_k)
                hidden = torch.full_like(logits, -math.inf)
                logits = hidden.scatter_(1, likely.indices, likely.values)
            if temperature:
                before = base.choose(logits / temperature, uniform[None, :, position])[0]
            else:
                before = logits.argmax(-1)
            drawn.append(before)
        return torch.stack(drawn, 1)

    def exports(self) -> dict[str, Export]:
        """Return the parts of the trained model, and the prior's logits."""
        parts = self.autoencoder.exports()
        code = next(iter(parts["decoder"].inputs.values())).flatten(1)
        described = "the logits of each position's code, given the codes before it"
        inputs = {"code": code}
        if self.num_classes:
            inputs["y"] = torch.arange(len(code), device=code.device) % self.num_classes
        return {**parts, "prior": Export(self.transformer, inputs, ["logits"], described)}

    def numbers_per_example(self, training: bool) -> int:
        """Return how many numbers a step holds for an example at least."""
        positions, width = self.transformer.position.shape
        layers = len(self.transformer.blocks)
        inner = self.autoencoder.numbers_per_example(training=False)
        return int(inner + positions * (width * (12 * layers if training else 4) + 1))

    def describe(self) -> str:
        """Return what the model is, in a few words."""
        layers = len(self.transformer.blocks)
        run = printable(self.settings["autoencoder"]["run"])
        return f"Prior over the codes of {run} with {layers} layers"

    def protocol(self) -> dict[str, str]:
        """Return the family and how codes are drawn."""
        return self.autoencoder.protocol() | {"temperature": f"{self.temperature:g}"}
