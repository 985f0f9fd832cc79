"""Compare the numbers of two checkouts: weights after 200 steps, test figures, pictures, codes.

    python benchmarks/same_numbers.py OLD NEW [--work DIR]

Each case is a command that both checkouts run, with the packages of this environment. Everything
that the runs leave is compared bit by bit: weights, figures, pixels, arrays. The exit status is 1
if anything differs. ``--work`` keeps the runs; a case that has run there is not run again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

STEPS = "trainer.max_steps=200"
TRAININGS = {
    "default": [STEPS],
    "two_latents": [STEPS, "model.latent_dim=2"],
    "convolutional": [STEPS, "model=convolutional"],
    "conditional": [STEPS, "model=conditional"],
    "iwae": [STEPS, "model.objective=iwae", "model.num_samples=5"],
    "sgvb_a": [STEPS, "model.objective=sgvb_a", "model.num_samples=2"],
    "stochastic": [STEPS, "data.binarization=stochastic"],
    "gaussian": [
        STEPS,
        "model.likelihood=gaussian",
        "model.pixel_scale=learnt",
        "data.dequantize=true",
    ],
    "logistic": [STEPS, "model.likelihood=discretized_logistic", "model.pixel_scale=per_pixel"],
    "schedule": [
        STEPS,
        "model.kl_schedule=linear",
        "model.kl_schedule_steps=150",
        "model.free_bits=0.1",
    ],
    "speedrun": [STEPS, "experiment=speedrun"],
    "example": [STEPS, "experiment=pytorch_example"],
    "aevb": [STEPS, "experiment=aevb"],
    "jaanli": [STEPS, "experiment=jaanli"],
    "ten_epochs": [],
}
"""Trainings by name, with their overrides."""

COMMANDS = {
    "evaluated": ("evaluate", "default", ["samples=50", "data.limit_test=500"]),
    "evaluated_iwae": (
        "evaluate",
        "iwae",
        ["metrics=[bound,log_marginal]", "samples=50", "data.limit_test=200"],
    ),
    "evaluated_conditional": (
        "evaluate",
        "conditional",
        ["metrics=[bound,sample_quality]", "data.limit_test=500"],
    ),
    "evaluated_static": ("evaluate", "default", ["metrics=[bound]", "data.binarization=static"]),
    "sampled": ("sample", "default", ["count=50", "form=npy", "temperature=0.8", "seed=3"]),
    "sampled_conditional": ("sample", "conditional", ["count=50", "form=npy"]),
    "encoded": ("encode", "default", []),
    "drawn": ("visualize", "two_latents", []),
    "drawn_conditional": ("visualize", "conditional", ["label=3"]),
}
"""Commands on a trained run by name: the command, the run, the overrides."""


def run(checkout: Path, command: str, arguments: list[str], directory: Path) -> None:
    """Run a command of a checkout into a directory, unless it has run there."""
    if (directory / ".done").exists():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "TQDM_DISABLE": "1"}
    line = [
        sys.executable,
        "-m",
        f"vae_lightning.{command}",
        *arguments,
        f"hydra.run.dir={directory}",
    ]
    finished = subprocess.run(
        line, env=environment, cwd=directory.parent, capture_output=True, text=True
    )
    if finished.returncode:
        sys.exit(
            f"{checkout}: {' '.join(line)}\n{finished.stdout[-2000:]}{finished.stderr[-2000:]}"
        )
    (directory / ".done").touch()


def contents(directory: Path) -> Iterator[tuple[str, Any]]:
    """Yield what a run left, by name: arrays, figures, pixels."""
    last = directory / "checkpoints" / "last.ckpt"
    if last.exists():
        weights = torch.load(last, map_location="cpu", weights_only=True)["state_dict"]
        for name, weight in weights.items():  # the first word is the attribute that holds the model
            yield f"weights {name.partition('.')[2]}", weight.numpy()
    for file in sorted(directory.rglob("*")):
        name = str(file.relative_to(directory))
        if file.name == "metrics.json":
            for figure, value in json.loads(file.read_text())["figures"].items():
                yield f"figure {figure}", np.array(value)
        elif file.suffix == ".png" and "tensorboard" not in name:
            with Image.open(file) as picture:
                yield f"pixels {name}", np.array(picture)
        elif file.suffix == ".npy":
            yield name, np.load(file)
        elif file.suffix == ".npz":
            with np.load(file) as arrays:
                yield from ((f"{name} {key}", arrays[key]) for key in arrays.files)


def compare(name: str, old: Path, new: Path) -> list[str]:
    """Return what differs between two runs, a line each."""
    before, after = dict(contents(old)), dict(contents(new))
    lines = [f"{name}: {key} is missing" for key in before if key not in after]
    for key, expected in before.items():
        found = after.get(key, expected)
        if found.shape != expected.shape:
            lines.append(f"{name}: {key} has shape {found.shape}, had {expected.shape}")
        elif not np.array_equal(found, expected):
            largest = np.abs(found.astype(float) - expected.astype(float)).max()
            lines.append(f"{name}: {key} differs by at most {largest:.2e}")
    print(f"{name:<24} {len(before):>4} compared, {len(lines)} differ", flush=True)
    return lines


def main() -> None:
    """Run all cases in both checkouts and compare what they leave."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--work", type=Path, help="where the runs are kept")
    parser.add_argument("--cases", default=".*", help="a regular expression of the cases to run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work or Path(temporary)).resolve()
        sides = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
        cases = {name: ("train", overrides) for name, overrides in TRAININGS.items()}
        runs = {name: run for name, (_, run, _) in COMMANDS.items()}
        differing = []
        for name in [*cases, *COMMANDS]:
            if not re.fullmatch(arguments.cases, name):
                continue
            for side, checkout in sides.items():
                if name in cases:
                    command, overrides = cases[name]
                else:
                    command, _, overrides = COMMANDS[name]
                    overrides = [f"checkpoint={work / side / runs[name]}", *overrides]
                run(checkout, command, overrides, work / side / name)
            differing += compare(name, work / "old" / name, work / "new" / name)
    print("\n".join(differing) or "all equal, bit by bit")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
