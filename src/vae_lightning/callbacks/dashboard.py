"""What TensorBoard shows beside scalars and pictures: how the run was made, what it came to, where each image's code lies."""

import math
import platform
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf
from pydantic import ConfigDict, PositiveInt, validate_call
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.nn.functional import pad
from torch.utils.tensorboard.summary import hparams

from vae_lightning import gallery
from vae_lightning.callbacks.pictures import Look
from vae_lightning.logs import EventWriter, RunLogger
from vae_lightning.pictures import png
from vae_lightning.provenance import versions
from vae_lightning.vae import VAE

MEASURED = (
    "test/elbo",
    "test/log_likelihood",
    "test/kl",
    "test/active_units",
    "test/loss_at_posterior_mean",
    "evaluate/test/log_marginal",
)
"""The figures of the HParams tab. TensorBoard ticks the first five; the sixth waits until ``evaluate`` has measured it, for a
run that lacks a ticked figure is left out of the parallel coordinates."""

TRAINER_SETTINGS = ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val", "precision")


class Dashboard(Callback):
    """Says how the run was made, puts training and validation of a quantity into one chart, and fills the HParams tab."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the card ``run`` and the layout of the custom scalars; a run that goes on has them."""
        if trainer.global_step:
            return
        charts = {
            name: ["Multiline", [f"^train/{name}_epoch$", f"^val/{name}$"]] for name in ("elbo", "log_likelihood", "kl", "loss")
        }
        for writer in _writers(trainer):
            writer.add_text("run", _card(trainer), 0)
            writer.add_custom_scalars({"training and validation, nats per image": charts})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the hyper-parameters beside the final figures."""
        values = {f"model.{key}": value for key, value in pl_module.hparams.items() if key != "seed"}
        values |= {f"data.{key}": value for key, value in trainer.datamodule.hparams.items() if key != "seed"}  # type: ignore[attr-defined]
        values |= {f"trainer.{key}": getattr(trainer, key) for key in TRAINER_SETTINGS}
        values["seed"] = pl_module.hparams["seed"]
        plain = {key: _plain(value) for key, value in values.items()}
        experiment, start, end = hparams(plain, dict.fromkeys(MEASURED, 0.0))  # type: ignore[no-untyped-call]
        # What was typed is what the runs of a sweep differ in; TensorBoard shows that first.
        typed = {override.lstrip("+").partition("=")[0] for override in _overrides(trainer)}
        described = experiment.value[0].metadata.plugin_data
        content = HParamsPluginData.FromString(described.content)
        for setting in content.experiment.hparam_infos:
            setting.differs = setting.name in typed
        described.content = content.SerializeToString()
        for writer in _writers(trainer):
            # SummaryWriter.add_hparams would make a run of its own for them.
            file = writer._get_file_writer()
            for summary in (experiment, start, end):
                file.add_summary(summary)
            writer.flush()


class Projector(Look):
    """Puts the posterior means of the first test images into TensorBoard's projector, with their labels and pictures."""

    @validate_call(config=ConfigDict(strict=True))
    def __init__(self, every_n_epochs: PositiveInt | None = None, count: PositiveInt = 1000) -> None:
        """Take how often to write, and how many images."""
        super().__init__(every_n_epochs)
        self.count = count

    def look(self, trainer: Trainer, vae: VAE, epoch: int) -> None:
        """Write them."""
        for writer in _writers(trainer):
            encoded = gallery.encode(vae, trainer.datamodule.split("test", self.count))  # type: ignore[attr-defined]
            folder = Path(writer.log_dir)
            writer.files.write(folder, _write_embedding, folder, f"{trainer.global_step:05d}", encoded)


def _write_embedding(folder: Path, step: str, encoded: gallery.Encoded) -> None:
    """Write what the projector shows of a step, beside that of other steps; torch's own way takes ten times as long."""
    written = folder / step / "posterior_means"
    written.mkdir(parents=True, exist_ok=True)
    points = pad(encoded.loc, (0, max(0, 3 - encoded.loc.shape[1])))  # the projector's view has three axes
    (written / "tensors.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in points.tolist()))
    (written / "metadata.tsv").write_text("".join(f"{label}\n" for label in encoded.labels.tolist()))
    count, channels, height, width = encoded.images.shape
    side = math.ceil(math.sqrt(count))  # TensorBoard asks for a square
    square = pad(encoded.images, (0, 0, 0, 0, 0, 0, 0, side * side - count)).view(side, side, channels, height, width)
    sprite = png(square.permute(2, 0, 3, 1, 4).reshape(channels, side * height, side * width))
    (written / "sprite.png").write_bytes(sprite)
    config = ProjectorConfig()
    for each in sorted(folder.glob("*/posterior_means")):
        within, number = each.relative_to(folder), each.parent.name
        embedding = config.embeddings.add(tensor_name=f"posterior_means:{number}")
        embedding.tensor_path, embedding.metadata_path = str(within / "tensors.tsv"), str(within / "metadata.tsv")
        embedding.sprite.image_path = str(within / "sprite.png")
        embedding.sprite.single_image_dim.extend([width, height])
    (folder / "projector_config.pbtxt").write_text(text_format.MessageToString(config))


def _writers(trainer: Trainer) -> list[EventWriter]:
    """Return TensorBoard's writers; none in a ``fast_dev_run``, whose loggers are dummies."""
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, RunLogger)]


def _overrides(trainer: Trainer) -> list[str]:
    """Return what was typed on the command line, where there was one."""
    file = Path(trainer.default_root_dir) / ".hydra" / "overrides.yaml"
    if not file.is_file():
        return []
    # As they stand: to iterate over what was loaded would follow a reference, as ${seed}, to where it leads nowhere.
    overrides: Any = OmegaConf.to_container(OmegaConf.load(file))
    return [str(override) for override in overrides]


def _card(trainer: Trainer) -> str:
    """Return how the run was made, as a Markdown table."""
    device = trainer.strategy.root_device
    rows = {
        "overrides": " ".join(_overrides(trainer)) or "none",
        "device": f"{device.type}, {platform.machine()}, {platform.system()}",
        **versions(),
    }
    return "\n".join(["| run | |", "|---|---|", *(f"| {name} | `{value}` |" for name, value in rows.items())])


def _plain(value: Any) -> float | str:
    """Return a value as TensorBoard takes it: numbers as they are, all else in words, so that no key is missing in any run."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
