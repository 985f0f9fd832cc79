"""The model's five methods, and the networks that it holds."""

import pytest
import torch

from vae_lightning import VAEModule
from vae_lightning.networks import ConvolutionalDecoder, ConvolutionalEncoder, MLPDecoder, MLPEncoder


@pytest.fixture
def vae():
    torch.manual_seed(0)
    return VAEModule(latent_dim=5, hidden_dims=[30]).vae


def test_the_default_network_is_the_examples():
    shapes = {name: tuple(weight.shape) for name, weight in VAEModule().vae.named_parameters() if name.endswith("weight")}
    # The example's two heads of 20 are one head of 40.
    assert list(shapes.values()) == [(400, 784), (40, 400), (400, 20), (784, 400)]


def test_the_decoder_mirrors_the_encoder():
    vae = VAEModule(latent_dim=2, hidden_dims=[50, 30]).vae
    widths = [layer.out_features for layer in vae.decoder.layers if isinstance(layer, torch.nn.Linear)]
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
    vae = VAEModule(network="convolutional", channels=[3, 4], hidden_dims=[7], latent_dim=2).vae
    images = torch.rand(5, 1, 28, 28)
    torch.testing.assert_close(vae.reconstruct(images)[3:4], vae.reconstruct(images[3:4]))


def test_sides_that_can_not_be_halved_so_often_are_refused():
    with pytest.raises(ValueError, match=r"channels=\[2, 2, 2\]: each layer halves"):
        VAEModule(network="convolutional", channels=[2, 2, 2])


def test_distributions_have_the_shapes_that_the_docstrings_say(vae):
    x = torch.rand(4, 1, 28, 28)
    assert (vae.prior.batch_shape, vae.prior.event_shape) == ((), (5,))
    assert (vae.posterior(x).batch_shape, vae.posterior(x).event_shape) == ((4,), (5,))
    likelihood = vae.likelihood(torch.randn(2, 4, 5))
    assert (likelihood.batch_shape, likelihood.event_shape) == ((2, 4), (1, 28, 28))


def test_the_prior_is_standard_normal_and_moves_with_the_model(vae):
    assert torch.equal(vae.prior.loc, torch.zeros(5))
    assert torch.equal(vae.prior.scale, torch.ones(5))
    assert vae.double().prior.loc.dtype == torch.float64


def test_reconstructions_and_samples_are_means_in_the_unit_interval(vae):
    images = torch.rand(3, 1, 28, 28)
    for pictures in (vae.reconstruct(images), vae.sample(3)):
        assert pictures.shape == (3, 1, 28, 28)
        assert 0 < pictures.min() < pictures.max() < 1
    torch.testing.assert_close(vae.reconstruct(images), vae.likelihood(vae.posterior(images).loc).mean)


def test_labels_may_be_passed_and_change_nothing(vae):
    images, labels = torch.rand(3, 1, 28, 28), torch.tensor([1, 2, 3])
    assert torch.equal(vae.reconstruct(images, labels), vae.reconstruct(images))


def test_the_same_generator_gives_the_same_samples(vae):
    draws = [vae.sample(3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_reparameterised_samples_have_the_distributions_moments(vae):
    posterior = vae.posterior(torch.rand(1, 1, 28, 28))
    noise = torch.randn(100_000, 1, 5, generator=torch.Generator().manual_seed(0))
    z = posterior.reparameterize(noise)
    torch.testing.assert_close(z.mean(0), posterior.loc, rtol=0, atol=0.02)
    torch.testing.assert_close(z.std(0), posterior.scale, rtol=0.02, atol=0)


def test_the_posteriors_scale_can_be_a_softplus():
    encoder = MLPEncoder((1, 2, 2), (), 3, posterior_scale="softplus")
    x = torch.rand(4, 1, 2, 2)
    torch.testing.assert_close(encoder(x)[1], torch.nn.functional.softplus(encoder.layers(x.flatten(1))[:, 3:]))


@pytest.fixture(params=["mlp", "convolutional"])
def conditional(request):
    torch.manual_seed(0)
    return VAEModule(network=request.param, channels=[3, 4], latent_dim=5, hidden_dims=[30], num_classes=10).vae


def test_a_conditional_models_posterior_and_likelihood_go_by_the_label(conditional):
    images, z = torch.rand(1, 1, 28, 28).expand(10, -1, -1, -1), torch.randn(1, 5).expand(10, -1)
    labels = torch.arange(10)
    assert len(conditional.posterior(images, labels).loc.unique(dim=0)) == 10
    assert len(conditional.likelihood(z, labels).mean.flatten(1).unique(dim=0)) == 10
    likelihood = conditional.likelihood(torch.randn(3, 10, 5), labels)
    assert (likelihood.batch_shape, likelihood.event_shape) == ((3, 10), (1, 28, 28))


def test_a_conditional_model_refuses_to_do_without_labels_but_draws_them_for_samples(conditional):
    for function, argument in ((conditional.posterior, torch.rand(2, 1, 28, 28)), (conditional.likelihood, torch.randn(2, 5))):
        with pytest.raises(ValueError, match="asks for labels"):
            function(argument)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(400, 5, generator=generator)
    labels = torch.randint(10, (400,), generator=generator)
    assert len(labels.unique()) == 10
    drawn = conditional.sample(400, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, conditional.likelihood(noise, labels).mean)


@pytest.mark.parametrize("name", ["continuous_bernoulli", "gaussian", "discretized_logistic"])
def test_every_family_decodes_images(name):
    vae = VAEModule(likelihood=name, pixel_scale="per_pixel", latent_dim=2, hidden_dims=[5]).vae
    images = torch.rand(3, 1, 28, 28)
    assert vae.reconstruct(images).shape == (3, 1, 28, 28)
    assert vae.likelihood(torch.randn(2, 3, 2)).log_prob(images).shape == (2, 3)
