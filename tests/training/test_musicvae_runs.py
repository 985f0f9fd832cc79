"""A MusicVAE through every command, as a user types them."""

import csv
import importlib.util
import io
import json
import logging
import sys
import types
import wave

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vae_lightning
from conftest import run, typed
from vae_lightning.data.music.datamodule import MELODIES
from vae_lightning.errors import ConfigurationError
from vae_lightning.evaluation.music import Markov
from vae_lightning.runs.checkpoints import load_model
from vae_lightning.training.callbacks.latents import LatentUse

pytest.importorskip("mido")

SMALL = (
    "model=musicvae",
    "model.latent_dim=4",
    "model.embedding_dim=8",
    "model.encoder_dim=16",
    "model.decoder_dim=16",
    "model.step_dim=16",
    "model.word_dropout=0.2",
    "model.dropout=0.1",
    "data=melodies",
    "data.collections=[exercises]",
    "data.transpose=true",
    "optimizer.learning_rate=1e-2",
)
QUIET = ("callbacks=minimal", "logger=none")


def train(directory, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        typed("train", *SMALL, *arguments, directory=directory, patch=patch)
    return max((directory / "outputs" / "train").iterdir())


@pytest.fixture(scope="module")
def melodies(tmp_path_factory):
    """A run of two epochs, with all callbacks."""
    return train(tmp_path_factory.mktemp("melodies"), "trainer.max_epochs=2")


def state_of(run_directory):
    file = run_directory / "checkpoints" / "last.ckpt"
    return torch.load(file, weights_only=True)["state_dict"]


def test_a_run_logs_the_gap_and_accuracies_by_kind_of_token_given_and_free(melodies):
    figures = json.loads((melodies / "metrics.json").read_text())["figures"]
    assert {"test/latent_gap", "test/nats_per_step", "test/nats_per_note", "test/exact"} <= set(
        figures
    )
    for kind in ("token", "onset", "hold"):
        for how in ("", "forced_"):
            assert 0 <= figures[f"test/{how}{kind}_accuracy"] <= 1
    assert "test/rest_accuracy" not in figures  # there is no rest to be right about
    assert not any(name.endswith(("/notes", "/holds", "/tokens")) for name in figures)
    steps = figures["test/nats_per_step"] * 32
    assert steps == pytest.approx(-figures["test/elbo"], rel=1e-6)


def test_tensorboard_gets_pictures_and_sounds(melodies):
    events = EventAccumulator(str(melodies / "tensorboard"), {"images": 0, "audio": 0})
    events.Reload()
    tags = events.Tags()
    assert {"images/reconstructions", "images/prior_samples", "images/interpolation"} <= set(
        tags["images"]
    )
    assert set(tags["audio"]) == {"sounds/reconstructions", "sounds/prior_samples"}
    played = events.Audio("sounds/reconstructions")[-1]
    with wave.open(io.BytesIO(played.encoded_audio_string)) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(4 * 32 * 0.125, abs=0.1)
    assert "val/latent_gap" in tags["scalars"]


def test_a_stopped_run_goes_on_bitwise(tmp_path, monkeypatch):
    whole = train(tmp_path, *QUIET, "trainer.max_epochs=2")
    stopped = train(tmp_path, *QUIET, "trainer.max_epochs=1")
    before = state_of(stopped)
    typed(
        "train", f"resume={stopped}", "trainer.max_epochs=2", directory=tmp_path, patch=monkeypatch
    )
    ours, theirs = state_of(stopped), state_of(whole)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert any(not torch.equal(value, before[name]) for name, value in ours.items())


def test_evaluate_measures_bounds_interpolations_and_attributes(
    melodies, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO)
    typed("evaluate", melodies, "samples=8", directory=tmp_path, patch=monkeypatch)
    [file] = tmp_path.glob("outputs/evaluate/*/metrics.json")
    figures = json.loads(file.read_text())["figures"]
    assert figures["test/log_marginal"] > figures["test/elbo"]
    assert figures["test/token_accuracy_error"] > 0
    assert len(figures["test/interpolation_distance"]) == 11
    assert figures["test/blend_distance"][0] == 0
    assert np.shape(figures["test/attribute_changes"]) == (3, 3)
    assert "sample_quality" not in caplog.text
    assert "bits/dimension" not in caplog.text
    typed("evaluate", melodies, "metrics=[bound]", directory=tmp_path, patch=monkeypatch)
    trained = json.loads((melodies / "metrics.json").read_text())["figures"]
    *_, again = sorted(tmp_path.glob("outputs/evaluate/*/metrics.json"))
    measured = json.loads(again.read_text())["figures"]
    for name in ("elbo", "kl", "onset_accuracy", "nats_per_note", "exact"):
        assert measured[f"test/{name}"] == pytest.approx(
            trained[f"test/{name}"], rel=1e-5, abs=1e-6
        )


@pytest.mark.parametrize("form", ["mid", "wav", "png", "files"])
def test_samples_are_written_as_scores_sounds_and_pictures(melodies, tmp_path, monkeypatch, form):
    line = (melodies, "count=3", f"form={form}", "temperature=0.5")
    typed("sample", *line, directory=tmp_path, patch=monkeypatch)
    files = sorted(tmp_path.glob("outputs/sample/*/samples/*"))
    assert [file.suffix for file in files] == [f".{'mid' if form == 'files' else form}"] * 3
    if form in ("mid", "files"):
        drawn = load_model(str(melodies)).sample(
            3, vae_lightning.SamplingNoise(3, 0), temperature=0.5
        )
        windows, _ = MELODIES.read(files[0].parent, (32, 1))
        written = [MELODIES.events(window) for window in windows]
        assert written == [MELODIES.events(window) for window in drawn]


def test_drawings_are_heard_row_by_row(melodies, tmp_path, monkeypatch):
    line = (melodies, "what=[interpolation,attributes,reconstructions]", "formats=[png,wav,mid]")
    typed("visualize", *line, directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "visualize").iterdir()
    names = {file.name for file in directory.iterdir() if file.is_file()}
    assert {"interpolation.png", "attributes.png", "reconstructions.png"} <= names
    assert {f"attributes_{row}.mid" for row in (1, 2, 3)} <= names
    assert "interpolation_8.wav" in names
    with wave.open(str(directory / "interpolation_1.wav")) as file:
        assert file.getnframes() / file.getframerate() == pytest.approx(8 * 32 * 0.125, abs=0.1)


def test_own_midi_files_are_encoded_and_named(melodies, tmp_path, monkeypatch):
    folder = tmp_path / "my midis"
    folder.mkdir()
    window = torch.tensor([20, 0, 22, 0] * 8)[:, None]
    (folder / "a.mid").write_bytes(MELODIES.midi(window))
    (folder / "=b.mid").write_bytes(MELODIES.midi(torch.cat([window, window + (window > 0) * 2])))
    typed("encode", melodies, f"music='{folder}'", directory=tmp_path, patch=monkeypatch)
    [file] = tmp_path.glob("outputs/encode/*/posteriors.csv")
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    assert [row["name"] for row in rows] == ["'=b.mid:1", "'=b.mid:2", "a.mid:1"]
    assert rows[0]["loc_0"] == rows[2]["loc_0"] != rows[1]["loc_0"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("encode {run} images=x", "images=x: this model is of music; type music=<folder>"),
        ("encode {run} music=none", "music=none: not found"),
        ("encode {run} music=x images=y", "images= and music=: type one of the two"),
        ("sample {run} top_k=3", "top_k=3: only a prior over codes has it"),
        ("sample {trained} form=mid", "form=mid: not of images; type one of form=grid, form=png, "),
        ("visualize {trained} formats=[wav]", r"formats=\[wav\]: not of images"),
        ("visualize {trained} what=[attributes]", r"what=\[attributes\]: only music"),
        ("evaluate {run} metrics=[sample_quality]", ""),
        ("train model=musicvae", "model=musicvae: needs music, tokens"),
        ("train data=melodies", "needs images|shape"),
    ],
)  # fmt: skip
def test_what_doesn_t_go_together_gets_a_line(
    melodies, trained, tmp_path, monkeypatch, line, message
):
    command, *arguments = line.format(run=melodies, trained=trained).split()
    if not message:
        typed(command, *arguments, directory=tmp_path, patch=monkeypatch)
        return
    with pytest.raises((ConfigurationError, SystemExit)) as raised:
        typed(command, *arguments, directory=tmp_path, patch=monkeypatch)
    import re

    assert re.search(message, str(raised.value))


@pytest.mark.slow
def test_the_exported_parts_compute_what_the_model_does(melodies, tmp_path):
    done = run("export", str(melodies), "formats=[onnx,torch_export,safetensors]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # of torch's own functions, say
    assert "decoder.onnx" in done.stdout
    assert "encoder.pt2" in done.stdout


def test_a_collapse_is_told_by_the_gap_once(caplog):
    look = LatentUse()
    for epoch, gap in ((1, 0.2), (2, 0.2), (3, 5.0), (4, 0.2), (5, 0.1)):
        look._warn_of_gap(gap, epoch, 400 * epoch)
    assert caplog.text.count("Posterior collapse") == 1
    assert "after epoch 2: shuffled latents cost 0.20 nats. Try model.free_nats=20" in caplog.text


def test_markov_s_probabilities_sum_to_one_and_prefer_what_is_usual():
    usual = Markov(4)
    usual.learn([[0, 1, 2, 0, 1, 2, 0, 1, 2]] * 3)
    for context in ((), (0,), (0, 1), (3, 3), (2, 0, 1, 2)):
        assert sum(usual._probability(token, context) for token in range(4)) == pytest.approx(1)
    assert usual.nats([0, 1, 2, 0]) < usual.nats([0, 2, 1, 0])


@pytest.mark.parametrize(
    "line",
    [
        ("sample", "form=mid"),
        ("visualize", "what=[attributes]", "formats=[mid]"),
        ("encode", "music={folder}"),
        ("explore",),
    ],
)
def test_without_mido_a_line_names_the_extra(melodies, tmp_path, monkeypatch, line):
    monkeypatch.setitem(sys.modules, "mido", None)
    monkeypatch.setitem(sys.modules, "gradio", types.ModuleType("gradio"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (tmp_path / "a.mid").touch()
    command, *arguments = (each.format(folder=tmp_path) for each in line)
    message = r"^error: mido is missing: pip install 'vae-lightning\[music\]'$"
    with pytest.raises(SystemExit, match=message):
        typed(command, melodies, *arguments, directory=tmp_path, patch=monkeypatch)
    assert not list(tmp_path.glob("outputs/*/*"))


def test_a_model_of_music_is_heard_without_mido(melodies, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mido", None)
    typed("sample", melodies, "form=wav", "count=2", directory=tmp_path, patch=monkeypatch)
    assert len(list(tmp_path.glob("outputs/sample/*/samples/*.wav"))) == 2
