"""What is exported computes what the model computes, and its card is true."""

import json
import re
import sys

import onnx
import onnxruntime
import pytest
import torch
import yaml

import vae_lightning
from conftest import train_in, typed
from vae_lightning import VAEModule, exporting, likelihoods

FILES = {"encoder.onnx", "decoder.onnx", "encoder.pt2", "decoder.pt2", "model.safetensors"}


def export(run, directory, *arguments):
    """Export a run's model by the command, and return where its files lie."""
    with pytest.MonkeyPatch.context() as patch:
        typed("export", f"checkpoint={run}", *arguments, directory=directory, patch=patch)
    *_, written = sorted((directory / "outputs" / "export").iterdir())
    return written


@pytest.fixture(scope="module")
def plain(trained, tmp_path_factory):
    """A fully connected model without labels, with Bernoulli pixels: its run directory and its files."""
    return trained, export(trained, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A convolutional one with labels, whose mean isn't the sigmoid of its logits."""
    settings = ["model=convolutional", "model.num_classes=10", "model.channels=[4]", "model.hidden_dims=[16]"]
    settings += ["model.likelihood=continuous_bernoulli", "trainer.max_epochs=1"]
    run = train_in(tmp_path_factory.mktemp("conditional"), *settings)
    return run, export(run, tmp_path_factory.mktemp("exported"))


@pytest.fixture(params=["plain", "conditional"])
def exported(request):
    return request.getfixturevalue(request.param)


def expected(run, subset, size):
    """Return digits, their labels where the model takes any, and the model's loc, scale and images of them."""
    vae = vae_lightning.load(run)
    batch = next(iter(subset.split("test")))
    x, labels = batch.images[:size], [batch.labels[:size]] if vae.num_classes else []
    posterior = vae.posterior(x, *labels)
    return x, labels, posterior.loc, posterior.scale, vae.reconstruct(x, *labels)


@pytest.mark.parametrize("size", [1, 5, 40])
def test_onnx_runtime_computes_the_models_figures_of_real_digits(exported, subset, size):
    run, directory = exported
    x, labels, loc, scale, image = expected(run, subset, size)
    encoder, decoder = (onnxruntime.InferenceSession(directory / f"{name}.onnx") for name in ("encoder", "decoder"))
    feed = {"y": labels[0].numpy()} if labels else {}
    computed = dict(zip(("loc", "scale"), encoder.run(["loc", "scale"], {"x": x.numpy()} | feed), strict=True))
    [computed["image"]] = decoder.run(["image"], {"z": loc.numpy()} | feed)
    for name, value in {"loc": loc, "scale": scale, "image": image}.items():
        torch.testing.assert_close(torch.from_numpy(computed[name]), value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 5, 40])
def test_exported_programs_compute_the_models_figures_of_real_digits(exported, subset, size):
    run, directory = exported
    x, labels, *outputs = expected(run, subset, size)
    encoder, decoder = (torch.export.load(directory / f"{name}.pt2").module() for name in ("encoder", "decoder"))
    for computed, value in zip((*encoder(x, *labels), decoder(outputs[0], *labels)), outputs, strict=True):
        torch.testing.assert_close(computed, value, rtol=0, atol=1e-5)


def test_onnx_files_stand_alone_and_name_their_inputs_and_outputs(exported):
    run, directory = exported
    found = {path.name for path in directory.iterdir()}
    assert found == FILES | {"config.json", "README.md", ".hydra"}
    assert len({(directory / name).stat().st_mode for name in found - {".hydra"}}) == 1  # others may read all or none
    vae = vae_lightning.load(run)
    labels = [("y", ["batch"])] if vae.num_classes else []
    [dims] = vae.prior.event_shape
    shapes = {"encoder": [("x", ["batch", 1, 28, 28]), *labels, ("loc", ["batch", dims]), ("scale", ["batch", dims])]}
    shapes["decoder"] = [("z", ["batch", dims]), *labels, ("image", ["batch", 1, 28, 28])]
    for name, expected_shapes in shapes.items():
        graph = onnx.load(directory / f"{name}.onnx", load_external_data=False).graph
        assert not any(tensor.external_data for tensor in graph.initializer)
        found_shapes = [
            (each.name, [dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim])
            for each in (*graph.input, *graph.output)
        ]
        assert found_shapes == expected_shapes


def test_what_the_card_shows_runs_and_rebuilds_the_model(exported, monkeypatch):
    run, directory = exported
    monkeypatch.chdir(directory)
    blocks = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        names = {}
        exec(block, names)
        assert names["image"].shape == (16, 1, 28, 28)
        assert 0 <= names["image"].min() <= names["image"].max() <= 1
        assert len(names["loc"]) == 16
    weights = vae_lightning.load(run).state_dict()
    rebuilt = names["vae"].state_dict()
    assert weights.keys() == rebuilt.keys()
    assert all(torch.equal(weights[name], rebuilt[name]) for name in weights)


def test_the_card_says_what_the_model_is_and_what_it_reached(plain):
    run, directory = plain
    _, front, card = (directory / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert (front["license"], front["library_name"], front["datasets"]) == ("mit", "vae-lightning", ["ylecun/mnist"])
    assert {"onnx", "safetensors"} <= set(front["tags"])
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"| `test/elbo` | {metrics['figures']['test/elbo']:.2f} |" in card
    for words in (
        "`best.ckpt`, saved after",
        "on 200 test images",
        metrics["protocol"]["meaning"],
        "| `model.latent_dim` | `3` |",
    ):
        assert words in card
    assert "80 of the training images held out for validation" in card
    assert all(f"`{name}`" in card for name in FILES)
    assert str(run) not in card


def test_figures_of_another_checkpoint_are_not_claimed(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)  # which this format does without
    directory = export(trained / "checkpoints" / "last.ckpt", tmp_path, "formats=[safetensors]")
    card = (directory / "README.md").read_text()
    assert "the training run tested another, `best.ckpt`" in card
    assert "test/elbo" not in card
    assert {path.name for path in directory.iterdir()} == {"model.safetensors", "config.json", "README.md", ".hydra"}
    assert re.search(r"model\.safetensors +\d\.\d MB +largest difference from the model 0\.0e\+00", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("likelihood", "pixel_scale"),
    [("gaussian", "per_pixel"), ("discretized_logistic", "learnt"), ("discretized_logistic", 0.1)],
)
def test_a_decoders_file_gives_the_mean_of_the_other_families(likelihood, pixel_scale, monkeypatch):
    monkeypatch.setattr(likelihoods, "LEVELS", 4)  # of which tracing takes a step each
    vae = VAEModule(2, hidden_dims=[8], likelihood=likelihood, pixel_scale=pixel_scale).eval().requires_grad_(False).vae
    z = torch.randn(3, 2)
    program = exporting.trace(exporting.Part(exporting.Decoder(vae), exporting.decode, {"z": z}, ["image"]))
    torch.testing.assert_close(program.module()(z), vae.likelihood(z).mean, rtol=0, atol=1e-5)


def of_logits(patch):
    patch.setattr(exporting.Decoder, "forward", lambda self, z, y=None: self.decoder(z, y))


def of_two_images_only(patch):
    sized = lambda part: torch.export.export(part.network, tuple(each[:2] for each in part.inputs.values()))  # noqa: E731
    patch.setattr(exporting, "trace", sized)


def of_other_weights(patch):
    save = exporting.save
    patch.setattr(exporting, "save", lambda weights, *rest: save({k: v + 1e-3 for k, v in weights.items()}, *rest))


def of_nothing(patch):
    patch.setattr(exporting, "write_onnx", lambda program, file, part: file.write_bytes(b"no model"))


def of_no_number(patch):
    read = exporting.load_file
    patch.setattr(exporting, "load_file", lambda file: {k: v * torch.nan for k, v in read(file).items()})


@pytest.mark.parametrize(
    ("broken", "format_", "message"),
    [
        (of_logits, "torch_export", r"decoder\.pt2: differs from the model by \d"),
        (of_two_images_only, "torch_export", r"encoder\.pt2: can't be run once exported"),
        (of_other_weights, "safetensors", r"model\.safetensors: differs from the model by \d"),
        (of_nothing, "onnx", r"encoder\.onnx: can't be run once exported"),
        (of_no_number, "safetensors", r"model\.safetensors: differs from the model by nan"),
    ],
)
def test_a_file_that_computes_something_else_is_refused_and_nothing_is_left(
    trained, tmp_path, monkeypatch, broken, format_, message
):
    broken(monkeypatch)
    with pytest.raises(SystemExit, match=message) as exit_:
        typed("export", f"checkpoint={trained}", f"formats=[{format_}]", directory=tmp_path, patch=monkeypatch)
    assert "\n" not in exit_.value.code  # a line, which Python prints, with exit code 1
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_told_with_what_brings_it(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit) as exit_:
        typed("export", f"checkpoint={trained}", directory=tmp_path, patch=monkeypatch)
    assert exit_.value.code == "error: formats=[onnx]: needs onnxscript: pip install 'vae-lightning[export]'"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "checkpoint is missing: write checkpoint=…"),
        (["checkpoint=nosuch"], "checkpoint=nosuch: is neither a file nor a run directory"),
        (["checkpoint=x", "formats=[tflite]"], "formats=['tflite']: must be 'onnx', 'torch_export' or 'safetensors'"),
        (["checkpoint=x", "formats=[]"], "formats=[]: List should have at least 1 item after validation, not 0"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, monkeypatch, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        typed("export", *arguments, directory=tmp_path, patch=monkeypatch)
    assert exit_.value.code == f"error: {message}"
    assert not list(tmp_path.iterdir())


def test_metrics_that_are_none_are_not_mistaken_for_figures(trained, tmp_path, monkeypatch):
    import shutil

    run = shutil.copytree(trained, tmp_path / "run")
    (run / "metrics.json").write_text('{"loss": 3}')
    with pytest.raises(SystemExit, match=r"metrics\.json: not a training run's metrics"):
        typed("export", f"checkpoint={run}", "formats=[safetensors]", directory=run, patch=monkeypatch)
    assert not (run / "outputs").exists()
