"""Variational autoencoders on MNIST, as an experiment project on PyTorch Lightning.

The public names load when they are first used, so that importing the package costs nothing and a command can answer
``--help`` or a typo before torch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vae_lightning.checkpoints import load as load
    from vae_lightning.data import MNISTDataModule as MNISTDataModule
    from vae_lightning.module import VAEModule as VAEModule
    from vae_lightning.vae import VAE as VAE

__version__ = "0.1.0"
__all__ = ["VAE", "MNISTDataModule", "VAEModule", "__version__", "load"]

_ROOMS = {"VAE": "vae", "VAEModule": "module", "MNISTDataModule": "data", "load": "checkpoints"}


def __getattr__(name: str) -> object:
    """Import the room that holds a public name (PEP 562)."""
    if name in _ROOMS:
        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
