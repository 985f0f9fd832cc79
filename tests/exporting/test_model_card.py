"""The card beside exported files: what it shows runs, and what it says is true."""

import json
import re
import shutil
import sys

import pytest
import torch
import yaml

import vae_lightning
from conftest import typed
from exports import FILES, export, exported_run


@pytest.fixture(params=["plain", "conditional"])
def exported(request, trained, tmp_path_factory):
    return exported_run(request.param, trained, tmp_path_factory)


def test_what_the_card_shows_runs_and_rebuilds_the_model(exported, monkeypatch):
    run, directory = exported
    monkeypatch.chdir(directory)
    blocks = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        names = {}
        exec(block, names)
        images = names["samples" if "samples" in names else "image"]
        assert images.shape == (16, 1, 28, 28)
        assert 0 <= images.min() <= images.max() <= 1
        assert not (images[0] == images[1]).all()
        codes = names.get("code", names)
        assert len(codes["loc"]) == len(codes["scale"]) == 16
    weights = vae_lightning.load(run).state_dict()
    rebuilt = names["model"].state_dict()
    assert weights.keys() == rebuilt.keys()
    assert all(torch.equal(weights[name], rebuilt[name]) for name in weights)


def test_the_card_says_what_the_model_is_and_what_it_reached(trained, tmp_path_factory):
    run, directory = exported_run("plain", trained, tmp_path_factory)
    _, front, card = (directory / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert (front["license"], front["library_name"], front["datasets"]) == (
        "mit",
        "vae-lightning",
        ["ylecun/mnist"],
    )
    assert {"onnx", "safetensors"} <= set(front["tags"])
    metrics = json.loads((run / "metrics.json").read_text())
    elbo = metrics["figures"]["test/elbo"]
    assert f"| `test/elbo` | {elbo:.2f} | ELBO | nats per image | higher is better |" in card
    for words in (
        "`best.ckpt`, saved after",
        "on 200 test images",
        metrics["protocol"]["meaning"],
        "| `model.latent_dim` | `3` |",
    ):
        assert words in card
    assert "80 of the training images were held out for validation" in card
    assert all(f"`{name}`" in card for name in FILES)
    assert str(run) not in card


def test_figures_of_another_checkpoint_are_not_claimed(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)  # which this format does without
    directory = export(trained / "checkpoints" / "last.ckpt", tmp_path, "formats=[safetensors]")
    card = (directory / "README.md").read_text()
    assert "the training run tested another, `best.ckpt`" in card
    assert "test/elbo" not in card
    assert {path.name for path in directory.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
        ".hydra",
    }
    assert re.search(
        r"model\.safetensors +\d\.\d MB +largest difference from the model 0\.0e\+00",
        capsys.readouterr().out,
    )


def test_metrics_that_are_none_are_not_mistaken_for_figures(trained, tmp_path, monkeypatch):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "metrics.json").write_text('{"loss": 3}')
    with pytest.raises(SystemExit, match=r"metrics\.json: not a training run's metrics"):
        typed(
            "export", f"checkpoint={run}", "formats=[safetensors]", directory=run, patch=monkeypatch
        )
    assert not (run / "outputs").exists()
