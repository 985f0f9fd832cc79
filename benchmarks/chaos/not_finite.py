"""Let a loss, a gradient or a weight become infinite or nan at each step, mend it, and resume."""

import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

from faults import forked
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from runs import (
    MINIMAL,
    SMALL,
    differences,
    digits,
    finite,
    names_what_is_not_finite,
    run_of,
    small_module,
    spoilt,
    train,
    trained,
)
from vae_lightning import VAEModule
from vae_lightning.runs.checkpoints import newest_whole
from vae_lightning.training.trainer import quieten_lightning

TYPED = (*SMALL, MINIMAL, "trainer.log_every_n_steps=3", "callbacks.last.every_n_steps=2")
STEPS = 8


def main() -> None:
    """Print the table; exit with 1 if a run went on with it, saved it, or didn't end the same."""
    failed = lightning()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        whole = trained(directory / "whole", *TYPED)
        for quantity in ("loss", "gradient", "weight"):
            for value in (float("nan"), float("inf")):
                counts = Counter[str]()
                for step in range(1, STEPS + 1):
                    counts += Counter(
                        _spoil(
                            directory / f"{quantity}_{value}_{step}", quantity, value, step, whole
                        )
                    )
                came = f"in each of {STEPS} steps: {counts['told']} named step and quantity, "
                came += f"{counts['clean']} saved none, {counts['again']} met it again when "
                came += f"resumed, {counts['same']} ended bitwise the same without it"
                fine = all(counts[name] == STEPS for name in ("told", "clean", "again", "same"))
                failed |= not fine
                print(
                    f"{f'{quantity}: {value}':<40} {came}{'' if fine else '   FAILED'}", flush=True
                )
    sys.exit(failed)


def _spoil(place: Path, quantity: str, value: float, step: int, whole: Path) -> dict[str, int]:
    """Train with it, resume with it, resume without it; return what was as it should be."""
    place.mkdir()
    output = place / "output"

    def spoil(*typed: str) -> int | str | None:
        with spoilt(quantity, value, step):
            return train(place, *typed)

    ends = forked(partial(spoil, *TYPED), output) == 1
    told = ends and names_what_is_not_finite(output.read_text(), step)
    run = run_of(place)
    clean = all(finite(file) for file in run.rglob("*.ckpt"))
    again = newest_whole(run, -1)[0] < step and forked(partial(spoil, f"resume={run}"), output) == 1
    same = not forked(partial(train, place, f"resume={run}"), output) and not differences(
        run, whole
    )
    return {"told": told, "clean": clean, "again": again, "same": same}


def lightning() -> bool:
    """Spoil a loss in what Lightning trains by default.

    Returns:
        Whether it ended with an error, or without a checkpoint that holds the value.
    """

    def fit() -> int:
        quieten_lightning()
        data = digits()
        keep = ModelCheckpoint(Path(directory))
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            callbacks=[keep],
        )
        VAEModule.check_finite = VAEModule._publish = lambda *_: None  # type: ignore[method-assign]
        with spoilt("loss", float("nan"), 3):
            trainer.fit(small_module(data), data)
        return 0

    with tempfile.TemporaryDirectory() as directory:
        ended = forked(fit, Path(directory, "output"))
        spoilt_files = [file for file in Path(directory).rglob("*.ckpt") if not finite(file)]
    came = f"exit status {ended}, {len(spoilt_files)} checkpoint with it"
    print(f"{'Lightning’s defaults: loss: nan':<40} {came}", flush=True)
    return ended != 0 or not spoilt_files


if __name__ == "__main__":
    main()
