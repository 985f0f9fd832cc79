"""Sampling as a user types it, on a model of real digits."""

import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import typed
from vae_lightning import SamplingNoise
from vae_lightning.runs.checkpoints import find_checkpoint, load_model


def pixels(file):
    """Return the grey levels of a picture, ``[H, W]`` in [0, 1]."""
    with Image.open(file) as picture:
        return torch.from_numpy(np.array(picture.convert("L"))) / 255


def first_of(grid):
    """Return the first image of a grid, which draws two pixels for one."""
    return grid[2:58:2, 2:58:2]


def agree(drawn, expected):
    """Check that a picture shows an image, to the nearest grey level."""
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0.5 / 255 + 1e-6)


def test_sample_writes_the_models_own_samples(trained, tmp_path, monkeypatch):
    arguments = [f"checkpoint={trained}", "count=4", "seed=7"]
    typed("sample", *arguments, directory=tmp_path, patch=monkeypatch)
    [written] = tmp_path.glob("outputs/sample/*/samples.png")
    drawn = pixels(written)
    assert drawn.shape == (2 * 58 + 2, 2 * 58 + 2)
    expected = load_model(trained).sample(4, SamplingNoise(4, 7))
    agree(first_of(drawn), expected[0, 0])


@pytest.mark.slow
def test_samples_come_in_the_form_that_is_asked_for(trained, tmp_path, monkeypatch):
    def sampled(*arguments):
        line = [f"checkpoint={trained}", "count=12", *arguments]
        typed("sample", *line, directory=tmp_path, patch=monkeypatch)
        return max(tmp_path.glob("outputs/sample/*"), key=lambda path: path.stat().st_mtime_ns)

    noise = SamplingNoise(12, 0)
    expected = load_model(trained).sample(12, noise, temperature=0.5)
    array = np.load(sampled("form=npy", "temperature=0.5") / "samples.npy")
    tensor = torch.load(sampled("form=pt", "temperature=0.5") / "samples.pt", weights_only=True)
    assert array.dtype == np.float32
    assert torch.equal(torch.from_numpy(array), tensor)
    torch.testing.assert_close(tensor, expected)
    for form in ("png", "files"):
        files = sorted((sampled(f"form={form}", "temperature=0.5") / "samples").iterdir())
        assert [file.name for file in files] == [f"{number:02d}.png" for number in range(12)]
        agree(pixels(files[3]), expected[3, 0])
    grid = pixels(sampled("columns=6") / "samples.png")
    assert grid.shape == (2 * 58 + 2, 6 * 58 + 2)
    line = [f"checkpoint={trained}", f"images='{files[0].parent}'"]
    typed("encode", *line, directory=tmp_path, patch=monkeypatch)
    assert len(list((tmp_path / "outputs" / "encode").iterdir())) == 1


def test_at_temperature_zero_all_samples_are_the_priors_mean(trained):
    vae = load_model(trained)
    mean = vae.likelihood(vae.prior().loc).mean
    samples = vae.sample(3, SamplingNoise(3), temperature=0.0)
    torch.testing.assert_close(samples, mean.expand(3, -1, -1, -1))


def test_a_conditional_model_draws_the_label_that_is_asked_for(conditional, tmp_path, monkeypatch):
    arguments = [f"checkpoint={conditional}", "count=4", "label=7"]
    typed("sample", *arguments, directory=tmp_path, patch=monkeypatch)
    [written] = tmp_path.glob("outputs/sample/*/samples.png")
    vae = load_model(conditional)
    sevens = vae.sample(4, SamplingNoise(4, 0), torch.full((4,), 7))
    agree(first_of(pixels(written)), sevens[0, 0])


def test_a_label_that_a_model_does_not_know_is_refused(conditional, trained, tmp_path, monkeypatch):
    known = "label=10: this model knows labels from 0 to 9"
    none = "label=7: this model knows no labels: train one with model=conditional"
    for checkpoint, label, message in ((conditional, 10, known), (trained, 7, none)):
        arguments = [f"checkpoint={checkpoint}", f"label={label}"]
        for command in ("sample", "visualize"):
            with pytest.raises(SystemExit, match=message):
                typed(command, *arguments, directory=tmp_path, patch=monkeypatch)
    assert not list(tmp_path.iterdir())


def test_of_a_folder_of_runs_the_newest_is_taken_and_named(trained, tmp_path, monkeypatch, capsys):
    runs = tmp_path / "outputs" / "train"
    for name, time in (("older", 1), ("newer", 3), ("without", 0), ("oldest", 2)):
        folder = runs / name / "checkpoints"
        folder.mkdir(parents=True)
        if time:
            file = folder / "last.ckpt"
            file.write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
            os.utime(file, (time, time))
    typed("sample", "outputs/train", "count=4", directory=tmp_path, patch=monkeypatch)
    assert "outputs/train holds runs; the newest is outputs/train/newer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("last", "name its run: outputs/train/<run>/checkpoints/last.ckpt"),
        ("best.ckpt", "name its run: outputs/train/<run>/checkpoints/best.ckpt"),
        ("a=b", "type a checkpoint file or a run directory, as outputs/train/<run>"),
    ],
)
def test_a_checkpoint_that_is_not_found_is_asked_for_by_its_run(name, message):
    with pytest.raises(FileNotFoundError, match=re.escape(f": not found; {message}")):
        find_checkpoint(name)


def test_a_folder_without_runs_is_no_checkpoint(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"holds no checkpoints/best\.ckpt or last\.ckpt, and"
    ):
        find_checkpoint(tmp_path)


def test_more_pictures_than_memory_holds_are_refused(conditional, tmp_path, monkeypatch):
    for command, size in (("sample", "count=1000000000"), ("visualize", "side=1000000")):
        arguments = [f"checkpoint={conditional}", size, "label=3"]
        with pytest.raises(SystemExit, match=rf"error: {size}: at least [\d,]+ GB of memory, and"):
            typed(command, *arguments, directory=tmp_path, patch=monkeypatch)
    assert not list(tmp_path.iterdir())
