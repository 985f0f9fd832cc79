"""Stop a run after each of its steps, resume it, and compare it with one that wasn't stopped."""

import contextlib
import io
import sys
import tempfile
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from runs import SMALL, VARIATIONS, differences, fit_by_lightning, stopped_and_resumed, trained


def main() -> None:
    """Print a line for each kind of run; exit with 1 if anything differs."""
    failed = lightning()
    for name, (typed, steps) in VARIATIONS.items():
        with tempfile.TemporaryDirectory() as directory:
            arguments = (*SMALL, *typed)
            whole = trained(Path(directory, "whole"), *arguments)
            stops = [(step,) for step in range(1, steps + 1)] + [(1, 2, 3)]
            same = 0
            for stop in stops:
                with contextlib.redirect_stdout(io.StringIO()):
                    run = stopped_and_resumed(
                        Path(directory, "-".join(map(str, stop))), arguments, *stop
                    )
                found = differences(run, whole)
                same += not found
                if found:
                    print(
                        f"{name}, stopped after {stop}: {len(found)} differences, as {found[0]}",
                        file=sys.stderr,
                    )
            failed |= same < len(stops)
            print(f"{name:<50} {same} of {len(stops)} ended bitwise the same", flush=True)
    sys.exit(failed)


def lightning() -> bool:
    """Resume what Lightning trains by default after each step; return whether all end the same."""
    with tempfile.TemporaryDirectory() as directory:
        settings = {"max_epochs": 2, "default_root_dir": directory, "enable_model_summary": False}
        each = ModelCheckpoint(directory, "{step}", every_n_train_steps=1, save_top_k=-1)
        whole = fit_by_lightning(None, callbacks=[each], **settings)
        stops = sorted(Path(directory).glob("*.ckpt"))[:-1]  # all but the last
        ends = [fit_by_lightning(stop, callbacks=[], **settings) for stop in stops]
    same = sum(all(map(torch.equal, end, whole)) for end in ends)
    came = f"{same} of {len(stops)} ended bitwise the same"
    print(f"{'Lightning’s defaults, a shuffling loader':<50} {came}", flush=True)
    return same == len(stops)


if __name__ == "__main__":
    main()
