"""A trained model measured over a split: the figures and their errors."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from vae_lightning.data.batches import Batches
from vae_lightning.data.datamodule import DataModule
from vae_lightning.evaluation.estimators import (
    ImportanceEstimate,
    active,
    code_use,
    log_aggregate_posterior,
    standard_error,
)
from vae_lightning.models.base import (
    Batch,
    CodePrior,
    DiscreteModel,
    Figure,
    LatentModel,
    Model,
    with_codes,
)
from vae_lightning.models.distributions import DiagonalNormal
from vae_lightning.models.noise import EvaluationNoise, SamplingNoise

Metric = Literal[
    "bound", "log_marginal", "active_units", "mutual_information", "sample_quality", "music"
]

FIGURES: Mapping[str, Figure] = {
    "log_marginal": Figure("log p(x)"),
    "active_units": Figure("active latents", "", "none"),
    "codes_in_use": Figure("codes in use", ""),
    "perplexity": Figure("perplexity", ""),
    "mutual_information": Figure("I(x; z)", better="none"),
    "aggregate_posterior_kl": Figure("KL(q(z), p(z))", better="min"),
    "bits_per_dimension": Figure("bits/dimension", "bits", "min"),
    "frechet_distance": Figure("Fréchet distance", "", "min"),
    "precision": Figure("precision", ""),
    "recall": Figure("recall", ""),
    "label_accuracy": Figure("labels", ""),
}
"""What is measured of a whole split or of samples, beyond the model's own figures."""


TEMPERATURES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""What a prior's temperature is multiplied by, to find the one whose bound is the highest."""

_TRIED = 500  # validation examples by which it is chosen


def missing(metric: Metric, model: Model) -> str:
    """Return why a metric can't be measured of a model; empty: it can."""
    if metric in ("bound", "sample_quality"):
        return ""
    if metric == "music":
        return (
            ""
            if isinstance(model, LatentModel) and model.data.has_voices
            else "the model has no latents of melodies or voices"
        )
    if metric == "active_units" and isinstance(with_codes(model), DiscreteModel):
        return ""
    if metric == "log_marginal" and isinstance(model, CodePrior):
        return ""
    return "" if isinstance(model, LatentModel) else "the model has no continuous latents"


def choose_temperature(model: CodePrior, data: DataModule, samples: int) -> tuple[float, str]:
    """Choose the temperature by which codes are drawn for log p(x), on validation images.

    Args:
        model: the prior, in evaluation mode.
        data: what it was trained on.
        samples: importance samples of the bound that decides; at most 8 are taken.

    Returns:
        The best one, and how it was chosen, in words. ``bound`` keeps that of the training.
    """
    trained_at = model.temperature
    if not data.holds_out:
        return trained_at, f"{trained_at:g}, as in training: no validation images were held out"
    bounds = {}
    for factor in TEMPERATURES:
        tried, few = round(factor * trained_at, 6), min(samples, 8)
        figures = evaluate(model, data.split("val", _TRIED), ["log_marginal"], few, 50, tried)
        bounds[tried] = figures["log_marginal"]
    best = max(bounds, key=lambda each: bounds[each])
    count = min(_TRIED, len(data.val_indices))
    return best, f"{best:g} for log p(x), the best of {len(bounds)} on {count} validation images"


@torch.inference_mode()
def evaluate(
    model: Model,
    batches: Batches,
    metrics: Sequence[Metric],
    samples: int,
    memory_mb: int,
    temperature: float | None = None,
) -> dict[str, Any]:
    """Measure a model over a split.

    Args:
        model: the model, on the device to use, in evaluation mode.
        batches: the split.
        metrics: ``bound``: the model's own figures; ``log_marginal``: log p(x) by importance
            sampling; ``active_units``: which latents the model uses, and the KL of each where it
            is known, or how many codes, and their perplexity; ``mutual_information``: of example
            and latent, and the KL of the aggregate posterior q(z), the mean of q(z|x) over the
            split, to the prior (Hoffman & Johnson 2016, "ELBO surgery"), for Gaussian posteriors.
            A model without what a metric needs goes without it: see ``missing``.
        samples: importance samples per example.
        memory_mb: about how much memory the decoded samples may take.
        temperature: by which a prior's codes are drawn for log p(x); None: as in training.

    Returns:
        Figures in nats per example by name, each mean with its standard error over the examples
        beside it as ``<name>_error``.
    """
    metrics = [metric for metric in metrics if not missing(metric, model)]
    shown: dict[str, list[Tensor]] = {}
    total = len(batches.indices) * (samples if "log_marginal" in metrics else 1)
    look: dict[str, Any] = {"unit": " samples", "unit_scale": True, "leave": False}
    with tqdm(total=total, desc="evaluating", disable=None, **look) as bar:
        for batch in batches:
            here = batch.to(model.device)
            memory = memory_mb * 1_000_000
            parts = _measure(model, here, metrics, samples, memory, bar, temperature)
            for name, part in parts.items():
                shown.setdefault(name, []).append(part.cpu().double())
    values = {name: torch.cat(parts) for name, parts in shown.items()}
    figures: dict[str, Any] = {}
    for name in [name for name in (*model.figures, "log_marginal") if name in values]:
        count = model.figures[name].per if name in model.figures else ""
        if not count:
            figures[name] = values[name].mean().item()
            figures[f"{name}_error"] = standard_error(values[name])
        elif (per_example := values[count].mean().item()) > 0:
            figures[name] = ratio = values[name].mean().item() / per_example
            figures[f"{name}_error"] = (
                standard_error(values[name] - ratio * values[count]) / per_example
            )
    if "log_marginal" in values:
        variance = values["variance"].sum().sqrt().item() / len(values["variance"])
        figures["log_marginal_estimator_error"] = variance
        figures["median_effective_samples"] = values["effective_samples"].median().item()
    if "point" in values:
        figures["active_units"] = int(active(values["point"]).sum())
        figures["latents"] = values["point"].shape[1]
    coder = with_codes(model)
    if "code" in values and isinstance(coder, DiscreteModel):
        counts = torch.bincount(values["code"].long().flatten(), minlength=coder.codes)
        figures |= code_use(counts) | {"codes": coder.codes}
    if "kl_per_dimension" in values:
        figures["kl_per_dimension"] = values["kl_per_dimension"].mean(0).tolist()
    if "loc" in values:
        # log q(z|x) − log q(z), and log q(z) − log p(z), at one z for each example: together its
        # sampled KL.
        loc, scale = values["loc"], values["scale"]
        aggregate = log_aggregate_posterior(values["z"], loc, scale, memory_mb * 1_000_000)
        for name, each in {
            "mutual_information": values["log_posterior"] - aggregate,
            "aggregate_posterior_kl": aggregate - values["log_prior"],
        }.items():
            figures[name] = each.mean().item()
            figures[f"{name}_error"] = standard_error(each)
        figures["log_examples"] = math.log(len(aggregate))
    return figures


def _measure(
    model: Model,
    batch: Batch,
    metrics: Sequence[Metric],
    samples: int,
    memory: int,
    bar: "tqdm[Any]",
    temperature: float | None = None,
) -> dict[str, Tensor]:
    """Return what was asked for of each example of a batch: ``[B]``, or ``[B, D]``."""
    values: dict[str, Tensor] = {}
    if "bound" in metrics:
        values |= model.measure(batch, EvaluationNoise(batch.indices))
    coder = with_codes(model)
    if isinstance(coder, DiscreteModel) and "active_units" in metrics:
        values["code"] = coder.encode(batch)["code"]
    if isinstance(model, LatentModel):
        if "active_units" in metrics:
            values["point"] = model.point(batch)
            kl = model.kl_of_each_latent(model.posterior(batch))
            values |= {} if kl is None else {"kl_per_dimension": kl}
        if "mutual_information" in metrics:
            values |= _densities(model, batch)
        if "log_marginal" in metrics:
            return values | _log_marginal(model, batch, samples, memory, bar)
    if isinstance(model, CodePrior) and "log_marginal" in metrics:
        drawn_at, model.temperature = model.temperature, temperature or model.temperature
        try:
            return values | _log_marginal_of_codes(model, batch, samples, memory, bar)
        finally:
            model.temperature = drawn_at
    bar.update(len(batch.x))
    return values


def _densities(model: LatentModel, batch: Batch) -> dict[str, Tensor]:
    """Return one latent of each example with its densities; empty without a Gaussian posterior."""
    posterior, prior = model.posterior(batch), model.prior(batch.y)
    if not isinstance(posterior, DiagonalNormal):
        return {}
    z = posterior.draw(EvaluationNoise(batch.indices))[0]
    return {
        "z": z,
        "loc": posterior.loc,
        "scale": posterior.scale,
        "log_posterior": posterior.log_prob(z),  # type: ignore[no-untyped-call]
        "log_prior": prior.log_prob(z),
    }


def _log_marginal(
    model: LatentModel, batch: Batch, samples: int, memory: int, bar: "tqdm[Any]"
) -> dict[str, Tensor]:
    """Return the estimate of log p(x) of each example, and how far it can be trusted."""
    together = max(1, memory // _bytes_per_sample(model))
    estimates = []
    for rows in torch.split(torch.arange(len(batch.x), device=model.device), together):
        part = batch.take(rows)
        posterior, prior = model.posterior(part), model.prior(part.y)
        estimate = ImportanceEstimate(len(rows))
        step = max(1, together // len(rows))
        for start in range(0, samples, step):
            count = min(step, samples - start)
            z = posterior.draw(EvaluationNoise(part.indices, first_sample=start), count)
            ratio = posterior.log_prob(z) - prior.log_prob(z)
            estimate.update(model.log_likelihood(part, z) - ratio)
            bar.update(count * len(rows))
        estimates.append(estimate)
    return _joined(estimates)


def _log_marginal_of_codes(
    model: CodePrior, batch: Batch, samples: int, memory: int, bar: "tqdm[Any]"
) -> dict[str, Tensor]:
    """Return the same for a prior over codes, which are drawn from q(z|x)."""
    together = max(1, memory // (4 * model.numbers_per_example(training=True)))
    estimates = []
    for rows in torch.split(torch.arange(len(batch.x), device=model.device), together):
        part, estimate = batch.take(rows), ImportanceEstimate(len(rows))
        scores = model.autoencoder.scores(model.autoencoder.embed(part))
        for number in range(samples):
            noise = EvaluationNoise(part.indices, first_sample=number)
            log_likelihood, log_prior, log_q = model.drawn(part, scores, noise)
            estimate.update(log_likelihood + log_prior - log_q)
            bar.update(len(rows))
        estimates.append(estimate)
    return _joined(estimates)


def _joined(estimates: Sequence[ImportanceEstimate]) -> dict[str, Tensor]:
    return {
        name: torch.cat([getattr(each, name) for each in estimates])
        for name in ("log_marginal", "effective_samples", "variance")
    }


def _bytes_per_sample(model: LatentModel) -> int:
    """Return what decoding one latent takes.

    That is the largest output of a layer, in and out, and some copies of the example.
    """
    sizes: list[int] = []

    def note(_layer: object, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    layers = [layer for layer in model.modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(note) for layer in layers]
    example = model.sample(1, SamplingNoise(1))
    for handle in handles:
        handle.remove()
    return 4 * (2 * max(sizes, default=example.numel()) + 8 * example.numel())
