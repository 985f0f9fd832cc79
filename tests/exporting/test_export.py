"""What is exported computes what the model computes."""

import contextlib
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from conftest import build_vae, typed
from exports import FILES, exported_run
from vae_lightning.errors import ConfigurationError
from vae_lightning.exporting import programs
from vae_lightning.models import likelihoods
from vae_lightning.models.vae.networks import MeanDecoder
from vae_lightning.runs.checkpoints import load_model


@pytest.fixture(params=["plain", "conditional"])
def exported(request, trained, tmp_path_factory):
    return exported_run(request.param, trained, tmp_path_factory)


def expected(run, subset, size):
    """Return digits, their labels if the model takes any, and the model's loc, scale and images."""
    model = load_model(run)
    batch = next(iter(subset.split("test"))).take(torch.arange(size))
    batch = batch if model.num_classes else batch._replace(y=None)
    posterior, labels = model.posterior(batch), [] if batch.y is None else [batch.y]
    return batch.x, labels, posterior.loc, posterior.scale, model.reconstruct(batch)


@pytest.mark.parametrize(("others", "is_kept"), [(1, True), (40, False)])
def test_a_few_codes_that_are_equally_near_may_differ(others, is_kept, caplog):
    codes = torch.arange(programs.EXPORT_ROWS * 49).view(-1, 49)
    found = codes.clone()
    found[0, :others] += 1
    part = programs.Export(torch.nn.Identity(), {"x": codes}, ["codes"])

    def read(file):
        return lambda x: found[: len(x)]

    outcome = (
        contextlib.nullcontext()
        if is_kept
        else pytest.raises(ConfigurationError, match="nothing was kept")
    )
    with outcome, caplog.at_level("INFO"):
        assert programs.compare(Path("encoder.onnx"), read, part) == 0
    assert "codes differ from the model's" in caplog.text


@pytest.mark.parametrize("size", [1, 5, 40])
def test_onnx_runtime_computes_the_models_figures_of_real_digits(exported, subset, size):
    run, directory = exported
    x, labels, loc, scale, image = expected(run, subset, size)
    encoder, decoder = (
        onnxruntime.InferenceSession(directory / f"{name}.onnx") for name in ("encoder", "decoder")
    )
    feed = {"y": labels[0].numpy()} if labels else {}
    computed = dict(
        zip(("loc", "scale"), encoder.run(["loc", "scale"], {"x": x.numpy()} | feed), strict=True)
    )
    [computed["image"]] = decoder.run(["image"], {"z": loc.numpy()} | feed)
    for name, value in {"loc": loc, "scale": scale, "image": image}.items():
        torch.testing.assert_close(torch.from_numpy(computed[name]), value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [1, 5, 40])
def test_exported_programs_compute_the_models_figures_of_real_digits(exported, subset, size):
    run, directory = exported
    x, labels, *outputs = expected(run, subset, size)
    encoder, decoder = (
        torch.export.load(directory / f"{name}.pt2").module() for name in ("encoder", "decoder")
    )
    for computed, value in zip(
        (*encoder(x, *labels), decoder(outputs[0], *labels)), outputs, strict=True
    ):
        torch.testing.assert_close(computed, value, rtol=0, atol=1e-5)


def test_onnx_files_stand_alone_and_name_their_inputs_and_outputs(exported):
    run, directory = exported
    found = {path.name for path in directory.iterdir()}
    assert found == FILES | {"config.json", "README.md", ".hydra"}
    assert (
        len({(directory / name).stat().st_mode for name in found - {".hydra"}}) == 1
    )  # others may read all or none
    model = load_model(run)
    labels = [("y", ["batch"])] if model.num_classes else []
    [dims] = model.prior().event_shape
    shapes = {
        "encoder": [
            ("x", ["batch", 1, 28, 28]),
            *labels,
            ("loc", ["batch", dims]),
            ("scale", ["batch", dims]),
        ]
    }
    shapes["decoder"] = [("z", ["batch", dims]), *labels, ("image", ["batch", 1, 28, 28])]
    for name, expected_shapes in shapes.items():
        graph = onnx.load(directory / f"{name}.onnx", load_external_data=False).graph
        assert not any(tensor.external_data for tensor in graph.initializer)
        found_shapes = [
            (each.name, [dim.dim_param or dim.dim_value for dim in each.type.tensor_type.shape.dim])
            for each in (*graph.input, *graph.output)
        ]
        assert found_shapes == expected_shapes


@pytest.mark.parametrize(
    ("likelihood", "pixel_scale"),
    [("gaussian", "per_pixel"), ("discretized_logistic", "learnt"), ("discretized_logistic", 0.1)],
)
def test_a_decoders_file_gives_the_mean_of_the_other_families(likelihood, pixel_scale, monkeypatch):
    monkeypatch.setattr(likelihoods, "LEVELS", 4)  # of which tracing takes a step each
    settings = {"likelihood": likelihood, "pixel_scale": pixel_scale}
    model = build_vae(latent_dim=2, hidden_dims=[8], **settings).eval().requires_grad_(False)
    part = model.exports()["decoder"]
    assert part.outputs == ["image"]
    z = torch.randn(3, 2)
    images = programs.trace(part).module()(z)
    torch.testing.assert_close(images, model.likelihood(z).mean, rtol=0, atol=1e-5)


def of_logits(patch):
    patch.setattr(MeanDecoder, "forward", lambda self, z, y=None: self.decoder(z, y))


def of_two_images_only(patch):
    def sized(part):
        example = tuple(each[:2] for each in part.inputs.values())
        return torch.export.export(part.network, example)

    patch.setattr(programs, "trace", sized)


def of_other_weights(patch):
    save = programs.save
    patch.setattr(
        programs,
        "save",
        lambda weights, *rest: save({k: v + 1e-3 for k, v in weights.items()}, *rest),
    )


def of_nothing(patch):
    patch.setattr(programs, "write_onnx", lambda program, file, part: file.write_bytes(b"no model"))


def of_no_number(patch):
    read = programs.load_file
    patch.setattr(
        programs, "load_file", lambda file: {k: v * torch.nan for k, v in read(file).items()}
    )


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
        typed(
            "export",
            f"checkpoint={trained}",
            f"formats=[{format_}]",
            directory=tmp_path,
            patch=monkeypatch,
        )
    assert "\n" not in exit_.value.code  # a line, which Python prints, with exit code 1
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_told_with_what_brings_it(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(SystemExit) as exit_:
        typed("export", f"checkpoint={trained}", directory=tmp_path, patch=monkeypatch)
    assert (
        exit_.value.code
        == "error: formats=[onnx]: needs onnxscript: pip install 'vae-lightning[export]'"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "checkpoint is missing: type checkpoint=…"),
        (
            ["checkpoint=nosuch"],
            "checkpoint=nosuch: not found; "
            "type a checkpoint file or a run directory, as outputs/train/<run>",
        ),
        (
            ["checkpoint=x", "formats=[tflite]"],
            "formats=['tflite']: must be 'onnx', 'torch_export' or 'safetensors'",
        ),
        (
            ["checkpoint=x", "formats=[]"],
            "formats=[]: List should have at least 1 item after validation, not 0",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, monkeypatch, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        typed("export", *arguments, directory=tmp_path, patch=monkeypatch)
    assert exit_.value.code == f"error: {message}"
    assert not list(tmp_path.iterdir())
