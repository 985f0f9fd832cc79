"""A trained model measured over a split: the figures, their errors, and how far it has come."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from vae_lightning.data.batches import Batch, Batches
from vae_lightning.metrics import ImportanceEstimate, active, standard_error
from vae_lightning.module import VAEModule
from vae_lightning.noise import evaluation_noise
from vae_lightning.objectives import kl_per_dimension, log_ratio

Metric = Literal["bound", "log_marginal", "active_units"]

_BYTES = 4 * 784 * 4  # an image of float32, held about four times while its likelihood is computed


@torch.inference_mode()
def evaluate(module: VAEModule, batches: Batches, metrics: Sequence[Metric], samples: int, memory_mb: int) -> dict[str, Any]:
    """Measure a model over a split.

    Args:
        module: the model, on the device to use, in evaluation mode.
        batches: the split.
        metrics: ``bound``: the one-sample bound and its terms; ``log_marginal``: log p(x) by importance sampling;
            ``active_units``: which latents the model uses, and the KL of each.
        samples: importance samples per image.
        memory_mb: about how much memory the decoded samples may take.

    Returns:
        Figures in nats per image by name, each mean with its standard error over the images beside it as ``<name>_error``.
    """
    shown: dict[str, list[Tensor]] = {}
    total = len(batches.indices) * (samples if "log_marginal" in metrics else 1)
    with tqdm(total=total, unit=" samples", unit_scale=True, desc="evaluating", leave=False, disable=None) as bar:
        for batch in batches:
            here = Batch(*(each.to(module.device) for each in batch))
            for name, part in _measure(module, here, metrics, samples, memory_mb * 1_000_000, bar).items():
                shown.setdefault(name, []).append(part.cpu().double())
    values = {name: torch.cat(parts) for name, parts in shown.items()}
    figures: dict[str, Any] = {}
    for name in [name for name in values if values[name].ndim == 1 and name not in ("effective_samples", "variance")]:
        figures[name] = values[name].mean().item()
        figures[f"{name}_error"] = standard_error(values[name])
    if "log_marginal" in metrics:
        figures["log_marginal_estimator_error"] = values["variance"].sum().sqrt().item() / len(values["variance"])
        figures["median_effective_samples"] = values["effective_samples"].median().item()
    if "active_units" in metrics:
        figures["active_units"] = int(active(values["posterior_mean"]).sum())
        figures["kl_per_dimension"] = values["kl_per_dimension"].mean(0).tolist()
    return figures


def _measure(
    module: VAEModule, batch: Batch, metrics: Sequence[Metric], samples: int, memory: int, bar: "tqdm[Any]"
) -> dict[str, Tensor]:
    """Return what was asked for of each image of a batch: ``[B]``, or ``[B, D]``."""
    posterior = module.vae.posterior(batch.images, batch.labels)
    values: dict[str, Tensor] = {}
    if "bound" in metrics:
        values |= module.measure(batch)
    if "active_units" in metrics:
        values["posterior_mean"] = posterior.loc
        values["kl_per_dimension"] = kl_per_dimension(posterior, module.vae.prior)
    if "log_marginal" not in metrics:
        bar.update(len(batch.images))
        return values
    estimate = ImportanceEstimate(len(batch.images))
    together = max(1, memory // (_BYTES * len(batch.images)))
    for start in range(0, samples, together):
        numbers = range(start, min(start + together, samples))
        noise = evaluation_noise(batch.indices, module.latent_dim, numbers)
        z = posterior.reparameterize(noise.to(posterior.loc))
        estimate.update(module.log_likelihood(batch, z) - log_ratio(z, posterior, module.vae.prior))
        bar.update(len(numbers) * len(batch.images))
    return values | {
        "log_marginal": estimate.log_marginal,
        "effective_samples": estimate.effective_samples,
        "variance": estimate.variance,
    }
