"""What a search may go by: figures of the validation, and two made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vae_lightning.errors import ConfigurationError
from vae_lightning.models.base import Figure, Model
from vae_lightning.training.trainer import CRITERION
from vae_lightning.tuning.study import Direction


@dataclass(frozen=True)
class Objective:
    """A number by which trials are compared.

    Attributes:
        name: as it is typed.
        figure: how it is written, and which way is better.
        source: the model's figure that it is made of.
        sign: what that figure is multiplied by.
    """

    name: str
    figure: Figure
    source: str
    sign: int = 1

    @property
    def direction(self) -> Direction:
        """Which way is better, as Optuna says it."""
        return "minimize" if self.figure.better == "min" else "maximize"

    def is_better(self, value: float, other: float) -> bool:
        """Return whether a value is better than another."""
        return value < other if self.direction == "minimize" else value > other

    def of(self, figures: Mapping[str, float]) -> float:
        """Return the objective, given the figures of a validation by name."""
        return self.sign * figures[self.source]


RATE_DISTORTION = {
    "rate": Objective("rate", Figure("rate", better="min"), "kl"),
    "distortion": Objective("distortion", Figure("distortion", better="min"), "log_likelihood", -1),
}
"""What a code costs, and what is lost: −log p(x|z)."""


def read_objectives(names: Sequence[str], model: Model) -> list[Objective]:
    """Return the objectives of a search.

    Args:
        names: ``[criterion]``, the figure by which models compare; the name of one of its
            figures; or ``[rate, distortion]``.
        model: whose figures they are.

    Raises:
        ConfigurationError: the model has no such figures, or neither way is better.
    """
    if list(names) == list(RATE_DISTORTION):
        found = list(RATE_DISTORTION.values())
        if all(each.source in model.figures for each in found):
            return found
    if len(names) == 1:
        name = model.comparison if names[0] == CRITERION else names[0]
        if name in model.figures and model.figures[name].better != "none":
            return [Objective(name, model.figures[name], name)]
    known = [name for name, figure in model.figures.items() if figure.better != "none"]
    typed = f"objectives=[{','.join(names)}]"
    raise ConfigurationError(
        f"{typed}: must be [criterion], one of {', '.join(f'[{each}]' for each in known)}, or "
        "[rate,distortion] of a model with kl and log_likelihood"
    )
