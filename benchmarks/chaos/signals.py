"""Send runs signals in each phase, resume them, and compare with a run left alone."""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from faults import Process, called_at, forked, fresh
from lightning import Trainer

from runs import SMALL, differences, digits, run_of, small_module, train, trained
from vae_lightning import MNISTDataModule, VAEModule
from vae_lightning.runs import atomic_files
from vae_lightning.runs.checkpoints import VerifiedFiles
from vae_lightning.training import experiment, report
from vae_lightning.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from vae_lightning.training.callbacks.pictures import LatentPicture, PriorSamples
from vae_lightning.training.trainer import quieten_lightning

SECONDS = 2.0
"""Within which a process has to end."""

TYPED = (
    *SMALL,
    "callbacks.prior_samples.every_n_epochs=1",
    "trainer.accumulate_grad_batches=2",
    "trainer.val_check_interval=2",
)
"""Two epochs of two steps of two batches each, with a validation after each step."""

PHASES: dict[str, tuple[Any, str, int, bool]] = {
    "set-up: the data is read": (MNISTDataModule, "setup", 1, False),
    "set-up: the run directory is made": (experiment, "make_run_directory", 1, True),
    "set-up: its configuration is written": (atomic_files, "write", 2, False),
    "set-up: the directory is locked": (experiment, "lock_directory", 1, True),
    "set-up: the second Trainer": (experiment, "build_trainer", 2, True),
    "set-up: Lightning's": (VAEModule, "configure_optimizers", 1, False),
    "training: the first checkpoint": (VerifiedFiles, "save_checkpoint", 1, False),
    "training: forward": (VAEModule, "training_step", 5, False),
    "training: within accumulated gradients": (VAEModule, "training_step", 3, True),
    "training: the optimiser": (torch.optim.Optimizer, "zero_grad", 3, True),
    "training: a step is done": (LastCheckpoint, "on_train_batch_end", 6, False),
    "training: its checkpoint is written": (atomic_files, "write", 8, True),
    "training: its checkpoint is named": (atomic_files, "point", 2, False),
    "validation: its beginning": (VAEModule, "on_validation_epoch_start", 2, False),
    "validation: a batch": (VAEModule, "measure", 2, False),
    "validation: its figures": (VAEModule, "on_validation_epoch_end", 2, False),
    "validation: the best is named": (BestCheckpoint, "_look", 2, False),
    "an epoch's end: its figures": (VAEModule, "on_train_epoch_end", 1, True),
    "an epoch's end: a picture": (PriorSamples, "draw", 1, False),
    "the training's end: pictures": (LatentPicture, "draw", 1, False),
    "test: its beginning": (experiment, "test", 1, False),
    "test: a batch": (VAEModule, "measure", 5, False),
    "the end: the figures are written": (report, "write_metrics", 1, False),
    "the end: all is done": (report, "finish", 1, True),
}
"""A function, the number of the call, from 1, at which the signal comes, and whether after it."""

failed = False


def main() -> None:
    """Print the table; exit with 1 if a signal was answered otherwise than promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--signals", type=int, default=50, help="at random moments, beside those in each phase"
    )
    parser.add_argument(
        "--fresh",
        type=int,
        default=10,
        help="of them to processes that import everything themselves",
    )
    parser.add_argument("--seed", type=int, default=1)
    settings = parser.parse_args()
    draw = random.Random(settings.seed)
    lightning()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        whole = trained(directory / "whole", *TYPED)
        campaign = Campaign(directory, whole)
        for phase, (owner, function, number, after) in PHASES.items():
            for sent in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                campaign.hit(phase, owner, function, number, after, sent)
            campaign.tell(phase)
        campaign.hit_twice()
        campaign.tell("a second Ctrl-C while a step is taken")
        lives = {}
        for count, begin, what in (
            (
                settings.signals - settings.fresh,
                lambda place, typed: partial(train, place, *typed),
                "random moments",
            ),
            (
                settings.fresh,
                lambda place, typed: fresh(place, *typed),
                "random moments, imports included",
            ),
        ):
            place = directory / what
            place.mkdir()
            began = time.perf_counter()
            forked(begin(place, TYPED), directory / "output")
            lives[what] = time.perf_counter() - began
            for _ in range(count):
                campaign.at_random(
                    begin,
                    draw.uniform(0, lives[what]),
                    draw.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)),
                )
            campaign.tell(what)
    sys.exit(failed)


def lightning() -> None:
    """Send SIGTERM to what Lightning trains by default, and print how it ends."""

    def fit() -> int:
        quieten_lightning()
        data = digits()
        trainer = Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            default_root_dir=directory,
        )
        with called_at(VAEModule, "training_step", 3, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            trainer.fit(small_module(data), data)
        return 0

    with tempfile.TemporaryDirectory() as directory:
        ended = forked(lambda: _exit_of(fit), Path(directory, "output"))
        left = len(list(Path(directory).rglob("*.ckpt")))
    came = f"exit status {ended}, {left} checkpoints left"
    print(f"{'Lightning’s defaults: SIGTERM in training':<50} {came}", flush=True)
    global failed
    failed |= ended != 0


def _exit_of(action: Callable[[], int]) -> int | str | None:
    try:
        return action()
    except SystemExit as end:
        return end.code


class Campaign:
    """What is sent and what comes of it, to be told in a row."""

    def __init__(self, directory: Path, whole: Path) -> None:
        """Take where to work, and a run that was left alone."""
        self.directory = directory
        self.whole = whole
        self.runs = 0
        self._clear()

    def _clear(self) -> None:
        self.sent, self.longest, self.left, self.resumed, self.wrong = 0, 0.0, 0, 0, list[str]()

    def tell(self, what: str) -> None:
        """Print a row of what was sent since the last one."""
        global failed
        failed |= bool(self.wrong) or not self.sent
        came = f"{self.sent} signals, the longest answer {self.longest:.2f} s; "
        came += f"{self.left} left nothing behind, "
        came += f"{self.resumed} were resumed and ended bitwise the same"
        print(f"{what:<50} {came}{'   FAILED' * bool(self.wrong)}", flush=True)
        for each in self.wrong:
            print(f"    {each}", file=sys.stderr)
        self._clear()

    def hit(
        self, phase: str, owner: Any, function: str, number: int, after: bool, sent: int
    ) -> None:
        """Send a signal at a call of a function."""
        noted = self.directory / "noted"

        def send() -> None:
            noted.write_text(str(time.time()))
            os.kill(os.getpid(), sent)

        def run() -> int | str | None:
            with called_at(owner, function, number, send, after):
                return train(place, *TYPED)

        place = self._place()
        ended = forked(run, self.output)
        if not noted.exists():
            self.wrong.append("the phase was not come to")
            return
        self._judge(
            place, ended, sent, time.time() - float(noted.read_text()), phase.startswith("set-up")
        )
        noted.unlink()

    def hit_twice(self) -> None:
        """Send Ctrl-C twice while a step is taken that would take long."""

        def send() -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

        def run() -> int | str | None:
            with called_at(VAEModule, "training_step", 4, send):
                return train(place, *TYPED)

        place, began = self._place(), time.time()
        ended = forked(run, self.output)
        self._judge(place, ended, signal.SIGINT, max(0.0, time.time() - began - 5), None)

    def at_random(self, begin: Callable[..., Any], moment: float, sent: int) -> None:
        """Send a signal at a moment of a run's life."""
        place = self._place()
        process = Process(begin(place, TYPED), self.output)
        ended = process.wait(moment)
        if ended is None:
            at = time.time()
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, sent)
            ended = process.wait(60)
            if ended != 0 or not list(place.rglob("metrics.json")):  # else it had just ended
                self._judge(place, ended, sent, time.time() - at, None)

    def _place(self) -> Path:
        self.runs += 1
        place = self.directory / str(self.runs)
        place.mkdir()
        self.output = self.directory / f"{self.runs}.txt"
        return place

    def _judge(
        self, place: Path, ended: int | None, sent: int, seconds: float, before: bool | None
    ) -> None:
        """Look at how a process ended and what it left; resume it."""
        self.sent += 1
        self.longest = max(self.longest, seconds)
        name = signal.Signals(sent).name
        if ended not in (128 + sent, -sent):
            self.wrong.append(
                f"{name}: the exit status was {ended}: {self.output.read_text()[-300:]}"
            )
        if seconds > SECONDS:
            self.wrong.append(f"{name}: {seconds:.1f} s")
        left = sorted(str(file.relative_to(place)) for file in place.rglob("*"))
        if before and left:
            self.wrong.append(f"{name}: left {left[:3]}")
        if not left:
            self.left += 1
        else:
            ended = forked(partial(train, place, f"resume={run_of(place)}"), self.output)
            found = (
                differences(run_of(place), self.whole)
                if not ended
                else [self.output.read_text()[-300:]]
            )
            self.resumed += not found
            if found:
                self.wrong.append(f"{name}: resumed, {len(found)} differences, as {found[:3]}")
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
