"""Pictures during training, in TensorBoard and as PNG files, comparable over epochs and runs."""

import io
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, validate_call
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from vae_lightning.data.modality import png
from vae_lightning.data.music.sound import RATE
from vae_lightning.models.base import Autoencoder, CodePrior, LatentModel, Model
from vae_lightning.models.noise import SamplingNoise
from vae_lightning.runs import atomic_files
from vae_lightning.runs.loggers import Dispensable, RunMLFlowLogger
from vae_lightning.training.callbacks.looking import Look, data_of
from vae_lightning.training.speedups import freed
from vae_lightning.visualization import drawings
from vae_lightning.visualization.grids import reconstruction_grid, sample_grid

_HEARD = 2  # examples that TensorBoard plays


class Picture(Look):
    """Writes a picture to ``images/`` in the run directory and to TensorBoard."""

    name: str

    def __init__(self, every_n_epochs: int | None) -> None:
        """Take how often to draw; None: once at the end."""
        super().__init__(every_n_epochs)
        self.files = Dispensable("Pictures")

    @property
    def subject(self) -> str:
        """What is drawn."""
        return f"picture of the {self.name.replace('_', ' ')}"

    @abstractmethod
    def draw(self, trainer: Trainer, model: Model) -> Tensor | None:
        """Return the picture, ``[3, H, W]`` in [0, 1]; None: there is none of this model."""

    def look(self, trainer: Trainer, model: Model, epoch: int) -> None:
        """Draw and write."""
        drawn = self.draw(trainer, model)
        if drawn is None:
            return
        picture = drawn.float().cpu()
        content = png(picture)
        folder = Path(trainer.default_root_dir) / "images"
        # Callbacks that draw share one, so that only one of them warns if the disk is full.
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        files = next(each.files for each in callbacks if isinstance(each, Picture))
        files.write(folder, _write_in_folder, folder / f"{self.name}_{epoch:03d}.png", content)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # SummaryWriter.add_image would compress the picture anew, which takes longer.
                _, height, width = picture.shape
                sizes = {"height": height, "width": width, "colorspace": 3}
                image = Summary.Image(**sizes, encoded_image_string=content)
                summary = Summary(value=[Summary.Value(tag=f"images/{self.name}", image=image)])
                file_writer = logger.experiment._get_file_writer()
                file_writer.add_summary(summary, trainer.global_step)
            elif isinstance(logger, WandbLogger | RunMLFlowLogger):
                with Image.open(io.BytesIO(content)) as opened:
                    colours = opened.convert("RGB")
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"images/{self.name}", [colours], trainer.global_step)
                else:
                    logger.log_picture(f"images/{self.name}", colours, trainer.global_step)
        self.play(trainer, model)

    def play(self, trainer: Trainer, model: Model) -> None:
        """Let TensorBoard play what the picture shows, where it can be heard."""


class Reconstructions(Picture):
    """Originals above their reconstructions, always the same validation examples."""

    name = "reconstructions"

    @validate_call(config=ConfigDict(strict=True))
    def __init__(self, every_n_epochs: PositiveInt | None = 1, count: PositiveInt = 16) -> None:
        """Take how often to draw, and how many examples to show."""
        super().__init__(every_n_epochs)
        self.count = count

    def missing(self, model: Model) -> str:
        """Return why there is no such picture of a model; empty: there is one."""
        return _missing("reconstructions", model)

    def draw(self, trainer: Trainer, model: Model) -> Tensor:
        """Return the picture, ``[3, H, W]`` in [0, 1]."""
        assert isinstance(model, Autoencoder)
        data = data_of(trainer)
        examples = model.take(data.examples(self.count))
        return reconstruction_grid(data.modality, examples.x, model.reconstruct(examples))

    def play(self, trainer: Trainer, model: Model) -> None:
        """Let TensorBoard play the first of them, each original before its reconstruction."""
        assert isinstance(model, Autoencoder)
        examples = model.take(data_of(trainer).examples(_HEARD))
        pair = lambda: torch.stack([examples.x, model.reconstruct(examples)], 1).flatten(0, 1)  # noqa: E731
        _play(trainer, self.name, pair)


class PriorSamples(Picture):
    """New examples, always from the same noise."""

    name = "prior_samples"

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        every_n_epochs: PositiveInt | None = 1,
        count: Annotated[int, Field(gt=0, le=10_000)] = 64,
    ) -> None:
        """Take how often to draw, and how many examples to show."""
        super().__init__(every_n_epochs)
        self.count = count

    def draw(self, trainer: Trainer, model: Model) -> Tensor:
        """Return the picture, ``[3, H, W]`` in [0, 1]."""
        noise = SamplingNoise(self.count, drawings.PRIOR_SEED)
        return sample_grid(data_of(trainer).modality, model.sample(self.count, noise))

    def play(self, trainer: Trainer, model: Model) -> None:
        """Let TensorBoard play the first of them."""
        noise = SamplingNoise(_HEARD, drawings.PRIOR_SEED)
        _play(trainer, self.name, lambda: model.sample(_HEARD, noise))


class LatentPicture(Picture):
    """A picture of ``visualize``, of the first test examples; it selects no checkpoint."""

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        what: Literal[
            "codes", "manifold", "traversals", "interpolation", "attributes", "latents", "kl"
        ],
        every_n_epochs: PositiveInt | None = None,
        count: PositiveInt = 2000,
        label: NonNegativeInt = 0,
    ) -> None:
        """Take what to draw, how often, of how many examples, and which label is decoded."""
        super().__init__(every_n_epochs)
        self.name = what
        self.what: drawings.Drawing = what
        self.count = count
        self.label = label

    def missing(self, model: Model) -> str:
        """Return why there is no such picture of a model; empty: there is one."""
        return _missing(self.what, model)

    @freed()
    def draw(self, trainer: Trainer, model: Model) -> Tensor | None:
        """Return the picture, ``[3, H, W]`` in [0, 1]; None: there is none of this model."""
        data = data_of(trainer)
        batches = data.split("test", self.count)
        encoded = drawings.encode(model, batches) if isinstance(model, LatentModel) else None
        drawn = drawings.draw(self.what, model, data, batches, encoded, self.label)
        if drawn is None or isinstance(drawn.picture, Tensor):
            return drawn and drawn.picture  # type: ignore[return-value]
        from vae_lightning.visualization.plots import rasterize  # matplotlib is loaded now

        return rasterize(drawn.picture)


def _missing(name: drawings.Drawing, model: Model) -> str:
    """Return why training draws no such picture of a model; empty: it does."""
    if isinstance(model, CodePrior):
        return "the codes are those of a trained model, which stays as it is"
    return drawings.missing(name, model)


def _play(trainer: Trainer, name: str, examples: Callable[[], Tensor]) -> None:
    """Write the sound of examples ``[n, T, V]``, one after another, if it has one."""
    wav = data_of(trainer).modality.formats.get("wav")
    loggers = [each for each in trainer.loggers if isinstance(each, TensorBoardLogger)]
    if wav is None or not loggers:
        return
    content = wav(examples().cpu().flatten(0, 1))
    for logger in loggers:
        audio = Summary.Audio(
            sample_rate=RATE, num_channels=1, encoded_audio_string=content, content_type="audio/wav"
        )
        summary = Summary(value=[Summary.Value(tag=f"sounds/{name}", audio=audio)])
        logger.experiment._get_file_writer().add_summary(summary, trainer.global_step)


def _write_in_folder(file: Path, content: bytes) -> None:
    """Write a file in a folder, which is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_files.write(file, content, flush=False)
