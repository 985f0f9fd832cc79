"""What the project's speed is held against: a bare loop of the same step, and its matrix products.

Shapes: ``N`` images, ``B`` images in a batch, ``D`` latent dimensions; an image is 784 pixels.
"""

import copy
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lightning import VAE, Batch
from vae_lightning.models.base import Model

BATCH = 128
"""Images in a training step."""


def layers_of(model: VAE) -> tuple[nn.Sequential, nn.Sequential]:
    """Return copies of a model's layers: flat images to the head, latents to flat logits.

    The fully connected ones are torch's own.
    """
    encoder, decoder = copy.deepcopy(model.encoder), copy.deepcopy(model.decoder)
    for layer in itertools.chain(encoder.modules(), decoder.modules()):
        if isinstance(layer, nn.Linear):
            layer.__class__ = nn.Linear
    if hasattr(encoder, "layers"):
        return encoder.layers, decoder.layers
    maps = decoder.stem.output_shape
    return (
        nn.Sequential(
            nn.Unflatten(-1, model.data.shape),
            *encoder.convolutions,
            nn.Flatten(),
            *encoder.head.layers,
        ),
        nn.Sequential(
            *decoder.stem.layers, nn.Unflatten(-1, maps), *decoder.convolutions, nn.Flatten()
        ),
    )


class BareVAE(nn.Module):
    """A VAE with the layers and the weights of one of the project, and its loss: no more.

    It stands for the unconditional Bernoulli models, trained by the bound with the KL in closed
    form or by the importance-weighted bound.
    """

    def __init__(self, model: VAE) -> None:
        """Copy the weights."""
        super().__init__()
        self.encode, self.decode = layers_of(model)
        self.weighted = model.estimator == "iwae"

    def loss(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return minus the bound, nats per image: the mean over images.

        Args:
            images: grey levels as probabilities, ``[B, 784]`` in [0, 1].
            noise: standard normal, ``[B, D]``; ``[S, B, D]`` for the importance-weighted bound.
        """
        loc, log_variance = self.encode(images).chunk(2, dim=1)
        scale = (0.5 * log_variance).exp()
        z = loc + scale * noise
        logits = self.decode(z)
        if not self.weighted:
            cross_entropy = F.binary_cross_entropy_with_logits(logits, images, reduction="sum")
            kl = 0.5 * (loc * loc + scale * scale - 1 - log_variance).sum()
            return (cross_entropy + kl) / len(images)
        cross_entropies = F.binary_cross_entropy_with_logits(
            logits, images.expand_as(logits), reduction="none"
        ).sum(-1)
        ratio = 0.5 * (noise * noise - z * z + log_variance).sum(-1)  # log p(z) − log q(z|x)
        bounds = torch.logsumexp(ratio - cross_entropies, dim=0) - math.log(len(noise))
        return -bounds.mean()


class BareLoop:
    """Training with everything stripped: no logs, checkpoints, pictures or repeatable order."""

    def __init__(self, model: VAE, images: Tensor, batch: int = BATCH) -> None:
        """Take the weights to start from, and all images, on the device to train on.

        Args:
            model: whose weights are copied.
            images: ``[N, 784]``, uint8.
            batch: images in a step.
        """
        self.images = images
        self.batch = batch
        self.drawn = model.data.values == "binary"
        samples = (model.num_samples,) if model.estimator == "iwae" else ()
        self.noise_shape = (*samples, batch, model.latent_dim)
        self.model = BareVAE(model).to(images.device)
        capturable = images.is_cuda  # lets a CUDA graph hold the update
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=1e-3, fused=True, capturable=capturable
        )

    def step(self, index: Tensor) -> None:
        """Take one step on the images of ``index``, ``[B]``."""
        images = self.images.index_select(0, index).float().div_(255)
        if self.drawn:
            images = torch.rand_like(images).lt(images).float()
        shape = (*self.noise_shape[:-2], len(index), self.noise_shape[-1])
        loss = self.model.loss(images, torch.randn(shape, device=images.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def run(self, batches: Sequence[Tensor]) -> None:
        """Take one step on each batch of indices."""
        for index in batches:
            self.step(index)

    def epoch(self) -> None:
        """Take a step on each batch of a new order of all images."""
        self.run(torch.randperm(len(self.images), device=self.images.device).split(self.batch))


class Drawn:
    """Noise as torch draws it: the order of all draws counts, and no seed."""

    def __init__(self, rows: int) -> None:
        """Take B."""
        self.rows = rows

    def normal(self, *shape: int, samples: int = 1) -> Tensor:
        """Return standard normal noise, ``[S, B, *shape]``."""
        return torch.randn(samples, self.rows, *shape)

    def uniform(self, *shape: int, samples: int = 1) -> Tensor:
        """Return noise uniform on [0, 1), ``[S, B, *shape]``."""
        return torch.rand(samples, self.rows, *shape)

    def integers(self, high: int) -> Tensor:
        """Return whole numbers on 0 … high − 1, ``[B]``."""
        return torch.randint(high, (self.rows,))


class ModelLoop:
    """Steps of any model by its own loss, and nothing beside them."""

    def __init__(self, model: Model, x: Tensor, batch: int, clip: float | None) -> None:
        """Take the model, all examples as they are stored, B, and the largest norm of gradients."""
        self.model, self.x, self.batch, self.clip = model.train(), x, batch, clip
        weights = [each for each in model.parameters() if each.requires_grad]
        self.optimizer = torch.optim.Adam(weights, lr=1e-3, fused=True)

    def run(self, batches: Sequence[Tensor]) -> None:
        """Take one step on each batch of indices, ``[B]``."""
        for step, index in enumerate(batches):
            x = self.x.index_select(0, index)
            if x.dtype == torch.uint8:
                x = x.float().div_(255)
            loss, _ = self.model.loss(Batch(x), Drawn(len(index)), step)
            self.optimizer.zero_grad()
            loss.mean().backward()
            if self.clip:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            self.model.after_step(Drawn(self.batch))


class GraphLoop(BareLoop):
    """The bare loop's step captured once as a CUDA graph, and replayed for each batch."""

    def __init__(self, model: VAE, images: Tensor, batch: int = BATCH) -> None:
        """Warm up on another stream, as capturing needs, and capture."""
        super().__init__(model, images, batch)
        self.index = torch.zeros(self.batch, dtype=torch.int64, device=images.device)
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
        """Replay the step for each batch, all of one size."""
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
