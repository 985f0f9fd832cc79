"""Training and using a model from Python."""

import json
import subprocess
import sys

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image
from torch.utils.data import TensorDataset

import vae_lightning as vl
from conftest import LONG, SUBSET, build_vae
from vae_lightning import Batch
from vae_lightning.errors import ConfigurationError
from vae_lightning.models.base import DataSpec
from vae_lightning.models.noise import SamplingNoise
from vae_lightning.runs.checkpoints import load_model

SMALL = ("model.latent_dim=2", "callbacks=minimal", "logger=none", "trainer.max_epochs=1")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_package_shows_its_public_names_and_imports_none_of_them_at_once():
    assert dir(vl) == sorted(vl.__all__)
    assert {"fit", "load", "Run", "TrainedModel"} <= set(vl.__all__)
    for name in vl.__all__:
        assert getattr(vl, name).__doc__ or name == "__version__"
    with pytest.raises(AttributeError, match="no attribute 'nosuch'"):
        _ = vl.nosuch
    code = "import sys, vae_lightning; dir(vae_lightning); print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.stdout.strip() == "False"


# -- a trained model -------------------------------------------------------------------------------


def test_images_of_any_kind_have_the_same_codes(trained):
    vae, x = vl.load(trained), torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8)
    expected = load_model(trained).posterior(Batch(x.float() / 255))
    kinds = [
        x,
        x.numpy(),
        x[:, 0],
        x[:, 0].numpy(),
        x.movedim(1, -1),
        x.float() / 255,
        (x.double() / 255).numpy(),
        (x.double() / 255).numpy().astype(">f4"),
        x.to_sparse(),
        x.flip(-1).numpy()[..., ::-1],
        np.frombuffer(x.numpy().tobytes(), np.uint8).reshape(x.shape),  # read-only
        [each.numpy() for each in x[:, 0]],
        [Image.fromarray(each.numpy()) for each in x[:, 0]],
    ]
    for images in kinds:
        codes = vae.encode(images)
        torch.testing.assert_close(codes.loc, expected.loc)
        torch.testing.assert_close(codes["scale"], expected.scale)
    for one in (x[0], x[0, 0], x[0, 0].numpy(), Image.fromarray(x[0, 0].numpy())):
        torch.testing.assert_close(vae.encode(one).loc, expected.loc[:1])


def test_a_colour_model_takes_channels_first_and_last():
    spec = DataSpec((3, 8, 10), "unit")
    vae = vl.TrainedModel(build_vae(spec, latent_dim=2))
    x = torch.rand(4, 3, 8, 10)
    first, last = vae.encode(x).loc, vae.encode(x.movedim(1, -1).numpy()).loc
    torch.testing.assert_close(first, last)
    assert vae.reconstruct(Image.new("RGBA", (33, 20), "red")).shape == (1, 3, 8, 10)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 3), r"images of shape \[3, 3\]; this model takes \[N, 1, 28, 28\]"),
        (torch.zeros(2, 3, 28, 28), r"images of shape \[2, 3, 28, 28\]"),
        (torch.full((28, 28), 1.5), "values from 1.5 to 1.5"),
        (torch.full((28, 28), -0.5), r"values from -0.5 to -0.5"),
        (torch.full((28, 28), float("nan")), "values from nan to nan"),
        (torch.zeros(28, 28, dtype=torch.int64), "numbers of type torch.int64"),
        ([], "no images"),
        (None, "a NoneType that isn't all numbers"),
        (np.ma.masked_greater(np.zeros((28, 28)), 1), "a masked array; fill it first"),
        (np.array([["a"]]), "a ndarray that isn't all numbers"),
        ([torch.zeros(28, 28), torch.zeros(8, 8)], "images of several shapes"),
        (torch.zeros(0, 1, 28, 28), "values of no pixel"),
    ],
)
def test_what_are_no_images_of_the_model_is_one_clear_error(trained, images, message):
    with pytest.raises(ValueError, match=message):
        vl.load(trained).encode(images)


def test_latents_are_decoded_one_or_several(trained):
    vae, model = vl.load(trained), load_model(trained)
    z = torch.randn(4, 3)
    for latents in (z, z.numpy(), z.tolist()):
        torch.testing.assert_close(vae.decode(latents), model.decode(z))
    torch.testing.assert_close(vae.decode(z[0]), model.decode(z[:1]))
    with pytest.raises(ValueError, match=r"shape \[4, 2\]; this model takes \[N, 3\]"):
        vae.decode(z[:, :2])
    with pytest.raises(ValueError, match="must be finite"):
        vae.decode([0.0, float("nan"), 0.0])
    with pytest.raises(ValueError, match="a str that isn't all numbers"):
        vae.decode("latents")
    assert not vae.decode(z).requires_grad


def test_samples_are_a_function_of_the_seed(trained):
    vae = vl.load(trained)
    expected = load_model(trained).sample(5, SamplingNoise(5, 7), temperature=0.5)
    torch.testing.assert_close(vae.sample(5, seed=7, temperature=0.5), expected)
    assert torch.equal(vae.sample(5), vae.sample(5))
    assert not torch.equal(vae.sample(5), vae.sample(5, seed=1))
    for wrong in ({"n": True}, {"n": 0}, {"n": 2.0}, {"seed": "a"}, {"seed": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            vae.sample(**wrong)
    with pytest.raises(ValueError, match="temperature=nan"):
        vae.sample(temperature=float("nan"))


def test_a_conditional_model_takes_one_label_or_one_for_each(conditional, trained):
    vae = vl.load(conditional)
    x = torch.rand(3, 28, 28)
    torch.testing.assert_close(vae.encode(x, label=7).loc, vae.encode(x, label=[7, 7, 7]).loc)
    assert vae.sample(2, label=3).shape == vae.sample(2).shape == (2, 1, 28, 28)
    for label in (10, -1, [1, 2]):
        with pytest.raises(ValueError, match="give one of 0 to 9, or 3 of them"):
            vae.encode(x, label=label)
    with pytest.raises(ValueError, match="conditional: give label=0 to label=9"):
        vae.encode(x)
    with pytest.raises(ValueError, match="knows no labels"):
        vl.load(trained).encode(x, label=1)


def test_a_model_says_what_it_is_and_what_it_has_not(trained):
    vae = vl.load(trained)
    assert repr(vae) == "<trained VAE with 3 latents of [1, 28, 28]>"
    with pytest.raises(AttributeError, match="these codes have loc, scale, not mean"):
        _ = vae.encode(torch.zeros(28, 28)).mean


# -- training --------------------------------------------------------------------------------------


def test_a_run_from_python_is_that_of_the_command_line(here, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["own", "--flag"])
    run = vl.fit(*SUBSET, *SMALL)
    assert sys.argv == ["own", "--flag"]
    stored = json.loads((run.directory / "metrics.json").read_text())
    assert stored["figures"]["test/elbo"] == pytest.approx(run.metrics["test/elbo"])
    same = vl.load(run.directory)
    assert torch.equal(same.sample(3), run.model.sample(3))
    again = vl.fit(*SUBSET, *SMALL)
    assert again.directory != run.directory
    assert torch.equal(again.model.sample(3), run.model.sample(3))


class Pairs:
    """A dataset of PIL pictures and labels."""

    def __len__(self):
        return 40

    def __getitem__(self, number):
        return Image.new("RGB", (12, 10), (number, 90, 9)), number % 2


@pytest.mark.parametrize(
    ("data", "shape", "classes"),
    [
        (torch.rand(40, 10, 12), (1, 10, 12), 0),
        (np.random.RandomState(0).rand(40, 10, 12, 3), (3, 10, 12), 0),
        (TensorDataset(torch.rand(40, 1, 10, 12), torch.arange(40) % 3), (1, 10, 12), 3),
        (Pairs(), (3, 10, 12), 2),
    ],
    ids=["tensor", "array", "tensors", "pictures"],
)
def test_data_that_is_given_is_trained_on(here, data, shape, classes):
    run = vl.fit(*SMALL, data=data)
    assert run.model.model.data.shape == shape
    assert len(run.model.model.data.class_names) == classes
    assert run.model.sample(2).shape == (2, *shape)


class OwnVAE(vl.VAE):
    """A class of a script or a notebook."""


def test_a_model_of_ones_own_is_trained_and_not_resumed(here):
    x = torch.rand(40, 10, 12)
    model = OwnVAE(DataSpec((1, 10, 12), "unit"), latent_dim=2)
    before = next(iter(model.encoder.state_dict().values())).clone()
    run = vl.fit(*SMALL[1:], data=x, model=model)
    assert run.model.model is model
    assert not torch.equal(before, next(iter(model.encoder.state_dict().values())))
    with pytest.raises(ConfigurationError, match=r"model\._target_ is") as raised:
        vl.fit(f"resume={run.directory}", "trainer.max_epochs=2", data=x)
    assert len(str(raised.value).splitlines()) == 1
    assert all(weight.requires_grad for weight in model.parameters())
    again = OwnVAE(DataSpec((1, 10, 12), "unit"), latent_dim=2)
    longer = vl.fit(f"resume={run.directory}", "trainer.max_epochs=2", data=x, model=again)
    assert longer.directory == run.directory
    with pytest.raises(ConfigurationError, match="if test_api is a package of your own"):
        vl.load(run.directory)
    loaded = vl.load(run.directory, allow=["test_api"])
    assert torch.equal(loaded.sample(2), longer.model.sample(2))
    assert vl.fit(*SMALL[1:], data=x, model=model).model.model is model


def test_a_run_of_the_command_line_is_gone_on_with(here):
    run = vl.fit(*SUBSET, *SMALL)
    longer = vl.fit(f"resume={run.directory}", "trainer.max_epochs=2")
    assert longer.directory == run.directory
    with pytest.raises(ConfigurationError, match="is finished"):
        vl.fit(f"resume={run.directory}")


def test_pictures_are_read_as_those_that_the_model_was_trained_on():
    model = build_vae(DataSpec((1, 8, 8), "unit"), latent_dim=2)
    picture = Image.new("L", (16, 8), 250)
    inverted = vl.TrainedModel(model, {"invert": True, "fit": "pad"})
    torch.testing.assert_close(
        inverted.encode(picture).loc,
        model.posterior(Batch(torch.full((1, 1, 8, 8), 0.0))).loc,
        atol=0.2,
        rtol=1,
    )
    assert not torch.equal(inverted.encode(picture).loc, vl.TrainedModel(model).encode(picture).loc)


def test_a_model_of_other_data_is_refused(here):
    with pytest.raises(ConfigurationError, match="model: is of DataSpec"):
        vl.fit(*SMALL[1:], data=torch.rand(40, 8, 8), model=build_vae(latent_dim=2))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.latent_dim=x"], "model.latent_dim=x: must be a valid integer"),
        (["model.latnet_dim=2"], "did you mean model.latent_dim"),
        (["data=given"], "only in Python, by vae_lightning.fit"),
        (["nonsense"], "'nonsense': not a setting; type key=value"),
        (["model.latent_dim=2,3"], "a list is typed as"),
        (["--multirun", "seed=1,2"], "from Python, call fit once for each job"),
    ],
)
def test_a_mistake_is_an_exception_and_leaves_nothing_behind(here, overrides, message):
    with pytest.raises(ValueError, match=message):
        vl.fit(*overrides)
    assert not list(here.iterdir())


@pytest.mark.parametrize("data", ["mnist", {"x": 1}, iter([]), [(torch.zeros(8, 8), -1)] * 40])
def test_data_of_another_kind_is_one_line(here, data):
    with pytest.raises(ConfigurationError, match=r"^data: ") as raised:
        vl.fit(*SMALL, data=data)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.slow
def test_a_notebook_trains_and_uses_a_model(tmp_path):
    cells = [
        "import torch, vae_lightning as vl",
        f"run = vl.fit(*{[*SUBSET, *SMALL]!r})",
        "assert run.model.sample(4).shape == (4, 1, 28, 28)",
        f"run = vl.fit(*{SMALL!r}, data=torch.rand(30, 8, 8))",
        "class Own(vl.VAE): pass",
        "model = Own(vl.DataSpec((1, 8, 8), 'unit'), latent_dim=2)",
        f"run = vl.fit(*{SMALL[1:]!r}, data=torch.rand(30, 8, 8), model=model)",
        "print(run.metrics['test/elbo'])",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=LONG, resources=resources).execute()
    assert float(notebook.cells[-1].outputs[-1].text) < 0


def test_overrides_in_a_list_and_a_package_in_a_text_are_answered(trained):
    with pytest.raises(ValueError, match="overrides are given one by one"):
        vl.fit(["trainer.max_epochs=1"])
    with pytest.raises(ValueError, match=r'allow=json: must be a list, \["json"\]'):
        vl.load(trained, allow="json")
    assert vl.load(trained / "checkpoints").model.latent_dim == 3


def test_what_is_no_path_and_data_beside_resume_are_answered(trained):
    for path in ("", None, 5, b"base"):
        with pytest.raises(ValueError, match="give a run directory or a checkpoint file"):
            vl.load(path)
    with pytest.raises(ValueError, match="leave out data="):
        vl.fit(f"resume={trained}", "trainer.max_epochs=3", data=np.zeros((60, 28, 28), "f4"))
