"""The small digit classifier on whose features samples are measured.

It is this project's own, trained by ``python -m vae_lightning.train_classifier`` and shipped.
"""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("classifier.safetensors")
"""The shipped weights. Their metadata hold the accuracy, the command and the versions used."""


class DigitClassifier(nn.Module):
    """Two convolutions and two linear layers; the features are the input of the last layer."""

    def __init__(self, features: int = 96) -> None:
        """Build the layers for ten digits."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, features),
            nn.ReLU(),
        )
        self.head = nn.Linear(features, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[B, 1, 28, 28]`` in [0, 1] to the logits of the ten digits, ``[B, 10]``."""
        logits: Tensor = self.head(self.body(x))
        return logits


def load_classifier() -> DigitClassifier:
    """Return the shipped classifier, in evaluation mode and on the CPU."""
    classifier = DigitClassifier()
    classifier.load_state_dict(load_file(WEIGHTS))
    return classifier.eval().requires_grad_(False)
