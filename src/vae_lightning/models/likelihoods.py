"""The families p(x|z): a decoder's output for each pixel becomes a distribution over images.

``log_prob`` sums over the pixels. The mean of every family lies in [0, 1], so it can be shown as an
image.
"""

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import Bernoulli, Distribution, Independent, Normal, constraints
from torch.nn import functional as F

from vae_lightning.configuration.building import class_of
from vae_lightning.models.base import LEVELS

LikelihoodName = Literal["bernoulli", "continuous_bernoulli", "gaussian", "discretized_logistic"]
PixelScale = float | Literal["learnt", "per_pixel"]

SCALE_FLOOR = 1e-3
"""The smallest learnt scale, a quarter of a grey level.

Without a floor a density over grey levels has no maximum.
"""

# -- the families ----------------------------------------------------------------------------------


if TYPE_CHECKING:
    IndependentBernoulli = Independent[Bernoulli]
else:
    IndependentBernoulli = Independent  # which takes no type in torch 2.7


class BernoulliImage(IndependentBernoulli):
    """Independent black-or-white pixels, as in Kingma & Welling (arXiv:1312.6114), Appendix C.1.

    For grey levels in [0, 1] ``log_prob`` is minus the cross-entropy that the PyTorch VAE example
    minimises. It is a fair objective, but it is a log-likelihood for binary images only.
    """

    def __init__(self, logits: Tensor) -> None:
        """Take the log-odds of a white pixel, ``[..., C, H, W]``."""
        # Validation would refuse grey levels, and cost a pass over the images at every step.
        super().__init__(Bernoulli(logits=logits, validate_args=False), 3, validate_args=False)
        self.logits = logits

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p of images ``[..., C, H, W]``; gradients reach only the logits."""
        logits, value = torch.broadcast_tensors(self.logits, value)  # type: ignore[no-untyped-call]
        # A GPU wants few kernels. Compiled for one by torch 2.11, the function below gave gradients
        # of zero: it writes into its own buffers.
        if logits.is_cuda or torch.compiler.is_compiling():
            pixels = F.binary_cross_entropy_with_logits(logits, value, reduction="none")
            return -pixels.flatten(-3).sum(-1)
        log_prob: Tensor = _BernoulliLogProb.apply(logits, value)
        return log_prob


class _BernoulliLogProb(torch.autograd.Function):
    """Σ x·l − log(1 + exp(l)) over the pixels of images x with logits l, and its gradient x − σ(l).

    Images and logits have one shape. One sigmoid serves value and gradient, since
    log(1 + exp(l)) = max(l, 0) − log max(σ(l), σ(−l)). Torch's cross-entropy computes an
    exponential and a logarithm for each pixel, and another exponential in the backward pass. The
    argument of the logarithm lies in [½, 1], so the product over a hundred pixels fits into single
    precision and needs only one logarithm.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor) -> Tensor:
        white = torch.sigmoid(logits)
        ctx.save_for_backward(white, value)
        # The next lines use only one more buffer: allocating another costs more than filling it.
        pixels = 1 - white
        likelier = torch.maximum(pixels, white, out=pixels).flatten(-3)
        together = math.gcd(count := likelier.shape[-1], 98)
        products = likelier.view(*likelier.shape[:-1], count // together, together).prod(-1)
        log_prob = products.log().sum(-1) - torch.clamp(logits, min=0, out=pixels).flatten(-3).sum(
            -1
        )
        return log_prob.add_(torch.mul(logits, value, out=pixels).flatten(-3).sum(-1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        white, value = ctx.saved_tensors
        return (white - value).mul_(-gradient[..., None, None, None]), None


class ContinuousBernoulli(Distribution):
    """The density on [0, 1] proportional to exp(logit · x).

    Loaiza-Ganem & Cunningham 2019 (arXiv:1907.06845). It uses the logits throughout. Torch's own
    class uses a clamped probability, so beyond a logit of 16 it no longer integrates to one.
    """

    arg_constraints: ClassVar = {"logits": constraints.real}

    def __init__(self, logits: Tensor) -> None:
        """Take the logits, of any shape."""
        super().__init__(logits.shape, validate_args=False)
        self.logits = logits
        # Near zero the closed forms below are 0/0; there their series hold to the last digit.
        self._small = logits.abs() < 0.05
        self._safe = torch.where(self._small, torch.ones_like(logits), logits)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of each pixel: logit · x − log((exp(logit) − 1) / logit)."""
        size = self._safe.abs()  # the normaliser of −logit is that of logit, less the logit
        exact = self._safe.clamp(min=0) + torch.log(-torch.expm1(-size)) - size.log()
        series = self.logits / 2 + self.logits**2 / 24 - self.logits**4 / 2880
        return self.logits * value - torch.where(self._small, series, exact)

    @property
    def mean(self) -> Tensor:
        """1 / (1 − exp(−logit)) − 1 / logit, in (0, 1)."""
        exact = -1 / torch.expm1(-self._safe) - 1 / self._safe
        # The range is wider than above. Single precision, and ONNX without an expm1, lose digits of
        # the difference sooner.
        series = (
            0.5
            + self.logits / 12
            - self.logits**3 / 720
            + self.logits**5 / 30240
            - self.logits**7 / 1209600
        )
        return torch.where(self.logits.abs() < 0.5, series, exact)


class DiscretizedLogistic(Distribution):
    """The mass of a logistic density on each of 256 grey levels; the outermost two take its tails.

    Kingma et al. 2016 (arXiv:1606.04934), Appendix C; Salimans et al. 2017 (arXiv:1701.05517),
    equation 2.
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        """Take locations on the grey axis from 0 to 1, and scales that broadcast to them."""
        super().__init__(loc.shape, validate_args=False)
        self.loc = loc
        self.scale = scale

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-mass of each pixel, whose grey level lies in [0, 1]."""
        half = 0.5 / (LEVELS - 1)
        above = (value + half - self.loc) / self.scale
        below = (value - half - self.loc) / self.scale
        # σ(b) − σ(a) = σ(b) σ(−a) (1 − exp(a − b)): no difference of two nearly equal numbers.
        width = torch.log(-torch.expm1(-2 * half / self.scale))
        lowest, highest = value < half, value > 1 - half
        left = torch.where(lowest, 0.0, F.logsigmoid(-below))
        right = torch.where(highest, 0.0, F.logsigmoid(above))
        return left + right + torch.where(lowest | highest, 0.0, width)

    @property
    def mean(self) -> Tensor:
        """The mean grey level in [0, 1]: the sum of the masses above each boundary of levels."""
        total = torch.zeros_like(self.loc)
        for level in range(LEVELS - 1):
            total += torch.sigmoid((self.loc - (level + 0.5) / (LEVELS - 1)) / self.scale)
        return total / (LEVELS - 1)


# -- from a decoder's output to a family -----------------------------------------------------------


class Likelihood(nn.Module):
    """Makes p(x|z) of what a decoder computes.

    One of the user's own, ``model.likelihood=my_package.MyLikelihood``, is a subclass without
    arguments. It sets ``parameters_per_pixel`` and ``quantity``, and defines ``forward``. The
    distribution that it returns has a ``mean`` in [0, 1] and a ``log_prob``, over ``[C, H, W]``.

    Attributes:
        parameters_per_pixel: how many numbers the decoder gives for each pixel: 2 if it also
            computes the scale.
        quantity: of a subclass, what its ``log_prob`` is: see ``kind_of_number``.
    """

    quantity: ClassVar[Literal["mass", "density", "neither"]] = "neither"

    def __init__(self, name: LikelihoodName = "bernoulli", scale: PixelScale = 0.1) -> None:
        """Choose the family.

        Args:
            name: ``bernoulli``, ``continuous_bernoulli``, ``gaussian`` or ``discretized_logistic``.
            scale: scale of the last two families, on the grey axis from 0 to 1: a number,
                ``learnt`` (one for all pixels) or ``per_pixel`` (from the decoder). A learnt scale
                stays above ``SCALE_FLOOR``.
        """
        super().__init__()
        self.name = name
        self.scale = scale
        has_scale = name in ("gaussian", "discretized_logistic")
        self.parameters_per_pixel = 2 if has_scale and scale == "per_pixel" else 1
        if has_scale and scale == "learnt":
            self.raw_scale = nn.Parameter(torch.tensor(_inverse_softplus(0.1)))

    def forward(self, parameters: Tensor) -> Distribution:
        """Return a distribution over ``[C, H, W]``.

        Args:
            parameters: ``[..., parameters_per_pixel · C, H, W]``. The first C are logits of the
                location.
        """
        if self.name == "bernoulli":
            return BernoulliImage(parameters)
        if self.name == "continuous_bernoulli":
            return Independent(ContinuousBernoulli(parameters), 3, validate_args=False)
        if self.scale == "per_pixel":
            parameters, raw = parameters.chunk(2, dim=-3)
            # An output of zero is a scale of 0.1: a decoder starts there.
            scale = SCALE_FLOOR + F.softplus(raw + _inverse_softplus(0.1))
        elif self.scale == "learnt":
            scale = SCALE_FLOOR + F.softplus(self.raw_scale)
        else:
            scale = parameters.new_full(
                (), self.scale
            )  # filled on its device: nothing is copied there
        loc = torch.sigmoid(parameters)
        if self.name == "gaussian":
            return Independent(
                Normal(loc, scale.expand_as(loc), validate_args=False), 3, validate_args=False
            )
        return Independent(DiscretizedLogistic(loc, scale), 3, validate_args=False)


def build_likelihood(name: LikelihoodName | str, scale: PixelScale = 0.1) -> Likelihood:
    """Return a family by its name, or one of the user's own by the full name of its class."""
    if "." not in name:
        return Likelihood(name, scale)  # type: ignore[arg-type]
    family = class_of("model.likelihood", name, Likelihood)()
    family.name = name  # type: ignore[assignment]
    return family


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))


# -- what a number means ----------------------------------------------------------------------

Quantity = Literal["mass", "density", "neither"]

_CROSS_ENTROPIES = {
    "bernoulli": "grey levels as probabilities: none of these is a likelihood of binary images",
    "continuous_bernoulli": "densities at 256 grey levels: not likelihoods of images; "
    "data.dequantize=true makes them likelihoods",
    "gaussian": "densities at 256 grey levels, without bound: not likelihoods of images; "
    "data.dequantize=true makes them likelihoods",
}
_MEANINGS = {
    "mass": "log-likelihoods of discrete images",
    "density": "log-densities of dequantised images in [0, 1]",
}


def kind_of_number(name: LikelihoodName | str, values: str) -> Quantity:
    """Say what ``log_prob`` is for data of some values.

    Args:
        name: the family.
        values: as in ``DataSpec``.

    Returns:
        ``mass``: the log-probability of a discrete image; ``density``: a log-density of continuous
        images in [0, 1]; ``neither``: a cross-entropy (grey levels under a Bernoulli), or a density
        at points that can only be 256 values, which has no bound.

    Raises:
        ValueError: the pair has no meaning.
    """
    if "." in name:
        return class_of("model.likelihood", name, Likelihood).quantity
    if values == "tokens":
        raise ValueError(f"likelihood={name}: the data are tokens, and this is a family of pixels")
    if name == "bernoulli":
        if values == "continuous":
            raise ValueError(
                "likelihood=bernoulli: not a density, which data.dequantize=true needs; "
                "type data.dequantize=false"
            )
        return "neither" if values == "unit" else "mass"
    if values == "binary":
        raise ValueError(
            f"likelihood={name}: black-and-white images need model.likelihood=bernoulli"
        )
    if name == "discretized_logistic":
        if values == "continuous":
            raise ValueError(
                "likelihood=discretized_logistic: a mass on the grey levels themselves; "
                "type data.dequantize=false"
            )
        return "mass"
    return "density" if values == "continuous" else "neither"


def meaning(name: LikelihoodName | str, quantity: Quantity) -> str:
    """Say in words what the figures of a model with this family are."""
    own = f"by {name}, which calls them no likelihoods"
    return _MEANINGS.get(quantity) or _CROSS_ENTROPIES.get(name, own)
