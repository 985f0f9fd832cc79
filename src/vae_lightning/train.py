"""Train a VAE on MNIST: ``python -m vae_lightning.train [key=value ...]``."""

import logging

from omegaconf import DictConfig

from vae_lightning import mirror, resuming
from vae_lightning.commands import command

log = logging.getLogger(__name__)


@command("train")
def main(config: DictConfig) -> None:
    """Build the parts, train, test, and say what was reached and where it lies."""
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
    with report.log_to(parts.directory / "train.log"), report.ending(parts):
        log.info(report.describe(parts.module, parts.data, parts.trainer.strategy.root_device.type))
        for remark in parts.remarks:
            log.warning(remark)
        experiment.fit(parts)
        figures, checkpoint = experiment.test(parts)
        report.finish(parts, figures, checkpoint)


if __name__ == "__main__":
    main()
