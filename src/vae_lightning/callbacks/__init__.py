"""What happens around training: pictures, the use of the latents, progress."""

from vae_lightning.callbacks.latents import LatentUse
from vae_lightning.callbacks.pictures import PriorSamples, Reconstructions
from vae_lightning.callbacks.progress import Progress

__all__ = ["LatentUse", "PriorSamples", "Progress", "Reconstructions"]
