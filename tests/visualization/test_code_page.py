"""What the explorer of codes computes, without a browser."""

import pytest
import torch

from conftest import build_vae, digits, train_in
from vae_lightning import Batch
from vae_lightning.models.vqvae.model import VQVAE
from vae_lightning.visualization import drawings
from vae_lightning.visualization.code_page import CodeExplorer
from vae_lightning.visualization.grids import code_colours, code_grid


@pytest.fixture
def explorer(subset):
    torch.manual_seed(0)
    model = VQVAE(digits(), codes=20, channels=[4, 6]).eval()
    batch = next(iter(subset.split("test", 30)))
    model.initialize([batch])
    return CodeExplorer(model, subset, batch)


def test_its_own_codes_decode_to_an_image_s_reconstruction(explorer):
    reconstructed = explorer.model.reconstruct(Batch(explorer.examples))
    torch.testing.assert_close(explorer.decode(explorer.codes[3]), reconstructed[3])


def test_a_place_on_a_picture_is_the_cell_that_lies_there(explorer):
    assert [explorer.cell_at(*place) for place in ((0, 0), (0.99, 0), (0.5, 0.99), (1, 1))] == [
        0, 6, 45, 48,
    ]  # fmt: skip
    assert explorer.code_at(0, 0) == 0
    assert explorer.code_at(1.5 / 16, 0.75) == 17
    assert explorer.code_at(0.9, 0.9) == 19  # past the last code


def test_the_palette_shows_what_each_code_decodes_to(explorer):
    palette = explorer.palette()
    assert palette.shape == (3, 2 * 28, 16 * 28)
    grid = torch.full((7, 7), 17)
    shown = palette[:, 28:, 28:56]
    torch.testing.assert_close(shown, explorer.decode(grid).expand(3, -1, -1))
    assert palette[:, 28:, 4 * 28 :].abs().max() == 0


def test_each_code_has_a_colour_of_its_own(subset):
    colours = code_colours(torch.arange(128).view(1, 8, 16)).flatten(2)[0].T
    assert len(colours.unique(dim=0)) == 128
    assert ((colours >= 0) & (colours <= 1)).all()
    code = torch.zeros(2, 7, 7, dtype=torch.int64)
    code[1, 0, 0] = 5
    images = torch.rand(2, 1, 28, 28)
    picture = code_grid(subset.modality, images, code, images)
    alike = code_grid(subset.modality, images, torch.zeros_like(code), images)
    assert picture.shape == alike.shape
    assert (picture != alike).any(0).sum() == 8 * 8  # the picture is twice as large


def test_only_a_model_with_a_grid_has_such_a_drawing(explorer):
    assert drawings.missing("codes", explorer.model) == ""
    assert drawings.missing("codes", build_vae()) == "the model has no grid of codes"


@pytest.mark.slow
def test_a_run_leaves_its_codes_in_pictures_and_in_the_projector(tmp_path):
    run = train_in(tmp_path, "model=vqvae", "model.codes=8", "model.channels=[4,6]")
    assert list((run / "images").glob("codes_*.png"))
    [written] = (run / "tensorboard").glob("*/codebook")
    assert len((written / "tensors.tsv").read_text().splitlines()) == 8
    assert (written / "metadata.tsv").read_text().split() == list("01234567")
    assert "codebook" in (run / "tensorboard" / "projector_config.pbtxt").read_text()
