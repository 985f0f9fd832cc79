"""Draw what a VAE has learnt: ``python -m vae_lightning.visualize checkpoint=<file or run directory> [key=value ...]``."""

import logging

from omegaconf import DictConfig

from vae_lightning.commands import command
from vae_lightning.configuration import ConfigurationError
from vae_lightning.directories import make_run_directory, save_configuration

log = logging.getLogger(__name__)


@command("visualize")
def main(config: DictConfig) -> None:
    """Encode a split and draw what is asked for, each as PNG and in the other formats that are named."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    from typing import Literal

    from pydantic import NonNegativeInt, PositiveInt
    from torch import Tensor

    from vae_lightning import checkpoints, experiment, gallery, plots

    asked = experiment.require_list("what", config.what, gallery.Drawing) if config.what is not None else None
    formats = experiment.require_list("formats", config.formats, Literal["png", "pdf", "svg"])
    split = experiment.require("split", config.split, Literal["train", "val", "test"])
    label = experiment.require("label", config.label, NonNegativeInt | None)
    side = experiment.require("side", config.side, PositiveInt)
    file = checkpoints.find_checkpoint(experiment.require("checkpoint", config.checkpoint, str))
    module = checkpoints.load_module(file).eval().requires_grad_(False)
    vae = module.vae
    known = gallery.drawings_of(vae)
    what = [name for name in asked or known if name in known]
    if not what:
        raise ConfigurationError(f"what=[manifold]: is drawn of two latents, and this model has {module.latent_dim}")
    if what != (asked or known):
        log.info("No manifold: it is drawn of two latents, and this model has %d", module.latent_dim)
    experiment.check_label(label, vae.num_classes, asks="which digit to decode")
    data = experiment.build_data_as_trained(config.data, checkpoints.load_data_settings(file), module)
    encoded = gallery.encode(vae, experiment.choose_split(data, split))
    directory = make_run_directory("visualize")
    save_configuration(config, directory)
    for name in what:
        picture, *names = gallery.draw(name, vae, encoded, label or 0, side)
        figure = plots.figure_of(picture, *names) if isinstance(picture, Tensor) else picture  # type: ignore[arg-type]
        for form in formats:
            figure.savefig(directory / f"{name}.{form}", dpi=200)
    log.info("%s in %s", ", ".join(what), directory)


if __name__ == "__main__":
    main()
