"""A trained model measured over a split: the figures, their errors, and how far it has come."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from vae_lightning.data.batches import Batch, Batches
from vae_lightning.features import features, frechet_distance, load_classifier, precision_and_recall
from vae_lightning.metrics import ImportanceEstimate, active, log_aggregate_posterior, standard_error
from vae_lightning.module import VAEModule
from vae_lightning.noise import EVALUATION_SEED, evaluation_noise
from vae_lightning.objectives import kl_per_dimension, log_ratio

Metric = Literal["bound", "log_marginal", "active_units", "mutual_information", "sample_quality"]

SAMPLES_DRAWN = 10_000
"""Images that are drawn to measure the quality of samples, and that they are measured against."""

_MEANS = ("loss", "elbo", "log_likelihood", "kl", "loss_at_posterior_mean", "importance_bound", "log_marginal")


@torch.inference_mode()
def evaluate(module: VAEModule, batches: Batches, metrics: Sequence[Metric], samples: int, memory_mb: int) -> dict[str, Any]:
    """Measure a model over a split.

    Args:
        module: the model, on the device to use, in evaluation mode.
        batches: the split.
        metrics: ``bound``: the one-sample bound and its terms; ``log_marginal``: log p(x) by importance sampling;
            ``active_units``: which latents the model uses, and the KL of each; ``mutual_information``: of image and latent, and
            the KL of the aggregate posterior q(z), the mean of q(z|x) over the split, to the prior (Hoffman & Johnson 2016,
            "ELBO surgery"). ``sample_quality`` is no affair of a split: see ``sample_quality``.
        samples: importance samples per image.
        memory_mb: about how much memory the decoded samples may take.

    Returns:
        Figures in nats per image by name, each mean with its standard error over the images beside it as ``<name>_error``.
    """
    shown: dict[str, list[Tensor]] = {}
    total = len(batches.indices) * (samples if "log_marginal" in metrics else 1)
    with tqdm(total=total, unit=" samples", unit_scale=True, desc="evaluating", leave=False, disable=None) as bar:
        for batch in batches:
            here = batch.to(module.device)
            for name, part in _measure(module, here, metrics, samples, memory_mb * 1_000_000, bar).items():
                shown.setdefault(name, []).append(part.cpu().double())
    values = {name: torch.cat(parts) for name, parts in shown.items()}
    figures: dict[str, Any] = {}
    for name in [name for name in _MEANS if name in values]:
        figures[name] = values[name].mean().item()
        figures[f"{name}_error"] = standard_error(values[name])
    if "log_marginal" in metrics:
        figures["log_marginal_estimator_error"] = values["variance"].sum().sqrt().item() / len(values["variance"])
        figures["median_effective_samples"] = values["effective_samples"].median().item()
    if "active_units" in metrics:
        figures["active_units"] = int(active(values["loc"]).sum())
        figures["kl_per_dimension"] = values["kl_per_dimension"].mean(0).tolist()
    if "mutual_information" in metrics:
        # log q(z|x) − log q(z), and log q(z) − log p(z), at one z for each image: together its sampled KL.
        aggregate = log_aggregate_posterior(values["z"], values["loc"], values["scale"], memory_mb * 1_000_000)
        for name, each in {
            "mutual_information": values["log_posterior"] - aggregate,
            "aggregate_posterior_kl": aggregate - values["log_prior"],
        }.items():
            figures[name] = each.mean().item()
            figures[f"{name}_error"] = standard_error(each)
        figures["log_images"] = math.log(len(aggregate))
    return figures


def _measure(
    module: VAEModule, batch: Batch, metrics: Sequence[Metric], samples: int, memory: int, bar: "tqdm[Any]"
) -> dict[str, Tensor]:
    """Return what was asked for of each image of a batch: ``[B]``, or ``[B, D]``."""
    posterior, prior = module.vae.posterior(batch.images, batch.labels), module.vae.prior
    values: dict[str, Tensor] = {"loc": posterior.loc}
    if "bound" in metrics:
        values |= module.measure(batch)
    if "active_units" in metrics:
        values["kl_per_dimension"] = kl_per_dimension(posterior.loc, posterior.scale)
    if "mutual_information" in metrics:
        z = posterior.reparameterize(evaluation_noise(batch.indices, module.latent_dim)[0].to(posterior.loc))
        log_posterior, log_prior = (each.log_prob(z) for each in (posterior, prior))  # type: ignore[no-untyped-call]
        values |= {"z": z, "scale": posterior.scale, "log_posterior": log_posterior, "log_prior": log_prior}
    if "log_marginal" not in metrics:
        bar.update(len(batch.images))
        return values
    together = max(1, memory // _bytes_per_sample(module))
    estimates = []
    for rows in torch.split(torch.arange(len(batch.images), device=module.device), together):
        part = batch.take(rows)
        posterior = module.vae.posterior(part.images, part.labels)
        estimate = ImportanceEstimate(len(rows))
        for start in range(0, samples, max(1, together // len(rows))):
            numbers = range(start, min(start + max(1, together // len(rows)), samples))
            z = posterior.reparameterize(evaluation_noise(part.indices, module.latent_dim, numbers).to(posterior.loc))
            estimate.update(module.log_likelihood(part, z) - log_ratio(z, posterior, prior))
            bar.update(len(numbers) * len(rows))
        estimates.append(estimate)
    return values | {
        "log_marginal": torch.cat([each.log_marginal for each in estimates]),
        "effective_samples": torch.cat([each.effective_samples for each in estimates]),
        "variance": torch.cat([each.variance for each in estimates]),
    }


def _bytes_per_sample(module: VAEModule) -> int:
    """Return what decoding one latent takes: the largest output of a layer, in and out, and some copies of the image."""
    sizes: list[int] = []
    handles = [
        layer.register_forward_hook(lambda _layer, _in, out: sizes.append(out.numel()))
        for layer in module.vae.decoder.modules()
        if not list(layer.children())
    ]
    mean = module.vae.sample(1)
    for handle in handles:
        handle.remove()
    return 4 * (2 * max(sizes) + 8 * mean.numel())


@torch.inference_mode()
def sample_quality(module: VAEModule, test: Tensor, train: Tensor) -> dict[str, Any]:
    """Measure how near the model's samples come to the test images, on the features of the shipped digit classifier.

    Args:
        module: the model, on the device to use, in evaluation mode.
        test: grey-level test images ``[N, 1, 28, 28]`` in [0, 1]; as many samples are drawn, always from the same latents.
        train: as many training images, whose figures are those of a model that can't be told from the data.

    Returns:
        ``frechet_distance``, ``precision``, ``recall``, the same of the training images as ``…_floor``, and how many images;
        of a conditional model, which is asked for all labels equally often, how many show theirs.
    """
    classifier = load_classifier().to(module.device)
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    labels = torch.arange(len(test), device=module.device) % max(module.vae.num_classes, 1)
    drawn = torch.cat([module.vae.sample(len(part), part, generator) for part in torch.split(labels, 1000)])
    generated, real, floor = (features(classifier, images.to(module.device)).cpu().double() for images in (drawn, test, train))
    figures: dict[str, Any] = {"sample_images": len(test)}
    if module.vae.num_classes:
        recognised = torch.cat([classifier(part) for part in torch.split(drawn, 1000)]).argmax(1)
        figures["label_accuracy"] = (recognised == labels).double().mean().item()
    for suffix, each in (("", generated), ("_floor", floor)):
        figures[f"frechet_distance{suffix}"] = frechet_distance(each, real)
        figures[f"precision{suffix}"], figures[f"recall{suffix}"] = precision_and_recall(each, real)
    return figures
