"""What there is to see of a trained model, by name: drawn alike in training and afterwards."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from vae_lightning.data.datamodule import DataModule
from vae_lightning.data.music.attributes import ATTRIBUTES, vector
from vae_lightning.data.music.modality import Music
from vae_lightning.evaluation.estimators import spread
from vae_lightning.models.base import (
    Autoencoder,
    Batch,
    DiscreteModel,
    LatentModel,
    Model,
    with_codes,
)
from vae_lightning.models.noise import SamplingNoise
from vae_lightning.visualization import grids

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drawing = Literal[
    "reconstructions",
    "samples",
    "codes",
    "manifold",
    "traversals",
    "interpolation",
    "latents",
    "kl",
    "attributes",
]

PRIOR_SEED = 0
"""Seed of the noise of prior samples: the same in every epoch and every run."""

_RECONSTRUCTED, _SAMPLED, _TRAVERSED, _INTERPOLATED = 16, 64, 10, 4

SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


class Encoded(NamedTuple):
    """Examples with the latents that stand for them, all on the CPU.

    Attributes:
        x: ``[N, ...]``.
        y: labels ``[N]``; None where there are none.
        point: the latent of each example, ``[N, D]``.
        kl: of each latent, the mean over the examples, ``[D]`` in nats; None where it isn't known.
    """

    x: Tensor
    y: Tensor | None
    point: Tensor
    kl: Tensor | None


@torch.no_grad()
def encode(model: LatentModel, batches: Iterable[Batch]) -> Encoded:
    """Encode examples, on the model's device."""
    shown: list[Batch] = []
    points, kls = [], []
    for batch in batches:
        here = model.take(batch)
        points.append(model.point(here).float().cpu())
        kl = model.kl_of_each_latent(model.posterior(here))
        if kl is not None:
            kls.append(kl.float())
        shown.append(batch.to(torch.device("cpu")))
    labels = [batch.y for batch in shown if batch.y is not None]
    return Encoded(
        torch.cat([batch.x for batch in shown]),
        torch.cat(labels) if labels else None,
        torch.cat(points),
        torch.cat(kls).mean(0).cpu() if kls else None,
    )


@torch.no_grad()
def count_codes(model: DiscreteModel, batches: Iterable[Batch]) -> Tensor:
    """Return how often each code stands for a position of the examples, ``[K]``."""
    counts = torch.zeros(model.codes, dtype=torch.int64)
    for batch in batches:
        code = model.encode(model.take(batch))["code"]
        counts += torch.bincount(code.flatten().cpu(), minlength=model.codes)
    return counts


@torch.no_grad()
def images_of_codes(model: DiscreteModel) -> Tensor:
    """Return what a grid of each code alone decodes to, ``[K, ...]``, on the CPU."""
    code = torch.arange(model.codes).view(-1, *[1] * len(model.code_shape))
    grids_of_one = code.expand(-1, *model.code_shape).contiguous()
    return model.decode_codes(grids_of_one.to(model.device)).float().cpu()


def missing(name: Drawing, model: Model) -> str:
    """Return why there is no such drawing of a model; empty: there is one."""
    if name == "samples":
        return ""
    model = with_codes(model)
    if name == "reconstructions":
        return "" if isinstance(model, Autoencoder) else "the model doesn't encode examples"
    if name == "codes":
        is_grid = isinstance(model, DiscreteModel) and len(model.code_shape) == 2
        return "" if is_grid and len(model.data.shape) == 3 else "the model has no grid of codes"
    if not isinstance(model, LatentModel):
        return "the model has no continuous latents"
    if name == "kl" and type(model).kl_of_each_latent is LatentModel.kl_of_each_latent:
        return "the KL of each latent isn't known"
    if name == "attributes" and not model.data.has_voices:
        return "only music in voices has them"
    if name == "manifold" and model.latent_dim != 2:
        return f"it needs two latents, and this model has {model.latent_dim}"
    return ""


def drawings_of(model: Model) -> list[Drawing]:
    """Return what there is to draw of a model."""
    names: list[Drawing] = ["reconstructions", "samples", "codes", "traversals"]
    names += ["interpolation", "attributes", "latents", "kl", "manifold"]
    return [name for name in names if not missing(name, model)]


class Drawn(NamedTuple):
    """What was drawn, and what a reader would write beside it.

    Attributes:
        picture: ``[3, H, W]`` in [0, 1], or a figure with axes of its own.
        rows: names of the rows of examples, from above.
        columns: names of the columns.
        across: what the columns go through.
        up: what the rows go through.
        examples: those that it shows, row by row, ``[n, ...]``; None: it shows none.
    """

    picture: "Tensor | Figure"
    rows: Sequence[str] = ()
    columns: Sequence[str] = ()
    across: str = ""
    up: str = ""
    examples: Tensor | None = None


@torch.no_grad()
def draw(
    name: Drawing,
    model: Model,
    data: DataModule,
    batches: Iterable[Batch],
    encoded: Encoded | None,
    label: int = 0,
    side: int = 20,
) -> Drawn | None:
    """Draw a model in evaluation mode.

    Args:
        name: what; the model must have it, see ``missing``.
        model: the model.
        data: what it was trained on.
        batches: examples to reconstruct.
        encoded: a LatentModel's examples with their latents.
        label: what a conditional model decodes.
        side: examples in a row and a column of the manifold.

    Returns:
        None: these examples have no such drawing, as the KL of latents that is only sampled, or
            what compares examples, of one alone.
    """
    if name == "reconstructions":
        model = with_codes(model)
        assert isinstance(model, Autoencoder)
        batch = next(iter(batches))
        first = model.take(batch.take(torch.arange(min(_RECONSTRUCTED, len(batch.x)))))
        reconstructed = model.reconstruct(first).float().cpu()
        picture = grids.reconstruction_grid(data.modality, first.x.float().cpu(), reconstructed)
        shown = torch.cat([first.x.float().cpu(), reconstructed])
        return Drawn(picture, (data.modality.noun, "reconstruction"), examples=shown)
    if name == "codes":
        model = with_codes(model)
        assert isinstance(model, DiscreteModel)
        batch = next(iter(batches))
        first = model.take(batch.take(torch.arange(min(_RECONSTRUCTED, len(batch.x)))))
        code = model.encode(first)["code"]
        decoded = model.decode_codes(code).float().cpu()
        picture = grids.code_grid(data.modality, first.x.float().cpu(), code.cpu(), decoded)
        return Drawn(picture, (data.modality.noun, "codes", "decoded"))
    if name == "samples":
        labels = torch.full((_SAMPLED,), label, device=model.device) if model.num_classes else None
        drawn = model.sample(_SAMPLED, SamplingNoise(_SAMPLED, PRIOR_SEED), labels)
        return Drawn(grids.sample_grid(data.modality, drawn.cpu()), examples=drawn.cpu())
    assert isinstance(model, LatentModel)
    assert encoded is not None
    if name in ("interpolation", "attributes", "latents") and len(encoded.x) < 2:
        return None
    if name == "latents" or name == "kl":
        from vae_lightning.visualization import plots  # matplotlib's import takes a second

        if name == "latents":
            names = data.spec.class_names
            return Drawn(plots.latent_map(encoded.point, encoded.y, names, data.label_noun))
        return None if encoded.kl is None else Drawn(plots.kl_bars(encoded.kl))
    return _decoded(name, model, data, encoded, label, side)


def _decoded(
    name: Drawing, model: LatentModel, data: DataModule, encoded: Encoded, label: int, side: int
) -> Drawn:
    """Draw what a model decodes at chosen latents."""
    point, modality, device = encoded.point, data.modality, model.device

    decoded: list[Tensor] = []

    def decode(z: Tensor) -> Tensor:
        y = torch.full((len(z),), label, device=device) if model.num_classes else None
        decoded.append(model.decode(z.to(device, model.dtype), y).float().cpu())
        return decoded[-1]

    if name == "manifold":
        values = [f"{value:z.1f}" for value in grids.equal_shares(side).tolist()]
        picture = grids.manifold_grid(modality, decode, side)
        return Drawn(picture, values[::-1], values, "z₀", "z₁", decoded[0])
    if name == "attributes":
        assert isinstance(modality, Music)
        counted = [count(encoded.x, modality.lowest) for count in ATTRIBUTES.values()]
        directions = torch.stack([vector(values, point) for values in counted])
        reach = [f"{share:+z.1f}" for share in grids.ATTRIBUTE_STEPS]
        picture = grids.direction_grid(modality, decode, point[0], directions)
        across = "times the row's vector, added to the first example's latent"
        return Drawn(picture, list(ATTRIBUTES), reach, across, examples=decoded[0])
    if name == "traversals":
        use = spread(point) if encoded.kl is None else encoded.kl
        most_used = use.argsort(descending=True)[:_TRAVERSED].tolist()
        return Drawn(
            grids.traversal_grid(modality, decode, torch.zeros(point.shape[1]), most_used),
            [f"z{latent}".translate(SUBSCRIPTS) for latent in most_used],
            [f"{value:z.1f}" for value in torch.linspace(-3, 3, 11).tolist()],
            "value of the row's latent, the others 0",
            examples=decoded[0],
        )
    starts, ends, names = _ends(encoded, data)
    rows = [f"{each}, {way}" for each in names for way in ("straight", "sphere")]
    columns = 8 if model.data.is_of_tokens else 11  # of music a row is also listened to
    shares = [f"{share:.2g}" for share in torch.linspace(0, 1, columns).tolist()]
    picture = grids.interpolation_grid(modality, decode, point[starts], point[ends], columns)
    return Drawn(picture, rows, shares, "share of the way", examples=decoded[0])


def _ends(encoded: Encoded, data: DataModule) -> tuple[list[int], list[int], list[str]]:
    """Return the examples between which interpolations go, and names of the ways."""
    y = encoded.y
    if y is None:
        starts = list(range(0, min(2 * _INTERPOLATED, len(encoded.x) - 1), 2))
        ends = [start + 1 for start in starts]
        pairs = zip(starts, ends, strict=True)
        return starts, ends, [f"no. {start} to no. {end}" for start, end in pairs]
    names = data.spec.class_names
    neighbours = [(n, n + 1) for n in range(0, min(2 * _INTERPOLATED, len(names) - 1), 2)]
    pairs_ = [pair for pair in data.pairs or neighbours if all((y == each).any() for each in pair)]
    pairs_ = pairs_ or [(int(y[0]), int(y[-1]))]
    first = {label: int((y == label).nonzero()[0]) for pair in pairs_ for label in pair}
    return (
        [first[start] for start, _ in pairs_],
        [first[end] for _, end in pairs_],
        [f"{names[start]} to {names[end]}" for start, end in pairs_],
    )
