"""What evaluation measures, beside the bound: log p(x), active latents, errors.

Shapes: ``S`` samples, ``B`` images in a batch, ``N`` images in all, ``D`` latent dimensions.
"""

import math

import torch
from torch import Tensor

ACTIVE_VARIANCE = 0.01
"""A latent is active if the variance of its posterior mean over the images is above this (Burda et al., arXiv:1509.00519)."""


class ImportanceEstimate:
    """An estimate of log p(x) that is built up from importance weights, any number of samples at a time.

    log p̂(x) = log (1/K) Σ_k p(x, z_k) / q(z_k|x): a lower bound on log p(x) in expectation, tighter with more samples
    (Burda et al., arXiv:1509.00519). All in float64, so that the number of samples taken together moves nothing but rounding.
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
        self._log_sum_of_squares = torch.logaddexp(self._log_sum_of_squares, (2 * log_weights).logsumexp(0))

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
        """The variance of the estimate to first order (the delta method), nats², ``[B]``."""
        return (1 / self.effective_samples - 1 / self.samples).clamp(min=0)


def standard_error(values: Tensor) -> float:
    """Return the standard error of the mean of values over images, ``[N]``."""
    return float(values.double().std() / len(values) ** 0.5)


def active(posterior_means: Tensor) -> Tensor:
    """Return which latents are active, ``[D]``, given the posterior means of all images, ``[N, D]``."""
    return posterior_means.double().var(dim=0) > ACTIVE_VARIANCE
