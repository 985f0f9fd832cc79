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
from torch.profiler import profile

from vae_lightning import VAEModule
from vae_lightning.data import Batch
from vae_lightning.experiment import without_idle_hooks
from vae_lightning.noise import TrainingNoise, evaluation_noise, training_noise


def trainer(tmp_path, **settings):
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(default_root_dir=tmp_path, **{"accelerator": "cpu", "logger": False, **silent, **settings})


class PlainVAE(nn.Module):
    """The example's algorithm, written as a loop's author would."""

    def __init__(self, module):
        super().__init__()
        encoder, decoder = module.vae.encoder.layers, module.vae.decoder.layers
        self.fc1, self.fc2, self.fc3, self.fc4 = (copy.deepcopy(layers[i]) for layers in (encoder, decoder) for i in (0, 2))

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
    (-module.objective(batch, training_noise(0, 0, (1, 32, 20)))[0].mean()).backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in module.parameters())


@pytest.mark.parametrize("objective", ["sgvb_b", "sgvb_a", "iwae"])
def test_the_gradient_of_the_loss_matches_finite_differences(subset, objective):
    torch.manual_seed(0)
    module = VAEModule(latent_dim=4, hidden_dims=[20], activation="tanh", objective=objective).double()
    batch = next(iter(subset.train_dataloader()))
    batch = batch._replace(images=batch.images.double())
    noise = training_noise(0, 0, (2, 32, 4)).double()
    weights = list(module.parameters())
    directions = [torch.randn_like(weight) for weight in weights]

    def loss_at(step):
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight.add_(direction, alpha=step)
            loss = -module.objective(batch, noise)[0].mean()
            for weight, direction in zip(weights, directions, strict=True):
                weight.sub_(direction, alpha=step)
        return loss

    gradients = torch.autograd.grad(-module.objective(batch, noise)[0].mean(), weights)
    slope = sum((gradient * direction).sum() for gradient, direction in zip(gradients, directions, strict=True))
    torch.testing.assert_close((loss_at(1e-6) - loss_at(-1e-6)) / 2e-6, slope, rtol=1e-5, atol=0)


def test_training_noise_is_a_function_of_seed_and_batch():
    state = torch.get_rng_state()
    draws = {key: training_noise(*key, (4, 3)) for key in [(1, 0), (1, 1), (2, 0)]}
    assert torch.equal(draws[1, 0], training_noise(1, 0, (4, 3)))
    assert not torch.equal(draws[1, 0], draws[1, 1])
    assert not torch.equal(draws[1, 0], draws[2, 0])
    assert torch.equal(state, torch.get_rng_state())


def test_noise_drawn_for_some_batches_at_once_is_that_of_each_wherever_a_run_goes_on():
    noise, cpu, whole, short = TrainingNoise(3), torch.device("cpu"), (2, 4, 3), (2, 1, 3)
    visits = [(37, whole), (38, whole), (49, whole), (50, whole), (51, short), (52, whole), (99, whole), (3, whole), (2, whole)]
    for batch, shape in visits:
        assert torch.equal(noise.of(batch, shape, cpu), training_noise(3, batch, shape))


@pytest.mark.parametrize(("numbers", "starts"), [(2**24, [50, 100]), (25 * 12, [50, 75, 100]), (1, list(range(31, 101)))])
def test_noise_is_moved_to_the_device_once_in_fifty_batches_or_before_it_takes_much_memory(monkeypatch, numbers, starts):
    monkeypatch.setattr("vae_lightning.noise._NUMBERS", numbers)
    noise = TrainingNoise(3)
    blocks = [noise.of(batch, (1, 4, 3), torch.device("cpu")).untyped_storage().data_ptr() for batch in range(30, 101)]
    assert [batch for batch in range(31, 101) if blocks[batch - 30] != blocks[batch - 31]] == starts


@pytest.mark.parametrize(
    ("accelerator", "optimizer"),
    [
        ("cpu", "sgd"),  # Adam for the CPU reads its own counts
        pytest.param("gpu", "adam", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="asks for a CUDA GPU")),
    ],
)
def test_between_logging_points_no_step_waits_for_the_device_or_copies_to_it(subset, tmp_path, accelerator, optimizer):
    profiler = profile()

    class Profiled(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 15:
                profiler.start()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 34:
                profiler.stop()

    subset.batch_size = 8  # 40 steps
    settings = {"max_epochs": 1, "log_every_n_steps": 40, "logger": CSVLogger(tmp_path)}
    trainer(tmp_path, accelerator=accelerator, callbacks=[Profiled()], **settings).fit(
        VAEModule(optimizer=optimizer, learning_rate=1e-4), subset
    )
    calls = {event.key: event.count for event in profiler.key_averages()}
    assert calls["_BernoulliLogProb"] == 20
    assert "aten::_local_scalar_dense" not in calls  # what every item() and tolist() comes to
    assert not [name for name in calls if name.startswith("Memcpy") and ("HtoD" in name or "DtoH" in name)]
    assert not calls.keys() & {"cudaStreamSynchronize", "cudaEventSynchronize", "cudaMemcpy"}


def test_a_process_without_an_image_of_a_batch_trains_on_nothing_and_adds_nothing():
    module = VAEModule(latent_dim=3, hidden_dims=[20])
    objective, log_likelihood, kl = module.objective(
        Batch(torch.rand(0, 1, 28, 28), torch.arange(0), torch.arange(0)), torch.rand(1, 0, 3)
    )
    objective.sum().backward()
    assert not any(weight.grad.any() for weight in module.parameters())
    for terms in ([torch.ones(2)] * 4, [-objective, objective, log_likelihood, kl], [torch.ones(1)] * 4):
        module.window.update(*terms)
    assert module.window.images == 3
    assert module.window.means("") == dict.fromkeys(("loss", "elbo", "log_likelihood", "kl"), 1.0)


def test_a_callback_is_asked_for_what_it_does_in_a_step_and_for_nothing_else(subset, tmp_path):
    class Counting(Callback):
        seen = 0

        def on_before_backward(self, trainer, pl_module, loss):
            self.seen += 1

    counting = without_idle_hooks(Counting())
    trainer(tmp_path, max_steps=3, callbacks=[counting]).fit(VAEModule(), subset)
    assert counting.seen == 3
    asked = [name for name in dir(Callback) if name.startswith("on_") and not callable(getattr(counting, name))]
    assert len(asked) == 5  # of the six of a step
    assert not [name for name in asked if getattr(Counting, name) is not getattr(Callback, name)]


def test_evaluation_noise_depends_on_the_image_and_on_nothing_else():
    indices = torch.tensor([3, 4999, 17, 500, 499])
    together = evaluation_noise(indices, 6)
    alone = torch.cat([evaluation_noise(index.view(1), 6) for index in indices], dim=1)
    assert torch.equal(together, alone)
    assert len(together[0].unique(dim=0)) == 5
    samples = evaluation_noise(indices, 6, range(4))
    assert torch.equal(samples[:1], together)
    assert torch.equal(samples[3:], evaluation_noise(indices, 6, [3]))
    assert len(samples.flatten(0, 1).unique(dim=0)) == 20
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
    batch = Batch(images, subset.labels["test"], indices)
    with torch.no_grad():
        elbo, log_likelihood, kl = module.objective(batch, evaluation_noise(indices, 3))
        at_mean = module.objective(batch, torch.zeros(1, 200, 3))[0]
    expected = {
        "test/loss": -elbo,
        "test/elbo": elbo,
        "test/log_likelihood": log_likelihood,
        "test/kl": kl,
        "test/loss_at_posterior_mean": -at_mean,
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
    + [{"objective": "elbow"}, {"num_samples": 0}, {"optimizer": "adamant"}, {"activation": "none"}, {"initial_scale": 0.0}]
    + [{"learning_rate": rate} for rate in (0, -1.0, float("nan"), float("inf"))]
    + [{"seed": -1}, {"width": 3}],
    ids=str,
)
def test_values_that_make_no_model_are_refused(wrong):
    with pytest.raises(ValidationError):
        VAEModule(**wrong)


# -- other objectives and schedules -----------------------------------------------------------------------------------


def test_an_importance_weighted_run_logs_its_bound_beside_the_unweighted_one(subset, tmp_path):
    torch.manual_seed(0)
    module = VAEModule(latent_dim=3, hidden_dims=[20], objective="iwae", num_samples=5)
    test = trainer(tmp_path)
    test.test(module, subset, verbose=False)
    figures = {name: value.item() for name, value in test.callback_metrics.items()}
    batch = Batch(subset.images["test"] / 255, subset.labels["test"], torch.arange(200))
    with torch.no_grad():
        bound = module.objective(batch, evaluation_noise(torch.arange(200), 3, range(5)))[0].mean().item()
    assert figures["test/importance_bound"] == pytest.approx(bound, rel=1e-6)
    assert figures["test/importance_bound"] > figures["test/elbo"] == -figures["test/loss"]


def test_the_importance_bound_does_not_move_with_the_images_decoded_together(subset, monkeypatch):
    module = VAEModule(latent_dim=3, hidden_dims=[20], objective="iwae", num_samples=4)
    batch = next(iter(subset.test_dataloader()))
    with torch.no_grad():
        whole = module.importance_bound(batch)
        monkeypatch.setattr("vae_lightning.module._DECODED_TOGETHER", 28)
        torch.testing.assert_close(module.importance_bound(batch), whole, rtol=1e-6, atol=0)


def test_the_logged_elbo_is_unweighted_and_its_kl_in_closed_form_whatever_is_trained(subset, tmp_path):
    logged = []
    for settings in ({}, {"kl_weight": 4.0}, {"objective": "sgvb_a"}, {"free_bits": 1.0}, {"objective": "iwae"}):
        torch.manual_seed(0)
        subset.batch_size = 320
        fit = trainer(tmp_path, max_epochs=1)
        fit.fit(VAEModule(latent_dim=3, hidden_dims=[20], **settings), subset)
        figures = {name: value.item() for name, value in fit.callback_metrics.items()}
        logged.append([figures[f"train/{term}_epoch"] for term in ("elbo", "log_likelihood", "kl")])
        same_loss = figures["train/loss_epoch"] == pytest.approx(-figures["train/elbo_epoch"], rel=1e-7)
        assert same_loss == (not settings)
    assert all(figures == pytest.approx(logged[0], rel=1e-6) for figures in logged)


def test_the_kls_weight_follows_the_optimiser_steps(subset, tmp_path):
    weights = []

    class Weights(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            weights.append(pl_module.kl_weight)

    module = VAEModule(latent_dim=2, hidden_dims=[10], kl_weight=2.0, kl_schedule="linear", kl_schedule_steps=4)
    trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2, callbacks=[Weights()]).fit(module, subset)
    assert weights == [0, 0, 0.5, 0.5, 1, 1, 1.5, 1.5, 2, 2]


def test_what_goes_by_a_schedule_is_logged(subset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
    scheduled = {"kl_schedule": "linear", "kl_schedule_steps": 20, "schedule": "cosine", "learning_rate": 0.01}
    module = VAEModule(latent_dim=2, hidden_dims=[10], **scheduled)
    trainer(tmp_path, max_epochs=1, logger=logger, log_every_n_steps=5).fit(module, subset)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = {
        tag: [(each.step, each.value) for each in events.Scalars(f"train/{tag}")] for tag in ("kl_weight", "learning_rate")
    }
    assert shown["kl_weight"] == [(5, 0.25), (10, 0.5)]
    assert shown["learning_rate"] == [(5, pytest.approx(0.005)), (10, pytest.approx(0.0, abs=1e-9))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "iwae", "kl_weight": 2.0}, "objective=iwae: its bound has no KL term"),
        ({"objective": "iwae", "free_bits": 0.1}, "objective=iwae: its bound has no KL term"),
        ({"objective": "iwae", "kl_schedule": "linear", "kl_schedule_steps": 5}, "objective=iwae: its bound has no KL term"),
        ({"objective": "sgvb_a", "free_bits": 0.1}, "free_bits=0.1: asks for the KL in closed form"),
        ({"kl_schedule": "cyclical"}, "kl_schedule=cyclical: asks for kl_schedule_steps"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VAEModule(**settings)


def test_more_samples_estimate_the_same_bound_with_less_variance(subset):
    torch.manual_seed(0)
    module = VAEModule(latent_dim=3, hidden_dims=[20])
    batch = next(iter(subset.train_dataloader()))
    with torch.no_grad():
        draws = {
            samples: torch.stack(
                [module.objective(batch, training_noise(0, i, (samples, 32, 3)))[0].mean() for i in range(200)]
            )
            for samples in (1, 8)
        }
    assert draws[8].std() < 0.6 * draws[1].std()
    assert abs(draws[8].mean() - draws[1].mean()) < 4 * draws[1].std() / 200**0.5


def test_all_weights_start_from_the_scale_that_is_asked_for():
    torch.manual_seed(0)
    weights = torch.cat([weight.detach().flatten() for weight in VAEModule(initial_scale=0.1).parameters()])
    assert abs(weights.mean()) < 1e-3
    assert abs(weights.std() - 0.1) < 1e-3


def test_accumulated_steps_are_logged_once_each(subset, tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    module = VAEModule(latent_dim=2, hidden_dims=[10])
    settings = {"accumulate_grad_batches": 4, "log_every_n_steps": 1, "max_epochs": 2, "logger": logger}
    recorded = Losses()
    trainer(tmp_path, callbacks=[recorded], **settings).fit(module, subset)  # 10 batches: 4 + 4 + 2 an epoch
    rows = [row for row in csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    # What Lightning hands to callbacks is a quarter of each batch's loss.
    assert float(rows[0]["train/loss"]) == pytest.approx(sum(recorded.losses[:4]), rel=1e-5)


def test_a_run_that_ends_within_an_epoch_logs_what_it_saw(subset, tmp_path):
    recorded = Losses()
    fit = trainer(tmp_path, max_steps=13, callbacks=[recorded], log_every_n_steps=0)
    fit.fit(VAEModule(latent_dim=2, hidden_dims=[10]), subset)
    assert fit.callback_metrics["train/loss_epoch"].item() == pytest.approx(sum(recorded.losses[10:]) / 3, rel=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_figures_are_taken_in_full_precision(subset, tmp_path, precision):
    torch.manual_seed(0)
    module = VAEModule(latent_dim=3, hidden_dims=[20])
    test = trainer(tmp_path, precision=precision)
    test.test(module, subset, verbose=False)
    figures = [figure.item() for figure in test.callback_metrics.values()]
    plain = trainer(tmp_path)
    plain.test(module, subset, verbose=False)
    assert figures == [figure.item() for figure in plain.callback_metrics.values()]


def test_training_that_diverges_ends_with_the_quantity_and_the_step(subset, tmp_path):
    with pytest.raises(FloatingPointError, match=r"train/loss is (nan|inf) at step \d; try a lower model.learning_rate"):
        trainer(tmp_path, max_epochs=2, log_every_n_steps=1).fit(VAEModule(learning_rate=1e6), subset)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretized_logistic"])
@pytest.mark.parametrize("network", ["mlp", "convolutional"])
def test_densities_are_computed_in_full_precision_under_autocast(likelihood, network):
    torch.manual_seed(0)
    settings = {"latent_dim": 3, "hidden_dims": [20], "channels": [2, 3], "pixel_scale": "per_pixel"}
    vae = VAEModule(likelihood=likelihood, network=network, **settings).vae
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        posterior = vae.posterior(torch.rand(4, 1, 28, 28))
        likelihood_ = vae.likelihood(posterior.loc)
    assert posterior.loc.dtype == posterior.scale.dtype == likelihood_.mean.dtype == torch.float32


def test_a_compiled_model_trains_alike_and_its_checkpoint_is_as_any_other(subset, tmp_path, monkeypatch):
    compiled, real = [], torch.compile

    def compile_for_the_test(function):  # without generated code, whose compiler takes a minute
        compiled.append(function.__name__)
        return real(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_for_the_test)

    def trained(**options):
        torch.manual_seed(0)
        module, file = VAEModule(latent_dim=3, hidden_dims=[20], **options), tmp_path / "checkpoint"
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
    module = VAEModule(initial_mean=True)
    untrained = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    module.trainer, untrained.datamodule = untrained, subset
    module.setup("fit")
    with torch.no_grad():
        for weights in module.vae.decoder.layers[-1].parameters():
            if weights.ndim == 2:
                weights.zero_()
    mean = (subset.images["train"][subset.train_indices].float() / 255).mean(0)
    torch.testing.assert_close(module.vae.sample(1)[0].detach(), mean.clamp(1e-3, 1 - 1e-3))


@pytest.mark.parametrize(
    "other", [{"network": "convolutional"}, {"likelihood": "gaussian", "pixel_scale": "per_pixel"}], ids=str
)
def test_a_mean_that_the_last_bias_can_not_hold_is_refused(other):
    with pytest.raises(ValueError, match="initial_mean=true: asks for network=mlp"):
        VAEModule(initial_mean=True, **other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"schedule": "one_cycle", "schedule_options": {"pct": 0.1}},
            "schedule_options={'pct': 0.1}: OneCycleLR has no pct",
        ),
        ({"schedule": "one_cycle", "schedule_options": {"pct_start": 2.0}}, "schedule_options={'pct_start': 2.0} over "),
        ({"schedule": "cosine", "schedule_options": {"pct_start": 0.1}}, "are those of schedule=one_cycle"),
        ({"schedule_options": {"pct_start": 0.1}}, "are those of schedule=one_cycle"),
    ],
    ids=str,
)
def test_schedule_options_that_mean_nothing_are_refused_before_the_data_is_read(settings, message):
    with pytest.raises(ValueError, match=message):
        VAEModule(**settings)
