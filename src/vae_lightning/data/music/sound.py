"""A small additive synthesiser, and WAV files."""

import io
import wave
from collections.abc import Sequence

import numpy as np

from vae_lightning.data.music.events import Event

RATE = 22_050
"""Samples per second."""

_PARTIALS = 8
_RELEASE = 0.06  # seconds in which a note dies away
_ATTACK = 0.008
_DECAY = 1.8  # of the first partial, per second; higher ones fade sooner
_LOUDEST = 0.8


def synthesize(events: Sequence[Event], steps: int, seconds_per_step: float) -> np.ndarray:
    """Return the sound of notes, ``[samples]``, float32 in [−1, 1].

    Args:
        events: the notes.
        steps: T, after which it ends.
        seconds_per_step: the tempo.
    """
    tail = int(RATE * _RELEASE)
    sound = np.zeros(int(RATE * steps * seconds_per_step) + tail, dtype=np.float32)
    for event in events:
        first = int(RATE * event.start * seconds_per_step)
        length = int(RATE * (event.end - event.start) * seconds_per_step)
        time = np.arange(length + tail, dtype=np.float32) / RATE
        frequency = 440.0 * 2 ** ((event.pitch - 69) / 12)
        note = np.zeros_like(time)
        for partial in range(1, _PARTIALS + 1):
            if partial * frequency < RATE / 2:
                fading = np.exp(-_DECAY * (0.5 + 0.5 * partial) * time)
                note += fading * np.sin(2 * np.pi * partial * frequency * time) / partial**1.5
        note *= np.minimum(1, time / _ATTACK)
        note[length:] *= np.linspace(1, 0, tail, dtype=np.float32)
        sound[first : first + len(note)] += note
    loudest = np.abs(sound).max()
    return sound * (_LOUDEST / loudest) if loudest > 0 else sound


def wav(sound: np.ndarray) -> bytes:
    """Return sound in [−1, 1] as the content of a WAV file, 16 bits, one channel."""
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return written.getvalue()
