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
_DEAD = 0.5  # of an equal share of the positions: below it a code is moved to where some lie


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
        self._seen: list[Tensor] = []  # counts and sums, [K, 1 + D], of each batch
        self._latest: tuple[Tensor, int, int] = (torch.empty(0, 1, dim), 0, 0)

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

    def see(self, embedded: Tensor, code: Tensor, first: int = 0, total: int | None = None) -> None:
        """Keep which positions chose which codes, for the next update.

        Args:
            embedded: the positions of B examples, ``[B, ..., D]``.
            code: what they chose, ``[B, ...]``.
            first: the place of the first example in the batch of all processes.
            total: examples in that batch; None: these are all.
        """
        rows = embedded.detach().flatten(1, -2)
        flat = rows.flatten(0, 1)
        chosen = flat.new_zeros(len(flat), len(self.codebook)).scatter_(1, code.view(-1, 1), 1.0)
        self._seen.append(torch.cat([chosen.sum(0)[:, None], chosen.t() @ flat], 1))
        self._latest = rows, first, len(rows) if total is None else total

    @torch.no_grad()
    def update(self, noise: Noise) -> None:
        """Move the codes to what was seen since the last update, by all processes together.

        A code that hardly anything chooses is moved to a position of the last batch, and its
        averages start there anew.
        """
        codes, dim = self.codebook.shape
        uniform = noise.uniform(codes, 2)[0, 0].to(self.codebook.device)
        moved = torch.cat([torch.stack(self._seen).sum(0), self._candidates(uniform)], 1)
        self._seen.clear()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(moved)  # so that the codebooks stay the same
        counts, sums, candidates = torch.split(moved, [1, dim, dim], 1)
        self.counts.lerp_(counts[:, 0], 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        share = self.counts.mean()
        dead = self.counts < _DEAD * share
        self.counts.copy_(torch.where(dead, share, self.counts))
        self.sums.copy_(torch.where(dead[:, None], share * candidates, self.sums))
        total = self.counts.sum()
        smoothed = (self.counts + _SMOOTHING) / (total + codes * _SMOOTHING) * total
        self.codebook.copy_(self.sums / smoothed[:, None])

    def _candidates(self, uniform: Tensor) -> Tensor:
        """Return a position of the last batch for each code, ``[K, D]``, by numbers ``[K, 2]``.

        Where another process has its example it is zero: the sum over the processes has all.
        """
        rows, first, total = self._latest
        if not len(rows):
            return torch.zeros_like(self.codebook)
        example = (uniform[:, 0] * total).long() - first
        place = (uniform[:, 1] * rows.shape[1]).long()
        here = (example >= 0) & (example < len(rows))
        return rows[example.clamp(0, len(rows) - 1), place] * here[:, None]
