"""Generated overrides are trained with as typed, or refused.

python benchmarks/chaos/overrides.py [--examples 500] [--subprocesses 30] [--seed N]

Each example is one override of a key of the configuration, right or wrong, run by the real command
on the 600 digits of the tests. What is right is said here independently of the parts' own checks:
by a reading of the constructors' type hints, and by ``RULES`` for what a type can't say. An example
fails if a wrong value trains, if a right one is refused or arrives as another one, if a refusal
takes more than five lines, doesn't name the key, leaves a file behind or ends with exit code 0, or
if anything else than these two happens. The examples are the same each time, but with ``--seed``.
Exit status 1: one failed.
"""

import argparse
import collections
import contextlib
import functools
import io
import math
import os
import subprocess
import sys
import tempfile
import time
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import hydra
import numpy as np
from hypothesis import HealthCheck, Phase, assume, given, seed, settings
from hypothesis import strategies as st
from lightning import Trainer
from omegaconf import OmegaConf

from vae_lightning import VAE, MNISTDataModule, train
from vae_lightning.configuration.composing import CONFIGS
from vae_lightning.data.batches import Seed
from vae_lightning.data.catalogue import DATASETS
from vae_lightning.training import experiment
from vae_lightning.training.optimizers import Optimization

DATA = Path(__file__).parents[2] / "tests" / "data"
BASE = [
    "data=mnist_subset",
    f"data.dir={DATA}",
    "data.batch_size=100",
    "model.hidden_dims=[8]",
    "model.latent_dim=2",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "trainer.max_steps=4",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "logger=none",
]
"""Four steps on the CPU: what every example is laid over."""

# -- what is typed -------------------------------------------------------------------------------

Meaning = Literal["right", "wrong", "diverging"]


@dataclass(frozen=True)
class Override:
    """An override, and the value that was meant by it."""

    key: str
    text: str
    value: Any

    def __str__(self) -> str:
        """Return it as typed."""
        return f"{self.key}={self.text}"


class Nonsense:
    """A value that no key takes: Hydra refuses the text, or what it refers to isn't there."""


SHARED = {
    **{
        text: int(text)
        for text in (
            "0",
            "1",
            "2",
            "3",
            "-1",
            "-2",
            "-7",
            "4294967295",
            "4294967296",
            "18446744073709551616",
        )
    },
    **{
        text: float(text)
        for text in (
            "0.5",
            "1.0",
            "1.5",
            "-0.5",
            "-1.0",
            "1e-3",
            "1e3",
            "1e39",
            "1e-50",
            "nan",
            "inf",
            "-inf",
            "1e400",
            "-0.0",
        )
    },
    "1000000000": 10**9,
    "1000000000000": 10**12,
    "1_0": 10,
    "true": True,
    "False": False,
    "null": None,
    "''": "",
    "'3'": "3",
    "'1e-3'": "1e-3",
    "'true'": "true",
    "'null'": "null",
    "abc": "abc",
    "0x10": "0x10",
    "3 4": "3 4",
    "ünï": "ünï",
    "'数字=1'": "数字=1",
    "[]": [],
    "[8]": [8],
    "[8,8]": [8, 8],
    "[[8]]": [[8]],
    "[8,0]": [8, 0],
    "[8,-1]": [8, -1],
    "[8,1.5]": [8, 1.5],
    "[8,true]": [8, True],
    "[null]": [None],
    "['8']": ["8"],
    "[1000000000]": [10**9],
    "{}": {},
    "{a:1}": {"a": 1},
    "{eps:1e-4}": {"eps": 1e-4},
    "{eps:abc}": {"eps": "abc"},
    "{eps:nan}": {"eps": math.nan},
    "{eps:-1.0}": {"eps": -1.0},
    "{betas:[0.9,0.99]}": {"betas": [0.9, 0.99]},
    "{betas:[0.9]}": {"betas": [0.9]},
    "{betas:0.9}": {"betas": 0.9},
    "{amsgrad:true}": {"amsgrad": True},
    "{amsgrad:abc}": {"amsgrad": "abc"},
    "{foreach:true}": {"foreach": True},
    "{lr:1.0}": {"lr": 1.0},
    "${seed}": 1,
    "${data.batch_size}": 100,
    "'${model.network}'": "mlp",
    "${nosuch}": Nonsense,
    "'${model.nosuch}'": Nonsense,
    "'${oc.env:NO_SUCH_VARIABLE}'": Nonsense,
    "'${nosuch:1}'": Nonsense,
    "1,2": Nonsense,
    "[1": Nonsense,
    "{a:1": Nonsense,
    "'abc": Nonsense,
    "a:b}": Nonsense,
}
"""What is tried with every key: texts, and what Hydra's grammar makes of them."""


def own(kind: Any) -> st.SearchStrategy[tuple[str, Any]]:
    """Draw texts and values of a kind, some of them out of range."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return own(arguments[0])
    if origin is Literal:
        return st.sampled_from(
            [(str(each) if isinstance(each, int) else f"'{each}'", each) for each in arguments]
        )
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*(own(each) for each in arguments))
    if kind is bool:
        return st.sampled_from([("true", True), ("false", False)])
    if kind is int:
        return st.integers(-3, 40).map(lambda n: (str(n), n))
    if kind is float:
        return st.floats(-1, 2, allow_subnormal=False).map(lambda x: (repr(x), x))
    if origin is collections.abc.Sequence:
        return st.lists(own(arguments[0]), max_size=4).map(
            lambda pairs: (f"[{','.join(t for t, _ in pairs)}]", [v for _, v in pairs])
        )
    return st.just(("null", None))


@functools.cache
def kinds() -> dict[str, Any]:
    """Return the type hint of each key whose value a constructor receives."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose("train")
    found = {"seed": Seed}
    groups = {"model": VAE, "optimizer": Optimization, "data": MNISTDataModule, "trainer": Trainer}
    groups |= {
        f"callbacks.{name}": hydra.utils.get_class(part._target_)
        for name, part in config.callbacks.items()
    }
    for group, constructor in groups.items():
        if group in ("callbacks.best", "callbacks.last"):  # their values are paths and names
            continue
        hints = typing.get_type_hints(constructor.__init__, include_extras=True)
        found |= {
            f"{group}.{key}": hints[key]
            for key in OmegaConf.select(config, group)
            if key != "_target_"
        }
    return found


@st.composite
def overrides(draw: Callable[..., Any]) -> Override:
    """Draw an override: a key, and a text that is tried with every key or with such a key only."""
    key = draw(st.sampled_from(sorted(kinds())))
    kind = own(kinds()[key])
    text, value = draw(st.one_of(kind, kind, st.sampled_from(list(SHARED.items()))))
    assume((key, value) not in AVOIDED)
    return Override(key, text, value)


AVOIDED = [
    ("model.compile", True),
    *(("data.name", name) for name in DATASETS if name != "mnist_subset"),
    *(("trainer.devices", processes) for processes in range(2, (os.cpu_count() or 1) + 1)),
]
"""What would compile for a minute, download, or start other processes by this one's line."""


# -- what is right -------------------------------------------------------------------------------

MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

RULES: dict[str, Callable[[Any], bool]] = {
    "model.latent_dim": lambda value: value < 10**8,
    "model.hidden_dims": lambda value: max(value, default=0) < 10**8,
    "model.num_samples": lambda value: value < 10**8,
    "model.num_classes": lambda value: value in (0, 10),
    "model.kl_schedule": lambda value: value == "constant",  # the others need kl_schedule_steps
    "optimizer.options": lambda value: str(value) in ADAM_OPTIONS,
    "optimizer.schedule_options": lambda value: not value,  # they are those of another schedule
    "optimizer.schedule_passes": bool,
    "callbacks.early_stopping.monitor": lambda value: False,  # the names of figures aren't drawn
    "callbacks.early_stopping.mode": lambda value: value == "max",  # as the criterion has it
    "data.dir": lambda value: False,  # the digits lie elsewhere
    "data.val_size": lambda value: value < 400,
    "data.validate_on_test": lambda value: value is False,  # 80 images are held out
    "data.dequantize": lambda value: value is False,  # a Bernoulli is no density
    "trainer.accelerator": lambda value: value in ("auto", "cpu"),
    "trainer.devices": lambda value: type(value) is int and value == 1,
    "trainer.num_nodes": lambda value: value == 1,  # more are started by torchrun
    "trainer.precision": lambda value: value in PRECISIONS,
    "trainer.max_epochs": lambda value: value is not None and (value == -1 or value > 0),
    "trainer.max_steps": lambda value: value == -1 or value > 0,
    "trainer.limit_train_batches": lambda value: is_share(value, 4) and value > 0,
    "trainer.limit_val_batches": lambda value: is_share(value, 1),
    "trainer.limit_test_batches": lambda value: is_share(value, 1),
    "trainer.overfit_batches": lambda value: is_share(value, 1),
    "trainer.fast_dev_run": lambda value: value >= 0,
    "trainer.log_every_n_steps": lambda value: value is not None and value >= 0,
    "trainer.check_val_every_n_epoch": lambda value: value is not None and value > 0,
    "trainer.val_check_interval": lambda value: is_interval(value, 4),
    "trainer.accumulate_grad_batches": lambda value: value > 0,
    "trainer.gradient_clip_val": lambda value: value is None or value >= 0,
    "trainer.num_sanity_val_steps": lambda value: value is not None and value >= -1,
}
"""What a type hint can't say: of values that it admits, those that are right over ``BASE``."""

ADAM_OPTIONS = ["None", "{}", "{'eps': 0.0001}", "{'betas': [0.9, 0.99]}", "{'amsgrad': True}"]
PRECISIONS = (
    "32-true",
    "32",
    32,
    "64-true",
    "64",
    64,
    "bf16-mixed",
    "bf16",
    "bf16-true",
    "16-true",
)


def is_share(value: Any, batches: int) -> bool:
    """Say whether a value is a number of batches, or a part of so many that holds at least one."""
    if value is None or isinstance(value, int):
        return value is not None and value >= 0
    return value == 0 or (0 < value <= 1 and int(value * batches) >= 1)


def is_interval(value: Any, batches: int) -> bool:
    """Say whether a value is a number of batches that there are, or a part of them, or null."""
    if value is None:
        return True
    if isinstance(value, float):
        return 0 < value <= 1
    return isinstance(value, int) and 0 < value <= batches


def numbers(value: Any) -> Iterator[float]:
    """Yield the numbers in a value."""
    if isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers(each)
    elif isinstance(value, int | float):
        yield value


def is_held(number: float) -> bool:
    """Say whether 53 bits hold a whole number, and float32 another one."""
    if isinstance(number, int):
        return number < 2**53
    tiny, huge = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    return number == 0 or not math.isfinite(number) or tiny <= abs(number) <= huge


def admits(kind: Any, value: Any) -> bool:
    """Say whether a type hint admits a value.

    A bool isn't a number, a number isn't a string, a float is neither an int nor infinite.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return admits(arguments[0], value) and all(
            fits(bound, value) for each in arguments[1:] for bound in bounds(each)
        )
    if origin in (typing.Union, types.UnionType):
        return any(admits(each, value) for each in arguments)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in arguments)
    if origin is collections.abc.Sequence:
        return isinstance(value, list) and all(admits(arguments[0], each) for each in value)
    if origin is dict:
        return isinstance(value, dict)
    if kind is float:
        return (
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        )
    return value is None if kind is types.NoneType else type(value) is kind


def bounds(annotation: Any) -> Iterator[Any]:
    """Return the bounds that an annotation holds."""
    yield from getattr(annotation, "metadata", [annotation])


def fits(bound: Any, value: Any) -> bool:
    """Say whether a value keeps a bound of annotated-types."""
    checks = {
        "gt": lambda limit: value > limit,
        "ge": lambda limit: value >= limit,
        "lt": lambda limit: value < limit,
        "le": lambda limit: value <= limit,
        "min_length": lambda limit: len(value) >= limit,
    }
    return all(
        check(getattr(bound, name))
        for name, check in checks.items()
        if getattr(bound, name, None) is not None
    )


def meaning(override: Override) -> Meaning:
    """Say whether an override is right."""
    value, key = override.value, override.key
    if key == PATIENCE and value is None:  # no early stopping, as by default
        return "right"
    if value is Nonsense or not all(map(is_held, numbers(value))):
        return "wrong"
    if not admits(kinds()[key], value) or not RULES.get(key, lambda _: True)(value):
        return "wrong"
    # The largest number of 16-true is 65,504: a loss over pixels soon reaches it.
    if key == "trainer.precision" and value == "16-true":
        return "diverging"
    return (
        "diverging"
        if key in DIVERGING and value is not None and value > DIVERGING[key]
        else "right"
    )


DIVERGING = {
    "optimizer.learning_rate": 0.1,
    "optimizer.weight_decay": 0.1,
    "model.initial_scale": 1,
    "model.kl_weight": 10,
}
"""Above these the loss may grow past all bounds, which is an error when it has."""


# -- what happens --------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of an example: ``trained`` with what the part received, or ``refused`` and why."""

    kind: Literal["trained", "refused", "crashed"]
    message: str = ""
    received: Any = None
    left: list[str] = field(default_factory=list)
    seconds: float = 0.0
    processor_seconds: float = 0.0  # in this process alone: another one's are spent on imports


PATIENCE = "callbacks.early_stopping.patience"


def line_of(override: Override) -> list[str]:
    """Return the arguments of the command, which refuses a key that is typed twice."""
    base = [each for each in BASE if each.partition("=")[0] != override.key]
    if override.key.startswith("callbacks.early_stopping.") and override.key != PATIENCE:
        base.append(f"{PATIENCE}=1")  # without it the callback is left out
    callback = override.key.split(".")[1] if override.key.startswith("callbacks.") else None
    if callback:
        others = [
            path.stem
            for path in (CONFIGS / "callbacks").glob("*.yaml")
            if path.stem not in ("default", "minimal", "ema", callback)
        ]
        return [*base, *(f"~callbacks.{name}" for name in others), str(override)]
    return [*base, "callbacks=minimal", str(override)]


def run_here(override: Override) -> Outcome:
    """Run the command in this process, in a directory of its own."""
    built: list[experiment.Experiment] = []
    real = experiment.build

    def build(config: Any) -> experiment.Experiment:
        built.append(real(config))
        return built[-1]

    arguments = ["train", *line_of(override)]
    started = time.process_time()
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.chdir(directory),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as errors,
        mock.patch.object(experiment, "build", build),
        mock.patch.object(sys, "argv", arguments),
        mock.patch.dict(os.environ, HYDRA_FULL_ERROR="0"),
    ):
        outcome = Outcome("trained")
        try:
            train.main()
            outcome.received = received(override.key, built[-1])
        except SystemExit as stop:
            outcome = Outcome(
                "refused" if stop.code else "crashed", errors.getvalue() + str(stop.code)
            )
            outcome.left = sorted(os.listdir()) if not built else []
        except BaseException as error:
            outcome = Outcome("crashed", f"{type(error).__name__}: {error}")
    outcome.seconds = outcome.processor_seconds = time.process_time() - started
    return outcome


def run_apart(override: Override) -> Outcome:
    """Run the command in a process of its own."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "vae_lightning.train", *line_of(override)]
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
        left = sorted(os.listdir(directory))
    seconds = time.perf_counter() - started
    if done.returncode == 0:
        return Outcome("trained", received=override.value, seconds=seconds)
    if done.returncode != 1 or "Traceback" in done.stderr:
        return Outcome(
            "crashed", f"exit status {done.returncode}: {done.stderr[-300:]}", seconds=seconds
        )
    return Outcome(
        "refused", done.stderr.strip(), left=[] if "steps" in done.stderr else left, seconds=seconds
    )


def received(key: str, parts: experiment.Experiment) -> Any:
    """Return the value of a key that its part holds."""
    group, _, name = key.rpartition(".")
    if key == "seed":
        return parts.seed
    settings = {
        "model": parts.module.model.settings,
        "optimizer": parts.module.optimization.settings,
        "data": parts.data.settings | {"dir": str(parts.data.folder)},
    }
    if group in settings:
        return settings[group][name]
    saved: Any = OmegaConf.load(parts.directory / ".hydra" / "config.yaml")
    if group.startswith("callbacks."):
        described = OmegaConf.to_container(OmegaConf.select(saved, group), resolve=True)
        return described[name]
    return OmegaConf.to_container(saved.trainer, resolve=True)[name]  # type: ignore[call-overload,index]


def is_same(one: Any, other: Any) -> bool:
    """Say whether two values are equal and of one type; a whole number may arrive as a float."""
    if isinstance(one, float) and type(other) is int:
        return one == other
    return type(one) is type(other) and one == other


def fault(override: Override, outcome: Outcome) -> str | None:
    """Say what is wrong with what came of an example; None: nothing."""
    expected = meaning(override)
    if outcome.kind == "crashed":
        return f"crashed: {outcome.message[:160]}"
    if outcome.kind == "trained":
        if expected == "wrong":
            return "trained with a wrong value"
        return (
            None
            if is_same(outcome.received, override.value)
            else f"received as {outcome.received!r}"
        )
    if expected == "right":
        return f"a right value was refused: {outcome.message[:160]}"
    if len(outcome.message.splitlines()) > 5:
        return f"told in {len(outcome.message.splitlines())} lines"
    if expected == "wrong" and override.key.rpartition(".")[2] not in outcome.message:
        return f"the key isn't named: {outcome.message[:160]}"
    if outcome.processor_seconds > SECONDS:
        return f"refused after {outcome.processor_seconds:.1f} s"
    return f"left {outcome.left} behind" if outcome.left else None


SECONDS = 3
"""What a refusal may take of the processor, without the imports; a busy machine makes no fault."""


# -- the campaign --------------------------------------------------------------------------------


def examples(count: int, drawn_by: int | None = None) -> list[Override]:
    """Return overrides, all different; the same each time, but with a seed."""
    found: dict[str, Override] = {}

    @given(overrides())
    @settings(
        max_examples=2 * count,
        derandomize=drawn_by is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def collect(override: Override) -> None:
        if len(found) < count:
            found[str(override)] = override

    (collect if drawn_by is None else seed(drawn_by)(collect))()
    return list(found.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, print each fault and a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--examples", type=int, default=500, help="how many are run in this process"
    )
    parser.add_argument(
        "--subprocesses",
        type=int,
        default=30,
        help="how many of them in a process of their own as well",
    )
    parser.add_argument(
        "--seed", type=int, help="draw anew; by default the examples are the same each time"
    )
    options = parser.parse_args(arguments)
    drawn = examples(options.examples, options.seed)
    apart = (
        drawn[:: max(1, len(drawn) // options.subprocesses)][: options.subprocesses]
        if options.subprocesses
        else []
    )
    faults, rows = 0, []
    for name, run, chosen in (
        ("in one process", run_here, drawn),
        ("as processes", run_apart, apart),
    ):
        counts, slowest = collections.Counter[str](), 0.0
        for override in chosen:
            outcome = run(override)
            counts[outcome.kind] += 1
            if outcome.kind == "refused":
                slowest = max(slowest, outcome.seconds)
            if problem := fault(override, outcome):
                faults += 1
                counts["faults"] += 1
                print(f"{override}: {problem}", flush=True)
        rows.append(
            (
                name,
                len(chosen),
                counts["trained"],
                counts["refused"],
                counts["faults"],
                f"{slowest:.1f} s",
            )
        )
    layout = "{:<16}{:>10}{:>10}{:>10}{:>10}{:>18}"
    print(layout.format("", "examples", "trained", "refused", "faults", "slowest refusal"))
    for row in rows:
        print(layout.format(*row))
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
