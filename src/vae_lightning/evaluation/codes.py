"""The codes of examples as arrays and as a table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_lightning.configuration.quoting import spreadsheet_cell
from vae_lightning.data.batches import Batches
from vae_lightning.models.base import Autoencoder
from vae_lightning.models.noise import EvaluationNoise

_OWN = ("index", "label")
_BOUNDS = ("elbo", "log_likelihood", "kl")


@torch.inference_mode()
def encode(model: Autoencoder, batches: Batches) -> dict[str, Tensor]:
    """Return the codes of examples by column, on the CPU.

    Returns:
        ``index``, the place in the file, and ``label``, −1 where there is none, each ``[N]``; and
        the columns of ``model.encode``, each ``[N, ...]``; and of a model with a bound each
        example's ``elbo``, ``log_likelihood`` and ``kl`` by one sample of q(z|x), in nats, ``[N]``.
    """
    columns: dict[str, list[Tensor]] = {}
    for batch in batches:
        batch = model.take(batch)
        codes = model.encode(batch)
        no_label = torch.full((len(batch.x),), -1)
        assert batch.indices is not None
        known = {"index": batch.indices, "label": no_label if batch.y is None else batch.y}
        measured = model.measure(batch, EvaluationNoise(batch.indices))
        bounds = {name: measured[name] for name in _BOUNDS if name in measured}
        for name, values in {**known, **codes, **bounds}.items():
            columns.setdefault(name, []).append(values.cpu())
    return {name: torch.cat(parts) for name, parts in columns.items()}


def write(columns: Mapping[str, Tensor], names: Sequence[str] | None, directory: Path) -> str:
    """Write codes as ``.npz`` and CSV, and return what the files are called.

    Args:
        columns: as ``encode`` returns them.
        names: of the files that the examples were read from; None: they are of a split.
        directory: where to.
    """
    stem = "posteriors" if "loc" in columns else "codes"
    arrays = {name: values.numpy() for name, values in columns.items()}
    if names:
        arrays["name"] = np.array(names)
    np.savez(directory / f"{stem}.npz", allow_pickle=False, **arrays)
    flat = {name: each.view(len(each), -1) for name, each in columns.items() if name not in _OWN}
    heads = [
        f"{name}_{d}" if columns[name].ndim > 1 else name
        for name, each in flat.items()
        for d in range(each.shape[1])
    ]
    file = directory / f"{stem}.csv"
    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as written:
        # Quoted, a name stays one cell where spreadsheets separate cells by semicolons.
        writer = csv.writer(written, quoting=csv.QUOTE_NONNUMERIC if names else csv.QUOTE_MINIMAL)
        writer.writerow(["name" if names else "index", "label", *heads])
        first = [*map(spreadsheet_cell, names)] if names else columns["index"].tolist()
        codes = (each.tolist() for each in flat.values())
        for index, label, *values in zip(first, columns["label"].tolist(), *codes, strict=True):
            writer.writerow([index, label, *(number for each in values for number in each)])
    return f"{stem}.npz and .csv"


def describe(columns: Mapping[str, Tensor]) -> str:
    """Return how many codes there are, and of what kind."""
    count = f"{len(columns['index']):,}"
    if "loc" in columns:
        plural = "s" * (len(columns["index"]) != 1)
        return f"{count} posterior{plural} of {columns['loc'].shape[1]} latents"
    shapes = [
        f"{name} {list(each.shape[1:])}"
        for name, each in columns.items()
        if name not in (*_OWN, *_BOUNDS)
    ]
    return f"{count} codes ({', '.join(shapes)})"
