"""Music as data: splits, pictures, MIDI and sound."""

import io
import json
import wave

import numpy as np
import pytest
import torch

from vae_lightning.data.music import corpus, sound
from vae_lightning.data.music.datamodule import (
    CHORALES,
    JSB,
    MELODIES,
    Chorales,
    JSBChorales,
    Melodies,
)
from vae_lightning.data.music.events import Event, of_sets, of_voices
from vae_lightning.data.music.midi import midi
from vae_lightning.data.music.scores import BAR, FIRST_PITCH, TICKS, Bar, Note
from vae_lightning.errors import DatasetUnavailable

pytest.importorskip("mido")


def exercises(**settings):
    data = Melodies(collections=["exercises"], **settings)
    data.prepare_data()
    data.setup()
    return data


def shapes(windows):
    """Windows up to transposition."""
    return {
        tuple((w - w[w >= FIRST_PITCH].min()).where(w >= FIRST_PITCH, w - 99).flatten().tolist())
        for w in windows
    }


def test_no_melody_of_the_test_is_trained_on_in_any_key_and_a_seed_moves_the_others_only():
    one, two = exercises().splits, exercises(split_seed=1).splits
    assert torch.equal(one["test"], two["test"])
    assert not torch.equal(one["val"], two["val"])
    for split in (one, two):
        trained, validated, tested = (shapes(split[each]) for each in ("train", "val", "test"))
        assert trained
        assert validated
        assert tested
        assert not trained & validated
        assert not trained & tested
        assert not validated & tested


def test_batches_hold_whole_windows_and_know_their_places():
    data = exercises(batch_size=10)
    assert data.spec.shape == (32, 1)
    assert data.spec.vocabulary == 50
    batch = next(iter(data.train_dataloader()))
    assert batch.x.dtype == torch.int64
    assert torch.equal(batch.x, data.x["train"][batch.indices])
    assert (batch.x[:, 0] >= FIRST_PITCH).all()
    held_out = next(iter(data.split("val")))
    assert torch.equal(held_out.x, data.x["train"][held_out.indices])


def test_neighbours_of_a_held_out_split_are_seldom_of_one_piece():
    """Windows of a piece overlap by half: the second half of one is the first of the next."""
    data = exercises()
    for part in ("val", "test"):
        shown, in_order = next(iter(data.split(part))).x, data.splits[part]
        assert sorted(shown.flatten(1).tolist()) == sorted(in_order.flatten(1).tolist())
        follow, followed = (
            (x[:-1, 17:32] == x[1:, 1:16]).flatten(1).all(1).float().mean()
            for x in (shown, in_order)
        )
        assert followed > 0.5
        assert follow < 0.2


def test_training_windows_are_transposed_and_no_others():
    data = exercises(transpose=True)
    batch = next(iter(data.train_dataloader()))
    original = data.x["train"][batch.indices]
    onset = original >= FIRST_PITCH
    assert torch.equal(batch.x[~onset], original[~onset])
    assert (batch.x != original).any()
    ranges = data.splits["train"][data.splits["train"] >= FIRST_PITCH]
    assert batch.x[onset].min() >= ranges.min()
    assert batch.x.max() <= ranges.max()
    tested = next(iter(data.split("test")))
    assert torch.equal(tested.x, data.splits["test"][tested.indices])


def test_chorales_are_split_by_piece_and_their_voices_kept(monkeypatch):
    def piece(part, pitch):
        bars = [Bar([Note(0, BAR * TICKS, pitch)], BAR * TICKS)] * 5
        return part, [
            [Bar([bar.notes[0]._replace(pitch=pitch - 5 * v)], bar.length) for bar in bars]
            for v in range(4)
        ]

    pieces = [piece("train", 70), piece("val", 71), piece("test", 72)]
    monkeypatch.setattr(corpus, "chorales", lambda folder: iter(pieces))
    data = Chorales(transpose=False)
    data.setup()
    for part, pitch in (("train", 70), ("val", 71), ("test", 72)):
        assert data.splits[part].shape == (2, 64, 4)
        first = data.splits[part][0, 0] - FIRST_PITCH + CHORALES.lowest
        assert first.tolist() == [pitch, pitch - 5, pitch - 10, pitch - 15]


def jsb_file(tmp_path, **parts):
    folder = tmp_path / "jsb_chorales"
    folder.mkdir()
    piece = [[60, 55, 48], [], [62, 62, 71]]
    content = {"train": [piece] * 229, "valid": [piece] * 76, "test": [piece[:2]] * 77} | parts
    file = folder / "jsb-chorales-quarter.json"
    file.write_text(json.dumps(content))
    return file


def test_the_benchmark_s_file_is_known_by_its_sum_and_nothing_else_is_taken(tmp_path):
    file = jsb_file(tmp_path)
    before = file.read_bytes()
    data = JSBChorales(dir=str(tmp_path))
    with pytest.raises(DatasetUnavailable, match="not the published file, by its SHA-256"):
        data.prepare_data()
    assert file.read_bytes() == before
    with pytest.raises(
        DatasetUnavailable, match=r"Put jsb-chorales-quarter\.json into .*jsb_chorales"
    ):
        JSBChorales(dir=str(tmp_path / "empty")).prepare_data()


def test_the_benchmark_lists_each_step_s_pitches_once_in_order(tmp_path, monkeypatch):
    import hashlib

    from vae_lightning.data.catalogue import SCORES

    file = jsb_file(tmp_path)
    monkeypatch.setitem(
        SCORES["jsb_chorales"].files, file.name, hashlib.sha256(file.read_bytes()).hexdigest()
    )
    data = JSBChorales(dir=str(tmp_path))
    data.prepare_data()
    data.setup()
    x = data.splits["train"][0]
    token = lambda pitch: FIRST_PITCH + pitch - JSB.lowest  # noqa: E731
    assert x[0].tolist() == [token(48), token(55), token(60), 1, 0]
    assert x[1].tolist() == [1, 0, 0, 0, 0]
    assert x[2].tolist() == [token(62), token(71), 1, 0, 0]
    assert (x[3:] == 0).all()
    assert JSB.length(x) == 3
    assert JSB.length(data.splits["test"][0]) == 2


EVENTS = [Event(0, 4, 60, 0), Event(4, 6, 64, 0), Event(8, 16, 62, 0)]
TOKENS = torch.tensor([14, 0, 0, 0, 18, 0, 1, 0, 16, *[0] * 7])[:, None]


def test_tokens_are_notes_with_an_end():
    assert of_voices(TOKENS, 48) == EVENTS
    sets = torch.tensor([[2, 5, 1], [2, 1, 0], [1, 0, 0], [5, 1, 0], [0, 0, 0]])
    assert of_sets(sets, 50) == [Event(0, 1, 53, 0), Event(0, 2, 50, 0), Event(3, 4, 53, 0)]


@pytest.mark.parametrize("voices", [1, 4])
def test_midi_reads_back_as_the_tokens_that_it_was_written_from(tmp_path, voices):
    modality = MELODIES if voices == 1 else CHORALES
    generator = torch.Generator().manual_seed(0)
    steps = 32
    x = torch.randint(0, 30, (steps, voices), generator=generator)
    x[0] = 20 - 4 * torch.arange(voices)
    x[1::2] = 0
    x[x == 1] = 0  # a rest after a rest reads back as one
    for voice in range(voices):  # apart, so that the highest voice is the first
        onset = x[:, voice] >= FIRST_PITCH
        x[:, voice] = torch.where(onset, x[:, voice] % 5 + 30 - 9 * voice, x[:, voice])
    (tmp_path / "a.mid").write_bytes(modality.midi(x))
    (tmp_path / "notes.txt").write_text("mine")
    windows, names = modality.read(tmp_path, (steps, voices), {})
    assert names == ["a.mid:1"]
    assert torch.equal(windows[0], x)


def test_midi_keeps_tempo_voices_and_silence_at_the_end():
    import mido

    file = mido.MidiFile(file=io.BytesIO(midi([*EVENTS, Event(0, 2, 48, 1)], 20, 0.125)))
    assert file.length == pytest.approx(20 * 0.125, abs=1e-3)
    assert len(file.tracks) == 2
    played = [message.note for message in file if message.type == "note_on" and message.velocity]
    assert sorted(played) == [48, 60, 62, 64]


def test_a_midi_file_is_moved_by_octaves_where_the_model_has_no_such_pitches(tmp_path):
    (tmp_path / "low.mid").write_bytes(midi([Event(0, 4, 24, 0), Event(4, 8, 31, 0)], 8, 0.1))
    windows, _ = MELODIES.read(tmp_path / "low.mid", (8, 1))
    assert (windows[0, [0, 4], 0] - FIRST_PITCH + MELODIES.lowest).tolist() == [48, 55]


EVENT_FILE = midi(EVENTS, 20, 0.1)
DRUMS = EVENT_FILE.replace(b"\x90", b"\x99").replace(b"\x80", b"\x89")


def broken(tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("content", "voices", "message"),
    [
        (b"not music", 1, "no MIDI file, or damaged"),
        (b"", 1, "no MIDI file, or damaged"),
        (b"MThd" + bytes(10), 1, "no "),
        (midi([], 8, 0.1), 1, "no notes"),
        (DRUMS, 1, "no notes but drums, which aren't read"),
        (EVENT_FILE[:12] + b"\xe7\x28" + EVENT_FILE[14:], 1, "timed in frames"),
        (EVENT_FILE[:12] + bytes(2) + EVENT_FILE[14:], 1, "timed in frames"),
        (midi(EVENTS, 20, 0.1), 4, "1 parts with notes, and the model needs 4"),
        (bytes(2 << 20), 1, "larger than 1 MiB"),
        (midi([Event(0, 1, 60, 0), Event(30_000, 30_001, 60, 0)], 30_001, 0.1), 1, "longer than"),
        (midi([Event(0, 1, 1, 0), Event(1, 2, 120, 0)], 2, 0.1), 1, "pitches span more"),
    ],
    ids=["text", "empty", "zeros", "silence", "drums", "frames", "no beat", "one part", "large",
         "long", "wide"],
)  # fmt: skip
def test_what_is_no_midi_file_for_the_model_gets_a_line_that_names_it(
    tmp_path, content, voices, message
):
    file = broken(tmp_path, "mine.mid", content)
    modality = MELODIES if voices == 1 else CHORALES
    with pytest.raises(ValueError, match=f"mine.mid: .*{message}") as raised:
        modality.read(file, (32, voices), {})
    assert "\n" not in str(raised.value)
    assert file.read_bytes() == content


def test_a_file_among_others_that_can_not_be_read_is_left_out_with_a_line(tmp_path, caplog):
    broken(tmp_path, "a.mid", b"not music")
    broken(tmp_path, "b.mid", EVENT_FILE)
    (tmp_path / "c.mid").mkdir()
    broken(tmp_path / "c.mid", "d.MIDI", EVENT_FILE)
    _, names = MELODIES.read(tmp_path, (32, 1))
    assert names == ["b.mid:1", "c.mid/d.MIDI:1"]
    assert "left out: " in caplog.text
    assert "a.mid: no MIDI file, or damaged" in caplog.text


def test_a_folder_without_midi_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no MIDI files \(mid, midi\)"):
        MELODIES.read(tmp_path, (32, 1))
    with pytest.raises(ValueError, match="not found"):
        MELODIES.read(tmp_path / "none", (32, 1))


def test_a_note_sounds_at_its_pitch_from_its_start_to_its_end():
    played = sound.synthesize([Event(4, 12, 69, 0)], 16, 0.125)
    assert len(played) == pytest.approx(16 * 0.125 * sound.RATE, rel=0.05)
    loud = np.abs(played) > 0.01
    assert loud[: int(0.49 * sound.RATE)].sum() == 0
    assert loud[int(0.6 * sound.RATE) : int(1.4 * sound.RATE)].mean() > 0.5
    assert loud[int(1.6 * sound.RATE) :].sum() == 0
    spectrum = np.abs(np.fft.rfft(played))
    frequency = np.fft.rfftfreq(len(played), 1 / sound.RATE)[spectrum.argmax()]
    assert frequency == pytest.approx(440, abs=1)
    assert np.abs(played).max() == pytest.approx(0.8, abs=1e-3)
    assert not sound.synthesize([], 4, 0.1).any()


def test_a_wav_file_has_the_length_of_the_music():
    with wave.open(io.BytesIO(MELODIES.wav(TOKENS))) as file:
        assert (file.getnchannels(), file.getframerate()) == (1, sound.RATE)
        assert file.getnframes() / file.getframerate() == pytest.approx(16 * 0.125, abs=0.1)


def test_a_piano_roll_shows_time_to_the_right_and_pitch_upwards():
    picture = MELODIES.picture(TOKENS[None], 1)
    blank = MELODIES.picture(torch.tensor([1, *[0] * 15])[None, :, None], 1)
    drawn = (picture != blank).any(0)
    rows, _columns = drawn.nonzero().T
    gap, step, row = 4, 3, 2
    top = lambda pitch: gap + (MELODIES.lowest + MELODIES.pitches - 1 - pitch) * row  # noqa: E731
    assert set(rows.tolist()) == {top(pitch) + each for pitch in (60, 62, 64) for each in (0, 1)}
    lowest_note = drawn[top(60)].nonzero().flatten()
    assert (lowest_note.min(), lowest_note.max()) == (gap, gap + 4 * step - 1)
    assert picture.min() >= 0
    assert picture.max() <= 1
    two = MELODIES.picture(torch.stack([TOKENS] * 3), 2)
    assert two.shape[1] == 2 * (picture.shape[1] - gap) + gap


def test_pieces_of_different_length_are_heard_one_after_another():
    one = torch.tensor([[2, 5, 1], [1, 0, 0], [0, 0, 0]])
    other = torch.tensor([[5, 1, 0], [5, 1, 0], [5, 1, 0]])
    both = torch.cat([one, other])
    lowest = JSB.lowest
    expected = [Event(0, 1, lowest, 0), Event(0, 1, lowest + 3, 0), Event(2, 5, lowest + 3, 0)]
    assert sorted(JSB.events(both)) == sorted(expected)
    assert JSB.length(both) == 5
    seconds = len(JSB.sound(both)) / sound.RATE
    assert seconds == pytest.approx(5 * JSB.seconds_per_step + 0.06, abs=0.01)
    assert len(JSB.sound(torch.zeros(3, 3))) < sound.RATE / 10  # an empty piece


def test_what_training_has_in_any_key_is_not_tested(tmp_path, monkeypatch):
    def tune(number):
        """Two bars that all tunes share, in a key of its own, and two that only it has."""
        pitches = [60 + number % 5] * 2 + [60 + number // 5, 65 + number % 5]
        lengths = [8, 8, 4, 12] if number % 2 else [8, 8, 12, 4]
        starts = (0, 8, 0, lengths[2])
        notes = [
            Note(start * TICKS, length * TICKS, pitch)
            for start, length, pitch in zip(starts, lengths, pitches, strict=True)
        ]
        return [Bar(part, BAR * TICKS) for part in (notes[:2], notes[:2], notes[2:], notes[2:])]

    monkeypatch.setattr(corpus, "tunes", lambda *_: (tune(number) for number in range(40)))
    splits = Melodies(collections=["exercises"]).splits
    shared = tune(0)[0].notes[0].pitch

    def intervals(windows):
        """Return windows as notes above their lowest one, with their places."""
        found = set()
        for window in windows[..., 0].tolist():
            onsets = [(place, token) for place, token in enumerate(window) if token >= 2]
            lowest = min(token for _, token in onsets)
            found.add(tuple((place, token - lowest) for place, token in onsets))
        return found

    assert shared == 60
    trained, val, test = (intervals(splits[name]) for name in ("train", "val", "test"))
    assert len(val) > 0
    assert len(test) > 0
    assert not val & trained
    assert not test & (trained | val)
    assert len(splits["test"]) == len(test)
