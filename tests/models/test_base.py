"""The interface: what it stores, what a batch is, and the defaults of a latent model."""

import io
import itertools
import json
import math
import pydoc
from typing import ClassVar, get_args

import pytest
import torch
from torch.distributions import (
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from conftest import build_vae, digits
from linear_gaussian import LinearGaussian, noise_of
from vae_lightning import VAE, Batch, DataSpec, SamplingNoise
from vae_lightning.models import base
from vae_lightning.models.base import LatentModel, Model, arguments, target_of
from vae_lightning.models.distributions import DiagonalNormal
from vae_lightning.models.noise import EvaluationNoise
from vae_lightning.models.vae import settings as vae_settings


def saved(value):
    """Return a value as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -- the spec of the data -------------------------------------------------------------------------

SPECS = [
    DataSpec((1, 28, 28), "unit", class_names=("zero", "one")),
    DataSpec((3, 32, 32), "continuous"),
    DataSpec((1, 28, 28), "binary"),
    DataSpec((64,), "tokens", vocabulary=130),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.values)
def test_a_spec_comes_back_from_what_is_stored_of_it(spec):
    for stored in (spec.stored(), saved(spec.stored()), json.loads(json.dumps(spec.stored()))):
        back = DataSpec(**stored)
        assert back == spec
        assert hash(back) == hash(spec)
        assert back.stored() == spec.stored()


def test_a_stored_spec_holds_plain_values():
    assert SPECS[0].stored() == {
        "shape": [1, 28, 28],
        "values": "unit",
        "vocabulary": 0,
        "class_names": ["zero", "one"],
    }


# -- batches --------------------------------------------------------------------------------------


def batch_of(count, labelled=True, **where):
    y, indices = (torch.arange(count), 10 + torch.arange(count)) if labelled else (None, None)
    return Batch(torch.rand(count, 1, 2, 2), y, indices, **where)


def test_a_batch_goes_to_a_device_with_its_labels_and_keeps_its_place():
    moved = batch_of(3, total=7, first=4).to(torch.device("meta"))
    assert [part.device.type for part in (moved.x, moved.y, moved.indices)] == ["meta"] * 3
    assert (moved.total, moved.first) == (7, 4)
    here = batch_of(3)
    assert all(torch.equal(*pair) for pair in zip(here[:3], here.to(here.x.device), strict=False))


def test_a_batch_without_labels_goes_to_a_device_without_them():
    moved = batch_of(3, labelled=False).to(torch.device("meta"))
    assert moved.x.device.type == "meta"
    assert moved.y is None
    assert moved.indices is None


@pytest.mark.parametrize("rows", [[2, 0], torch.tensor([2, 0])], ids=["list", "tensor"])
def test_some_examples_of_a_batch_are_a_whole_batch(rows):
    batch = batch_of(3, total=7, first=4)
    taken = batch.take(rows)
    assert torch.equal(taken.x, torch.stack([batch.x[2], batch.x[0]]))
    assert taken.y.tolist() == [2, 0]
    assert taken.indices.tolist() == [12, 10]
    assert (taken.total, taken.first) == (None, 0)


def test_some_examples_of_a_batch_without_labels_have_none():
    taken = batch_of(3, labelled=False).take([1])
    assert len(taken.x) == 1
    assert taken.y is None
    assert taken.indices is None


# -- how a model is named and built again ---------------------------------------------------------


class Parent:
    def __init__(self, settings):
        self.settings = settings


class Child(Parent):
    def __init__(self, data, width=3, *, names=("a", "b"), scale=None):
        super().__init__(arguments(locals(), "data"))  # super() puts __class__ among the locals
        width = 2 * width

    class Inner:
        pass


def test_arguments_are_those_of_the_constructor_as_they_were_given():
    assert Child("data").settings == {"width": 3, "names": ("a", "b"), "scale": None}
    given = {"width": 5, "names": ["c"], "scale": 0.1}
    child = Child("data", **given)
    assert child.settings == given
    assert Child("other", **child.settings).settings == given


def test_a_class_is_found_by_its_target():
    assert target_of(VAE) == "vae_lightning.models.vae.model.VAE"
    assert target_of(Child.Inner).endswith("test_base.Child.Inner")
    assert pydoc.locate(target_of(VAE)) is VAE


SMALL = {"latent_dim": 2, "hidden_dims": [5], "channels": [2, 3]}

VARIANTS = [
    {"network": network, "likelihood": likelihood, "pixel_scale": scale, "num_classes": classes}
    for network, likelihood, scale, classes in itertools.product(
        get_args(vae_settings.OurNetwork),
        get_args(vae_settings.OurLikelihood),
        (0.2, "learnt", "per_pixel"),
        (0, 10),
    )
]
VARIANTS += [{"activation": name} for name in get_args(vae_settings.Activation)]
VARIANTS += [{"posterior_scale": name} for name in get_args(vae_settings.PosteriorScale)]
VARIANTS += [{"objective": name, "num_samples": 3} for name in get_args(vae_settings.Objective)]
VARIANTS += [
    {"kl_schedule": name, "kl_schedule_steps": 10, "kl_weight": 2.0}
    for name in get_args(vae_settings.KLSchedule)
]
VARIANTS += [{"free_bits": 0.1}, {"initial_scale": 0.1}, {"initial_mean": True}]
VARIANTS += [{"compile": True}, {"hidden_dims": (7, 6)}, {"hidden_dims": ()}, {"latent_dim": 1}]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_vae_is_built_again_from_its_settings(variant, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)  # its import takes seconds
    model = build_vae(**SMALL | variant)
    assert (SMALL | variant).items() <= model.settings.items()
    stored = saved({"data": model.data.stored(), "settings": model.settings})
    for again in (
        type(model)(model.data, **model.settings),
        type(model)(DataSpec(**stored["data"]), **stored["settings"]),
    ):
        shapes, expected = (
            {name: weight.shape for name, weight in each.state_dict().items()}
            for each in (again, model)
        )
        assert list(shapes.items()) == list(expected.items())
        assert again.settings == model.settings
        assert (again.criterion, again.quantity) == (model.criterion, model.quantity)
        assert list(again.figures.items()) == list(model.figures.items())
        again.load_state_dict(model.state_dict())
        batch = Batch(torch.rand(2, 1, 28, 28), torch.tensor([3, 4]))
        assert torch.equal(again.reconstruct(batch), model.reconstruct(batch))


def test_a_vae_of_another_shape_is_built_again_as_well():
    spec = DataSpec((3, 8, 12), "unit")
    for network in get_args(vae_settings.OurNetwork):
        model = build_vae(spec, network=network, **SMALL)
        again = type(model)(DataSpec(**model.data.stored()), **model.settings)
        again.load_state_dict(model.state_dict())
        assert again.sample(2, SamplingNoise(2)).shape == (2, 3, 8, 12)


# -- the defaults of a latent model ---------------------------------------------------------------


class Plain:
    """A Gaussian that is no distribution of torch's: it has the two methods of ``Latents``."""

    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale

    def draw(self, noise, samples=1, temperature=1.0):
        drawn = noise.normal(self.loc.shape[-1], samples=samples).to(self.loc)
        return self.loc + self.scale * (temperature * drawn)

    def log_prob(self, value):
        scaled = (value - self.loc) / self.scale
        return (-0.5 * scaled**2 - self.scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


class Mixture(MixtureSameFamily):
    """Two Gaussians in equal shares: a distribution of torch's without a KL in closed form."""

    def __init__(self, loc, scale):
        locs = torch.stack([loc - 0.7, loc + 0.7], dim=-2)
        scales = scale.unsqueeze(-2).expand_as(locs)
        shares = Categorical(torch.full(locs.shape[:-1], 0.5, dtype=loc.dtype))
        super().__init__(shares, Independent(Normal(locs, scales), 1))
        self.loc, self.scale = loc, scale

    def draw(self, noise, samples=1, temperature=1.0):
        side = noise.uniform(samples=samples).to(self.loc).sub(0.5).sign().unsqueeze(-1)
        drawn = noise.normal(self.loc.shape[-1], samples=samples).to(self.loc)
        return self.loc + 0.7 * side + self.scale * (temperature * drawn)


GIVEN = LinearGaussian()


class Linear(LatentModel):
    """The linear-Gaussian model with a posterior of some kind, at the exact one or beside it.

    It has what a latent model must have, and nothing else.
    """

    kinds: ClassVar = {"normal": DiagonalNormal, "plain": Plain, "mixture": Mixture}

    def __init__(self, data, kind="normal", shift=0.0, stretch=1.0, num_classes=0):
        super().__init__(data, arguments(locals(), "data"))
        self.kind, self.latent_dim, self.num_classes = self.kinds[kind], 3, num_classes
        self.shift = torch.nn.Parameter(torch.tensor(shift, dtype=torch.float64))
        self.stretch = stretch
        self.decoded = []

    def prior(self, y=None):
        return GIVEN.prior

    def posterior(self, batch):
        precision = 1 / GIVEN.scale[0] ** 2
        loc = batch.x @ GIVEN.w / GIVEN.sigma**2 / precision
        return self.kind(loc + self.shift, self.stretch * GIVEN.scale[0].expand_as(loc))

    def log_likelihood(self, batch, z):
        return Independent(Normal(z @ GIVEN.w.T, GIVEN.sigma), 1).log_prob(batch.x)

    def decode(self, z, y=None):
        self.decoded.append((len(z), y))
        mean = z @ GIVEN.w.T
        return mean if y is None else mean + y.to(z).unsqueeze(-1)

    def point(self, batch):
        return self.posterior(batch).loc


BATCH = Batch(GIVEN.x, None, torch.arange(len(GIVEN.x)))


def linear(**settings):
    return Linear(DataSpec((7,), "continuous"), **settings)


def test_two_gaussians_have_the_kl_in_closed_form_whatever_the_samples():
    model = linear(shift=0.3, stretch=1.4)
    posterior = model.posterior(BATCH)
    expected = kl_divergence(
        MultivariateNormal(posterior.loc, torch.diag_embed(posterior.scale**2)),
        MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double()),
    )
    for z in (noise_of(1, 5, 3), noise_of(4, 5, 3, seed=2), torch.full((1, 5, 3), torch.nan)):
        kl = model.kl(BATCH, posterior, z)
        assert kl.shape == (5,)
        torch.testing.assert_close(kl, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["plain", "mixture"])
def test_where_torch_knows_no_closed_form_the_kl_is_sampled(kind):
    model = linear(kind=kind, shift=0.3, stretch=1.4)
    posterior = model.posterior(BATCH)
    z = posterior.draw(EvaluationNoise(BATCH.indices), samples=4)
    kl = model.kl(BATCH, posterior, z)
    each = torch.stack([posterior.log_prob(sample) - GIVEN.prior.log_prob(sample) for sample in z])
    torch.testing.assert_close(kl, each.mean(0), rtol=1e-12, atol=0)
    assert kl.shape == (5,)
    assert (abs(kl - each[0]) > 1e-3).all()  # all samples count


def test_the_sampled_kl_agrees_with_the_closed_form():
    plain, normal = linear(kind="plain", shift=0.3, stretch=1.4), linear(shift=0.3, stretch=1.4)
    samples = 100_000
    z = plain.posterior(BATCH).draw(SamplingNoise(5), samples=samples)
    ratios = plain.posterior(BATCH).log_prob(z) - GIVEN.prior.log_prob(z)
    expected = normal.kl(BATCH, normal.posterior(BATCH), z)
    error = ratios.std(0) / samples**0.5
    assert (abs(plain.kl(BATCH, plain.posterior(BATCH), z) - expected) < 4 * error).all()


def test_the_sampled_kl_of_a_mixture_agrees_with_its_integral():
    loc = torch.tensor([[0.4]], dtype=torch.float64)
    posterior, prior = Mixture(loc, 0.5 + 0 * loc), DiagonalNormal(0 * loc[0], 1 + 0 * loc[0])
    line = torch.linspace(-8, 8, 100_001, dtype=torch.float64)
    log_q, log_p = (each.log_prob(line.view(-1, 1, 1)).flatten() for each in (posterior, prior))
    integral = torch.trapezoid(log_q.exp() * (log_q - log_p), line)
    model, samples = linear(kind="mixture"), 100_000
    model.prior = lambda y=None: prior
    z = posterior.draw(SamplingNoise(1, 0), samples=samples)
    error = (posterior.log_prob(z) - prior.log_prob(z)).std() / samples**0.5
    assert abs(model.kl(BATCH, posterior, z) - integral) < 4 * error


def test_at_the_exact_posterior_every_sampled_elbo_is_log_p():
    model = linear(kind="plain")
    for first in range(20):
        loss, terms = model.loss(BATCH, EvaluationNoise(BATCH.indices, first), step=0)
        torch.testing.assert_close(terms["elbo"], GIVEN.log_marginal, rtol=1e-12, atol=0)
        torch.testing.assert_close(loss, -GIVEN.log_marginal, rtol=1e-12, atol=0)


def test_at_the_exact_posterior_the_elbo_with_the_kl_in_closed_form_is_log_p_in_the_mean():
    model = linear()
    draws = torch.stack(
        [model.loss(BATCH, SamplingNoise(5, seed), step=0)[1]["elbo"] for seed in range(2000)]
    )
    assert (draws.std(0) > 0.1).all()
    assert (abs(draws.mean(0) - GIVEN.log_marginal) < 4 * draws.std(0) / 2000**0.5).all()


@pytest.mark.parametrize("kind", ["normal", "plain", "mixture"])
def test_the_loss_is_minus_the_elbo_and_its_terms_keep_no_graph(kind):
    model = linear(kind=kind, shift=0.2, stretch=1.3)
    loss, terms = model.loss(BATCH, EvaluationNoise(BATCH.indices), step=0)
    assert tuple(terms) == tuple(model.terms) == ("elbo", "log_likelihood", "kl")
    assert all(term.shape == (5,) and not term.requires_grad for term in terms.values())
    torch.testing.assert_close(terms["elbo"], terms["log_likelihood"] - terms["kl"])
    assert torch.equal(loss.detach(), -terms["elbo"])
    loss.mean().backward()
    assert model.shift.grad != 0


@pytest.mark.parametrize("kind", ["normal", "plain", "mixture"])
def test_the_figures_are_the_loss_and_its_terms(kind):
    model = linear(kind=kind, shift=0.2)
    figures = model.measure(BATCH, EvaluationNoise(BATCH.indices))
    assert list(figures) == list(model.figures)
    loss, terms = model.loss(BATCH, EvaluationNoise(BATCH.indices), step=0)
    assert all(torch.equal(figures[name], each) for name, each in ({"loss": loss} | terms).items())


def test_the_figures_stay_the_elbo_whatever_a_model_trains_on():
    class Other(Linear):
        def loss(self, batch, noise, step):
            raise AssertionError

    figures = Other(DataSpec((7,), "continuous"), "plain").measure(
        BATCH, EvaluationNoise(BATCH.indices)
    )
    torch.testing.assert_close(figures["elbo"], GIVEN.log_marginal)


def test_a_model_without_more_has_a_code_a_reconstruction_and_no_kl_of_each_latent():
    model = linear(num_classes=4)
    batch = BATCH._replace(y=torch.tensor([0, 1, 2, 3, 0]))
    assert torch.equal(model.encode(batch)["loc"], GIVEN.loc)
    mean = GIVEN.loc @ GIVEN.w.T
    torch.testing.assert_close(model.reconstruct(batch), mean + batch.y.unsqueeze(-1))
    assert model.kl_of_each_latent(model.posterior(batch)) is None
    assert model.schedule(3) == model.exports() == model.protocol() == {}
    assert model.describe() == "Linear"
    assert model.numbers_per_example(training=True) == 7
    assert model.device == torch.device("cpu")


def test_samples_are_decoded_draws_from_the_prior():
    model = linear()
    z = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(5))[0].double()
    for temperature in (1.0, 0.3, 0.0):
        drawn = model.sample(4, SamplingNoise(4, 5), temperature=temperature)
        torch.testing.assert_close(drawn, temperature * z @ GIVEN.w.T)


@pytest.mark.parametrize("n", [0, 1, 7, 15])
def test_samples_do_not_depend_on_how_many_are_decoded_together(n, monkeypatch):
    whole = linear().sample(n, SamplingNoise(n, 5))
    monkeypatch.setattr(base, "_DECODED_TOGETHER", 7)
    model = linear()
    torch.testing.assert_close(model.sample(n, SamplingNoise(n, 5)), whole)
    assert whole.shape == (n, 7)
    assert [count for count, _ in model.decoded] == {0: [0], 1: [1], 7: [7], 15: [7, 7, 1]}[n]


def test_a_conditional_model_draws_the_labels_that_it_is_not_given(monkeypatch):
    monkeypatch.setattr(base, "_DECODED_TOGETHER", 150)
    model, generator = linear(num_classes=4), torch.Generator().manual_seed(5)
    z = torch.randn(1, 400, 3, generator=generator)[0].double()
    y = torch.randint(4, (400,), generator=generator)
    drawn = model.sample(400, SamplingNoise(400, 5))
    torch.testing.assert_close(drawn, z @ GIVEN.w.T + y.unsqueeze(-1))
    assert torch.equal(torch.cat([labels for _, labels in model.decoded]), y)
    given = model.sample(400, SamplingNoise(400, 5), y=torch.full((400,), 3))
    torch.testing.assert_close(given, z @ GIVEN.w.T + 3)


def test_a_vae_and_the_defaults_agree_where_the_vae_has_its_own():
    model = build_vae(digits(), **SMALL).double()
    batch = Batch(torch.rand(4, 1, 28, 28).double(), None, torch.arange(4))
    own = model.measure(batch, EvaluationNoise(batch.indices))
    default = LatentModel.measure(model, batch, EvaluationNoise(batch.indices))
    for name, values in default.items():
        torch.testing.assert_close(values, own[name], rtol=1e-12, atol=0)
    loss, terms = model.loss(batch, EvaluationNoise(batch.indices), step=0)
    expected, _ = LatentModel.loss(model, batch, EvaluationNoise(batch.indices), step=0)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert tuple(terms) == tuple(LatentModel.terms)


def test_a_latent_model_is_five_methods():
    assert Model.__abstractmethods__ == {"loss", "measure", "sample"}
    five = {"prior", "posterior", "log_likelihood", "decode", "point"}
    assert LatentModel.__abstractmethods__ == five
