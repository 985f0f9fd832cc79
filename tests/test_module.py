"""The training step, what it logs, and the plain loop that it must equal."""

import copy
import csv

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from vae_lightning import VAEModule
from vae_lightning.data import Batch
from vae_lightning.module import evaluation_noise, training_noise


def trainer(tmp_path, **settings):
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(default_root_dir=tmp_path, accelerator="cpu", **{"logger": False, **silent, **settings})


class PlainVAE(nn.Module):
    """The example's algorithm, written as a loop's author would."""

    def __init__(self, module):
        super().__init__()
        encoder, decoder = module.vae.encoder.layers, module.vae.decoder.layers
        self.fc1, self.fc2, self.fc3, self.fc4 = (
            copy.deepcopy(layers[i]) for layers in (encoder, decoder) for i in ((1, 3) if layers is encoder else (0, 2))
        )

    def loss(self, x, noise):
        x = x.flatten(1)
        mu, logvar = self.fc2(torch.relu(self.fc1(x))).chunk(2, dim=1)
        z = mu + noise * torch.exp(0.5 * logvar)
        reconstruction = torch.sigmoid(self.fc4(torch.relu(self.fc3(z))))
        cross_entropy = F.binary_cross_entropy(reconstruction, x, reduction="sum")
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
        return (cross_entropy + kl) / len(x)


class Losses(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


@pytest.mark.parametrize(
    ("precision", "dtype", "tolerance"), [("32-true", torch.float32, 1e-5), ("64-true", torch.float64, 1e-10)]
)
def test_a_hundred_steps_of_the_trainer_equal_a_plain_loop(subset, tmp_path, precision, dtype, tolerance):
    torch.manual_seed(0)
    module = VAEModule(seed=3)
    plain, recorded = PlainVAE(module).to(dtype), Losses()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    batches, losses = subset.train_dataloader(), []
    for epoch in range(10):
        batches.set_epoch(epoch)
        for batch in batches:
            noise = training_noise(3, len(losses), (len(batch.images), 20)).to(dtype)
            loss = plain.loss(batch.images.to(dtype), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    trainer(tmp_path, precision=precision, max_epochs=10, callbacks=[recorded]).fit(module, subset)
    assert len(losses) == 100
    assert losses[-1] < 0.7 * losses[0]
    torch.testing.assert_close(torch.tensor(recorded.losses), torch.tensor(losses), rtol=tolerance, atol=0)
    torch.testing.assert_close(module.vae.decoder.layers[2].weight, plain.fc4.weight, rtol=0, atol=100 * tolerance)


def test_gradients_reach_every_parameter(subset):
    module = VAEModule()
    batch = next(iter(subset.train_dataloader()))
    (-module.bound(batch, training_noise(0, 0, (32, 20))).elbo.mean()).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in module.parameters())


def test_the_gradient_of_the_loss_matches_finite_differences(subset):
    torch.manual_seed(0)
    module = VAEModule(latent_dim=4, hidden_dims=[20]).double()
    batch = next(iter(subset.train_dataloader()))
    batch = batch._replace(images=batch.images.double())
    noise = training_noise(0, 0, (32, 4)).double()
    weights = list(module.parameters())
    directions = [torch.randn_like(weight) for weight in weights]

    def loss_at(step):
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight.add_(direction, alpha=step)
            loss = -module.bound(batch, noise).elbo.mean()
            for weight, direction in zip(weights, directions, strict=True):
                weight.sub_(direction, alpha=step)
        return loss

    gradients = torch.autograd.grad(-module.bound(batch, noise).elbo.mean(), weights)
    slope = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))
    torch.testing.assert_close((loss_at(1e-6) - loss_at(-1e-6)) / 2e-6, slope, rtol=1e-5, atol=0)


def test_training_noise_is_a_function_of_seed_and_batch():
    state = torch.get_rng_state()
    draws = {key: training_noise(*key, (4, 3)) for key in [(1, 0), (1, 1), (2, 0)]}
    assert torch.equal(draws[1, 0], training_noise(1, 0, (4, 3)))
    assert not torch.equal(draws[1, 0], draws[1, 1])
    assert not torch.equal(draws[1, 0], draws[2, 0])
    assert torch.equal(state, torch.get_rng_state())


def test_evaluation_noise_depends_on_the_image_and_on_nothing_else():
    indices = torch.tensor([3, 4999, 17, 500, 499])
    together = evaluation_noise(indices, 6)
    alone = torch.cat([evaluation_noise(index.view(1), 6) for index in indices])
    assert torch.equal(together, alone)
    assert len(together.unique(dim=0)) == 5
    table = evaluation_noise(torch.arange(10_000), 2)
    assert abs(table.mean()) < 0.03
    assert abs(table.std() - 1) < 0.03


@pytest.mark.parametrize("eval_batch_size", [7, 64, 200])
def test_figures_are_means_over_images_whatever_the_batch_size(subset, tmp_path, eval_batch_size):
    torch.manual_seed(0)
    module = VAEModule(latent_dim=3, hidden_dims=[20])
    subset.eval_batch_size = eval_batch_size
    test = trainer(tmp_path)
    test.test(module, subset, verbose=False)
    images, indices = subset.images["test"] / 255, torch.arange(200)
    with torch.no_grad():
        bound = module.bound(Batch(images, subset.labels["test"], indices), evaluation_noise(indices, 3))
        at_mean = module.bound(Batch(images, subset.labels["test"], indices), torch.zeros(200, 3))
    expected = {
        "test/loss": -bound.elbo,
        "test/elbo": bound.elbo,
        "test/log_likelihood": bound.log_likelihood,
        "test/kl": bound.kl,
        "test/loss_at_posterior_mean": -at_mean.elbo,
    }
    assert test.callback_metrics.keys() == expected.keys()
    for name, values in expected.items():
        assert test.callback_metrics[name].item() == pytest.approx(values.double().mean().item(), rel=1e-6)


def test_the_logged_axis_is_the_number_of_optimiser_steps(subset, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    module = VAEModule(latent_dim=2, hidden_dims=[10])
    trainer(tmp_path, max_epochs=2, logger=logger, log_every_n_steps=5).fit(module, subset)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    steps = {name: [int(row["step"]) for row in rows if row[name]] for name in rows[0]}
    assert steps["train/loss"] == [5, 10, 15, 20]
    assert steps["train/loss_epoch"] == steps["val/elbo"] == [10, 20]
    for term in ("loss", "elbo", "log_likelihood", "kl"):
        assert {f"train/{term}", f"train/{term}_epoch", f"val/{term}"} <= steps.keys()


def test_the_epochs_mean_counts_a_short_last_batch_by_its_images(subset, tmp_path):
    recorded, module = Losses(), VAEModule(latent_dim=2, hidden_dims=[10], learning_rate=1e-30)
    subset.batch_size = 300  # 300 + 20
    fit = trainer(tmp_path, max_epochs=1, callbacks=[recorded])
    fit.fit(module, subset)
    expected = (300 * recorded.losses[0] + 20 * recorded.losses[1]) / 320
    assert fit.callback_metrics["train/loss_epoch"].item() == pytest.approx(expected, rel=1e-6)


def test_tensorboard_gets_the_scalars(subset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
    trainer(tmp_path, max_epochs=1, logger=logger, log_every_n_steps=5).fit(VAEModule(latent_dim=2, hidden_dims=[10]), subset)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val/elbo")] == [10]
    assert [event.step for event in events.Scalars("train/kl")] == [5, 10]


@pytest.mark.parametrize(
    "wrong",
    [{"latent_dim": 0}, {"latent_dim": "abc"}, {"latent_dim": True}, {"latent_dim": 2.0}, {"hidden_dims": [0]}]
    + [{"learning_rate": rate} for rate in (0, -1.0, float("nan"), float("inf"))]
    + [{"seed": -1}, {"width": 3}],
    ids=str,
)
def test_values_that_make_no_model_are_refused(wrong):
    with pytest.raises(ValidationError):
        VAEModule(**wrong)
