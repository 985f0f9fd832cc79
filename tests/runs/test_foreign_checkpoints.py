"""A checkpoint with missing or wrong fields is refused in a line, or does no harm.

Each has the SHA-256 that belongs to it, so that it isn't taken for a damaged one.
"""

import hashlib
import random
import shutil

import pytest
import torch

from chaos.runs import MINIMAL, SMALL, run_of, signalled, train
from conftest import typed
from vae_lightning import VAE
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.checkpoints import data_of, file_of_step, load_model, read

STEP = 5
SHORT = [
    *SMALL,
    MINIMAL,
    "optimizer.schedule=one_cycle",
    "callbacks.early_stopping.patience=3",
    "callbacks.last.every_n_steps=1",
]
MISSING = object()
WRONG = {
    "missing": MISSING,
    "None": None,
    "text": "x",
    "escapes": "\x1b[31mred\nline",
    "true": True,
    "negative": -1,
    "large": 2**40,
    "huge": 10**30,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "empty list": [],
    "list": [1, 2],
    "empty": {},
    "nested": {"a": {"b": [None]}},
    "tensor": torch.zeros(3),
    "complex": torch.zeros(2, 2, dtype=torch.complex64),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run directory, stopped in its second epoch, and the content of its checkpoint."""
    directory = tmp_path_factory.mktemp("stopped")
    with signalled([STEP]):
        assert train(directory, *SHORT) == 143
    run = run_of(directory)
    for file in (run / "checkpoints").iterdir():
        if f"{STEP:08d}" not in file.name:
            file.unlink()
    return run, torch.load(file_of_step(run, STEP), weights_only=True)


def places(content, place=()):
    """Yield the place of each value in nested dictionaries, and of the first in each list."""
    if place:
        yield place
    if isinstance(content, dict | list | tuple) and content:
        for key in content if isinstance(content, dict) else [0]:
            yield from places(content[key], (*place, key))


def changed(content, place, value):
    """Return nested content with another value in a place, or none."""
    key, *rest = place
    copied = content.copy() if isinstance(content, dict) else list(content)
    if rest:
        copied[key] = changed(copied[key], rest, value)
    elif value is MISSING:
        del copied[key]
    else:
        copied[key] = value
    return tuple(copied) if isinstance(content, tuple) else copied


def write(content, file):
    torch.save(content, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.with_name(f"{file.name}.sha256").write_text(f"{digest}  {file.name}\n")


def error_of(function, file):
    """Return the error of a function that refuses a file; empty: it takes it."""
    try:
        function(file)
    except ConfigurationError as error:
        return str(error)
    return ""


def refused_or_fit(stopped, directory, content):
    """Resume a run whose checkpoint has a content; return the error, or None."""
    run = shutil.copytree(stopped, directory / "run", symlinks=True)
    write(content, file_of_step(run, STEP))
    status = train(directory, f"resume={run}")
    if status == 0:
        return None
    assert isinstance(status, str), status
    assert status.startswith("error: ")
    assert len(status.splitlines()) <= 2
    assert "\x1b" not in status
    return status


NEEDED = [
    *(("epoch",), ("global_step",), ("pytorch-lightning_version",), ("state_dict",)),
    *(("loops",), ("loops", "fit_loop"), ("loops", "fit_loop", "epoch_progress")),
    *(("optimizer_states",), ("optimizer_states", 0, "state"), ("lr_schedulers",)),
    *(("callbacks",), ("figures",), ("figures", "window")),
    *(("hyper_parameters",), ("hyper_parameters", "model"), ("hyper_parameters", "seed")),
    *(("hyper_parameters", "model", "settings"), ("hyper_parameters", "trainer")),
    *(("datamodule_hyper_parameters",), ("datamodule_hyper_parameters", "data", "settings")),
    *(("envelope",), ("envelope", "processes")),
]


@pytest.mark.parametrize("place", NEEDED, ids=str)
@pytest.mark.parametrize("wrong", ["missing", "text"])
def test_a_run_is_not_resumed_from_a_checkpoint_without_what_it_needs(
    stopped, tmp_path, place, wrong
):
    run, good = stopped
    told = refused_or_fit(run, tmp_path, changed(good, place, WRONG[wrong]))
    assert told is not None
    assert f"run: can't go on from its step {STEP}" in told


@pytest.mark.slow
def test_whatever_is_wrong_with_a_field_a_resume_says_so_or_ends_well(stopped, tmp_path):
    run, good = stopped
    cases = [(place, wrong) for place in places(good) for wrong in WRONG]
    refused = []
    for number, (place, wrong) in enumerate(random.Random(1).sample(cases, 30)):
        content = changed(good, place, WRONG[wrong])
        refused.append(refused_or_fit(run, tmp_path / str(number), content) is not None)
    assert 10 < sum(refused) < 30


@pytest.mark.slow
def test_whatever_is_wrong_with_a_field_a_model_is_loaded_or_refused_in_a_line(stopped, tmp_path):
    _, good = stopped
    file, refused = tmp_path / "model.ckpt", set()
    used = [place for place in places(good) if len(place) == 1 or "parameters" in place[0]]
    cases = [(place, wrong) for place in used for wrong in WRONG]
    for place, wrong in random.Random(1).sample(cases, 300):
        write(changed(good, place, WRONG[wrong]), file)
        for function in (load_model, lambda file: data_of(file, read(file))):
            told = error_of(function, file)
            assert told.isprintable()
            refused |= {place[0]} if told else set()
    assert refused == {
        *("state_dict", "epoch", "global_step", "hyper_parameters", "datamodule_hyper_parameters")
    }


@pytest.mark.parametrize("command", ["evaluate", "sample"])
@pytest.mark.parametrize("place", [("global_step",), ("hyper_parameters", "seed")], ids=str)
def test_a_command_refuses_a_checkpoint_without_what_it_needs(
    stopped, tmp_path, monkeypatch, command, place
):
    file = tmp_path / "model.ckpt"
    write(changed(stopped[1], place, MISSING), file)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as exit_:
        typed(command, f"checkpoint={file}", directory=tmp_path, patch=monkeypatch)
    told = f"error: checkpoint={file}: not a checkpoint of this project, or damaged"
    assert exit_.value.code == told
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [("values", "x"), ("vocabulary", 1.5), ("class_names", ["<b>", 3]), ("shape", [1, 28, -28])],
)
def test_a_spec_of_no_data_is_refused_when_a_model_is_loaded(stopped, tmp_path, field, value):
    file = tmp_path / "model.ckpt"
    write(changed(stopped[1], ("hyper_parameters", "model", "data", field), value), file)
    with pytest.raises(ConfigurationError, match="not a checkpoint of this project, or damaged"):
        load_model(file)


@pytest.mark.parametrize("repeated", [False, True])
def test_a_file_does_not_make_a_model_take_more_memory_than_the_file(
    stopped, tmp_path, monkeypatch, repeated
):
    """By settings alone, and with weights of that shape that repeat a single number."""
    _, good = stopped
    width = 10**9
    place = ("hyper_parameters", "model", "settings", "hidden_dims")
    content = changed(good, place, [width])
    if repeated:
        shapes = {
            name: [width if size == 16 else size for size in weight.shape]
            for name, weight in good["state_dict"].items()
        }
        content["state_dict"] = {
            name: torch.zeros(1).expand(shape) if width in shape else torch.zeros(shape)
            for name, shape in shapes.items()
        }
    write(content, tmp_path / "model.ckpt")
    devices, build = set(), VAE.__init__

    def noted(self, *arguments, **settings):
        devices.add(torch.empty(0).device.type)
        if devices == {"meta"}:
            build(self, *arguments, **settings)

    monkeypatch.setattr(VAE, "__init__", noted)
    with pytest.raises(ConfigurationError, match="not a checkpoint of this project"):
        load_model(tmp_path / "model.ckpt")
    assert devices == {"meta"}


def test_what_an_optimiser_remembers_has_the_sizes_of_the_weights(stopped, tmp_path):
    """Else torch's kernels read beyond it, and the process ends without a word."""
    run, good = stopped
    wrong = {
        "repeats a number": torch.zeros(1).expand(16, 784),
        "is a scalar": torch.zeros(()),
        "is complex": torch.zeros(16, 784, dtype=torch.complex64),
    }
    for number, (name, value) in enumerate(wrong.items()):
        content = changed(good, ("optimizer_states", 0, "state", 0, "exp_avg"), value)
        told = refused_or_fit(run, tmp_path / str(number), content)
        assert "exp_avg isn't of its weight" in str(told), name
    content = changed(good, ("optimizer_states", 0, "param_groups", 0, "params"), [7, *range(7)])
    told = refused_or_fit(run, tmp_path / "swapped", content)
    assert "optimizer_states is of other weights" in str(told)


def test_a_text_of_a_checkpoint_is_printed_as_text(stopped, tmp_path, capfd):
    """As a line of its own it could be run by what reads the log, or obeyed by the terminal."""
    run, good = stopped
    crafted = "x\nimport os; os.abort()\n\x1b]0;title\x07"
    assert refused_or_fit(run, tmp_path, changed(good, ("envelope", "torch"), crafted)) is None
    shown = capfd.readouterr()
    logged = (tmp_path / "run" / "train.log").read_text()
    for text in (shown.out, shown.err, logged):
        assert not any(line.startswith("import os") for line in text.splitlines())
        assert "\x1b" not in text
        assert "\x07" not in text
    assert r"torch x\nimport os; os.abort()\n\x1b]0;title\x07 then" in shown.out
    assert r"torch x\nimport os; os.abort()\n\x1b]0;title\x07 then" in logged
    place = ("hyper_parameters", "model", "settings", "activation")
    told = refused_or_fit(run, tmp_path / "again", changed(good, place, crafted))
    assert r"x\nimport os; os.abort()\n\x1b]0;title\x07 in its step" in str(told)
