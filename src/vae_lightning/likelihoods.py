"""The families p(x|z): the parameters that a decoder computes become a distribution over whole images."""

from torch import Tensor
from torch.distributions import Bernoulli, Independent


def bernoulli(logits: Tensor) -> Independent[Bernoulli]:
    """Independent black-or-white pixels, as in Kingma & Welling (arXiv:1312.6114), Appendix C.1.

    ``log_prob`` sums over the pixels. For grey levels in [0, 1] it is minus the cross-entropy that the PyTorch VAE example
    minimises: a fair objective, but the log-likelihood of binary images only.

    Args:
        logits: log-odds of a white pixel, ``[..., C, H, W]``.
    """
    # Validation would refuse grey levels, and cost a pass over the images at every step.
    return Independent(Bernoulli(logits=logits, validate_args=False), 3, validate_args=False)
