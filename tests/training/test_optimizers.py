"""Optimisers and schedules by name."""

import pytest
import torch
from lightning import Trainer
from pydantic import ValidationError

from conftest import build_module
from vae_lightning.training.optimizers import Optimization


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad", "rmsprop", "sgd"])
def test_every_optimiser_lowers_a_loss(name):
    weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = Optimization(name, learning_rate=0.1).build([weight])
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
        optimizer = Optimization(name, learning_rate=0.1, weight_decay=decay).build([weight])
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
        optimizer = Optimization("adam", learning_rate=0.1, options=options).build([weight])
        assert optimizer.defaults["fused"] == (not options)
        for _ in range(20):
            optimizer.zero_grad()
            weight.sin().sum().backward()
            optimizer.step()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=0)


def test_options_reach_torch_and_unknown_ones_are_refused():
    weight = [torch.nn.Parameter(torch.zeros(1))]
    assert Optimization("adam", options={"eps": 1e-4}).build(weight).defaults["eps"] == 1e-4
    with pytest.raises(ValueError, match=r"^options=\{'epsilon': 1\}: .*epsilon"):
        Optimization("adam", options={"epsilon": 1})


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
def test_an_option_that_has_a_key_of_its_own_is_refused(key):
    with pytest.raises(ValueError, match=f"{key} has a key of its own"):
        Optimization(options={key: 0.1})


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "adamant"},
        *({"learning_rate": rate} for rate in (0, -1.0, float("nan"), float("inf"))),
        *({"weight_decay": decay} for decay in (-1.0, float("nan"))),
        {"schedule": "sine"},
        {"schedule_passes": []},
        {"width": 3},
    ],
    ids=str,
)
def test_values_that_make_no_optimiser_are_refused(wrong):
    with pytest.raises(ValidationError):
        Optimization(**wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"schedule": "one_cycle", "schedule_options": {"pct": 0.1}},
            "schedule_options={'pct': 0.1}: OneCycleLR has no pct",
        ),
        (
            {"schedule": "one_cycle", "schedule_options": {"pct_start": 2.0}},
            "schedule_options={'pct_start': 2.0} over ",
        ),
        (
            {"schedule": "cosine", "schedule_options": {"pct_start": 0.1}},
            "are those of schedule=one_cycle",
        ),
        ({"schedule_options": {"pct_start": 0.1}}, "are those of schedule=one_cycle"),
    ],
    ids=str,
)
def test_schedule_options_that_mean_nothing_are_refused_before_the_data_is_read(settings, message):
    with pytest.raises(ValueError, match=message):
        Optimization(**settings)


def test_the_same_optimisation_can_be_built_again_from_its_settings():
    given = {"name": "sgd", "learning_rate": 0.5, "options": {"momentum": 0.9}, "schedule": "iwae"}
    optimization = Optimization(**given)
    again = Optimization(**optimization.settings)
    assert again.settings == optimization.settings
    assert given.items() <= again.settings.items()
    assert again.build([torch.zeros(1)]).defaults["momentum"] == 0.9


def rates(name, steps, passes=(1, 2, 3)):
    optimization = Optimization("sgd", 0.5, schedule=name, schedule_passes=passes)
    optimizer = optimization.build([torch.nn.Parameter(torch.zeros(1))])
    schedule, interval = optimization.build_schedule(optimizer, steps)
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
    optimizer = {"schedule": schedule, "schedule_passes": [1, 1, 1]}
    module = build_module(latent_dim=2, hidden_dims=[10], optimizer=optimizer)
    silent = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=3, **silent)
    trainer.fit(module, subset)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(last, abs=1e-9)


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad", "rmsprop", "sgd"])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "iwae"])
def test_every_schedule_drives_every_optimiser_and_gives_none_a_momentum_it_had_not(name, schedule):
    optimization = Optimization(name, 0.5, schedule=schedule, schedule_passes=(1, 2))
    optimizer = optimization.build([torch.nn.Parameter(torch.zeros(1))])
    momentum = optimizer.defaults.get("momentum")
    driver, _ = optimization.build_schedule(optimizer, 10)
    for _ in range(9):
        optimizer.step()
        driver.step()
    assert optimizer.param_groups[0].get("momentum") == momentum
