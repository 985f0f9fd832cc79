"""A moving average of the weights, which is what is validated, tested and kept."""

from typing import Annotated, Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, validate_call


class AveragedWeights(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, and of the codebook if there is one.

    Checkpoints hold the average, so that all commands use it, and beside it what a run goes on
    with.
    """

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        decay: Annotated[float, Field(ge=0, lt=1)] = 0.999,
        every_n_steps: PositiveInt = 1,
        from_step: NonNegativeInt = 0,
    ) -> None:
        """Take how much of the average is kept, how often weights join it, and from which step."""
        super().__init__(
            decay=decay, update_every_n_steps=every_n_steps, update_starting_at_step=from_step
        )

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on from there. In a test the average stays; Lightning's own would replace it."""
        if trainer.training:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
