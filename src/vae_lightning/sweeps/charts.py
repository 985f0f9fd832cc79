"""Charts of what came of many runs. No torch here."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae_lightning.sweeps.summaries import Combination, Curve, Job, criterion_of, described
from vae_lightning.sweeps.tables import label

MOST = 8
"""Lines or points that are told apart in one chart."""

_MOST_LATENTS = 1_000_000_000

# Okabe & Ito's colours, which colour-blind readers can distinguish too. Grey replaces their yellow,
# which is faint on white.
_STYLES: list[dict[str, Any]] = [
    {"color": color, "marker": marker}
    for color, marker in zip(
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#888888"),
        "os^Dv<>P",
        strict=True,
    )
]


def figure_against_latent_dim(combinations: Sequence[Combination]) -> Figure | None:
    """Draw the mean criterion against the number of latents, a line for each other combination.

    Returns:
        None where fewer than two numbers of latents were tried.
    """
    key, names = "model.latent_dim", dict[str, str]()
    jobs = [job for each in combinations for job in each.jobs]
    criterion = criterion_of(jobs)
    sign = -1 if described(jobs, criterion)["better"] == "min" else 1
    lines: dict[str, Curve] = {}
    for each in combinations:
        size = each.settings.get(key)
        if isinstance(size, int) and 0 < size <= _MOST_LATENTS and criterion in each.figures:
            others = {other: value for other, value in each.settings.items() if other != key}
            names[repr(others)] = label(others, combinations)
            lines.setdefault(repr(others), []).append((size, *each.figures[criterion]))
    sizes = sorted({size for line in lines.values() for size, *_ in line})
    if len(sizes) < 2:
        return None
    best = sorted(
        lines, key=lambda line: max(sign * value for _, value, _ in lines[line]), reverse=True
    )
    figure, axes = _axes("latents", _named(jobs, criterion, "test"), len(lines))
    for style, line in zip(_STYLES, best, strict=False):
        across, up, deviations = zip(*sorted(lines[line], key=lambda point: point[0]), strict=True)
        errors = np.array(deviations, dtype=float)
        axes.errorbar(
            across, up, errors, label=names[line] or None, capsize=3, markersize=5, **style
        )
    if sizes[-1] >= 8 * sizes[0]:
        axes.set_xscale("log")
    if len(sizes) <= 12:
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
    _legend(figure, axes)
    return figure


def rate_distortion(combinations: Sequence[Combination]) -> Figure | None:
    """Draw the mean distortion, −log p(x|z), against the mean rate, the KL.

    All points with the same ELBO lie on one line.

    Returns:
        The chart, or None if no combination has both.
    """
    points = [
        each for each in combinations if {"test/kl", "test/log_likelihood"} <= set(each.figures)
    ]
    if not points:
        return None
    unit = described([job for each in points for job in each.jobs], "test/kl")["unit"]
    unit = unit.replace("$", r"\$")
    figure, axes = _axes(f"rate: KL, {unit}", f"distortion: −log-likelihood, {unit}", len(points))
    for style, each in zip(_STYLES, points, strict=False):
        (rate, rate_error), (likelihood, error) = (
            each.figures["test/kl"],
            each.figures["test/log_likelihood"],
        )
        name = label(each.settings, combinations, each.number)
        axes.errorbar(
            rate,
            -likelihood,
            error,
            rate_error,
            label=name,
            capsize=3,
            markersize=5,
            linestyle="",
            **style,
        )
    axes.margins(0.15)
    axes.set_xlim(left=max(0.0, axes.get_xlim()[0]))  # no KL is less
    (left, right), (below, above) = axes.get_xlim(), axes.get_ylim()
    across, up = np.meshgrid(np.linspace(left, right, 50), np.linspace(below, above, 50))
    lines = axes.contour(
        across,
        up,
        -across - up,
        levels=6,
        colors="0.75",
        linewidths=0.8,
        linestyles="solid",
        zorder=0,
    )
    inner = 0.06 * (above - below)
    edges = [left + share * (right - left) for share in (0.93, 0.07)]  # where no point lies
    crossings = [[(edge, -level - edge) for edge in edges] for level in lines.levels]
    places = [
        next((at for at in each if below + inner < at[1] < above - inner), None)
        for each in crossings
    ]
    axes.clabel(
        lines,
        fmt=lambda level: f"ELBO −{-level:g}",
        fontsize=7,
        colors="0.45",
        manual=[at for at in places if at],
    )
    _legend(figure, axes)
    return figure


def learning_curves(curves: Sequence[tuple[Combination, Curve]], tried: int) -> Figure:
    """Draw the criterion in validation over optimiser steps, with a band of ± 1 standard deviation.

    The frame's lower edge fits the curves after a third of their steps, because their steep
    beginnings would hide how they end.

    Args:
        curves: the curve of each combination that is drawn.
        tried: how many combinations there are.
    """
    jobs = [job for each, _ in curves for job in each.jobs]
    name = _named(jobs, criterion_of(jobs), "validation")
    figure, axes = _axes("optimiser step", name, tried)
    lowest, highest = np.inf, -np.inf
    for style, (each, curve) in zip(_STYLES, curves, strict=False):
        steps, means, deviations = (
            np.array(values, dtype=float) for values in zip(*curve, strict=True)
        )
        name = label(each.settings, [other for other, _ in curves], each.number)
        axes.plot(
            steps, means, label=name, markersize=4, markevery=max(1, len(steps) // 10), **style
        )
        axes.fill_between(
            steps,
            means - deviations,
            means + deviations,
            color=style["color"],
            alpha=0.2,
            linewidth=0,
        )
        lowest, highest = (
            min(lowest, means[len(means) // 3 :].min()),
            max(highest, np.fmax(means + deviations, means).max()),
        )
    space = 0.05 * (highest - lowest or abs(highest) or 20.0)
    axes.set_ylim(lowest - space, highest + space)
    _legend(figure, axes)
    return figure


def _named(jobs: Sequence[Job], name: str, split: str) -> str:
    """Return a figure with its unit, as an axis is called."""
    how = described(jobs, name)
    return ", ".join(filter(None, (f"{split} {how['label']}", how["unit"]))).replace("$", r"\$")


def _axes(across: str, up: str, lines: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=across, ylabel=up)
    which = f"the first {MOST} of {lines} combinations, " if lines > MOST else ""
    axes.set_title(f"{which}mean ± standard deviation over seeds", fontsize=9)
    return figure, axes


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    if len(names) > 1:
        figure.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=2 if max(map(len, names)) <= 35 else 1,
            fontsize=8,
        )
