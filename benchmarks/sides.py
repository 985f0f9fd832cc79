"""The two sides of each row of the benchmark: ours first, then what it is held against.

A side does its work once and returns what that took, in seconds or bytes: less is better.
"""

import contextlib
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, Trainer
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from example import Example
from plain import BATCH, BareLoop, DecoderProducts, GraphLoop, ModelLoop, StepProducts
from vae_lightning import VAE, MNISTDataModule, SamplingNoise
from vae_lightning.configuration.composing import CONFIGS
from vae_lightning.evaluation import measure
from vae_lightning.training import experiment
from vae_lightning.training.trainer import choose_accelerator

EPOCHS = 10
"""Of a default run, and of the example's."""
MEASURED = 6
"""Epochs of a run that is timed. The first isn't counted: denormal numbers appear after it."""
TARGET_ELBO = -105.6
"""What the speedrun must reach on the test images, nats per image."""
IMPORTANCE_SAMPLES = 5000
JOBS = 4
"""Of the sweep that is run on two cores."""

EXAMPLE = str(Path(__file__).with_name("example.py"))
RIVALS = str(Path(__file__).with_name("rivals.py"))
TRAIN = ("-m", "vae_lightning.train")
FIRST_STEP = (
    "import os; from vae_lightning import VAEModule, train; "
    "VAEModule.on_train_batch_end = lambda self, *batch: batch and os._exit(0); train.main()"
)
"""Trains by the real command and leaves the process where the first step ends."""
PEAK = (
    "import resource, subprocess, sys; "
    "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)
"""Runs a command and prints its peak memory; a small process, whose own size the peak includes."""

TERMINAL = (
    "import os, pty, signal, sys, time; "
    "started = time.perf_counter(); "
    "child, terminal = pty.fork(); "
    "child or os.execv(sys.argv[1], sys.argv[1:]); "
    "seen = os.read(terminal, 100); "
    "print((time.perf_counter() - started) * bool(seen)); "
    "os.kill(child, signal.SIGKILL)"
)
"""Runs a command in a terminal and prints after how many seconds it shows something."""

Side = Callable[[], float]


class RowFailed(Exception):
    """A row could not be measured; the message says why, in a line."""


# -- what the rows share ------------------------------------------------------------------------


class Laps(Callback):
    """The seconds of a run's epochs, by what they went to.

    It is the first callback, so that what the others do is counted.

    Attributes:
        training: of each epoch, with its checkpoint and its pictures.
        validation: of each epoch.
        ending: of what comes after the last epoch.
        steps: of the run.
        share: the part of a default run of ten epochs that one of these epochs is, of whose ending
            it bears as much.
    """

    def __init__(self) -> None:
        """Start the clock."""
        self.training: list[float] = []
        self.validation: list[float] = []
        self.ending = 0.0
        self.steps = 0
        self.share = 1 / EPOCHS
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of an epoch's training: the median after the first epoch, and a share of the ending."""
        return statistics.median(self.training[1:] or self.training) + self.ending * self.share

    @property
    def seconds_of_step(self) -> float:
        """The same for each step."""
        return self.seconds * len(self.training) / self.steps

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        synchronize()
        now = time.perf_counter()
        since, self._since = self._since, now
        return now - since

    def on_train_epoch_start(self, *_: Any) -> None:
        """Before the first the parts were built; of the others the last epoch's files written."""
        seconds = self.lap()
        if self.training:
            self.training[-1] += seconds
        self.training.append(0.0)
        self.validation.append(0.0)

    def on_validation_start(self, *_: Any) -> None:
        """The last step is done."""
        self.training[-1] += self.lap()

    def on_validation_end(self, *_: Any) -> None:
        """The best checkpoint, the epoch's pictures and figures come after this."""
        self.validation[-1] += self.lap()

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """The pictures that are drawn once for a run come after this."""
        self.training[-1] += self.lap()
        self.steps = trainer.global_step


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that work takes."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def without_lightning() -> dict[str, str]:
    """Return the environment without a variable that Lightning's import sets.

    It costs a plain loop time as well: torch looks for the GPU's management library at each step of
    an optimiser, 0.25 ms where there is none.
    """
    return {
        name: value for name, value in os.environ.items() if name != "PYTORCH_NVML_BASED_CUDA_CHECK"
    }


def timed_alone(work: Callable[[], object]) -> float:
    """Return the seconds that work takes in a process without Lightning."""
    with patch.dict(os.environ, without_lightning(), clear=True):
        return timed(work)


class Rival:
    """A loop written by hand, in a process of its own: see ``rivals.py``.

    Attributes:
        compiling: seconds that it compiled.
    """

    def __init__(self, kind: str, images: Path) -> None:
        """Start it, on as many cores as torch has threads here.

        Raises:
            RowFailed: it can't run here.
        """
        command: list[str] = [sys.executable, RIVALS, kind, str(images)]
        cores, threads = os.sched_getaffinity(0), torch.get_num_threads()
        os.sched_setaffinity(0, sorted(cores)[:threads])  # JAX takes all there are
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )  # fmt: skip
        finally:
            os.sched_setaffinity(0, cores)
        self.compiling: float = self._answer()

    def seconds(self, epochs: int) -> float:
        """Train anew for so many epochs, and return the median seconds of those after the first."""
        assert self._process.stdin
        print(epochs, file=self._process.stdin, flush=True)
        return statistics.median(self._answer()[1:])

    def _answer(self) -> Any:
        assert self._process.stdout
        assert self._process.stderr
        if not (line := self._process.stdout.readline()):
            last = self._process.stderr.read().strip().splitlines()[-1:]
            raise RowFailed("".join(last))
        return json.loads(line)


class Bench:
    """The data, a model with initial weights, and ways to run what is measured.

    ``quick`` takes less of everything.
    """

    def __init__(self, quick: bool, data_dir: str | None, directory: Path) -> None:
        """Read the data, fetched if they aren't there; take a directory for what the runs write."""
        self.quick = quick
        self.directory = directory
        self.device = torch.device(choose_accelerator("auto"))
        self.data = MNISTDataModule(dir=data_dir)
        self.data_dir = str(self.data.folder.parents[1].absolute())
        self.data.prepare_data()
        self.data.setup()
        self.notes: list[str] = []

    def model(self, **settings: Any) -> VAE:
        """Return the default model, or one of other settings, with its first weights."""
        torch.manual_seed(1)
        return VAE(self.data.spec, **settings)

    def rival(self, kind: str) -> Rival:
        """Start a loop written by hand, on the images that a default run trains on."""
        file = self.directory / "images.npy"
        images = self.data.x["train"][self.data.train_indices].flatten(1)
        np.save(file, images[: 100 * BATCH if self.quick else None].numpy())
        rival = Rival(kind, file)
        if rival.compiling:
            self.notes.append(f"{kind}: {rival.compiling:.1f} s of compiling, not counted")
        return rival

    def images(self) -> Tensor:
        """Return the training file's images on the device, ``[N, 784]``, uint8."""
        return self.data.x["train"].flatten(1).to(self.device)

    def batches(self) -> list[Tensor]:
        """Return the indices of the default run's batches in its first epoch, on the device.

        quick: the first hundred.
        """
        parts = torch.split(self.data.train_dataloader().order(), BATCH)
        return [part.to(self.device) for part in parts[: 100 if self.quick else None]]

    def fit(self, *overrides: str, times_the_data: int = 1) -> Laps:
        """Fit for six epochs, quick: for two of a hundred steps, with overrides; see ``fit``."""
        less = (
            ("trainer.limit_train_batches=100", "trainer.limit_val_batches=2") if self.quick else ()
        )
        return fit(
            self.directory,
            f"data.dir={self.data_dir}",
            *less,
            *overrides,
            epochs=2 if self.quick else MEASURED,
            times_the_data=times_the_data,
        )

    def step_seconds(self, *overrides: str, times_the_data: int = 1) -> float:
        """Return the seconds of training for each step after the first epoch."""
        return self.fit(*overrides, times_the_data=times_the_data).seconds_of_step

    def process(self, *arguments: str, expected: int = 0) -> tuple[float, str]:
        """Run Python in a new directory; return the seconds from start to end, and what it printed.

        Raises:
            RowFailed: it ended with another exit status than the expected one.
        """
        with tempfile.TemporaryDirectory(dir=self.directory) as directory:
            command, environment = [sys.executable, *arguments], without_lightning()
            started = time.perf_counter()
            done = subprocess.run(
                command, cwd=directory, env=environment, capture_output=True, text=True
            )
            seconds = time.perf_counter() - started
        if done.returncode != expected:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise RowFailed(f"a process ended with exit status {done.returncode}: {''.join(last)}")
        return seconds, done.stdout


def fit(
    directory: Path,
    *overrides: str,
    epochs: int = 1,
    times_the_data: int = 1,
    callback: Callback | None = None,
) -> Laps:
    """Fit in this process, by ``train``'s configuration, in a new run directory.

    Args:
        directory: where the run directory is made; it is removed again.
        *overrides: as typed after the command.
        epochs: how many.
        times_the_data: how many times over the training images are there.
        callback: one more.

    Returns:
        The seconds of the epochs.
    """
    with tempfile.TemporaryDirectory(dir=directory) as run, contextlib.chdir(run):
        parts = experiment.build(compose(f"trainer.max_epochs={epochs}", *overrides))
        if times_the_data > 1:
            multiply(parts.data, times_the_data)
        laps = Laps()
        parts.trainer.callbacks.insert(0, laps)  # type: ignore[attr-defined]
        if callback:
            parts.trainer.callbacks.append(callback)  # type: ignore[attr-defined]
        batches = len(parts.data.train_dataloader())
        experiment.fit(parts)
        laps.ending = laps.lap()
        laps.share = laps.steps / epochs / batches / EPOCHS
    return laps


def compose(*overrides: str) -> DictConfig:
    """Return the configuration of ``train``, and let Hydra hold it as it does in a run."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose("train", list(overrides), return_hydra_config=True)
    with open_dict(config):
        config.hydra.runtime.output_dir = str(Path.cwd())
        HydraConfig.instance().set_config(config)
        del config["hydra"]
    return config


def multiply(data: MNISTDataModule, times: int) -> None:
    """Let a data module hold its training images so many times."""
    labels, size = data.y["train"], len(data.x["train"])
    data.x["train"] = data.x["train"].repeat(times, 1, 1, 1)
    data.y["train"] = None if labels is None else labels.repeat(times)
    data.train_indices = torch.cat([data.train_indices + number * size for number in range(times)])


# -- the rows -----------------------------------------------------------------------------------


def rival(bench: Bench, kind: str) -> tuple[Side, Side]:
    """An epoch's training against that of a loop written by hand."""
    other, epochs = bench.rival(kind), 2 if bench.quick else MEASURED
    return lambda: bench.fit().seconds, lambda: other.seconds(epochs)


def model(bench: Bench, overrides: Sequence[str], epochs: int, batches: int) -> tuple[Side, Side]:
    """A step of another model against a bare loop with the same layers.

    Args:
        bench: what the rows share.
        overrides: what ``train`` is told.
        epochs: how many a side fits; the first isn't counted.
        batches: in an epoch; quick: a tenth.
    """
    config = compose(f"data.dir={bench.data_dir}", *overrides)
    _, data = experiment.build_sketch(config, 1)
    settings: Any = OmegaConf.to_container(config.model)
    del settings["_target_"]
    loop = BareLoop(VAE(data.spec, **settings), bench.images(), data.batch_size)
    count = batches // 10 if bench.quick else batches
    limits = (f"trainer.limit_train_batches={count}", "trainer.limit_val_batches=1")

    def ours() -> float:
        run = (*overrides, *limits, f"data.dir={bench.data_dir}")
        return fit(bench.directory, *run, epochs=epochs).seconds_of_step

    def theirs() -> float:
        order = torch.randperm(len(loop.images), device=bench.device).split(loop.batch)[:count]
        return timed_alone(lambda: loop.run(order)) / count

    return ours, theirs


def own_loss(
    bench: Bench, overrides: Sequence[str], epochs: int, batches: int
) -> tuple[Side, Side]:
    """A step of any model against a loop that calls the model's own loss, and does nothing else.

    Args: see ``model``. A prior over codes is trained on those of a VQ-VAE of a few steps.
    """
    data_dir = f"data.dir={bench.data_dir}"
    run = (*overrides, data_dir)
    if "experiment=prior" in overrides:
        codes = bench.directory / "codes"
        first = ("experiment=vqvae", "trainer.max_epochs=1", "trainer.limit_train_batches=20")
        bench.process(*TRAIN, *first, data_dir, "callbacks=minimal", f"hydra.run.dir={codes}")
        run = (*run, f"data.run={codes}")
    with tempfile.TemporaryDirectory(dir=bench.directory) as directory, contextlib.chdir(directory):
        parts = experiment.build(compose(*run))
    data, count = parts.data, batches // 10 if bench.quick else batches
    x = data.x["train"][data.train_indices].to(bench.device)
    clip = parts.trainer.gradient_clip_val
    loop = ModelLoop(parts.module.model.to(bench.device), x, data.batch_size, clip)
    limits = (f"trainer.limit_train_batches={count}", "trainer.limit_val_batches=1")

    def ours() -> float:
        return fit(bench.directory, *run, *limits, epochs=epochs).seconds_of_step

    def theirs() -> float:
        order = torch.randperm(len(x), device=bench.device).split(loop.batch)[:count]
        return timed_alone(lambda: loop.run(order)) / count

    return ours, theirs


def products(bench: Bench) -> tuple[Side, Side]:
    """A training step against its matrix products."""
    alone, steps = StepProducts(bench.model(), bench.device), len(bench.batches())
    return bench.step_seconds, lambda: timed(lambda: alone.run(steps)) / steps


def graph(bench: Bench) -> tuple[Side, Side]:
    """A training step against the bare loop's as a CUDA graph, with batches of one size."""
    if bench.device.type != "cuda":
        raise RowFailed("there is no CUDA GPU here")
    loop, batches = (
        GraphLoop(bench.model(), bench.images()),
        [each for each in bench.batches() if len(each) == BATCH],
    )
    return bench.step_seconds, lambda: timed_alone(lambda: loop.run(batches)) / len(batches)


def epoch(bench: Bench) -> tuple[Side, Side]:
    """An epoch over the 60,000 training images with its test pass, against the example's."""
    example = Example(Path(bench.data_dir), *((100 * BATCH, 2000) if bench.quick else ()))

    def theirs() -> float:
        return timed_alone(lambda: (example.train(), example.test()))

    def ours() -> float:
        laps = bench.fit("experiment=pytorch_example")
        return laps.seconds + statistics.median(laps.validation[1:])

    return ours, theirs


def speedrun(bench: Bench) -> tuple[Side, Side]:
    """The process that reaches the target against the example's."""

    def ours() -> float:
        with tempfile.TemporaryDirectory(dir=bench.directory) as run:
            overrides = (
                "experiment=speedrun",
                f"data.dir={bench.data_dir}",
                f"hydra.run.dir={run}",
            )
            seconds, _ = bench.process(*TRAIN, *overrides)
            reached = json.loads((Path(run) / "metrics.json").read_text())["figures"]["test/elbo"]
        if reached < TARGET_ELBO:
            raise RowFailed(
                f"the test ELBO came to {reached:.3f} after {seconds:.1f} s, "
                f"which is below {TARGET_ELBO}"
            )
        return seconds

    def theirs() -> float:
        epochs = 1 if bench.quick else EPOCHS
        seconds, printed = bench.process(
            EXAMPLE, "--data-dir", bench.data_dir, "--epochs", str(epochs)
        )
        each = [float(found) for found in re.findall(r"([\d.]+) s$", printed, re.MULTILINE)]
        return seconds + (EPOCHS - epochs) * statistics.mean(each)

    return ours, theirs


def log_marginal(bench: Bench) -> tuple[Side, Side]:
    """Importance sampling against the decoder's matrix products."""
    count, model = 20 if bench.quick else 200, bench.model().eval().to(bench.device)
    images, memory = (
        bench.data.split("test", count),
        OmegaConf.load(CONFIGS / "evaluate.yaml").memory_mb,
    )
    measuring = functools.partial(
        measure.evaluate, model, images, ["log_marginal"], IMPORTANCE_SAMPLES, memory
    )
    alone = DecoderProducts(model, bench.device)
    return lambda: timed(measuring), lambda: timed(lambda: alone.run(count * IMPORTANCE_SAMPLES))


def samples(bench: Bench) -> tuple[Side, Side]:
    """An image drawn from the prior against the decoder's matrix products."""
    count, model = 20_000 if bench.quick else 100_000, bench.model().eval().requires_grad_(False)
    alone = DecoderProducts(model, torch.device("cpu"))

    @torch.inference_mode()
    def draw() -> None:
        model.sample(count, SamplingNoise(count))

    return lambda: timed(draw) / count, lambda: timed(lambda: alone.run(count)) / count


def startup(bench: Bench, arguments: Sequence[str], expected: int) -> tuple[Side, Side]:
    """A command's answer against the import of Hydra."""
    return lambda: bench.process(*TRAIN, *arguments, expected=expected)[0], lambda: bench.process(
        "-c", "import hydra"
    )[0]


def first_step(bench: Bench) -> tuple[Side, Side]:
    """The way to the first step against that through the imports."""
    ours = ("-c", FIRST_STEP, f"data.dir={bench.data_dir}")
    return lambda: bench.process(*ours)[0], lambda: bench.process("-c", "import torch, lightning")[
        0
    ]


def memory(bench: Bench) -> tuple[Side, Side]:
    """The peak of a run's resident memory against that of the example's."""
    ours = [*TRAIN, f"data.dir={bench.data_dir}", "trainer.max_epochs=1"]
    theirs = [EXAMPLE, "--data-dir", bench.data_dir, "--epochs", "1"]
    if bench.quick:
        ours.append("trainer.limit_train_batches=100")
        theirs.append(f"--train-images={100 * BATCH}")
    unit = 1 if sys.platform == "darwin" else 1024

    def peak(command: Sequence[str]) -> float:
        return unit * float(bench.process("-c", PEAK, sys.executable, *command)[1])

    return lambda: peak(ours), lambda: peak(theirs)


def first_line(bench: Bench) -> tuple[Side, Side]:
    """The way to a command's first line on a terminal, against a second."""

    def ours() -> float:
        if not (seconds := float(bench.process("-c", TERMINAL, sys.executable, *TRAIN)[1])):
            raise RowFailed("a terminal showed nothing")
        return seconds

    return ours, lambda: 1.0


def logging(bench: Bench) -> tuple[Side, Side]:
    """A training step where each is logged against one where every fiftieth is."""
    return lambda: bench.step_seconds("trainer.log_every_n_steps=1"), lambda: bench.step_seconds(
        "trainer.log_every_n_steps=50"
    )


def scaling(bench: Bench) -> tuple[Side, Side]:
    """A training step with ten times the data against one with the data once."""
    steps = f"trainer.limit_train_batches={len(bench.batches())}"
    return lambda: bench.step_seconds(steps, times_the_data=10), lambda: bench.step_seconds(steps)


def joblib(bench: Bench, overrides: Sequence[str]) -> tuple[Side, Side]:
    """A sweep on two cores, two jobs at a time, against the same in order."""
    if not hasattr(os, "sched_setaffinity") or len(cores := sorted(os.sched_getaffinity(0))) < 2:
        raise RowFailed("a process can't be held to two cores here")
    less = ("trainer.limit_train_batches=100",) if bench.quick else ()
    seeds = ",".join(map(str, range(1, JOBS + 1)))
    line = (*TRAIN, "--multirun", f"seed={seeds}", f"data.dir={bench.data_dir}", *overrides, *less)

    def swept(*launcher: str) -> float:
        os.sched_setaffinity(0, cores[:2])
        try:
            return bench.process(*line, *launcher)[0]
        finally:
            os.sched_setaffinity(0, cores)

    return lambda: swept("hydra/launcher=joblib"), swept
