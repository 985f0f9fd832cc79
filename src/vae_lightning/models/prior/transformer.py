"""A causal transformer over a row of codes.

Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762), with normalisation before each
layer. Shapes: ``B`` rows of ``P`` codes out of ``K``, ``W`` the width, ``H`` heads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lightning.models.linear import Linear

Cache = tuple[Tensor, Tensor]
"""Keys and values of the positions so far, each ``[B, H, P, W / H]``; empty at first."""


class Block(nn.Module):
    """Attention to the positions before, then two layers for each position."""

    def __init__(self, width: int, heads: int) -> None:
        """Take W and H, which divides it."""
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.attention = Linear(width, 3 * width)
        self.joined = Linear(width, width)
        self.before_layers = nn.LayerNorm(width)
        self.layers = nn.Sequential(Linear(width, 4 * width), nn.ReLU(), Linear(4 * width, width))

    def forward(self, rows: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        """Map ``[B, P, W]`` to the same shape.

        Args:
            rows: all positions, or with a cache the ones that follow those in it.
            cache: of the positions before; None: there are none.

        Returns:
            The positions, and the cache with them.
        """
        size, count, width = rows.shape
        parts = self.attention(self.before_attention(rows)).view(size, count, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
        # One position alone sees all of the cache; several see what comes before them.
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        rows = rows + self.joined(seen.transpose(1, 2).reshape(size, count, width))
        return rows + self.layers(self.before_layers(rows)), (key, value)


class Transformer(nn.Module):
    """The logits of each code, given the codes before it and a label."""

    def __init__(
        self, codes: int, positions: int, width: int, layers: int, heads: int, classes: int
    ) -> None:
        """Take K, P, W, the number of blocks, H, and how many labels there are; 0: none."""
        super().__init__()
        self.start = nn.Embedding(max(classes, 1), width)
        self.embedding = nn.Embedding(codes, width)
        self.position = nn.Parameter(0.02 * torch.randn(positions, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        self.logits = Linear(width, codes)
        for each in (self.start, self.embedding):
            nn.init.normal_(each.weight, std=0.02)

    def forward(self, code: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the logits of each position, ``[B, P, K]``, given all codes ``[B, P]``.

        Those of a position depend on the codes before it alone, and on the label ``[B]``, of which
        there is none without classes.
        """
        if y is None:
            y = code.new_zeros(code.shape[0])
        shifted = torch.cat([self.start(y)[:, None], self.embedding(code[:, :-1])], 1)
        rows = shifted + self.position
        for block in self.blocks:
            rows, _ = block(rows)
        logits: Tensor = self.logits(self.last(rows))
        return logits

    def step(
        self, before: Tensor, position: int, caches: Sequence[Cache | None]
    ) -> tuple[Tensor, list[Cache]]:
        """Return the logits of one position, ``[B, K]``, and the caches with it.

        Args:
            before: the code before it, or the label where it is the first, ``[B]``.
            position: which.
            caches: of each block; None at the first position.
        """
        embedded = (self.embedding if position else self.start)(before)
        rows, grown = (embedded + self.position[position])[:, None], []
        for block, cache in zip(self.blocks, caches, strict=True):
            rows, kept = block(rows, cache)
            grown.append(kept)
        return self.logits(self.last(rows))[:, 0], grown
