"""Two exported runs, which the tests of exports share."""

import pytest

from conftest import train_in, typed

FILES = {"encoder.onnx", "decoder.onnx", "encoder.pt2", "decoder.pt2", "model.safetensors"}

CONDITIONAL = [
    "model=convolutional",
    "model.num_classes=10",
    "model.channels=[4]",
    "model.hidden_dims=[16]",
    "model.likelihood=continuous_bernoulli",
    "trainer.max_epochs=1",
]
"""A convolutional model with labels, whose mean isn't the sigmoid of its logits."""

_exports = {}


def export(run, directory, *arguments):
    """Export a run's model by the command, and return where its files lie."""
    with pytest.MonkeyPatch.context() as patch:
        typed("export", f"checkpoint={run}", *arguments, directory=directory, patch=patch)
    *_, written = sorted((directory / "outputs" / "export").iterdir())
    return written


def exported_run(kind, trained, factory):
    """Return the run directory of a model and that of its export, each made once.

    Args:
        kind: ``plain``: fully connected, without labels, with Bernoulli pixels; or ``conditional``.
        trained: the run of the plain model.
        factory: makes directories.
    """
    if kind not in _exports:
        run = trained if kind == "plain" else train_in(factory.mktemp(kind), *CONDITIONAL)
        _exports[kind] = run, export(run, factory.mktemp("exported"))
    return _exports[kind]
