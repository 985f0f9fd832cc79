"""Train a model: ``python -m vae_lightning.train [key=value ...]``."""

import logging

from omegaconf import DictConfig

from vae_lightning.cli.command import command
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import mirror, resume

log = logging.getLogger(__name__)


@command("train")
def main(config: DictConfig) -> None:
    """Build the parts, train, test, and say what was reached and where it is."""
    if config.sweep is not None:  # the jobs of a sweep don't have it
        raise ConfigurationError(
            f"sweep={config.sweep}: continues a sweep, with --multirun and the sweep's own line"
        )
    with mirror.fetched(config) as address:
        if config.resume is not None:
            config = resume.stored_configuration(config, address)
            if resume.is_finished(config):
                where = f"its figures are in {config.resume}/metrics.json"
                beside = " ".join(resume.typed_beside_resume())
                idle = f"; {beside} changes nothing" if beside else ""
                log.info("%s is finished: %s%s", config.resume, where, idle)
                mirror.complete(config)
                return
        # Imported here, so that --help and a mistyped key are answered without waiting for torch.
        from vae_lightning.training import experiment
        from vae_lightning.training.run import run

        parts = experiment.build(config)
    run(parts)


if __name__ == "__main__":
    main()
