"""What can be counted of a melody: the attributes of Roberts et al. 2018 (arXiv:1803.05428)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vae_lightning.data.music.scores import FIRST_PITCH

_C_MAJOR = (0, 2, 4, 5, 7, 9, 11)


def note_density(x: Tensor, lowest: int) -> Tensor:
    """Return the share of tokens that are onsets, ``[n]``, of windows ``[n, T, V]``."""
    return (x >= FIRST_PITCH).flatten(1).double().mean(1)


def average_interval(x: Tensor, lowest: int) -> Tensor:
    """Return the mean size of the intervals within voices, ``[n]``, in semitones; none: 0."""
    last = torch.full((len(x), x.shape[2]), -1, dtype=x.dtype, device=x.device)
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    count = torch.zeros_like(total)
    for step in x.unbind(1):
        onset = step >= FIRST_PITCH
        known = onset & (last >= 0)
        total += torch.where(known, (step - last).abs(), 0).sum(1)
        count += known.sum(1)
        last = torch.where(onset, step, last)
    return total / count.clamp(min=1)


def share_of_c_major(x: Tensor, lowest: int) -> Tensor:
    """Return the share of onsets that are notes of C major, ``[n]``; 0 without any."""
    onset = x >= FIRST_PITCH
    pitch_class = (x - FIRST_PITCH + lowest) % 12
    inside = torch.isin(pitch_class, torch.tensor(_C_MAJOR, device=x.device)) & onset
    return inside.flatten(1).sum(1).double() / onset.flatten(1).sum(1).clamp(min=1)


ATTRIBUTES: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "note density": note_density,
    "average interval": average_interval,
    "notes of C major": share_of_c_major,
}


def vector(values: Tensor, points: Tensor) -> Tensor:
    """Return the direction in which an attribute rises, ``[D]``.

    It leads from the mean latent of the quarter of examples with the least of it to that of the
    quarter with most (Roberts et al. 2018, section 5.3).

    Args:
        values: of the attribute, ``[n]``.
        points: latents ``[n, D]``.
    """
    order = values.argsort(stable=True)
    quarter = max(1, len(order) // 4)
    return points[order[-quarter:]].mean(0) - points[order[:quarter]].mean(0)
