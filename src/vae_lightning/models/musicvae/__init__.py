"""MusicVAE: a VAE over sequences, with recurrent networks (Roberts et al. 2018)."""
