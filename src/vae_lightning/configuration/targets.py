"""Everything that a configuration may name as ``_target_``."""

TARGETS = frozenset(
    {
        "lightning.Trainer",
        "lightning.pytorch.callbacks.EarlyStopping",
        "lightning.pytorch.callbacks.LearningRateMonitor",
        "lightning.pytorch.callbacks.ModelCheckpoint",
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
        "vae_lightning.training.optimizers.Optimization",
    }
)
"""The allowed values of ``_target_``, as full names: a prefix would let foreign code in."""
