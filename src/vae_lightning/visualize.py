"""Draw what a VAE has learnt: ``python -m vae_lightning.visualize checkpoint=<file or run directory> [key=value ...]``."""

import logging

from omegaconf import DictConfig

from vae_lightning.configuration import ConfigurationError, command, make_run_directory, save_configuration

log = logging.getLogger(__name__)


@command("visualize")
def main(config: DictConfig) -> None:
    """Encode a split and draw what is asked for, each as PNG and in the other formats that are named."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    from typing import Literal, get_args

    import torch
    from pydantic import NonNegativeInt, PositiveInt
    from torch import Tensor

    from vae_lightning import checkpoints, experiment, pictures, plots
    from vae_lightning.objectives import kl_per_dimension

    everything = Literal["reconstructions", "samples", "manifold", "traversals", "interpolation", "latents", "kl"]
    asked = experiment.require_list("what", config.what, list[everything] | None)
    formats = experiment.require_list("formats", config.formats, list[Literal["png", "pdf", "svg"]])
    split = experiment.require("split", config.split, Literal["train", "val", "test"])
    label = experiment.require("label", config.label, NonNegativeInt | None)
    side = experiment.require("side", config.side, PositiveInt)
    file = checkpoints.find_checkpoint(experiment.require("checkpoint", config.checkpoint, str))
    module = checkpoints.load_module(file).eval().requires_grad_(False)
    vae = module.vae
    what = asked or [name for name in get_args(everything) if name != "manifold" or module.latent_dim == 2]
    if "manifold" in what and module.latent_dim != 2:
        raise ConfigurationError(f"what=[manifold]: is drawn of two latents, and this model has {module.latent_dim}")
    if vae.num_classes and (label is None or label >= vae.num_classes):
        raise ConfigurationError(
            f"label={label}: this model is conditional; say which digit to decode, 0 to {vae.num_classes - 1}"
        )
    data = experiment.build_data_as_trained(config.data, checkpoints.load_data_settings(file), module)
    shown = list(experiment.choose_split(data, split))
    posteriors = [vae.posterior(batch.images, batch.labels) for batch in shown]
    images, labels = (torch.cat([getattr(batch, name) for batch in shown]) for name in ("images", "labels"))
    loc = torch.cat([posterior.loc for posterior in posteriors])
    kl = torch.cat([kl_per_dimension(posterior, vae.prior) for posterior in posteriors]).mean(0)

    def decode(z: Tensor) -> Tensor:
        return vae.likelihood(z, torch.full((len(z),), label) if vae.num_classes else None).mean

    def first_of(digits: list[int]) -> Tensor:
        return loc[[int((labels == digit).nonzero()[0]) for digit in digits]]

    def draw(name: str) -> Tensor:
        if name == "reconstructions":
            return pictures.reconstruction_grid(images[:16], vae.reconstruct(images[:16], labels[:16]))
        if name == "samples":
            noise = torch.randn(64, module.latent_dim, generator=torch.Generator().manual_seed(0))
            return pictures.sample_grid(decode(noise))
        if name == "manifold":
            return pictures.manifold_grid(decode, side)
        if name == "traversals":
            return pictures.traversal_grid(decode, torch.zeros(module.latent_dim), kl.argsort(descending=True)[:10].tolist())
        return pictures.interpolation_grid(decode, first_of([0, 2, 4, 7]), first_of([1, 3, 9, 8]))

    directory = make_run_directory("visualize")
    save_configuration(config, directory)
    for name in what:
        if name in ("latents", "kl"):
            figure = plots.latent_map(loc, labels) if name == "latents" else plots.kl_bars(kl)
            for form in formats:
                figure.savefig(directory / f"{name}.{form}", dpi=200)
            continue
        picture = draw(name)
        for form in formats:
            if form == "png":
                pictures.save_png(picture, directory / f"{name}.png")
            else:
                plots.figure_of(picture).savefig(directory / f"{name}.{form}")
    log.info("%s in %s", ", ".join(what), directory)


if __name__ == "__main__":
    main()
