"""MNIST: a split that holds still, protocols that are refused together, drawings as digits."""

import gzip
import hashlib
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import pad

from conftest import DATA
from small_sets import indices, make, shrink_larochelle, write_amat
from vae_lightning import MNISTDataModule
from vae_lightning.data.catalogue import DATASETS, data_folder
from vae_lightning.data.download import read


def test_training_and_validation_share_no_image_and_leave_none_out():
    data = make()
    train, val = indices(data.train_dataloader()), indices(data.val_dataloader())
    assert (len(train), len(val)) == (320, 80)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(400))


def test_the_test_set_is_the_test_file_in_its_order():
    data = make(eval_batch_size=64)
    assert torch.equal(indices(data.test_dataloader()), torch.arange(200))
    images = torch.cat([batch.x for batch in data.test_dataloader()])
    assert torch.equal(images, data.x["test"] / 255)


def test_the_split_has_a_seed_of_its_own():
    assert torch.equal(make(seed=1).val_indices, make(seed=2).val_indices)
    assert not torch.equal(make(split_seed=0).val_indices, make(split_seed=1).val_indices)


def test_the_canonical_split_of_mnist_never_moves():
    data = MNISTDataModule()
    assert len(data.train_indices) == 55_000
    assert data.val_indices[:5].tolist() == [17, 28, 50, 66, 72]
    assert int(data.val_indices.sum()) == 150_520_325


def test_setup_reads_once():
    data = make()
    images = data.x["train"]
    data.setup("fit")
    data.setup("test")
    assert data.x["train"] is images


def test_no_validation_images_are_allowed():
    data = make(val_size=0)
    assert len(data.train_indices) == 400
    assert not data.holds_out
    assert data.val_dataloader() == []


def test_the_examples_protocol_validates_on_the_test_images():
    data = make(val_size=0, validate_on_test=True)
    assert torch.equal(indices(data.val_dataloader()), torch.arange(200))
    assert not data.holds_out
    with pytest.raises(ValueError, match=r"validate_on_test=true: .* val_size=80 must be 0"):
        make(validate_on_test=True)


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"batch_size": "many"}, {"val_size": -1}, {"name": "cifar"}],
    ids=str,
)
def test_values_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        make(**wrong)


def test_more_validation_images_than_there_are_is_refused():
    with pytest.raises(
        ValueError, match="val_size=400: mnist_subset has 400 training images, so at most 399"
    ):
        make(val_size=400)


def test_the_folder_of_one_machine_is_no_part_of_the_protocol():
    data = make()
    assert data.hparams["data"]["settings"] == data.settings
    assert "dir" not in data.settings
    assert str(DATA) not in str(data.hparams)


@pytest.fixture
def small_larochelle(monkeypatch):
    return shrink_larochelle(monkeypatch)


def test_the_larochelle_split_is_taken_as_it_is(tmp_path, small_larochelle):
    images = write_amat(tmp_path / "binarized_mnist", small_larochelle)
    data = MNISTDataModule(
        name="larochelle", dir=str(tmp_path), val_size=20, binarization="static", eval_batch_size=50
    )
    data.prepare_data()
    data.setup()
    for split, part in (("train", "train"), ("val", "valid"), ("test", "test")):
        assert torch.equal(next(iter(data.split(split))).x, images[part].float())
    assert next(iter(data.train_dataloader())).y is None
    assert data.spec.class_names == ()


@pytest.mark.parametrize(
    "wrong",
    [{"val_size": 5}, {"val_size": 0}, {"binarization": "none"}, {"binarization": "stochastic"}],
)
def test_the_larochelle_splits_own_validation_images_are_not_chosen_again(wrong, small_larochelle):
    with pytest.raises(ValueError, match="brings its own 20 validation images"):
        MNISTDataModule(**{"name": "larochelle", "val_size": 20, "binarization": "static", **wrong})


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_the_relatives_are_read_from_their_published_compressed_files(tmp_path, monkeypatch, name):
    """Files of the same names and format, with sums of their own, stand in for theirs."""
    folder = data_folder(name, str(tmp_path))
    folder.mkdir(parents=True)
    digests = {}
    for filename in DATASETS[name].files:
        content = gzip.compress((DATA / "mnist_subset" / filename.removesuffix(".gz")).read_bytes())
        (folder / filename).write_bytes(content)
        digests[filename] = hashlib.sha256(content).hexdigest()
    small = replace(DATASETS[name], files=digests, train_size=400, test_size=200)
    monkeypatch.setitem(DATASETS, name, small)
    data = MNISTDataModule(name=name, dir=str(tmp_path), val_size=10)
    data.prepare_data()
    data.setup()
    assert torch.equal(data.x["test"], read("mnist_subset", DATA / "mnist_subset", "test")[0])


# -- drawings -----------------------------------------------------------------------------------


def test_one_of_mnists_own_digits_comes_back_as_it_is_wherever_it_lies(subset):
    for batch in subset.split("test"):
        for digit in batch.x:
            assert torch.equal(subset.take_drawing(pad(digit[0], (31, 0, 2, 17))), digit)


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(200, 100, (20, 10)), (30, 120, (5, 20)), (4, 4, (20, 20)), (90, 1, (20, 1))],
)
def test_a_drawing_fills_a_box_of_20_pixels_whatever_its_size(height, width, box):
    drawing = torch.zeros(280, 280)
    drawing[40 : 40 + height, 60 : 60 + width] = 1
    image = MNISTDataModule().take_drawing(drawing)
    assert image.shape == (1, 28, 28)
    [image] = image
    assert ((image > 0.5).any(1).sum(), (image > 0.5).any(0).sum()) == box
    rows = image.sum(1) @ torch.arange(28.0) / image.sum()
    assert rows.item() == pytest.approx(14, abs=0.5)


def test_an_empty_drawing_is_black():
    black = MNISTDataModule().take_drawing(torch.zeros(280, 280))
    assert torch.equal(black, torch.zeros(1, 28, 28))


def test_ink_that_is_heavy_at_one_end_stays_in_the_frame():
    drawing = torch.full((20, 20), 0.01)
    drawing[0] = 1
    image = MNISTDataModule().take_drawing(drawing)
    assert image.sum().item() == pytest.approx(drawing.sum().item())
