"""The LightningModule: it trains any model, and logs what the model measures."""

import math
from typing import Any

import torch
from torch import Tensor

from vae_lightning import __version__
from vae_lightning.data.datamodule import DataModule
from vae_lightning.models.base import Batch, Model, target_of
from vae_lightning.models.noise import EvaluationNoise, TrainingNoise
from vae_lightning.training.loaders import AnyLoader
from vae_lightning.training.meters import Means, TrainingFigures, counts_of, per_count
from vae_lightning.training.optimizers import Optimization, change_rate
from vae_lightning.training.speedups import QuickModule, with_signature


class VAEModule(QuickModule, AnyLoader):
    """A model with its loss, its optimiser and its figures.

    The loss is the batch mean of the model's loss, over the batches of all processes together.
    Logged figures are means over examples: ``train/…`` over the steps since the last logged one,
    ``train/…_epoch`` over the epoch, ``val/…`` and ``test/…`` over the whole split.

    Attributes:
        published: the figures that callbacks can monitor.
        figures: of the training.
        tested: how many examples were tested.
        is_begun: whether the weights are those of an earlier run, which nothing sets anew.
    """

    def __init__(
        self, model: Model, optimization: Optimization | None = None, seed: int = 1
    ) -> None:
        """Take the parts.

        Args:
            model: what is trained.
            optimization: the optimiser and the schedule of its learning rate; by default Adam.
            seed: seed of the noise in training. Initial weights are the model's own affair.
        """
        super().__init__()
        self.model = model
        self.optimization = optimization or Optimization()
        target, settings = target_of(type(model)), dict(model.settings)
        stored = {"target": target, "settings": settings, "data": model.data.stored()}
        chosen = {"model": stored, "optimizer": self.optimization.settings, "seed": seed}
        self.save_hyperparameters(chosen | {"version": __version__})
        self.training_noise = TrainingNoise(seed)
        self.tested, self.is_begun = 0, False
        self.figures = TrainingFigures("loss", *model.terms)
        self.evaluation = Means(*model.figures, *counts_of(model.figures))
        of_epoch = [f"train/{name}_epoch" for name in self.figures.epoch.names]
        self.published = [*(f"val/{name}" for name in model.figures), *of_epoch]
        self._updates = type(model).after_step is not Model.after_step

    # -- training -------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Let the model start from the training data, in a run that isn't resumed."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        begun = self.is_begun or self.trainer.ckpt_path or self.global_step
        if isinstance(data, DataModule) and not begun:
            self.model.initialize(data.training_examples())

    @with_signature
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the batch mean of the loss."""
        batch = self.as_batch(batch)
        seen = self.batches_before(batch_idx)
        x, total = batch.x, batch.total
        noise = self.training_noise.of(seen, len(x), x.device, total, batch.first)
        loss, terms = self.model.loss(batch, noise, self.global_step)
        self.figures.window.update(loss, *(terms[name] for name in self.model.terms))
        if total:  # the mean of the processes' gradients is then that of all examples
            return loss.sum() * (self.trainer.world_size / total)
        return loss.mean()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take a step, and let the model update what no gradient reaches."""
        super().optimizer_step(*args, **kwargs)
        if self._updates:
            self.model.after_step(self.training_noise.after(self.global_step))

    def configure_optimizers(self) -> Any:
        """Return the optimiser, and the schedule of its learning rate where there is one."""
        learnt = [weight for weight in self.model.parameters() if weight.requires_grad]
        return self.optimization.configure(learnt, self.trainer)

    def on_train_start(self) -> None:
        """Log what was due at the step that a run goes on from."""
        self.on_train_batch_end()

    def on_train_batch_end(self, *_: object) -> None:
        """Log the means since the last time, every ``trainer.log_every_n_steps`` steps."""
        step, every = self.global_step, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.figures.is_due(step, every):
            self.check_finite()
            means = self.figures.window.means("train/")
            self._log(means | self._scheduled(step))  # handed to callbacks, it would cost 1.5 ms
            self.figures.close_window(step, means)

    def on_train_epoch_end(self) -> None:
        """Log the means over the epoch."""
        self.check_finite()
        self.figures.close_window(self.global_step)
        self._publish(self.figures.epoch.means("train/", "_epoch"))
        self.figures.epoch.clear()

    def check_finite(self) -> None:
        """Check the training's figures that wait to be logged.

        Raises:
            FloatingPointError: one isn't finite, or wasn't at an earlier step.
        """
        self._gather(self.figures.window)
        if found := self.figures.not_finite(self.trainer.accumulate_grad_batches):
            raise FloatingPointError(f"{found}; {ADVICE}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums of what is yet to be logged."""
        self._gather(self.figures.window)
        checkpoint["figures"] = self.figures.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        self.figures.load_state_dict(checkpoint["figures"], self.device)
        if self.trainer.training and (rates := change_rate(checkpoint, self.optimization)):
            self.hparams["learning_rates"] = rates

    def _scheduled(self, step: int) -> dict[str, float]:
        """Return what the next step takes by a schedule: the learning rate, the KL's weight."""
        figures = {f"train/{name}": value for name, value in self.model.schedule(step).items()}
        if self.optimization.is_scheduled:
            rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
            figures["train/learning_rate"] = rate
        return figures

    # -- validation and test --------------------------------------------------------------------

    def validation_step(self, batch: Batch) -> None:
        """Add a batch to the figures."""
        figures = self.measure(self.as_batch(batch))
        self.evaluation.update(*(figures[name] for name in self.evaluation.names))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation set."""
        self._end_evaluation("val/")

    def on_test_epoch_end(self) -> None:
        """Log the means over the test set."""
        self.tested = self._end_evaluation("test/")

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """Return the model's figures of each example, each ``[B]``, without autocast."""
        with torch.autocast(self.device.type, enabled=False):
            return self.model.measure(batch, EvaluationNoise(batch.indices))

    def _end_evaluation(self, prefix: str) -> int:
        self._gather(self.evaluation)
        self._publish(per_count(self.evaluation.means(prefix), self.model.figures))
        examples = self.evaluation.examples
        self.evaluation.clear()
        return examples

    # -- both -----------------------------------------------------------------------------------

    def _gather(self, means: Means) -> None:
        """Add up the sums of the processes that train together, where there are several."""
        if self.trainer.world_size > 1:
            means.gather(self.trainer.strategy)

    def _publish(self, figures: dict[str, float]) -> None:
        """Hand figures to callbacks by name, and to the loggers."""
        self._log(figures, to_loggers=not self.returns_figures)
        if figures and not self.trainer.sanity_checking:
            self.hand_over(figures)

    def _log(self, figures: dict[str, float], to_loggers: bool = True) -> None:
        """Hand figures to the loggers at the number of optimiser steps done.

        Lightning's own step axis starts at 0 and differs between the stages by one.

        Raises:
            FloatingPointError: a figure isn't finite.
        """
        for name, figure in figures.items():
            if not math.isfinite(figure):
                steps = self.global_step
                raise FloatingPointError(f"{name} is {figure} after {steps} steps; {ADVICE}")
        if figures and to_loggers and not self.trainer.sanity_checking:
            for logger in self.loggers:
                logger.log_metrics(figures, step=self.global_step)


ADVICE = "try a lower optimizer.learning_rate"
"""What to try where a figure isn't finite."""
