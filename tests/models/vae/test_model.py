"""The model's methods, the networks that it holds, and the settings that it takes."""

import pytest
import torch
from pydantic import ValidationError

from conftest import build_vae
from linear_gaussian import noise_of
from vae_lightning import Batch, DataSpec, SamplingNoise
from vae_lightning.models.noise import EvaluationNoise, TrainingNoise
from vae_lightning.models.vae.networks import (
    ConvolutionalDecoder,
    ConvolutionalEncoder,
    MLPDecoder,
    MLPEncoder,
)

CPU = torch.device("cpu")


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return build_vae(latent_dim=5, hidden_dims=[30])


def test_the_default_network_is_the_examples():
    shapes = {
        name: tuple(weight.shape)
        for name, weight in build_vae().named_parameters()
        if name.endswith("weight")
    }
    # The example's two heads of 20 are one head of 40.
    assert list(shapes.values()) == [(400, 784), (40, 400), (400, 20), (784, 400)]


def test_the_decoder_mirrors_the_encoder():
    vae = build_vae(latent_dim=2, hidden_dims=[50, 30])
    widths = [
        layer.out_features for layer in vae.decoder.layers if isinstance(layer, torch.nn.Linear)
    ]
    assert widths == [30, 50, 784]


@pytest.mark.parametrize("leading", [(), (4,), (3, 4)])
def test_networks_keep_all_leading_dimensions(leading):
    loc, scale = MLPEncoder((1, 6, 5), (7,), 2)(torch.rand(*leading, 1, 6, 5))
    assert loc.shape == scale.shape == (*leading, 2)
    assert (scale > 0).all()
    assert MLPDecoder(2, (7,), (1, 6, 5))(torch.randn(*leading, 2)).shape == (*leading, 1, 6, 5)
    loc, scale = ConvolutionalEncoder((1, 12, 8), (3, 4), (7,), 2)(torch.rand(*leading, 1, 12, 8))
    assert loc.shape == scale.shape == (*leading, 2)
    decoded = ConvolutionalDecoder(2, (7,), (4, 3), (2, 12, 8))(torch.randn(*leading, 2))
    assert decoded.shape == (*leading, 2, 12, 8)


def test_a_convolutional_network_sees_each_image_by_itself():
    torch.manual_seed(0)
    vae = build_vae(network="convolutional", channels=[3, 4], hidden_dims=[7], latent_dim=2)
    batch = Batch(torch.rand(5, 1, 28, 28))
    torch.testing.assert_close(vae.reconstruct(batch)[3:4], vae.reconstruct(batch.take([3])))


def test_sides_that_can_not_be_halved_so_often_are_refused():
    with pytest.raises(ValueError, match=r"channels=\[2, 2, 2\]: each layer halves"):
        build_vae(network="convolutional", channels=[2, 2, 2])


def test_distributions_have_the_shapes_that_the_docstrings_say(vae):
    prior, posterior = vae.prior(), vae.posterior(Batch(torch.rand(4, 1, 28, 28)))
    assert (prior.batch_shape, prior.event_shape) == ((), (5,))
    assert (posterior.batch_shape, posterior.event_shape) == ((4,), (5,))
    likelihood = vae.likelihood(torch.randn(2, 4, 5))
    assert (likelihood.batch_shape, likelihood.event_shape) == ((2, 4), (1, 28, 28))


def test_the_prior_is_standard_normal_and_moves_with_the_model(vae):
    assert torch.equal(vae.prior().loc, torch.zeros(5))
    assert torch.equal(vae.prior().scale, torch.ones(5))
    assert vae.double().prior().loc.dtype == torch.float64


def test_reconstructions_and_samples_are_means_in_the_unit_interval(vae):
    batch = Batch(torch.rand(3, 1, 28, 28))
    for pictures in (vae.reconstruct(batch), vae.sample(3, SamplingNoise(3))):
        assert pictures.shape == (3, 1, 28, 28)
        assert 0 < pictures.min() < pictures.max() < 1
    torch.testing.assert_close(
        vae.reconstruct(batch), vae.likelihood(vae.posterior(batch).loc).mean
    )


def test_the_code_of_an_image_is_the_mean_and_the_scale_of_its_posterior(vae):
    batch = Batch(torch.rand(3, 1, 28, 28))
    code, posterior = vae.encode(batch), vae.posterior(batch)
    assert list(code) == ["loc", "scale"]
    assert torch.equal(code["loc"], posterior.loc)
    assert torch.equal(code["loc"], vae.point(batch))
    assert torch.equal(code["scale"], posterior.scale)


def test_labels_may_be_passed_and_change_nothing(vae):
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([1, 2, 3])
    assert torch.equal(vae.reconstruct(Batch(images, labels)), vae.reconstruct(Batch(images)))


def test_the_same_generator_gives_the_same_samples(vae):
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)]
    draws = [vae.sample(3, SamplingNoise(3, generator)) for generator in generators]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_reparameterised_samples_have_the_distributions_moments(vae):
    posterior = vae.posterior(Batch(torch.rand(1, 1, 28, 28)))
    noise = torch.randn(100_000, 1, 5, generator=torch.Generator().manual_seed(0))
    z = posterior.reparameterize(noise)
    torch.testing.assert_close(z.mean(0), posterior.loc, rtol=0, atol=0.02)
    torch.testing.assert_close(z.std(0), posterior.scale, rtol=0.02, atol=0)


def test_the_posteriors_scale_can_be_a_softplus():
    encoder = MLPEncoder((1, 2, 2), (), 3, posterior_scale="softplus")
    x = torch.rand(4, 1, 2, 2)
    torch.testing.assert_close(
        encoder(x)[1], torch.nn.functional.softplus(encoder.layers(x.flatten(1))[:, 3:])
    )


@pytest.fixture(params=["mlp", "convolutional"])
def conditional(request):
    torch.manual_seed(0)
    return build_vae(
        network=request.param, channels=[3, 4], latent_dim=5, hidden_dims=[30], num_classes=10
    )


def test_a_conditional_models_posterior_and_likelihood_depend_on_the_label(conditional):
    images, z = torch.rand(1, 1, 28, 28).expand(10, -1, -1, -1), torch.randn(1, 5).expand(10, -1)
    labels = torch.arange(10)
    assert len(conditional.posterior(Batch(images, labels)).loc.unique(dim=0)) == 10
    assert len(conditional.likelihood(z, labels).mean.flatten(1).unique(dim=0)) == 10
    likelihood = conditional.likelihood(torch.randn(3, 10, 5), labels)
    assert (likelihood.batch_shape, likelihood.event_shape) == ((3, 10), (1, 28, 28))


def test_a_conditional_model_refuses_to_do_without_labels_but_draws_them_for_samples(conditional):
    for function, argument in (
        (conditional.posterior, Batch(torch.rand(2, 1, 28, 28))),
        (conditional.likelihood, torch.randn(2, 5)),
    ):
        with pytest.raises(ValueError, match="needs labels"):
            function(argument)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(400, 5, generator=generator)
    labels = torch.randint(10, (400,), generator=generator)
    assert len(labels.unique()) == 10
    drawn = conditional.sample(400, SamplingNoise(400, torch.Generator().manual_seed(3)))
    torch.testing.assert_close(drawn, conditional.likelihood(noise, labels).mean)


@pytest.mark.parametrize("name", ["continuous_bernoulli", "gaussian", "discretized_logistic"])
def test_every_family_decodes_images(name):
    vae = build_vae(likelihood=name, pixel_scale="per_pixel", latent_dim=2, hidden_dims=[5])
    batch = Batch(torch.rand(3, 1, 28, 28))
    assert vae.reconstruct(batch).shape == (3, 1, 28, 28)
    assert vae.log_likelihood(batch, torch.randn(2, 3, 2)).shape == (2, 3)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "discretized_logistic"])
@pytest.mark.parametrize("network", ["mlp", "convolutional"])
def test_densities_are_computed_in_full_precision_under_autocast(likelihood, network):
    torch.manual_seed(0)
    settings = {
        "latent_dim": 3,
        "hidden_dims": [20],
        "channels": [2, 3],
        "pixel_scale": "per_pixel",
    }
    vae = build_vae(likelihood=likelihood, network=network, **settings)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        posterior = vae.posterior(Batch(torch.rand(4, 1, 28, 28)))
        likelihood_ = vae.likelihood(posterior.loc)
    assert posterior.loc.dtype == posterior.scale.dtype == likelihood_.mean.dtype == torch.float32


# -- training and evaluation ----------------------------------------------------------------------


def test_gradients_reach_every_parameter(subset):
    vae = build_vae()
    batch = next(iter(subset.train_dataloader()))
    vae.loss(batch, TrainingNoise(0).of(0, 32, CPU), step=0)[0].mean().backward()
    assert all(
        weight.grad is not None and weight.grad.abs().sum() > 0 for weight in vae.parameters()
    )


@pytest.mark.parametrize("objective", ["sgvb_b", "sgvb_a", "iwae"])
def test_the_gradient_of_the_loss_matches_finite_differences(subset, objective):
    torch.manual_seed(0)
    settings = {"activation": "tanh", "objective": objective}
    vae = build_vae(latent_dim=4, hidden_dims=[20], **settings).double()
    batch = next(iter(subset.train_dataloader()))
    batch = batch._replace(x=batch.x.double())
    noise = noise_of(2, 32, 4)
    weights = list(vae.parameters())
    directions = [torch.randn_like(weight) for weight in weights]

    def loss_at(step):
        with torch.no_grad():
            for weight, direction in zip(weights, directions, strict=True):
                weight.add_(direction, alpha=step)
            loss = -vae.objective(batch, noise)[0].mean()
            for weight, direction in zip(weights, directions, strict=True):
                weight.sub_(direction, alpha=step)
        return loss

    gradients = torch.autograd.grad(-vae.objective(batch, noise)[0].mean(), weights)
    slope = sum(
        (gradient * direction).sum()
        for gradient, direction in zip(gradients, directions, strict=True)
    )
    torch.testing.assert_close((loss_at(1e-6) - loss_at(-1e-6)) / 2e-6, slope, rtol=1e-5, atol=0)


def test_more_samples_estimate_the_same_bound_with_less_variance(subset):
    torch.manual_seed(0)
    vae = build_vae(latent_dim=3, hidden_dims=[20])
    batch = next(iter(subset.train_dataloader()))
    source = TrainingNoise(0)

    def bound(number, samples):
        noise = source.of(number, 32, CPU).normal(3, samples=samples)
        return vae.objective(batch, noise)[0].mean()

    with torch.no_grad():
        draws = {
            samples: torch.stack([bound(number, samples) for number in range(200)])
            for samples in (1, 8)
        }
    assert draws[8].std() < 0.6 * draws[1].std()
    assert abs(draws[8].mean() - draws[1].mean()) < 4 * draws[1].std() / 200**0.5


def test_the_importance_bound_does_not_move_with_the_images_decoded_together(subset, monkeypatch):
    vae = build_vae(latent_dim=3, hidden_dims=[20], objective="iwae", num_samples=4)
    batch = next(iter(subset.test_dataloader()))
    noise = EvaluationNoise(batch.indices).normal(3, samples=4)
    with torch.no_grad():
        whole = vae.importance_bound(batch, noise)
        monkeypatch.setattr("vae_lightning.models.vae.model._DECODED_TOGETHER", 28)
        torch.testing.assert_close(vae.importance_bound(batch, noise), whole, rtol=1e-6, atol=0)
        measured = vae.measure(batch, EvaluationNoise(batch.indices))
        assert torch.equal(measured["importance_bound"], vae.importance_bound(batch, noise))


def test_what_is_measured_are_the_figures_in_their_order(subset):
    batch = next(iter(subset.test_dataloader()))
    for objective, criterion in (("sgvb_b", "elbo"), ("iwae", "importance_bound")):
        vae = build_vae(latent_dim=3, hidden_dims=[20], objective=objective)
        with torch.no_grad():
            figures = vae.measure(batch, EvaluationNoise(batch.indices))
        assert list(figures) == list(vae.figures)
        assert all(values.shape == (200,) for values in figures.values())
        assert vae.criterion == criterion


# -- settings -------------------------------------------------------------------------------------


def test_all_weights_start_from_the_scale_that_is_set():
    torch.manual_seed(0)
    weights = torch.cat(
        [weight.detach().flatten() for weight in build_vae(initial_scale=0.1).parameters()]
    )
    assert abs(weights.mean()) < 1e-3
    assert abs(weights.std() - 0.1) < 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"latent_dim": 0},
        {"latent_dim": "abc"},
        {"latent_dim": True},
        {"latent_dim": 2.0},
        {"hidden_dims": [0]},
        {"objective": "elbow"},
        {"num_samples": 0},
        {"activation": "none"},
        {"initial_scale": 0.0},
        {"width": 3},
        {"seed": 1},
    ],
    ids=str,
)
def test_values_that_make_no_model_are_refused(wrong):
    with pytest.raises(ValidationError):
        build_vae(**wrong)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "iwae", "kl_weight": 2.0}, "objective=iwae: its bound has no KL term"),
        ({"objective": "iwae", "free_bits": 0.1}, "objective=iwae: its bound has no KL term"),
        (
            {"objective": "iwae", "kl_schedule": "linear", "kl_schedule_steps": 5},
            "objective=iwae: its bound has no KL term",
        ),
        (
            {"objective": "sgvb_a", "free_bits": 0.1},
            "free_bits=0.1: needs the KL in closed form",
        ),
        ({"kl_schedule": "cyclical"}, "kl_schedule=cyclical: needs kl_schedule_steps"),
        ({"num_classes": 5}, "num_classes=5: the data has 10 labels"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_vae(**settings)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        (
            DataSpec((1, 28, 28), "unit"),
            {"num_classes": 10},
            "num_classes=10: the data has no labels",
        ),
        (DataSpec((64,), "unit"), {}, r"network=mlp: needs images \[C, H, W\], .* shape \[64\]"),
        (DataSpec((1, 28, 28), "tokens", 5), {}, "likelihood=bernoulli: the data are tokens"),
        (DataSpec((1, 28, 28), "continuous"), {}, "likelihood=bernoulli: not a density"),
        (
            DataSpec((1, 28, 28), "binary"),
            {"likelihood": "gaussian"},
            "likelihood=gaussian: black-and-white images need",
        ),
    ],
)
def test_data_that_the_settings_do_not_suit_is_refused(spec, settings, message):
    with pytest.raises(ValueError, match=message):
        build_vae(spec, **settings)


@pytest.mark.parametrize(
    "other",
    [{"network": "convolutional"}, {"likelihood": "gaussian", "pixel_scale": "per_pixel"}],
    ids=str,
)
def test_a_mean_that_the_last_bias_can_not_hold_is_refused(other):
    with pytest.raises(ValueError, match="initial_mean=true: needs network=mlp"):
        build_vae(initial_mean=True, **other)


def test_a_scale_that_the_family_has_not_leaves_the_last_bias_to_the_mean():
    assert build_vae(initial_mean=True, pixel_scale="per_pixel").family.parameters_per_pixel == 1
