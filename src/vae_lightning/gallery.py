"""What there is to see of a trained VAE, by name: drawn alike by the callbacks in training and by the commands afterwards."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from vae_lightning import pictures
from vae_lightning.data import Batch
from vae_lightning.objectives import kl_per_dimension
from vae_lightning.vae import VAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawing = Literal["reconstructions", "samples", "manifold", "traversals", "interpolation", "latents", "kl"]

PRIOR_SEED = 0
"""Seed of the latents of the prior samples: the same latents in every epoch and every run."""

PAIRS = ((0, 1), (2, 3), (4, 9), (7, 8))
"""The labels between whose first images interpolations go."""


class Encoded(NamedTuple):
    """Images with their posteriors, all on the CPU.

    Attributes:
        images: ``[N, C, H, W]`` in [0, 1].
        labels: ``[N]``.
        loc: the posterior means, ``[N, D]``.
        scale: the posterior scales, ``[N, D]``.
        kl: of each latent, the mean over the images, ``[D]`` in nats.
    """

    images: Tensor
    labels: Tensor
    loc: Tensor
    scale: Tensor
    kl: Tensor


@torch.no_grad()
def encode(vae: VAE, batches: Iterable[Batch]) -> Encoded:
    """Encode images, on the model's device."""
    shown, posteriors, device = [], [], vae.prior_loc.device
    for batch in batches:
        shown.append((batch.images.cpu(), batch.labels.cpu()))
        posteriors.append(vae.posterior(batch.images.to(device), batch.labels.to(device)))
    images, labels = (torch.cat(parts) for parts in zip(*shown, strict=True))
    loc, scale = (torch.cat([getattr(posterior, name) for posterior in posteriors]).cpu() for name in ("loc", "scale"))
    kl = torch.cat([kl_per_dimension(posterior, vae.prior) for posterior in posteriors]).mean(0).cpu()
    return Encoded(images, labels, loc, scale, kl)


def drawings_of(vae: VAE) -> list[Drawing]:
    """Return what there is to draw of a model: the manifold of two latents only."""
    names: list[Drawing] = ["reconstructions", "samples", "traversals", "interpolation", "latents", "kl"]
    return [*names, "manifold"] if len(vae.prior_loc) == 2 else names


@torch.no_grad()
def draw(name: Drawing, vae: VAE, encoded: Encoded, label: int = 0, side: int = 20) -> "Tensor | Figure":
    """Draw a model in evaluation mode.

    Args:
        name: what.
        vae: the model.
        encoded: images with their posteriors by this model.
        label: what a conditional model decodes.
        side: images in a row and a column of the manifold.

    Returns:
        A picture, ``[3, H, W]`` in [0, 1], or a figure with axes.
    """
    loc, labels, device = encoded.loc, encoded.labels, vae.prior_loc.device

    def decode(z: Tensor) -> Tensor:
        return vae.likelihood(z.to(vae.prior_loc), torch.full((len(z),), label, device=device)).mean.cpu()

    def first_of(digits: Iterable[int]) -> Tensor:
        return loc[[int((labels == digit).nonzero()[0]) for digit in digits]]

    if name == "reconstructions":
        images = encoded.images[:16]
        return pictures.reconstruction_grid(images, vae.reconstruct(images.to(device), labels[:16].to(device)).cpu())
    if name == "samples":
        generator = torch.Generator().manual_seed(PRIOR_SEED)
        return pictures.sample_grid(decode(torch.randn(64, loc.shape[1], generator=generator)))
    if name == "manifold":
        return pictures.manifold_grid(decode, side)
    if name == "traversals":
        most_used = encoded.kl.argsort(descending=True)[:10].tolist()
        return pictures.traversal_grid(decode, torch.zeros(loc.shape[1]), most_used)
    if name == "interpolation":
        known = [pair for pair in PAIRS if all((labels == digit).any() for digit in pair)]
        starts, ends = zip(*known or [(int(labels[0]), int(labels[-1]))], strict=True)
        return pictures.interpolation_grid(decode, first_of(starts), first_of(ends))

    from vae_lightning import plots  # matplotlib's import takes a second

    return plots.latent_map(loc, labels) if name == "latents" else plots.kl_bars(encoded.kl)
