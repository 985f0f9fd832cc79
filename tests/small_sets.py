"""What the tests of data share: the 600 digits as a data module, a small Larochelle split."""

from dataclasses import replace

import torch

from conftest import DATA
from vae_lightning import MNISTDataModule
from vae_lightning.data.catalogue import DATASETS

FILES = DATASETS["mnist_subset"].files


def make(**settings):
    data = MNISTDataModule(**{"name": "mnist_subset", "dir": str(DATA), "val_size": 80, **settings})
    data.setup()
    return data


def indices(loader):
    return torch.cat([batch.indices for batch in loader])


def write_amat(folder, rows, seed=0):
    """Write three .amat files of the Larochelle split's form, and return their images."""
    folder.mkdir(parents=True)
    images = {}
    for number, (part, n) in enumerate(rows.items()):
        bits = torch.randint(
            0,
            2,
            (n, 784),
            generator=torch.Generator().manual_seed(seed + number),
            dtype=torch.uint8,
        )
        lines = [" ".join(map(str, row)) for row in bits.tolist()]
        (folder / f"binarized_mnist_{part}.amat").write_text("\n".join(lines) + " \n")
        images[part] = bits.view(-1, 1, 28, 28)
    return images


def shrink_larochelle(monkeypatch):
    """Give the split fewer rows, so that a test's files stay small, and return them by file."""
    rows = {"train": 30, "valid": 20, "test": 10}
    files = {f"binarized_mnist_{part}.amat": f"{n} rows" for part, n in rows.items()}
    small = replace(DATASETS["larochelle"], files=files, train_size=50, test_size=10)
    monkeypatch.setitem(DATASETS, "larochelle", small)
    monkeypatch.setattr("vae_lightning.data.mnist.LAROCHELLE_VALIDATION", 20)
    return rows
