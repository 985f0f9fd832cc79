"""Figures with axes, and pictures as figures: what is written as PDF and SVG as well."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vae_lightning.data.protocol import WHITE


def principal_axes(points: Tensor) -> Tensor:
    """Return the two directions in which points ``[n, D]`` vary most, ``[D, 2]``.

    The largest entry of each is positive. So the signs stay the same, and projections of different
    epochs compare.
    """
    _, _, axes = torch.linalg.svd((points - points.mean(0)).double(), full_matrices=False)
    axes = axes[:2].T
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    fixed: Tensor = (axes * largest.sign()).to(points.dtype)
    return fixed


def map_axes(points: Tensor) -> Tensor:
    """Return the two directions of a map of latents ``[n, D]``: ``[D, 2]``.

    They are the axes of up to two latents, and else those in which the latents vary most.
    """
    dims = points.shape[1]
    return torch.eye(dims, 2, dtype=points.dtype) if dims <= 2 else principal_axes(points)


def latent_map(
    point: Tensor, labels: Tensor | None, class_names: Sequence[str] = (), noun: str = "label"
) -> Figure:
    """Draw latents ``[n, D]`` in the plane: themselves for two latents, else their two main axes.

    Args:
        point: the latent of each example.
        labels: ``[n]``, which colour the points; None: there are none.
        class_names: names of the labels.
        noun: what a label is called.
    """
    plane = point if point.shape[1] == 2 else point @ map_axes(point)
    figure = Figure(figsize=(6, 5.2))  # with given places: finding them takes half of the time
    axes = figure.add_axes((0.11, 0.11, 0.74, 0.86))
    across, up = plane.T.numpy()
    looks = {"s": 3, "linewidths": 0, "rasterized": True}
    points = axes.scatter(across, up, **(looks | colours(labels, class_names)))
    if point.shape[1] == 2:
        names = ("z₀", "z₁")
    else:
        names = ("first principal axis", "second principal axis")
    axes.set(xlabel=names[0], ylabel=names[1], aspect="equal")
    axes.set(xlim=(-4, 4), ylim=(-4, 4))  # fixed, so that epochs compare
    if outside := int((plane.abs() > 4).any(dim=1).sum()):
        text = f"{outside:,} of {len(plane):,} lie outside"
        axes.text(0.01, 0.01, text, transform=axes.transAxes, fontsize=8)
    if labels is not None:
        key = figure.add_axes((0.87, 0.11, 0.03, 0.86))
        bar = figure.colorbar(points, cax=key, ticks=range(len(class_names)), label=noun)
        bar.set_ticklabels(class_names)
    return figure


def colours(labels: Tensor | None, class_names: Sequence[str]) -> dict[str, Any]:
    """Return how points are coloured by their labels, as arguments of ``scatter``."""
    if labels is None:
        return {"color": "C0"}
    many = len(class_names) > 10
    bounds = {"vmin": -0.5, "vmax": len(class_names) - 0.5}
    return {"c": labels.numpy(), "cmap": "tab20" if many else "tab10", **bounds}


def kl_bars(kl: Tensor) -> Figure:
    """Draw the mean KL of each latent, ``[D]`` in nats, from the most used to the least."""
    figure = Figure(figsize=(6, 3))
    axes = figure.add_axes((0.1, 0.17, 0.88, 0.79))
    order = kl.argsort(descending=True)
    axes.bar(range(len(kl)), kl[order].numpy())
    axes.set(xlabel="latent", ylabel="mean KL, nats")
    if len(kl) <= 50:
        axes.set_xticks(range(len(kl)), [str(number) for number in order.tolist()], fontsize=7)
    return figure


def search_history(
    trials: Sequence[tuple[int, float, bool]], label: str, upwards: bool = True
) -> Figure:
    """Draw the best figure of each trial of a search, and the best so far.

    Args:
        trials: number, figure, and whether it was ended early.
        label: of the figure.
        upwards: whether higher is better.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for pruned, marker, kind in ((False, "o", "trained to its end"), (True, "x", "ended early")):
        points = [(number, figure_) for number, figure_, ended in trials if ended == pruned]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                marker,
                color="0.6" if pruned else "C0",
                markersize=5,
                label=kind,
            )
    completed = [(number, figure_) for number, figure_, ended in trials if not ended]
    accumulate = np.maximum.accumulate if upwards else np.minimum.accumulate
    best = accumulate([value for _, value in completed])
    axes.step(
        [number for number, _ in completed], best, where="post", color="C1", label="best so far"
    )
    axes.set(xlabel="trial", ylabel=f"validation {label}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def importances(shares: Mapping[str, float], remark: str = "") -> Figure:
    """Draw how much each searched key matters for which trials are the best, with a remark."""
    figure = Figure(figsize=(6, 1 + 0.35 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(list(shares)[::-1], list(shares.values())[::-1])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set(xlabel=f"importance{remark}", xlim=(0, 1.1 * max(shares.values())))
    return figure


def front(trials: Sequence[tuple[int, float, float]], best: Collection[int]) -> Figure:
    """Draw rate against distortion, with the trials that none is better than in both.

    Args:
        trials: number, rate and distortion, in nats per image.
        best: the numbers of those.
    """
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    others = [(rate, distortion) for number, rate, distortion in trials if number not in best]
    if others:
        axes.plot(*zip(*others, strict=True), "o", color="0.7", markersize=4, label="other trials")
    edge = sorted(
        (rate, distortion, number) for number, rate, distortion in trials if number in best
    )
    axes.step(
        [each[0] for each in edge],
        [each[1] for each in edge],
        "o-",
        where="post",
        markersize=5,
        label="front",
    )
    for rate, distortion, number in edge:
        axes.annotate(
            str(number), (rate, distortion), xytext=(4, 4), textcoords="offset points", fontsize=7
        )
    rate, distortion, number = min(edge, key=lambda each: each[0] + each[1])
    label = f"ELBO {-rate - distortion:.2f}, the highest: trial {number}"
    axes.axline((rate, distortion), slope=-1, color="C1", linestyle="--", linewidth=1, label=label)
    axes.set(xlabel="rate: KL, nats", ylabel="distortion: −log-likelihood, nats")
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def figure_of(
    picture: Tensor,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    across: str = "",
    up: str = "",
) -> Figure:
    """Put a picture ``[3, H, W]`` into a figure in which it keeps its size, 100 pixels to the inch.

    Args:
        picture: images in rows of equal height, and columns of equal width.
        rows: names of the rows, from above.
        columns: names of the columns.
        across: what the columns go through.
        up: what the rows go through.
    """
    _, height, width = picture.shape
    left = 12 + 5 * max(map(len, rows)) + 16 * bool(up) if rows else 0
    below = 18 * bool(columns) + 16 * bool(across)
    figure = Figure(figsize=((left + width) / 100, (height + below) / 100))
    axes = figure.add_axes(
        (
            left / (left + width),
            below / (height + below),
            width / (left + width),
            height / (height + below),
        )
    )
    pixels = (picture.clamp(0, 1) * WHITE).round().to(torch.uint8)
    axes.imshow(pixels.permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axes.set_xticks(
        [width * (n + 0.5) / len(columns) for n in range(len(columns))], columns, fontsize=7
    )
    axes.set_yticks([height * (n + 0.5) / len(rows) for n in range(len(rows))], rows, fontsize=7)
    axes.set_xlabel(across, fontsize=8, labelpad=1)
    axes.set_ylabel(up, fontsize=8, labelpad=1)
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    return figure


def rasterize(figure: Figure, dpi: int = 100) -> Tensor:
    """Return the pixels of a figure: ``[3, H, W]`` in [0, 1]."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    colours = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    pixels: Tensor = torch.from_numpy(colours.copy()).permute(2, 0, 1) / WHITE
    return pixels


def bare_map(
    points: Tensor, labels: Tensor | None, class_names: Sequence[str], reach: float
) -> Figure:
    """Draw points ``[n, 2]``, coloured by label, on the square from −``reach`` to ``reach``.

    The square fills the whole picture, so a position in the picture is one on the map.
    """
    figure = Figure(figsize=(6, 6))
    axes = figure.add_axes((0, 0, 1, 1))
    across, up = points.T.numpy()
    axes.axhline(0, color="0.85", linewidth=1, zorder=0)
    axes.axvline(0, color="0.85", linewidth=1, zorder=0)
    axes.scatter(across, up, s=5, linewidths=0, **colours(labels, class_names))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    axes.axis("off")
    return figure
