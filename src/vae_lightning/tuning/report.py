"""What a search ends with: a table of the best trials, the recipe of the best one, and pictures."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from vae_lightning.configuration.quoting import command, override, printable
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import atomic_files
from vae_lightning.tuning import search_space
from vae_lightning.tuning.objectives import Objective
from vae_lightning.tuning.study import Study
from vae_lightning.visualization import plots

_SHOWN = 10  # of the best trials
_TELLING = 50  # trials from which importances mean something: PED-ANOVA looks at the best tenth


def tell(
    study: Study,
    plan: dict[str, Any],
    searched: search_space.Space,
    objectives: Sequence[Objective],
    criterion: Objective,
    data_dir: str | None,
) -> str:
    """Write the recipe and the pictures into a study's directory, and return what is to be said.

    Args:
        study: the study.
        plan: what its trials have in common, as ``search_space.plan_of`` has it.
        searched: what they differ in.
        objectives: what they are compared by.
        criterion: what the best one is chosen by.
        data_dir: the folder of the data, to be typed with the recipe.

    Raises:
        ConfigurationError: no trial was completed, and none is being trained.
    """
    trials = study.trials()
    completed = [each for each in trials if each.state == TrialState.COMPLETE]
    failed = [each for each in trials if each.state == TrialState.FAIL]
    running = sum(each.state == TrialState.RUNNING for each in trials)
    if not completed and not running:
        problem = failed[-1].user_attrs.get("problem") if failed else "a trial that was pruned"
        raise ConfigurationError(
            f"none of {len(trials)} trials was completed; the last: {printable(problem)}"
        )
    lines = [
        f"trial {each.number} failed: {printable(each.user_attrs.get('problem'))}"
        for each in failed
    ]
    if pruned := sum(each.state == TrialState.PRUNED for each in trials):
        lines.append(
            f"Ended early, by what the others had come to by then: {pruned} of {len(trials)}"
        )
    if running:
        lines.append(
            "Still being trained by other workers, "
            f"the last of which says what follows anew: {running}"
        )
    if completed:
        sign = -1 if criterion.direction == "minimize" else 1
        best = max(completed, key=lambda each: sign * each.user_attrs["figures"]["criterion"])
        again = _write_recipe(study, plan, searched, criterion, best, len(trials))
        data = [override("data.dir", data_dir)] if data_dir else []
        lines += [*([""] if lines else []), *_table(study, searched, objectives, completed), ""]
        lines += [
            f"best        trial {best.number}, as a recipe: {command('train', *again, *data)}",
            *_draw(study, trials, criterion),
        ]
        lines += ["Nothing was chosen by the test images, and none of these figures is of them."]
    return "\n".join(f"  {line}" if line else "" for line in lines)


def shown(value: Any) -> str:
    """Return a value in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else printable(value).replace(" ", "")


def _table(
    study: Study,
    searched: search_space.Space,
    objectives: Sequence[Objective],
    completed: Sequence[FrozenTrial],
) -> list[str]:
    """Return the best trials as lines of a table.

    With two objectives those are the trials that no other beats in both.
    """
    names = [each.figure.label for each in objectives]
    if len(names) > 1:
        best = sorted(study.study.best_trials, key=lambda each: each.values)
    else:
        upwards = objectives[0].direction == "maximize"
        best = sorted(completed, key=lambda each: each.values, reverse=upwards)
    rows = [["trial", *names, *searched.distributions, "directory"]]
    for each in best[:_SHOWN]:
        directory = study.directory_of(each)
        place = printable(directory) if directory.is_dir() else "elsewhere"
        figures, values = (
            (f"{value:.2f}" for value in each.values),
            searched.values(each.params).values(),
        )
        rows.append([str(each.number), *figures, *map(shown, values), place])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def _write_recipe(
    study: Study,
    plan: dict[str, Any],
    searched: search_space.Space,
    criterion: Objective,
    best: FrozenTrial,
    count: int,
) -> list[str]:
    """Write ``experiment/best.yaml``, and return what to type after ``train`` to train it."""
    arguments = ["--config-dir", str(study.directory), "experiment=best"]
    figures = best.user_attrs["figures"]
    reached = f"{criterion.figure.label} {figures['criterion']:.2f}, in epoch {figures['epoch']}"
    remark = f"Trial {best.number}, of {count}: validation {reached}."
    config = search_space.of_a_trial(plan["config"], searched.values(best.params), None)
    recipe = search_space.recipe(
        config, plan["chosen"], [remark, f"  {command('train', *arguments)}"]
    )
    folder = study.directory / "experiment"
    folder.mkdir(exist_ok=True)
    atomic_files.write(folder / "best.yaml", recipe.encode())
    return arguments


def _draw(study: Study, trials: Sequence[FrozenTrial], criterion: Objective) -> list[str]:
    """Draw the pictures, and return lines that say what they show and where they are."""
    completed = [each for each in trials if each.state == TrialState.COMPLETE]
    pictures = {
        "history": plots.search_history(
            [
                (
                    each.number,
                    each.user_attrs["figures"]["criterion"],
                    each.state == TrialState.PRUNED,
                )
                for each in trials
                if each.state in (TrialState.COMPLETE, TrialState.PRUNED)
            ],
            criterion.figure.label,
            criterion.direction == "maximize",
        )
    }
    lines = []
    if len(completed) > 1:
        with warnings.catch_warnings(action="ignore"):  # of too few trials, which is said below
            shares = optuna.importance.get_param_importances(
                study.study, evaluator=PedAnovaImportanceEvaluator()
            )
        hint = (
            f", by {len(completed)} trials only: {_TELLING} or more would tell"
            if len(completed) < _TELLING
            else ""
        )
        pictures["importance"] = plots.importances(shares, hint)
        lines.append(
            f"importance  {', '.join(f'{key} {share:.2f}' for key, share in shares.items())}{hint}"
        )
    if len(study.study.directions) == 2:
        points = [(each.number, *each.values) for each in completed]
        pictures["front"] = plots.front(points, {each.number for each in study.study.best_trials})
    for name, picture in pictures.items():
        drawn = io.BytesIO()
        picture.savefig(drawn, format="png", dpi=150)
        atomic_files.write(study.directory / f"{name}.png", drawn.getbuffer())
    return [
        *lines,
        f"pictures    {', '.join(printable(study.directory / f'{name}.png') for name in pictures)}",
    ]
