"""What an epoch takes that is written by hand, in torch and in JAX, in a process of its own.

    python benchmarks/rivals.py KIND IMAGES

IMAGES is a ``.npy`` file, ``[N, 784]``, uint8. For each line that comes in, a new model trains on
all of them for as many epochs as the line says; the seconds of each go out, as a line of JSON. The
first line that goes out holds the seconds of compiling. All kinds train 784-400-20-400-784 by Adam
on batches of 128, in single precision and on as many threads.

A process of its own, because denormal numbers are flushed for good, and because JAX and torch would
share neither threads nor memory well.
"""

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

LATENTS, HIDDEN, PIXELS, BATCH, RATE = 20, 400, 784, 128, 1e-3
KINDS = ("torch", "torch_flushed", "jax_scan", "jax_loop")

Epochs = Callable[[int], Iterator[float]]
"""Takes how many epochs, and yields the seconds of each."""


def torch_epochs(images: np.ndarray, flushed: bool) -> tuple[Epochs, float]:
    """Train by the bare loop, with denormal numbers flushed to zero or kept."""
    import torch

    torch.set_flush_denormal(flushed)  # before the first operation, which starts the threads
    from plain import BareLoop
    from vae_lightning import VAE, DataSpec

    # Lightning's import sets it: torch would look for a GPU's driver at each step.
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    spec = DataSpec((1, 28, 28), "unit")

    def epochs(count: int) -> Iterator[float]:
        torch.manual_seed(1)
        loop = BareLoop(VAE(spec), torch.from_numpy(images))
        for _ in range(count):
            started = time.perf_counter()
            loop.epoch()
            yield time.perf_counter() - started

    return epochs, 0.0


def jax_epochs(images: np.ndarray, scanned: bool) -> tuple[Epochs, float]:
    """Train in JAX: the steps of an epoch in one compiled scan, or a compiled step in a loop.

    The last images of an order that fill no batch are left out, as JAX's shapes are fixed.
    """
    import jax
    import jax.numpy as jnp
    from jax import lax

    steps = len(images) // BATCH
    there = jax.device_put(images)

    def layer(key: Any, inputs: int, outputs: int) -> dict[str, Any]:
        weight, bias = jax.random.split(key)
        bound = inputs**-0.5  # as torch draws them
        return {
            "weight": jax.random.uniform(weight, (inputs, outputs), minval=-bound, maxval=bound),
            "bias": jax.random.uniform(bias, (outputs,), minval=-bound, maxval=bound),
        }

    def start(key: Any) -> tuple[Any, ...]:
        sizes = ((PIXELS, HIDDEN), (HIDDEN, 2 * LATENTS), (LATENTS, HIDDEN), (HIDDEN, PIXELS))
        keys = jax.random.split(key, len(sizes))
        weights = [layer(key, *size) for key, size in zip(keys, sizes, strict=True)]
        zeros = jax.tree.map(jnp.zeros_like, weights)
        return weights, zeros, jax.tree.map(jnp.zeros_like, weights), jnp.zeros(())

    def through(weights: Any, inputs: Any) -> Any:
        return inputs @ weights["weight"] + weights["bias"]

    def loss(weights: Any, x: Any, key: Any) -> Any:
        encode, head, decode, pixels = weights
        loc, log_variance = jnp.split(through(head, jax.nn.relu(through(encode, x))), 2, axis=1)
        scale = jnp.exp(0.5 * log_variance)
        z = loc + scale * jax.random.normal(key, loc.shape)
        logits = through(pixels, jax.nn.relu(through(decode, z)))
        cross_entropy = (jnp.logaddexp(0, logits) - x * logits).sum()
        kl = 0.5 * (loc * loc + scale * scale - 1 - log_variance).sum()
        return (cross_entropy + kl) / len(x)

    def step(state: tuple[Any, ...], taken: tuple[Any, Any]) -> tuple[tuple[Any, ...], None]:
        weights, first, second, count = state
        index, key = taken
        x = there[index].astype(jnp.float32) / 255
        gradient = jax.grad(loss)(weights, x, key)
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradient)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradient)
        size, corrected = RATE / (1 - 0.9**count), 1 / (1 - 0.999**count)
        weights = jax.tree.map(
            lambda w, m, v: w - size * m / (jnp.sqrt(v * corrected) + 1e-8), weights, first, second
        )
        return (weights, first, second, count), None

    def order(key: Any) -> tuple[Any, Any]:
        shuffled, noise = jax.random.split(key)
        index = jax.random.permutation(shuffled, len(images))[: steps * BATCH]
        return index.reshape(steps, BATCH), jax.random.split(noise, steps)

    def scan(state: tuple[Any, ...], key: Any) -> tuple[Any, ...]:
        return lax.scan(step, state, order(key))[0]

    key = jax.random.key(1)
    state = jax.jit(start)(key)
    started = time.perf_counter()
    compiled = functools.partial(jax.jit, donate_argnums=0)
    if scanned:
        epoch = compiled(scan).lower(state, key).compile()
    else:
        shuffle = jax.jit(order).lower(key).compile()
        index, keys = shuffle(key)
        once = compiled(step).lower(state, (index[0], keys[0])).compile()
    compiling = time.perf_counter() - started

    def loop(state: tuple[Any, ...], key: Any) -> tuple[Any, ...]:
        for taken in zip(*shuffle(key), strict=True):
            state, _ = once(state, taken)
        return state

    run = epoch if scanned else loop

    def epochs(count: int) -> Iterator[float]:
        state = jax.block_until_ready(jax.jit(start)(key))
        for number in range(count):
            started = time.perf_counter()
            state = jax.block_until_ready(run(state, jax.random.key(number)))
            # The images that were left out would have taken as long as any.
            yield (time.perf_counter() - started) * len(images) / (steps * BATCH)

    return epochs, compiling


def main() -> None:
    """Answer each line."""
    kind, file = sys.argv[1:]
    images = np.load(Path(file))
    library, _, how = kind.partition("_")
    if library == "torch":
        epochs, compiling = torch_epochs(images, how == "flushed")
    else:
        epochs, compiling = jax_epochs(images, how == "scan")
    print(json.dumps(compiling), flush=True)
    for line in sys.stdin:
        print(json.dumps(list(epochs(int(line)))), flush=True)


if __name__ == "__main__":
    main()
