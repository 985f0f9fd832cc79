"""Figures with axes, and pictures as figures: what is written as PDF and SVG as well."""

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor


def principal_axes(points: Tensor) -> Tensor:
    """Return the two directions in which points ``[n, D]`` vary most, ``[D, 2]``, each with its largest entry positive.

    So the signs hold still, and projections of different epochs compare.
    """
    _, _, axes = torch.linalg.svd((points - points.mean(0)).double(), full_matrices=False)
    axes = axes[:2].T
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    fixed: Tensor = (axes * largest.sign()).to(points.dtype)
    return fixed


def latent_map(loc: Tensor, labels: Tensor) -> Figure:
    """Draw posterior means ``[n, D]`` in the plane, coloured by label: themselves for two latents, else their two main axes."""
    plane = loc if loc.shape[1] == 2 else loc @ principal_axes(loc)
    figure = Figure(figsize=(6, 5.2), layout="constrained")
    axes = figure.add_subplot()
    across, up = plane.T.numpy()
    points = axes.scatter(across, up, s=3, c=labels.numpy(), cmap="tab10", vmin=-0.5, vmax=9.5, linewidths=0, rasterized=True)
    names = ("z₁", "z₂") if loc.shape[1] == 2 else ("first principal axis", "second principal axis")
    axes.set(xlabel=names[0], ylabel=names[1], xlim=(-4, 4), ylim=(-4, 4), aspect="equal")  # fixed, so that epochs compare
    figure.colorbar(points, ticks=range(10), label="digit")
    return figure


def kl_bars(kl: Tensor) -> Figure:
    """Draw the mean KL of each latent, ``[D]`` in nats, from the most used to the least."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    order = kl.argsort(descending=True)
    axes.bar(range(len(kl)), kl[order].numpy())
    axes.set(xlabel="latent", ylabel="mean KL, nats")
    if len(kl) <= 50:
        axes.set_xticks(range(len(kl)), [str(number) for number in order.tolist()], fontsize=7)
    return figure


def figure_of(picture: Tensor) -> Figure:
    """Put a picture ``[3, H, W]`` into a figure of its size, to be written as PDF or SVG."""
    _, height, width = picture.shape
    figure = Figure(figsize=(width / 100, height / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture.clamp(0, 1).permute(1, 2, 0).cpu().numpy(), interpolation="nearest", vmin=0, vmax=1)
    axes.axis("off")
    return figure


def rasterize(figure: Figure, dpi: int = 100) -> Tensor:
    """Return the pixels of a figure: ``[3, H, W]`` in [0, 1]."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    colours = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    pixels: Tensor = torch.from_numpy(colours.copy()).permute(2, 0, 1) / 255
    return pixels


def bare_map(points: Tensor, labels: Tensor, reach: float) -> Figure:
    """Draw points ``[n, 2]``, coloured by label, on the square from −``reach`` to ``reach``, which fills the whole picture.

    So a position in the picture is one on the map.
    """
    figure = Figure(figsize=(6, 6))
    axes = figure.add_axes((0, 0, 1, 1))
    across, up = points.T.numpy()
    axes.axhline(0, color="0.85", linewidth=1, zorder=0)
    axes.axvline(0, color="0.85", linewidth=1, zorder=0)
    drawn = axes.scatter(across, up, s=5, c=labels.numpy(), cmap="tab10", vmin=-0.5, vmax=9.5, linewidths=0)
    handles, names = drawn.legend_elements(num=list(range(10)))
    axes.legend(handles, names, loc="upper center", ncols=10, handletextpad=0, columnspacing=1, framealpha=0.6, frameon=True)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    axes.axis("off")
    return figure
