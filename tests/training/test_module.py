"""The training step, what it logs, and the plain loop that it must equal."""

import copy
import csv

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from conftest import build_module
from gpu import Traffic
from vae_lightning import Batch, SamplingNoise
from vae_lightning.models.noise import EvaluationNoise, keyed_generator
from vae_lightning.training.speedups import without_idle_hooks


def trainer(tmp_path, **settings):
    silent = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(
        default_root_dir=tmp_path, **{"accelerator": "cpu", "logger": False, **silent, **settings}
    )


class PlainVAE(nn.Module):
    """The example's algorithm, written as a loop's author would."""

    def __init__(self, module):
        super().__init__()
        encoder, decoder = module.model.encoder.layers, module.model.decoder.layers
        self.fc1, self.fc2, self.fc3, self.fc4 = (
            copy.deepcopy(layers[i]) for layers in (encoder, decoder) for i in (0, 2)
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
    ("precision", "dtype", "tolerance"),
    [("32-true", torch.float32, 1e-5), ("64-true", torch.float64, 1e-10)],
)
@pytest.mark.slow
def test_a_hundred_steps_of_the_trainer_equal_a_plain_loop(
    subset, tmp_path, precision, dtype, tolerance
):
    torch.manual_seed(0)
    module = build_module(seed=3)
    plain, recorded = PlainVAE(module).to(dtype), Losses()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    batches, losses = subset.train_dataloader(), []
    for epoch in range(10):
        batches.set_epoch(epoch)
        for batch in batches:
            noise = torch.randn(len(batch.x), 20, generator=keyed_generator(3, len(losses)))
            loss = plain.loss(batch.x.to(dtype), noise.to(dtype))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    trainer(tmp_path, precision=precision, max_epochs=10, callbacks=[recorded]).fit(module, subset)
    assert len(losses) == 100
    assert losses[-1] < 0.7 * losses[0]
    torch.testing.assert_close(
        torch.tensor(recorded.losses), torch.tensor(losses), rtol=tolerance, atol=0
    )
    torch.testing.assert_close(
        module.model.decoder.layers[2].weight, plain.fc4.weight, rtol=0, atol=100 * tolerance
    )


def test_between_logging_points_no_step_reads_a_number(subset, tmp_path):
    traffic = Traffic(15, 20)
    subset.batch_size = 8  # 40 steps
    settings = {"max_epochs": 1, "log_every_n_steps": 40, "logger": CSVLogger(tmp_path)}
    module = build_module(optimizer={"name": "sgd", "learning_rate": 1e-4})  # Adam reads its counts
    trainer(tmp_path, callbacks=[traffic], **settings).fit(module, subset)
    assert traffic.calls["_BernoulliLogProb"] == 20
    assert "aten::_local_scalar_dense" not in traffic.calls  # what item() and tolist() call


def test_a_callback_is_asked_for_what_it_does_in_a_step_and_for_nothing_else(subset, tmp_path):
    class Counting(Callback):
        seen = 0

        def on_before_backward(self, trainer, pl_module, loss):
            self.seen += 1

    counting = without_idle_hooks(Counting())
    trainer(tmp_path, max_steps=3, callbacks=[counting]).fit(build_module(), subset)
    assert counting.seen == 3
    asked = [
        name
        for name in dir(Callback)
        if name.startswith("on_") and not callable(getattr(counting, name))
    ]
    assert len(asked) == 5  # of the six of a step
    assert not [name for name in asked if getattr(Counting, name) is not getattr(Callback, name)]


def test_a_process_without_an_image_of_a_batch_trains_on_nothing_and_adds_nothing():
    module = build_module(latent_dim=3, hidden_dims=[20])
    empty = Batch(torch.rand(0, 1, 28, 28), torch.arange(0), torch.arange(0), total=3, first=3)
    noise = module.training_noise.of(0, 0, torch.device("cpu"), empty.total, empty.first)
    loss, terms = module.model.loss(empty, noise, step=0)
    loss.sum().backward()
    assert not any(weight.grad.any() for weight in module.parameters())
    for values in ([torch.ones(2)] * 4, [loss, *terms.values()], [torch.ones(1)] * 4):
        module.figures.window.update(*values)
    assert module.figures.window.examples == 3
    means = module.figures.window.means("")
    assert means == dict.fromkeys(("loss", "elbo", "log_likelihood", "kl"), 1.0)


@pytest.mark.parametrize("eval_batch_size", [7, 64, 200])
def test_figures_are_means_over_images_whatever_the_batch_size(subset, tmp_path, eval_batch_size):
    torch.manual_seed(0)
    module = build_module(latent_dim=3, hidden_dims=[20])
    subset.eval_batch_size = eval_batch_size
    test = trainer(tmp_path)
    test.test(module, subset, verbose=False)
    indices = torch.arange(200)
    batch = Batch(subset.x["test"] / 255, subset.y["test"], indices)
    with torch.no_grad():
        noise = EvaluationNoise(indices).normal(3)
        elbo, log_likelihood, kl = module.model.objective(batch, noise)
        at_mean = module.model.objective(batch, torch.zeros(1, 200, 3))[0]
    expected = {
        "test/loss": -elbo,
        "test/elbo": elbo,
        "test/log_likelihood": log_likelihood,
        "test/kl": kl,
        "test/loss_at_posterior_mean": -at_mean,
    }
    assert test.callback_metrics.keys() == expected.keys()
    for name, values in expected.items():
        assert test.callback_metrics[name].item() == pytest.approx(
            values.double().mean().item(), rel=1e-6
        )
    assert module.tested == 200


def test_the_logged_axis_is_the_number_of_optimiser_steps(subset, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    module = build_module(latent_dim=2, hidden_dims=[10])
    trainer(tmp_path, max_epochs=2, logger=logger, log_every_n_steps=5).fit(module, subset)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    steps = {name: [int(row["step"]) for row in rows if row[name]] for name in rows[0]}
    assert steps["train/loss"] == [5, 10, 15, 20]
    assert steps["train/loss_epoch"] == steps["val/elbo"] == [10, 20]
    for term in ("loss", "elbo", "log_likelihood", "kl"):
        assert {f"train/{term}", f"train/{term}_epoch", f"val/{term}"} <= steps.keys()


def test_the_epochs_mean_counts_a_short_last_batch_by_its_images(subset, tmp_path):
    optimizer = {"learning_rate": 1e-30}
    recorded, module = Losses(), build_module(latent_dim=2, hidden_dims=[10], optimizer=optimizer)
    subset.batch_size = 300  # 300 + 20
    fit = trainer(tmp_path, max_epochs=1, callbacks=[recorded])
    fit.fit(module, subset)
    expected = (300 * recorded.losses[0] + 20 * recorded.losses[1]) / 320
    assert fit.callback_metrics["train/loss_epoch"].item() == pytest.approx(expected, rel=1e-6)


def test_tensorboard_gets_the_scalars(subset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
    trainer(tmp_path, max_epochs=1, logger=logger, log_every_n_steps=5).fit(
        build_module(latent_dim=2, hidden_dims=[10]), subset
    )
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("val/elbo")] == [10]
    assert [event.step for event in events.Scalars("train/kl")] == [5, 10]


# -- other objectives and schedules ---------------------------------------------------------------


def test_an_importance_weighted_run_logs_its_bound_beside_the_unweighted_one(subset, tmp_path):
    torch.manual_seed(0)
    module = build_module(latent_dim=3, hidden_dims=[20], objective="iwae", num_samples=5)
    test = trainer(tmp_path)
    test.test(module, subset, verbose=False)
    figures = {name: value.item() for name, value in test.callback_metrics.items()}
    batch = Batch(subset.x["test"] / 255, subset.y["test"], torch.arange(200))
    with torch.no_grad():
        noise = EvaluationNoise(batch.indices).normal(3, samples=5)
        bound = module.model.objective(batch, noise)[0].mean().item()
    assert figures["test/importance_bound"] == pytest.approx(bound, rel=1e-6)
    assert figures["test/importance_bound"] > figures["test/elbo"] == -figures["test/loss"]


def test_the_logged_elbo_is_unweighted_and_its_kl_in_closed_form_whatever_is_trained(
    subset, tmp_path
):
    logged = []
    for settings in (
        {},
        {"kl_weight": 4.0},
        {"objective": "sgvb_a"},
        {"free_bits": 1.0},
        {"objective": "iwae"},
    ):
        torch.manual_seed(0)
        subset.batch_size = 320
        fit = trainer(tmp_path, max_epochs=1)
        fit.fit(build_module(latent_dim=3, hidden_dims=[20], **settings), subset)
        figures = {name: value.item() for name, value in fit.callback_metrics.items()}
        logged.append([figures[f"train/{term}_epoch"] for term in ("elbo", "log_likelihood", "kl")])
        same_loss = figures["train/loss_epoch"] == pytest.approx(
            -figures["train/elbo_epoch"], rel=1e-7
        )
        assert same_loss == (not settings)
    assert all(figures == pytest.approx(logged[0], rel=1e-6) for figures in logged)


def test_the_kls_weight_follows_the_optimiser_steps(subset, tmp_path):
    taken, said = [], []
    module = build_module(
        latent_dim=2, hidden_dims=[10], kl_weight=2.0, kl_schedule="linear", kl_schedule_steps=4
    )

    def objective(batch, noise, kl_weight):
        taken.append(kl_weight)
        said.append(module.model.schedule(module.global_step))
        return module.model.objective(batch, noise, kl_weight)

    module.model.training_objective = objective
    trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2).fit(module, subset)
    assert taken == [0, 0, 0.5, 0.5, 1, 1, 1.5, 1.5, 2, 2]
    assert said == [{"kl_weight": weight} for weight in taken]


def test_what_goes_by_a_schedule_is_logged(subset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
    module = build_module(
        latent_dim=2,
        hidden_dims=[10],
        kl_schedule="linear",
        kl_schedule_steps=20,
        optimizer={"schedule": "cosine", "learning_rate": 0.01},
    )
    trainer(tmp_path, max_epochs=1, logger=logger, log_every_n_steps=5).fit(module, subset)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = {
        tag: [(each.step, each.value) for each in events.Scalars(f"train/{tag}")]
        for tag in ("kl_weight", "learning_rate")
    }
    assert shown["kl_weight"] == [(5, 0.25), (10, 0.5)]
    assert shown["learning_rate"] == [(5, pytest.approx(0.005)), (10, pytest.approx(0.0, abs=1e-9))]


def test_accumulated_steps_are_logged_once_each(subset, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    module = build_module(latent_dim=2, hidden_dims=[10])
    settings = {
        "accumulate_grad_batches": 4,
        "log_every_n_steps": 1,
        "max_epochs": 2,
        "logger": logger,
    }
    recorded = Losses()
    trainer(tmp_path, callbacks=[recorded], **settings).fit(
        module, subset
    )  # 10 batches: 4 + 4 + 2 an epoch
    rows = [
        row
        for row in csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines())
        if row["train/loss"]
    ]
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    # What Lightning hands to callbacks is a quarter of each batch's loss.
    assert float(rows[0]["train/loss"]) == pytest.approx(sum(recorded.losses[:4]), rel=1e-5)


def test_a_run_that_ends_within_an_epoch_logs_what_it_saw(subset, tmp_path):
    recorded = Losses()
    fit = trainer(tmp_path, max_steps=13, callbacks=[recorded], log_every_n_steps=0)
    fit.fit(build_module(latent_dim=2, hidden_dims=[10]), subset)
    assert fit.callback_metrics["train/loss_epoch"].item() == pytest.approx(
        sum(recorded.losses[10:]) / 3, rel=1e-6
    )


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_figures_are_taken_in_full_precision(subset, tmp_path, precision):
    torch.manual_seed(0)
    module = build_module(latent_dim=3, hidden_dims=[20])
    test = trainer(tmp_path, precision=precision)
    test.test(module, subset, verbose=False)
    figures = [figure.item() for figure in test.callback_metrics.values()]
    plain = trainer(tmp_path)
    plain.test(module, subset, verbose=False)
    assert figures == [figure.item() for figure in plain.callback_metrics.values()]


def test_training_that_diverges_ends_with_the_quantity_and_the_step(subset, tmp_path):
    with pytest.raises(
        FloatingPointError,
        match=r"train/loss is (nan|inf) at step \d; try a lower optimizer\.learning_rate",
    ):
        trainer(tmp_path, max_epochs=2, log_every_n_steps=1).fit(
            build_module(optimizer={"learning_rate": 1e6}), subset
        )


def test_a_compiled_model_trains_alike_and_its_checkpoint_is_as_any_other(
    subset, tmp_path, monkeypatch
):
    compiled, real = [], torch.compile

    def compile_for_the_test(function):  # without generated code, whose compiler takes a minute
        compiled.append(function.__name__)
        return real(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_for_the_test)

    def trained(**options):
        torch.manual_seed(0)
        module, file = build_module(latent_dim=3, hidden_dims=[20], **options), tmp_path / "file"
        running = trainer(tmp_path, max_epochs=1)
        running.fit(module, subset)
        running.save_checkpoint(file)
        return torch.load(file, weights_only=True)["state_dict"]

    plain = trained()
    assert compiled == []
    ours = trained(compile=True)
    assert compiled == ["objective"]
    assert list(ours) == list(plain)
    for key, weight in ours.items():
        torch.testing.assert_close(weight, plain[key], rtol=1e-4, atol=1e-5)


def test_a_decoder_that_starts_from_the_mean_image_draws_it_at_first(subset, tmp_path):
    module = build_module(initial_mean=True)
    untrained = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    module.trainer, untrained.datamodule = untrained, subset
    module.on_fit_start()
    with torch.no_grad():
        for weights in module.model.decoder.layers[-1].parameters():
            if weights.ndim == 2:
                weights.zero_()
    mean = (subset.x["train"][subset.train_indices].float() / 255).mean(0)
    drawn = module.model.sample(1, SamplingNoise(1))[0].detach()
    torch.testing.assert_close(drawn, mean.clamp(1e-3, 1 - 1e-3))


def test_any_loader_trains_and_tests_and_the_figures_are_returned(subset, tmp_path):
    x = subset.x["train"][:200]
    own = trainer(tmp_path, max_epochs=1)
    module = build_module(hidden_dims=[8])
    grey = (x.float() / 255, torch.zeros(200, dtype=torch.int64))
    own.fit(module, DataLoader(TensorDataset(*grey), 50), DataLoader(x[:50], 25))
    found = []
    for loader in (
        DataLoader(TensorDataset(*grey), 50),  # (x, y)
        DataLoader(x[:, 0], 40),  # uint8, without an axis of channels
    ):
        [figures] = own.test(module, loader, verbose=False)
        found.append(figures["test/elbo"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    batch = Batch(grey[0], indices=torch.arange(200))
    expected = module.model.measure(batch, EvaluationNoise(batch.indices))["elbo"].mean().item()
    assert found[0] == pytest.approx(expected, rel=1e-5)
    [validated] = own.validate(module, DataLoader(x, 50), verbose=False)
    assert validated["val/elbo"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="values from 0 to 255; images are uint8, or floats in"):
        own.test(module, DataLoader(x.float(), 50), verbose=False)


def test_a_loader_without_a_length_trains_as_one_with_the_same_batches(subset, tmp_path):
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(x)

    x = subset.x["train"][:200].float() / 255
    ends = []
    for data in (x, Endless()):
        torch.manual_seed(1)
        module = build_module(hidden_dims=[8])
        own = trainer(tmp_path, max_epochs=3)
        own.fit(module, DataLoader(data, 50), DataLoader(x, 50))
        assert own.global_step == 12
        ends.append(module.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
