"""Draw images from a trained VAE: ``python -m vae_lightning.sample checkpoint=<file or run directory> [key=value ...]``."""

import logging

from omegaconf import DictConfig

from vae_lightning.commands import command
from vae_lightning.directories import make_run_directory, save_configuration

log = logging.getLogger(__name__)


@command("sample")
def main(config: DictConfig) -> None:
    """Decode draws from the prior and write them in the form that is asked for."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    from typing import Annotated, Literal

    import numpy as np
    import torch
    from pydantic import Field, NonNegativeInt, PositiveInt

    from vae_lightning import checkpoints, experiment, pictures
    from vae_lightning.data import Seed

    count = experiment.require("count", config.count, PositiveInt)
    columns = experiment.require("columns", config.columns, PositiveInt | None)
    seed = experiment.require("seed", config.seed, Seed)
    label = experiment.require("label", config.label, NonNegativeInt | None)
    temperature = experiment.require("temperature", config.temperature, Annotated[float, Field(ge=0, allow_inf_nan=False)])
    form = experiment.require("form", config.form, Literal["grid", "png", "npy", "pt"])
    vae = checkpoints.load(experiment.require("checkpoint", config.checkpoint, str))
    experiment.check_label(label, vae.num_classes)
    labels = None if label is None else torch.full((count,), label)
    with torch.inference_mode():
        samples = vae.sample(count, labels, torch.Generator().manual_seed(seed), temperature)
    directory = make_run_directory("sample")
    save_configuration(config, directory)
    if form == "grid":
        written = directory / "samples.png"
        pictures.save_png(pictures.sample_grid(samples, columns), written)
    elif form == "png":
        written = directory / "samples"
        for number, image in enumerate(samples):
            pictures.save_png(image, written / f"{number:0{len(str(count - 1))}d}.png")
    elif form == "npy":
        written = directory / "samples.npy"
        np.save(written, samples.numpy())
    else:
        written = directory / "samples.pt"
        torch.save(samples, written)
    log.info("%s images in %s", f"{count:,}", written)


if __name__ == "__main__":
    main()
