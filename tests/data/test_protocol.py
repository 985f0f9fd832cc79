"""Binarisation and dequantisation: what is drawn, when it is drawn anew, and by which seed."""

import pytest
import torch

from conftest import DATA
from small_sets import make
from vae_lightning import MNISTDataModule
from vae_lightning.data.download import read
from vae_lightning.data.protocol import binarize
from vae_lightning.models.noise import keyed_generator


def test_binarised_images_have_the_grey_levels_as_their_mean():
    grey = read("mnist_subset", DATA / "mnist_subset", "test")[0][:5]
    draws = torch.stack([binarize(grey, keyed_generator(seed)) for seed in range(3000)])
    assert set(draws.unique().tolist()) == {0, 255}
    assert torch.equal(
        draws.float().mean(0)[(grey == 0) | (grey == 255)],
        grey[(grey == 0) | (grey == 255)].float(),
    )
    p = grey / 255
    error = (p * (1 - p) / 3000).sqrt()
    assert (abs(draws.float().mean(0) / 255 - p) <= 5 * error).all()


def test_stochastic_binarisation_is_drawn_anew_at_every_visit_and_repeats_with_seed_and_epoch():
    def images(seed, epoch):
        loader = make(seed=seed, binarization="stochastic").train_dataloader()
        loader.set_epoch(epoch)
        batches = list(loader)
        return torch.cat([batch.x for batch in batches])[
            torch.cat([batch.indices for batch in batches]).argsort()
        ]

    assert set(images(1, 0).unique().tolist()) == {0.0, 1.0}
    assert torch.equal(images(1, 0), images(1, 0))
    assert not torch.equal(images(1, 0), images(1, 1))
    assert not torch.equal(images(1, 0), images(2, 0))


def test_dequantised_images_lie_in_their_256th_and_are_drawn_anew_in_training_only():
    data = make(dequantize=True)
    loader = data.train_dataloader()
    visits = []
    for epoch in (0, 0, 1):
        loader.set_epoch(epoch)
        batches = list(loader)
        images, indices = (
            torch.cat([batch.x for batch in batches]),
            torch.cat([batch.indices for batch in batches]),
        )
        within = images * 256 - data.x["train"][indices]
        assert 0 <= within.min() < within.max() <= 1  # 1 by float32's rounding
        visits.append(images[indices.argsort()])
    assert torch.equal(visits[0], visits[1])
    assert not torch.equal(visits[0], visits[2])
    assert abs(within.mean() - 0.5) < 0.002
    for split in ("val", "test"):
        once, again = (
            next(iter(make(dequantize=True, seed=seed).split(split))).x for seed in (1, 2)
        )
        assert torch.equal(once, again)
        assert once.dtype == torch.float32
        assert 0 <= once.min() < once.max() <= 1


@pytest.mark.parametrize("binarization", ["stochastic", "static"])
def test_black_and_white_images_have_nothing_to_dequantise(binarization):
    with pytest.raises(
        ValueError,
        match=f"dequantize=true: spreads grey levels, and binarization={binarization} leaves none",
    ):
        MNISTDataModule(name="mnist_subset", dequantize=True, binarization=binarization, val_size=0)


@pytest.mark.parametrize("binarization", ["stochastic", "static"])
def test_validation_and_test_images_are_drawn_once_whatever_the_seed(binarization):
    one, other = make(seed=1, binarization=binarization), make(seed=2, binarization=binarization)
    for loaders in (
        (one.val_dataloader(), other.val_dataloader()),
        (one.test_dataloader(), other.test_dataloader()),
    ):
        first, second = ([batch.x for batch in loader] for loader in loaders)
        assert torch.equal(torch.cat(first), torch.cat(second))
        assert set(torch.cat(first).unique().tolist()) == {0.0, 1.0}


def test_static_binarisation_shows_the_same_training_images_in_every_epoch():
    loader = make(binarization="static").train_dataloader()
    shown = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        batches = list(loader)
        shown.append(
            torch.cat([batch.x for batch in batches])[
                torch.cat([batch.indices for batch in batches]).argsort()
            ]
        )
    assert torch.equal(*shown)


def test_both_protocols_validate_and_test_on_the_same_images():
    stochastic, static = make(binarization="stochastic"), make(binarization="static")
    assert torch.equal(stochastic.x["test"], static.x["test"])
    assert torch.equal(
        stochastic.x["train"][stochastic.val_indices],
        static.x["train"][static.val_indices],
    )
