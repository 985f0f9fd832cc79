"""How noisy are the two SGVB estimators?

python benchmarks/estimator_variance.py CHECKPOINT [--data-dir DIR]     # a file or a run directory

Kingma & Welling (arXiv:1312.6114) say of estimator B that it "typically has less variance" than A.
This measures both on one batch of training images, for the trained model and for one with initial
weights: the standard deviation of the batch's mean bound, and the root of the summed variances of
the encoder's gradient (the decoder's is the same under both), over many draws of the noise.
"""

import argparse
import itertools

import torch

from vae_lightning import VAE
from vae_lightning.data.datamodule import DataModule
from vae_lightning.models.noise import TrainingNoise
from vae_lightning.runs.checkpoints import build_model, data_of, find_checkpoint, read

DRAWS = 300


def spread(model: VAE, estimator: str, data: DataModule) -> tuple[float, float]:
    """Return the standard deviation of the batch's bound, nats per image, and of its gradient."""
    model.estimator = estimator
    batch = next(iter(data.train_dataloader()))
    weights = list(model.encoder.parameters())
    noises, device = TrainingNoise(0), batch.x.device
    values, total, total_of_squares = [], torch.zeros(()), torch.zeros(())
    for draw in range(DRAWS):
        noise = noises.of(draw, len(batch.x), device).normal(model.latent_dim)
        bound = model.objective(batch, noise)[0].mean()
        gradient = torch.cat(
            [part.flatten() for part in torch.autograd.grad(bound, weights)]
        ).double()
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
    file = find_checkpoint(arguments.checkpoint)
    content = read(file)
    kind, settings = data_of(file, content)
    folder = {"dir": arguments.data_dir} if arguments.data_dir else {}
    data = kind(**settings, **folder)
    data.prepare_data()
    data.setup()
    trained = build_model(file, content).requires_grad_(True)
    torch.manual_seed(content["hyper_parameters"]["seed"])
    initial = type(trained)(trained.data, **trained.settings)
    head = f"{'':24}{'of the bound':>16}{'of the gradient':>18}"
    print(f"{head}   standard deviations over {DRAWS} draws")
    for (name, model), estimator in itertools.product(
        {"initial": initial, "trained": trained}.items(), ("sgvb_a", "sgvb_b")
    ):
        value, gradient = spread(model, estimator, data)
        print(f"{name:12}{estimator:12}{value:16.4f}{gradient:18.4f}")


if __name__ == "__main__":
    main()
