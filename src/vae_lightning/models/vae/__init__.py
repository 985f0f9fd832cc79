"""The variational autoencoder: objectives, networks, model."""
