"""Pictures during training, in TensorBoard and as PNG files, drawn so that epochs and runs compare."""

import gc
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from pydantic import ConfigDict, Field, PositiveInt, validate_call
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from vae_lightning import gallery, interruption
from vae_lightning.data import CLASSES
from vae_lightning.logs import Dispensable
from vae_lightning.pictures import png, reconstruction_grid, sample_grid
from vae_lightning.vae import VAE

log = logging.getLogger(__name__)


class Look(Callback, ABC):
    """Looks at the model at the end of the training, and every ``every_n_epochs`` epochs if asked to; changes nothing.

    The model is in evaluation mode meanwhile; its mode and the random state are left as they were.
    """

    def __init__(self, every_n_epochs: int | None) -> None:
        """Take how often to look; None: once at the end."""
        self.every_n_epochs = every_n_epochs
        self._looked_at_step: int | None = None

    @abstractmethod
    def look(self, trainer: Trainer, vae: VAE, epoch: int) -> None:
        """Look at the model after so many epochs."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, if it is time."""
        epoch = trainer.current_epoch + 1
        if self.every_n_epochs and not epoch % self.every_n_epochs:
            self._look(trainer, pl_module, epoch)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the training ends with, unless its last epoch was looked at."""
        if self._looked_at_step != trainer.global_step:
            self._look(trainer, pl_module, trainer.current_epoch)

    def _look(self, trainer: Trainer, pl_module: LightningModule, epoch: int) -> None:
        if trainer.world_size == 1:
            interruption.check()  # after the last step of an epoch, which is saved
        if not trainer.is_global_zero:
            return
        self._looked_at_step = trainer.global_step
        training = pl_module.training
        pl_module.eval()
        with torch.no_grad():
            self.look(trainer, pl_module.vae, epoch)  # type: ignore[arg-type]
        pl_module.train(training)


class Picture(Look):
    """Writes a picture to ``images/`` in the run directory and to TensorBoard."""

    name: str

    def __init__(self, every_n_epochs: int | None) -> None:
        """Take how often to draw; None: once at the end."""
        super().__init__(every_n_epochs)
        self.files = Dispensable("Pictures")

    @abstractmethod
    def draw(self, trainer: Trainer, vae: VAE) -> Tensor:
        """Return the picture, ``[3, H, W]`` in [0, 1]."""

    def look(self, trainer: Trainer, vae: VAE, epoch: int) -> None:
        """Draw and write."""
        picture = self.draw(trainer, vae).float().cpu()
        content = png(picture)
        folder = Path(trainer.default_root_dir) / "images"
        # All callbacks that draw share one, so that only one of them says so if the disk is full.
        files = next(each.files for each in trainer.callbacks if isinstance(each, Picture))  # type: ignore[attr-defined]
        files.write(folder, _write_whole, folder / f"{self.name}_{epoch:03d}.png", content)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                # SummaryWriter.add_image would compress the picture anew, which takes longer than to draw it.
                _, height, width = picture.shape
                image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content)
                summary = Summary(value=[Summary.Value(tag=f"images/{self.name}", image=image)])
                file_writer = logger.experiment._get_file_writer()
                file_writer.add_summary(summary, trainer.global_step)


class Reconstructions(Picture):
    """Originals above their reconstructions, always the same validation images."""

    name = "reconstructions"

    @validate_call(config=ConfigDict(strict=True))
    def __init__(self, every_n_epochs: PositiveInt | None = 1, count: PositiveInt = 16) -> None:
        """Take how often to draw, and how many images to show."""
        super().__init__(every_n_epochs)
        self.count = count

    def draw(self, trainer: Trainer, vae: VAE) -> Tensor:
        """Return the picture, ``[3, H, W]`` in [0, 1]."""
        examples = trainer.datamodule.examples(self.count)  # type: ignore[attr-defined]
        images, labels = examples.images.to(vae.prior_loc), examples.labels.to(vae.prior_loc.device)
        return reconstruction_grid(images, vae.reconstruct(images, labels))


class PriorSamples(Picture):
    """Images decoded from the prior, always from the same latents."""

    name = "prior_samples"

    @validate_call(config=ConfigDict(strict=True))
    def __init__(self, every_n_epochs: PositiveInt | None = 1, count: Annotated[int, Field(gt=0, le=10_000)] = 64) -> None:
        """Take how often to draw, and how many images to show."""
        super().__init__(every_n_epochs)
        self.count = count

    def draw(self, trainer: Trainer, vae: VAE) -> Tensor:
        """Return the picture, ``[3, H, W]`` in [0, 1]."""
        return sample_grid(vae.sample(self.count, generator=torch.Generator().manual_seed(gallery.PRIOR_SEED)))


@contextmanager
def _freed() -> Iterator[None]:
    """Free what a block has made and dropped.

    A figure of matplotlib holds itself in cycles, some 5,000 objects. By themselves twenty wait for Python's next full
    collection, which takes longer than to draw one; as long as none is old, a look at the young is enough.
    """
    enabled = gc.isenabled()
    gc.disable()  # nothing grows old meanwhile
    try:
        yield
    finally:
        gc.collect(0)
        if enabled:
            gc.enable()


class LatentPicture(Picture):
    """What ``visualize`` draws of the latents, during training: of the first test images, by which nothing is chosen."""

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        what: Literal["manifold", "traversals", "interpolation", "latents", "kl"],
        every_n_epochs: PositiveInt | None = None,
        count: PositiveInt = 2000,
        label: Annotated[int, Field(ge=0, lt=CLASSES)] = 0,
    ) -> None:
        """Take what to draw, how often, of how many images, and which digit a conditional model decodes."""
        super().__init__(every_n_epochs)
        self.name = what
        self.what: gallery.Drawing = what
        self.count = count
        self.label = label

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if a picture was asked for that the model hasn't."""
        if self.every_n_epochs and self.what not in gallery.drawings_of(pl_module.vae):  # type: ignore[arg-type]
            log.warning("No picture of the %s: it is drawn of two latents only", self.what)

    def look(self, trainer: Trainer, vae: VAE, epoch: int) -> None:
        """Draw and write, if the model has such a picture."""
        if self.what in gallery.drawings_of(vae):
            super().look(trainer, vae, epoch)

    @_freed()
    def draw(self, trainer: Trainer, vae: VAE) -> Tensor:
        """Return the picture, ``[3, H, W]`` in [0, 1]."""
        encoded = gallery.encode(vae, trainer.datamodule.split("test", self.count))  # type: ignore[attr-defined]
        drawn = gallery.draw(self.what, vae, encoded, self.label).picture
        if isinstance(drawn, Tensor):
            return drawn
        from vae_lightning.plots import rasterize  # matplotlib is loaded now

        return rasterize(drawn)


def _write_whole(file: Path, content: bytes) -> None:
    """Write a file in a folder, which is made; what is cut short is removed again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        file.write_bytes(content)
    except OSError:
        file.unlink(missing_ok=True)
        raise
