"""The model card of exported files: what the model is, how it was made, how to use the files.

A checkpoint and the metrics.json of its run may come from elsewhere: what they hold is escaped.
"""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor

from vae_lightning import __version__
from vae_lightning.configuration.quoting import markdown, printable
from vae_lightning.data.catalogue import DATASETS, PHOTOGRAPHS, SCORES
from vae_lightning.data.cifar10 import CIFAR10
from vae_lightning.data.datamodule import DataModule
from vae_lightning.data.modality import Modality
from vae_lightning.data.music.datamodule import MusicDataModule
from vae_lightning.data.music.modality import Music
from vae_lightning.errors import ConfigurationError
from vae_lightning.exporting.programs import BATCHES
from vae_lightning.models.base import Autoencoder, Export, Model, target_of
from vae_lightning.runs.trained import Trained

_ROWS = 16  # examples that the card's code makes

_UNFIT = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What the values of a foreign file can raise where they are read and written."""


class _Source(NamedTuple):
    title: str
    hub: str | None
    terms: str


def compose(trained: Trained, differences: Mapping[str, float]) -> str:
    """Return the model card of exported files: Markdown below the YAML that model hubs read.

    Args:
        trained: the checkpoint that the model came from.
        differences: the largest difference of each exported file from the model, by file name.

    Raises:
        ConfigurationError: the checkpoint or the metrics.json of its run is damaged.
    """
    model, settings = trained.model, trained.trained_with
    source = _source(trained.data_class, settings)
    formats = [name for name in ("onnx", "safetensors") if _has(differences, name)]
    front: dict[str, Any] = {
        "license": "mit",
        "library_name": "vae-lightning",
        "tags": ["variational-autoencoder", "pytorch", "pytorch-lightning", *formats],
    }
    if trained.modality.noun == "image":
        front["pipeline_tag"] = "unconditional-image-generation"
    if source.hub:
        front["datasets"] = [source.hub]
    parts = model.exports()
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        _introduction(model, source, parts),
        _files(parts, differences),
        _usage(model, parts, differences),
        _training(trained, source),
        _figures(trained),
        _limits(model, trained.modality),
        _licence(source),
        _versions(differences),
    ]
    return "\n\n".join(sections) + "\n"


def _source(kind: type[DataModule], settings: Mapping[str, Any]) -> _Source:
    """Return what is known of the data; of a user's own data its name at most."""
    if issubclass(kind, MusicDataModule):
        scores = SCORES[kind.scores]
        return _Source(f"{kind.music} ({scores.title})", None, scores.terms)
    name = "cifar10" if kind is CIFAR10 else str(settings.get("name", "data of the user's own"))
    if dataset := (DATASETS | PHOTOGRAPHS).get(name):
        return _Source(dataset.title, dataset.hub, dataset.terms)
    return _Source(name, None, "those of whoever made it")


def _has(differences: Mapping[str, float], suffix: str) -> bool:
    return any(name.endswith(f".{suffix}") for name in differences)


def _code(value: object) -> str:
    """Return a text as code in a line or a cell of Markdown; as words where code can't hold it.

    Some renderers take what stands in an HTML element, as all settings do, for HTML as it is.
    """
    text = str(value)
    fits = text.strip() == text != "" and printable(text) == text and not {*"`|<>&"} & {*text}
    return f"`{text}`" if fits else markdown(text)


def _dtype(value: Tensor) -> str:
    """Return a tensor's type as torch and NumPy both call it."""
    return str(value.dtype).removeprefix("torch.")


def _shape(value: Tensor) -> str:
    sizes = ", ".join(map(str, ("batch", *value.shape[1:])))
    return f"{_dtype(value)} `[{sizes}]`"


def _introduction(model: Model, source: _Source, parts: Mapping[str, Export]) -> str:
    described = {name: part.description for name, part in parts.items() if part.description}
    holds = [f"The {name} computes {description}." for name, description in described.items()]
    labels = model.num_classes
    conditional = f"They are conditional on a label `y`, an int64 from 0 to {labels - 1}."
    words = [*holds, *([conditional] if labels else [])]
    title = f"# {markdown(model.describe())}, of {markdown(source.title)}"
    return f"{title}\n\nA generative model trained by vae-lightning. {' '.join(words)}"


def _files(parts: Mapping[str, Export], differences: Mapping[str, float]) -> str:
    holds = {
        "model": "the weights; `config.json` holds what the model is built from",
    }
    for name, part in parts.items():
        inputs = ", ".join(f"`{each}` {_shape(value)}" for each, value in part.inputs.items())
        with torch.no_grad():
            computed = part.network(*part.inputs.values())
        outputs = computed if isinstance(computed, tuple) else (computed,)
        named = zip(part.outputs, outputs, strict=True)
        results = ", ".join(f"`{each}` {_shape(value)}" for each, value in named)
        holds[name] = f"{inputs} → {results}"
    rows = [
        f"| `{name}` | {holds[name.partition('.')[0]]} | {value:.1e} |"
        for name, value in differences.items()
    ]
    head = ["| file | what it computes or holds | largest difference |", "|---|---|---|"]
    table = "\n".join([*head, *rows])
    return (
        f"## Files\n\n{table}\n\nEach file was read back and compared with the model on "
        f"{max(BATCHES)} examples that the model made, on the CPU, in batches of "
        f"{', '.join(map(str, BATCHES))}: the largest difference of an output, of one above 1 as "
        "a share."
    )


def _usage(model: Model, parts: Mapping[str, Export], differences: Mapping[str, float]) -> str:
    """Return a block of Python for each format; the tests run them."""
    blocks = ["## Use"]
    if parts and _has(differences, "onnx"):
        lines = ["import numpy as np", "import onnxruntime", ""]
        made: set[str] = set()
        for name, part in parts.items():
            providers = 'providers=["CPUExecutionProvider"]'
            lines.append(f'{name} = onnxruntime.InferenceSession("{name}.onnx", {providers})')
            lines += _inputs(part, model.num_classes, "np", made)
            feed = ", ".join(f'"{each}": {each}' for each in part.inputs)
            lines.append(f"[{', '.join(part.outputs)}] = {name}.run(None, {{{feed}}})")
        blocks += ["ONNX, with `pip install onnxruntime`:", _python(lines)]
    if parts and _has(differences, "pt2"):
        lines, made = ["import torch", ""], set()
        for name, part in parts.items():
            lines.append(f'{name} = torch.export.load("{name}.pt2").module()')
            lines += _inputs(part, model.num_classes, "torch", made)
            lines.append(f"{', '.join(part.outputs)} = {name}({', '.join(part.inputs)})")
        made_by = (
            f"`torch.export` programs, with `pip install torch` (written by {torch.__version__}):"
        )
        blocks += [made_by, _python(lines)]
    if _has(differences, "safetensors"):
        title = f"The model itself, with vae-lightning {__version__}:"
        blocks += [title, _python(_rebuilding(model))]
    return "\n\n".join(blocks)


def _inputs(part: Export, num_classes: int, library: str, made: set[str]) -> list[str]:
    """Return lines that make the inputs of a part: normal latents, labels in turn, or zeros.

    Args:
        part: the part.
        num_classes: of the model.
        library: ``np`` or ``torch``.
        made: names of variables that are there; the part's inputs and outputs are added.
    """
    lines = []
    normal = {"np": "np.random.default_rng(0).standard_normal", "torch": "torch.randn"}
    for name, value in part.inputs.items():
        shape, dtype = (_ROWS, *value.shape[1:]), f"{library}.{_dtype(value)}"
        if name == "y":
            line = f"y = {library}.arange({_ROWS}) % {num_classes}"
        elif name == "z":
            line = f"z = {normal[library]}({shape}, dtype={dtype})" + "  # makes new examples" * (
                set(part.inputs) <= {"z", "y"}
            )
        else:
            line = f"{name} = {library}.zeros({shape}, dtype={dtype})  # or your own"
        lines += [] if name in made else [line]
    made.update(part.inputs, part.outputs)
    return lines


def _rebuilding(model: Model) -> list[str]:
    """Return lines that build the model from its files, draw from it and encode."""
    module, _, kind = target_of(type(model)).rpartition(".")
    y = ", y" if model.num_classes else ""
    lines = [
        "import json",
        "from pathlib import Path",
        "",
        *(["import torch"] if y else []),
        "from safetensors.torch import load_file",
        "from vae_lightning import Batch, DataSpec, SamplingNoise",
        f"from {module} import {kind}",
        "",
        'config = json.loads(Path("config.json").read_text())',
        f'model = {kind}(DataSpec(**config["data"]), **config["settings"])',
        'model.load_state_dict(load_file("model.safetensors"))',
        "model = model.eval().requires_grad_(False)",
        *([f"y = torch.arange({_ROWS}) % {model.num_classes}"] if y else []),
        f"samples = model.sample({_ROWS}, SamplingNoise({_ROWS}, 0){y})  # new examples, of seed 0",
    ]
    if isinstance(model, Autoencoder):
        lines.append(f"code = model.encode(Batch(samples{y}))  # or of examples of your own")
    return lines


def _python(lines: list[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _training(trained: Trained, source: _Source) -> str:
    content, model, settings = trained.content, trained.model, trained.trained_with
    noun = trained.modality.noun
    try:
        optimizer = content["hyper_parameters"]["optimizer"]
        groups = {"model": model.settings, "optimizer": optimizer, "data": settings}
        rows = [
            f"| {_code(f'{group}.{key}')} | {_code(value)} |"
            for group, values in groups.items()
            for key, value in values.items()
        ]
        steps, epoch = f"{content['global_step']:,d}", f"{content['epoch'] + 1:d}"
        size, held_out = settings.get("batch_size"), _held_out(settings, noun)
        batches = f" of {markdown(size)} {noun}s" if size else ""
        chosen = {**model.protocol(), "optimiser": optimizer["name"]}
        chosen |= {"learning rate": optimizer["learning_rate"], "schedule": optimizer["schedule"]}
    except _UNFIT as error:
        raise ConfigurationError(
            f"checkpoint={trained.file}: not a checkpoint of this project, or damaged"
        ) from error
    table = "\n".join(["| setting | value |", "|---|---|", *rows])
    named = ", ".join(f"{name} {_code(value)}" for name, value in chosen.items())
    return (
        f"## Training\n\nThis is {_code(trained.file.name)}, saved after {steps} steps{batches}, "
        f"in epoch {epoch}, on {markdown(source.title)}: {named}.{held_out}\n\n"
        "<details><summary>All settings, and the protocol of the data</summary>\n\n"
        f"{table}\n\n</details>"
    )


def _held_out(settings: Mapping[str, Any], noun: str) -> str:
    """Return what was held out, as far as the settings of the data say so."""
    if settings.get("validate_on_test"):
        return (
            f" No {noun}s were held out: the test {noun}s were looked at after each epoch, and "
            "nothing was chosen by them."
        )
    if not (size := settings.get("val_size")):
        return ""
    seed = f"split_seed={settings['split_seed']}" if "split_seed" in settings else ""
    seed = f" ({_code(seed)})" if seed else ""
    return f" {size:,d} of the training {noun}s were held out for validation{seed}."


def _figures(trained: Trained) -> str:
    """Return the test figures of the checkpoint's run, where they are of this very checkpoint."""
    heading, file, step = "## Test figures\n\n", trained.file, trained.content["global_step"]
    written = file.absolute().parent.parent / "metrics.json"
    if not written.is_file():
        return f"{heading}None: no metrics.json of the training run lies beside the checkpoint."
    try:
        metrics = json.loads(written.read_text(encoding="utf-8"))
        figures, protocol, run = metrics["figures"], metrics["protocol"], metrics["run"]
        tested = Path(run["checkpoint"]).name
        if (tested, run.get("checkpoint_step", step)) != (file.name, step):
            another = f"the training run tested another, {_code(tested)}"
            return f"{heading}None of this checkpoint: {another}."
        rows = []
        for name, how in metrics["described"].items():
            better = {"max": "higher is better", "min": "lower is better"}.get(how["better"], "")
            words = (markdown(how["label"]), markdown(how["unit"]))
            cells = (_code(name), f"{figures[name]:.2f}", *words, better)
            rows.append(f"| {' | '.join(cells)} |")
        head = ["| figure | value | what it is | unit | |", "|---|---|---|---|---|"]
        table = "\n".join([*head, *rows])
        versions = [f"{name} {number}" for name, number in metrics["versions"].items()]
        noun, drawn = trained.modality.noun, protocol.get("binarization")
        binarization = f" (binarisation {markdown(drawn)})" if drawn else ""
        return (
            f"{heading}Of this checkpoint, on {run['test_examples']:,d} test {noun}s of "
            f"{markdown(protocol['data'])}: means over the {noun}s.\n\n{table}\n\nWhat they mean: "
            f"{markdown(protocol['meaning'])}{binarization}. One training run, of seed "
            f"{markdown(run['seed'])}, by {markdown(', '.join(versions))}."
        )
    except _UNFIT as error:
        raise ConfigurationError(
            f"{written}: not a training run's metrics; move it away to export without figures"
        ) from error


def _limits(model: Model, modality: Modality) -> str:
    values = {
        "unit": "values in [0, 1]",
        "continuous": "values in [0, 1]",
        "binary": "values 0 or 1",
        "tokens": f"whole numbers below {markdown(model.data.vocabulary)}, of which 0 holds what "
        "sounds, 1 is a rest, and 2 is the lowest pitch",
        "sets": "in each step pitches from 2 on in ascending order, then 1, then 0",
    }
    shape = " × ".join(map(markdown, model.data.shape))
    lowest = f": {modality.lowest} in MIDI's count" if isinstance(modality, Music) else ""
    lines = [
        f"- It knows one kind of {modality.noun}: {shape}, {values[model.data.values]}{lowest}. "
        "Of others it makes the nearest that it knows.",
        "- Samples are of varying quality; nothing filters them.",
        f"- It was made to study generative models; it is not an archive of {modality.noun}s, "
        "since a code keeps only part of one.",
        "- The exported files were compared on the CPU; "
        "other devices and lower precision differ by more.",
    ]
    if model.num_classes:
        lines.append("- A label out of range is not refused by every file.")
    return "## Limits\n\n" + "\n".join(lines)


def _licence(source: _Source) -> str:
    return (
        "## Licence\n\n"
        "MIT, as vae-lightning itself; whoever trained the weights may choose another "
        f"and write it above. The data has terms of its own: {source.terms}."
    )


def _versions(differences: Mapping[str, float]) -> str:
    versions = {
        "vae-lightning": __version__,
        "Python": platform.python_version(),
        "torch": torch.__version__,
    }
    if _has(differences, "onnx"):
        versions |= {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")}
    if _has(differences, "safetensors"):
        versions["safetensors"] = version("safetensors")
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"## Versions\n\nExported by {named}."
