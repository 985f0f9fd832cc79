"""The layer's products are those of nn.Linear, whichever library multiplies."""

import pytest
import torch
from torch import nn

from vae_lightning.models import linear
from vae_lightning.models.linear import Linear

SHAPES = [(4,), (7, 4), (1, 4), (3, 7, 4), (2, 3, 7, 4), (0, 4)]
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


def both(monkeypatch, dtype=torch.float32):
    """Return a layer that multiplies by oneDNN, and the same as nn.Linear in double precision."""
    monkeypatch.setattr(linear, "_BY_ONEDNN", True)
    torch.manual_seed(0)
    layer, plain = Linear(4, 5), nn.Linear(4, 5).double()
    plain.load_state_dict(layer.state_dict())
    return layer.to(dtype), plain


@needs_onednn
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_those_of_double_precision(monkeypatch, shape):
    layer, plain = both(monkeypatch)
    x = torch.randn(shape)
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    out, expected = layer(ours), plain(theirs)
    if x.numel():
        assert isinstance(out.grad_fn, torch.autograd.function.BackwardCFunction)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    weighted = torch.randn_like(expected)
    (out * weighted.float()).sum().backward()
    (expected * weighted).sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)
    for weight, other in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(weight.grad.double(), other.grad, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_strided_and_expanded_inputs_are_taken_as_they_lie(monkeypatch):
    layer, plain = both(monkeypatch)
    wide, column = torch.randn(6, 8), torch.randn(4, 6)
    for x in (wide[:, ::2], column.t(), torch.randn(4).expand(6, 4), wide[1:, 3:7]):
        torch.testing.assert_close(layer(x).double(), plain(x.double()), rtol=1e-5, atol=1e-6)


@needs_onednn
def test_only_what_is_asked_for_gets_a_gradient(monkeypatch):
    layer, _ = both(monkeypatch)
    layer.requires_grad_(False)
    x = torch.randn(3, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    assert not layer(torch.randn(3, 4)).requires_grad


@pytest.mark.parametrize("case", ["double", "bfloat16", "autocast", "compiled"])
def test_other_precisions_and_programs_take_the_plain_product(monkeypatch, case):
    layer, _ = both(monkeypatch)
    monkeypatch.setattr(linear, "_multiply", lambda *_: pytest.fail("went by oneDNN"))
    dtype = {"double": torch.float64, "bfloat16": torch.bfloat16}.get(case, torch.float32)
    x = torch.randn(3, 4, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case == "autocast"):
        run = layer.to(dtype)
        if case == "compiled":
            run = torch.compile(run, backend="eager", fullgraph=True)
        assert run(x).dtype == (torch.bfloat16 if case == "autocast" else dtype)


def test_on_another_processor_torch_multiplies(monkeypatch):
    layer, _ = both(monkeypatch)
    monkeypatch.setattr(linear, "_BY_ONEDNN", False)
    monkeypatch.setattr(linear, "_multiply", lambda *_: pytest.fail("went by oneDNN"))
    assert layer(torch.randn(3, 4)).shape == (3, 5)
    assert linear.products() == "MKL"


@pytest.mark.parametrize(
    ("text", "amd"),
    [("vendor_id\t: AuthenticAMD\n", True), ("vendor_id\t: GenuineIntel\n", False)],
)
def test_the_processor_says_whose_it_is(monkeypatch, text, amd):
    monkeypatch.setattr(linear.Path, "read_text", lambda _: text)
    assert linear.is_amd() is amd
