"""Encoding as a user types it: a split, and pictures of one's own."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import DATA, SUBSET, typed
from vae_lightning import Batch, MNISTDataModule
from vae_lightning.data.download import read
from vae_lightning.runs.checkpoints import load_model


def encoded(checkpoint, directory, patch, *arguments):
    """Encode in a directory, and return the run directory."""
    line = [f"checkpoint={checkpoint}", *arguments]
    typed("encode", *line, directory=directory, patch=patch)
    [written] = (directory / "outputs" / "encode").iterdir()
    return written


def test_encode_writes_the_posteriors_of_a_split(trained, tmp_path, monkeypatch):
    directory = encoded(trained, tmp_path, monkeypatch, SUBSET[1], "split=val")
    data = MNISTDataModule(name="mnist_subset", dir=str(DATA), val_size=80)
    data.setup()
    batch = next(iter(data.split("val")))
    posterior = load_model(trained).posterior(batch)
    with np.load(directory / "posteriors.npz") as written:
        assert np.array_equal(written["index"], batch.indices.numpy())
        assert np.array_equal(written["label"], batch.y.numpy())
        assert np.allclose(written["loc"], posterior.loc.numpy(), rtol=1e-5, atol=1e-6)
        assert np.allclose(written["scale"], posterior.scale.numpy(), rtol=1e-5, atol=1e-6)
        rows = list(csv.DictReader((directory / "posteriors.csv").read_text().splitlines()))
        assert len(rows) == 80
        assert [row["index"] for row in rows] == [str(index) for index in written["index"]]
        assert [row["label"] for row in rows] == [str(label) for label in written["label"]]
        columns = [f"{name}_{d}" for name in ("loc", "scale") for d in range(3)]
        assert [float(rows[7][column]) for column in columns] == pytest.approx(
            [*written["loc"][7].tolist(), *written["scale"][7].tolist()]
        )


@pytest.fixture
def own_digits(tmp_path):
    """Three digits as pictures in a folder whose name has a space, and the digits."""
    folder = tmp_path / "my digits"
    folder.mkdir()
    images = read("mnist_subset", DATA / "mnist_subset", "test")[0][:3]
    for name, image in zip("cab", images, strict=True):
        Image.fromarray(image[0].numpy()).save(folder / f"{name}.png")
    return folder, images


def test_encode_reads_ones_own_pictures_in_the_order_of_their_names(
    trained, own_digits, tmp_path, monkeypatch
):
    folder, images = own_digits
    directory = encoded(trained, tmp_path, monkeypatch, f"images='{folder}'")
    expected = load_model(trained).posterior(Batch(images[[1, 2, 0]].float() / 255))
    with np.load(directory / "posteriors.npz") as written:
        assert written["name"].tolist() == ["a.png", "b.png", "c.png"]
        assert np.allclose(written["loc"], expected.loc.numpy(), rtol=1e-5, atol=1e-6)
        assert np.allclose(written["scale"], expected.scale.numpy(), rtol=1e-5, atol=1e-6)


SPOILT = {
    "text": (
        lambda folder: (folder / "notes.png").write_text("x"),
        r"notes\.png is no picture, or damaged: take them out",
    ),
    "empty": (
        lambda folder: [file.unlink() for file in folder.iterdir()],
        "holds no pictures",
    ),
    "gone": (shutil.rmtree, "images=.*my digits is no folder"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT.keys())
def test_pictures_that_can_not_be_encoded_are_named(
    trained, own_digits, tmp_path, monkeypatch, spoil, message
):
    folder, _ = own_digits
    spoil(folder)
    with pytest.raises(SystemExit, match=message):
        encoded(trained, tmp_path, monkeypatch, f"images='{folder}'")
    assert not (tmp_path / "outputs").exists()


def test_pictures_of_any_size_and_colour_are_brought_to_the_model_s_form_and_stay_as_they_are(
    trained, own_digits, tmp_path, monkeypatch, capsys
):
    folder, images = own_digits
    for name, image in zip("cab", images, strict=True):  # as scans: large, in colours, on paper
        scan = Image.fromarray(255 - image[0].numpy()).resize((280, 280), Image.Resampling.NEAREST)
        scan.convert("RGB").save(folder / f"{name}.png")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    directory = encoded(trained, tmp_path, monkeypatch, f"images='{folder}'")
    assert "dark on bright, so they are inverted" in "".join(capsys.readouterr())
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    expected = load_model(trained).posterior(Batch(images[[1, 2, 0]].float() / 255))
    with np.load(directory / "posteriors.npz") as written:
        assert np.allclose(written["loc"], expected.loc.numpy(), atol=0.5)


def test_one_picture_is_encoded_by_its_name(trained, own_digits, tmp_path, monkeypatch):
    folder, _ = own_digits
    directory = encoded(trained, tmp_path, monkeypatch, f"images='{folder}/b.png'")
    with np.load(directory / "posteriors.npz") as written:
        assert written["name"].tolist() == ["b.png"]


def test_a_conditional_model_encodes_pictures_of_a_label_that_is_named(
    conditional, own_digits, tmp_path, monkeypatch
):
    folder, images = own_digits
    needed = r"label=null: .* conditional; type which label the examples have, label=0 to label=9"
    with pytest.raises(SystemExit, match=needed):
        encoded(conditional, tmp_path, monkeypatch, f"images='{folder}'")
    directory = encoded(conditional, tmp_path, monkeypatch, f"images='{folder}'", "label=7")
    batch = Batch(images[[1, 2, 0]].float() / 255, torch.full((3,), 7))
    expected = load_model(conditional).posterior(batch)
    with np.load(directory / "posteriors.npz") as written:
        assert written["label"].tolist() == [7, 7, 7]
        assert np.allclose(written["loc"], expected.loc.numpy(), rtol=1e-5, atol=1e-6)


def test_a_name_that_a_terminal_would_obey_is_printed_harmless(
    trained, own_digits, tmp_path, monkeypatch
):
    folder, _ = own_digits
    (folder / "b\x1b[2J\n.png").write_text("x")
    with pytest.raises(SystemExit) as exit_:
        encoded(trained, tmp_path, monkeypatch, f"images='{folder}'")
    assert r"b\x1b[2J\n.png is no picture, or damaged" in exit_.value.code
    assert exit_.value.code.isprintable()


def test_a_label_of_a_split_is_refused(conditional, tmp_path, monkeypatch):
    message = "label=7: is that of the examples in images=<folder>, and a split has labels"
    with pytest.raises(SystemExit, match=message):
        encoded(conditional, tmp_path, monkeypatch, "label=7")
    assert not list(tmp_path.iterdir())
