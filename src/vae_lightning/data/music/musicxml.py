"""A reader of four-part scores in MusicXML, plain or compressed, on the standard library."""

import io
import zipfile
from collections.abc import Sequence
from xml.etree import ElementTree

from vae_lightning.data.music.scores import BAR, TICKS, Bar, Note

VOICES = ("Soprano", "Alto", "Tenor", "Bass")

LARGEST = 1 << 24
"""The largest score that is read, in bytes, decompressed."""

_STEPS = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))


def read_voices(content: bytes) -> list[list[Bar]]:
    """Return the bars of soprano, alto, tenor and bass.

    Raises:
        ValueError: the content is no such score, or hasn't these four parts.
    """
    try:
        root = ElementTree.fromstring(_xml(content))
    except (ElementTree.ParseError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"no MusicXML: {error}") from error
    names = [part.findtext("part-name") or "" for part in root.findall("part-list/score-part")]
    parts = root.findall("part")
    chosen = [[number for number, name in enumerate(names) if name.startswith(voice)]
              for voice in VOICES]  # fmt: skip
    if any(len(each) != 1 for each in chosen) or len(parts) != len(names):
        raise ValueError(f"parts {', '.join(names)}: needs one each of {', '.join(VOICES)}")
    return [_bars(parts[number]) for (number,) in chosen]


def _xml(content: bytes) -> bytes:
    """Return the score itself; a compressed file names it in its container, or holds no other."""
    if not content.startswith(b"PK"):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        scores = [
            member
            for member in archive.infolist()
            if not member.filename.startswith("META-INF") and member.filename.endswith("xml")
        ]
        if not scores or scores[0].file_size > LARGEST:
            raise ValueError("no MusicXML: no score in it, or a far too large one")
        return archive.read(scores[0])


def _bars(part: ElementTree.Element) -> list[Bar]:
    divisions, metre = 1, BAR * TICKS
    bars: list[Bar] = []
    for measure in part.findall("measure"):
        notes: list[Note] = []
        now = 0
        for element in measure:
            if element.tag == "attributes":
                divisions = int(element.findtext("divisions") or divisions)
                if (beats := element.findtext("time/beats")) is not None:
                    unit = int(element.findtext("time/beat-type") or 4)
                    metre = BAR * TICKS * int(beats) // unit
            elif element.tag in ("note", "forward", "backup"):
                if element.find("grace") is not None or element.find("chord") is not None:
                    continue
                length = 4 * TICKS * int(element.findtext("duration") or 0) // divisions
                if element.tag == "backup":
                    now -= length
                    continue
                if element.tag == "note":
                    ties = [tie.get("type") for tie in element.findall("tie")]
                    notes.append(Note(now, length, _pitch(element), "stop" in ties))
                now += length
        bars.append(Bar(_filled(notes, now), metre))
    return bars


def _pitch(note: ElementTree.Element) -> int | None:
    """Return the pitch as MIDI counts; None: a rest."""
    step = note.findtext("pitch/step")
    if step is None:
        return None
    alteration = int(float(note.findtext("pitch/alter") or 0))
    return 12 * (int(note.findtext("pitch/octave") or 4) + 1) + _STEPS[step] + alteration


def _filled(notes: Sequence[Note], end: int) -> list[Note]:
    """Return notes with rests in the gaps between them."""
    whole: list[Note] = []
    now = 0
    for note in notes:
        if note.start > now:
            whole.append(Note(now, note.start - now, None))
        whole.append(note)
        now = note.start + note.length
    return [*whole, Note(now, end - now, None)] if end > now else whole
