"""How examples are drawn and written."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vae_lightning.data.modality import IMAGES, png


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_without_colour_is_written_as_one_channel_and_one_with_as_three(channels):
    grey = (torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    with Image.open(io.BytesIO(png(grey.expand(channels, -1, -1)))) as written:
        assert written.mode == "L"
        assert torch.equal(
            torch.from_numpy(np.array(written)), (grey[0] * 255).round().to(torch.uint8)
        )
    coloured = grey.repeat(3, 1, 1)
    coloured[1, 7, 11] = 1 - coloured[1, 7, 11]
    with Image.open(io.BytesIO(png(coloured))) as written:
        assert torch.equal(
            torch.from_numpy(np.array(written)).permute(2, 0, 1),
            (coloured * 255).round().to(torch.uint8),
        )


def test_an_image_is_written_as_a_png_that_reads_back_as_it_was(tmp_path):
    image = (torch.rand(1, 28, 28, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    (tmp_path / "digit.0.png").write_bytes(IMAGES.formats["png"](image))
    images, names = IMAGES.read(tmp_path, (1, 28, 28))
    assert names == ["digit.0.png"]
    assert torch.equal(images[0], (image * 255).round().to(torch.uint8))
