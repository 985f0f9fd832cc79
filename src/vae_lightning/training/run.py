"""A training run, once its parts are built: train, test, report."""

import logging

from vae_lightning.runs.log_file import log_to
from vae_lightning.training import experiment, report
from vae_lightning.training.experiment import Experiment

log = logging.getLogger(__name__)


def run(parts: Experiment) -> dict[str, float]:
    """Train, test, say what was reached and where it is, and return the figures of the test."""
    first = parts.trainer.is_global_zero  # of the processes that train together
    with log_to(parts.directory / "train.log" if first else None), report.ending(parts):
        log.info(report.describe(parts.module.model, parts.data, parts.trainer))
        for remark in parts.remarks:
            log.warning(remark)
        experiment.fit(parts)
        figures, checkpoint = experiment.test(parts)
        if first:
            report.finish(parts, figures, checkpoint)
    return figures
