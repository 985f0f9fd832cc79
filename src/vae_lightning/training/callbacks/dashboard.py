"""What TensorBoard shows besides scalars and pictures: a run's settings, its results, its codes."""

import math
import platform
from pathlib import Path
from typing import Any

import torch
from google.protobuf import text_format
from lightning import Callback, LightningModule, Trainer
from omegaconf import OmegaConf
from pydantic import ConfigDict, PositiveInt, validate_call
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.tensorboard.summary import hparams

from vae_lightning.data.modality import png
from vae_lightning.models.base import DiscreteModel, LatentModel, Model
from vae_lightning.runs import atomic_files
from vae_lightning.runs.loggers import EventWriter, RunLogger
from vae_lightning.runs.provenance import versions
from vae_lightning.training.callbacks.looking import Look, data_of, model_of
from vae_lightning.visualization.drawings import Encoded, encode, images_of_codes

TRAINER_SETTINGS = (
    "max_epochs",
    "max_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "precision",
)


def measured(model: Model) -> list[str]:
    """Return the figures of the HParams tab, for a model.

    TensorBoard ticks the first five. A run that lacks a ticked figure is left out of the parallel
    coordinates, so the one that ``evaluate`` measures later comes last.
    """
    names = dict.fromkeys((model.comparison, *model.terms))
    figures = [f"test/{name}" for name in names]
    if isinstance(model, LatentModel):
        figures.append("test/active_units")
    if isinstance(model, DiscreteModel):
        figures += ["test/codes_in_use", "test/perplexity"]
    figures += [f"test/{name}" for name in model.figures if name not in (*names, "loss")]
    if isinstance(model, LatentModel):
        figures.append("evaluate/test/log_marginal")
    return figures


class Dashboard(Callback):
    """Shows the run's settings, charts of training with validation, and the HParams tab."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the card ``run`` and the layout of the custom scalars; a resumed run has them."""
        if trainer.global_step:
            return
        model, noun = model_of(pl_module), data_of(trainer).modality.noun
        charts = {
            name: ["Multiline", [f"^train/{name}_epoch$", f"^val/{name}$"]]
            for name in (*model.terms, "loss")
        }
        for writer in _writers(trainer):
            writer.add_text("run", _card(trainer), 0)
            writer.add_custom_scalars({f"training and validation, nats per {noun}": charts})

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the hyper-parameters beside the final figures."""
        chosen: dict[str, Any] = dict(pl_module.hparams)
        groups = {"model": chosen["model"]["settings"], "optimizer": chosen["optimizer"]}
        groups["data"] = data_of(trainer).settings
        values = {
            f"{group}.{key}": value
            for group, settings in groups.items()
            for key, value in settings.items()
            if key != "seed"
        }
        values |= {f"trainer.{key}": getattr(trainer, key) for key in TRAINER_SETTINGS}
        values["seed"] = chosen["seed"]
        plain = {key: _plain(value) for key, value in values.items()}
        experiment, start, end = hparams(plain, dict.fromkeys(measured(model_of(pl_module)), 0.0))  # type: ignore[no-untyped-call]
        # What was typed is what the runs of a sweep differ in; TensorBoard shows that first.
        typed = {override.lstrip("+").partition("=")[0] for override in _overrides(trainer)}
        typed |= {"optimizer.name"} if "optimizer" in typed else set()
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
    """Puts the latents of the first test examples into TensorBoard's projector.

    Their labels are shown with them, and their pictures where they are images. Of a model with a
    codebook it is the codes, each with what a grid of it alone decodes to.
    """

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self, every_n_epochs: PositiveInt | None = None, count: PositiveInt = 1000
    ) -> None:
        """Take how often to write, and how many examples."""
        super().__init__(every_n_epochs)
        self.count = count

    @property
    def subject(self) -> str:
        """What is looked at."""
        return "projector"

    def missing(self, model: Model) -> str:
        """Return why a model has no such points; empty: it has them."""
        has_codebook = isinstance(model, DiscreteModel) and model.code_vectors is not None
        has = has_codebook or isinstance(model, LatentModel)
        return "" if has else "the model has neither continuous latents nor a codebook"

    def look(self, trainer: Trainer, model: Model, epoch: int) -> None:
        """Write them."""
        for writer in _writers(trainer):
            if isinstance(model, DiscreteModel):
                name, encoded = "codebook", _codebook(model)
            else:
                assert isinstance(model, LatentModel)
                name = "posterior_means"
                encoded = encode(model, data_of(trainer).split("test", self.count))
            folder, step = Path(writer.log_dir), f"{trainer.global_step:05d}"
            writer.files.write(folder, _write_embedding, folder, step, name, encoded)


def _codebook(model: DiscreteModel) -> Encoded:
    """Return the codes as points, each with its number and the image of a grid of it alone."""
    assert model.code_vectors is not None
    points = model.code_vectors.float().cpu()
    return Encoded(images_of_codes(model), torch.arange(model.codes), points, None)


def _write_embedding(folder: Path, step: str, name: str, encoded: Encoded) -> None:
    """Write what the projector shows of a step, beside that of other steps.

    torch's own way takes ten times as long.
    """
    written = folder / step / name
    written.mkdir(parents=True, exist_ok=True)
    points = pad(encoded.point, (0, max(0, 3 - encoded.point.shape[1])))  # the view has three axes
    rows = ["\t".join(map(str, row)) + "\n" for row in points.tolist()]
    files = {"tensors.tsv": "".join(rows).encode()}
    if encoded.y is not None:
        files["metadata.tsv"] = "".join(f"{y}\n" for y in encoded.y.tolist()).encode()
    if encoded.x.dim() == 4:
        files["sprite.png"] = _sprite(encoded.x)
    for file, content in files.items():
        atomic_files.write(written / file, content, flush=False)
    config = ProjectorConfig()
    for each in sorted(folder.glob(f"*/{name}")):
        within, number = each.relative_to(folder), each.parent.name
        embedding = config.embeddings.add(tensor_name=f"{name}:{number}")
        embedding.tensor_path = str(within / "tensors.tsv")
        if (each / "metadata.tsv").exists():
            embedding.metadata_path = str(within / "metadata.tsv")
        if (each / "sprite.png").exists():
            embedding.sprite.image_path = str(within / "sprite.png")
            embedding.sprite.single_image_dim.extend(encoded.x.shape[:1:-1])
    listed = text_format.MessageToString(config).encode()
    atomic_files.write(folder / "projector_config.pbtxt", listed, flush=False)


def _sprite(images: Tensor) -> bytes:
    """Return images ``[N, C, H, W]`` as one PNG picture: a square, which TensorBoard needs."""
    count, channels, height, width = images.shape
    side = math.ceil(math.sqrt(count))
    square = pad(images, (0, 0, 0, 0, 0, 0, 0, side * side - count))
    rows = square.view(side, side, channels, height, width).permute(2, 0, 3, 1, 4)
    return png(rows.reshape(channels, side * height, side * width))


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
    # Keep the overrides unresolved. Iterating over the loaded list would resolve references such as
    # ${seed}, which lead nowhere here.
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
    return "\n".join(
        ["| run | |", "|---|---|", *(f"| {name} | `{value}` |" for name, value in rows.items())]
    )


def _plain(value: Any) -> float | str:
    """Return a value as TensorBoard takes it: a number as it is, anything else as text.

    So no key is missing in any run.
    """
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
