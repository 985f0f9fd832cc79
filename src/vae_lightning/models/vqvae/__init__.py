"""The vector-quantised VAE: a grid of discrete codes for each image."""
