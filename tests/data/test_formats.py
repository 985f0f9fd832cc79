"""IDX and ``.amat``: what is written reads back, and what is no such file is refused."""

import struct

import numpy as np
import pytest
import torch

from vae_lightning.data.formats import parse_amat, parse_idx, write_idx


@pytest.mark.parametrize("shape", [(5,), (3, 28, 28)])
def test_an_idx_file_reads_back_as_it_was_written(shape):
    values = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    content = write_idx(values)
    assert content[: 4 + 4 * len(shape)] == struct.pack(
        f">BBBB{len(shape)}i", 0, 0, 8, len(shape), *shape
    )
    assert torch.equal(parse_idx(content), torch.from_numpy(values))


def test_rows_of_noughts_and_ones_are_black_and_white_images():
    rows = ["0 " * 783 + "1", "1 " * 783 + "0"]
    images = parse_amat("\n".join(rows).encode() + b" \n")
    assert images.shape == (2, 1, 28, 28)
    assert images.dtype == torch.uint8
    assert images.flatten(1)[:, [0, -1]].tolist() == [[0, 255], [255, 0]]


@pytest.mark.parametrize(
    "row", ["0 " * 782 + "0", "0 " * 783 + "2", "0,0 " + "0 " * 781 + "0"], ids=["short", "2", ","]
)
def test_rows_of_anything_else_are_refused(row):
    with pytest.raises(ValueError, match="not rows of 784 noughts and ones"):
        parse_amat(row.encode())
