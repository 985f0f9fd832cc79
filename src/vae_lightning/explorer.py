"""What the explorer's page shows: a split as a model sees it, a map of it, and drawings brought to the form of its images."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vae_lightning.data import Batch
from vae_lightning.gallery import Encoded, encode
from vae_lightning.plots import principal_axes
from vae_lightning.vae import VAE

SIDE = 28
BOX = 20


@dataclass(frozen=True)
class Explorer:
    """A model, and a split as it sees it.

    Attributes:
        vae: the model, in evaluation mode.
        seen: the split's images with their posteriors.
        axes: the two directions of the map, ``[D, 2]``: the latents where there are two, else those of most variance.
        reach: the map shows the square from −reach to reach.
        binary: whether the model knows black-and-white images only.
    """

    vae: VAE
    seen: Encoded
    axes: Tensor
    reach: float
    binary: bool

    def on_map(self, z: Tensor) -> Tensor:
        """Return where latents ``[..., D]`` lie on the map, ``[..., 2]``: across and up."""
        return z @ self.axes

    @torch.inference_mode()
    def decode(self, z: Tensor, label: int | None) -> Tensor:
        """Return the mean image ``[C, H, W]`` of latents ``[D]``; a conditional model goes by the label."""
        return self.vae.likelihood(z.unsqueeze(0), self._labels(label)).mean[0]

    @torch.inference_mode()
    def encode(self, image: Tensor, label: int | None) -> Tensor:
        """Return the posterior mean ``[D]`` of an image ``[C, H, W]``; a conditional model goes by the label."""
        return self.vae.posterior(image.unsqueeze(0), self._labels(label)).loc[0]

    def _labels(self, label: int | None) -> Tensor | None:
        return torch.tensor([label]) if self.vae.num_classes else None

    def take(self, drawing: Tensor) -> Tensor:
        """Bring a drawing ``[H, W]`` in [0, 1] to the form of the model's images, ``[1, 28, 28]``."""
        image = centre(drawing).unsqueeze(0)
        return (image >= 0.5).float() if self.binary else image


def explore(vae: VAE, split: Iterable[Batch], binary: bool = False) -> Explorer:
    """Encode a split."""
    seen = encode(vae, split)
    latents = seen.loc.shape[1]
    axes = torch.eye(latents, 2) if latents <= 2 else principal_axes(seen.loc)
    return Explorer(vae, seen, axes, 1.05 * (seen.loc @ axes).abs().max().item(), binary)


def nearest(points: Tensor, point: Tensor) -> int:
    """Return which of the points ``[N, 2]`` lies nearest to a point ``[2]``."""
    return int((points - point).square().sum(-1).argmin())


def most_active(kl: Tensor, count: int) -> list[int]:
    """Return the latents that carry the most nats, from the most, by the mean KL of each ``[D]``."""
    return kl.argsort(descending=True)[:count].tolist()


def centre(drawing: Tensor) -> Tensor:
    """Bring a drawing to MNIST's form: its ink in a box of 20 × 20, with the centre of mass in the middle of 28 × 28.

    As LeCun et al. (1998) did with NIST's digits; one of MNIST's own digits, wherever it lies, comes back as it is.

    Args:
        drawing: ``[H, W]`` in [0, 1], white on black.

    Returns:
        ``[28, 28]`` in [0, 1]; black where nothing was drawn.
    """
    rows, columns = drawing.amax(1).nonzero().flatten(), drawing.amax(0).nonzero().flatten()
    if not len(rows):
        return torch.zeros(SIDE, SIDE)
    ink = drawing[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(1, round(BOX * length / max(ink.shape))) for length in ink.shape)
    if (height, width) != ink.shape:
        ink = interpolate(ink[None, None], size=(height, width), mode="bilinear", antialias=True)[0, 0].clamp(0, 1)
    # In MNIST the middle is pixel 14, counted from 0; ink of at most 20 pixels moved there stays inside unless its mass lies at
    # an edge of its box, and then it keeps to the frame.
    top, left = (
        min(max(round(SIDE / 2 - middle), 0), SIDE - length) for middle, length in zip(_middle(ink), ink.shape, strict=True)
    )
    image = torch.zeros(SIDE, SIDE)
    image[top : top + height, left : left + width] = ink
    return image


def _middle(ink: Tensor) -> tuple[float, float]:
    """Return the row and the column of the centre of mass."""
    mass = ink.double().sum()
    rows, columns = (ink.double().sum(other) @ torch.arange(ink.shape[1 - other]).double() / mass for other in (1, 0))
    return rows.item(), columns.item()
