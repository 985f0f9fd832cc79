"""What happens around training: pictures and progress."""

from vae_lightning.callbacks.pictures import PriorSamples, Reconstructions
from vae_lightning.callbacks.progress import Progress

__all__ = ["PriorSamples", "Progress", "Reconstructions"]
