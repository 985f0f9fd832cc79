"""How fast the project is, as ratios measured side by side: ``make bench``.

python benchmarks/bench.py [--rows step,epoch] [--quick] [--data-dir DIR]

Each row times two sides in turn, A B A B …, so other work on the machine meets both. Its ratio is
the median over the pairs, shown with the lowest and the highest. In most rows a first pair warms up
and isn't counted. Both sides take as many threads as torch takes by itself or ``OMP_NUM_THREADS``
says. Exit status 1: a row failed, or is beyond half of what it must reach.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import sides
from plain import BATCH
from sides import EPOCHS, IMPORTANCE_SAMPLES, JOBS, TARGET_ELBO, Bench, RowFailed, Side
from vae_lightning.runs.directory import make_directory
from vae_lightning.runs.processor import flush_denormals
from vae_lightning.runs.provenance import versions
from vae_lightning.training.trainer import quieten_lightning

# -- the rows, and what they must reach ---------------------------------------------------------


def rate(items: int) -> Callable[[float], str]:
    """Show seconds as items per second."""
    return lambda seconds: f"{items / seconds:,.0f}/s"


def in_seconds(seconds: float) -> str:
    """Show seconds."""
    return f"{seconds:.2f} s"


def in_milliseconds(seconds: float) -> str:
    """Show seconds."""
    return f"{1000 * seconds:.2f} ms"


def in_megabytes(size: float) -> str:
    """Show bytes."""
    return f"{size / 1e6:,.0f} MB"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: what ``ROWS`` takes.
        sides: returns the two sides.
        what: ours, in words.
        against: the other side, in words.
        must: the ratio that must be reached; None: nothing is asked.
        hope: the ratio that is hoped for.
        at_least: the ratio is theirs to ours, and more is better; else ours to theirs, and less is
            better.
        pairs: how many are counted; quick: a quarter.
        warm_up: whether a pair comes before them that isn't counted.
        show: shows a side's figure.
        case: tells rows of one name apart.
    """

    name: str
    sides: Callable[[Bench], tuple[Side, Side]]
    what: str
    against: str
    must: float | None
    hope: float | None
    at_least: bool = True
    pairs: int = 5
    warm_up: bool = True
    show: Callable[[float], str] = in_seconds
    case: str = ""

    @property
    def label(self) -> str:
        """The name with the case."""
        return f"{self.name} {self.case}".strip()


_EPOCHS = (
    "an epoch of default training after the first, in steps of 128: logging, checkpoints and the "
    "epoch's pictures included, with a tenth of the pictures at a run's end; set-up and validation "
    "left out"
)
_STARTUP = {"--help": ["--help"], "--cfg job": ["--cfg", "job"], "typo": ["model.latent_dm=3"]}

ROWS = [
    Row(
        "step",
        functools.partial(sides.rival, kind="torch_flushed"),
        _EPOCHS,
        "a bare loop of the same network, with torch's own layers, fused Adam and denormal numbers "
        "flushed to zero",
        must=0.82,
        hope=0.88,
        pairs=8,
    ),
    Row(
        "step_denormals",
        functools.partial(sides.rival, kind="torch"),
        "as step",
        "the same loop without a word about denormal numbers",
        None,
        None,
        pairs=4,
    ),
    Row(
        "jax_scan",
        functools.partial(sides.rival, kind="jax_scan"),
        "as step",
        "JAX: an epoch's steps in one compiled scan",
        must=0.70,
        hope=0.85,
        pairs=8,
    ),
    Row(
        "jax_loop",
        functools.partial(sides.rival, kind="jax_loop"),
        "as step",
        "JAX: a loop of compiled steps",
        None,
        None,
        pairs=4,
    ),
    *(
        Row(
            name,
            functools.partial(sides.model, overrides=overrides, epochs=3, batches=batches),
            f"a step of {' '.join(overrides)}, counted as in step",
            "a bare loop with the same layers",
            None,
            None,
            pairs=5,
            show=in_milliseconds,
        )
        for name, overrides, batches in (
            ("convolutional", ("model=convolutional",), 100),
            ("iwae", ("experiment=iwae", "data.batch_size=20"), 400),
        )
    ),
    *(
        Row(
            name,
            functools.partial(sides.own_loss, overrides=overrides, epochs=3, batches=batches),
            f"a step of {' '.join(overrides)}, counted as in step",
            "a loop of the model's own loss, fused Adam and noise without a seed",
            must=0.8,
            hope=0.9,
            pairs=5,
            show=in_milliseconds,
        )
        for name, overrides, batches in (
            ("vqvae", ("experiment=vqvae", "callbacks=minimal"), 100),
            ("prior", ("experiment=prior", "callbacks=minimal"), 60),
            ("musicvae", ("experiment=melody_bound", "callbacks=minimal"), 40),
        )
    ),
    Row(
        "products",
        sides.products,
        "as step",
        "a step's matrix products, both ways",
        0.42,
        0.55,
        pairs=8,
        show=rate(BATCH),
    ),
    Row(
        "graph",
        sides.graph,
        "as step",
        "the bare loop's step replayed as a CUDA graph",
        None,
        None,
        pairs=8,
        show=rate(BATCH),
    ),
    Row(
        "epoch",
        sides.epoch,
        "an epoch of experiment=pytorch_example with its test pass, the rest counted as in step",
        "the PyTorch example's algorithm: PIL images, DataLoader, default Adam; no pictures",
        must=4.2,
        hope=5,
    ),
    Row(
        "speedrun",
        sides.speedrun,
        "the whole process of experiment=speedrun, whose test ELBO must be "
        f"{TARGET_ELBO} or better",
        f"the example's whole process over {EPOCHS} epochs (quick: over one, and that epoch's "
        "seconds for each of the others)",
        must=5,
        hope=7,
        pairs=3,
        warm_up=False,
    ),
    Row(
        "log_marginal",
        sides.log_marginal,
        f"log p(x) of 200 test images (quick: 20) with {IMPORTANCE_SAMPLES:,} samples each, by "
        "measure.evaluate",
        "the decoder's matrix products of as many latents",
        must=0.61,
        hope=0.8,
    ),
    Row(
        "samples",
        sides.samples,
        "100,000 images (quick: 20,000) drawn from the prior by VAE.sample, on the CPU",
        "the decoder's matrix products of as many latents",
        must=0.5,
        hope=0.7,
        show=rate(1),
    ),
    *(
        Row(
            "startup",
            functools.partial(sides.startup, arguments=arguments, expected=int(case == "typo")),
            f"python -m vae_lightning.train {' '.join(arguments)}",
            "python -c 'import hydra'",
            must=3,
            hope=2,
            at_least=False,
            pairs=8,
            case=case,
        )
        for case, arguments in _STARTUP.items()
    ),
    Row(
        "first_line",
        sides.first_line,
        "the first line that train shows on a terminal",
        "a second",
        must=2,
        hope=1,
        at_least=False,
    ),
    Row(
        "first_step",
        sides.first_step,
        "a default run, from the start of its process to the end of its first step",
        "python -c 'import torch, lightning'",
        must=1.5,
        hope=1.2,
        at_least=False,
    ),
    Row(
        "memory",
        sides.memory,
        "peak resident memory of a default run of one epoch, test and pictures included",
        "that of the example, one epoch",
        must=1.12,
        hope=1.0,
        at_least=False,
        pairs=2,
        warm_up=False,
        show=in_megabytes,
    ),
    Row(
        "logging",
        sides.logging,
        "a step, counted as in step, with trainer.log_every_n_steps=1",
        "with trainer.log_every_n_steps=50",
        must=1.10,
        hope=1.03,
        at_least=False,
        show=in_milliseconds,
    ),
    *(
        Row(
            "joblib",
            functools.partial(sides.joblib, overrides=overrides),
            f"{JOBS} runs of a sweep on two cores by hydra/launcher=joblib, {' '.join(overrides)}",
            "the same sweep in order",
            must=must,
            hope=None,
            pairs=1,
            warm_up=False,
            show=lambda seconds: f"{3600 * JOBS / seconds:.0f}/h",
            case=case,
        )
        for case, overrides, must in (
            ("", ("trainer.max_epochs=20",), 1.3),  # as many as take a minute
            ("small", ("model.hidden_dims=[100]", "trainer.max_epochs=60"), 1.6),
        )
    ),
    Row(
        "scaling",
        sides.scaling,
        "a step, counted as in step, with the training images ten times over",
        "with the training images once, as many steps",
        must=1.05,
        hope=None,
        at_least=False,
        show=in_milliseconds,
    ),
]

Verdict = Literal["", "hope", "must", "missed", "collapsed"]


def judge(ratio: float, must: float | None, hope: float | None, at_least: bool) -> Verdict:
    """Say what a ratio reaches; ``collapsed`` is beyond half of what it must."""
    if must is None:
        return ""

    def reaches(bound: float) -> bool:
        return ratio >= bound if at_least else ratio <= bound

    if hope is not None and reaches(hope):
        return "hope"
    if reaches(must):
        return "must"
    return "missed" if reaches(must / 2 if at_least else 2 * must) else "collapsed"


def choose(names: str, quick: bool = False) -> list[Row]:
    """Return the rows of some names, with commas between them; without names, all that run here.

    Raises:
        ValueError: no row is called so.
    """
    wanted = [name for name in re.split(r"[,\s]+", names) if name]
    for name in wanted:
        if name not in (known := list(dict.fromkeys(row.name for row in ROWS))):
            raise ValueError(
                f"ROWS={names}: no row is called {name}; choose from {', '.join(known)}"
            )
    # Without a GPU there are no graphs; JAX is an extra of the benchmark; in seconds a sweep does
    # little but import torch.
    has_jax = importlib.util.find_spec("jax") is not None
    left_out = {"graph": not torch.cuda.is_available(), "joblib": quick}
    left_out |= {"jax_scan": not has_jax, "jax_loop": not has_jax}
    return [
        row for row in ROWS if (row.name in wanted if wanted else not left_out.get(row.name, False))
    ]


# -- measuring ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What a row came to: both sides and the ratio of each pair, in seconds or bytes."""

    ours: list[float]
    theirs: list[float]
    ratios: list[float]
    median: float
    verdict: Verdict


def measure(row: Row, bench: Bench) -> Result:
    """Run a row's sides in turn.

    Raises:
        RowFailed: a side could not be run.
    """
    ours, theirs = row.sides(bench)
    if row.warm_up:
        ours(), theirs()
    pairs = [
        (ours(), theirs()) for _ in range(max(1, row.pairs // 4) if bench.quick else row.pairs)
    ]
    ratios = [other / own if row.at_least else own / other for own, other in pairs]
    median = statistics.median(ratios)
    own, other = (list(side) for side in zip(*pairs, strict=True))
    return Result(own, other, ratios, median, judge(median, row.must, row.hope, row.at_least))


def machine() -> dict[str, Any]:
    """Return what the figures depend on beside the code."""
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        **versions(),
    }


def processor() -> str:
    """Return the model of the CPU."""
    with contextlib.suppress(OSError):
        if found := re.search(
            r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        ):
            return found[1]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(
            ["sysctl", "-n", "machdep.cpu.brand_string"], text=True
        ).strip()
    return platform.processor() or platform.machine()


# -- reporting ----------------------------------------------------------------------------------

_LAYOUT = "{:<18}{:>12}{:>12}{:>8}  {:<14}{:>7}{:>7}  {}"


def line(row: Row, result: Result) -> str:
    """Return a row of the table."""
    shown = [row.show(statistics.median(side)) for side in (result.ours, result.theirs)]
    bounds = [
        "" if bound is None else f"{'≥' if row.at_least else '≤'} {bound:g}"
        for bound in (row.must, row.hope)
    ]
    spread = f"{min(result.ratios):.2f} – {max(result.ratios):.2f}"
    return _LAYOUT.format(
        row.label, *shown, f"{result.median:.2f}", spread, *bounds, result.verdict
    )


def describe(here: dict[str, Any], quick: bool) -> str:
    """Return a line on the machine."""
    parts = [
        f"{here['cpu']}, {here['cores']} cores, {here['threads']} threads, load {here['load']}",
        *([here["gpu"]] if here["gpu"] else []),
        f"Python {here['python']}, torch {here['torch']}, lightning {here['lightning']}",
        *(["quick"] if quick else []),
    ]
    return "; ".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table row by row, and write it as it grows.

    The file is ``outputs/benchmarks/<date>_<time>/results.json``.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--rows", default="", help="names, with commas between them; all by default"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="less of everything, in a few minutes: shows a collapse only",
    )
    parser.add_argument(
        "--data-dir", help="where MNIST lies or will be put; by default the user's cache folder"
    )
    typed = parser.parse_args(arguments)
    quieten_lightning()
    flush_denormals()
    failed, told = False, []
    with tempfile.TemporaryDirectory() as directory:
        try:
            rows = choose(typed.rows, typed.quick)
            bench = Bench(typed.quick, typed.data_dir, Path(directory))
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
        here, file = machine(), make_directory(Path("outputs/benchmarks")) / "results.json"
        print(describe(here, typed.quick), "\n")
        print(
            _LAYOUT.format("row", "ours", "against", "ratio", "spread", "must", "hope", "reached"),
            flush=True,
        )
        for row in rows:
            entry = {
                "row": row.label,
                "what": row.what,
                "against": row.against,
                "must": row.must,
                "hope": row.hope,
            }
            try:
                result = measure(row, bench)
                failed = failed or result.verdict == "collapsed"
                print(line(row, result), flush=True)
                told.append(entry | asdict(result))
            except RowFailed as error:
                failed = True
                print(f"{row.label:<18}failed: {error}", flush=True)
                told.append(entry | {"failed": str(error)})
            file.write_text(
                json.dumps(
                    {"machine": here, "quick": typed.quick, "rows": told, "notes": bench.notes},
                    indent=2,
                )
                + "\n"
            )
    print(
        "\nA ratio with ≥ is the other side's time to ours, one with ≤ ours to the other side's: "
        "the median over the pairs."
    )
    for note in bench.notes:
        print(f"  {note}")
    for row in rows:
        print(f"  {row.label}: {row.what}\n    against {row.against}")
    print(f"\n{file}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
