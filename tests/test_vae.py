"""The model's five methods, and the networks that it holds."""

import pytest
import torch

from vae_lightning import VAEModule
from vae_lightning.networks import MLPDecoder, MLPEncoder


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
