"""``metrics.json``: the figures of a run, how each is read, and the protocol they were taken by."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vae_lightning.data.datamodule import DataModule
from vae_lightning.models.base import Figure, Model
from vae_lightning.models.noise import EVALUATION_SEED
from vae_lightning.runs import atomic_files
from vae_lightning.runs.provenance import versions


def write_metrics(
    directory: Path,
    figures: Mapping[str, Any],
    model: Model,
    data: DataModule,
    run: Mapping[str, Any],
    samples: int = 1,
    further: Mapping[str, Figure] | None = None,
) -> Path:
    """Write ``metrics.json``.

    Args:
        directory: of the run.
        figures: by name, as ``test/elbo``.
        model: which names its figures.
        data: measured on.
        run: what is known of the run.
        samples: importance samples per example.
        further: figures that aren't the model's own, without a prefix.

    Returns:
        The file.
    """
    known = {**model.figures, **(further or {})}
    described = {}
    for name in figures:
        figure = known.get(name.rpartition("/")[2])
        if figure:
            described[name] = asdict(figure) | {"unit": unit(figure, data.modality.noun)}
    content = {
        "figures": dict(figures),
        "described": described,
        "comparison": f"test/{model.comparison}",
        "terms": [f"test/{name}" for name in model.terms],
        "units": f"nats per {data.modality.noun}, but for shares, counts, bits and distances",
        "protocol": data.protocol()
        | model.protocol()
        | {"meaning": model.meaning, "samples": samples, "evaluation_seed": EVALUATION_SEED},
        "run": dict(run),
        "versions": versions(),
    }
    file = directory / "metrics.json"
    atomic_files.write(file, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return file


def unit(figure: Figure, noun: str) -> str:
    """Return the unit of a figure in words, as "nats per image"; empty: it has none."""
    return f"{figure.unit} per {noun}" if figure.unit == "nats" else figure.unit
