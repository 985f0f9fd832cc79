"""The card beside exported files: what it shows runs, and what it says is true."""

import json
import re
import shutil
import sys

import pytest
import torch
import yaml
from markdown import markdown as rendered

from conftest import typed
from exports import FILES, export, exported_run
from vae_lightning.configuration.quoting import markdown
from vae_lightning.data.catalogue import DATASETS
from vae_lightning.errors import ConfigurationError
from vae_lightning.exporting import model_card
from vae_lightning.runs.checkpoints import load_model
from vae_lightning.runs.trained import Trained


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
    weights = load_model(run).state_dict()
    rebuilt = names["model"].state_dict()
    assert weights.keys() == rebuilt.keys()
    assert all(torch.equal(weights[name], rebuilt[name]) for name in weights)


def test_the_card_says_what_the_model_is_and_what_it_reached(trained, tmp_path_factory):
    run, directory = exported_run("plain", trained, tmp_path_factory)
    _, front, card = (directory / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert (front["license"], front["library_name"]) == ("mit", "vae-lightning")
    assert "datasets" not in front  # 600 images of MNIST are on no hub
    assert {"onnx", "safetensors"} <= set(front["tags"])
    metrics = json.loads((run / "metrics.json").read_text())
    elbo = metrics["figures"]["test/elbo"]
    assert f"| `test/elbo` | {elbo:.2f} | ELBO | nats per image | higher is better |" in card
    for words in (
        "`best.ckpt`, saved after",
        "on 200 test images",
        markdown(metrics["protocol"]["meaning"]),
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


EVIL = "<script>alert(1)</script> ![](http://example.org/x.png) `|` **x**\n---\n# y\n| z |"


def changed(trained, directory, change):
    """Copy a run into a directory, and change the content of its checkpoint."""
    run = shutil.copytree(trained, directory / "run")
    file = run / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    change(content)
    file.with_name(f"{file.name}.sha256").unlink(missing_ok=True)
    file.unlink()
    torch.save(content, file)
    return Trained(file, content)


def test_what_a_checkpoint_and_its_metrics_hold_is_shown_and_not_obeyed(trained, tmp_path):
    def change(content):
        optimizer = content["hyper_parameters"]["optimizer"]
        optimizer |= {EVIL: EVIL, "name": EVIL, "schedule": EVIL, "learning_rate": EVIL}
        optimizer["x"] = "<script>alert(1)</script>"
        content["datamodule_hyper_parameters"]["data"]["settings"] |= dict.fromkeys(
            (EVIL, "name", "batch_size", "split_seed"), EVIL
        )

    model = changed(trained, tmp_path, change)
    written = model.file.parent.parent / "metrics.json"
    metrics = json.loads(written.read_text())
    metrics["run"] |= {"checkpoint": "last.ckpt", "seed": EVIL}
    metrics["run"]["checkpoint_step"] = model.content["global_step"]
    metrics["protocol"] |= dict.fromkeys(("data", "meaning", "binarization"), EVIL)
    metrics["versions"] |= {EVIL: EVIL}
    metrics["figures"][EVIL] = 1.0
    metrics["described"] = {EVIL: {"label": EVIL, "unit": EVIL, "better": "max"}}
    written.write_text(json.dumps(metrics))
    card = model_card.compose(model, {})
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit"
    assert text.count("alert(1)") > 10
    for shown in (text, re.sub("</?(details|summary)>", "", text)):  # some obey no markup in it
        page = rendered(shown, extensions=["tables", "fenced_code"])
        assert not re.search(r"<(script|img|a|strong|hr)\b", page)
        assert page.count("<h1>") == 1
    assert "http://" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)[|]", row)) for row in rows} == {3, 4, 6}  # of three tables


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("epoch"),
        lambda content: content.update(epoch="x"),
        lambda content: content.update(global_step="1"),
        lambda content: content["hyper_parameters"].pop("optimizer"),
        lambda content: content["hyper_parameters"].update(optimizer=[1]),
        lambda content: content["hyper_parameters"]["optimizer"].pop("name"),
        lambda content: content["datamodule_hyper_parameters"]["data"]["settings"].update(
            val_size="x"
        ),
        lambda content: content["datamodule_hyper_parameters"]["data"]["settings"].update(
            val_size=torch.ones(2)
        ),
    ],
)
def test_a_checkpoint_with_fields_of_another_type_is_refused_in_a_line(trained, tmp_path, change):
    model = changed(trained, tmp_path, change)
    told = f"^checkpoint={model.file}: not a checkpoint of this project, or damaged$"
    with pytest.raises(ConfigurationError, match=told):
        model_card.compose(model, {})


@pytest.mark.parametrize("metrics", ["[" * 100_000, '{"figures": {"x": 1' + "0" * 400 + "}}", "[]"])
def test_metrics_that_can_not_be_read_are_named(trained, tmp_path, metrics):
    model = changed(trained, tmp_path, lambda content: None)
    (model.file.parent.parent / "metrics.json").write_text(metrics)
    with pytest.raises(ConfigurationError, match="not a training run's metrics; move it away"):
        model_card.compose(model, {})


def test_each_data_set_has_a_title_and_terms_of_its_own():
    assert len({dataset.title for dataset in DATASETS.values()}) == len(DATASETS)
    hubs = [dataset.hub for dataset in DATASETS.values() if dataset.hub]
    assert len(set(hubs)) == len(hubs)
    assert all("MIT" not in DATASETS[name].terms for name in ("mnist", "kmnist", "larochelle"))
