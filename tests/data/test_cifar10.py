"""CIFAR-10's reader, on an archive that is made here."""

import hashlib
import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import typed
from vae_lightning.data import catalogue
from vae_lightning.data.cifar10 import CIFAR10, parse_archive
from vae_lightning.errors import DatasetUnavailable


def archive(each=4, names=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4")):
    """Return an archive of records, with the labels and images of its training part."""
    content, parts = io.BytesIO(), []
    with tarfile.open(fileobj=content, mode="w:gz") as written:
        for number, name in enumerate([*names, "data_batch_5", "test_batch"]):
            random = np.random.RandomState(number)
            records = random.randint(0, 256, (each, 3073), dtype=np.uint8)
            records[:, 0] %= 10
            parts.append(records)
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = records.size
            written.addfile(member, io.BytesIO(records.tobytes()))
    return content.getvalue(), np.concatenate(parts[:-1])


def test_records_are_a_label_and_three_planes():
    content, records = archive()
    x, y = parse_archive(content, "train")
    assert torch.equal(y, torch.from_numpy(records[:, 0].astype(np.int64)))
    assert x.shape == (20, 3, 32, 32)
    assert x[7, 1, 2, 3] == records[7, 1 + 1024 + 2 * 32 + 3]
    assert len(parse_archive(content, "test")[0]) == 4


@pytest.mark.parametrize("content", [b"x", archive()[0][:-900], archive(names=())[0]])
def test_another_file_is_refused(content):
    with pytest.raises(DatasetUnavailable, match="not CIFAR-10's binary archive"):
        parse_archive(content, "train")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The folder of a small archive that passes for the whole one."""
    content, _ = archive(each=60)
    folder = tmp_path / "CIFAR10"
    folder.mkdir()
    (folder / "cifar-10-binary.tar.gz").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    whole = catalogue.PHOTOGRAPHS["cifar10"]
    files = {"cifar-10-binary.tar.gz": digest}
    part = replace(whole, files=files, train_size=300, test_size=60)
    monkeypatch.setitem(catalogue.PHOTOGRAPHS, "cifar10", part)
    return tmp_path


def test_colour_pictures_train_and_are_sampled(small, monkeypatch):
    settings = ["data=cifar10", f"data.dir={small}", "data.val_size=60", "trainer.max_epochs=1"]
    line = [*settings, "model=conditional", "model.latent_dim=3", "hydra.run.dir=run"]
    typed("train", *line, directory=small, patch=monkeypatch)
    typed("sample", "run", "label=3", directory=small, patch=monkeypatch)
    assert CIFAR10(dir=str(small), val_size=60).spec.class_names[3] == "cat"


def test_an_archive_of_another_checksum_is_left_alone(tmp_path):
    folder = tmp_path / "CIFAR10"
    folder.mkdir()
    (folder / "cifar-10-binary.tar.gz").write_bytes(b"mine")
    with pytest.raises(DatasetUnavailable, match="nothing is overwritten"):
        CIFAR10(dir=str(tmp_path)).prepare_data()
    assert (folder / "cifar-10-binary.tar.gz").read_bytes() == b"mine"
