"""Readers of scores, the grid, windows, and what is counted of them."""

import io
import zipfile

import pytest
import torch

from vae_lightning.data.music.abc_tunes import read_tunes
from vae_lightning.data.music.attributes import ATTRIBUTES, vector
from vae_lightning.data.music.musicxml import read_voices
from vae_lightning.data.music.scores import BAR, TICKS, Bar, Note, joined, tokens_of
from vae_lightning.data.music.windows import transposed, windows_of, without_those_of

HEAD = "X:1\nT:A tune\nM:4/4\nL:1/8\nK:{key}\n"


def notes(body, key="C", metre=None):
    text = HEAD.format(key=key) + body
    if metre:
        text = text.replace("M:4/4", f"M:{metre}")
    (bars,) = read_tunes(text)
    return [
        [(note.start / TICKS, note.length / TICKS, note.pitch, note.tied) for note in bar.notes]
        for bar in bars
    ]


def pitches(body, key="C"):
    return [note[2] for bar in notes(body, key) for note in bar]


def lengths(body):
    return [note[1] for bar in notes(body) for note in bar]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("CDEFGABc", [60, 62, 64, 65, 67, 69, 71, 72]),
        ("C,c'^c_d=B", [48, 84, 73, 73, 71]),
        ("^F F f | F", [66, 66, 78, 65]),  # to the end of the bar, in all octaves
        ("[CEG] z C", [60, None, 60]),
        ('"Am"C {de}D !trill!E ~F .G (AB)', [60, 62, 64, 65, 67, 69, 71]),
        ("C % D\nD \\\nE", [60, 62, 64]),
        ("C [K:D] F | F", [60, 66, 66]),
    ],
)
def test_abc_pitches(body, expected):
    assert pitches(body) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("G", {"F": 1}), ("D", {"F": 1, "C": 1}), ("Bb", {"B": -1, "E": -1}), ("Am", {}),
        ("A Dorian", {"F": 1}), ("Dmix", {"F": 1}), ("E Minor", {"F": 1}),
        ("Glyd", {"F": 1, "C": 1}), ("F#m", {"F": 1, "C": 1, "G": 1}),
        ("Cm", {"B": -1, "E": -1, "A": -1}), ("Hp", {"F": 1, "C": 1}),
    ],
)  # fmt: skip
def test_abc_keys(key, expected):
    natural = dict(zip("CDEFGAB", (60, 62, 64, 65, 67, 69, 71), strict=True))
    assert pitches("CDEFGAB", key) == [natural[each] + expected.get(each, 0) for each in "CDEFGAB"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("C C2 C/2 C/ C// C3/2 C/4", [2, 4, 1, 1, 0.5, 3, 0.5]),
        ("C>D C<D C>>D", [3, 1, 1, 3, 3.5, 0.5]),
        ("(3CDE F", [4 / 3] * 3 + [2]),
        ("(3:2:2CD E", [4 / 3] * 2 + [2]),
        ("z2 C", [4, 2]),
    ],
)
def test_abc_lengths(body, expected):
    assert lengths(body) == pytest.approx(expected)


def test_abc_ties_go_on_over_a_bar_line_and_only_to_the_same_pitch():
    first, second = notes("C6 D2- | D4 C2-D2")
    assert [each[3] for each in first + second] == [False, False, True, False, False]


def test_bars_of_another_metre_and_length_are_told_apart():
    (bars,) = read_tunes(HEAD.format(key="C") + "C8 | C6 |\nM:2/4\nC4 | C2 |")
    assert [bar.length / TICKS for bar in bars] == [16, 16, 8, 8]
    assert [bar.is_full for bar in bars] == [True, False, True, False]


def test_halves_of_a_bar_that_a_repeat_cuts_in_two_are_joined():
    (bars,) = read_tunes(HEAD.format(key="C") + "C8 | D6 :|: E2 | F8 |]")
    bars = joined(bars)
    assert [bar.is_full for bar in bars] == [True, True, True]
    assert [note.start // TICKS for note in bars[1].notes] == [0, 12]


def test_several_tunes_in_a_file_keep_apart():
    text = (
        HEAD.format(key="G")
        + "F8|\n\n"
        + HEAD.format(key="C").replace("A tune", "Another")
        + "F8|\n"
    )
    one, two = read_tunes(text)
    assert (one[0].notes[0].pitch, two[0].notes[0].pitch) == (66, 65)


SCORE = """<score-partwise><part-list>{names}</part-list>{parts}</score-partwise>"""


def score(parts):
    names = "".join(
        f'<score-part id="{number}"><part-name>{name}</part-name></score-part>'
        for number, name in enumerate(parts)
    )
    bodies = "".join(f"<part>{body}</part>" for body in parts.values())
    return SCORE.format(names=names, parts=bodies).encode()


def xml_note(step, duration, octave=4, alter=0, tie=""):
    pitch = f"<pitch><step>{step}</step><alter>{alter}</alter><octave>{octave}</octave></pitch>"
    tied = f'<tie type="{tie}"/>' if tie else ""
    return f"<note>{pitch if step else '<rest/>'}<duration>{duration}</duration>{tied}</note>"


ATTRIBUTES_OF_44 = (
    "<attributes><divisions>2</divisions>"
    "<time><beats>4</beats><beat-type>4</beat-type></time></attributes>"
)


def chorale():
    first = (
        "<measure>" + ATTRIBUTES_OF_44 + xml_note("C", 4, 5) + xml_note("F", 4, 4, 1) + "</measure>"
    )
    second = (
        "<measure>"
        + xml_note("F", 2, 4, 1, "stop")
        + xml_note("", 4)
        + xml_note("B", 2, 3, -1)
        + "</measure>"
    )
    return score(dict.fromkeys(("Soprano", "Alto", "Tenor", "Bass"), first + second))


def zipped(content):
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        archive.writestr("META-INF/container.xml", "<container/>")
        archive.writestr("score.xml", content)
    return written.getvalue()


@pytest.mark.parametrize("packed", [bytes, zipped])
def test_musicxml_is_read_plain_and_compressed(packed):
    voices = read_voices(packed(chorale()))
    assert len(voices) == 4
    first, second = voices[0]
    assert [tuple(note) for note in first.notes] == [
        (0, 8 * TICKS, 72, False), (8 * TICKS, 8 * TICKS, 66, False)
    ]  # fmt: skip
    assert [(note.pitch, note.tied) for note in second.notes] == [
        (66, True),
        (None, False),
        (58, False),
    ]
    assert first.is_full
    assert second.is_full


@pytest.mark.parametrize(
    "content", [b"", b"<a>", b"PK", b"<a/>", score({"Soprano": "", "Alto": ""}), zipped(b"nothing")]
)
def test_what_is_no_four_part_score_is_refused(content):
    with pytest.raises(ValueError, match=r"^(no MusicXML|parts )"):
        read_voices(content)


def bar(*tokens, length=BAR):
    """A bar of notes given as (16ths, pitch)."""
    found, now = [], 0
    for steps, pitch in tokens:
        found.append(Note(int(now * TICKS), int(steps * TICKS), pitch))
        now += steps
    return Bar(found, length * TICKS)


def test_the_grid_holds_and_rests_and_a_note_from_before_has_its_onset_in_the_first_step():
    tied = Note(0, 2 * TICKS, 60, tied=True)
    held = [
        tied,
        Note(2 * TICKS, 2 * TICKS, 62),
        Note(6 * TICKS, TICKS, 64),
        Note(7 * TICKS, TICKS, 64, True),
    ]
    assert tokens_of(held, 10, 60).tolist() == [2, 0, 4, 0, 1, 0, 6, 0, 1, 0]


@pytest.mark.parametrize(
    ("bars", "count"),
    [
        ([bar((16, 60))] * 3, 2),
        ([bar((16, 60)), bar((15, 60)), bar((16, 60)), bar((16, 60))], 1),  # not full
        ([bar((16, 60)), bar((0.5, 60), (15.5, 62))], 0),  # off the grid
        ([bar((16, 60)), bar((16, 200))], 0),  # without a token
        ([bar((16, None)), bar((16, 60)), bar((16, 60))], 1),  # begins with a rest
        ([bar((8, 60), length=8)] * 5, 2),  # two bars of 2/4 count as one
        ([bar((12, 60), length=12)] * 5, 0),
        ([bar((8, 60), length=8)] * 2 + [bar((16, 60))], 0),  # the metre changes
    ],
)
def test_which_windows_there_are(bars, count):
    windows = windows_of([bars], bars=2, lowest=48, pitches=48)
    assert windows.shape == (count, 32, 1)


def test_windows_that_differ_in_key_only_are_the_same_and_others_are_not():
    walk = windows_of([[bar((8, 60), (8, 62))]], 1, 48, 48)
    higher = windows_of([[bar((8, 65), (8, 67))]], 1, 48, 48)
    other = windows_of([[bar((8, 60), (8, 63))]], 1, 48, 48)
    left = without_those_of(torch.cat([higher, other, other]), [walk])
    assert torch.equal(left, other)


def test_transposing_stays_within_the_voices_reaches_both_ends_and_keeps_holds_and_rests():
    x = torch.tensor([[5, 20], [0, 1], [7, 18]])[None].expand(3000, -1, -1)
    ranges = torch.tensor([[3, 10], [9, 30]])
    y = transposed(x, torch.Generator().manual_seed(0), (-5, 6), ranges)
    shift = y[:, 0, 0] - 5
    assert set(shift.tolist()) == {-2, -1, 0, 1, 2}  # as far as the first voice goes
    assert torch.equal(
        y[:, 0] - 5 - shift[:, None] == 15, torch.tensor([[False, True]]).expand(3000, -1)
    )
    assert torch.equal(y[:, 2, 1], 18 + shift)
    assert torch.equal(y[:, 1], x[:, 1])


def test_attributes_are_those_that_are_counted_by_hand():
    x = torch.tensor([[14, 0, 16, 1, 0, 19, 0, 0]])[..., None]  # from 48 on: C, D, F
    values = {name: count(x, 48).item() for name, count in ATTRIBUTES.items()}
    assert values == {"note density": 3 / 8, "average interval": 2.5, "notes of C major": 1.0}
    sharp = torch.tensor([[15, 0, 16, 1]])[..., None]
    assert ATTRIBUTES["notes of C major"](sharp, 48).item() == 0.5
    silent = torch.tensor([[1, 0, 0, 0]])[..., None]
    assert [count(silent, 48).item() for count in ATTRIBUTES.values()] == [0, 0, 0]


def test_an_attribute_s_vector_leads_from_little_of_it_to_much():
    points = torch.arange(8.0)[:, None] * torch.tensor([1.0, 0.0])
    assert vector(torch.arange(8.0), points).tolist() == [6.0, 0.0]
