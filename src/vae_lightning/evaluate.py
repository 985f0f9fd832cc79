"""Measure a trained VAE: ``python -m vae_lightning.evaluate checkpoint=<file or run directory> [key=value ...]``."""

import logging

from omegaconf import DictConfig

from vae_lightning.commands import command
from vae_lightning.directories import make_run_directory, save_configuration

log = logging.getLogger(__name__)


@command("evaluate")
def main(config: DictConfig) -> None:
    """Load the model and the protocol it was trained by, measure, and write the figures."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    from typing import Annotated, Literal

    from pydantic import Field, PositiveInt

    from vae_lightning import checkpoints, evaluation, experiment, report

    split = experiment.require("split", config.split, Literal["train", "val", "test"])
    metrics = experiment.require_list("metrics", config.metrics, evaluation.Metric)
    samples = experiment.require("samples", config.samples, PositiveInt)
    memory_mb = experiment.require("memory_mb", config.memory_mb, PositiveInt)
    limit = experiment.require("data.limit_test", config.data.limit_test, Annotated[int, Field(ge=2)] | None)
    device = experiment.choose_accelerator(config.trainer.accelerator)
    file = checkpoints.find_checkpoint(experiment.require("checkpoint", config.checkpoint, str))
    module = checkpoints.load_module(file).eval().to(device)
    data = experiment.build_data_as_trained(config.data, checkpoints.load_data_settings(file), module)
    images = experiment.choose_split(data, split, limit)
    figures = evaluation.evaluate(module, images, metrics, samples, memory_mb)
    quality = {}
    if "sample_quality" in metrics and data.shows_digits:
        test = data.grey("test", min(limit or evaluation.SAMPLES_DRAWN, evaluation.SAMPLES_DRAWN))
        quality = evaluation.sample_quality(module, test, data.grey("train", len(test)))
    elif "sample_quality" in metrics:
        log.info("No sample_quality: the classifier that it needs knows grey-level MNIST digits, not %s", data.dataset)
    directory = make_run_directory("evaluate")
    save_configuration(config, directory)
    log.info(report.measured(file, directory, module, data, images, split, samples, figures, quality))


if __name__ == "__main__":
    main()
