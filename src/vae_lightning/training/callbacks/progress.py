"""How far a training run has come, and how fast."""

import logging
import os
import time
from typing import Any

from lightning import Callback, LightningModule, Trainer
from tqdm import tqdm

from vae_lightning.models.base import Batch
from vae_lightning.training.callbacks.looking import data_of, model_of

log = logging.getLogger(__name__)


class Throughput(Callback):
    """Counts the examples trained on and the time that it took, validation left out."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.examples = 0
        self.seconds = 0.0
        self._since = 0.0

    @property
    def examples_per_second(self) -> float:
        """Training examples per second, from the start of the run."""
        return self.examples / self.seconds if self.seconds else 0.0

    def on_train_start(self, *_: Any) -> None:
        """Start the clock, in the middle of an epoch where a run goes on."""
        self._since = time.perf_counter()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Count a batch."""
        self.examples += batch.total or len(batch.x)
        now = time.perf_counter()
        self.seconds += now - self._since
        self._since = now

    def on_validation_end(self, *_: Any) -> None:
        """Leave out the time since the last batch."""
        self._since = time.perf_counter()


class Progress(Callback):
    """A bar for each epoch on a terminal, and a line for each epoch everywhere."""

    def __init__(self) -> None:
        """Start with nothing drawn."""
        self._bar: tqdm[Any] | None = None
        self._line = ""
        self._started = 0.0
        self._validated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar of an epoch that a run goes on in."""
        if trainer.fit_loop.batch_idx >= 0:
            self._open(trainer, trainer.fit_loop.batch_idx + 1)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the last epoch's figures and draw a new bar."""
        self._tell(trainer)
        self._open(trainer, 0)

    def _open(self, trainer: Trainer, batches: int) -> None:
        """Draw the bar of an epoch with ``batches`` batches done, if the output is a terminal."""
        last = f"/{trainer.max_epochs}" if trainer.max_epochs != -1 else ""
        self._line = f"epoch {trainer.current_epoch + 1}{last}"
        self._started = time.perf_counter()
        self._validated = False
        data = data_of(trainer)
        together = data.batch_size * trainer.world_size
        count = min(int(trainer.num_training_batches) * together, len(data.train_indices))
        look: dict[str, Any] = {
            "unit": f" {data.modality.noun}s",
            "unit_scale": True,
            "leave": False,
            "dynamic_ncols": True,
        }
        unwanted = not trainer.is_global_zero or "TQDM_DISABLE" in os.environ
        self._bar = tqdm(total=count, desc=self._line, disable=unwanted or None, **look)
        self._bar.update(batches * together)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Move the bar on."""
        if self._bar is None or self._bar.disable:
            return
        latest: dict[str, float] = pl_module.figures.latest  # type: ignore[union-attr, assignment]
        if (
            self._bar.update(batch.total or len(batch.x)) and latest
        ):  # drawn ten times a second at most
            model = model_of(pl_module)
            name = model.terms[0]
            figure = f"{model.figures[name].label} {latest[f'train/{name}']:.2f}"
            self._bar.set_postfix_str(f"loss {latest['train/loss']:.2f}, {figure}", refresh=False)

    def on_validation_end(self, *_: Any) -> None:
        """Note that this epoch has a figure of its own."""
        self._validated = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the last epoch's figures."""
        self._tell(trainer)

    def on_exception(self, *_: Any) -> None:
        """Leave a clean line behind."""
        if self._bar is not None:
            self._bar.close()

    def _tell(self, trainer: Trainer) -> None:
        """Put a line in place of the bar: only now has the module published the epoch's means."""
        if self._bar is None:
            return
        self._bar.close()
        published = trainer.callback_metrics
        figures = [f"loss {published['train/loss_epoch']:.2f}"]
        if self._validated:
            model = model_of(trainer.lightning_module)
            split = "test" if data_of(trainer).validate_on_test else "validation"
            value = published[f"val/{model.comparison}"]
            figures.append(f"{split} {model.figures[model.comparison].label} {value:.2f}")
        log.info("   ".join([self._line, *figures, f"{time.perf_counter() - self._started:.1f} s"]))
