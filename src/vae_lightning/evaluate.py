"""Measure a trained model: ``python -m vae_lightning.evaluate checkpoint=<file or run>``."""

import logging

from omegaconf import DictConfig

from vae_lightning.cli.command import command
from vae_lightning.runs.directory import new_run_directory

log = logging.getLogger(__name__)


@command("evaluate", positional="checkpoint")
def main(config: DictConfig) -> None:
    """Load the model and the protocol it was trained by, measure, and write the figures."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    from typing import Annotated, get_args

    from pydantic import Field, PositiveInt

    from vae_lightning.configuration.building import require, require_list
    from vae_lightning.data.datamodule import Split
    from vae_lightning.data.music.modality import Music
    from vae_lightning.evaluation import measure, music, report
    from vae_lightning.evaluation.sample_quality import SAMPLES_DRAWN, sample_quality
    from vae_lightning.models.base import CodePrior, LatentModel
    from vae_lightning.runs.trained import choose_split, open_checkpoint
    from vae_lightning.training.trainer import choose_accelerator

    split = require("split", config.split, Split)
    typed = config.metrics is not None
    metrics: list[measure.Metric] = [*get_args(measure.Metric)]
    if typed:
        metrics = require_list("metrics", config.metrics, measure.Metric)
    typed_samples = require("samples", config.samples, PositiveInt | None)
    memory_mb = require("memory_mb", config.memory_mb, PositiveInt)
    limit = require("data.limit_test", config.data.limit_test, Annotated[int, Field(ge=2)] | None)
    device = choose_accelerator(config.trainer.accelerator)
    trained = open_checkpoint(config)
    data = trained.read_data(config.data)
    model = trained.model.to(device)
    examples = choose_split(data, split, limit)
    missing = {metric: measure.missing(metric, model) for metric in metrics}
    remarks = [
        f"no {metric}: {reason}"
        for metric, reason in missing.items()
        if reason and (typed or metric != "music" or model.data.is_of_tokens)
    ]
    samples = typed_samples or model.importance_samples
    temperature = None
    if isinstance(model, CodePrior) and "log_marginal" in metrics:
        temperature, chosen = measure.choose_temperature(model, data, samples)
        remarks.append(f"temperature: {chosen}")
    figures = measure.evaluate(model, examples, metrics, samples, memory_mb, temperature)
    if missing.get("mutual_information") == "" and "mutual_information" not in figures:
        remarks.append("no mutual_information: the posterior isn't Gaussian")
    if "music" in metrics and not missing["music"]:
        assert isinstance(model, LatentModel)
        assert isinstance(data.modality, Music)
        batch = model.take(next(iter(examples)))
        training = data.x["train"][data.train_indices]
        figures |= music.interpolation(model, batch, training)
        figures |= music.attributes(model, batch, data.modality.lowest)
    quality = {}
    if "sample_quality" in metrics and data.suits_classifier:
        test = data.grey("test", min(limit or SAMPLES_DRAWN, SAMPLES_DRAWN))
        quality = sample_quality(model, test, data.grey("train", len(test)))
    elif "sample_quality" in metrics:
        classifier = "the classifier that it needs knows grey MNIST images, not"
        remarks.append(f"no sample_quality: {classifier} {data.name}")
    counts = (split, samples, figures, quality)
    with new_run_directory("evaluate", config) as writing:
        written = report.measured(trained, writing, data, examples, *counts, remarks)
    log.info(written)


if __name__ == "__main__":
    main()
