"""Draw images from a trained VAE: ``python -m vae_lightning.sample checkpoint=<file or run directory> [key=value ...]``."""

import logging

from omegaconf import DictConfig

from vae_lightning.configuration import ConfigurationError, command, make_run_directory, save_configuration

log = logging.getLogger(__name__)


@command("sample")
def main(config: DictConfig) -> None:
    """Decode draws from the prior and write them as one PNG grid."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    import torch
    from pydantic import NonNegativeInt, PositiveInt

    from vae_lightning import checkpoints, experiment, pictures
    from vae_lightning.data import Seed

    count = experiment.require("count", config.count, PositiveInt)
    seed = experiment.require("seed", config.seed, Seed)
    label = experiment.require("label", config.label, NonNegativeInt | None)
    vae = checkpoints.load(experiment.require("checkpoint", config.checkpoint, str))
    if label is not None and label >= vae.num_classes:
        known = f"labels from 0 to {vae.num_classes - 1}" if vae.num_classes else "no labels: train one with model=conditional"
        raise ConfigurationError(f"label={label}: this model knows {known}")
    labels = None if label is None else torch.full((count,), label)
    with torch.inference_mode():
        samples = vae.sample(count, labels, generator=torch.Generator().manual_seed(seed))
    directory = make_run_directory("sample")
    save_configuration(config, directory)
    pictures.save_png(pictures.sample_grid(samples), directory / "samples.png")
    log.info("%s images in %s", count, directory / "samples.png")


if __name__ == "__main__":
    main()
