"""A trained model with the data that it was trained on, for the commands that use one."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vae_lightning.configuration.building import build_part, require
from vae_lightning.data.batches import Batches
from vae_lightning.data.datamodule import DataModule, Split
from vae_lightning.data.modality import Modality
from vae_lightning.errors import ConfigurationError, DatasetUnavailable
from vae_lightning.models.base import Model, target_of
from vae_lightning.runs import checkpoints, signals
from vae_lightning.runs.processor import flush_denormals

log = logging.getLogger(__name__)


@dataclass
class Trained:
    """A checkpoint.

    Attributes:
        file: where it is.
        content: what it holds.
        data: the data as the model was trained on it; None until ``read_data``.
    """

    file: Path
    content: dict[str, Any]
    data: DataModule | None = None

    @cached_property
    def model(self) -> Model:
        """The model, in evaluation mode and on the CPU, for the values that the data has now."""
        spec = self.data.spec if self.data else None
        return checkpoints.build_model(self.file, self.content, spec)

    @property
    def modality(self) -> Modality:
        """How the examples are looked at, written and read."""
        return self.data_class.modality

    @property
    def data_class(self) -> type[DataModule]:
        """The class of the data that the model was trained on."""
        return checkpoints.data_of(self.file, self.content)[0]

    @property
    def trained_with(self) -> dict[str, Any]:
        """The settings of the data that the model was trained on."""
        return checkpoints.data_of(self.file, self.content)[1]

    def read_data(self, config: DictConfig) -> DataModule:
        """Read the data as in training; keys of ``config`` that aren't null override its settings.

        Raises:
            ConfigurationError: a value is refused.
            DatasetUnavailable: the data can't be had.
        """
        signals.heed()
        kind, settings = checkpoints.data_of(self.file, self.content)
        typed = {
            key: value
            for key, value in config.items()
            if value is not None and key not in ("limit_test", "_target_")
        }
        kept = {key: value for key, value in settings.items() if key not in typed}
        target = {"_target_": target_of(kind)}
        self.data = build_part("data", DataModule, OmegaConf.create(target | typed), **kept)  # type: ignore[type-abstract]
        try:
            _ = self.model  # which refuses data that it doesn't fit, before any is read
        except ConfigurationError as error:
            if not typed.keys() & settings.keys():
                raise
            chosen = ", ".join(f"data.{key}={typed[key]}" for key in typed if key in settings)
            raise ConfigurationError(f"{chosen}: {error}") from error
        try:
            self.data.prepare_data()
        except DatasetUnavailable as error:
            if "dir" in typed:
                raise
            raise DatasetUnavailable(
                f"{error} (a checkpoint doesn't store data.dir: type it as in training)"
            ) from error
        self.data.setup()
        stored = self.content[DataModule.CHECKPOINT_HYPER_PARAMS_KEY]["data"].get("content")
        if stored != self.data.hparams["data"].get("content"):
            log.warning(
                "%s are not those that the model was trained on: some that it was trained on may "
                "be tested",
                f"{self.data.name}'s images",
            )
        return self.data


def open_checkpoint(config: DictConfig) -> Trained:
    """Read the checkpoint that a command's configuration names.

    Raises:
        FileNotFoundError: there is none.
        ConfigurationError: the file is damaged, or not a checkpoint of this project.
    """
    flush_denormals()
    file = checkpoints.find_checkpoint(require("checkpoint", config.checkpoint, str))
    return Trained(file, checkpoints.read(file))


def choose_split(data: DataModule, split: Split, limit: int | None = None) -> Batches:
    """Return a split of data that has been read, or its first examples.

    Raises:
        ConfigurationError: there are none.
    """
    try:
        return data.split(split, limit)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error


def check_label(label: int | None, num_classes: int, needed_for: str = "") -> None:
    """Check that a model of so many classes knows a label.

    Args:
        label: what was typed.
        num_classes: of the model; 0: it is unconditional.
        needed_for: what a conditional model can't do without a label; empty: it can do without.

    Raises:
        ConfigurationError: it doesn't, or none was typed where one is needed.
    """
    if label is not None and label >= num_classes:
        trained = "no labels: train one with model=conditional"
        known = f"labels from 0 to {num_classes - 1}" if num_classes else trained
        raise ConfigurationError(f"label={label}: this model knows {known}")
    if needed_for and num_classes and label is None:
        raise ConfigurationError(
            "label=null: this model is conditional; "
            f"type {needed_for}, label=0 to label={num_classes - 1}"
        )
