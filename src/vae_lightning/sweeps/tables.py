"""Summaries in words and tables: for the terminal, as Markdown and as CSV.

This module doesn't import torch.
"""

import csv
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vae_lightning.configuration.quoting import markdown as escaped
from vae_lightning.configuration.quoting import printable, spreadsheet_cell
from vae_lightning.sweeps.ledger import written
from vae_lightning.sweeps.summaries import (
    FINISHED,
    Combination,
    Job,
    Mean,
    criterion_of,
    described,
    differing_keys,
)

_COMPARED = (
    "data",
    "binarization",
    "dequantize",
    "likelihood",
    "samples",
    "evaluation_seed",
    "test_examples",
)
_WIDTH = 100


class Row(NamedTuple):
    """What is told of a job that isn't counted."""

    state: str
    job: str
    settings: str
    problem: str


def text_of(value: Any) -> str:
    """Return a value of the configuration as it is typed, in a line."""
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else printable(value)


def label(
    settings: Mapping[str, Any], combinations: Sequence[Combination], number: int | None = None
) -> str:
    """Return settings as a line that fits below a chart.

    Keys are cut to their last words, as many as tell all keys of the chart apart. If the line is
    too long, it is cut and starts with the number.
    """
    keys = {key for each in combinations for key in each.settings}
    text = ", ".join(f"{_short(key, keys)}={text_of(settings[key])}" for key in settings)
    if len(text) > 50:
        text = f"no. {number}: {text[:40]}…" if number else f"{text[:49]}…"
    return text.replace("$", r"\$")  # between two of them matplotlib reads mathematics


def _short(key: str, keys: Iterable[str]) -> str:
    """Return the last words of a key that no other key ends with.

    They don't start with an underscore: matplotlib leaves such lines out of a legend.
    """
    words = key.split(".")
    for start in range(len(words) - 1, 0, -1):
        end = ".".join(words[start:])
        others = (other for other in keys if other != key)
        if not end.startswith("_") and not any(f".{each}".endswith(f".{end}") for each in others):
            return end
    return key


def table(combinations: Sequence[Combination], sort: str) -> str:
    """Return a row for each combination, at most 100 characters wide if the settings allow it."""
    figures = {name: _aligned(cells) for name, cells in _cells(combinations, sort).items()}
    counts = [str(len(each.jobs)) for each in combinations]
    columns = [
        ["n", *counts],
        *([_label(combinations, name), *cells] for name, cells in figures.items()),
    ]
    columns = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    tokens = [
        [f"{key}={text_of(value)}" for key, value in each.settings.items()] for each in combinations
    ]
    left = max(30, _WIDTH - sum(len(column[0]) + 2 for column in columns) - 7)
    wrapped = [["combination"], *(_wrapped(row, left) for row in tokens)]
    width = max(len(line) for lines in wrapped for line in lines)
    rows = []
    for number, (first, *rest) in enumerate(wrapped):
        cells = [
            str(number or "").rjust(3),
            first.ljust(width),
            *(column[number] for column in columns),
        ]
        rows += [f"  {'  '.join(cells)}".rstrip(), *(f"{'':7}{line}" for line in rest)]
    return "\n".join(rows)


def _wrapped(tokens: Sequence[str], width: int) -> list[str]:
    cut = [each if len(each) <= 4 * _WIDTH else f"{each[:_WIDTH]}…" for each in tokens]
    lines = textwrap.wrap(" ".join(cut), width, break_long_words=False, break_on_hyphens=False) or [
        "all runs"
    ]
    return lines if len(lines) <= 4 else [*lines[:3], f"… {len(tokens)} keys: summary.csv"]


def _jobs(combinations: Sequence[Combination]) -> list[Job]:
    return [job for each in combinations for job in each.jobs]


def _label(combinations: Sequence[Combination], name: str) -> str:
    """Return the heading of a figure's column."""
    jobs = _jobs(combinations)
    return f"{'test ' * (name == criterion_of(jobs))}{described(jobs, name)['label']}"


def _cells(combinations: Sequence[Combination], sort: str) -> dict[str, list[Mean | None]]:
    """Return the columns of figures that are shown: the criterion, its terms, what sorts."""
    jobs = _jobs(combinations)
    names = dict.fromkeys([criterion_of(jobs), *(term for job in jobs for term in job.terms), sort])
    columns = {name: [each.figures.get(name) for each in combinations] for name in names}
    return {name: column for name, column in columns.items() if any(column)}


def _aligned(cells: Sequence[Mean | None]) -> list[str]:
    """Return means and deviations one below the other."""
    means = [written(cell[0]) if cell else "" for cell in cells]
    deviations = ["" if cell is None or cell[1] is None else written(cell[1]) for cell in cells]
    width = max(map(len, deviations))
    return [
        mean.rjust(max(map(len, means)))
        + (f" ± {deviation:>{width}}" if deviation else " " * (width + 3) * bool(width))
        for mean, deviation in zip(means, deviations, strict=True)
    ]


def remarks(combinations: Sequence[Combination]) -> list[str]:
    """Return what readers must know about the figures: what they are, and which don't compare."""
    counted = [job for each in combinations for job in each.jobs]
    unit = described(counted, criterion_of(counted))["unit"]
    said = ["mean ± sample standard deviation over the n seeds of a combination"]
    said[0] += f", in {unit}" * bool(unit)
    said += list(dict.fromkeys(printable(job.protocol.get("meaning")) for job in counted))
    for key in _COMPARED:
        values = dict.fromkeys(text_of(job.protocol.get(key)) for job in counted)
        if len(values) > 1:
            said.append(f"not all compare with each other, for {key} differs: {'; '.join(values)}")
    for each in combinations:
        incomplete = dict.fromkeys(
            name for job in each.jobs for name in job.figures if name not in each.figures
        )
        if incomplete:
            said.append(
                f"not averaged, as not all jobs of combination {each.number} have it: "
                f"{', '.join(incomplete)}"
            )
    return said


def not_counted(jobs: Sequence[Job]) -> list[Row]:
    """Return a row for each job that no mean holds."""
    keys = differing_keys(jobs)[:4]
    rows = []
    for job in jobs:
        if job.state != FINISHED:
            known = (
                {
                    **{key: job.settings[key] for key in keys if key in job.settings},
                    "seed": job.seed,
                }
                if job.settings
                else {}
            )
            settings = " ".join(f"{key}={text_of(value)}" for key, value in known.items())
            rows.append(Row(job.state, job.name, settings, job.problem))
    return rows


def listing(rows: Sequence[Row], jobs: int) -> str:
    """Return what isn't counted as lines for the terminal."""
    lines = [f"Not counted, {len(rows)} of {jobs} jobs:"]
    for row in rows:
        lines.append(f"  {row.state:<11}  {row.job}  {row.settings}".rstrip()[: 4 * _WIDTH])
        lines += textwrap.wrap(
            row.problem, _WIDTH, initial_indent=" " * 15, subsequent_indent=" " * 15
        )
    return "\n".join(lines)


def markdown(
    combinations: Sequence[Combination],
    sort: str,
    said: Sequence[str],
    rows: Sequence[Row],
    charts: Sequence[str],
) -> str:
    """Return a page with the table, remarks on it, the jobs that don't count, and the charts."""
    keys = list(dict.fromkeys(key for each in combinations for key in each.settings))
    figures = _cells(combinations, sort)
    labels = [_label(combinations, name) for name in figures]
    lines = ["# Summary", "", _row(map(escaped, [*keys, "n", *labels]))]
    lines.append(_row(["---"] * len(keys) + ["---:"] * (1 + len(figures))))
    for number, each in enumerate(combinations):
        cells = [_aligned([column[number]])[0] for column in figures.values()]
        values = [*_values(each.settings, keys), str(len(each.jobs)), *cells]
        lines.append(_row(map(escaped, values)))
    lines += ["", f"Sorted by {escaped(sort)}.", "", *(f"- {escaped(each)}" for each in said)]
    if rows:
        lines += [
            "",
            "## Not counted",
            "",
            _row(Row._fields),
            _row(["---"] * len(Row._fields)),
            *(_row(map(escaped, row)) for row in rows),
        ]
    for name in charts:
        lines += ["", f"![{name.replace('_', ' ')}]({name}.png)"]
    return "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _values(settings: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    return [text_of(settings[key]) if key in settings else "" for key in keys]


def combinations_csv(combinations: Sequence[Combination]) -> str:
    """Return a row for each combination.

    It holds the settings, the number of jobs, and mean and deviation of each figure.
    """
    keys = dict.fromkeys(key for each in combinations for key in each.settings)
    figures = dict.fromkeys(name for each in combinations for name in each.figures)
    rows: list[list[Any]] = [
        [*keys, "n", *(f"{name} {what}" for name in figures for what in ("mean", "std"))]
    ]
    for each in combinations:
        means = [value for name in figures for value in each.figures.get(name, (None, None))]
        rows.append([*_values(each.settings, keys), len(each.jobs), *means])
    return _csv(rows)


def jobs_csv(jobs: Sequence[Job]) -> str:
    """Return a row for each job, counted or not."""
    keys = differing_keys(jobs)
    figures = dict.fromkeys(name for job in jobs for name in job.figures)
    rows: list[list[Any]] = [["job", "state", *keys, "seed", *figures, "problem"]]
    for job in jobs:
        values = [job.figures.get(name) for name in figures]
        rows.append(
            [job.name, job.state, *_values(job.settings, keys), job.seed, *values, job.problem]
        )
    return _csv(rows)


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC)  # also for those that split at ";"
    for row in rows:
        writer.writerow(spreadsheet_cell(each) if isinstance(each, str) else each for each in row)
    return text.getvalue()
