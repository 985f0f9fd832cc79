"""The codes of examples: a row for each, whatever is known of it."""

import csv

import numpy as np
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


def test_names_of_pictures_are_no_formulas_and_no_cells_of_a_spreadsheet(tmp_path):
    names = ["=cmd|' /C calc'!A0.png", "a;=1+1;.png", "\ud800.png", "a.png"]
    batches = Batches(torch.rand(4, 1, 28, 28), None, torch.arange(4), batch_size=4)
    columns = codes.encode(build_vae(latent_dim=3).eval(), batches)
    codes.write(columns, names, tmp_path)
    text = (tmp_path / "posteriors.csv").read_text(encoding="utf-8")
    assert [line.split(",-1,")[0] for line in text.splitlines()[1:]] == [
        """ "'=cmd|' /C calc'!A0.png" """.strip(),
        '"a;=1+1;.png"',  # quoted, for spreadsheets that separate by semicolons
        r'"\ud800.png"',
        '"a.png"',
    ]
    with np.load(tmp_path / "posteriors.npz") as written:
        assert written["name"].tolist() == names
