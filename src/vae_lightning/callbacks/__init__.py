"""What happens around training: pictures, dashboards, the use of the latents, progress, checkpoints."""

from vae_lightning.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from vae_lightning.callbacks.dashboard import Dashboard, Projector
from vae_lightning.callbacks.latents import LatentUse
from vae_lightning.callbacks.pictures import LatentPicture, PriorSamples, Reconstructions
from vae_lightning.callbacks.progress import Progress

__all__ = [
    "BestCheckpoint",
    "Dashboard",
    "LastCheckpoint",
    "LatentPicture",
    "LatentUse",
    "PriorSamples",
    "Progress",
    "Projector",
    "Reconstructions",
]
