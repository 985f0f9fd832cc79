"""Tokens as notes with a beginning and an end, which pictures, MIDI and sound are made of."""

from typing import NamedTuple

from torch import Tensor

from vae_lightning.data.music.scores import FIRST_PITCH, HOLD


class Event(NamedTuple):
    """A note that sounds.

    Attributes:
        start: the step at which it begins.
        end: the step before which it ends.
        pitch: as MIDI counts.
        voice: its number.
    """

    start: int
    end: int
    pitch: int
    voice: int


def of_voices(tokens: Tensor, lowest: int) -> list[Event]:
    """Return the notes of voices ``[T, V]``, each of which holds, rests or begins a pitch."""
    events = []
    steps = len(tokens)
    for voice, column in enumerate(tokens.T.tolist()):
        start, pitch = 0, None
        for step, token in enumerate([*column, None]):
            if token == HOLD:
                continue
            if pitch is not None:
                events.append(Event(start, step, pitch, voice))
            is_onset = token is not None and token >= FIRST_PITCH
            start, pitch = step, token - FIRST_PITCH + lowest if is_onset else None
    return [event for event in events if event.start < steps]


NOTHING, END = 0, 1
"""Tokens of a step that lists its pitches in ascending order: after the end; the end."""


def of_sets(tokens: Tensor, lowest: int) -> list[Event]:
    """Return the notes of steps ``[T, P]``, each of which lists its pitches; repeated ones go on.

    A step that lists nothing, not even an end, lies behind the end of the piece.
    """
    events, sounding = [], dict[int, int]()
    for step, row in enumerate([*tokens.tolist(), []]):
        pitches = {token - FIRST_PITCH + lowest for token in row if token >= FIRST_PITCH}
        for pitch in sorted(sounding.keys() - pitches):
            events.append(Event(sounding.pop(pitch), step, pitch, 0))
        sounding |= dict.fromkeys(pitches - sounding.keys(), step)
    return sorted(events)
