"""What the campaigns share: small runs of the real command, resumed, and how two of them differ."""

import contextlib
import importlib
import io
import json
import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning import Trainer, seed_everything
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import SessionLog
from torch.utils.data import DataLoader

from vae_lightning import VAE, MNISTDataModule, VAEModule
from vae_lightning.models.base import Batch, Noise
from vae_lightning.training.callbacks.checkpoints import LastCheckpoint
from vae_lightning.training.trainer import quieten_lightning

DATA = Path(__file__).parents[2] / "tests" / "data"
SUBSET = ("data=mnist_subset", f"data.dir={DATA}")
"""600 real digits."""

MINIMAL = "callbacks=minimal"
SMALL = (
    *SUBSET,
    "model.latent_dim=2",
    "model.hidden_dims=[16]",
    "data.batch_size=80",
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=2",
)
"""Two epochs of four steps."""

VARIATIONS: dict[str, tuple[tuple[str, ...], int]] = {
    "all callbacks": ((), 8),
    "validation in the middle of an epoch": ((MINIMAL, "trainer.val_check_interval=2"), 8),
    "max_steps": ((MINIMAL, "trainer.max_steps=7"), 7),
    "accumulated gradients": (
        (MINIMAL, "trainer.accumulate_grad_batches=3", "data.batch_size=40"),
        6,
    ),
    "validation between accumulated gradients": (
        (
            MINIMAL,
            "trainer.accumulate_grad_batches=3",
            "data.batch_size=40",
            "trainer.val_check_interval=4",
        ),
        6,
    ),
    "stochastic binarisation, KL warm-up, one-cycle": (
        (
            MINIMAL,
            "data.binarization=stochastic",
            "model.kl_schedule=linear",
            "model.kl_schedule_steps=6",
            "optimizer.schedule=one_cycle",
        ),
        8,
    ),
}
"""What is typed on top, and the optimiser steps that this makes."""

_VALUES = ("value", "encoded_image_string", "histogram_value", "tensor_proto")


def once(*arguments: str) -> tuple[str, ...]:
    """Return arguments with the last value of each key; the command refuses several."""
    return tuple({each.partition("=")[0]: each for each in arguments}.values())


def train(directory: Path, *arguments: str) -> int | str | None:
    """Type ``train`` in a directory, which is made, in this process; return the exit status."""
    directory.mkdir(parents=True, exist_ok=True)
    main = importlib.import_module("vae_lightning.train").main
    typed = patch.object(sys, "argv", ["train", *once(*arguments)])
    with contextlib.chdir(directory), typed, patch.dict(os.environ, {"HYDRA_FULL_ERROR": "0"}):
        try:
            main()
        except SystemExit as end:
            return end.code
    return 0


def trained(directory: Path, *arguments: str) -> Path:
    """Train in this process, without output, which imports everything; return the run directory."""
    with contextlib.redirect_stdout(io.StringIO()):
        train(directory, *arguments)
    return run_of(directory)


def digits(batch_size: int = 80) -> MNISTDataModule:
    """Return the 600 digits, not read yet."""
    return MNISTDataModule(
        name="mnist_subset", dir=str(DATA), batch_size=batch_size, val_size=80, seed=1
    )


def small_module(data: MNISTDataModule) -> VAEModule:
    """Return a module with the model of ``SMALL``, for training without this project's command."""
    return VAEModule(VAE(data.spec, latent_dim=2, hidden_dims=[16]))


def fit_by_lightning(checkpoint: Path | None, **settings: Any) -> list[torch.Tensor]:
    """Train as people do without this project, by a shuffling ``DataLoader``; return the weights.

    Args:
        checkpoint: what is resumed from, if anything is.
        **settings: of Lightning's ``Trainer``.
    """
    quieten_lightning()
    data = digits(batch_size=1)
    data.prepare_data()
    data.setup()
    images = [tuple(each[0] for each in batch[:3]) for batch in data.train_dataloader()]
    seed_everything(1, verbose=False)
    module = small_module(data)
    trainer = Trainer(
        **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, **settings}
    )
    with warnings.catch_warnings(action="ignore"):
        loader = DataLoader(
            images,
            80,
            shuffle=True,
            collate_fn=lambda parts: Batch(*map(torch.stack, zip(*parts, strict=True))),
        )
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    return [weight.detach() for weight in module.parameters()]


def run_of(directory: Path) -> Path:
    """Return the one run directory that was made in a directory."""
    [run] = (directory / "outputs" / "train").iterdir()
    return run


@contextlib.contextmanager
def signalled(steps: list[int], number: int = signal.SIGTERM) -> Iterator[None]:
    """Meanwhile send this process a signal after each of some steps, which leave the list."""
    inherited = LastCheckpoint.on_train_batch_end

    def on_train_batch_end(self: LastCheckpoint, trainer: Any, *rest: Any) -> None:
        if steps and trainer.global_step == steps[0] != self._step:
            del steps[0]
            os.kill(os.getpid(), number)
        inherited(self, trainer, *rest)

    with patch.object(LastCheckpoint, "on_train_batch_end", on_train_batch_end):
        yield


@contextlib.contextmanager
def spoilt(quantity: str, value: float, step: int) -> Iterator[None]:
    """Meanwhile put a value in place of a step's loss, a gradient or a weight.

    Args:
        quantity: which of them.
        value: the value.
        step: the optimiser step, counted from 1.
    """
    loss_of, began, stepped = (
        VAE.loss,
        VAEModule.training_step,
        VAEModule.on_before_optimizer_step,
    )

    def loss(self: VAE, batch: Batch, noise: Noise, at: int) -> Any:
        found, terms = loss_of(self, batch, noise, at)
        return found * value if quantity == "loss" and at == step - 1 else found, terms

    def training_step(self: VAEModule, *batch: Any) -> torch.Tensor:
        if quantity == "weight" and self.global_step == step - 1:
            with torch.no_grad():
                next(self.parameters())[0, 0] = value
        return began(self, *batch)

    def on_before_optimizer_step(self: VAEModule, *others: Any) -> None:
        if quantity == "gradient" and self.global_step == step - 1:
            gradient = next(self.parameters()).grad
            assert gradient is not None
            gradient[0, 0] = value
        stepped(self, *others)

    with (
        patch.object(VAE, "loss", loss),
        patch.object(VAEModule, "training_step", training_step),
        patch.object(VAEModule, "on_before_optimizer_step", on_before_optimizer_step),
    ):
        yield


def names_what_is_not_finite(error: str, step: int) -> bool:
    """Return whether an error names a quantity and its step, or the next, whose loss shows it."""
    found = re.search(r"error: \S.* is (?:nan|-?inf|not finite) (?:at|after) step (\d+)", error)
    return found is not None and int(found[1]) in (step, step + 1)


def finite(file: Path) -> bool:
    """Return whether all numbers of a checkpoint are."""
    content = (value for _, value in _flat(torch.load(file, map_location="cpu", weights_only=True)))
    return all(
        bool(torch.isfinite(value).all()) for value in content if isinstance(value, torch.Tensor)
    )


def stopped_and_resumed(directory: Path, arguments: Sequence[str], *steps: int) -> Path:
    """Stop a run by SIGTERM after each of some steps and resume it; return its run directory.

    Raises:
        RuntimeError: it ended with another exit status than 143, or than 0 at the end.
    """
    left = list(steps)
    statuses = []
    with signalled(left):
        statuses.append(train(directory, *arguments))
        while statuses[-1] == 143:
            statuses.append(train(directory, f"resume={run_of(directory)}"))
    if statuses != [143] * len(steps) + [0]:
        raise RuntimeError(f"the exit statuses were {statuses}")
    return run_of(directory)


def differences(run: Path, reference: Path) -> list[str]:
    """Return what differs in a bit in two run directories.

    Checkpoints, dashboards, pictures and test figures are compared.
    """
    found = []
    for name in ("last.ckpt", "best.ckpt"):
        files = [each / "checkpoints" / name for each in (run, reference)]
        if files[0].is_symlink() != files[1].is_symlink():
            found.append(f"{name} is there and not there")
        elif files[0].is_symlink():
            if files[0].readlink() != files[1].readlink():
                found.append(f"{name} is {files[0].readlink()} and {files[1].readlink()}")
            ours, theirs = (
                dict(_flat(torch.load(file, map_location="cpu", weights_only=True)))
                for file in files
            )
            found += [
                f"{name}{place}"
                for place in sorted(ours.keys() | theirs.keys())
                if not _same(place, ours, theirs)
            ]
    ours, theirs = logged(run), logged(reference)
    found += [f"{kind} {tag} at step {step}" for kind, tag, step, _ in sorted(ours ^ theirs)]
    pictures = {file.name for each in (run, reference) for file in (each / "images").glob("*")}
    for name in sorted(pictures):
        files = [each / "images" / name for each in (run, reference)]
        if (
            not all(file.exists() for file in files)
            or files[0].read_bytes() != files[1].read_bytes()
        ):
            found.append(f"images/{name}")
    figures = [
        json.loads((each / "metrics.json").read_text())["figures"] for each in (run, reference)
    ]
    return found if figures[0] == figures[1] else [*found, "metrics.json"]


def logged(run: Path) -> set[tuple[str, str, int, str]]:
    """Return each kind, tag, step and value that TensorBoard reads of a run."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    everything = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)
    events = EventAccumulator(str(run / "tensorboard"), size_guidance=everything)
    events.Reload()
    kinds = {
        "scalars": events.Scalars,
        "images": events.Images,
        "histograms": events.Histograms,
        "tensors": events.Tensors,
    }
    return {
        (
            kind,
            tag,
            event.step,
            str([getattr(event, name) for name in _VALUES if hasattr(event, name)]),
        )
        for kind, read in kinds.items()
        for tag in events.Tags()[kind]
        for event in read(tag)
    }


def stretches(run: Path) -> list[tuple[int, int]]:
    """Return the step from which each process of a run began, and the last step it logged."""
    found: list[tuple[int, int]] = []
    for file in sorted((run / "tensorboard").glob("events*")):
        events = list(EventFileLoader(str(file)).Load())
        last = max((event.step for event in events), default=0)
        purged = [event.step for event in events if event.session_log.status == SessionLog.START]
        if found and not purged:  # of the same process, which tests
            last = max(last, found[-1][1])
            purged = [found.pop()[0]]
        found.append((max(purged, default=0), last))
    return found


def _flat(content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a checkpoint holds, by its place."""
    if isinstance(content, dict | list | tuple):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from _flat(value, f"{place}/{key}")
    else:
        yield place, content


def _same(place: str, ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    if place not in ours or place not in theirs:
        return False
    if isinstance(ours[place], torch.Tensor):
        return torch.equal(ours[place], theirs[place])
    return bool(ours[place] == theirs[place])
