"""Typed settings that another setting makes idle: a line says that they change nothing."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

_USED_WITH: tuple[tuple[str, str, tuple[Any, ...]], ...] = (
    ("model.channels", "model.network", ("convolutional",)),
    ("model.pixel_scale", "model.likelihood", ("gaussian", "discretized_logistic")),
    ("model.kl_schedule_steps", "model.kl_schedule", ("linear", "cyclical")),
    ("optimizer.schedule_passes", "optimizer.schedule", ("iwae",)),
    ("columns", "form", ("grid",)),
    ("samples", "metrics", ("log_marginal",)),
    ("side", "what", ("manifold",)),
)
"""A setting, the one that decides, and the values of that one with which the first is used."""


def idle_settings(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Return a line for each typed setting that changes nothing.

    They aren't refused: a script may type them beside each of several choices.
    """
    typed = {each.lstrip("+").partition("=")[0] for each in overrides}
    lines = []
    for key, other, used in _USED_WITH:
        if key not in typed:
            continue
        chosen = OmegaConf.select(config, other)
        choices = chosen if OmegaConf.is_list(chosen) else [chosen]
        own = any("." in str(each) for each in choices)  # a class of the user's
        if chosen is None or own or set(choices) & set(used):
            continue
        value = OmegaConf.select(config, key)
        line = f"{key}={value}: changes nothing with {other}={chosen}"
        lines.append(f"{line}; it is of {' and '.join(f'{other}={each}' for each in used)}")
    return lines
