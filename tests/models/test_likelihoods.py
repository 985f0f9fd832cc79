"""Each family is a proper mass or density, and its mean is its mean."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from vae_lightning import MNISTDataModule
from vae_lightning.models.likelihoods import (
    SCALE_FLOOR,
    BernoulliImage,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Likelihood,
    kind_of_number,
    meaning,
)

LOGITS = [-300.0, -17.0, -3.0, -0.06, -0.049, 0.0, 1e-6, 0.049, 0.051, 2.0, 25.0, 300.0]


def double(value):
    return torch.tensor(value, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_bernoullis_masses_sum_to_one():
    logits = random(1, 2, 2) * 8 - 4
    images = torch.cartesian_prod(*[double([0.0, 1.0])] * 4).view(16, 1, 2, 2)
    torch.testing.assert_close(BernoulliImage(logits).log_prob(images).exp().sum(), double(1.0))


def test_log_prob_sums_over_the_pixels_and_keeps_the_leading_dimensions():
    logits, x = random(2, 3, 1, 4, 4), random(3, 1, 4, 4, seed=1)
    log_prob = BernoulliImage(logits).log_prob(x)
    assert log_prob.shape == (2, 3)
    expected = -F.binary_cross_entropy(
        torch.sigmoid(logits), x.expand_as(logits), reduction="none"
    ).sum((-3, -2, -1))
    torch.testing.assert_close(log_prob, expected)


@pytest.mark.parametrize("sides", [(28, 28), (5, 7), (1, 1)])
def test_the_bernoullis_log_prob_and_its_gradient_are_those_of_torchs_cross_entropy(sides):
    for dtype, digits in ((torch.float32, 2e-6), (torch.float64, 1e-14)):
        logits, x = (
            (random(3, 4, 1, *sides) * 40 - 20).to(dtype),
            random(4, 1, *sides, seed=1).to(dtype),
        )
        logits[0, 0], logits[0, 1], logits[0, 2] = 200, -200, 0
        logits.requires_grad_()
        ours = BernoulliImage(logits).log_prob(x)
        torchs = (
            -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
            .flatten(-3)
            .sum(-1)
        )
        exact = -F.binary_cross_entropy_with_logits(
            logits.double(), x.expand_as(logits).double(), reduction="none"
        )
        torch.testing.assert_close(
            ours.double(), exact.flatten(-3).sum(-1), rtol=digits, atol=digits
        )
        weights = random(3, 4, seed=2).to(dtype)  # as importance weights are
        gradients = [
            torch.autograd.grad((weights * each).sum(), logits)[0] for each in (ours, torchs)
        ]
        assert torch.equal(*gradients)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(BernoulliImage(logits).log_prob(x), ours)
    logits = random(2, 1, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda each: BernoulliImage(each).log_prob(random(2, 1, 3, 4, seed=1)), logits
    )


@pytest.mark.parametrize(
    "name", ["bernoulli", "continuous_bernoulli", "gaussian", "discretized_logistic"]
)
def test_tiling_pixels_twice_doubles_the_log_likelihood(name):
    likelihood = Likelihood(name).double()
    logits, x = random(5, 1, 4, 4) * 6 - 3, random(5, 1, 4, 4, seed=1).round(decimals=1)
    once = likelihood(logits).log_prob(x)
    twice = likelihood(logits.repeat(1, 1, 2, 1)).log_prob(x.repeat(1, 1, 2, 1))
    torch.testing.assert_close(twice, 2 * once)


def test_the_continuous_bernoullis_mean_loses_no_digits_in_single_precision():
    logits = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    exact, single = (ContinuousBernoulli(each).mean for each in (logits, logits.float()))
    assert (single - exact).abs().max() < 5e-7
    assert exact.diff().min() > 0  # nor where the series ends


@pytest.mark.parametrize("logit", LOGITS)
def test_the_continuous_bernoulli_integrates_to_one_and_its_mean_is_its_mean(logit):
    x = torch.linspace(0, 1, 400_001, dtype=torch.float64)
    density = ContinuousBernoulli(double(logit))
    p = density.log_prob(x).exp()
    assert torch.trapezoid(p, x).item() == pytest.approx(1, abs=1e-6)
    assert torch.trapezoid(p * x, x).item() == pytest.approx(density.mean.item(), abs=1e-6)


def test_the_continuous_bernoulli_is_finite_with_gradients_in_float32_however_sure_it_is():
    logits = torch.tensor([-1e4, -20.0, -0.05, 0.0, 0.05, 20.0, 1e4], requires_grad=True)
    for x in (0.0, 0.5, 1.0):
        log_prob = ContinuousBernoulli(logits).log_prob(torch.tensor(x))
        [gradient] = torch.autograd.grad(log_prob.sum(), logits)
        assert torch.isfinite(log_prob).all()
        assert torch.isfinite(gradient).all()


def test_the_continuous_bernoulli_agrees_with_torchs_where_that_is_not_clamped():
    logits, x = random(200) * 16 - 8, random(200, seed=1)
    torch.testing.assert_close(
        ContinuousBernoulli(logits).log_prob(x),
        torch.distributions.ContinuousBernoulli(logits=logits).log_prob(x),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("scale", [0.05, "learnt", "per_pixel"])
def test_the_gaussian_integrates_to_one(scale):
    likelihood = Likelihood("gaussian", scale).double()
    x = torch.linspace(-4, 5, 20_001, dtype=torch.float64).view(-1, 1, 1, 1)
    parameters = double([0.7, 1.3][: likelihood.parameters_per_pixel]).view(-1, 1, 1)
    p = likelihood(parameters).log_prob(x).exp()
    assert torch.trapezoid(p, x.flatten()).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("loc", "scale"), [(0.5, 0.1), (0.0, 0.001), (1.0, 0.3), (0.3, 0.01), (0.501, 5.0)]
)
def test_the_discretised_logistics_256_masses_sum_to_one_and_its_mean_is_its_mean(loc, scale):
    levels = torch.arange(256, dtype=torch.float64) / 255
    mass = DiscretizedLogistic(double(loc), double(scale))
    p = mass.log_prob(levels).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert (p * levels).sum().item() == pytest.approx(mass.mean.item(), abs=1e-12)


def test_the_discretised_logistic_is_the_difference_of_two_sigmoids():
    loc, scale, k = 0.4, 0.05, 100
    expected = torch.sigmoid(double(((k + 0.5) / 255 - loc) / scale)) - torch.sigmoid(
        double(((k - 0.5) / 255 - loc) / scale)
    )
    torch.testing.assert_close(
        DiscretizedLogistic(double(loc), double(scale)).log_prob(double(k / 255)), expected.log()
    )


def test_the_discretised_logistic_is_finite_with_gradients_in_float32_far_from_its_location():
    loc, scale = (
        torch.tensor(0.9, requires_grad=True),
        torch.tensor(SCALE_FLOOR, requires_grad=True),
    )
    for level in (0, 1, 128, 254, 255):
        log_prob = DiscretizedLogistic(loc, scale).log_prob(torch.tensor(level / 255))
        for each in (log_prob, *torch.autograd.grad(log_prob, (loc, scale))):
            assert torch.isfinite(each)


@pytest.mark.parametrize("name", ["gaussian", "discretized_logistic"])
def test_learnt_scales_start_at_a_tenth_and_stay_above_the_floor(name):
    for kind in ("learnt", "per_pixel"):
        likelihood = Likelihood(name, kind)
        zeros = torch.zeros(likelihood.parameters_per_pixel, 2, 2)

        def scale_of(likelihood, parameters):
            distribution = likelihood(parameters).base_dist
            return distribution.scale.expand(1, 2, 2)

        torch.testing.assert_close(
            scale_of(likelihood, zeros), torch.full((1, 2, 2), 0.1 + SCALE_FLOOR)
        )
        with torch.no_grad():
            for parameter in likelihood.parameters():
                parameter.fill_(-1e4)
            lowest = scale_of(likelihood, zeros - 1e4)
        torch.testing.assert_close(lowest, torch.full((1, 2, 2), SCALE_FLOOR))


@pytest.mark.parametrize(
    "name", ["bernoulli", "continuous_bernoulli", "gaussian", "discretized_logistic"]
)
def test_every_familys_mean_lies_in_the_unit_interval(name):
    parameters = torch.linspace(-50, 50, 3 * 16).view(3, 1, 4, 4)
    mean = Likelihood(name)(parameters).mean
    assert mean.shape == (3, 1, 4, 4)
    assert mean.min() >= 0
    assert mean.max() <= 1
    assert mean.flatten().diff().min() >= 0


def values(binarization, dequantize):
    """Return what values data has under a protocol."""
    return MNISTDataModule(binarization=binarization, dequantize=dequantize).spec.values


@pytest.mark.parametrize(
    ("name", "binarization", "dequantize", "kind"),
    [
        ("bernoulli", "static", False, "mass"),
        ("bernoulli", "none", False, "neither"),
        ("gaussian", "none", True, "density"),
        ("gaussian", "none", False, "neither"),
        ("continuous_bernoulli", "none", True, "density"),
        ("discretized_logistic", "none", False, "mass"),
    ],
)
def test_what_a_number_means_depends_on_the_family_and_the_protocol(
    name, binarization, dequantize, kind
):
    assert kind_of_number(name, values(binarization, dequantize)) == kind


@pytest.mark.parametrize(
    ("name", "binarization", "dequantize", "instead"),
    [
        *(
            (name, "static", False, "need model.likelihood=bernoulli")
            for name in ("continuous_bernoulli", "gaussian", "discretized_logistic")
        ),
        ("bernoulli", "none", True, "type data.dequantize=false"),
        ("discretized_logistic", "none", True, "type data.dequantize=false"),
    ],
)
def test_meaningless_pairs_are_refused(name, binarization, dequantize, instead):
    with pytest.raises(ValueError, match=rf"^likelihood={name}: .*{instead}$"):
        kind_of_number(name, values(binarization, dequantize))


@pytest.mark.parametrize(
    "name", ["bernoulli", "continuous_bernoulli", "gaussian", "discretized_logistic"]
)
def test_no_family_of_pixels_takes_tokens(name):
    with pytest.raises(ValueError, match=rf"^likelihood={name}: the data are tokens"):
        kind_of_number(name, "tokens")


def test_what_is_no_likelihood_says_so_in_words():
    assert meaning("bernoulli", "mass").startswith("log-likelihoods")
    assert meaning("gaussian", "density").startswith("log-densities")
    for name in ("bernoulli", "continuous_bernoulli", "gaussian"):
        assert re.search("not likelihoods|none of these is a likelihood", meaning(name, "neither"))


def test_spreading_grey_levels_bounds_the_mass_by_the_density():
    """Theis et al. 2016: E_u log p(x + u) ≤ log of the integral of p over the level.

    Here for a Gaussian.
    """
    density = torch.distributions.Normal(double(0.5), double(0.05))
    for k in (100, 127, 128, 140):
        u = torch.linspace(0, 1, 20_001, dtype=torch.float64)
        spread = density.log_prob((k + u) / 256).mean() - math.log(256)
        mass = (density.cdf(double((k + 1) / 256)) - density.cdf(double(k / 256))).log()
        assert spread <= mass + 1e-9
