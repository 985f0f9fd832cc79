"""The model card that lies beside exported files: what the model is, how it came about, and how each file is used."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vae_lightning import __version__
from vae_lightning.checkpoints import load_data_settings
from vae_lightning.configuration import ConfigurationError
from vae_lightning.exporting import BATCHES
from vae_lightning.module import VAEModule


class _Source(NamedTuple):
    title: str
    hub: str  # as model hubs name it
    terms: str


_MNIST_TERMS = "Creative Commons Attribution-ShareAlike 3.0"
_SOURCES = {
    "mnist": _Source("MNIST", "ylecun/mnist", _MNIST_TERMS),
    "fashion_mnist": _Source("Fashion-MNIST", "zalando-datasets/fashion_mnist", "the MIT licence"),
    "kmnist": _Source("KMNIST", "kmnist", "Creative Commons Attribution-ShareAlike 4.0"),
    "larochelle": _Source("MNIST as binarised by H. Larochelle", "ylecun/mnist", _MNIST_TERMS),
    "mnist_subset": _Source("600 digits of MNIST", "ylecun/mnist", _MNIST_TERMS),
}
_PIXELS = {
    "none": "grey levels from 0 to 1",
    "stochastic": "black or white (0 or 1) with the grey level as probability of white, drawn anew at every visit in training",
    "static": "black or white (0 or 1) with the grey level as probability of white, drawn once",
}
_FIGURES = {
    "test/elbo": "evidence lower bound, by one sample of q(z\\|x) per image; higher is better",
    "test/log_likelihood": "its first term, log p(x\\|z)",
    "test/kl": "its second term, KL(q(z\\|x) ‖ p(z))",
    "test/importance_bound": "importance-weighted bound, of as many samples as in training; higher is better",
    "test/loss": "what training lowers, in validation and test minus the bound",
    "test/loss_at_posterior_mean": "the loss decoding the posterior's mean in place of a sample: a bound on nothing",
}


def compose(module: VAEModule, file: Path, differences: dict[str, float]) -> str:
    """Return the model card of exported files, as Markdown below the YAML that model hubs read.

    Args:
        module: the model.
        file: the checkpoint that it came from.
        differences: the largest difference of each exported file from the model, by the file's name.

    Raises:
        ConfigurationError: the metrics.json of the checkpoint's run is damaged.
    """
    settings = load_data_settings(file)
    checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    step, epoch = checkpoint["global_step"], checkpoint["epoch"] + 1
    source = _SOURCES[settings["name"]]
    formats = [name for name in ("onnx", "safetensors") if _has(differences, name)]
    front = {
        "license": "mit",
        "library_name": "vae-lightning",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["variational-autoencoder", "pytorch", "pytorch-lightning", *formats],
        "datasets": [source.hub],
    }
    parts = [
        f"---\n{_yaml(front)}\n---",
        _introduction(module, source),
        _files(module, differences),
        _usage(module, differences),
        _training(module, step, epoch, file, settings, source),
        _figures(file, step),
        _limits(module, settings),
        _licence(source),
        _versions(differences),
    ]
    return "\n\n".join(parts) + "\n"


def _has(differences: dict[str, float], suffix: str) -> bool:
    return any(name.endswith(f".{suffix}") for name in differences)


def _yaml(values: dict[str, Any]) -> str:
    lines = []
    for key, value in values.items():
        lines += [f"{key}:", *(f"- {each}" for each in value)] if isinstance(value, list) else [f"{key}: {value}"]
    return "\n".join(lines)


def _introduction(module: VAEModule, source: _Source) -> str:
    classes = module.vae.num_classes
    labels = f" Both are conditional on a label `y`, an int64 from 0 to {classes - 1}." if classes else ""
    return (
        f"# Variational autoencoder of {source.title}, {module.latent_dim} latents\n\n"
        "A variational autoencoder ([Kingma & Welling 2013](https://arxiv.org/abs/1312.6114)) of 28 × 28 grey images, trained "
        "by vae-lightning. The encoder maps an image `x` to the mean `loc` and the standard deviation `scale` of a Gaussian "
        f"q(z|x) over {module.latent_dim} latents. The decoder maps a latent `z` to the mean of p(x|z), an image in [0, 1]; "
        f"its family is `{module.vae.family.name}`. The prior is N(0, I): noise drawn from it, decoded, is a new image.{labels}"
    )


def _files(module: VAEModule, differences: dict[str, float]) -> str:
    labels = ", `y` int64 `[batch]`" if module.vae.num_classes else ""
    latents = f"float32 `[batch, {module.latent_dim}]`"
    images = "float32 `[batch, 1, 28, 28]`"
    holds = {
        "encoder": f"`x` {images}{labels} → `loc`, `scale` {latents}",
        "decoder": f"`z` {latents}{labels} → `image` {images}",
        "model": "the weights of both; `config.json` holds the hyper-parameters to build the model by",
    }
    rows = [f"| `{name}` | {holds[name.partition('.')[0]]} | {value:.1e} |" for name, value in differences.items()]
    table = "\n".join(["| file | what it computes or holds | largest difference |", "|---|---|---|", *rows])
    return (
        f"## Files\n\n{table}\n\n"
        f"Each file was read back and compared with the model on {max(BATCHES)} of the model's own samples, on the CPU, in "
        f"batches of {', '.join(map(str, BATCHES))}: the largest absolute difference in `loc`, `scale` and `image`."
    )


def _usage(module: VAEModule, differences: dict[str, float]) -> str:
    """Return a block of Python for each format; the tests run them."""
    dims, classes = module.latent_dim, module.vae.num_classes
    label = f"y = {{}}  # a label for each image, 0 to {classes - 1}\n" if classes else ""
    y, feed = (", y", ', "y": y') if classes else ("", "")
    blocks = ["## Use"]
    if _has(differences, "onnx"):
        blocks += [
            "ONNX, by `pip install onnxruntime`:",
            "```python\n"
            "import numpy as np\n"
            "import onnxruntime\n\n"
            'encoder = onnxruntime.InferenceSession("encoder.onnx", providers=["CPUExecutionProvider"])\n'
            'decoder = onnxruntime.InferenceSession("decoder.onnx", providers=["CPUExecutionProvider"])\n'
            f"z = np.random.default_rng(0).standard_normal((16, {dims}), dtype=np.float32)\n"
            + label.format(f"np.arange(16) % {classes}")
            + f'[image] = decoder.run(None, {{"z": z{feed}}})  # 16 new images\n'
            f'loc, scale = encoder.run(None, {{"x": image{feed}}})  # or images of your own\n```',
        ]
    if _has(differences, "pt2"):
        blocks += [
            f"`torch.export` programs, by `pip install torch` (written by {torch.__version__}):",
            "```python\n"
            "import torch\n\n"
            'encoder = torch.export.load("encoder.pt2").module()\n'
            'decoder = torch.export.load("decoder.pt2").module()\n'
            f"z = torch.randn(16, {dims})\n"
            + label.format(f"torch.arange(16) % {classes}")
            + f"image = decoder(z{y})  # 16 new images\n"
            f"loc, scale = encoder(image{y})  # or images of your own\n```",
        ]
    if _has(differences, "safetensors"):
        blocks += [
            f"The model itself, with its distributions, by vae-lightning {__version__}:",
            "```python\n"
            "import json\n"
            "from pathlib import Path\n\n"
            "import torch\n"
            "from safetensors.torch import load_file\n"
            "from vae_lightning import VAEModule\n\n"
            'module = VAEModule(**json.loads(Path("config.json").read_text()))\n'
            'module.load_state_dict(load_file("model.safetensors"))\n'
            "vae = module.eval().requires_grad_(False).vae\n"
            + label.format(f"torch.arange(16) % {classes}")
            + f"image = vae.sample(16{y})  # 16 new images\n"
            f"loc = vae.posterior(image{y}).loc  # or images of your own\n```",
        ]
    return "\n\n".join(blocks)


def _training(module: VAEModule, step: int, epoch: int, file: Path, settings: dict[str, Any], source: _Source) -> str:
    chosen = module.hparams
    pixels = _PIXELS[settings["binarization"]]
    if settings["dequantize"]:
        pixels = "grey levels, each spread evenly over its 256th of [0, 1]"
    held_out = (
        f"{settings['val_size']:,} of the training images held out for validation (`split_seed={settings['split_seed']}`)"
    )
    if settings["validate_on_test"]:
        held_out = "none held out: the test images were looked at after each epoch, and nothing was chosen by them"
    rows = [f"| `model.{key}` | `{value}` |" for key, value in chosen.items()]
    rows += [f"| `data.{key}` | `{value}` |" for key, value in settings.items()]
    table = "\n".join(["| setting | value |", "|---|---|", *rows])
    return (
        f"## Training\n\nThis is `{file.name}`, saved after {step:,} steps of {settings['batch_size']} images, in epoch "
        f"{epoch}: objective `{chosen['objective']}` of {chosen['num_samples']}, optimiser `{chosen['optimizer']}`, learning "
        f"rate {chosen['learning_rate']} (`{chosen['schedule']}`).\n\nImages: {source.title}, {pixels}; {held_out}.\n\n"
        f"<details><summary>All hyper-parameters, and the protocol of the data</summary>\n\n{table}\n\n</details>"
    )


def _figures(file: Path, step: int) -> str:
    """Return the test figures of the run that a checkpoint lies in, where they are of this very checkpoint."""
    heading = "## Test figures\n\n"
    written = file.absolute().parent.parent / "metrics.json"
    if not written.is_file():
        return f"{heading}None: no metrics.json of the training run lies beside the checkpoint."
    try:
        metrics = json.loads(written.read_text(encoding="utf-8"))
        figures, protocol, run = metrics["figures"], metrics["protocol"], metrics["run"]
        tested = Path(run["checkpoint"]).name
        if (tested, run.get("checkpoint_step", step)) != (file.name, step):
            return f"{heading}None of this checkpoint: the training run tested another, `{tested}`."
        rows = [f"| `{name}` | {figures[name]:.2f} | {meaning} |" for name, meaning in _FIGURES.items() if name in figures]
        versions = ", ".join(f"{name} {number}" for name, number in metrics["versions"].items())
        table = "\n".join(["| figure | value | what it is |", "|---|---|---|", *rows])
        return (
            f"{heading}Of this checkpoint, on {run['test_images']:,} test images of {_SOURCES[protocol['data']].title}, in "
            f"nats per image, means over the images.\n\n{table}\n\nWhat they mean: {protocol['meaning']} (binarisation "
            f"{protocol['binarization']}). One training run, of seed {run['seed']}, by {versions}."
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{written}: not a training run's metrics; move it away to export without figures") from error


def _limits(module: VAEModule, settings: dict[str, Any]) -> str:
    binary = settings["binarization"] != "none"
    lines = [
        f"- It knows images of one kind: 28 × 28, white on black, {'0 or 1' if binary else 'grey levels in [0, 1]'}. "
        "Of others it makes the nearest that it knows.",
        "- Means of p(x|z) are smoother than real images, and samples are of varying quality; nothing filters them.",
        "- It was made to study variational autoencoders, not to read or to forge handwriting; and it is no archive of images, "
        "since a code keeps only part of one.",
        "- The exported files were compared on the CPU; other devices and lower precision differ by more.",
    ]
    if module.vae.num_classes:
        lines.append("- A label out of range is not refused by every file.")
    return "## Limits\n\n" + "\n".join(lines)


def _licence(source: _Source) -> str:
    return (
        "## Licence\n\nMIT, as vae-lightning itself; whoever trained the weights may choose another and write it above. "
        f"The images have terms of their own: {source.terms}."
    )


def _versions(differences: dict[str, float]) -> str:
    versions = {"vae-lightning": __version__, "Python": platform.python_version(), "torch": torch.__version__}
    if _has(differences, "onnx"):
        versions |= {name: version(name) for name in ("onnx", "onnxruntime", "onnxscript")}
    if _has(differences, "safetensors"):
        versions["safetensors"] = version("safetensors")
    return "## Versions\n\nExported by " + ", ".join(f"{name} {number}" for name, number in versions.items()) + "."
