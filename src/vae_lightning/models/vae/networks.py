"""Encoders and decoders: tensors in, the parameters of a distribution out.

All take any number of leading dimensions ``...``, and labels ``y``. A network without classes
ignores the labels.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lightning.configuration.building import class_of
from vae_lightning.models.base import LEVELS, Batch
from vae_lightning.models.linear import Linear

Activation = Literal["relu", "tanh", "softplus", "silu"]
NetworkName = Literal["mlp", "convolutional"]
PosteriorScale = Literal["exp", "softplus"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
}


def _layers(widths: Sequence[int], activation: Activation) -> list[nn.Module]:
    """Return ``Linear`` and an activation for each pair of neighbouring widths."""
    return [
        layer
        for n, m in itertools.pairwise(widths)
        for layer in (Linear(n, m), _ACTIVATIONS[activation]())
    ]


def _with_labels(features: Tensor, y: Tensor | None, num_classes: int) -> Tensor:
    """Append labels ``[B]`` one-hot to features ``[..., B, F]``.

    Raises:
        ValueError: there are classes and no labels.
    """
    if not num_classes:
        return features
    if y is None:
        raise ValueError("a label-conditional model needs labels y")
    one_hot = F.one_hot(y, num_classes).to(features)
    return torch.cat([features, one_hot.expand(*features.shape[:-1], num_classes)], dim=-1)


class MLPEncoder(nn.Module):
    """An image through fully connected layers to the mean and scale of a Gaussian.

    One head computes the means and the raw scales (Kingma & Welling, arXiv:1312.6114, Appendix
    C.2). That takes one matrix product, where two heads would take two.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        hidden_dims: Sequence[int],
        latent_dim: int,
        activation: Activation = "relu",
        posterior_scale: PosteriorScale = "exp",
        num_classes: int = 0,
    ) -> None:
        """Build the layers.

        Args:
            image_shape: C, H, W, or another shape of what comes in.
            hidden_dims: widths between the pixels and the head.
            latent_dim: D.
            activation: between the layers.
            posterior_scale: the scale as ``exp`` of half a log-variance, or as ``softplus``.
            num_classes: of the labels that are appended to the pixels; 0 for none.
        """
        super().__init__()
        widths = [math.prod(image_shape) + num_classes, *hidden_dims]
        self.layers = nn.Sequential(
            *_layers(widths, activation), Linear(widths[-1], 2 * latent_dim)
        )
        self.posterior_scale = posterior_scale
        self.num_classes = num_classes

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images ``[..., C, H, W]`` and labels to loc and scale, each ``[..., D]``."""
        # Under autocast the products are in half precision. Densities need the images' precision.
        loc, raw_scale = (
            self.layers(_with_labels(x.flatten(-3), y, self.num_classes))
            .to(x.dtype)
            .chunk(2, dim=-1)
        )
        return loc, (0.5 * raw_scale).exp() if self.posterior_scale == "exp" else F.softplus(
            raw_scale
        )


class MLPDecoder(nn.Module):
    """A latent through fully connected layers to the parameters of each pixel."""

    def __init__(
        self,
        latent_dim: int,
        hidden_dims: Sequence[int],
        output_shape: Sequence[int],
        activation: Activation = "relu",
        num_classes: int = 0,
    ) -> None:
        """Build the layers.

        Args:
            latent_dim: D.
            hidden_dims: widths between the latent and the pixels.
            output_shape: C, H, W, with as many channels as there are parameters.
            activation: between the layers.
            num_classes: of the labels that are appended to the latent; 0 for none.
        """
        super().__init__()
        widths = [latent_dim + num_classes, *hidden_dims]
        self.layers = nn.Sequential(
            *_layers(widths, activation), Linear(widths[-1], math.prod(output_shape))
        )
        self.output_shape = tuple(output_shape)
        self.num_classes = num_classes

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Map latents ``[..., D]`` and labels to parameters ``[..., C, H, W]``."""
        parameters: Tensor = self.layers(_with_labels(z, y, self.num_classes)).to(z.dtype)
        return parameters.view(*parameters.shape[:-1], *self.output_shape)


class ConvolutionalEncoder(nn.Module):
    """An image through convolutions that halve its sides, then through an ``MLPEncoder``."""

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int],
        hidden_dims: Sequence[int],
        latent_dim: int,
        activation: Activation = "relu",
        posterior_scale: PosteriorScale = "exp",
        num_classes: int = 0,
    ) -> None:
        """Build the layers.

        ``channels`` are those after each convolution. The rest is as in ``MLPEncoder``.

        Raises:
            ValueError: the sides can't be halved so often.
        """
        super().__init__()
        height, width = halved(image_shape, channels)
        self.convolutions = nn.Sequential(
            *(
                layer
                for n, m in itertools.pairwise([image_shape[0], *channels])
                for layer in (nn.Conv2d(n, m, 4, stride=2, padding=1), _ACTIVATIONS[activation]())
            )
        )
        inner = (channels[-1], height, width)
        self.head = MLPEncoder(
            inner, hidden_dims, latent_dim, activation, posterior_scale, num_classes
        )

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map images ``[..., C, H, W]`` and labels to loc and scale, each ``[..., D]``."""
        maps = self.convolutions(x.reshape(-1, *x.shape[-3:]))
        loc, scale = self.head(maps.view(*x.shape[:-3], *maps.shape[1:]).to(x.dtype), y)
        return loc, scale


class ConvolutionalDecoder(nn.Module):
    """A latent through an ``MLPDecoder`` to small maps, then through transposed convolutions.

    Each convolution doubles the sides of the maps.
    """

    def __init__(
        self,
        latent_dim: int,
        hidden_dims: Sequence[int],
        channels: Sequence[int],
        output_shape: Sequence[int],
        activation: Activation = "relu",
        num_classes: int = 0,
    ) -> None:
        """Build the layers.

        ``channels`` are those before each transposed convolution. The rest is as in ``MLPDecoder``.

        Raises:
            ValueError: the sides can't be halved so often.
        """
        super().__init__()
        height, width = halved(output_shape, channels)
        self.stem = MLPDecoder(
            latent_dim, hidden_dims, (channels[0], height, width), activation, num_classes
        )
        self.convolutions = nn.Sequential(
            *(
                layer
                for n, m in itertools.pairwise([*channels, output_shape[0]])
                for layer in (
                    _ACTIVATIONS[activation](),
                    nn.ConvTranspose2d(n, m, 4, stride=2, padding=1),
                )
            )
        )

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Map latents ``[..., D]`` and labels to parameters ``[..., C, H, W]``."""
        maps = self.stem(z, y)
        parameters: Tensor = self.convolutions(maps.reshape(-1, *maps.shape[-3:]))
        return parameters.view(*z.shape[:-1], *parameters.shape[1:]).to(z.dtype)


class MeanDecoder(nn.Module):
    """A decoder with its likelihood: latents ``[B, D]`` to the mean of p(x|z), ``[B, C, H, W]``."""

    def __init__(self, decoder: nn.Module, family: nn.Module) -> None:
        """Take them from the model; the whole model would bring the encoder along."""
        super().__init__()
        self.decoder = decoder
        self.family = family

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        """Decode latents ``[B, D]`` with labels ``[B]``."""
        mean: Tensor = self.family(self.decoder(z, y)).mean
        return mean


def halved(shape: Sequence[int], channels: Sequence[int]) -> tuple[int, int]:
    """Return the sides that are left when each layer has halved them.

    Raises:
        ValueError: they can't be halved so often.
    """
    height, width = shape[-2:]
    parts = 2 ** len(channels)
    if height % parts or width % parts:
        raise ValueError(
            f"channels={list(channels)}: each layer halves the sides {height} and {width}, "
            "which goes less often"
        )
    return height // parts, width // parts


# -- by name ---------------------------------------------------------------------------------------


def initialize_normal(network: nn.Module, scale: float) -> None:
    """Draw all weights and biases from N(0, scale²).

    Kingma & Welling (arXiv:1312.6114), section 5, use scale² = 0.01.
    """
    for weight in network.parameters():
        nn.init.normal_(weight, std=scale)


def start_from_mean(decoder: nn.Module, examples: Iterable[Batch]) -> None:
    """Set the last bias of an MLP decoder to the logits of the mean image.

    Levels are summed as whole numbers, so the mean doesn't depend on the batches.
    """
    assert isinstance(decoder, MLPDecoder)
    parts, count = [], 0
    for batch in examples:
        parts.append(((LEVELS - 1) * batch.x).round().double().sum(0))
        count += len(batch.x)
    mean = torch.stack(parts).sum(0).float() / count / (LEVELS - 1)
    with torch.no_grad():  # some pixels are black in every image
        bias = decoder.layers[-1].bias
        bias.copy_(mean.clamp(1e-3, 1 - 1e-3).logit().flatten())  # type: ignore[operator]


class Network(nn.Module):
    """An encoder and a decoder of the user's own: ``model.network=my_package.MyNetwork``.

    A subclass sets both in its constructor.

    Attributes:
        encoder: from images ``[B, C, H, W]`` and labels ``[B]`` or None to the mean and the scale
            of q(z|x), each ``[B, D]``; the scale is positive.
        decoder: from latents ``[..., D]`` and labels to what the likelihood needs,
            ``[..., parameters_per_pixel · C, H, W]``.
    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(
        self,
        image_shape: Sequence[int],
        latent_dim: int,
        parameters_per_pixel: int,
        num_classes: int,
    ) -> None:
        """Take C, H, W, the size of the code, and the other two as ``build_networks`` does."""
        super().__init__()


def build_networks(
    name: NetworkName | str,
    image_shape: Sequence[int],
    latent_dim: int,
    hidden_dims: Sequence[int],
    channels: Sequence[int],
    activation: Activation,
    posterior_scale: PosteriorScale,
    parameters_per_pixel: int,
    num_classes: int,
    initial_scale: float | None,
) -> tuple[nn.Module, nn.Module]:
    """Make an encoder and the decoder that mirrors it.

    Args:
        name: ``mlp``, ``convolutional``, or the full name of a ``Network``.
        image_shape: C, H, W.
        latent_dim: D.
        hidden_dims: widths of the encoder's hidden layers.
        channels: channels of the convolutions, if there are any.
        activation: the activation between the layers.
        posterior_scale: how the posterior's scale is made positive.
        parameters_per_pixel: how many numbers the likelihood needs for each pixel.
        num_classes: number of label classes; 0 without labels.
        initial_scale: standard deviation of all initial weights; None: torch's own initialisation.

    Raises:
        ValueError: the images can't be halved as often as there are channels.
    """
    output_shape = (parameters_per_pixel * image_shape[0], *image_shape[1:])
    mirrored = hidden_dims[::-1]
    encoder: nn.Module
    decoder: nn.Module
    if "." in name:
        own = class_of("model.network", name, Network)(
            image_shape, latent_dim, parameters_per_pixel, num_classes
        )
        encoder, decoder = own.encoder, own.decoder
    elif name == "mlp":
        encoder = MLPEncoder(
            image_shape, hidden_dims, latent_dim, activation, posterior_scale, num_classes
        )
        decoder = MLPDecoder(latent_dim, mirrored, output_shape, activation, num_classes)
    else:
        encoder = ConvolutionalEncoder(
            image_shape, channels, hidden_dims, latent_dim, activation, posterior_scale, num_classes
        )
        decoder = ConvolutionalDecoder(
            latent_dim, mirrored, channels[::-1], output_shape, activation, num_classes
        )
    if initial_scale:
        initialize_normal(encoder, initial_scale)
        initialize_normal(decoder, initial_scale)
    return encoder, decoder
