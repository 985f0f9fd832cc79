"""Train a VAE on MNIST: ``python -m vae_lightning.train [key=value ...]``."""

import logging

from omegaconf import DictConfig

from vae_lightning import mirror, resuming
from vae_lightning.commands import command
from vae_lightning.configuration import ConfigurationError

log = logging.getLogger(__name__)


@command("train")
def main(config: DictConfig) -> None:
    """Build the parts, train, test, and say what was reached and where it lies."""
    if config.sweep is not None:  # a sweep's jobs know nothing of it
        raise ConfigurationError(f"sweep={config.sweep}: continues a sweep, with --multirun and the line it was begun by")
    with mirror.fetched(config) as address:
        if config.resume is not None:
            config = resuming.stored_configuration(config, address)
            if resuming.is_finished(config):
                log.info("%s is finished: its figures are in %s/metrics.json", config.resume, config.resume)
                mirror.complete(config)
                return
        # Imported here, so that --help and a mistyped key are answered without waiting for torch.
        from vae_lightning import experiment, report

        parts = experiment.build(config)
    first = parts.trainer.is_global_zero  # of the processes that train together
    with report.log_to(parts.directory / "train.log" if first else None), report.ending(parts):
        log.info(report.describe(parts.module, parts.data, parts.trainer))
        for remark in parts.remarks:
            log.warning(remark)
        experiment.fit(parts)
        figures, checkpoint = experiment.test(parts)
        if first:
            report.finish(parts, figures, checkpoint)


if __name__ == "__main__":
    main()
