"""Optimisers and schedules by name."""

import pytest
import torch
from lightning import Trainer

from vae_lightning import VAEModule
from vae_lightning.optimizers import build_optimizer, build_schedule


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad", "rmsprop", "sgd"])
def test_every_optimiser_lowers_a_loss(name):
    weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = build_optimizer(name, [weight], learning_rate=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        (loss := (weight**2).sum()).backward()
        optimizer.step()
    assert loss < 6.5


@pytest.mark.parametrize("name", ["adagrad", "sgd"])
def test_weight_decay_is_the_gradient_of_a_gaussian_prior_on_the_weights(name):
    """Decay 1/N on a mean loss and the term ‖θ‖² / 2N added to it make the same steps."""
    ends = []
    for decay in (0.05, 0.0):
        weight = torch.nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
        optimizer = build_optimizer(name, [weight], learning_rate=0.1, weight_decay=decay)
        for _ in range(20):
            optimizer.zero_grad()
            (weight.sin().sum() + (0 if decay else 0.05 * (weight**2).sum() / 2)).backward()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)


def test_fused_adam_makes_the_steps_of_the_plain_one():
    ends = []
    for options in ({}, {"fused": False, "foreach": False}):
        weight = torch.nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
        optimizer = build_optimizer("adam", [weight], learning_rate=0.1, options=options)
        for _ in range(20):
            optimizer.zero_grad()
            weight.sin().sum().backward()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)


def test_options_reach_torch_and_unknown_ones_are_refused():
    weight = [torch.nn.Parameter(torch.zeros(1))]
    assert build_optimizer("adam", weight, 1e-3, options={"eps": 1e-4}).defaults["eps"] == 1e-4
    with pytest.raises(ValueError, match=r"optimizer_options=\{'epsilon': 1\}: .*epsilon"):
        build_optimizer("adam", weight, 1e-3, options={"epsilon": 1})


def rates(name, steps, passes=(1, 2, 3)):
    optimizer = build_optimizer("sgd", [torch.nn.Parameter(torch.zeros(1))], learning_rate=0.5)
    schedule, interval = build_schedule(name, optimizer, steps, passes)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen, interval


def test_the_iwae_schedule_divides_by_the_seventh_root_of_ten_at_each_stage():
    seen, interval = rates("iwae", 8)
    assert seen == pytest.approx([0.5 * 10 ** (-stage / 7) for stage in (0, 1, 1, 2, 2, 2, 2, 2)])
    assert interval == "epoch"


def test_one_cycle_rises_to_the_rate_and_falls_to_nothing():
    seen, interval = rates("one_cycle", 100)
    assert max(seen) == pytest.approx(0.5, rel=1e-3)
    assert seen[0] < 0.1
    assert seen[-1] < 1e-4
    assert interval == "step"


def test_cosine_falls_from_the_rate_to_nothing():
    seen, interval = rates("cosine", 100)
    assert seen[0] == 0.5
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 1e-3
    assert interval == "step"


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.0), ("iwae", 1e-3 * 10 ** (-2 / 7))])
def test_the_trainer_moves_the_schedule(subset, tmp_path, schedule, last):
    module = VAEModule(latent_dim=2, hidden_dims=[10], schedule=schedule, schedule_passes=[1, 1, 1])
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=3, **silent)
    trainer.fit(module, subset)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(last, abs=1e-9)


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad", "rmsprop", "sgd"])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "iwae"])
def test_every_schedule_drives_every_optimiser_and_gives_none_a_momentum_it_had_not(name, schedule):
    optimizer = build_optimizer(name, [torch.nn.Parameter(torch.zeros(1))], learning_rate=0.5)
    momentum = optimizer.defaults.get("momentum")
    driver, _ = build_schedule(schedule, optimizer, 10, (1, 2))
    for _ in range(9):
        optimizer.step()
        driver.step()
    assert optimizer.param_groups[0].get("momentum") == momentum
