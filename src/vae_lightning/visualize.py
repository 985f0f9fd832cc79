"""Draw what a VAE has learnt: ``python -m vae_lightning.visualize checkpoint=<file or run directory> [key=value ...]``."""

import logging

from omegaconf import DictConfig

from vae_lightning.configuration import ConfigurationError, command, make_run_directory, save_configuration

log = logging.getLogger(__name__)


@command("visualize")
def main(config: DictConfig) -> None:
    """Encode a split and draw what is asked for, each as PNG and in the other formats that are named."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    from typing import Literal

    from pydantic import NonNegativeInt, PositiveInt
    from torch import Tensor

    from vae_lightning import checkpoints, experiment, gallery, pictures, plots

    asked = experiment.require_list("what", config.what, list[gallery.Drawing] | None)
    formats = experiment.require_list("formats", config.formats, list[Literal["png", "pdf", "svg"]])
    split = experiment.require("split", config.split, Literal["train", "val", "test"])
    label = experiment.require("label", config.label, NonNegativeInt | None)
    side = experiment.require("side", config.side, PositiveInt)
    file = checkpoints.find_checkpoint(experiment.require("checkpoint", config.checkpoint, str))
    module = checkpoints.load_module(file).eval().requires_grad_(False)
    vae = module.vae
    what = asked or gallery.drawings_of(vae)
    if "manifold" in what and module.latent_dim != 2:
        raise ConfigurationError(f"what=[manifold]: is drawn of two latents, and this model has {module.latent_dim}")
    if vae.num_classes and (label is None or label >= vae.num_classes):
        raise ConfigurationError(
            f"label={label}: this model is conditional; say which digit to decode, 0 to {vae.num_classes - 1}"
        )
    data = experiment.build_data_as_trained(config.data, checkpoints.load_data_settings(file), module)
    encoded = gallery.encode(vae, experiment.choose_split(data, split))
    directory = make_run_directory("visualize")
    save_configuration(config, directory)
    for name in what:
        drawn = gallery.draw(name, vae, encoded, label or 0, side)
        for form in formats:
            written = directory / f"{name}.{form}"
            if not isinstance(drawn, Tensor):
                drawn.savefig(written, dpi=200)
            elif form == "png":
                pictures.save_png(drawn, written)
            else:
                plots.figure_of(drawn).savefig(written)
    log.info("%s in %s", ", ".join(what), directory)


if __name__ == "__main__":
    main()
