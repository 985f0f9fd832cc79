"""How good samples look, as numbers that need no network: distances on the features of a small digit classifier.

The classifier is this project's own, trained by ``python -m vae_lightning.train_classifier`` and shipped as safetensors. None
of these figures is an FID: that name belongs to the features of an Inception network.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

WEIGHTS = Path(__file__).with_name("classifier.safetensors")
"""The shipped weights; their metadata hold the accuracy, the command and the versions that made them."""

NEIGHBOURS = 3
"""k of the balls that stand for a set of images in precision and recall."""

_ROWS = 1000  # images whose distances are held together


class DigitClassifier(nn.Module):
    """Two convolutions and two linear layers; the activations before the last one are the features."""

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


def features(classifier: DigitClassifier, images: Tensor) -> Tensor:
    """Return the features of images ``[N, 1, 28, 28]`` in [0, 1], a thousand at a time: ``[N, F]``."""
    parts = tqdm(torch.split(images, _ROWS), desc="features", leave=False, disable=None)
    return torch.cat([classifier.body(part) for part in parts])


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the squared Fréchet distance of two Gaussians with the moments of two sets of features, ``[N, F]`` and ``[M, F]``.

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) (Dowson & Landau 1982). It depends on N and M: compare at equal ones only.
    """
    first, second = first.double(), second.double()
    first, second = first.double(), second.double()
    root = _square_root(first.T.cov())
    # The eigenvalues of Σ₁ Σ₂ are those of Σ₁^½ Σ₂ Σ₁^½, which is symmetric.
    overlap = torch.linalg.eigvalsh(root @ second.T.cov() @ root).clamp(min=0).sqrt().sum()
    shift = (first.mean(0) - second.mean(0)).square().sum()
    return float(shift + first.var(0).sum() + second.var(0).sum() - 2 * overlap)


def precision_and_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Return how many generated images lie among the real ones, and how many real ones among the generated.

    A set of images is stood for by balls around its features, each up to the third nearest neighbour within the set
    (Kynkäänniemi et al. 2019, arXiv:1904.06991, equation 2).

    Args:
        generated: features ``[N, F]``.
        real: features ``[M, F]``.
    """
    return _share_within(generated, real), _share_within(real, generated)


def _share_within(points: Tensor, centres: Tensor) -> float:
    """Return the share of points that lie within a ball around a centre."""
    nearest = min(NEIGHBOURS + 1, len(centres))  # the first of them is the centre itself
    radii = torch.cat([torch.cdist(part, centres).kthvalue(nearest).values for part in torch.split(centres, _ROWS)])
    inside = [(torch.cdist(part, centres) <= radii).any(dim=1) for part in torch.split(points, _ROWS)]
    return torch.cat(inside).double().mean().item()


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root
