"""What evaluation measures in addition to the bound: log p(x), active latents, errors.

Shapes: ``S`` samples, ``B`` images in a batch, ``N`` images in all, ``D`` latent dimensions.
"""

import math

import torch
from torch import Tensor

ACTIVE_VARIANCE = 0.01
"""A latent is active if the variance of its posterior mean over the images is above this.

Burda et al., arXiv:1509.00519.
"""


class ImportanceEstimate:
    """An estimate of log p(x) from importance weights, any number of samples at a time.

    log p̂(x) = log (1/K) Σ_k p(x, z_k) / q(z_k|x) is a lower bound on log p(x) in expectation. More
    samples make it tighter (Burda et al., arXiv:1509.00519). Everything is float64, so the number
    of samples added at a time changes only rounding.
    """

    def __init__(self, images: int) -> None:
        """Start with no samples for ``images`` images."""
        self.samples = 0
        self._log_sum = torch.full((images,), -math.inf, dtype=torch.float64)
        self._log_sum_of_squares = self._log_sum.clone()

    def update(self, log_weights: Tensor) -> None:
        """Add samples: log p(x, z) − log q(z|x), ``[S, B]``."""
        log_weights = log_weights.detach().cpu().double()
        self.samples += len(log_weights)
        self._log_sum = torch.logaddexp(self._log_sum, log_weights.logsumexp(0))
        self._log_sum_of_squares = torch.logaddexp(
            self._log_sum_of_squares, (2 * log_weights).logsumexp(0)
        )

    @property
    def log_marginal(self) -> Tensor:
        """The estimate of log p(x), nats per image, ``[B]``."""
        return self._log_sum - math.log(self.samples)

    @property
    def effective_samples(self) -> Tensor:
        """(Σ w)² / Σ w², ``[B]``, between 1 and the number of samples: how many of them count."""
        return (2 * self._log_sum - self._log_sum_of_squares).exp()

    @property
    def variance(self) -> Tensor:
        """The variance of the estimate by the delta method, nats², ``[B]``.

        It is too small where few samples count.
        """
        return (1 / self.effective_samples - 1 / self.samples).clamp(min=0)


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of values over images, ``[N]``."""
    return float(values.double().std() / len(values) ** 0.5)


def spread(posterior_means: Tensor) -> Tensor:
    """Return the variance of each latent over N posterior means ``[N, D]``: ``[D]``; of one, 0."""
    return posterior_means.double().var(dim=0, correction=min(1, len(posterior_means) - 1))


def active(posterior_means: Tensor) -> Tensor:
    """Return which latents are active, ``[D]``, given all images' posterior means, ``[N, D]``."""
    return spread(posterior_means) > ACTIVE_VARIANCE


def code_use(counts: Tensor) -> dict[str, float]:
    """Return how many codes are in use, and their perplexity, given each one's count ``[K]``.

    The perplexity is exp of the entropy of the codes' shares: K if all are used alike (van den Oord
    et al., arXiv:1711.00937).
    """
    shares = counts.double() / counts.sum()
    entropy = -torch.xlogy(shares, shares).sum()
    return {"codes_in_use": int((counts > 0).sum()), "perplexity": entropy.exp().item()}


def bits_per_dimension(log_probability: float, pixels: int, density: bool) -> float:
    """Return −log p(x) in bits for each pixel.

    Args:
        log_probability: log p(x), nats per image.
        pixels: of an image.
        density: whether p is a density of images in [0, 1], each grey level spread over a 256th.
            Then log p must be measured on [0, 256], which adds log₂ 256 = 8 bits (Theis et al.
            2016, arXiv:1511.01844).
    """
    return -log_probability / (pixels * math.log(2)) + (8 if density else 0)


def log_aggregate_posterior(
    z: Tensor, loc: Tensor, scale: Tensor, memory: int = 50_000_000
) -> Tensor:
    """Return log q(z) = log (1/N) Σ_n q(z|x_n) at points ``[M, D]``: ``[M]``, nats.

    Args:
        z: where.
        loc: the posterior means of the N images, ``[N, D]``.
        scale: the posterior scales of the N images, ``[N, D]``.
        memory: about how many bytes to take.
    """
    z, loc, precision = z.double(), loc.double(), scale.double() ** -2
    # The square is multiplied out, so that the N·M·D terms are two matrix products.
    constant = (precision * loc**2 - precision.log()).sum(-1) + loc.shape[-1] * math.log(
        2 * math.pi
    )
    parts = []
    for part in torch.split(z, max(1, memory // (3 * 8 * len(loc)))):
        squares = part**2 @ precision.T - 2 * part @ (precision * loc).T
        parts.append(torch.logsumexp(-0.5 * (squares + constant), dim=-1) - math.log(len(loc)))
    return torch.cat(parts)
