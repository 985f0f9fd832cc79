"""The algorithm of the PyTorch VAE example, written anew: what the project's speed is held against.

python benchmarks/example.py --data-dir DIR [--epochs 10]

PIL images one by one through torchvision's MNIST and ``ToTensor``, a ``DataLoader`` in batches of
128, a network of 784-400-20-400-784 with two heads and a sigmoid at its end, binary cross-entropy
and KL summed over the batch, Adam as torch makes it; after each epoch the test images. The
example's pictures and its lines within an epoch are left out. ``DIR/MNIST/raw`` holds the four
files.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import MNIST

BATCH = 128


class ExampleVAE(nn.Module):
    """Two layers up, two layers down."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        self.encode = nn.Linear(784, 400)
        self.loc = nn.Linear(400, 20)
        self.log_variance = nn.Linear(400, 20)
        self.decode = nn.Linear(20, 400)
        self.pixels = nn.Linear(400, 784)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities ``[B, 784]``, means and log-variances ``[B, 20]``.

        Args:
            images: ``[B, 1, 28, 28]``.
        """
        hidden = F.relu(self.encode(images.view(-1, 784)))
        loc, log_variance = self.loc(hidden), self.log_variance(hidden)
        scale = torch.exp(0.5 * log_variance)
        z = loc + torch.randn_like(scale) * scale
        return torch.sigmoid(self.pixels(F.relu(self.decode(z)))), loc, log_variance


def summed_loss(model: ExampleVAE, images: Tensor) -> Tensor:
    """Return the cross-entropy and the KL, nats, summed over images ``[B, 1, 28, 28]``."""
    probabilities, loc, log_variance = model(images)
    cross_entropy = F.binary_cross_entropy(probabilities, images.view(-1, 784), reduction="sum")
    kl = -0.5 * torch.sum(1 + log_variance - loc.pow(2) - log_variance.exp())
    return cross_entropy + kl


class Example:
    """The example's parts, and an epoch of it."""

    def __init__(
        self, data_dir: Path, train_images: int | None = None, test_images: int | None = None
    ) -> None:
        """Read the data; ``train_images`` and ``test_images`` take only the first of a file."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.loaders = {}
        for training, limit in ((True, train_images), (False, test_images)):
            images = MNIST(data_dir, train=training, transform=transforms.ToTensor())
            some = images if limit is None else Subset(images, range(min(limit, len(images))))
            workers: dict[str, Any] = (
                {"num_workers": 1, "pin_memory": True} if self.device.type == "cuda" else {}
            )
            self.loaders[training] = DataLoader(some, batch_size=BATCH, shuffle=training, **workers)
        self.model = ExampleVAE().to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def train(self) -> float:
        """Train for an epoch and return its mean loss, nats per image."""
        total = 0.0
        for images, _ in self.loaders[True]:
            self.optimizer.zero_grad()
            loss = summed_loss(self.model, images.to(self.device))
            loss.backward()
            total += loss.item()
            self.optimizer.step()
        return total / len(self.loaders[True].dataset)

    @torch.no_grad()
    def test(self) -> float:
        """Return the mean loss over the test images, nats per image."""
        total = sum(
            summed_loss(self.model, images.to(self.device)).item()
            for images, _ in self.loaders[False]
        )
        return total / len(self.loaders[False].dataset)


def main() -> None:
    """Train, and print each epoch's losses and seconds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--test-images", type=int)
    arguments = parser.parse_args()
    torch.manual_seed(1)
    example = Example(arguments.data_dir, arguments.train_images, arguments.test_images)
    for epoch in range(1, arguments.epochs + 1):
        started = time.perf_counter()
        losses = f"train {example.train():.2f}, test {example.test():.2f}"
        print(f"epoch {epoch}: {losses}, {time.perf_counter() - started:.2f} s", flush=True)


if __name__ == "__main__":
    main()
