"""What the project's speed is held against: a bare loop of the same step, and its matrix products.

Shapes: ``N`` images, ``B`` images in a batch, ``D`` latent dimensions; an image is 784 pixels.
"""

import copy
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lightning import VAE

BATCH = 128
"""Images in a training step."""


class BareVAE(nn.Module):
    """The default model with the weights of one of the project, as four layers and a loss."""

    def __init__(self, model: VAE) -> None:
        """Copy the weights."""
        super().__init__()
        encoder, decoder = model.encoder.layers, model.decoder.layers
        self.encode, self.head, self.decode, self.pixels = (
            copy.deepcopy(layers[number]) for layers in (encoder, decoder) for number in (0, 2)
        )

    def loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return minus the bound with the KL in closed form, nats per image: the mean over images.

        Args:
            images: grey levels as probabilities, ``[B, 784]`` in [0, 1].
            noise: standard normal, ``[B, D]``.
        """
        loc, log_variance = self.head(torch.relu(self.encode(images))).chunk(2, dim=1)
        scale = (0.5 * log_variance).exp()
        logits = self.pixels(torch.relu(self.decode(loc + scale * noise)))
        cross_entropy = F.binary_cross_entropy_with_logits(logits, images, reduction="sum")
        kl = 0.5 * (loc * loc + scale * scale - 1 - log_variance).sum()
        return (cross_entropy + kl) / len(images)


class BareLoop:
    """Training with everything stripped: no logs, checkpoints, pictures or repeatable order."""

    def __init__(self, model: VAE, images: Tensor) -> None:
        """Take the weights to start from, and all images, on the device to train on.

        Args:
            model: whose weights are copied.
            images: ``[N, 784]``, uint8.
        """
        self.images = images
        self.latent_dim = model.latent_dim
        self.model = BareVAE(model).to(images.device)
        capturable = images.is_cuda  # lets a CUDA graph hold the update
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=1e-3, fused=True, capturable=capturable
        )

    def step(self, index: Tensor) -> None:
        """Take one step on the images of ``index``, ``[B]``."""
        images = self.images.index_select(0, index).float().div_(255)
        loss = self.model.loss(
            images, torch.randn(len(index), self.latent_dim, device=images.device)
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def run(self, batches: Sequence[Tensor]) -> None:
        """Take one step on each batch of indices."""
        for index in batches:
            self.step(index)


class GraphLoop(BareLoop):
    """The bare loop's step captured once as a CUDA graph, and replayed for each batch."""

    def __init__(self, model: VAE, images: Tensor) -> None:
        """Warm up on another stream, as capturing needs, and capture."""
        super().__init__(model, images)
        self.index = torch.zeros(BATCH, dtype=torch.int64, device=images.device)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            super().run([self.index] * 3)
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad()  # to None: the capture makes gradients in memory of its own
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step(self.index)

    def run(self, batches: Sequence[Tensor]) -> None:
        """Replay the step for each batch of ``BATCH`` indices."""
        for index in batches:
            self.index.copy_(index)
            self.graph.replay()


class StepProducts:
    """The matrix products of a training step of ``BATCH``, both ways, into memory that exists."""

    def __init__(self, model: VAE, device: torch.device) -> None:
        """Take the shapes from a model of the project."""
        self.products: list[tuple[Tensor, Tensor, Tensor]] = []
        weights = [weight.detach().to(device) for weight in model.parameters() if weight.ndim == 2]
        for number, weight in enumerate(weights):
            above, below = weight.shape
            inputs, gradient = (
                torch.randn(BATCH, below, device=device),
                torch.randn(BATCH, above, device=device),
            )
            self._add(inputs, weight.t())
            self._add(gradient.t(), inputs)
            if number:  # no gradient reaches the images
                self._add(gradient, weight)

    def _add(self, left: Tensor, right: Tensor) -> None:
        self.products.append((left, right, left @ right))

    @torch.no_grad()
    def run(self, steps: int) -> None:
        """Multiply as often as so many steps do."""
        for left, right, product in itertools.chain.from_iterable(
            itertools.repeat(self.products, steps)
        ):
            torch.mm(left, right, out=product)


class DecoderProducts:
    """The matrix products of the decoder, into memory that exists and fits a processor's cache."""

    def __init__(self, model: VAE, device: torch.device, rows: int = 1000) -> None:
        """Take the weights of a model, and how many latents are multiplied at once."""
        self.rows = rows
        self.weights = [
            weight.detach().t().to(device)
            for weight in model.decoder.parameters()
            if weight.ndim == 2
        ]
        widths = [self.weights[0].shape[0], *(weight.shape[1] for weight in self.weights)]
        self.layers = [torch.randn(rows, width, device=device) for width in widths]

    @torch.no_grad()
    def run(self, latents: int) -> None:
        """Multiply as often as so many latents need, a whole number of times ``rows``."""
        for _ in range(latents // self.rows):
            for weight, (below, above) in zip(
                self.weights, itertools.pairwise(self.layers), strict=True
            ):
                torch.mm(below, weight, out=above)
