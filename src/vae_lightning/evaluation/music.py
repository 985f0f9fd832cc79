"""What interpolations and attribute vectors of a model of music are worth.

As in Roberts et al. 2018 (arXiv:1803.05428), sections 5.2 and 5.3.
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from vae_lightning.data.music.attributes import ATTRIBUTES, vector
from vae_lightning.models.base import Batch, LatentModel
from vae_lightning.models.noise import EVALUATION_SEED, keyed_generator
from vae_lightning.visualization.grids import slerp

SHARES = tuple(number / 10 for number in range(11))
"""How far along the way interpolations are measured."""

_PAIRS, _ORDER, _CHANGED = 128, 5, 256


class Markov:
    """A model of tokens by the four before them, to say how usual a sequence is.

    Counts of longer contexts are mixed with those of shorter ones as Witten & Bell (1991) do.
    """

    def __init__(self, vocabulary: int) -> None:
        """Take K."""
        self.vocabulary = vocabulary
        self.counts: dict[tuple[int, ...], Counter[int]] = {}

    def learn(self, lines: Iterable[list[int]]) -> None:
        """Count the tokens of sequences."""
        for line in lines:
            for place, token in enumerate(line):
                for order in range(min(place, _ORDER - 1) + 1):
                    context = tuple(line[place - order : place])
                    self.counts.setdefault(context, Counter())[token] += 1

    def nats(self, line: list[int]) -> float:
        """Return the mean of −log p(token) over a sequence."""
        total = sum(
            math.log(self._probability(token, tuple(line[max(0, place - _ORDER + 1) : place])))
            for place, token in enumerate(line)
        )
        return -total / len(line)

    def _probability(self, token: int, context: tuple[int, ...]) -> float:
        shorter = self._probability(token, context[1:]) if context else 1 / self.vocabulary
        counts = self.counts.get(context)
        if counts is None:
            return shorter
        kinds, total = len(counts), counts.total()
        return (counts[token] + kinds * shorter) / (total + kinds)


def _lines(x: Tensor) -> list[list[int]]:
    """Return the voices of windows ``[n, T, V]`` one by one."""
    return [line for window in x for line in window.T.tolist()]


@torch.no_grad()
def interpolation(model: LatentModel, batch: Batch, trained_on: Tensor) -> dict[str, Any]:
    """Compare walks between latents with blending in data space.

    At each share of the way from one window to another: the share of tokens that differ from the
    start, and how unusual the result is, in nats per token by ``Markov``. Blending takes each step
    from one end or the other at random.

    Args:
        model: the model, in evaluation mode.
        batch: windows ``[B, T, V]``, of which pairs are made.
        trained_on: training windows ``[N, T, V]`` that ``Markov`` counts.

    Returns:
        ``interpolation_distance``, ``interpolation_cost``, ``blend_distance`` and ``blend_cost``,
        one number for each of ``SHARES``.
    """
    usual = Markov(model.data.vocabulary)
    usual.learn(_lines(trained_on))
    count = min(_PAIRS, len(batch.x) // 2)
    first, last = batch.x[:count], batch.x[count : 2 * count]
    points = model.point(batch)
    walks = [
        slerp(start, end, torch.tensor(SHARES, device=start.device)[:, None])
        for start, end in zip(points[:count], points[count : 2 * count], strict=True)
    ]
    decoded = model.decode(torch.cat(walks)).view(count, len(SHARES), *batch.x.shape[1:])
    generator = keyed_generator(EVALUATION_SEED)
    found: dict[str, list[float]] = {}
    for number, share in enumerate(SHARES):
        taken = torch.rand(*first.shape[:2], 1, generator=generator).to(first.device) < share
        blended = torch.where(taken, last, first)
        for name, x in (("interpolation", decoded[:, number]), ("blend", blended)):
            distance = (x != first).double().mean().item()
            costs = [usual.nats(line) for line in _lines(x)]
            found.setdefault(f"{name}_distance", []).append(distance)
            found.setdefault(f"{name}_cost", []).append(sum(costs) / len(costs))
    return found


@torch.no_grad()
def attributes(model: LatentModel, batch: Batch, lowest: int) -> dict[str, Any]:
    """Measure what adding an attribute's vector to latents does to all attributes.

    Vectors come from the first half of the windows and are tried on the second.

    Args:
        model: the model, in evaluation mode.
        batch: windows ``[B, T, V]``.
        lowest: the pitch of the first token of an onset.

    Returns:
        ``attribute_changes``: a row for each vector and a column for each attribute: the change
        from subtracting to adding the vector, in standard deviations of the attribute.
    """
    half = len(batch.x) // 2
    points, tried = model.point(batch), slice(half, half + _CHANGED)
    values = {name: count(batch.x, lowest) for name, count in ATTRIBUTES.items()}
    changes = []
    for name in ATTRIBUTES:
        step = vector(values[name][:half], points[:half])
        less, more = (model.decode(points[tried] + sign * step) for sign in (-1, 1))
        changes.append(
            [
                ((count(more, lowest) - count(less, lowest)).mean() / values[other].std()).item()
                for other, count in ATTRIBUTES.items()
            ]
        )
    return {"attribute_changes": changes}
