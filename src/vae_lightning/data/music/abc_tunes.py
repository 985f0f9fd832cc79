"""A reader of tunes in ABC notation, as far as collections of folk tunes use it.

The standard is at abcnotation.com. Read are headers, keys with their modes, accidentals, octaves,
lengths, broken rhythms, ties, tuplets, rests and bar lines; of a chord, the first note. Grace
notes, ornaments, slurs, words and repeats are skipped: a tune is read as it is written.
"""

import re
from collections.abc import Iterator

from vae_lightning.data.music.scores import BAR, TICKS, Bar, Note

_LETTERS = dict(zip("CDEFGAB", (0, 2, 4, 5, 7, 9, 11), strict=True))
_FIFTHS = "FCGDAEB"  # in the order in which sharps come
_MODES = {  # sharps beside those of the major key on the same note
    **{"": 0, "maj": 0, "ion": 0, "lyd": 1, "mix": -1, "dor": -2, "m": -3, "min": -3},
    **{"aeo": -3, "phr": -4, "loc": -5},
}
_SIGNS = {"^^": 2, "^": 1, "=": 0, "_": -1, "__": -2}
_TUPLETS = {2: (3, 2), 3: (2, 3), 4: (3, 4), 6: (2, 6), 8: (3, 8)}  # in the time of, notes

_TOKEN = re.compile(
    r"(?P<skip>\"[^\"]*\"|![^!\n]*!|\+[^+\n]*\+|\{[^}]*\}|`|\$|\\|y\d*)"
    r"|(?P<field>\[[A-Za-z]:[^\]]*\])"
    r"|(?P<bar>:*\|+[\]:|]*(?:\s*\[?\d(?:[,-]\d)*)?|:{2,}|\[\||\[\d)"
    r"|(?P<tuplet>\((?P<p>[2-9])(?::(?P<q>\d*))?(?::(?P<r>\d*))?)"
    r"|(?P<chord>\[(?P<first>[\^=_]*[A-Ga-g][,']*)[^\]]*\])(?P<chord_length>\d*/*\d*)(?P<chord_tie>-?)"
    r"|(?P<note>(?P<sign>\^{1,2}|_{1,2}|=)?(?P<letter>[A-Ga-g])(?P<octave>[,']*))"
    r"(?P<length>\d*/*\d*)(?P<tie>\s*-?)"
    r"|(?P<rest>[zx])(?P<rest_length>\d*/*\d*)"
    r"|(?P<broken>[<>]+)"
)


def read_tunes(text: str) -> Iterator[list[Bar]]:
    """Yield the bars of each tune of a file, in the order of the page.

    Raises:
        ValueError: a header or a note means nothing.
    """
    for part in re.split(r"(?m)^(?=X\s*:)", text):
        if re.match(r"X\s*:", part):
            yield _Reader().read(part)


class _Reader:
    """What is known at a place of a tune."""

    def __init__(self) -> None:
        self.bars: list[Bar] = []
        self.metre = BAR * TICKS
        self.unit: int | None = None
        self.key: dict[str, int] = {}
        self._begin_bar()
        self.tied = False
        self.latest: int | None = None  # the pitch of the note before
        self.broken = 0  # of the next note: above 0 it is shortened, below 0 lengthened
        self.tuplet = 1, 1, 0  # in the time of, notes, notes that are left

    def _begin_bar(self) -> None:
        self.notes: list[Note] = []
        self.signs: dict[str, int] = {}
        self.now = 0

    def read(self, text: str) -> list[Bar]:
        in_body = False
        for line in text.splitlines():
            line = line.partition("%")[0].rstrip()
            header = re.match(r"([A-Za-z])\s*:(?![|:])\s*(.*)", line)
            if header and (not in_body or header[1] in "KLMPQTVWwNIRr"):
                self._take_field(header[1], header[2])
                in_body = in_body or header[1] == "K"
            elif in_body:
                self._take_line(line)
        self._end_bar()
        return self.bars

    def _take_field(self, name: str, value: str) -> None:
        if name == "M":
            self.metre = _metre(value)
        elif name == "L":
            self.unit = _part_of_whole(value)
        elif name == "K":
            self.key = _key(value)

    def _take_line(self, line: str) -> None:
        position = 0
        while position < len(line):
            found = _TOKEN.match(line, position)
            if found is None:  # slurs, ornaments, blanks
                position += 1
                continue
            position = found.end()
            if found["field"]:
                self._take_field(found["field"][1], found["field"][3:-1])
            elif found["bar"]:
                self._end_bar()
            elif found["tuplet"]:
                notes = int(found["p"])
                time = int(found["q"] or _TUPLETS.get(notes, (2, notes))[0])
                self.tuplet = time, notes, int(found["r"] or notes)
            elif found["note"]:
                tie = "-" in found["tie"]
                self._add(self._pitch(found["note"]), found["length"], tie)
            elif found["chord"]:
                self._add(
                    self._pitch(found["first"]), found["chord_length"], bool(found["chord_tie"])
                )
            elif found["rest"]:
                self._add(None, found["rest_length"], False)
            elif found["broken"] and self.notes:
                self._break(found["broken"])

    def _pitch(self, note: str) -> int:
        sign, letter, octave = re.fullmatch(r"([\^=_]*)([A-Ga-g])([,']*)", note).groups()  # type: ignore[union-attr]
        name = letter.upper()
        if sign:
            self.signs[name] = _SIGNS.get(sign, 0)
        alteration = self.signs.get(name, self.key.get(name, 0))
        above = letter.islower() + octave.count("'") - octave.count(",")
        return 60 + _LETTERS[name] + 12 * above + alteration

    def _add(self, pitch: int | None, length: str, tie: bool) -> None:
        times, parts = _factor(length)
        duration = (self.unit or TICKS * (1 if self.metre < 12 * TICKS else 2)) * times // parts
        time, notes, left = self.tuplet
        if left:
            duration = duration * time // notes
            self.tuplet = time, notes, left - 1
        if self.broken:
            duration = _dotted(duration, self.broken < 0, abs(self.broken))
            self.broken = 0
        tied = self.tied and pitch is not None and self.latest == pitch
        self.notes.append(Note(self.now, duration, pitch, tied))
        self.now += duration
        self.latest, self.tied = pitch, tie

    def _break(self, signs: str) -> None:
        """Dot the note before a broken rhythm and cut the one after it, or the reverse."""
        last = self.notes[-1]
        longer = _dotted(last.length, signs[0] == ">", len(signs))
        self.notes[-1] = last._replace(length=longer)
        self.now += longer - last.length
        self.broken = len(signs) if signs[0] == ">" else -len(signs)

    def _end_bar(self) -> None:
        if self.notes:
            self.bars.append(Bar(self.notes, self.metre))
        self._begin_bar()


def _factor(length: str) -> tuple[int, int]:
    """Return what a note's length multiplies and divides the unit by: ``3/2``, ``/``, ``//``."""
    top, slashes, bottom = re.fullmatch(r"(\d*)(/*)(\d*)", length).groups()  # type: ignore[union-attr]
    below = int(bottom) if bottom else 2 ** len(slashes)
    if not below:
        raise ValueError(f"a note of length {length}")
    return int(top or 1), below


def _dotted(length: int, longer: bool, times: int) -> int:
    """Return a note's length in a broken rhythm: by so many dots longer, or the rest of it."""
    rest: int = length >> times
    return 2 * length - rest if longer else rest


def _metre(value: str) -> int:
    """Return the length of a bar in ticks; 0 where there is no metre."""
    value = value.strip()
    if value.startswith("C"):
        return BAR * TICKS
    return _part_of_whole(value)


def _part_of_whole(value: str) -> int:
    """Return a fraction of a whole note in ticks; 0 where it isn't one."""
    found = re.match(r"\s*(\d+)\s*/\s*(\d+)", value)
    return BAR * TICKS * int(found[1]) // int(found[2]) if found and int(found[2]) else 0


def _key(value: str) -> dict[str, int]:
    """Return the alteration of each letter by its key signature."""
    found = re.match(r"\s*([A-G])([#b]?)\s*([A-Za-z]*)", value)
    if not found:  # of the Highland pipes, or none
        return {"F": 1, "C": 1} if value.strip().startswith("Hp") else {}
    mode = found[3].lower()
    sharps = _FIFTHS.index(found[1]) - 1 + 7 * ((found[2] == "#") - (found[2] == "b"))
    sharps += _MODES.get(mode if mode == "m" else mode[:3], 0)
    names = _FIFTHS[:sharps] if sharps > 0 else _FIFTHS[::-1][:-sharps]
    return {name: 1 if sharps > 0 else -1 for name in names}
