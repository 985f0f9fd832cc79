"""What an evaluation says, on the terminal, in ``metrics.json`` and in the run's dashboard."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vae_lightning.configuration.quoting import printable
from vae_lightning.data.batches import Batches
from vae_lightning.data.datamodule import DataModule
from vae_lightning.data.music.attributes import ATTRIBUTES
from vae_lightning.evaluation.estimators import ACTIVE_VARIANCE, bits_per_dimension
from vae_lightning.evaluation.measure import FIGURES
from vae_lightning.models.base import Model
from vae_lightning.runs.loggers import EventWriter
from vae_lightning.runs.metrics_file import write_metrics
from vae_lightning.runs.trained import Trained

PROTOCOL = ("binarization", "dequantize")
"""What an evaluation may change of the data's protocol."""

_LATENTS_SHOWN = 20
"""Latents whose KL is in the table; metrics.json has all."""

_MINOR = ("loss", "loss_at_posterior_mean")
"""Figures that are in metrics.json and not in the table."""


def add_bits(figures: dict[str, Any], model: Model) -> None:
    """Add bits per dimension to figures that are likelihoods, of log p(x) or else its bound."""
    bounds = ("log_marginal", "elbo", model.criterion)
    best = next((name for name in bounds if name in figures), None)
    known = best == "log_marginal" or (best and model.figures[best].better == "max")
    if best and known and model.quantity != "neither" and not model.data.is_of_tokens:
        numbers = math.prod(model.data.shape)
        bits = bits_per_dimension(figures[best], numbers, model.quantity == "density")
        figures["bits_per_dimension"] = bits
        figures["bits_per_dimension_error"] = figures[f"{best}_error"] / (numbers * math.log(2))


def measured(
    trained: Trained,
    directory: Path,
    data: DataModule,
    batches: Batches,
    split: str,
    samples: int,
    figures: dict[str, Any],
    quality: dict[str, Any],
    remarks: Sequence[str] = (),
) -> str:
    """Write an evaluation's figures, also into the run's dashboard, and return them as a table.

    Args:
        trained: the checkpoint.
        directory: a folder to write into, in the evaluation's own.
        data: the data measured on.
        batches: those examples that were looked at.
        split: which part they are of.
        samples: importance samples per example.
        figures: what was measured of the split, by name.
        quality: what was measured of the model's samples.
        remarks: what couldn't be measured, or was chosen for it: a name and a reason.
    """
    model, noun, file = trained.model, data.modality.noun, trained.file
    add_bits(figures, model)
    count = len(batches.indices)
    named = {f"{split}/{name}": value for name, value in figures.items()}
    named |= {f"samples/{name}": value for name, value in quality.items()}
    described_run = {"checkpoint": str(file), "split": split, "examples": count}
    used = samples if "log_marginal" in figures else 1
    written = write_metrics(directory, named, model, data, described_run, used, FIGURES)
    trained_with = trained.trained_with
    differences = [
        printable(f"{key}={trained_with[key]}")
        for key in PROTOCOL
        if key in trained_with and trained_with[key] != getattr(data, key)
    ]
    # Another protocol's figures would be one curve with those of the training.
    other = f"evaluate_{data.binarization}{'_dequantized' * data.dequantize}"
    dashboard = file.parent.parent / "tensorboard"
    in_run = file.parent.name == "checkpoints" and dashboard.is_dir()
    if in_run and not dashboard.is_symlink():  # a link may lead anywhere
        with EventWriter(dashboard) as writer:
            for name, value in named.items():
                if not isinstance(value, list):
                    tag = f"{other if differences else 'evaluate'}/{name}"
                    writer.add_scalar(tag, value, trained.content["global_step"])
    rows = {"data": f"{count:,} {split} {noun}s of {data.name}{_drawn(data)}"}
    if differences:
        rows["protocol"] = f"another than in training, which had {', '.join(differences)}"
    if protocol := model.protocol():
        rows["model"] = ", ".join(f"{name} {value}" for name, value in protocol.items())
    rows |= _rows(figures | quality, model, noun, samples, count)
    rows |= {name: reason for name, _, reason in (each.partition(": ") for each in remarks)}
    figures_in = directory.parent / written.name
    if in_run and dashboard.is_symlink():
        rows["dashboard"] = f"not written: {printable(dashboard)} is a link"
    rows |= {"note": model.meaning, "checkpoint": str(file), "figures": str(figures_in)}
    return "\n".join(f"  {label:<16} {value}" for label, value in rows.items())


def _drawn(data: DataModule) -> str:
    """Return the protocol of images in words."""
    if data.spec.is_of_tokens:
        return ""
    dequantized = ", dequantised" if data.dequantize else ""
    return f", binarisation {data.binarization}{dequantized}"


def _with_error(figures: Mapping[str, Any], name: str, digits: int = 2) -> str:
    return f"{figures[name]:.{digits}f} ± {figures[f'{name}_error']:.{digits}f}"


def _rows(
    figures: Mapping[str, Any], model: Model, noun: str, samples: int, count: int
) -> dict[str, str]:
    """Return an evaluation's figures in words, by their labels."""
    labels = {name: figure.label for name, figure in {**model.figures, **FIGURES}.items()}
    rows = {
        labels[name]: _with_error(figures, name, 2 if model.figures[name].unit else 3)
        for name in model.figures
        if name in figures and name not in _MINOR
    }
    if "log_marginal" in figures:
        effective = figures["median_effective_samples"]
        rows[labels["log_marginal"]] = (
            f"{_with_error(figures, 'log_marginal')} over {noun}s, "
            f"± {figures['log_marginal_estimator_error']:.3f} of the estimator: a lower bound in "
            f"expectation, by {samples:,} importance samples, of which {effective:.0f} count in "
            f"the median {noun}"
            + (": too few, so bound and error may be far off" * (effective < 5))
        )
    if "bits_per_dimension" in figures:
        bound = "elbo" if "elbo" in figures else model.criterion
        source = labels["log_marginal"] if "log_marginal" in figures else f"the {labels[bound]}"
        bits = _with_error(figures, "bits_per_dimension", 4)
        rows[labels["bits_per_dimension"]] = f"{bits}, by {source}"
    if "active_units" in figures:
        rows[labels["active_units"]] = (
            f"{figures['active_units']} of {figures['latents']}: "
            f"variance of the mean above {ACTIVE_VARIANCE}"
        )
    if "codes_in_use" in figures:
        in_use, perplexity = f"{figures['codes_in_use']}", f"{figures['perplexity']:.1f}"
        rows[labels["codes_in_use"]] = f"{in_use} of {figures['codes']}, perplexity {perplexity}"
    if "kl_per_dimension" in figures:
        kls = sorted(figures["kl_per_dimension"], reverse=True)
        shown = [f"{kl:.2f}" for kl in kls if kl >= 0.01][:_LATENTS_SHOWN]
        if len(shown) < len(kls):
            below = f"{max(0.01, kls[len(shown) - 1]):.2f}" if shown else "0.01"
            shown.append(f"and {len(kls) - len(shown)} below {below}")
        rows["KL per latent"] = " ".join(shown)
    if "mutual_information" in figures:
        limit = figures["log_examples"]
        near = ": so near its limit it says little"
        rows[labels["mutual_information"]] = (
            f"{_with_error(figures, 'mutual_information')}, of at most log {count:,} = {limit:.2f}"
            + near * (limit - figures["mutual_information"] < 0.5)
        )
        kl = _with_error(figures, "aggregate_posterior_kl")
        aggregate = f"{kl}, the aggregate posterior's over these {noun}s"
        rows[labels["aggregate_posterior_kl"]] = aggregate
    if "sample_images" in figures:
        drawn = f"{figures['sample_images']:,} samples among as many test images"
        features = "on the features of this project's digit classifier: not an FID"
        rows[labels["frechet_distance"]] = f"{_beside(figures, 'frechet_distance')}, {features}"
        rows[labels["precision"]] = f"{_beside(figures, 'precision')}, of {drawn}"
        rows[labels["recall"]] = _beside(figures, "recall")
    if "interpolation_cost" in figures:
        middle = len(figures["interpolation_cost"]) // 2
        rows["halfway"] = (
            f"{figures['interpolation_distance'][middle]:.2f} of the tokens changed at "
            f"{figures['interpolation_cost'][middle]:.2f} nats a token by a model of the four "
            f"before; blending {figures['blend_distance'][middle]:.2f} at "
            f"{figures['blend_cost'][middle]:.2f}; the ends {figures['blend_cost'][0]:.2f}"
        )
    named = zip(ATTRIBUTES, figures.get("attribute_changes", ()), strict=False)
    for number, (name, changes) in enumerate(named):
        own, others = changes[number], [*changes[:number], *changes[number + 1 :]]
        most = max(abs(each) for each in others)
        rows[f"vector of {name}"] = (
            f"from − to + changes it by {own:+.2f} standard deviations, others by {most:.2f}"
        )
    if "label_accuracy" in figures:
        share = f"{100 * figures['label_accuracy']:.1f} %"
        rows[labels["label_accuracy"]] = (
            f"{share} of the samples are recognised as the label asked for"
        )
    return rows


def _beside(figures: Mapping[str, Any], name: str) -> str:
    return f"{figures[name]:.3f} (training images: {figures[f'{name}_floor']:.3f})"
