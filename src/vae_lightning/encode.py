"""Write the codes of examples: ``python -m vae_lightning.encode checkpoint=<file or run>``."""

import logging

from omegaconf import DictConfig

from vae_lightning.cli.command import command
from vae_lightning.configuration.quoting import override
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.directory import new_run_directory

log = logging.getLogger(__name__)


@command("encode", positional="checkpoint")
def main(config: DictConfig) -> None:
    """Encode a split, or a folder of a user's own examples, and write ``.npz`` and CSV."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    from pathlib import Path

    import torch
    from pydantic import NonNegativeInt

    from vae_lightning.configuration.building import require
    from vae_lightning.data.batches import Batches
    from vae_lightning.data.datamodule import Split
    from vae_lightning.data.music.modality import Music
    from vae_lightning.evaluation import codes
    from vae_lightning.models.base import Autoencoder, with_codes
    from vae_lightning.runs.trained import check_label, choose_split, open_checkpoint
    from vae_lightning.training.trainer import choose_accelerator

    split = require("split", config.split, Split)
    key = "images" if config.images is not None else "music"
    folder = require(key, config[key], str | None)
    if config.images is not None and config.music is not None:
        raise ConfigurationError("images= and music=: type one of the two")
    label = require("label", config.label, NonNegativeInt | None)
    device = choose_accelerator(config.trainer.accelerator)
    trained = open_checkpoint(config)
    model = with_codes(trained.model.to(device))
    if not isinstance(model, Autoencoder):
        named = override("checkpoint", trained.file)
        raise ConfigurationError(f"{named}: a {model.describe()} has no codes")
    names = None
    if folder is not None:
        own = "music" if isinstance(trained.modality, Music) else "images"
        if key != own:
            raise ConfigurationError(f"{key}={folder}: this model is of {own}; type {own}=<folder>")
        check_label(label, model.num_classes, needed_for="which label the examples have")
        try:
            x, names = trained.modality.read(Path(folder), model.data.shape, trained.trained_with)
        except ConfigurationError:
            raise
        except ValueError as error:
            problem = str(error)  # which may begin with the name of the file
            named = problem if problem.startswith(folder) else f"{folder}: {problem}"
            raise ConfigurationError(f"{key}={named}") from error
        y = None if label is None else torch.full((len(x),), label)
        batches = Batches(x, y, torch.arange(len(x)), 1000)
    elif label is not None:
        raise ConfigurationError(
            f"label={label}: is that of the examples in images=<folder>, and a split has labels"
        )
    else:
        batches = choose_split(trained.read_data(config.data), split)
    columns = codes.encode(model, batches)
    with new_run_directory("encode", config) as writing:
        written = codes.write(columns, names, writing)
    log.info("%s in %s/%s", codes.describe(columns), writing.parent, written)


if __name__ == "__main__":
    main()
