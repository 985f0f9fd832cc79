"""Draw new examples from a trained model.

``python -m vae_lightning.sample checkpoint=<file or run>``
"""

import logging

from omegaconf import DictConfig

from vae_lightning.cli.command import command
from vae_lightning.runs.directory import new_run_directory

log = logging.getLogger(__name__)


@command("sample", positional="checkpoint")
def main(config: DictConfig) -> None:
    """Draw examples and write them in the form that was chosen."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    import io
    import math
    from typing import Annotated, Literal

    import numpy as np
    import torch
    from pydantic import Field, NonNegativeInt, PositiveInt

    from vae_lightning.configuration.building import require, require_memory
    from vae_lightning.data.batches import Seed
    from vae_lightning.data.modality import save_png
    from vae_lightning.errors import ConfigurationError
    from vae_lightning.models.base import CodePrior, DiscreteModel
    from vae_lightning.models.noise import SamplingNoise
    from vae_lightning.runs.trained import check_label, open_checkpoint
    from vae_lightning.visualization.grids import sample_grid

    count = require("count", config.count, PositiveInt)
    columns = require("columns", config.columns, PositiveInt | None)
    seed = require("seed", config.seed, Seed)
    label = require("label", config.label, NonNegativeInt | None)
    at_least_0 = Annotated[float, Field(ge=0, allow_inf_nan=False)]
    temperature = require("temperature", config.temperature, at_least_0)
    top_k = require("top_k", config.top_k, PositiveInt | None)
    form = require("form", config.form, Literal["grid", "files", "png", "mid", "wav", "npy", "pt"])
    trained = open_checkpoint(config)
    model, modality = trained.model, trained.modality
    suffix = next(iter(modality.formats)) if form == "files" else form
    if suffix not in ("grid", *modality.formats, "npy", "pt"):
        known = ", ".join(f"form={each}" for each in ("grid", *modality.formats, "npy", "pt"))
        raise ConfigurationError(f"form={form}: not of {modality.noun}s; type one of {known}")
    check_label(label, model.num_classes)
    if isinstance(model, DiscreteModel):
        log.warning(
            "Without a prior all codes are as likely, so samples look like no data; "
            "experiment=prior data.run=<this run> trains one"
        )
    require_memory(f"count={count}", count * math.prod(model.data.shape))
    labels = None if label is None else torch.full((count,), label)
    noise = SamplingNoise(count, seed)
    with torch.inference_mode():
        if isinstance(model, CodePrior):
            samples = model.sample(count, noise, labels, temperature, top_k)
        elif top_k is not None:
            raise ConfigurationError(f"top_k={top_k}: only a prior over codes has it")
        else:
            samples = model.sample(count, noise, labels, temperature)
    with new_run_directory("sample", config) as writing:
        if form == "grid":
            written = writing / "samples.png"
            save_png(sample_grid(modality, samples, columns), written)
        elif suffix in modality.formats:
            written, digits = writing / "samples", len(str(count - 1))
            written.mkdir()
            for number, example in enumerate(samples):
                content = modality.formats[suffix](example)
                (written / f"{number:0{digits}d}.{suffix}").write_bytes(content)
        else:
            written, packed = writing / f"samples.{form}", io.BytesIO()
            if form == "npy":
                np.save(packed, samples.numpy())
            else:
                torch.save(samples, packed)
            written.write_bytes(packed.getbuffer())  # both would tell a full disk without its name
    log.info("%s %ss in %s", f"{count:,}", modality.noun, writing.parent / written.name)


if __name__ == "__main__":
    main()
