"""How noisy are the two SGVB estimators? ``python benchmarks/estimator_variance.py <checkpoint or run directory>``.

Kingma & Welling (arXiv:1312.6114) say of estimator B that it "typically has less variance" than A. This measures both on one
batch of training images, for the trained model and for one with initial weights: the standard deviation of the batch's mean
bound, and the root of the summed variances of the encoder's gradient (the decoder's is the same under both), over many draws of
the noise.
"""

import argparse
import itertools

import torch

from vae_lightning import MNISTDataModule, VAEModule
from vae_lightning.checkpoints import load_data_settings, load_module
from vae_lightning.noise import training_noise

DRAWS = 300


def spread(module: VAEModule, estimator: str, data: MNISTDataModule) -> tuple[float, float]:
    """Return the standard deviation of the batch's bound, nats per image, and of its gradient."""
    module.estimator = estimator
    batch = next(iter(data.train_dataloader()))
    weights = list(module.vae.encoder.parameters())
    values, total, total_of_squares = [], torch.zeros(()), torch.zeros(())
    for draw in range(DRAWS):
        noise = training_noise(0, draw, (1, len(batch.images), module.latent_dim))
        bound = module.objective(batch, noise)[0].mean()
        gradient = torch.cat([part.flatten() for part in torch.autograd.grad(bound, weights)]).double()
        values.append(bound.item())
        total, total_of_squares = total + gradient, total_of_squares + gradient**2
    variance = (total_of_squares - total**2 / DRAWS).sum() / (DRAWS - 1)
    return torch.tensor(values, dtype=torch.float64).std().item(), variance.sqrt().item()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--data-dir")
    arguments = parser.parse_args()
    trained = load_module(arguments.checkpoint)
    data = MNISTDataModule(**load_data_settings(arguments.checkpoint), dir=arguments.data_dir)
    data.prepare_data()
    data.setup()
    torch.manual_seed(trained.hparams["seed"])
    initial = VAEModule(**trained.hparams)
    print(f"{'':12}{'':12}{'of the bound':>16}{'of the gradient':>18}   standard deviations over {DRAWS} draws")
    for (name, module), estimator in itertools.product({"initial": initial, "trained": trained}.items(), ("sgvb_a", "sgvb_b")):
        value, gradient = spread(module, estimator, data)
        print(f"{name:12}{estimator:12}{value:16.4f}{gradient:18.4f}")


if __name__ == "__main__":
    main()
