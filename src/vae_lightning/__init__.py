"""Variational autoencoders, as an experiment project on PyTorch Lightning.

The public names load when they are first used, so importing the package costs nothing, and a
command can answer ``--help`` or a typo before torch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vae_lightning.api import Run as Run
    from vae_lightning.api import TrainedModel as TrainedModel
    from vae_lightning.api import fit as fit
    from vae_lightning.api import load as load
    from vae_lightning.data.mnist import MNISTDataModule as MNISTDataModule
    from vae_lightning.models.base import Batch as Batch
    from vae_lightning.models.base import DataSpec as DataSpec
    from vae_lightning.models.noise import SamplingNoise as SamplingNoise
    from vae_lightning.models.vae.model import VAE as VAE
    from vae_lightning.training.module import VAEModule as VAEModule

__version__ = "0.2.0"
__all__ = [
    "VAE",
    "Batch",
    "DataSpec",
    "MNISTDataModule",
    "Run",
    "SamplingNoise",
    "TrainedModel",
    "VAEModule",
    "__version__",
    "fit",
    "load",
]

_HOMES = {
    "VAE": "models.vae.model",
    "Batch": "models.base",
    "DataSpec": "models.base",
    "MNISTDataModule": "data.mnist",
    "SamplingNoise": "models.noise",
    "VAEModule": "training.module",
    "Run": "api",
    "TrainedModel": "api",
    "fit": "api",
    "load": "api",
}


def __getattr__(name: str) -> object:
    """Import the module that holds a public name (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
