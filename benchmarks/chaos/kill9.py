"""Kill runs at random moments, resume them until they end, and compare them with unkilled runs."""

import argparse
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from faults import Process, forked, fresh

from runs import (
    MINIMAL,
    SMALL,
    differences,
    fit_by_lightning,
    once,
    run_of,
    stretches,
    train,
    trained,
)

EVERY = 3
LONG = (
    *SMALL,
    "trainer.max_epochs=8",
    "trainer.log_every_n_steps=1",
    f"callbacks.last.every_n_steps={EVERY}",
)
"""32 steps, each of which is logged, and a checkpoint at each third one."""

KINDS = {
    "scalars and checkpoints alone": (MINIMAL,),
    "all callbacks": (
        "callbacks.reconstructions.every_n_epochs=3",
        "callbacks.prior_samples.every_n_epochs=4",
    ),
    "accumulated gradients, validation in between": (
        MINIMAL,
        "trainer.accumulate_grad_batches=3",
        "data.batch_size=30",
        "trainer.val_check_interval=4",
        "data.binarization=stochastic",
    ),
}
Begin = Callable[[Path, Sequence[str]], Callable[[], int | str | None]]


def main() -> None:
    """Print the table; exit with 1 if a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--fresh",
        type=int,
        default=20,
        help="so many more of processes that import everything themselves",
    )
    parser.add_argument("--seed", type=int, default=1)
    settings = parser.parse_args()
    draw = random.Random(settings.seed)
    fine = lightning(draw)
    shares = [
        settings.kills // len(KINDS) + (n < settings.kills % len(KINDS)) for n in range(len(KINDS))
    ]
    for (name, typed), kills in zip(KINDS.items(), shares, strict=True):
        fine &= campaign(
            name, (*LONG, *typed), kills, draw, lambda place, typed: partial(train, place, *typed)
        )
    longer = (*LONG, MINIMAL, "trainer.max_epochs=40")  # else the imports would take most of a life
    name = "scalars and checkpoints alone, from the start of Python"
    fine &= campaign(
        name, longer, settings.fresh, draw, lambda place, typed: fresh(place, *once(*typed))
    )
    sys.exit(not fine)


def lightning(draw: random.Random) -> bool:
    """Kill what Lightning trains by default, and resume it by its newest checkpoint.

    The images come by a ``DataLoader`` that shuffles. Prints how many end the same.
    """
    same = killed = 0
    with tempfile.TemporaryDirectory() as directory:
        places = [Path(directory, str(number)) for number in range(6)]
        for place in places:
            place.mkdir()
        began = time.perf_counter()
        forked(partial(_fit_by_lightning, places[0]), places[0] / "output")
        life = time.perf_counter() - began
        for place in places[1:]:
            process = Process(partial(_fit_by_lightning, place), place / "output")
            if process.wait(draw.uniform(0.2, 0.9) * life) is None:
                process.kill()
                killed += 1
                forked(partial(_fit_by_lightning, place), place / "output")
            same += (place / "weights").read_bytes() == (places[0] / "weights").read_bytes()
    came = f"{killed} kills of 5 runs: {same} ended bitwise the same"
    print(f"{'Lightning’s defaults, a shuffling loader':<66} {came}", flush=True)
    return same < len(places) - 1


def _fit_by_lightning(place: Path) -> int:
    newest = max(place.rglob("*.ckpt"), key=os.path.getmtime, default=None)
    weights = fit_by_lightning(newest, default_root_dir=place, max_epochs=8)
    (place / "weights").write_bytes(b"".join(weight.numpy().tobytes() for weight in weights))
    return 0


def campaign(
    name: str, typed: Sequence[str], kills: int, draw: random.Random, begin: Begin
) -> bool:
    """Kill runs of a kind so many times, and print a row; return whether all ended right."""
    with tempfile.TemporaryDirectory() as directory:
        whole = trained(Path(directory, "whole"), *typed)
        began = time.perf_counter()
        Path(directory, "again").mkdir()
        forked(begin(Path(directory, "again"), typed), Path(directory, "again.txt"))
        life = time.perf_counter() - began
        done = runs = again = resumed = same = lost = 0
        while done < kills:
            runs += 1
            place = Path(directory, str(runs))
            place.mkdir()
            output = Path(directory, f"{runs}.txt")
            ended = None
            while ended is None:
                stored = list(place.rglob(".hydra/config.yaml"))
                line = [f"resume={run_of(place)}"] if stored else typed
                process = Process(begin(place, line), output)
                ended = process.wait(draw.uniform(0, life) if done < kills else None)
                if ended is None:
                    process.kill()
                    done += 1
                    if not list(place.rglob(".hydra/config.yaml")):
                        again += 1
                        shutil.rmtree(place)
                        place.mkdir()
                    else:
                        resumed += 1
            found = (
                differences(run_of(place), whole) if ended == 0 else [f"the exit status {ended}"]
            )
            same += not found
            if found:
                print(
                    f"{name}, run {runs}: {found[:3]}; {output.read_text()[-300:]}", file=sys.stderr
                )
                continue
            logged = stretches(run_of(place))
            lost = max(
                [lost, *(before[1] - after[0] for before, after in itertools.pairwise(logged))]
            )
    came = f"{done} kills of {runs} runs: {resumed} resumed, {again} begun again, with no run yet; "
    came += f"{same} runs ended bitwise the same; {lost} of {EVERY} steps lost at most"
    print(f"{name:<66} {came}", flush=True)
    return same == runs and lost <= EVERY


if __name__ == "__main__":
    main()
