"""The codes of examples: a row for each, whatever is known of it."""

import csv

import torch

from conftest import build_vae
from vae_lightning.data.batches import Batches
from vae_lightning.evaluation import codes


def test_an_example_without_a_label_is_written_with_minus_one(tmp_path):
    batches = Batches(torch.rand(5, 1, 28, 28), None, torch.tensor([4, 0, 2]), batch_size=2)
    columns = codes.encode(build_vae(latent_dim=3).eval(), batches)
    assert columns["index"].tolist() == [4, 0, 2]
    assert columns["label"].tolist() == [-1, -1, -1]
    assert columns["loc"].shape == columns["scale"].shape == (3, 3)
    codes.write(columns, None, tmp_path)
    with (tmp_path / "posteriors.csv").open(newline="") as written:
        head, *rows = csv.reader(written)
    assert head[:3] == ["index", "label", "loc_0"]
    assert [row[:2] for row in rows] == [["4", "-1"], ["0", "-1"], ["2", "-1"]]
