"""What a reader of scores returns, and the grid of 16ths that it is laid on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

TICKS = 10_080
"""Ticks of a 16th: it divides by 2 to 10, so that tuplets are whole numbers of ticks."""

BAR = 16
"""16ths of a 4/4 bar."""

HOLD, REST, FIRST_PITCH = 0, 1, 2
"""Tokens: what was there goes on; silence begins; an onset of the lowest pitch and those above."""


class Note(NamedTuple):
    """A note, a rest, or a note that a tie carries on.

    Attributes:
        start: in ticks.
        length: in ticks.
        pitch: as MIDI counts; None: a rest.
        tied: whether the note before it goes on, so that there is no onset.
    """

    start: int
    length: int
    pitch: int | None
    tied: bool = False


@dataclass(frozen=True)
class Bar:
    """The notes of one voice between two bar lines; starts count from the first one.

    Attributes:
        notes: in order, without gaps.
        length: what the metre asks for, in ticks.
    """

    notes: Sequence[Note]
    length: int

    @property
    def filled(self) -> int:
        """Ticks that the notes take."""
        return sum(note.length for note in self.notes)

    @property
    def is_full(self) -> bool:
        """Whether the notes fill it."""
        return self.filled == self.length

    @property
    def is_on_grid(self) -> bool:
        """Whether all notes start and end on a 16th."""
        return not any(note.start % TICKS or note.length % TICKS for note in self.notes)


def joined(bars: Sequence[Bar]) -> list[Bar]:
    """Join the halves of bars that a double bar line or a repeat cuts in two.

    Two neighbours that fill one bar together become it: the end of a strain and the upbeat of the
    next.
    """
    whole: list[Bar] = []
    for bar in bars:
        last = whole[-1] if whole else None
        if last and last.filled < last.length == last.filled + bar.filled == bar.length:
            later = [note._replace(start=note.start + last.filled) for note in bar.notes]
            whole[-1] = Bar([*last.notes, *later], bar.length)
        else:
            whole.append(bar)
    return whole


def tokens_of(notes: Sequence[Note], steps: int, lowest: int) -> np.ndarray:
    """Lay the notes of a voice on a grid of 16ths.

    Args:
        notes: in order, all on the grid, the first step's included; what lies between is silent.
        steps: T.
        lowest: the pitch of the first token of an onset.

    Returns:
        Tokens ``[T]``, int64. A note that begins before the first step has its onset there.
    """
    tokens = np.full(steps, HOLD, dtype=np.int64)
    silent_from = 0
    for note in notes:
        start = note.start // TICKS
        if note.pitch is None or start >= steps:
            continue
        if start > silent_from:
            tokens[silent_from] = REST
        if not note.tied or not start:
            tokens[start] = FIRST_PITCH + note.pitch - lowest
        silent_from = start + note.length // TICKS
    if silent_from < steps:
        tokens[silent_from] = REST
    return tokens
