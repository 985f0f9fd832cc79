"""End a run at each system call that writes, damage its files, fill its disk; then resume it."""

import contextlib
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from faults import Calls, flipped, forked, points, truncated
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from runs import (
    MINIMAL,
    SMALL,
    differences,
    digits,
    run_of,
    signalled,
    small_module,
    train,
    trained,
)
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.checkpoints import is_verified, read
from vae_lightning.training.trainer import quieten_lightning

SHORT = (*SMALL, MINIMAL, "trainer.max_epochs=1", "callbacks.last.every_n_steps=3")
"""Four steps, and checkpoints after 0, 3 and 4 of them."""

FLIPS, TRUNCATIONS = 1000, 100
failed = False


def main() -> None:
    """Print the table; exit with 1 if anything was lost."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        whole = trained(directory / "whole", *SHORT)
        damaged_by_lightning(directory / "lightning")
        damaged(whole)
        killed_by_lightning(directory / "moved")
        for power in (False, True):
            killed(directory, whole, power)
        if os.geteuid():
            tell("full and read-only disks", "not tried: only root can mount them here")
        else:
            full(directory, whole)
            read_only(directory, whole)
    sys.exit(failed)


def tell(what: str, came: str, fine: bool = True) -> None:
    """Print a row."""
    global failed
    failed |= not fine
    print(f"{what:<66} {came}{'' if fine else '   FAILED'}", flush=True)


# -- damage --------------------------------------------------------------------------------------


def damaged_by_lightning(directory: Path) -> None:
    """Damage what Lightning writes by default, and count what Lightning loads."""
    data = digits()
    module = small_module(data)
    last = ModelCheckpoint(directory, save_last=True)
    quieten_lightning()
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "accelerator": "cpu",
    }
    Trainer(max_epochs=1, callbacks=[last], **quiet).fit(module, data)  # type: ignore[arg-type]
    file = directory / "last.ckpt"
    content, draw, loaded = file.read_bytes(), random.Random(1), 0
    for _ in range(FLIPS):
        file.write_bytes(flipped(content, draw))
        with contextlib.suppress(Exception):
            torch.load(file, weights_only=True)
            loaded += 1
    tell(
        "Lightning's defaults: one bit of a checkpoint flipped",
        f"{loaded} of {FLIPS} loaded without a word",
        loaded > 0,
    )


def damaged(run: Path) -> None:
    """Damage ours."""
    original = run / "checkpoints" / "last.ckpt"
    content, draw = original.read_bytes(), random.Random(1)
    file = run / "checkpoints" / original.readlink()
    for what, damage, times in (
        ("one bit of it flipped", flipped, FLIPS),
        ("cut short", truncated, TRUNCATIONS),
    ):
        detected = 0
        for _ in range(times):
            file.write_bytes(damage(content, draw))
            with contextlib.suppress(ConfigurationError):
                read(original)
                continue
            detected += not is_verified(file)
        tell(f"a checkpoint, {what}", f"{detected} of {times} detected", detected == times)
    file.write_bytes(content)


# -- ends ----------------------------------------------------------------------------------------


def killed_by_lightning(directory: Path) -> None:
    """Kill Lightning while it moves a checkpoint from a temporary folder on another file system."""
    elsewhere = Path("/dev/shm")
    directory.mkdir()
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == directory.stat().st_dev:
        tell(
            "Lightning's defaults: killed while a checkpoint is moved",
            "not tried: no second file system here",
        )
        return
    file = directory / "last.ckpt"

    def write(kill: bool) -> int:
        tempfile.tempdir = str(temporary)
        original = os.sendfile

        def send(target: int, source: int, offset: int, count: int) -> int:
            original(target, source, offset, os.fstat(source).st_size // 2)
            os.kill(os.getpid(), 9)
            return 0

        with patch.object(os, "sendfile", send if kill else original):
            trainer = Trainer(
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                accelerator="cpu",
            )
            trainer.strategy.checkpoint_io.save_checkpoint(
                {"weights": torch.ones(1000, 1000)}, file
            )
        return 0

    with tempfile.TemporaryDirectory(dir=elsewhere) as name:
        temporary = Path(name)
        ended = [forked(partial(write, kill), directory / "output") for kill in (False, True)]
    try:
        torch.load(file, weights_only=True)
        came = "it was there still"
    except Exception:
        came = "the old one gone, the new one cut short"
    tell(
        "Lightning's defaults: killed while a checkpoint is moved",
        came,
        ended == [0, -9] and came.startswith("the old"),
    )


def killed(directory: Path, whole: Path, power: bool) -> None:
    """End a run at each call, look at what it left, and resume it."""
    named = directory / "called"

    def write(place: Path, calls: Calls) -> int | str | None:
        with calls:
            ended = train(place, *SHORT)
        named.write_text(" ".join(calls.called))
        return ended

    (directory / f"counted_{power}").mkdir()
    forked(partial(write, directory / f"counted_{power}", Calls()), directory / "output")
    called = named.read_text().split()
    verified = same = again = 0
    # What is not on the disk before a call was not after the last one.
    ends = [end for end in points(called) if not power or end[1] != "before"]
    outcomes: dict[object, bool] = {}
    for position, when in ends:
        place = directory / f"{position}_{when}_{power}"
        place.mkdir()
        ended = forked(partial(write, place, Calls(position, when, power)), directory / "output")
        complete = ended == -9 and all(
            is_verified(file.resolve()) for file in place.rglob("*.ckpt") if file.is_symlink()
        )
        verified += complete
        begun = list(place.rglob(".hydra/config.yaml"))
        again += not begun
        state = _state(place)
        if state not in outcomes:
            line = [f"resume={run_of(place)}"] if begun else SHORT
            if not begun:
                shutil.rmtree(place)
            ended = forked(partial(train, place, *line), directory / "output")
            found = differences(run_of(place), whole) if not ended else [f"the exit status {ended}"]
            outcomes[state] = not found
        same += outcomes[state]
        if not outcomes[state] or not complete:
            print(
                f"{when} {called[position]}, call {position}: {complete=}, {found[:3]}",
                file=sys.stderr,
            )
        shutil.rmtree(place)
    what = "the power cut" if power else "killed"
    what = f"{what} {'' if power else 'before, '}in and after each of {len(called)} calls"
    came = (
        f"{len(ends)} ends, {verified} left all they had verified, {same} ended bitwise the same: "
    )
    came += (
        f"each of {len(outcomes)} states was resumed ({again} ends: begun again, with no run yet)"
    )
    tell(what, came, verified == same == len(ends))


def _state(place: Path) -> frozenset[tuple[str, object]]:
    """Return what of a run directory matters to who resumes it.

    Times don't, which are in names, logs and settings.
    """
    state: set[tuple[str, object]] = set()
    for run in place.glob("outputs/train/*"):
        for file in run.rglob("*"):
            name = str(file.relative_to(run)).partition("tfevents")[0]
            if file.is_symlink():
                state.add((name, str(file.readlink())))
            elif file.is_dir():
                state.add((name, "directory"))
            elif file.suffix in (".ckpt", ".sha256"):
                state.add((name, hashlib.sha256(file.read_bytes()).hexdigest()))
            else:
                state.add(
                    (name, file.stat().st_size if "events" in name else file.stat().st_size > 0)
                )
    return frozenset(state)


# -- disks ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[None]:
    """Mount a file system on a directory, which is made."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *arguments, str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def full(directory: Path, whole: Path) -> None:
    """Train on disks that are full sooner or later; then make room, and resume."""
    place, told, kept, same, tried = directory / "disk", 0, 0, 0, 0
    for kilobytes in range(150, 1400, 50):
        with mounted(place, "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs"):
            output = directory / f"full_{kilobytes}"
            if not (ended := forked(partial(train, place, *SHORT), output)):
                break
            tried += 1
            last = output.read_text().splitlines()[-1]
            told += ended == 1 and bool(
                re.fullmatch(
                    r"error: \S*outputs/train/\S+ can't be written: No space left on device", last
                )
            )
            kept += all(
                is_verified(file.resolve()) for file in place.rglob("*.ckpt") if file.is_symlink()
            )
            subprocess.run(["mount", "-o", "remount,size=16m", str(place)], check=True)
            ended = forked(partial(train, place, f"resume={run_of(place)}"), output)
            found = differences(run_of(place), whole) if not ended else [f"the exit status {ended}"]
            same += not found
            if found:
                print(f"{kilobytes} KB: {found[:3]}, {last}", file=sys.stderr)
    came = f"{told} named path and cause, {kept} kept what they had, "
    came += f"{same} ended bitwise the same with more room"
    tell(
        f"{tried} full disks of 150 to {kilobytes - 50} KB", came, 0 < tried == told == kept == same
    )


def read_only(directory: Path, whole: Path) -> None:
    """Make a place read-only before a run, and a run's directories after a stop; then resume it."""
    place, output = directory / "read_only", directory / "read_only.txt"
    place.mkdir()
    with mounted(place, "-t", "tmpfs", "-o", "ro", "tmpfs"):
        _refuses("a run in a read-only directory", place, output, "outputs", *SHORT)
    with signalled([2]):
        forked(partial(train, place, *SHORT), output)
    run = run_of(place)
    for part in (run, run / "checkpoints"):
        before = {
            file: file.read_bytes()
            for file in run.rglob("*")
            if file.is_file() and file.suffix in (".ckpt", ".sha256")
        }
        with mounted(part, "--bind", str(part)):
            subprocess.run(["mount", "-o", "remount,ro,bind", str(part)], check=True)
            _refuses(
                f"a resume with a read-only {part.relative_to(run.parent).name}",
                place,
                output,
                part.name,
                f"resume={run}",
            )
        tell(
            "  what it had",
            "is there still",
            all(file.read_bytes() == content for file, content in before.items()),
        )
    ended = forked(partial(train, place, f"resume={run}"), output)
    tell(
        "  resumed when it could be written again",
        "bitwise the same",
        not ended and not differences(run, whole),
    )


def _refuses(what: str, place: Path, output: Path, named: str, *arguments: str) -> None:
    ended = forked(partial(train, place, *arguments), output)
    last = output.read_text().splitlines()[-1]
    fine = (
        ended == 1
        and last.startswith("error: ")
        and named in last
        and "Read-only file system" in last
    )
    tell(
        what.replace(place.name, "place"),
        f"exit status {ended}: {last.split(str(place))[0]}…{last.rpartition(named)[2]}",
        fine,
    )


if __name__ == "__main__":
    main()
