"""A trained model as files for other programs, each read back and compared with the model before it counts."""

import json
import logging
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vae_lightning.configuration import ConfigurationError
from vae_lightning.module import VAEModule
from vae_lightning.vae import VAE

Format = Literal["onnx", "torch_export", "safetensors"]

TOLERANCE = 1e-5
"""How far a file's loc, scale and images may lie from the model's, in absolute numbers."""

BATCHES = (1, 2, 33)
"""Batch sizes that are compared: one image, the size that is traced, and another."""

Computation = Callable[..., Tensor | tuple[Tensor, ...]]


class Decoder(nn.Module):
    """A decoder with its likelihood: the mean of p(x|z)."""

    def __init__(self, vae: VAE) -> None:
        """Take them from the model; the whole model would bring the encoder's weights along."""
        super().__init__()
        self.decoder = vae.decoder
        self.family = vae.family

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Map latents ``[B, D]`` and labels ``[B]`` to images ``[B, C, H, W]`` in [0, 1]."""
        mean: Tensor = self.family(self.decoder(z, y)).mean
        return mean


def encode(vae: VAE, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return what an encoder's file must compute: loc and scale, each ``[B, D]``."""
    posterior = vae.posterior(x, y)
    return posterior.loc, posterior.scale


def decode(vae: VAE, z: Tensor, y: Tensor | None = None) -> Tensor:
    """Return what a decoder's file must compute: images ``[B, C, H, W]``."""
    return vae.likelihood(z, y).mean


class Part(NamedTuple):
    """A half of a model: what is written, what it must compute, and of what."""

    network: nn.Module
    compute: Computation
    inputs: dict[str, Tensor]
    outputs: list[str]


def write(module: VAEModule, formats: Collection[Format], directory: Path) -> dict[str, float]:
    """Write a model's files into a directory.

    Args:
        module: the model, in evaluation mode and on the CPU.
        formats: ``onnx`` and ``torch_export`` are an encoder and a decoder each; ``safetensors`` the weights, with the
            hyper-parameters in ``config.json``.
        directory: an empty one.

    Returns:
        The largest difference between each file's loc, scale and images and the model's, by the file's name.

    Raises:
        ConfigurationError: a file computes something else than the model.
    """
    vae = module.vae
    z, y = examples(vae)
    labels = {"y": y} if vae.num_classes else {}
    x = decode(vae, z, y)  # its own samples: images of the kind that it knows, for which no data has to be at hand
    parts = {
        "encoder": Part(vae.encoder, encode, {"x": x} | labels, ["loc", "scale"]),
        "decoder": Part(Decoder(vae), decode, {"z": z} | labels, ["image"]),
    }
    differences = {}
    if "onnx" in formats or "torch_export" in formats:
        for name, part in parts.items():
            program = trace(part)
            if "onnx" in formats:
                file = directory / f"{name}.onnx"
                write_onnx(program, file, part)
                differences[file.name] = compare(file, read_onnx, vae, part)
            if "torch_export" in formats:
                file = directory / f"{name}.pt2"
                torch.export.save(program, file)
                differences[file.name] = compare(file, lambda file: torch.export.load(file).module(), vae, part)
    if "safetensors" in formats:
        file = directory / "model.safetensors"
        file.write_bytes(save(module.state_dict(), {"format": "pt"}))  # save_file's could be read by nobody else
        (directory / "config.json").write_text(json.dumps(dict(module.hparams), indent=2) + "\n")
        encoder, decoder = parts.values()
        differences[file.name] = max(
            compare(file, lambda file: partial(encode, rebuild(file).vae), vae, encoder),
            compare(file, lambda file: partial(decode, rebuild(file).vae), vae, decoder),
        )
    return differences


def examples(vae: VAE) -> tuple[Tensor, Tensor]:
    """Return draws from the prior, ``[B, D]``, and labels ``[B]`` for them."""
    count = max(BATCHES)
    z = torch.randn(count, *vae.prior.event_shape, generator=torch.Generator().manual_seed(0))
    return z, torch.arange(count) % (vae.num_classes or 1)


def trace(part: Part) -> ExportedProgram:
    """Trace a half of a model for batches of any size."""
    batch = Dim("batch")
    # Of two images: a batch of one would be taken for a constant.
    example = tuple(each[:2] for each in part.inputs.values())
    return torch.export.export(part.network, example, dynamic_shapes=tuple({0: batch} for _ in example))


def write_onnx(program: ExportedProgram, file: Path, part: Part) -> None:
    """Write one self-contained ONNX file whose first axis is called ``batch``."""
    for name in ("onnx_ir", "onnxscript"):  # they tell each step of their optimisation
        logging.getLogger(name).setLevel(logging.WARNING)
    # The shapes give the axis its name; that of the labels is the same axis, and a second mention would be warned of.
    shapes = ({0: "batch"}, *[None] * (len(part.inputs) - 1))
    written = torch.onnx.export(
        program,
        input_names=list(part.inputs),
        output_names=part.outputs,
        dynamic_shapes=shapes,
        external_data=False,
        verbose=False,
    )
    assert written is not None
    written.save(file, external_data=False)


def read_onnx(file: Path) -> Computation:
    """Check an ONNX file and return what it computes on the CPU, by ONNX Runtime."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(file, full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        values = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(output) for output in session.run(None, values))

    return run


def rebuild(weights: Path) -> VAEModule:
    """Build a model from its weights and the ``config.json`` beside them, as the model card shows it."""
    module = VAEModule(**json.loads(weights.with_name("config.json").read_text()))
    module.load_state_dict(load_file(weights))
    return module.eval()


def compare(file: Path, read: Callable[[Path], Computation], vae: VAE, part: Part) -> float:
    """Return the largest difference between what a file and the model compute, over all ``BATCHES``.

    Raises:
        ConfigurationError: it is above ``TOLERANCE``, or the file can't be read or run.
    """
    differences = []
    try:
        exported = read(file)
        for size in BATCHES:
            rows = [each[:size] for each in part.inputs.values()]
            for computed, expected in zip(_tensors(exported(*rows)), _tensors(part.compute(vae, *rows)), strict=True):
                if computed.shape != expected.shape:
                    raise ValueError(f"{list(computed.shape)} in place of {list(expected.shape)}")
                differences.append((computed - expected).abs().max())
    except Exception as error:  # what a damaged file can make torch, onnx and ONNX Runtime raise has no end
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigurationError(f"{file.name}: can't be run once exported, and nothing was kept ({problem:.120})") from error
    largest = torch.stack(differences).max().item()
    if not largest <= TOLERANCE:  # so that it catches NaN too
        raise ConfigurationError(
            f"{file.name}: differs from the model by {largest:.1e}, above {TOLERANCE:.0e}; nothing was kept"
        )
    return largest


def _tensors(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
