"""Search for the best configuration: ``python -m vae_lightning.tune [key=value ...]``."""

from omegaconf import DictConfig

from vae_lightning.cli.command import command
from vae_lightning.errors import ConfigurationError


@command(
    "tune",
    no_sweep="a search is no sweep; what it varies is written search.model.latent_dim=[2,5,10]",
)
def main(config: DictConfig) -> None:
    """Train one trial after the other until the study has enough, and print the best."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    import importlib.util

    if not importlib.util.find_spec("optuna"):
        raise ConfigurationError("optuna is missing: pip install 'vae-lightning[tune]'")
    from vae_lightning.tuning import search

    with search.opened(config) as study:
        while (trial := study.ask()) is not None:
            study.run(trial)
        study.finish()


if __name__ == "__main__":
    main()
