"""What a run is resumed from, and the best it came to."""

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from pydantic import ConfigDict, PositiveInt, validate_call

from vae_lightning.configuration.quoting import override, printable
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import atomic_files, signals
from vae_lightning.runs.checkpoints import file_of_step, is_of_run, keep
from vae_lightning.runs.provenance import envelope
from vae_lightning.runs.resume import BEGUN
from vae_lightning.training.processes import Agreement

log = logging.getLogger(__name__)

# The counters of a validation that has begun. Lightning restarts from them: if a validation is due
# after the step, it then runs from its first batch. If none is due, they have no effect.
_BEFORE_VALIDATION = {
    "total": {"ready": 1, "started": 1, "processed": 0, "completed": 0},
    "current": {"ready": 0, "started": 0, "processed": 0, "completed": 0},
    "is_last_batch": False,
}


class LastCheckpoint(Checkpoint):
    """Writes the checkpoints that a run is resumed from.

    They hold the run's whole state right after an optimiser step, before the step is logged. They
    are written before the first step, every ``every_n_steps`` steps, before each validation and at
    the end of each epoch, and when a signal comes, after which the run ends. The newest
    two stay, and ``last.ckpt`` names the newest.
    """

    @validate_call(config=ConfigDict(strict=True))
    def __init__(self, every_n_steps: PositiveInt = 1000) -> None:
        """Take how many optimiser steps may be lost."""
        self.every_n_steps = every_n_steps
        self._step = 0
        self._agreement: Agreement | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the first checkpoint, or name the resumed one; then let signals wait for a step."""
        self._step = trainer.global_step
        if not _is_rehearsal(trainer):
            if self._step == 0:
                self._save(trainer, pl_module)
                if (
                    trainer.is_global_zero
                    and (mark := Path(trainer.default_root_dir) / BEGUN).parent.is_dir()
                ):
                    atomic_files.write(mark, b"")
            elif (
                trainer.is_global_zero
                and (file := file_of_step(Path(trainer.default_root_dir), self._step)).exists()
            ):
                atomic_files.point(file.with_name("last.ckpt"), file.name)
            signals.defer()
            if trainer.world_size > 1:
                self._agreement = Agreement()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write one, if it is time, and end if a signal came."""
        step = trainer.global_step
        if step == self._step or _is_rehearsal(trainer):  # gradients are being accumulated
            return
        self._step = step
        asked = self._agreement.after_step() if self._agreement else signals.noted() is not None
        if step % self.every_n_steps == 0 or asked or _something_ends(trainer, step, batch_idx):
            self._save(trainer, pl_module)
            if asked or not self._agreement:
                signals.check()

    def on_validation_batch_start(self, *_: Any) -> None:
        """End if a signal came: the state before this validation is saved."""
        if (
            not self._agreement
        ):  # of several processes none can end alone: they go on to the next step
            signals.check()

    def on_train_end(self, *_: Any) -> None:
        """Let signals end the process at once again."""
        if self._agreement:
            self._agreement.at_end()
        signals.defer_no_longer()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the counters for an exact resume, and note what the last bit depends on."""
        loops = checkpoint["loops"]["fit_loop"]
        for counters in ("total", "current"):
            batches = loops["epoch_loop.batch_progress"][counters]
            batches["completed"] = batches["processed"]
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = trainer.global_step
        loops["epoch_loop.val_loop.batch_progress"] = _BEFORE_VALIDATION
        checkpoint["envelope"] = _envelope(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say so if the run goes on where it can't come to the same last bit."""
        then, now = checkpoint["envelope"], _envelope(trainer)
        differences = [
            f"{key} {printable(then.get(key))[:100]} then, {now[key]} now"
            for key in now
            if then.get(key) != now[key]
        ]
        if differences and trainer.training:
            log.warning("Not bitwise the run that it was: %s", "; ".join(differences))
        for callback in trainer.early_stopping_callbacks:  # a patience may be typed anew
            if kept := checkpoint["callbacks"].get(callback.state_key):
                kept["patience"] = callback.patience

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_what_is_not_finite(trainer, pl_module)
        for logger in trainer.loggers:
            logger.save()  # what was logged until now is not logged again after a resume
        directory = Path(trainer.default_root_dir)
        file = file_of_step(directory, trainer.global_step)
        trainer.save_checkpoint(file)
        if trainer.is_global_zero:
            atomic_files.point(file.with_name("last.ckpt"), file.name)
            keep(directory)


class BestCheckpoint(Checkpoint):
    """Lets ``best.ckpt`` name the checkpoint with the best value of a validation figure."""

    @validate_call(config=ConfigDict(strict=True))
    def __init__(self, monitor: str, mode: Literal["max", "min"] = "max") -> None:
        """Take the figure, and which end of it is best."""
        self.monitor = monitor
        self.sign = 1 if mode == "max" else -1
        self.best = -math.inf

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, and of what."""
        return {"best": self.best, "monitor": self.monitor, "sign": self.sign}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; from nothing, if another figure chooses the best from now on."""
        kept = (state_dict.get("monitor", self.monitor), state_dict.get("sign", self.sign))
        if kept == (self.monitor, self.sign):
            self.best = float(state_dict["best"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at a figure of the validation; Lightning's sanity check publishes none."""
        if not self.monitor.startswith("train/") and not trainer.sanity_checking:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at a figure of the training."""
        if self.monitor.startswith("train/"):
            self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        """Name this step's checkpoint, if it is the best; write it, if it isn't there."""
        value = self.sign * float(trainer.callback_metrics[self.monitor])
        if _is_rehearsal(trainer) or value <= self.best:
            return
        self.best = value
        file = file_of_step(Path(trainer.default_root_dir), trainer.global_step)
        written = trainer.strategy.broadcast(file.exists())
        if not written:  # not after an optimiser step, but in the middle of accumulated gradients
            file = file.with_name(f"best_{trainer.global_step:08d}.ckpt")
            trainer.save_checkpoint(file)
        if trainer.is_global_zero:
            atomic_files.point(file.with_name("best.ckpt"), file.name)
            keep(file.parents[1])


def refuse_names_of_run(callbacks: Iterable[Callback], directory: Path) -> None:
    """Check that no ``ModelCheckpoint`` would write a run's own checkpoints, or elsewhere.

    Args:
        callbacks: of a run.
        directory: the run directory.

    Raises:
        ConfigurationError: one would; the message names the file.
    """
    folder = (directory / "checkpoints").resolve()
    links = {
        f"{name}.ckpt"
        for name, kind in (("last", LastCheckpoint), ("best", BestCheckpoint))
        if any(isinstance(each, kind) for each in callbacks)
    }
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        tried = {name: torch.tensor(10) for name in ("epoch", "step")}
        file = Path(callback.format_checkpoint_name(tried))
        place = (directory / (callback.dirpath or "") / file).resolve()
        if directory != Path() and not place.is_relative_to(directory.resolve()):
            raise ConfigurationError(
                f"{override('filename', callback.filename or '')}: a ModelCheckpoint would write "
                "outside of the run directory; type a name without .. and / at its start"
            )
        if Path(callback.dirpath or "") != folder:
            continue
        names = [file.name]
        if callback.save_last:
            names.append(f"{callback.CHECKPOINT_NAME_LAST}{callback.FILE_EXTENSION}")
        for name in names:
            if is_of_run(name) or name in links:
                raise ConfigurationError(
                    f"{override('dirpath', folder)}: a ModelCheckpoint would write {name} there, "
                    "which is a name of the run's own checkpoints; type another dirpath or filename"
                )


def refuse_what_is_not_finite(trainer: Trainer, pl_module: LightningModule) -> None:
    """Check what a checkpoint would hold.

    Raises:
        FloatingPointError: a weight, or the optimiser's memory of it, isn't finite.
    """
    pl_module.check_finite()  # type: ignore[operator]
    for name, weight in pl_module.named_parameters():
        what = f"weight {name}"
        kept = [
            weight,
            *(
                each
                for each in trainer.optimizers[0].state.get(weight, {}).values()
                if isinstance(each, torch.Tensor)
            ),
        ]
        for each in kept:
            # A finite sum means that all values are finite, and takes a twentieth of the time. But
            # a sum of finite values may overflow.
            if not (math.isfinite(each.sum().item()) or bool(torch.isfinite(each).all())):
                raise FloatingPointError(
                    f"{what} is not finite after step {trainer.global_step}, and isn't saved; "
                    "try a lower optimizer.learning_rate"
                )
            what = f"the optimiser's state of {name}"


def _envelope(trainer: Trainer) -> dict[str, str | int]:
    """Return what the last bit of a run depends on beside its code."""
    return envelope(trainer.strategy.root_device) | {"processes": trainer.world_size}


def _is_rehearsal(trainer: Trainer) -> bool:
    """Return whether this is a ``fast_dev_run``, of which nothing is kept."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _something_ends(trainer: Trainer, step: int, batch_idx: int) -> bool:
    """Return whether this step is the last of an epoch, of the run, or before a validation."""
    if batch_idx + 1 == trainer.num_training_batches or 0 <= trainer.max_steps - step <= 1:
        # A run that trainer.max_steps ends can't be resumed from its last step, so the step before
        # it counts too.
        return True
    done = (
        trainer.fit_loop.total_batch_idx if trainer.check_val_every_n_epoch is None else batch_idx
    )
    every = trainer.val_check_batch
    return bool(trainer.enable_validation and every and (done + 1) % every == 0)
