"""Denormal numbers count as zero, on every thread that computes."""

import subprocess
import sys

import pytest
import torch

from conftest import LONG

SETUP = """
import logging, torch
from vae_lightning.runs.processor import denormals, flush_denormals
logging.basicConfig(format="%(message)s")
torch.set_num_threads({threads})
"""
PRODUCT = "x = torch.rand(1 << 20) * 2"


def printed(code, threads):
    """Return what a fresh process prints: it has no threads of torch yet."""
    command = [sys.executable, "-c", SETUP.format(threads=threads) + code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=LONG)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_denormals_are_zero_on_all_threads_if_flushed_first(threads):
    product = "(torch.full((1 << 20,), 1e-40) * 0.5).count_nonzero().item()"
    ended = printed(f"flush_denormals(); print(denormals(), {product})", threads)
    assert ended.stdout == "flushed 0\n"
    assert ended.stderr == ""


def test_threads_that_run_already_are_not_reached_and_a_line_says_so():
    ended = printed(f"{PRODUCT}; flush_denormals(); print(denormals())", 4)
    assert ended.stdout == "flushed on some threads\n"
    assert "Denormal numbers slow down all threads of torch but this one" in ended.stderr


def test_torch_itself_keeps_denormals():
    assert printed(f"{PRODUCT}; print(denormals())", 2).stdout == "kept\n"


def test_a_checkpoint_notes_that_denormals_were_flushed(trained):
    content = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["envelope"]["denormals"] == "flushed"
