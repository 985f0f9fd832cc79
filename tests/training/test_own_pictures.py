"""A folder of own pictures through the commands, and training from another run's weights."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import SUBSET, train_in, typed
from vae_lightning.data.batches import Batches
from vae_lightning.data.folder import FolderDataModule
from vae_lightning.data.formats import write_idx
from vae_lightning.models.noise import EvaluationNoise
from vae_lightning.runs import checkpoints
from vae_lightning.runs.checkpoints import load_model

COLOURS = {"blue": (20, 40, 220), "red": (230, 30, 20)}
FAST = ("callbacks=minimal", "logger=none")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of colour pictures of mixed sizes and kinds, by colour."""
    folder = tmp_path_factory.mktemp("my pictures")
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for number in range(30):
            random = np.random.RandomState(number)
            size = random.randint(20, 60, 2).tolist()
            picture = Image.new("RGB", size, colour)
            picture.paste((250, 250, 250), (5, 5, 5 + number % 10, 12))
            suffix = ("png", "jpg", "webp")[number % 3]
            picture.save(folder / name / f"{number}.{suffix}")
    return folder


def train(directory, folder, *arguments, epochs=2):
    directory.mkdir(exist_ok=True)
    line = ("data=folder", f"data.dir='{folder}'", "data.size=32", *FAST, *arguments)
    line = (*line, f"trainer.max_epochs={epochs}")
    with pytest.MonkeyPatch.context() as patch:
        typed("train", *line, directory=directory, patch=patch)
    return max((directory / "outputs" / "train").iterdir())


@pytest.fixture(scope="module")
def coloured(tmp_path_factory, pictures):
    """The run of a conditional model of them."""
    settings = ("model=conditional", "model.num_classes=2", "model.latent_dim=3")
    return train(tmp_path_factory.mktemp("coloured"), pictures, *settings)


def test_a_run_of_colour_pictures_is_sampled_encoded_drawn_measured_and_exported(
    coloured, pictures, tmp_path, monkeypatch
):
    def command(name, *arguments):
        typed(name, str(coloured), *arguments, directory=tmp_path, patch=monkeypatch)
        [*_, newest] = sorted((tmp_path / "outputs" / name).iterdir())
        return newest

    where = f"data.dir='{pictures}'"
    sampled = command("sample", "label=1", "form=png", "count=2") / "samples"
    for file in sampled.iterdir():
        with Image.open(file) as picture:
            assert (picture.size, picture.mode) == ((32, 32), "RGB")
    encoded = command("encode", f"images='{pictures}/red'", "label=1")
    with np.load(encoded / "posteriors.npz") as written:
        assert written["loc"].shape == (30, 3)
    command("visualize", where, "what=[reconstructions,samples]", "label=1")
    measured = command("evaluate", where, "samples=5")
    figures = json.loads((measured / "metrics.json").read_text())
    assert figures["protocol"]["content"]
    command("export", "formats=[safetensors]")


def test_the_label_of_a_folder_is_its_subfolder_s_name(coloured, pictures):
    file = checkpoints.find_checkpoint(coloured)
    stored = checkpoints.read(file)["hyper_parameters"]["model"]["data"]
    assert stored["class_names"] == ["blue", "red"]
    assert stored["shape"] == [3, 32, 32]


def test_a_run_of_pictures_needs_its_folder_typed_to_be_evaluated(coloured, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"error: data\.dir is missing: type data\.dir="):
        typed("evaluate", str(coloured), directory=tmp_path, patch=monkeypatch)
    with pytest.raises(SystemExit, match=r"error: data\.dir is missing: type data\.dir="):
        typed("train", "data=folder", directory=tmp_path, patch=monkeypatch)


def test_other_pictures_are_told_in_an_evaluation_and_refused_in_a_resumed_run(
    coloured, pictures, tmp_path, monkeypatch, capsys
):
    other = tmp_path / "other"
    for name in COLOURS:
        (other / name).mkdir(parents=True)
        for number in range(30):
            Image.new("RGB", (32, 32), (number, 90, 9)).save(other / name / f"{number}.png")
    where = f"data.dir='{other}'"
    line = (str(coloured), where, "metrics=[bound]")
    typed("evaluate", *line, directory=tmp_path, patch=monkeypatch)
    assert "are not those that the model was trained on" in "".join(capsys.readouterr())
    line = (f"resume='{coloured}'", where, "trainer.max_epochs=3")
    with pytest.raises(SystemExit, match="aren't those that it was trained on; begin a new run"):
        typed("train", *line, directory=tmp_path, patch=monkeypatch)


def test_a_pair_of_idx_files_is_typed_as_a_list(tmp_path, monkeypatch):
    for name, values in (("x-idx3-ubyte", np.zeros((40, 8, 8), np.uint8)), ("y-idx1-ubyte", None)):
        labels = np.arange(40, dtype=np.uint8) % 2
        (tmp_path / name).write_bytes(write_idx(labels if values is None else values))
    line = ("data=arrays", "data.file=[x-idx3-ubyte,y-idx1-ubyte]", "model.num_classes=2")
    typed("train", *line, *FAST, "trainer.max_epochs=1", directory=tmp_path, patch=monkeypatch)


def test_a_run_of_pictures_is_resumed_bitwise(pictures, tmp_path):
    whole = train(tmp_path / "whole", pictures, "model.latent_dim=3", epochs=3)
    part = train(tmp_path / "part", pictures, "model.latent_dim=3")
    with pytest.MonkeyPatch.context() as patch:
        line = (f"resume='{part}'", "trainer.max_epochs=3")
        typed("train", *line, directory=tmp_path, patch=patch)
    one, other = (load_model(each / "checkpoints" / "last.ckpt") for each in (whole, part))
    assert all(map(torch.equal, one.parameters(), other.parameters()))


@pytest.mark.parametrize("model", ["vqvae", "convolutional"])
def test_other_models_train_on_pictures_too(pictures, tmp_path, model):
    small = {"vqvae": ["model.codes=8", "model.channels=[4,6]"], "convolutional": []}[model]
    run = train(tmp_path, pictures, f"model={model}", *small, epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        line = (str(run), f"images='{pictures}'")
        typed("encode", *line, directory=tmp_path, patch=patch)


# -- init ------------------------------------------------------------------------------------------


def test_a_new_run_begins_with_the_weights_of_another(trained, tmp_path, monkeypatch):
    begun = (f"init={trained}", "model.latent_dim=3", "optimizer.learning_rate=1e-30")
    run = train_in(tmp_path, *begun, "model.initial_mean=true", "trainer.max_epochs=1")
    content = checkpoints.read(checkpoints.find_checkpoint(run))
    assert content["hyper_parameters"]["init"]["run"] == str(trained)
    one, other = (load_model(each) for each in (trained, run))
    assert all(map(torch.allclose, one.parameters(), other.parameters()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init=nosuch"], "init=.*nosuch: not found"),
        (["model.latent_dim=5"], "other weights than this model's; type model.latent_dim=3"),
        (["model=vqvae"], "its model is a VAE with 3 latents, and this one a VQ-VAE"),
    ],
)
def test_weights_of_another_model_are_refused(trained, tmp_path, monkeypatch, arguments, message):
    begun = [] if "init=nosuch" in arguments else [f"init={trained}"]
    with pytest.raises(SystemExit, match=message):
        typed("train", *SUBSET, *begun, *arguments, directory=tmp_path, patch=monkeypatch)
    assert not (tmp_path / "outputs").exists()


# -- how unusual an example is ---------------------------------------------------------------------


def test_encode_writes_the_bound_of_each_example(coloured, pictures, tmp_path, monkeypatch):
    line = (str(coloured), f"data.dir='{pictures}'", "split=train")
    typed("encode", *line, directory=tmp_path, patch=monkeypatch)
    [written] = (tmp_path / "outputs" / "encode").iterdir()
    rows = list(csv.DictReader((written / "posteriors.csv").read_text().splitlines()))
    data = FolderDataModule(dir=str(pictures), size=32)
    data.prepare_data()
    data.setup()
    batches: Batches = data.split("train")
    batch = next(iter(batches))
    model = load_model(coloured)
    with torch.inference_mode():
        expected = model.measure(batch, EvaluationNoise(batch.indices))
    for name in ("elbo", "log_likelihood", "kl"):
        found = torch.tensor([float(row[name]) for row in rows])
        assert torch.allclose(found, expected[name], rtol=1e-4)


def test_twelve_pictures_of_which_one_is_validated_train_to_the_end(tmp_path, monkeypatch):
    (tmp_path / "few").mkdir()
    for number in range(12):
        pixels = np.random.RandomState(number).randint(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "few" / f"{number}.png")
    line = ("data=folder", "data.dir=few", "trainer.max_epochs=1", "model.hidden_dims=[4]")
    typed("train", *line, "hydra.run.dir=run", directory=tmp_path, patch=monkeypatch)
    assert (tmp_path / "run" / "metrics.json").exists()
    typed(
        *("visualize", "checkpoint=run", "data.dir=few", "what=[interpolation]", "split=val"),
        directory=tmp_path,
        patch=monkeypatch,
    )
