"""What a variational autoencoder maximises: the evidence lower bound (ELBO) and its relatives.

    log p(x)  ≥  E_q(z|x)[log p(x|z)] − KL(q(z|x) ‖ p(z))

Pure functions of log-densities, in nats: from one value per sample and example, ``[S, B]``, to one
per example, ``[B]``. The mean over a batch is taken once, by the caller. Shapes: ``S`` Monte-Carlo
samples z ~ q(z|x), ``B`` examples, ``D`` latent dimensions.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from vae_lightning.models.base import Latents

KLSchedule = Literal["constant", "linear", "cyclical"]

CYCLES = 4
"""Cycles of the cyclical schedule (Fu et al. 2019, arXiv:1903.10145)."""


def kl_per_dimension(loc: Tensor, scale: Tensor) -> Tensor:
    """Return KL(N(loc_j, scale_j²) ‖ N(0, 1)) in closed form, the shape of both, ``[B, D]``.

    Its sum over D is that of Kingma & Welling (arXiv:1312.6114), Appendix B.
    """
    return 0.5 * (loc.square() + scale.square() - 1) - scale.log()


def log_ratio(z: Tensor, posterior: Latents, prior: Latents) -> Tensor:
    """Return log q(z|x) − log p(z) at samples ``[S, B, D]``: ``[S, B]``; its mean is the KL."""
    return posterior.log_prob(z) - prior.log_prob(z)


def sgvb_b(
    log_likelihood: Tensor, kl: Tensor, kl_weight: float = 1.0, free_bits: float = 0.0
) -> Tensor:
    """Return the estimate of the bound with the KL in closed form, ``[B]``.

    Estimator B of Kingma & Welling, "Auto-Encoding Variational Bayes" (arXiv:1312.6114), equation
    7. With ``kl_weight`` β it is the objective of the β-VAE. With ``free_bits`` λ the batch mean of
    the KL becomes Σ_j max(λ, batch mean of KL_j) (Kingma et al. 2016, arXiv:1606.04934, equation
    15): below λ the KL of a dimension has no gradient, above it the usual one.

    Args:
        log_likelihood: log p(x|z), ``[S, B]``.
        kl: the KL of each dimension, ``[B, D]``.
        kl_weight: β.
        free_bits: λ, nats per dimension.
    """
    if free_bits:
        kl = torch.where(kl.mean(0) > free_bits, kl, free_bits)
    return log_likelihood.mean(0) - kl_weight * kl.sum(-1)


def sgvb_a(log_likelihood: Tensor, log_ratio: Tensor, kl_weight: float = 1.0) -> Tensor:
    """Return the estimate of the bound that samples every term, ``[B]``.

    Estimator A of Kingma & Welling (arXiv:1312.6114), equation 6: the mean over the samples of
    log p(x, z) − log q(z|x).

    Args:
        log_likelihood: log p(x|z), ``[S, B]``.
        log_ratio: log q(z|x) − log p(z), ``[S, B]``.
        kl_weight: β.
    """
    return (log_likelihood - kl_weight * log_ratio).mean(0)


def importance_weighted(log_likelihood: Tensor, log_ratio: Tensor) -> Tensor:
    """Return the importance-weighted bound, ``[B]``: log of the mean over S of p(x, z) / q(z|x).

    Burda, Grosse & Salakhutdinov, "Importance Weighted Autoencoders" (arXiv:1509.00519), equation
    8. It rises with S towards log p(x); with one sample it is estimator A. The logarithm gives the
    gradient of each sample its normalised weight, so good samples count most.

    Args:
        log_likelihood: log p(x|z), ``[S, B]``.
        log_ratio: log q(z|x) − log p(z), ``[S, B]``.
    """
    return torch.logsumexp(log_likelihood - log_ratio, dim=0) - math.log(len(log_likelihood))


def kl_weight_at(step: int, kl_weight: float, schedule: KLSchedule, steps: int) -> float:
    """Return the weight of the KL at an optimiser step, counted from 0.

    Args:
        step: optimiser steps done.
        kl_weight: the final weight, β.
        schedule: ``constant``; ``linear`` from 0 over ``steps``; ``cyclical``: four cycles over
            ``steps``, each rising from 0 over its first half and staying at β over its second (Fu
            et al. 2019, arXiv:1903.10145, M = 4, R = 0.5).
        steps: how long the schedule takes; the weight is β from then on.
    """
    if schedule == "constant" or step >= steps:
        return kl_weight
    if schedule == "linear":
        return kl_weight * step / steps
    return kl_weight * min(1.0, 2 * (step * CYCLES / steps % 1))
