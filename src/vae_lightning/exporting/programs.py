"""A trained model as files for other programs, each read back and compared before it counts."""

import json
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.export import Dim, ExportedProgram

from vae_lightning.errors import ConfigurationError
from vae_lightning.models.base import EXPORT_ROWS, DataSpec, Export, Model, target_of

Format = Literal["onnx", "torch_export", "safetensors"]

TOLERANCE = 1e-5
OTHER_CODES = 0.005
"""The share of codes that may be another one than the model's: those with two that are as near."""
log = logging.getLogger(__name__)
"""How far the outputs of a file may lie from the model's; of outputs above 1, as a share."""

BATCHES = (1, 2, EXPORT_ROWS)
"""Batch sizes that are compared: one example, the size that is traced, and another."""

Computation = Callable[..., Tensor | tuple[Tensor, ...]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch says of its own functions while it exports an LSTM."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The tensor attributes? .*_flat_weights", UserWarning)
        warnings.filterwarnings("ignore", "_check_is_size", FutureWarning)
        yield


@_quiet()
@torch.no_grad()
def write(model: Model, formats: Collection[Format], directory: Path) -> dict[str, float]:
    """Write a model's files into a directory.

    Args:
        model: the model, in evaluation mode and on the CPU.
        formats: ``onnx`` and ``torch_export``: a file for each of the model's ``exports``;
            ``safetensors``: the weights, with what the model is built from in ``config.json``.
        directory: an empty one.

    Returns:
        The largest difference between each file's outputs and the model's, by the file's name.

    Raises:
        ConfigurationError: a file computes something else than the model.
    """
    parts = model.exports()
    differences = {}
    if "onnx" in formats or "torch_export" in formats:
        for name, part in parts.items():
            program = trace(part)
            if "onnx" in formats:
                file = directory / f"{name}.onnx"
                write_onnx(program, file, part)
                differences[file.name] = compare(file, read_onnx, part)
            if "torch_export" in formats:
                file = directory / f"{name}.pt2"
                torch.export.save(program, file)
                differences[file.name] = compare(file, read_program, part)
    if "safetensors" in formats:
        file = directory / "model.safetensors"
        # save_file's could be read by nobody else.
        file.write_bytes(save(model.state_dict(), {"format": "pt"}))
        config = directory / "config.json"
        config.write_text(json.dumps(configuration(model), indent=2) + "\n")
        rebuilt = rebuild(type(model), file)
        differences[file.name] = max(
            [compare(file, lambda _, network=part.network: network, parts[name])  # type: ignore[misc]
             for name, part in rebuilt.exports().items()],
            default=_largest_difference(rebuilt.state_dict(), model.state_dict()),
        )  # fmt: skip
    return differences


def configuration(model: Model) -> dict[str, Any]:
    """Return what a model is built from, as ``config.json`` holds it."""
    return {
        "target": target_of(type(model)),
        "settings": dict(model.settings),
        "data": model.data.stored(),
    }


def rebuild(kind: type[Model], weights: Path) -> Model:
    """Build a model from its weights and the ``config.json`` beside them, as the card shows it."""
    config = json.loads(weights.with_name("config.json").read_text())
    model = kind(DataSpec(**config["data"]), **config["settings"])
    model.load_state_dict(load_file(weights))
    return model.eval()


def _largest_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    pairs = ((found[name].double(), weight.double()) for name, weight in expected.items())
    return max(float((one - other).abs().max()) for one, other in pairs)


def trace(part: Export) -> ExportedProgram:
    """Trace a part of a model for batches of any size."""
    batch = Dim("batch", max=2**31 - 1)  # torch 2.7 needs an end
    # Of two examples: a batch of one would be taken for a constant.
    example = tuple(each[:2] for each in part.inputs.values())
    return torch.export.export(
        part.network, example, dynamic_shapes=tuple({0: batch} for _ in example)
    )


def write_onnx(program: ExportedProgram, file: Path, part: Export) -> None:
    """Write one self-contained ONNX file whose first axis is called ``batch``."""
    for name in ("onnx_ir", "onnxscript", "torch.onnx"):  # they log each step, and their own slips
        logging.getLogger(name).setLevel(logging.ERROR)
    # The shapes give the axis its name. Another input's is the same axis, and a second mention
    # would be warned of.
    shapes = ({0: "batch"}, *[None] * (len(part.inputs) - 1))
    with warnings.catch_warnings():  # numpy notes that denormal numbers count as zero
        warnings.filterwarnings("ignore", ".*smallest subnormal")
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


def read_program(file: Path) -> Computation:
    """Return what a ``torch.export`` program computes."""
    return torch.export.load(file).module()


def read_onnx(file: Path) -> Computation:
    """Check an ONNX file and return what it computes on the CPU, with ONNX Runtime."""
    import onnx
    import onnxruntime

    onnx.checker.check_model(file, full_check=True)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        values = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(output) for output in session.run(None, values))

    return run


def compare(file: Path, read: Callable[[Path], Computation], part: Export) -> float:
    """Return the largest difference between a file and a part of the model, over ``BATCHES``.

    Raises:
        ConfigurationError: it is above ``TOLERANCE``, or the file can't be read or run, or the part
            has too few rows of inputs.
    """
    if any(len(each) < EXPORT_ROWS for each in part.inputs.values()):
        rows_needed = f"the model's part must give {EXPORT_ROWS} rows of each input"
        raise ConfigurationError(f"{file.name}: {rows_needed}; nothing was kept")
    differences, others, codes = [torch.tensor(0.0)], 0, 0
    try:
        exported, reference = read(file), part.reference or part.network
        for size in BATCHES:
            rows = [each[:size] for each in part.inputs.values()]
            outputs = zip(_tensors(exported(*rows)), _tensors(reference(*rows)), strict=True)
            for computed, expected in outputs:
                if computed.shape != expected.shape:
                    raise ValueError(f"{list(computed.shape)} instead of {list(expected.shape)}")
                if not expected.is_floating_point():
                    others += int((computed != expected).sum())
                    codes += expected.numel()
                    continue
                difference = computed.double() - expected.double()
                differences.append((difference / expected.double().abs().clamp(min=1)).abs().max())
    except Exception as error:  # what a damaged file can make its readers raise has no end
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ConfigurationError(
            f"{file.name}: can't be run once exported, and nothing was kept ({problem:.120})"
        ) from error
    if others:
        log.info("%s: %d of %s codes differ from the model's", file.name, others, f"{codes:,}")
    # A program that sums in another order may choose the other one of two codes that are as near.
    if others > OTHER_CODES * codes:
        raise ConfigurationError(
            f"{file.name}: {others:,} of {codes:,} codes differ from the model's; nothing was kept"
        )
    largest = torch.stack([each.double() for each in differences]).max().item()
    if not largest <= TOLERANCE:  # so that it catches NaN too
        raise ConfigurationError(
            f"{file.name}: differs from the model by {largest:.1e}, above {TOLERANCE:.0e}; "
            "nothing was kept"
        )
    return largest


def _tensors(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)
