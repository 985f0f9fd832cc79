"""p(x|z) is a proper distribution over images."""

import itertools

import torch

from vae_lightning.likelihoods import bernoulli


def test_the_masses_of_all_binary_images_sum_to_one():
    logits = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6)), dtype=torch.float64).view(-1, 1, 2, 3)
    torch.testing.assert_close(bernoulli(logits).log_prob(images).exp().sum(), torch.tensor(1.0, dtype=torch.float64))


def test_the_mean_is_the_probability_of_white():
    logits = torch.tensor([[[-2.0, 0.0, 3.0]]])
    torch.testing.assert_close(bernoulli(logits).mean, torch.sigmoid(logits))


def test_extreme_logits_stay_finite():
    logits = torch.full((1, 1, 1, 2), 1e4)
    x = torch.tensor([[[[0.0, 1.0]]]])
    assert bernoulli(logits).log_prob(x).item() == -1e4


def test_log_probabilities_sum_over_the_image_only():
    assert bernoulli(torch.zeros(7, 3, 1, 28, 28)).log_prob(torch.zeros(3, 1, 28, 28)).shape == (7, 3)
