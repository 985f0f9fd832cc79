"""The scores that the music is read from: collections in music21's wheel, read as a zip.

The package itself is neither installed nor imported. ``exercises`` needs no download.
"""

import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from vae_lightning.data.music.abc_tunes import read_tunes
from vae_lightning.data.music.musicxml import read_voices
from vae_lightning.data.music.scores import BAR, TICKS, Bar, Note, joined

Collection = Literal["ryan", "oneill", "aird", "essen", "exercises"]

WHEEL = "music21-10.5.1-py3-none-any.whl"

FOLDERS = {
    "ryan": "ryansMammoth",
    "oneill": "oneills1850",
    "aird": "airdsAirs",
    "essen": "essenFolksong",
}
"""Where each collection lies in the corpus."""

_CORPUS = "music21/corpus"
_EXERCISES = 120
_MAJOR = (0, 2, 4, 5, 7, 9, 11)


def tunes(folder: Path, collections: Sequence[Collection]) -> Iterator[list[Bar]]:
    """Yield the bars of each tune, in the order of the collections and of their pages.

    Args:
        folder: where the wheel is.
        collections: which; see ``FOLDERS``. ``exercises`` are made up here.
    """
    if "exercises" in collections:
        yield from exercises()
    chosen = [f"{_CORPUS}/{FOLDERS[each]}/" for each in collections if each in FOLDERS]
    if not chosen:
        return
    with zipfile.ZipFile(folder / WHEEL) as archive:
        names = [name for name in archive.namelist() if name.endswith(".abc")]
        for start in chosen:
            for name in sorted(name for name in names if name.startswith(start)):
                text = archive.read(name).decode(errors="replace")
                yield from map(joined, read_tunes(text))


def chorales(folder: Path) -> Iterator[tuple[str, list[list[Bar]]]]:
    """Yield the part of the split and the four voices of each chorale.

    The split is that of Boulanger-Lewandowski, Bengio & Vincent 2012 (arXiv:1206.6392), as numbers
    of the catalogue of Bach's works. A piece that stands in two of its parts is held out.
    """
    split = json.loads(Path(__file__).with_name("chorale_split.json").read_text())
    with zipfile.ZipFile(folder / WHEEL) as archive:
        names = set(archive.namelist())
        for part in ("train", "val", "test"):
            for number in split[part]:
                stem = f"{_CORPUS}/bach/bwv{number}"
                name = next(f"{stem}{end}" for end in (".mxl", ".xml") if f"{stem}{end}" in names)
                try:
                    voices = read_voices(archive.read(name))
                except ValueError:  # two sopranos
                    continue
                yield part, [joined(voice) for voice in voices]


def exercises() -> Iterator[list[Bar]]:
    """Yield made-up tunes of eight bars: walks along a major scale in simple rhythms."""
    generator = np.random.RandomState(0)
    rhythms = ((4, 4, 4, 4), (2, 2, 4, 4, 4), (4, 2, 2, 4, 4), (6, 2, 4, 4), (2,) * 8, (8, 4, 4))
    for _ in range(_EXERCISES):
        key, degree = int(generator.randint(60, 70)), 0
        chosen = generator.randint(len(rhythms), size=2)
        bars = []
        for number in range(8):
            notes, now = [], 0
            for length in rhythms[chosen[number % 2]]:
                pitch = key + 12 * (degree // 7) + _MAJOR[degree % 7]
                notes.append(Note(now * TICKS, length * TICKS, pitch))
                now += length
                degree = int(np.clip(degree + generator.randint(-2, 3), -3, 9))
            bars.append(Bar(notes, BAR * TICKS))
        yield bars
