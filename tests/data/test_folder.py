"""Folders of a user's own pictures, and arrays, as data sets."""

import gzip
import hashlib
import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image

from vae_lightning.data.arrays import ArraysDataModule
from vae_lightning.data.folder import FolderDataModule
from vae_lightning.data.formats import write_idx
from vae_lightning.errors import DatasetUnavailable


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache folder of this test alone."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def fill(folder, count, colour=False, size=(12, 10)):
    """Write pictures of random levels, whose first pixel is their number."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if colour else (size[1], size[0])
    for number in range(count):
        levels = np.random.RandomState(number).randint(0, 256, shape, dtype=np.uint8)
        levels[0, 0] = number
        Image.fromarray(levels).save(folder / f"{number:03}.png")
    return folder


def ready(data):
    data.prepare_data()
    data.setup()
    return data


def state_of(folder):
    return {
        str(file): (file.stat().st_mtime_ns, file.read_bytes() if file.is_file() else None)
        for file in sorted(folder.rglob("*"))
    }


def test_shares_are_held_out_by_the_seed_of_the_split(tmp_path):
    folder = fill(tmp_path / "mine", 40)
    data = ready(FolderDataModule(dir=str(folder), size=[10, 12], val_share=0.2, test_share=0.1))
    sizes = [len(each) for each in (data.train_indices, data.val_indices, data.test_indices)]
    assert sizes == [28, 8, 4]
    everything = torch.cat([data.train_indices, data.val_indices, data.test_indices])
    assert everything.sort().values.tolist() == list(range(40))
    again = FolderDataModule(dir=str(folder), seed=5, val_share=0.2)
    assert torch.equal(again.test_indices, data.test_indices)
    other = FolderDataModule(dir=str(folder), split_seed=5, val_share=0.2)
    assert not torch.equal(other.test_indices, data.test_indices)
    for split in ("train", "val", "test"):
        for batch in data.split(split):
            first = (batch.x[:, 0, 0, 0] * 255).round().long()
            assert torch.equal(first, batch.indices)
    assert data.spec.shape == (1, 10, 12)
    assert data.spec.class_names == ()


def test_subfolders_are_labels_and_those_of_splits_are_splits(tmp_path):
    for split, count in (("train", 6), ("test", 4)):
        for label in ("dog", "cat"):
            fill(tmp_path / split / label, count)
    data = ready(FolderDataModule(dir=str(tmp_path), val_share=0.25))
    assert data.spec.class_names == ("cat", "dog")
    names = [data.files[number].parent for number in data.test_indices]
    assert {name.parent.name for name in names} == {"test"}
    assert len(data.test_indices) == 8
    assert len(data.val_indices) == 5
    batch = next(iter(data.split("test")))
    assert [data.spec.class_names[y] for y in batch.y] == [name.name for name in names]


def test_folders_beside_those_of_splits_are_refused_and_other_names_of_val_known(tmp_path):
    for split, count in (("train", 6), ("validation", 3), ("test", 4)):
        fill(tmp_path / split, count)
    data = FolderDataModule(dir=str(tmp_path))
    assert [len(each) for each in (data.train_indices, data.val_indices)] == [6, 3]
    fill(tmp_path / "tset", 2)
    with pytest.raises(ValueError, match="tset beside the splits train, val, test"):
        FolderDataModule(dir=str(tmp_path))


def test_a_run_directory_in_the_folder_is_left_out(tmp_path):
    folder = fill(tmp_path / "mine", 20)
    fill(folder / "outputs" / "train" / "a" / "images", 3)
    (folder / "outputs" / "train" / "a" / ".hydra").mkdir()
    assert len(FolderDataModule(dir=str(folder)).files) == 20


def test_pictures_beside_subfolders_have_no_labels(tmp_path):
    fill(tmp_path / "a", 3)
    fill(tmp_path / "b", 3)
    fill(tmp_path, 2)
    data = ready(FolderDataModule(dir=str(tmp_path)))
    assert data.spec.class_names == ()
    assert next(iter(data.split("train"))).y is None


def test_nothing_in_the_folder_changes_and_the_second_time_is_read_from_the_cache(
    tmp_path, cache, monkeypatch
):
    folder = fill(tmp_path / "mine", 20)
    before = state_of(folder)
    first = ready(FolderDataModule(dir=str(folder)))
    assert state_of(folder) == before
    [kept] = (cache / "vae_lightning" / "pictures").iterdir()

    def unread(*arguments):
        raise AssertionError("read again")

    with monkeypatch.context() as patch:
        patch.setattr("vae_lightning.data.folder.read_pictures", unread)
        second = ready(FolderDataModule(dir=str(folder)))
    assert torch.equal(first.x["train"], second.x["train"])
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    third = ready(FolderDataModule(dir=str(folder)))  # a damaged one is written anew
    assert torch.equal(first.x["train"], third.x["train"])
    assert first.hparams["data"]["content"] == third.hparams["data"]["content"]


def test_a_picture_that_changes_is_read_anew_and_changes_the_digest(tmp_path):
    folder = fill(tmp_path / "mine", 20)
    first = ready(FolderDataModule(dir=str(folder)))
    Image.new("L", (12, 10), 200).save(folder / "003.png")
    os.utime(folder / "003.png", ns=(1, 1))
    second = ready(FolderDataModule(dir=str(folder)))
    assert second.x["train"][3].min() == 200
    assert first.protocol()["content"] != second.protocol()["content"]


def test_a_cache_that_can_not_be_written_is_done_without(tmp_path, cache, caplog):
    (cache / "vae_lightning").touch()
    folder = fill(tmp_path / "mine", 20)
    with caplog.at_level(logging.WARNING):
        ready(FolderDataModule(dir=str(folder)))
    assert "the pictures aren't kept" in caplog.text


def test_guesses_are_said_once_and_kept(tmp_path, caplog):
    folder = tmp_path / "scans"
    folder.mkdir()
    for number in range(10):
        page = Image.new("L", (40, 40), 250)
        page.paste(10, (15, 5 + number, 20, 30))
        page.save(folder / f"{number}.jpg")
    data = FolderDataModule(dir=str(folder))
    with caplog.at_level(logging.INFO):
        ready(data).prepare_data()
    said = "pictures; data.channels=1; data.invert=true, for they are dark on bright"
    assert caplog.text.count(said) == 1
    assert (data.settings["channels"], data.settings["invert"]) == (1, True)
    assert data.x["train"][:, 0, 0, 0].max() < 10  # the paper is black now
    plain = ready(FolderDataModule(dir=str(folder), invert=False))
    assert plain.x["train"][:, 0, 0, 0].min() > 240


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dir": "nosuch"}, "dir=nosuch: nosuch is no folder"),
        ({"size": [1, 2, 3]}, "size"),
        ({"channels": 2}, "channels"),
        ({"test_share": 1.0}, "test_share"),
        ({"size": 400, "memory_mb": 3}, "memory_mb=3: .* a size of 387 would fit"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, settings, message):
    folder = fill(tmp_path / "mine", 20)
    with pytest.raises(ValueError, match=message):
        FolderDataModule(**{"dir": str(folder), **settings})


def test_too_few_pictures_are_refused(tmp_path):
    fill(tmp_path, 2)
    with pytest.raises(ValueError, match="2 images: too few"):
        FolderDataModule(dir=str(tmp_path))


def test_a_damaged_picture_is_named(tmp_path):
    folder = fill(tmp_path / "mine", 20)
    (folder / "004.png").write_bytes(b"x")
    with pytest.raises(DatasetUnavailable, match=r"data\.dir=.*mine: mine/004\.png is no picture"):
        FolderDataModule(dir=str(folder)).prepare_data()


# -- arrays ----------------------------------------------------------------------------------------


def levels(*shape):
    return np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)


def arrays(tmp_path, name, **content):
    file = tmp_path / name
    np.savez(file, **content)
    return str(file)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((20, 5, 6), (1, 5, 6)),
        ((20, 1, 5, 6), (1, 5, 6)),
        ((20, 5, 6, 3), (3, 5, 6)),
        ((20, 3, 5, 6), (3, 5, 6)),
    ],
)
def test_an_array_s_axes_are_brought_to_channels_first(tmp_path, shape, expected):
    x = levels(*shape)
    data = ready(ArraysDataModule(file=arrays(tmp_path, "mine.npz", x=x)))
    assert data.spec.shape == expected
    batch = next(iter(data.split("test")))
    first = torch.from_numpy(x[data.test_indices[0]])
    first = first.permute(2, 0, 1) if shape[-1] == 3 else first.view(expected)
    assert torch.equal((batch.x[0] * 255).round().to(torch.uint8), first)


def test_labels_and_splits_of_a_file_are_kept(tmp_path):
    content = {
        "x_train": levels(20, 4, 4),
        "y_train": np.arange(20) % 3,
        "x_test": levels(6, 4, 4),
        "y_test": np.arange(6) % 3,
    }
    data = ready(ArraysDataModule(file=arrays(tmp_path, "mine.npz", **content)))
    assert data.spec.class_names == ("0", "1", "2")
    assert data.test_indices.tolist() == list(range(20, 26))
    assert next(iter(data.split("test"))).y.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(data.val_indices) == 3


def test_other_kinds_of_files_hold_the_same(tmp_path):
    x, y = levels(30, 4, 4), np.arange(30, dtype=np.uint8) % 3
    np.save(tmp_path / "a.npy", x)
    torch.save({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, tmp_path / "a.pt")
    torch.save((torch.from_numpy(x), torch.from_numpy(y)), tmp_path / "b.pt")
    (tmp_path / "a-idx3-ubyte").write_bytes(write_idx(x))
    (tmp_path / "a-idx1-ubyte.gz").write_bytes(gzip.compress(write_idx(y)))
    pair = [str(tmp_path / "a-idx3-ubyte"), str(tmp_path / "a-idx1-ubyte.gz")]
    files = [str(tmp_path / "a.npy"), str(tmp_path / "a.pt"), str(tmp_path / "b.pt"), pair]
    found = [ready(ArraysDataModule(file=file)) for file in files]
    assert [len(each.spec.class_names) for each in found] == [0, 3, 3, 3]
    for each in found:
        assert torch.equal(each.x["train"][:, 0], torch.from_numpy(x))


def test_numbers_between_0_and_1_are_rounded_to_levels(tmp_path):
    x = np.linspace(0, 1, 20 * 4 * 4, dtype=np.float32).reshape(20, 4, 4)
    data = ready(ArraysDataModule(file=arrays(tmp_path, "mine.npz", x=x)))
    assert np.abs(data.x["train"][:, 0].numpy() / 255 - x).max() <= 0.5 / 255 + 1e-6
    assert data.spec.values == "unit"


def test_bytes_in_an_npz_file_are_in_memory_and_so_is_what_unpacks_to_more(tmp_path):
    file = arrays(tmp_path, "mine.npz", x=levels(2000, 32, 32))
    with pytest.raises(ValueError, match="memory_mb=1: 2,000 images"):
        ArraysDataModule(file=file, memory_mb=1)
    np.savez_compressed(tmp_path / "bomb.npz", x=levels(20, 4, 4), junk=np.zeros(50_000_000))
    with pytest.raises(ValueError, match=r"400 MB once unpacked, for data\.memory_mb=10"):
        ArraysDataModule(file=str(tmp_path / "bomb.npz"), memory_mb=10)


def test_bytes_in_an_npy_file_stay_on_disk(tmp_path):
    np.save(tmp_path / "a.npy", levels(3000, 32, 32, 3))
    data = ready(ArraysDataModule(file=str(tmp_path / "a.npy"), memory_mb=1))
    assert data.x["train"].shape == (3000, 3, 32, 32)
    data.train_dataloader().set_epoch(1)
    batch = next(iter(data.train_dataloader()))
    stored = np.load(tmp_path / "a.npy")[batch.indices.numpy()].transpose(0, 3, 1, 2)
    assert np.array_equal((batch.x * 255).round().numpy().astype(np.uint8), stored)


class Touch:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (self.file,)


WRONG = {
    "text": ({"x": np.array(["a"] * 20)}, "holds something else than arrays of numbers"),
    "no images": ({"x_test": levels(3, 4, 4), "z": levels(3)}, "x or x_train is missing"),
    "shape": ({"x": levels(20, 4)}, r"an array of shape \[20, 4\]"),
    "channels": ({"x": levels(20, 2, 4, 4)}, "of 1 or 3 channels"),
    "range": ({"x": np.full((20, 4, 4), 1.5)}, "numbers from 1.5 to 1.5"),
    "nan": ({"x": np.full((20, 4, 4), np.nan)}, "numbers from nan to nan"),
    "integers": ({"x": np.zeros((20, 4, 4), int)}, "images are uint8, or floats"),
    "labels": ({"x": levels(20, 4, 4), "y": np.arange(19)}, "20 images and 19 labels"),
    "negative": ({"x": levels(20, 4, 4), "y": np.full(20, -1)}, "labels must be whole numbers"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_an_array_of_something_else_is_refused(tmp_path, content, message):
    file = arrays(tmp_path, "mine.npz", **content)
    with pytest.raises(ValueError, match=f"file=.*mine.npz: .*{message}"):
        ArraysDataModule(file=file)


def test_nothing_in_a_file_of_arrays_is_run(tmp_path):
    canary = tmp_path / "ran"
    objects = np.array([Touch(str(canary))], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=objects)
    torch.save(Touch(str(canary)), tmp_path / "a.pt")
    for name in ("a.npy", "a.npz", "a.pt"):
        with pytest.raises(ValueError, match="damaged, or with objects in it"):
            ArraysDataModule(file=str(tmp_path / name))
    assert not canary.exists()
    with np.load(tmp_path / "a.npz", allow_pickle=True) as content:
        _ = content["x"]
    assert canary.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [("nosuch.npz", "not found"), ("a.txt", r"must be an \.npz, \.npy or \.pt file")],
)
def test_a_file_of_no_arrays_is_refused(tmp_path, name, message):
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=message):
        ArraysDataModule(file=str(tmp_path / name))


def test_a_digest_is_of_the_images_and_not_of_how_they_are_kept(tmp_path):
    x = levels(30, 4, 4, 3)
    np.save(tmp_path / "a.npy", x)
    of_npy = ready(ArraysDataModule(file=str(tmp_path / "a.npy")))
    of_npz = ready(ArraysDataModule(file=arrays(tmp_path, "a.npz", x=x)))
    digest = hashlib.sha256(np.ascontiguousarray(x.transpose(0, 3, 1, 2)).tobytes()).hexdigest()
    assert of_npy.hparams["data"]["content"] == of_npz.hparams["data"]["content"] == digest
