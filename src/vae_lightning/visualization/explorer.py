"""What the explorer's page shows: a split as a model sees it, a map of it, a user's drawings."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_lightning.data.datamodule import DataModule
from vae_lightning.data.music.modality import Music
from vae_lightning.evaluation.estimators import spread
from vae_lightning.models.base import Batch, LatentModel
from vae_lightning.visualization.drawings import Encoded, encode
from vae_lightning.visualization.plots import map_axes


@dataclass(frozen=True)
class Explorer:
    """A model, and a split as it sees it.

    Attributes:
        model: the model, in evaluation mode.
        data: what it was trained on.
        seen: the split's examples with their latents.
        axes: the two directions of the map, ``[D, 2]``.
        reach: the map shows the square from −reach to reach.
    """

    model: LatentModel
    data: DataModule
    seen: Encoded
    axes: Tensor
    reach: float

    def on_map(self, z: Tensor) -> Tensor:
        """Return where latents ``[..., D]`` lie on the map, ``[..., 2]``: across and up."""
        return z @ self.axes

    @torch.inference_mode()
    def decode(self, z: Tensor, label: int | None) -> Tensor:
        """Return the example ``[...]`` of a latent ``[D]``, of a label if the model needs one."""
        return self.model.decode(z.unsqueeze(0), self._labels(label))[0]

    @torch.inference_mode()
    def encode(self, example: Tensor, label: int | None) -> Tensor:
        """Return the latent ``[D]`` of an example, of a label if the model needs one."""
        return self.model.point(Batch(example.unsqueeze(0), self._labels(label)))[0]

    def _labels(self, label: int | None) -> Tensor | None:
        return torch.tensor([label]) if self.model.num_classes else None

    @property
    def takes_drawings(self) -> bool:
        """Whether a drawing can be brought to the form of an example."""
        return self.data.take_drawing(torch.zeros(1, 1)) is not None

    @property
    def takes_midi(self) -> bool:
        """Whether a MIDI file can be brought to the form of an example."""
        return self.model.data.has_voices and isinstance(self.data.modality, Music)

    def take_midi(self, content: bytes) -> Tensor:
        """Return the first window of a MIDI file, ``[T, V]``.

        Raises:
            ValueError: it is no such file.
        """
        assert isinstance(self.data.modality, Music)
        return self.data.modality.read_midi(content, "this file", self.model.data.shape)[0]

    def take(self, drawing: Tensor) -> Tensor:
        """Bring a drawing ``[H, W]`` in [0, 1] to the form of the model's examples."""
        example = self.data.take_drawing(drawing)
        assert example is not None
        return (example >= 0.5).float() if self.data.spec.values == "binary" else example


def explore(model: LatentModel, data: DataModule, split: Iterable[Batch]) -> Explorer:
    """Encode a split."""
    seen = encode(model, split)
    axes = map_axes(seen.point)
    return Explorer(model, data, seen, axes, 1.05 * (seen.point @ axes).abs().max().item())


def nearest(points: Tensor, point: Tensor) -> int:
    """Return which of the points ``[N, 2]`` lies nearest to a point ``[2]``."""
    return int((points - point).square().sum(-1).argmin())


def most_active(seen: Encoded, count: int) -> list[int]:
    """Return the latents that carry the most nats, or vary most where these aren't known."""
    use = spread(seen.point) if seen.kl is None else seen.kl
    return use.argsort(descending=True)[:count].tolist()
