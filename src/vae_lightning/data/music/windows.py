"""Scores cut into windows of tokens that start at a bar line."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from vae_lightning.data.music.scores import BAR, FIRST_PITCH, TICKS, Bar, Note, tokens_of

_METRES = (BAR * TICKS, BAR * TICKS // 2)  # 4/4 and 2/2, and 2/4, two bars of which make one


def windows_of(voices: Sequence[Sequence[Bar]], bars: int, lowest: int, pitches: int) -> Tensor:
    """Return the windows of a piece, one from each bar line on, ``[n, 16 · bars, V]``.

    A window is left out if its metre isn't 4/4, 2/2 or 2/4, a bar isn't full, a note starts between
    two 16ths, or a pitch has no token. One of a single voice starts with an onset.

    Args:
        voices: V, each with as many bars.
        bars: of 4/4 in a window.
        lowest: the pitch of the first token of an onset.
        pitches: how many there are from there on.
    """
    steps, found = bars * BAR, []
    allowed = range(lowest, lowest + pitches)
    suits = [
        all(
            bar.is_full and bar.is_on_grid and all(_is_in(note, allowed) for note in bar.notes)
            for bar in column
        )
        for column in zip(*voices, strict=False)
    ]
    lengths = [bar.length for bar in voices[0]]
    for first, length in enumerate(lengths[: len(suits)]):
        if length not in _METRES:
            continue
        rows = slice(first, first + steps * TICKS // length)
        is_whole = len(suits[rows]) * length == steps * TICKS
        if not is_whole or not all(suits[rows]) or set(lengths[rows]) != {length}:
            continue
        opening = voices[0][first].notes[0]
        if len(voices) == 1 and (opening.tied or opening.pitch is None):
            continue
        columns = [tokens_of(_in_a_row(voice[rows]), steps, lowest) for voice in voices]
        found.append(torch.from_numpy(np.stack(columns, axis=1)))
    return torch.stack(found) if found else torch.empty(0, steps, len(voices), dtype=torch.int64)


def _is_in(note: Note, allowed: range) -> bool:
    return note.pitch is None or note.pitch in allowed


def _in_a_row(bars: Sequence[Bar]) -> list[Note]:
    """Return the notes of bars, whose starts count from the first bar line."""
    notes, start = [], 0
    for bar in bars:
        notes += [note._replace(start=note.start + start) for note in bar.notes]
        start += bar.length
    return notes


def without_those_of(windows: Tensor, others: Iterable[Tensor]) -> Tensor:
    """Leave out windows that others are equal to, transposed or not, and repetitions.

    Args:
        windows: of one voice or several, ``[n, T, V]``.
        others: the same.
    """
    seen = {_shape(window) for each in others for window in each}
    kept = []
    for number, window in enumerate(windows):
        if (shape := _shape(window)) not in seen:
            seen.add(shape)
            kept.append(number)
    return windows[kept]


def _shape(window: Tensor) -> bytes:
    """Return what windows that are equal up to transposition have in common."""
    tokens = window.numpy()
    onsets = tokens >= FIRST_PITCH
    if onsets.any():
        tokens = np.where(onsets, tokens - tokens[onsets].min() + FIRST_PITCH, tokens)
    return tokens.astype(np.uint8).tobytes()


def transposed(
    x: Tensor, generator: torch.Generator, reach: tuple[int, int], ranges: Tensor
) -> Tensor:
    """Transpose each window by a number of semitones drawn at random.

    Args:
        x: tokens, ``[n, T, V]``.
        generator: where the draws come from, on the CPU.
        reach: the lowest and the highest number of semitones.
        ranges: the lowest and the highest token of an onset in each voice, ``[2, V]``; no window
            leaves them.
    """
    onset = x >= FIRST_PITCH
    lowest = torch.where(onset, x, 10**6).amin(1)
    highest = torch.where(onset, x, -(10**6)).amax(1)
    down = (ranges[0].to(x) - lowest).amax(1).clamp(min=reach[0], max=0)
    up = (ranges[1].to(x) - highest).amin(1).clamp(min=0, max=reach[1])
    draws = torch.rand(len(x), generator=generator).to(x.device)
    shift = down + (draws * (up - down + 1)).long().clamp(max=up - down)
    return torch.where(onset, x + shift[:, None, None], x)
