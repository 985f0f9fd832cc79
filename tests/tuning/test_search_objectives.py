"""What a search may go by: the criterion, a named figure, or rate and distortion."""

import pytest

from conftest import build_vae
from vae_lightning.errors import ConfigurationError
from vae_lightning.models.base import Figure
from vae_lightning.tuning.objectives import RATE_DISTORTION, Objective, read_objectives

FIGURES = {"elbo": -100.0, "kl": 25.0, "log_likelihood": -75.0, "loss": 100.0}


@pytest.mark.parametrize("objective", ["sgvb_b", "iwae"])
def test_the_criterion_is_the_figure_by_which_models_compare(objective):
    model = build_vae(objective=objective)
    [found] = read_objectives(["criterion"], model)
    assert (found.name, found.source, found.sign) == ("elbo", "elbo", 1)
    assert found.figure == model.figures["elbo"]
    assert [found] == read_objectives(["elbo"], model)


def test_a_figure_is_raised_or_lowered_as_the_model_says():
    [elbo] = read_objectives(["elbo"], build_vae())
    [loss] = read_objectives(["loss"], build_vae())
    assert (elbo.direction, loss.direction) == ("maximize", "minimize")
    assert (elbo.of(FIGURES), loss.of(FIGURES)) == (-100.0, 100.0)
    assert (elbo.is_better(-99.0, -100.0), elbo.is_better(-100.0, -100.0)) == (True, False)
    assert (loss.is_better(99.0, 100.0), loss.is_better(100.0, 100.0)) == (True, False)


def test_rate_and_distortion_are_the_kl_and_minus_the_log_likelihood():
    found = read_objectives(["rate", "distortion"], build_vae())
    assert found == list(RATE_DISTORTION.values())
    assert [each.direction for each in found] == ["minimize", "minimize"]
    rate, distortion = (each.of(FIGURES) for each in found)
    assert (rate, distortion) == (25.0, 75.0)
    assert rate + distortion == -FIGURES["elbo"]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["ebo"],
        ["kl"],  # neither way is better
        ["importance_bound"],  # iwae's
        ["elbo", "loss"],
        ["elbo", "elbo"],
        ["rate"],
        ["distortion", "rate"],
        ["criterion", "rate"],
    ],
    ids=",".join,
)
def test_what_a_search_cannot_go_by_is_refused_with_what_it_can(names):
    with pytest.raises(ConfigurationError) as error:
        read_objectives(names, build_vae())
    known = "[loss], [elbo], [log_likelihood], [loss_at_posterior_mean]"
    assert str(error.value) == (
        f"objectives=[{','.join(names)}]: must be [criterion], one of {known}, or "
        "[rate,distortion] of a model with kl and log_likelihood"
    )


def test_a_model_without_a_kl_has_no_rate_and_distortion():
    model = build_vae()
    model.figures, model.comparison = {"bits": Figure("bits", "bits", "min")}, "bits"
    assert read_objectives(["criterion"], model) == [
        Objective("bits", model.figures["bits"], "bits")
    ]
    with pytest.raises(ConfigurationError, match=r"must be \[criterion\], one of \[bits\], or"):
        read_objectives(["rate", "distortion"], model)
