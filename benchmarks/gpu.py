"""How fast training is on a GPU, as shares of a bare loop of the same network: ``make bench-gpu``.

python benchmarks/gpu.py [--devices N]

It needs the package and torch and nothing from the network: the images are the 600 digits of the
tests, a hundred times over. Each row fits in turn with the bare loop, three pairs; what counts is
the median of the epochs after the first, with default logging, checkpoints and pictures. Copies
and waits are the runtime's calls that hold up a step, for each step of an epoch.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from omegaconf import OmegaConf
from torch.profiler import ProfilerActivity, profile

from plain import BATCH, BareLoop, GraphLoop
from sides import compose, fit, multiply, synchronize
from vae_lightning import VAE
from vae_lightning.runs.processor import flush_denormals
from vae_lightning.training import experiment
from vae_lightning.training.trainer import quieten_lightning

DIGITS = ("data=mnist_subset", f"data.dir={Path(__file__).parents[1] / 'tests' / 'data'}")
TIMES = 180  # 320 training digits so many times over are an epoch of 57,600
EPOCHS, PAIRS = 3, 3
CASES = {
    "default": (),
    "batches of 1,024": ("data.batch_size=1024",),
    "batches of 8,192": ("data.batch_size=8192",),
    "convolutional": ("model=convolutional",),
    "convolutional, batches of 1,024": ("model=convolutional", "data.batch_size=1024"),
    "experiment=iwae, batches of 100": (
        "experiment=iwae", "data.batch_size=100", "callbacks=default",
    ),
    "model.compile=true": ("model.compile=true",),
}  # fmt: skip
"""What is measured, by the overrides of ``train``."""

_WAITS = {"cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize", "cudaMemcpy"}


class Traffic(Callback):
    """Counts a run's copies between host and device, and its waits for the device.

    Attributes:
        calls: how often each operation and each call of the runtime happened.
        steps: in how many steps.
    """

    def __init__(self, first: int, steps: int) -> None:
        """Take the first batch of an epoch that is watched, and how many there are."""
        self.first = first
        self.steps = steps
        self.calls: Counter[str] = Counter()
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities, acc_events=True)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin to watch."""
        if batch_idx == self.first:
            synchronize()
            self._profiler.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop."""
        if batch_idx == self.first + self.steps - 1 and not self.calls:
            self._profiler.stop()
            for event in self._profiler.key_averages():
                self.calls[event.key] += event.count

    @property
    def copies(self) -> int:
        """Copies from or to the host."""
        return sum(
            count
            for name, count in self.calls.items()
            if name.startswith("Memcpy") and ("HtoD" in name or "DtoH" in name)
        )

    @property
    def waits(self) -> int:
        """Calls after which the host has waited for the device."""
        return sum(self.calls[name] for name in _WAITS)


def bare(overrides: Sequence[str], graph: bool = False) -> tuple[BareLoop, int]:
    """Return the bare loop of the same network, data and batches, and the images of an epoch."""
    _, data = experiment.build_sketch(config := compose(*DIGITS, *overrides), 1)
    data.setup()
    multiply(data, TIMES)
    settings: Any = OmegaConf.to_container(config.model)
    del settings["_target_"]
    torch.manual_seed(1)
    model = VAE(data.spec, **(settings | {"compile": False}))
    images = data.x["train"][data.train_indices].flatten(1).cuda()
    if graph:  # of whole batches only
        images = images[: len(images) // data.batch_size * data.batch_size]
    return (GraphLoop if graph else BareLoop)(model, images, data.batch_size), len(images)


def seconds_of(loop: BareLoop) -> float:
    """Return the median seconds of an epoch of a bare loop, after the first."""
    seconds = []
    for _ in range(EPOCHS):
        synchronize()
        started = time.perf_counter()
        loop.epoch()
        synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


_LAYOUT = "{:<34}{:>12}{:>12}{:>8}  {:<14}{:>9}{:>9}{:>9}"


def measure(name: str, overrides: Sequence[str], directory: Path) -> str:
    """Measure a row, and return its line."""
    loop, images = bare(overrides)
    run = functools.partial(fit, directory, *DIGITS, *overrides, times_the_data=TIMES)
    pairs = []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(PAIRS):
        pairs.append((run(epochs=EPOCHS).seconds, seconds_of(loop)))
    memory = torch.cuda.max_memory_allocated() / 2**20
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    shares = [other / own for own, other in pairs]
    watched = min(100, images // loop.batch - 20)
    told = ["–", "–"]
    if watched > 0:
        traffic = Traffic(10, watched)
        run(epochs=1, callback=traffic)
        told = [f"{count / watched:.2f}" for count in (traffic.copies, traffic.waits)]
    return _LAYOUT.format(
        name,
        f"{images / ours:,.0f}",
        f"{images / theirs:,.0f}",
        f"{statistics.median(shares):.2f}",
        f"{min(shares):.2f} – {max(shares):.2f}",
        *told,
        f"{memory:,.0f}",
    )


def fit_on(devices: int, directory: Path) -> None:
    """Fit by several processes, of which each comes here, and print the images in a second."""
    overrides = ("trainer=ddp", f"trainer.devices={devices}", "callbacks=minimal")
    laps = fit(directory, *DIGITS, *overrides, epochs=EPOCHS, times_the_data=TIMES)
    if not int(os.environ.get("LOCAL_RANK", 0)):
        print(laps.steps / EPOCHS * BATCH * devices / laps.seconds)


def several(devices: int, alone: float) -> str:
    """Measure the default model on several GPUs, and return the line."""
    line = [sys.executable, str(Path(__file__).resolve()), "--devices", str(devices)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        return f"default, {devices} GPUs: failed: {done.stderr.strip().splitlines()[-1]}"
    images = float(done.stdout.strip().splitlines()[-1])
    share = f"{images / devices / alone:.2f}"
    return _LAYOUT.format(
        f"default on {devices} GPUs", f"{images:,.0f}", f"{alone:,.0f}", share, "each GPU's", *"–––"
    )


def replayed() -> str:
    """Measure the bare loop against itself as a CUDA graph, and return the line."""
    (loop, images), (graph, whole) = bare(()), bare((), graph=True)
    pairs = [(images / seconds_of(loop), whole / seconds_of(graph)) for _ in range(PAIRS)]
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    shares = [own / other for own, other in pairs]
    return _LAYOUT.format(
        "the bare loop against its CUDA graph",
        f"{ours:,.0f}",
        f"{theirs:,.0f}",
        f"{statistics.median(shares):.2f}",
        f"{min(shares):.2f} – {max(shares):.2f}",
        "", "", "",
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the machine and a line for each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--devices", type=int, help="fit on so many GPUs, and print images/s")
    typed, _ = parser.parse_known_args(arguments)  # Lightning adds to a child process's
    if typed.devices:
        with tempfile.TemporaryDirectory() as directory:
            fit_on(typed.devices, Path(directory))
        return 0
    if not torch.cuda.is_available():
        sys.exit("error: there is no CUDA GPU here")
    quieten_lightning()
    flush_denormals()
    count = torch.cuda.device_count()
    print(f"{torch.cuda.get_device_name()}, {count} here; torch {torch.__version__}\n")
    print(
        _LAYOUT.format("row", "images/s", "bare loop", "share", "spread", "copies", "waits", "MiB"),
        flush=True,
    )
    with tempfile.TemporaryDirectory() as directory:
        for name, overrides in CASES.items():
            print(measure(name, overrides, Path(directory)), flush=True)
    print(replayed(), flush=True)
    if count > 1:
        loop, images = bare(())
        print(several(count, images / seconds_of(loop)))
    else:
        print("One GPU: nothing to share among several.")
    print("\nCopies and waits are those of a step. MiB: the most memory of tensors on the device.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
