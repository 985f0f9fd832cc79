"""Everything that a configuration or a checkpoint may name as a class."""

import importlib.util
import os
import re
import sys
from collections.abc import Sequence

from vae_lightning.errors import ConfigurationError

TARGETS = frozenset(
    {
        "lightning.Trainer",
        "lightning.pytorch.callbacks.DeviceStatsMonitor",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.ModelSummary",
        "lightning.pytorch.callbacks.Timer",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "vae_lightning.training.callbacks.averaging.AveragedWeights",
        "vae_lightning.training.callbacks.checkpoints.BestCheckpoint",
        "vae_lightning.training.callbacks.dashboard.Dashboard",
        "vae_lightning.training.callbacks.checkpoints.LastCheckpoint",
        "vae_lightning.training.callbacks.pictures.LatentPicture",
        "vae_lightning.training.callbacks.latents.LatentUse",
        "vae_lightning.training.callbacks.pictures.PriorSamples",
        "vae_lightning.training.callbacks.progress.Progress",
        "vae_lightning.training.callbacks.dashboard.Projector",
        "vae_lightning.training.callbacks.pictures.Reconstructions",
        "vae_lightning.data.arrays.ArraysDataModule",
        "vae_lightning.data.cifar10.CIFAR10",
        "vae_lightning.data.folder.FolderDataModule",
        "vae_lightning.data.given.GivenData",
        "vae_lightning.data.mnist.MNISTDataModule",
        "vae_lightning.data.music.datamodule.Chorales",
        "vae_lightning.data.music.datamodule.JSBChorales",
        "vae_lightning.data.music.datamodule.Melodies",
        "vae_lightning.models.musicvae.model.MusicVAE",
        "vae_lightning.models.vae.model.VAE",
        "vae_lightning.models.prior.model.Prior",
        "vae_lightning.models.vqvae.model.VQVAE",
        "vae_lightning.runs.loggers.RunCSVLogger",
        "vae_lightning.runs.loggers.RunLogger",
        "vae_lightning.runs.loggers.RunMLFlowLogger",
        "vae_lightning.runs.loggers.RunWandbLogger",
        "vae_lightning.training.optimizers.Optimization",
    }
)
"""The allowed values of ``_target_``, as full names: a prefix would let foreign code in.

A package of the user's own is added by ``allow=[my_package]``, on the command line only.
"""

_ALLOWED = "VAE_LIGHTNING_ALLOW"
"""The environment variable by which the processes that a command starts know what was typed."""


def allow(packages: Sequence[str]) -> None:
    """Allow the classes of packages, in this process and those that it starts; none: no others.

    Raises:
        ConfigurationError: one is no name of a package.
    """
    for package in packages:
        if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", package):
            raise ConfigurationError(
                f"allow={package}: must be the name of a package, as my_package"
            )
        top = package.partition(".")[0]
        if top not in sys.modules and importlib.util.find_spec(top) is None:
            raise ConfigurationError(f"allow={package}: there is no such package here")
    os.environ.pop(_ALLOWED, None)
    if packages:
        os.environ[_ALLOWED] = ",".join(packages)


def allowed() -> list[str]:
    """Return the packages that were allowed."""
    return list(filter(None, os.environ.get(_ALLOWED, "").split(",")))


def lies_in_allowed(name: str) -> bool:
    """Return whether a full name begins with an allowed package, by whole parts between dots."""
    return any(f"{name}.".startswith(f"{package}.") for package in allowed())


def is_allowed(target: object) -> bool:
    """Return whether a configuration may name a class; that it is one is seen when it is built."""
    return isinstance(target, str) and (target in TARGETS or lies_in_allowed(target))


def refusal(target: str) -> str:
    """Return what to say of a class that isn't allowed."""
    package = target.partition(".")[0]
    if package == "__main__":
        return "a class of a script or notebook: load it there, by load(…, allow=['__main__'])"
    own = f"; if {package} is a package of your own, type allow=[{package}]"
    is_ours = not package.isidentifier() or package in ("vae_lightning", "lightning", "hydra")
    return f"not one of the allowed targets (configuration/targets.py){'' if is_ours else own}"
