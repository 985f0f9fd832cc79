"""The objective of a variational autoencoder: the evidence lower bound (ELBO).

    log p(x)  ≥  E_q(z|x)[log p(x|z)] − KL(q(z|x) ‖ p(z))

Everything here is one value per image, ``[B]``, in nats: summed over pixels and over latent dimensions, never averaged.
The mean over a batch is taken once, by whoever minimises. Shapes: ``B`` images, ``D`` latent dimensions, ``C H W`` an image.
"""

from typing import NamedTuple

from torch import Tensor
from torch.distributions import Distribution, kl_divergence


class Bound(NamedTuple):
    """The evidence lower bound of each image and the two terms that it is made of.

    Attributes:
        log_likelihood: log p(x|z) at a sampled z, nats per image, ``[B]``.
        kl: KL(q(z|x) ‖ p(z)), nats per image, ``[B]``.
    """

    log_likelihood: Tensor
    kl: Tensor

    @property
    def elbo(self) -> Tensor:
        """The bound itself, nats per image, ``[B]``; higher is better."""
        return self.log_likelihood - self.kl


def evidence_lower_bound(x: Tensor, likelihood: Distribution, posterior: Distribution, prior: Distribution) -> Bound:
    """Estimate the bound from one sample per image, with the KL in closed form.

    This is estimator B of Kingma & Welling, "Auto-Encoding Variational Bayes" (arXiv:1312.6114), equation 7 with L = 1;
    for Gaussians the KL is the one of their Appendix B.

    Args:
        x: the images, ``[B, C, H, W]``.
        likelihood: p(x|z) at z = loc + scale · noise (their equation 4), event shape ``[C, H, W]``.
        posterior: q(z|x), event shape ``[D]``, batch shape ``[B]``.
        prior: p(z), event shape ``[D]``.
    """
    return Bound(log_likelihood=likelihood.log_prob(x), kl=kl_divergence(posterior, prior))
