"""What there is to see of a trained VAE, by name: drawn alike by the callbacks in training and by the commands afterwards."""

from collections.abc import Iterable, Sequence
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


SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


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
    kl = torch.cat([kl_per_dimension(posterior.loc, posterior.scale) for posterior in posteriors]).mean(0).cpu()
    return Encoded(images, labels, loc, scale, kl)


def drawings_of(vae: VAE) -> list[Drawing]:
    """Return what there is to draw of a model: the manifold of two latents only."""
    names: list[Drawing] = ["reconstructions", "samples", "traversals", "interpolation", "latents", "kl"]
    return [*names, "manifold"] if len(vae.prior_loc) == 2 else names


class Drawn(NamedTuple):
    """What was drawn, and what a reader would write beside it.

    Attributes:
        picture: ``[3, H, W]`` in [0, 1], or a figure with axes of its own.
        rows: names of the rows of images, from above.
        columns: names of the columns.
        across: what the columns go through.
        up: what the rows go through.
    """

    picture: "Tensor | Figure"
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    across: str = ""
    up: str = ""


@torch.no_grad()
def draw(name: Drawing, vae: VAE, encoded: Encoded, label: int = 0, side: int = 20) -> Drawn:
    """Draw a model in evaluation mode.

    Args:
        name: what.
        vae: the model.
        encoded: images with their posteriors by this model.
        label: what a conditional model decodes.
        side: images in a row and a column of the manifold.
    """
    loc, labels, device = encoded.loc, encoded.labels, vae.prior_loc.device

    def decode(z: Tensor) -> Tensor:
        return vae.likelihood(z.to(vae.prior_loc), torch.full((len(z),), label, device=device)).mean.cpu()

    def first_of(digits: Iterable[int]) -> Tensor:
        return loc[[int((labels == digit).nonzero()[0]) for digit in digits]]

    if name == "reconstructions":
        images = encoded.images[:16]
        reconstructions = vae.reconstruct(images.to(device), labels[:16].to(device)).cpu()
        return Drawn(pictures.reconstruction_grid(images, reconstructions), ("image", "reconstruction"))
    if name == "samples":
        generator = torch.Generator().manual_seed(PRIOR_SEED)
        return Drawn(pictures.sample_grid(decode(torch.randn(64, loc.shape[1], generator=generator))))
    if name == "manifold":
        values = [f"{value:z.1f}" for value in pictures.equal_shares(side).tolist()]
        return Drawn(pictures.manifold_grid(decode, side), values[::-1], values, "z₀", "z₁")
    if name == "traversals":
        most_used = encoded.kl.argsort(descending=True)[:10].tolist()
        picture = pictures.traversal_grid(decode, torch.zeros(loc.shape[1]), most_used)
        values = [f"{value:z.1f}" for value in torch.linspace(-3, 3, 11).tolist()]
        return Drawn(
            picture,
            [f"z{latent}".translate(SUBSCRIPTS) for latent in most_used],
            values,
            "value of the row's latent, the others 0",
        )
    if name == "interpolation":
        known = [pair for pair in PAIRS if all((labels == digit).any() for digit in pair)]
        starts, ends = zip(*known or [(int(labels[0]), int(labels[-1]))], strict=True)
        rows = [f"{start} to {end}, {way}" for start, end in zip(starts, ends, strict=True) for way in ("straight", "sphere")]
        shares = [f"{share:.1f}" for share in torch.linspace(0, 1, 11).tolist()]
        return Drawn(pictures.interpolation_grid(decode, first_of(starts), first_of(ends)), rows, shares, "share of the way")

    from vae_lightning import plots  # matplotlib's import takes a second

    return Drawn(plots.latent_map(loc, labels) if name == "latents" else plots.kl_bars(encoded.kl))
