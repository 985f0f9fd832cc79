"""MIDI files, written from notes and read into voices on the grid, with the library mido."""

import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_lightning.configuration.quoting import printable
from vae_lightning.data.music.events import Event
from vae_lightning.data.music.scores import BAR, FIRST_PITCH, TICKS, Note, tokens_of
from vae_lightning.errors import ConfigurationError

LARGEST = 1 << 20
"""The largest MIDI file that is read, in bytes."""

LONGEST = 1 << 14
"""The longest, in 16ths."""

_PER_BEAT = 480
_VELOCITY = 80


def midi(events: Sequence[Event], steps: int, seconds_per_step: float) -> bytes:
    """Return notes as the content of a MIDI file, a track for each voice.

    Args:
        events: the notes.
        steps: T, after which each track ends.
        seconds_per_step: the tempo; a step is a 16th.

    Raises:
        ConfigurationError: mido is missing.
    """
    mido = library()
    file = mido.MidiFile(ticks_per_beat=_PER_BEAT)
    for voice in range(1 + max((event.voice for event in events), default=0)):
        track = mido.MidiTrack()
        file.tracks.append(track)
        if not voice:
            track.append(mido.MetaMessage("set_tempo", tempo=round(4_000_000 * seconds_per_step)))
        own = [event for event in events if event.voice == voice]
        # Where one note ends and another begins, the end comes first.
        changes = sorted(
            [(event.end, False, event.pitch) for event in own]
            + [(event.start, True, event.pitch) for event in own]
        )
        now = 0
        for step, begins, pitch in changes:
            time, now = (step - now) * _PER_BEAT // 4, step
            kind = "note_on" if begins else "note_off"
            velocity = _VELOCITY if begins else 0
            track.append(
                mido.Message(kind, note=pitch, velocity=velocity, time=time, channel=voice)
            )
        end = (steps - now) * _PER_BEAT // 4
        track.append(mido.MetaMessage("end_of_track", time=end))
    written = io.BytesIO()
    file.save(file=written)
    return written.getvalue()


def read_windows(
    content: bytes, name: str, shape: Sequence[int], lowest: int, pitches: int
) -> Tensor:
    """Read a MIDI file into windows one after another, from its first note on.

    Args:
        content: of the file.
        name: of the file, for messages.
        shape: T, V of a window. The V parts with most notes are read, the highest first; where two
            notes of a part sound at once, the higher one.
        lowest: the pitch of the first token of an onset.
        pitches: how many there are from there on. A file that leaves them is transposed by octaves.

    Returns:
        Tokens ``[n, T, V]``, int64.

    Raises:
        ValueError: it is no such file; the message starts with its name.
    """
    steps, voices = shape
    parts = _parts(content, name)
    if len(parts) < voices:
        raise ValueError(f"{name}: {len(parts)} parts with notes, and the model needs {voices}")
    chosen = sorted(sorted(parts, key=len)[-voices:], key=_mean_pitch, reverse=True)
    lines = [_one_at_a_time(part) for part in chosen]
    found = [note.pitch for line in lines for note in line if note.pitch is not None]
    shift = 0
    while max(found) + shift >= lowest + pitches:
        shift -= 12
    while min(found) + shift < lowest:
        shift += 12
    if max(found) + shift >= lowest + pitches:
        most = f"{lowest} to {lowest + pitches - 1}"
        raise ValueError(f"{name}: its pitches span more than the model's, {most} in MIDI's count")
    begin = min(line[0].start for line in lines)
    begin -= begin % (BAR * TICKS) if voices > 1 else 0
    end = max(line[-1].start + line[-1].length for line in lines)
    length = steps * TICKS
    windows = []
    for first in range(begin, end, length):
        columns = []
        for line in lines:
            cut = [_cut(note, first, length, shift) for note in line]
            notes = [note for note in cut if note is not None]
            columns.append(torch.from_numpy(tokens_of(notes, steps, lowest)))
        window = torch.stack(columns, 1)
        if (window >= FIRST_PITCH).any():
            windows.append(window)
    return torch.stack(windows)


def _parts(content: bytes, name: str) -> list[list[Note]]:
    """Return the notes of each track and channel that has some, on the nearest 16ths."""
    mido = library()
    if len(content) > LARGEST:
        raise ValueError(f"{name}: larger than {LARGEST >> 20} MiB")
    try:
        score = mido.MidiFile(file=io.BytesIO(content), clip=True)
        parts: dict[tuple[int, int], list[Note]] = {}
        per_beat, has_drums = score.ticks_per_beat, False
        for number, track in enumerate(score.tracks):
            now, begun = 0, dict[tuple[int, int], int]()
            for message in track:
                now += message.time
                if message.type not in ("note_on", "note_off"):
                    continue
                if message.channel == 9:
                    has_drums = True
                    continue
                key = message.channel, message.note
                if key in begun:
                    start = begun.pop(key)
                    step, end = (round(4 * each / (per_beat or 1)) for each in (start, now))
                    note = Note(step * TICKS, max(1, end - step) * TICKS, message.note)
                    parts.setdefault((number, message.channel), []).append(note)
                if message.type == "note_on" and message.velocity:
                    begun[key] = now
    except Exception as error:  # what a foreign file can make mido raise has no end
        problem = f" ({printable(error)[:80]})" if str(error) else ""
        raise ValueError(f"{name}: no MIDI file, or damaged{problem}") from error
    if not 0 < per_beat < 1 << 15:
        raise ValueError(f"{name}: timed in frames (SMPTE), not in beats")
    if not parts:
        raise ValueError(f"{name}: no notes" + " but drums, which aren't read" * has_drums)
    if any(note.start + note.length > LONGEST * TICKS for part in parts.values() for note in part):
        raise ValueError(f"{name}: longer than {LONGEST:,} 16ths")
    return list(parts.values())


def _mean_pitch(part: Sequence[Note]) -> float:
    return sum(note.pitch or 0 for note in part) / len(part)


def _one_at_a_time(part: Sequence[Note]) -> list[Note]:
    """Return the highest note that begins at each step, each cut off where the next one begins."""
    highest: dict[int, Note] = {}
    for note in part:
        other = highest.get(note.start)
        if other is None or (note.pitch or 0) > (other.pitch or 0):
            highest[note.start] = note
    line = [highest[start] for start in sorted(highest)]
    ends = [*(note.start for note in line[1:]), line[-1].start + line[-1].length]
    return [
        note._replace(length=min(note.length, end - note.start))
        for note, end in zip(line, ends, strict=True)
    ]


def _cut(note: Note, first: int, length: int, shift: int) -> Note | None:
    """Return the part of a note that lies in a window; None: there is none."""
    start, end = max(note.start, first), min(note.start + note.length, first + length)
    assert note.pitch is not None
    return Note(start - first, end - start, note.pitch + shift) if end > start else None


def library() -> Any:
    """Return the module mido.

    Raises:
        ConfigurationError: it isn't installed.
    """
    try:
        import mido
    except ImportError:
        missing = "mido is missing: pip install 'vae-lightning[music]'"
        raise ConfigurationError(missing) from None
    return mido
