"""Means over examples, whatever the batches."""

import pytest
import torch

from vae_lightning.training.meters import Means, TrainingFigures

CPU = torch.device("cpu")


def test_a_batch_without_an_example_adds_nothing():
    means = Means("loss", "elbo")
    for size in (2, 0, 1):
        means.update(torch.ones(size), 2 * torch.ones(size))
    assert means.examples == 3
    assert means.means("") == {"loss": 1.0, "elbo": 2.0}


def test_a_mean_counts_a_short_batch_by_its_examples():
    means, values = Means("loss"), torch.arange(7.0)
    for part in values.split(3):
        means.update(part)
    assert means.means("train/", "_epoch") == {"train/loss_epoch": values.mean().item()}


def test_means_of_no_examples_are_none():
    means = Means("loss")
    assert means.means("val/") == {}
    means.update(torch.ones(2))
    means.clear()
    assert means.means("val/") == {}


def test_values_keep_no_graph():
    means, weight = Means("loss"), torch.ones(3, requires_grad=True)
    means.update(2 * weight)
    assert not any(sums.requires_grad for sums in means.sums())


def test_sums_over_many_examples_keep_single_precisions_last_digit():
    means = Means("loss")
    for _ in range(600):
        means.update(torch.full((100,), 0.1))
    assert means.means("")["loss"] == pytest.approx(torch.tensor(0.1).item(), rel=1e-12)


def test_means_go_on_from_what_was_saved():
    through, before = Means("loss", "elbo"), Means("loss", "elbo")
    for means in (through, before):
        means.update(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    after = Means("loss", "elbo")
    after.load_state_dict(before.state_dict(), CPU)
    for means in (through, after):
        means.update(torch.tensor([7.0]), torch.tensor([8.0]))
    assert after.examples == through.examples == 3
    assert after.means("") == through.means("") == {"loss": 10 / 3, "elbo": 5.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_first_figure_that_is_not_finite_is_named_with_its_step(value):
    figures = TrainingFigures("loss", "kl")
    figures.window.update(torch.ones(2), torch.ones(2))
    figures.close_window(10)
    for number in range(6):
        loss = value if number >= 4 else 1.0
        figures.window.update(torch.ones(2), torch.tensor([1.0, loss]))
    assert figures.not_finite(batches_per_step=1) == f"train/kl is {value} at step 15"
    assert figures.not_finite(batches_per_step=2) == f"train/kl is {value} at step 13"


def test_a_closed_window_is_part_of_the_epoch():
    figures = TrainingFigures("loss")
    for batch in ([1.0, 2.0], [3.0]):
        figures.window.update(torch.tensor(batch))
    figures.close_window(5, figures.window.means("train/"))
    assert figures.latest == {"train/loss": 2.0}
    assert figures.window.means("") == {}
    figures.window.update(torch.tensor([6.0]))
    figures.close_window(6)
    assert figures.epoch.means("") == {"loss": 3.0}
    assert figures.latest == {"train/loss": 2.0}


def test_a_step_is_logged_once_however_many_batches_it_takes():
    figures = TrainingFigures("loss")
    assert [figures.is_due(step, 5) for step in (4, 5, 6)] == [False, True, False]
    figures.close_window(5, {})
    assert not figures.is_due(5, 5)
    assert figures.is_due(10, 5)
    assert not figures.is_due(10, 0)  # trainer.log_every_n_steps=0
