"""What every model offers: training, checkpoints, evaluation, pictures and export need no more.

Shapes: ``B`` examples in a batch, ``S`` samples, ``D`` latent dimensions; ``...`` is the shape of
an example. Terms and figures are one number per example, ``[B]``, summed over the example; most of
them are in nats.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, kl_divergence

from vae_lightning.configuration.quoting import printable

LEVELS = 256
"""Levels of a byte: what a ``unit`` value is one of."""

EXPORT_ROWS = 33
"""Examples of the inputs of an exported part, on which its files are compared."""

Values = Literal["unit", "continuous", "binary", "tokens", "sets"]

_DECODED_TOGETHER = 500  # latents: the activations of so many fit into a processor's cache


class Batch(NamedTuple):
    """What a step receives.

    Attributes:
        x: examples, ``[B, ...]``.
        y: labels ``[B]``, int64; None where the data has none.
        indices: the place of each example in its file, ``[B]``, which seeds evaluation noise.
        total: examples in this batch over all processes; None: these are all.
        first: the place of this process's first example among them.
    """

    x: Tensor
    y: Tensor | None = None
    indices: Tensor | None = None
    total: int | None = None
    first: int = 0

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device. Lightning calls this once instead of walking the tuple."""
        y, indices = (each if each is None else each.to(device) for each in (self.y, self.indices))
        return Batch(self.x.to(device), y, indices, self.total, self.first)

    def take(self, rows: Tensor | list[int]) -> Batch:
        """Return some of the examples, by their places in the batch."""
        y, indices = (each if each is None else each[rows] for each in (self.y, self.indices))
        return Batch(self.x[rows], y, indices)


@dataclass(frozen=True)
class DataSpec:
    """What a model has to know of its data. Checkpoints store it with the model's settings.

    Attributes:
        shape: of one example: ``(1, 28, 28)``, ``(3, 32, 32)``, or ``(64,)`` for 64 tokens.
        values: ``unit``: one of 256 levels in [0, 1]; ``continuous``: any number in [0, 1];
            ``binary``: 0 or 1; ``tokens``: whole numbers below ``vocabulary``; ``sets``: the same,
            of which each step lists some above 1 in ascending order, then 1, then 0.
        vocabulary: how many tokens there are; 0 for other values.
        class_names: names of the labels; empty where there are none.
    """

    shape: tuple[int, ...]
    values: Values
    vocabulary: int = 0
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Take lists as well, which is what checkpoints and JSON hold."""
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        is_right = (
            all(type(length) is int and length > 0 for length in self.shape)
            and self.values in get_args(Values)
            and type(self.vocabulary) is int
            and all(isinstance(name, str) for name in self.class_names)
        )
        if not is_right:
            raise ValueError(f"no spec of data: {printable(self)[:200]}")

    @property
    def is_of_tokens(self) -> bool:
        """Whether values are whole numbers with a meaning of their own, as in music."""
        return self.values in ("tokens", "sets")

    @property
    def has_voices(self) -> bool:
        """Whether an example is music, ``[T, V]``: steps of voices."""
        return self.values == "tokens" and len(self.shape) == 2

    def stored(self) -> dict[str, Any]:
        """Return the spec as a checkpoint holds it: plain values, lists instead of tuples."""
        plain = asdict(self)
        return plain | {key: list(plain[key]) for key in ("shape", "class_names")}


@dataclass(frozen=True)
class Figure:
    """How a measured number is written, and which way is better.

    Attributes:
        label: its name in tables and charts.
        unit: ``nats`` are per example; empty for shares and counts.
        better: ``max``, ``min``, or ``none`` where neither end is better.
        per: the count that ``measure`` returns with it, by whose sum its sum is divided: accuracies
            are per token, not per example. Empty: the figure is a mean over examples.
    """

    label: str
    unit: str = "nats"
    better: Literal["max", "min", "none"] = "max"
    per: str = ""


class Noise(Protocol):
    """Random numbers for a batch, on the CPU.

    In training they are a function of (seed, batch, row in the batch of all processes), in
    evaluation of the example's index. Each call draws from a stream of its own, so the order of
    the calls counts and nothing else does.
    """

    def normal(self, *shape: int, samples: int = 1) -> Tensor:
        """Return standard normal noise, float32, ``[S, B, *shape]``."""

    def uniform(self, *shape: int, samples: int = 1) -> Tensor:
        """Return noise uniform on [0, 1), float32, ``[S, B, *shape]``."""

    def integers(self, high: int) -> Tensor:
        """Return whole numbers uniform on 0 … high − 1, int64, ``[B]``."""


class Latents(Protocol):
    """A distribution over latents ``[..., D]``: a prior or a posterior.

    A Gaussian, a flow and a hierarchy all have these two methods; only some have a mean. torch's
    own ``rsample`` takes no noise, hence the other name.
    """

    def draw(self, noise: Noise, samples: int = 1, temperature: float = 1.0) -> Tensor:
        """Return samples ``[S, B, D]`` made of given noise, which ``temperature`` multiplies."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of latents ``[..., D]``: ``[...]``, in nats."""


@dataclass
class Export:
    """A part of a model that is written for other programs.

    Attributes:
        network: what is traced.
        inputs: examples of its inputs by name, each ``[EXPORT_ROWS, ...]``.
        outputs: names of its outputs.
        description: what it computes, for the model card.
        reference: what each file is compared with: a method of the model that computes the same.
            None: ``network`` itself.
    """

    network: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    description: str = ""
    reference: Callable[..., Tensor | tuple[Tensor, ...]] | None = None


def arguments(frame: Mapping[str, Any], *left_out: str) -> dict[str, Any]:
    """Return the arguments of a constructor from its ``locals()``, taken in its first line."""
    return {key: frame[key] for key in frame if key not in ("self", "__class__", *left_out)}


def target_of(kind: type) -> str:
    """Return the name by which a configuration or a checkpoint names a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


class Model(nn.Module, ABC):
    """A generative model of examples, of tensors and distributions alone.

    ``type(model)(model.data, **model.settings)`` builds it anew. So the constructor takes a
    ``DataSpec`` and plain values, which every checkpoint holds. It refuses values and pairs that
    mean nothing with a ValueError that starts with ``key=value``.

    Attributes:
        data: the spec of the data.
        settings: the constructor's other arguments, as they were given.
        figures: what ``measure`` returns, by name and in order.
        shown: figures that a run's table shows beside the terms.
        importance_samples: how many an example gets in log p(x), if nothing else is asked for.
        terms: what ``loss`` returns beside the loss; each has its ``Figure``.
        criterion: the figure that chooses the best checkpoint of a run.
        comparison: the figure by which runs and trials of other settings compare; by default the
            criterion.
        num_classes: labels that the model is conditional on; 0: unconditional.
        quantity: whether log p(x) is the ``mass`` of discrete examples, a ``density``, or
            ``neither`` and so no likelihood.
        meaning: the same in words, for reports.
    """

    terms: ClassVar[Sequence[str]] = ("elbo",)
    figures: Mapping[str, Figure] = MappingProxyType({"elbo": Figure("ELBO")})
    criterion: str = "elbo"
    shown: ClassVar[Sequence[str]] = ()
    importance_samples: ClassVar[int] = 5000
    comparison: str = ""
    num_classes: int = 0
    quantity: Literal["mass", "density", "neither"] = "neither"
    meaning: str = "the model's own figures: not known to be likelihoods"

    def __init__(self, data: DataSpec, settings: Mapping[str, Any]) -> None:
        """Keep what the model can be built from again."""
        super().__init__()
        self.data = data
        self.settings = dict(settings)
        self.comparison = self.comparison or self.criterion

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter([*self.parameters(), *self.buffers()])).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(iter([*self.parameters(), *self.buffers()])).dtype

    def take(self, batch: Batch) -> Batch:
        """Return a batch on the model's device, and of its type where it isn't of tokens."""
        here = batch.to(self.device)
        return here._replace(x=here.x.to(self.dtype)) if here.x.is_floating_point() else here

    @abstractmethod
    def loss(self, batch: Batch, noise: Noise, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what training lowers, ``[B]``, and the ``terms``, each ``[B]`` and detached."""

    @abstractmethod
    def measure(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Return the ``figures`` of each example in validation and test, each ``[B]``."""

    @abstractmethod
    def sample(
        self, n: int, noise: Noise, y: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Return new examples ``[n, ...]``; ``y`` holds their labels ``[n]``, or they are drawn."""

    # What a model may leave as it is:

    def initialize(self, examples: Iterable[Batch]) -> None:
        """Set weights from the training data before the first step, as a mean image.

        Write into the weights in place: an optimiser holds them. They may be on another device and
        of another type than the examples, which are on the CPU.
        """

    def after_step(self, noise: Noise) -> None:
        """Update what no gradient reaches, once per optimiser step.

        Use the detached sums that ``loss`` kept, over all its calls since the last step. A model
        that keeps sums all-reduces them here, where ``torch.distributed`` is initialised.
        """

    def schedule(self, step: int) -> dict[str, float]:
        """Return what the model changes with the step, by name; it is logged in training."""
        return {}

    def exports(self) -> dict[str, Export]:
        """Return the parts that are written as ONNX and ``torch.export`` programs, by name."""
        return {}

    def numbers_per_example(self, training: bool) -> int:
        """Return how many numbers a step holds for an example at least, to foresee the memory."""
        return int(torch.Size(self.data.shape).numel())

    def describe(self) -> str:
        """Return what the model is, in a few words."""
        return type(self).__name__

    def protocol(self) -> dict[str, str]:
        """Return what figures of such models must have in common to compare, for reports."""
        return {}


class Autoencoder(Model):
    """A model with a code for each example: ``encode`` and pictures of reconstructions need it."""

    @abstractmethod
    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return the code of each example by column, each ``[B, ...]``."""

    @abstractmethod
    def reconstruct(self, batch: Batch) -> Tensor:
        """Return each example as its code gives it back, ``[B, ...]``."""


class LatentModel(Autoencoder):
    """A model with a continuous latent vector, of ``latent_dim`` numbers.

    Interpolations, traversals, maps, log p(x) and the explorer need one. Prior, posterior,
    decoder and ``point`` suffice: the rest has a default, which samples the KL if need be.
    """

    latent_dim: int
    terms: ClassVar[Sequence[str]] = ("elbo", "log_likelihood", "kl")
    figures: Mapping[str, Figure] = MappingProxyType(
        {
            "loss": Figure("loss", better="min"),
            "elbo": Figure("ELBO"),
            "log_likelihood": Figure("log-likelihood"),
            "kl": Figure("KL", better="none"),
        }
    )

    @abstractmethod
    def prior(self, y: Tensor | None = None) -> Latents:
        """Return p(z), or p(z|y), over ``[D]``."""

    @abstractmethod
    def posterior(self, batch: Batch) -> Latents:
        """Return q(z|x) over ``[B, D]``."""

    @abstractmethod
    def log_likelihood(self, batch: Batch, z: Tensor) -> Tensor:
        """Return log p(x|z) at latents ``[S, B, D]``: ``[S, B]``."""

    @abstractmethod
    def decode(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the mean, or the most likely, example of latents ``[n, D]``: ``[n, ...]``."""

    @abstractmethod
    def point(self, batch: Batch) -> Tensor:
        """Return the latent that stands for an example, ``[B, D]``: the posterior's mean."""

    def kl(self, batch: Batch, posterior: Latents, z: Tensor) -> Tensor:
        """Return KL(q(z|x) ‖ p(z)), ``[B]``: where torch knows it, in closed form.

        Elsewhere it is the mean of log q(z|x) − log p(z) over the samples z, ``[S, B, D]``.
        """
        prior = self.prior(batch.y)
        if isinstance(posterior, Distribution) and isinstance(prior, Distribution):
            try:
                return kl_divergence(posterior, prior)
            except NotImplementedError:
                pass
        return (posterior.log_prob(z) - prior.log_prob(z)).mean(0)

    def kl_of_each_latent(self, posterior: Latents) -> Tensor | None:
        """Return the KL of each latent, ``[B, D]``; None where it isn't a sum over latents."""
        return None

    def loss(self, batch: Batch, noise: Noise, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return minus the ELBO of one sample of q(z|x), and its terms."""
        posterior = self.posterior(batch)
        z = posterior.draw(noise)
        log_likelihood, kl = self.log_likelihood(batch, z).mean(0), self.kl(batch, posterior, z)
        loss = kl - log_likelihood
        terms = {"elbo": -loss, "log_likelihood": log_likelihood, "kl": kl}
        return loss, {name: term.detach() for name, term in terms.items()}

    def measure(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Return loss, ELBO, log-likelihood and KL by one sample of q(z|x), each ``[B]``."""
        loss, terms = LatentModel.loss(self, batch, noise, 0)
        return {"loss": loss, **terms}

    def sample(
        self, n: int, noise: Noise, y: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Decode ``n`` draws from the prior, ``[n, ...]``.

        Labels that are missing are drawn after the latents, so a model whose prior depends on the
        label overrides this method.

        Args:
            n: how many.
            noise: of ``n`` rows.
            y: labels ``[n]``; drawn uniformly where a conditional model is given none.
            temperature: multiplies the prior's spread: below 1 more typical, above 1 more various.
        """
        z = self.prior(y).draw(noise, temperature=temperature)[0]
        if self.num_classes and y is None:
            y = noise.integers(self.num_classes).to(z.device)
        examples = z.new_empty(0)
        for first in range(0, max(n, 1), _DECODED_TOGETHER):
            rows = slice(first, first + _DECODED_TOGETHER)
            decoded = self.decode(z[rows], None if y is None else y[rows])
            if not first:
                examples = decoded.new_empty(n, *decoded.shape[1:])
            examples[rows] = decoded  # in place: joining all at the end would hold them twice
        return examples

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return the latent that stands for each example: ``loc``, ``[B, D]``."""
        return {"loc": self.point(batch)}

    def reconstruct(self, batch: Batch) -> Tensor:
        """Decode the latent that stands for each example, ``[B, ...]``."""
        return self.decode(self.point(batch), batch.y)


class DiscreteModel(Autoencoder):
    """A model whose code is a grid of whole numbers below ``codes``, of shape ``code_shape``.

    q(code|x) takes each position by itself: ∝ exp(score / τ) at a temperature τ. At τ = 0 it is
    the code with the highest score. log p(x|code) alone is no bound on log p(x).

    Attributes:
        codes: K.
        code_shape: of the grid.
        quantity_with_prior: what ``quantity`` is with a prior over the codes.
        meaning_with_prior: what ``meaning`` is then.
    """

    codes: int
    code_shape: tuple[int, ...]
    quantity_with_prior: Literal["mass", "density", "neither"] = "neither"
    meaning_with_prior: str = "a prior's bound: not known to be a likelihood"

    @abstractmethod
    def embed(self, batch: Batch) -> Tensor:
        """Return what the encoder makes of each example, ``[B, *code_shape, D]``."""

    @abstractmethod
    def scores(self, embedded: Tensor) -> Tensor:
        """Return the score of each code, ``[..., K]``, for embedded positions ``[..., D]``."""

    @abstractmethod
    def decode_codes(self, code: Tensor) -> Tensor:
        """Return an example for each grid of codes ``[n, *code_shape]``: ``[n, ...]``."""

    @abstractmethod
    def log_likelihood_of(self, batch: Batch, code: Tensor) -> Tensor:
        """Return log p(x|code) at grids of codes ``[S, B, *code_shape]``: ``[S, B]``."""

    @property
    def code_vectors(self) -> Tensor | None:
        """The vector of each code, ``[K, D]``; None: the codes have none."""
        return None

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Return the code of each example with the highest scores: ``code``."""
        return {"code": self.scores(self.embed(batch)).argmax(-1)}

    def reconstruct(self, batch: Batch) -> Tensor:
        """Decode the code of each example, ``[B, ...]``."""
        return self.decode_codes(self.encode(batch)["code"])


def with_codes(model: Model) -> Model:
    """Return the trained model whose codes a prior is of; any other model itself."""
    return model.autoencoder if isinstance(model, CodePrior) else model


class CodePrior(Model):
    """A model of the codes of a trained model, which it contains: p(z), and so a bound.

    Attributes:
        autoencoder: the trained model.
        temperature: τ of q(z|x), by which codes are drawn.
    """

    importance_samples: ClassVar[int] = 8
    autoencoder: DiscreteModel
    temperature: float

    @property
    def codes_of(self) -> str:
        """The run that the trained model comes from, and the step of its checkpoint."""
        described = self.settings["autoencoder"]
        return printable(f"{described['run']}, step {described['step']}")

    @abstractmethod
    def log_prior(self, code: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(z), or log p(z|y), of grids ``[B, *grid]``: ``[B]``."""

    @abstractmethod
    def sample(
        self,
        n: int,
        noise: Noise,
        y: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """Return new examples; ``top_k``: of the so many most likely codes at each position."""

    def drawn(
        self, batch: Batch, scores: Tensor, noise: Noise, samples: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log p(x|z), log p(z) and log q(z|x) at codes drawn from q, each ``[S, B]``.

        Args:
            batch: B examples.
            scores: of their codes, ``[B, *grid, K]``.
            noise: to draw by.
            samples: S.
        """
        code = draw_codes(scores, noise, self.temperature, samples)
        log_probs = (scores / self.temperature).log_softmax(-1).expand(samples, *scores.shape)
        log_q = log_probs.gather(-1, code[..., None])[..., 0].flatten(2).sum(2)
        log_prior = torch.stack([self.log_prior(each, batch.y) for each in code])
        return self.autoencoder.log_likelihood_of(batch, code), log_prior, log_q


def draw_codes(scores: Tensor, noise: Noise, temperature: float, samples: int = 1) -> Tensor:
    """Return codes drawn ∝ exp(score / τ) from scores ``[B, *grid, K]``: ``[S, B, *grid]``.

    At τ = 0 they are the codes with the highest scores.
    """
    if not temperature:
        return scores.argmax(-1).expand(samples, *scores.shape[:-1])
    uniform = noise.uniform(*scores.shape[1:-1], samples=samples).to(scores.device)
    return choose(scores / temperature, uniform)


def choose(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return a code for each uniform number ``[S, ...]``, by logits ``[..., K]``: ``[S, ...]``.

    It is the first code with whose probability the sum of the probabilities passes the number.
    """
    cumulative = logits.softmax(-1).cumsum(-1)
    passed = uniform.to(cumulative) * cumulative[..., -1]  # the last sum may be a little below 1
    code = torch.searchsorted(
        cumulative.expand(*uniform.shape, -1).contiguous(), passed[..., None], right=True
    )
    return code[..., 0].clamp_(max=logits.shape[-1] - 1)
