"""How good samples look: distances on the features of a small digit classifier.

None of these figures is an FID: that name belongs to the features of an Inception network.
"""

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vae_lightning.evaluation.classifier import DigitClassifier, load_classifier
from vae_lightning.models.base import Model
from vae_lightning.models.noise import EVALUATION_SEED, SamplingNoise

SAMPLES_DRAWN = 10_000
"""Images that are drawn to measure the quality of samples, and that they are measured against."""

NEIGHBOURS = 3
"""k of the balls that stand for a set of images in precision and recall."""

_ROWS = 1000  # images whose distances are held together


def features(classifier: DigitClassifier, images: Tensor) -> Tensor:
    """Return the features ``[N, F]`` of images ``[N, 1, 28, 28]`` in [0, 1], by the thousand."""
    parts = tqdm(torch.split(images, _ROWS), desc="features", leave=False, disable=None)
    return torch.cat([classifier.body(part) for part in parts])


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Return the squared Fréchet distance of two Gaussians fitted to two sets of features.

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½) (Dowson & Landau 1982). It depends on N and M: compare
    only values with the same N and M.

    Args:
        first: features ``[N, F]``.
        second: features ``[M, F]``.
    """
    first, second = first.double(), second.double()
    root = _square_root(first.T.cov())
    # The eigenvalues of Σ₁ Σ₂ are those of Σ₁^½ Σ₂ Σ₁^½, which is symmetric.
    overlap = torch.linalg.eigvalsh(root @ second.T.cov() @ root).clamp(min=0).sqrt().sum()
    shift = (first.mean(0) - second.mean(0)).square().sum()
    return float(shift + first.var(0).sum() + second.var(0).sum() - 2 * overlap)


def precision_and_recall(generated: Tensor, real: Tensor) -> tuple[float, float]:
    """Return precision, the share of generated images among the real ones, and recall, the reverse.

    Balls around the features of its images stand for a set. The radius of each is the distance to
    the third nearest neighbour in the set (Kynkäänniemi et al. 2019, arXiv:1904.06991, equation 2).

    Args:
        generated: features ``[N, F]``.
        real: features ``[M, F]``.
    """
    return _share_within(generated, real), _share_within(real, generated)


def _share_within(points: Tensor, centres: Tensor) -> float:
    """Return the share of points that lie within a ball around a centre."""
    nearest = min(NEIGHBOURS + 1, len(centres))  # the first of them is the centre itself
    radii = torch.cat(
        [
            torch.cdist(part, centres).kthvalue(nearest).values
            for part in torch.split(centres, _ROWS)
        ]
    )
    inside = [
        (torch.cdist(part, centres) <= radii).any(dim=1) for part in torch.split(points, _ROWS)
    ]
    return torch.cat(inside).double().mean().item()


def _square_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
    return root


@torch.inference_mode()
def sample_quality(model: Model, test: Tensor, train: Tensor) -> dict[str, Any]:
    """Measure how near samples are to test images, by the shipped digit classifier's features.

    Args:
        model: the model, on the device to use, in evaluation mode.
        test: grey test images ``[N, 1, 28, 28]`` in [0, 1]. N samples are drawn, always from the
            same latents.
        train: N training images. Their figures are those of a perfect model, whose samples can't be
            distinguished from the data.

    Returns:
        ``frechet_distance``, ``precision`` and ``recall``, the same for the training images as
        ``…_floor``, and the number of images. A conditional model draws all labels equally often;
        for it, also the share of samples that show their label.
    """
    classifier = load_classifier().to(model.device)
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    labels = torch.arange(len(test), device=model.device) % max(model.num_classes, 1)
    parts = [
        model.sample(
            len(part), SamplingNoise(len(part), generator), part if model.num_classes else None
        )
        for part in torch.split(labels, _ROWS)
    ]
    drawn = torch.cat(parts)
    generated, real, floor = (
        features(classifier, images.to(model.device)).cpu().double()
        for images in (drawn, test, train)
    )
    figures: dict[str, Any] = {"sample_images": len(test)}
    if model.num_classes:
        recognised = torch.cat([classifier(part) for part in torch.split(drawn, 1000)]).argmax(1)
        figures["label_accuracy"] = (recognised == labels).double().mean().item()
    for suffix, each in (("", generated), ("_floor", floor)):
        figures[f"frechet_distance{suffix}"] = frechet_distance(each, real)
        figures[f"precision{suffix}"], figures[f"recall{suffix}"] = precision_and_recall(each, real)
    return figures
