"""What a study's directory and its database hold, checked before it is used.

It may come from elsewhere, or be damaged: nothing here trusts a type, a number or a name in it.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState

from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import printable
from vae_lightning.errors import ConfigurationError
from vae_lightning.tuning.search_space import Space

TRACES = ("trials", ".hydra", "tune.log", "experiment")
"""What lies in the directory of a study that was begun; the study was recorded before."""

_PARTS = ("search", "model", "optimizer", "data", "trainer", "callbacks", "logger")
_SINGLE = ("seed", "objectives", "pruning")


@contextmanager
def refusing(directory: Path, what: str) -> Iterator[None]:
    """Turn whatever fails in the body into a line that says what of a study can't be used.

    Raises:
        ConfigurationError: something failed.
    """
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        first, _, _ = str(error).strip().partition("\n")
        problem = printable(first[:200]) or type(error).__name__
        raise ConfigurationError(
            f"study={directory}: {what} can't be used ({problem}); "
            "put back a copy that can, or type another study="
        ) from error


@dataclass(frozen=True)
class Kept:
    """What a study's ``.hydra/`` says.

    Attributes:
        storage: the address of its database, without a password; None: its journal.
        data_dir: the folder of its data.
        name: what it is called in its database.
    """

    storage: str | None
    data_dir: str | None
    name: str


def read_kept(directory: Path) -> Kept | None:
    """Read a study's ``.hydra/``; None: it has none yet.

    Raises:
        ConfigurationError: it isn't one that a search wrote.
    """
    files = [directory / ".hydra" / f"{name}.yaml" for name in ("config", "hydra")]
    if not files[0].exists():
        return None
    with refusing(directory, ".hydra/ in it"):
        config, hydra = (OmegaConf.load(each) if each.exists() else None for each in files)
        container: Any = OmegaConf.to_container(config, resolve=False)
        storage, data_dir = container["storage"], OmegaConf.select(config, "data.dir")  # type: ignore[arg-type]
        runtime = OmegaConf.select(hydra, "hydra.runtime") if hydra else None
        # The directory in which the study was begun has its name: it may have been renamed since.
        name = Path(runtime.output_dir).name if runtime else ""
        if not all(each is None or isinstance(each, str) for each in (storage, data_dir)):
            raise TypeError("storage and data.dir must be texts")
        if data_dir is not None:
            data_dir = str(Path(runtime.cwd if runtime else "") / Path(expanded(data_dir)))
        return Kept(storage, data_dir, name or directory.resolve().name)


def check_journal(file: Path) -> bool:
    """Check that each line of a journal that was written to its end is one of Optuna's.

    Optuna would pass over a damaged last line, and could read nothing once others follow.

    Returns:
        Whether there is a line.

    Raises:
        ValueError: one isn't.
    """
    number = 0
    with file.open("rb") as journal:
        for number, line in enumerate(journal, 1):
            if not line.endswith(b"\n"):  # being written, or of a process that was killed
                return number > 1
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} is damaged") from error
            if not isinstance(entry, dict):
                raise ValueError(f"line {number} is damaged")
    return number > 0


def check_replacements(trials: Sequence[FrozenTrial]) -> None:
    """Check what trials say of each other: each may replace one before it.

    Raises:
        ValueError: one says otherwise.
    """
    for trial in trials:
        if not isinstance(trial.user_attrs, dict):
            raise ValueError(f"trial {trial.number} has damaged attributes")
        replaced = trial.user_attrs.get("replaces")
        if "replaces" in trial.user_attrs and not (
            type(replaced) is int and 0 <= replaced < trial.number
        ):
            raise ValueError(f"trial {trial.number} can't replace {replaced!r:.50}")


def check_trials(trials: Sequence[FrozenTrial], space: Space, objectives: int) -> None:
    """Check that the trials of a study are some of a search.

    Args:
        trials: the trials.
        space: what varies.
        objectives: by how many figures trials are compared.

    Raises:
        ValueError: one isn't; errors of other types if it isn't even nearly one.
    """
    for trial in trials:
        whole = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        drawn = dict(trial.params)
        if trial.distributions.keys() != drawn.keys() or any(
            space.distributions.get(key) != each for key, each in trial.distributions.items()
        ):
            raise ValueError(f"trial {trial.number} varies other values than the search")
        for key, value in (*drawn.items(), *trial.system_attrs.get("fixed_params", {}).items()):
            distribution = space.distributions[key]
            if not distribution._contains(distribution.to_internal_repr(value)):
                raise ValueError(f"trial {trial.number} has {key} outside its range")
        if any(
            type(step) is not int or not _is_number(value)
            for step, value in trial.intermediate_values.items()
        ):
            raise ValueError(f"trial {trial.number} has damaged figures")
        attributes = trial.user_attrs
        problem = attributes.get("problem")
        if not isinstance(problem, str | None) or (attributes.get("refused") and problem is None):
            raise ValueError(f"trial {trial.number} failed without a reason")
        if not whole:
            continue
        figures = attributes.get("figures")
        if (
            drawn.keys() != space.distributions.keys()
            or not isinstance(figures, dict)
            or not _is_number(figures.get("criterion"))
            or type(figures.get("epoch")) is not int
        ):
            raise ValueError(f"trial {trial.number} lacks its values or figures")
        if trial.state == TrialState.COMPLETE and (
            trial.values is None
            or len(trial.values) != objectives
            or not all(_is_number(each) and not math.isnan(each) for each in trial.values)
        ):
            raise ValueError(f"trial {trial.number} lacks its result")


def check_plan(plan: Any) -> None:
    """Check the form of what trials have in common, as ``search_space.plan_of`` makes it.

    Raises:
        ValueError: it has another.
    """
    if not isinstance(plan, dict) or plan.keys() != {"config", "overrides", "chosen"}:
        raise ValueError("it has no plan of a search")
    config, overrides, chosen = plan["config"], plan["overrides"], plan["chosen"]
    if (
        not isinstance(config, dict)
        or not all(isinstance(config.get(each), dict) for each in _PARTS)
        or not all(each in config for each in _SINGLE)
        or not isinstance(overrides, list)
        or not all(isinstance(each, str) for each in overrides)
        or not isinstance(chosen, dict)
        or not all(isinstance(each, str) for each in (*chosen, *chosen.values()))
    ):
        raise ValueError("its plan is not one of a search")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
