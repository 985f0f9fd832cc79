"""A codebook that follows what the encoder gives, without gradients.

van den Oord et al., "Neural Discrete Representation Learning" (arXiv:1711.00937), Appendix A.1: the
codebook as exponential moving averages. Shapes: ``K`` codes of ``D`` numbers; ``...`` are the
positions of a batch.
"""

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lightning.models.base import Noise

_SMOOTHING = 1e-5  # of the counts, as Laplace does, so that no code is divided by zero
_DEAD = 0.1  # of an equal share of the positions: below it a code is moved to where some lie


class Quantizer(nn.Module):
    """K codes; the nearest one stands for a position.

    Attributes:
        codebook: ``[K, D]``.
        counts: moving average of the positions that chose each code, ``[K]``.
        sums: moving average of the sum of those positions, ``[K, D]``.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, codes: int, dim: int, decay: float) -> None:
        """Take K, D and how much of an average is kept at a step."""
        super().__init__()
        self.decay = decay
        self.register_buffer("codebook", torch.randn(codes, dim))
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", self.codebook.clone())
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._latest = torch.empty(0, dim)

    def scores(self, embedded: Tensor) -> Tensor:
        """Return minus the squared distances of positions ``[..., D]`` to codes, ``[..., K]``."""
        to_codes = 2 * embedded @ self.codebook.t() - self.codebook.square().sum(1)
        return to_codes - embedded.square().sum(-1, keepdim=True)

    def forward(self, code: Tensor) -> Tensor:
        """Return the numbers of codes ``[...]``: ``[..., D]``."""
        return F.embedding(code, self.codebook)

    def start(self, embedded: Tensor, choice: torch.Generator) -> None:
        """Let the codebook start from some positions ``[N, D]``, different ones if it can."""
        order = torch.randperm(len(embedded), generator=choice)
        chosen = order[torch.arange(len(self.codebook)) % len(order)].to(embedded.device)
        self.codebook.copy_(embedded[chosen])
        self.sums.copy_(self.codebook)
        self.counts.fill_(1.0)

    def see(self, embedded: Tensor, code: Tensor) -> None:
        """Keep which positions ``[..., D]`` chose which codes ``[...]``, for the next update."""
        flat = embedded.detach().flatten(0, -2)
        chosen = flat.new_zeros(len(flat), len(self.codebook)).scatter_(1, code.view(-1, 1), 1.0)
        self._seen.append((chosen.sum(0), chosen.t() @ flat))
        self._latest = flat

    @torch.no_grad()
    def update(self, noise: Noise) -> None:
        """Move the codes to what was seen since the last update, by all processes together.

        A code that hardly anything chooses is moved to a position of the last batch, and its
        averages start there anew.
        """
        counts, sums = (torch.stack(each).sum(0) for each in zip(*self._seen, strict=True))
        picked = (noise.uniform(len(self.codebook))[0, 0] * len(self._latest)).long()
        candidates = self._latest[picked.to(self._latest.device)]
        self._seen.clear()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
            torch.distributed.broadcast(candidates, 0)  # so that the codebooks stay the same
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        share = self.counts.mean()
        dead = self.counts < _DEAD * share
        self.counts.copy_(torch.where(dead, share, self.counts))
        self.sums.copy_(torch.where(dead[:, None], share * candidates, self.sums))
        total = self.counts.sum()
        smoothed = (self.counts + _SMOOTHING) / (total + len(self.counts) * _SMOOTHING) * total
        self.codebook.copy_(self.sums / smoothed[:, None])
