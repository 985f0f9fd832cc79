"""A fully connected layer whose products take the faster of the two libraries in torch.

On AMD's processors MKL, which torch multiplies by, leaves out AVX-512. oneDNN, which torch brings
for convolutions, doesn't: there it is twice as fast, and with AVX2 a tenth.
"""

import contextlib
import platform
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def is_amd() -> bool:
    """Return whether the processor is AMD's."""
    with contextlib.suppress(OSError):
        return bool(re.search("AuthenticAMD", Path("/proc/cpuinfo").read_text()))
    return "AuthenticAMD" in platform.processor()


def products() -> str:
    """Return the library that multiplies here, ``oneDNN`` or ``MKL``: a last bit depends on it."""
    return "oneDNN" if _BY_ONEDNN else "MKL"


_BY_ONEDNN = torch.backends.mkldnn.is_available() and is_amd()  # type: ignore[no-untyped-call]


class Linear(nn.Linear):
    """``nn.Linear`` with the same weights and the same values but for the last bits."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``[..., inputs]`` to ``[..., outputs]``; single precision on a CPU may be faster."""
        plain = (
            not _BY_ONEDNN
            or inputs.dtype is not torch.float32
            or self.weight.dtype is not torch.float32
            or inputs.device.type != "cpu"
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
            or not inputs.numel()
        )
        if plain:
            return F.linear(inputs, self.weight, self.bias)
        outputs: Tensor = _Linear.apply(inputs, self.weight, self.bias)
        return outputs


class _Linear(torch.autograd.Function):
    """Inputs ``[..., I]``, weight ``[O, I]``, bias ``[O]`` to ``[..., O]``, and the gradients."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        return _multiply(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        of_inputs, of_weight, of_bias = ctx.needs_input_grad
        flat = gradient.reshape(-1, gradient.shape[-1])
        return (
            _multiply(gradient, weight.t()) if of_inputs else None,
            _of_weight(flat, inputs.reshape(-1, inputs.shape[-1])) if of_weight else None,
            flat.sum(0) if of_bias else None,
        )


def _of_weight(gradient: Tensor, inputs: Tensor) -> Tensor:
    """Return the gradient of a weight ``[O, I]``, from ``[N, O]`` and inputs ``[N, I]``.

    The first factor of a product is copied to lie row by row, and so is a weight's gradient.
    """
    (rows, outs), ins = gradient.shape, inputs.shape[1]
    if rows * outs <= rows * ins + outs * ins:
        return _multiply(gradient.t(), inputs.t())
    return _multiply(inputs.t(), gradient.t()).t()


def _multiply(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return inputs ``[..., I]`` times the transpose of weight ``[O, I]``, plus a bias ``[O]``."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product
