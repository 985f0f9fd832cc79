"""Write the posteriors of images: ``python -m vae_lightning.encode checkpoint=<file or run directory> [key=value ...]``."""

import logging

from omegaconf import DictConfig

from vae_lightning.commands import command
from vae_lightning.configuration import ConfigurationError
from vae_lightning.directories import make_run_directory, save_configuration

log = logging.getLogger(__name__)


@command("encode")
def main(config: DictConfig) -> None:
    """Encode a split, or a folder of pictures, and write means, scales and labels as ``.npz`` and CSV."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    import csv
    from typing import Literal

    import numpy as np
    import torch
    from pydantic import NonNegativeInt

    from vae_lightning import checkpoints, experiment, gallery
    from vae_lightning.data import Batches, read_folder

    split = experiment.require("split", config.split, Literal["train", "val", "test"])
    folder = experiment.require("images", config.images, str | None)
    label = experiment.require("label", config.label, NonNegativeInt | None)
    device = experiment.choose_accelerator(config.trainer.accelerator)
    file = checkpoints.find_checkpoint(experiment.require("checkpoint", config.checkpoint, str))
    vae = checkpoints.load(file).to(device)
    names = None
    if folder is not None:
        experiment.check_label(label, vae.num_classes, asks="which digit the pictures show")
        try:
            images, names = read_folder(folder)
        except ValueError as error:
            raise ConfigurationError(f"images={folder}: {error}") from error
        labels = torch.full((len(images),), -1 if label is None else label)
        batches = Batches(images, labels, torch.arange(len(images)), 1000)
    elif label is not None:
        raise ConfigurationError(f"label={label}: says what the pictures of images=<folder> show, and a split has labels")
    else:
        trained_with = checkpoints.load_data_settings(file)
        data = experiment.build_data_as_trained(config.data, trained_with, checkpoints.load_module(file))
        batches = experiment.choose_split(data, split)
    encoded = gallery.encode(vae, batches)
    labels_, loc, scale = (getattr(encoded, name).numpy() for name in ("labels", "loc", "scale"))
    indices = batches.indices.numpy()
    directory = make_run_directory("encode")
    save_configuration(config, directory)
    columns = {"index": indices, "label": labels_, "loc": loc, "scale": scale}
    if names:
        columns["name"] = np.array(names)
    np.savez(directory / "posteriors.npz", allow_pickle=False, **columns)
    with (directory / "posteriors.csv").open("w", newline="") as written:
        writer = csv.writer(written)
        dims = range(loc.shape[1])
        writer.writerow(["name" if names else "index", "label", *(f"loc_{d}" for d in dims), *(f"scale_{d}" for d in dims)])
        for row in zip(names or indices.tolist(), labels_.tolist(), loc.tolist(), scale.tolist(), strict=True):
            writer.writerow([row[0], row[1], *row[2], *row[3]])
    log.info("%s posteriors of %d latents in %s/posteriors.npz and .csv", f"{len(loc):,}", loc.shape[1], directory)


if __name__ == "__main__":
    main()
