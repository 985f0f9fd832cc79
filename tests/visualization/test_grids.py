"""What the drawing functions lay where."""

import math

import pytest
import torch
from PIL import Image

from vae_lightning.data.modality import IMAGES
from vae_lightning.visualization.grids import (
    interpolation_grid,
    manifold_grid,
    slerp,
    traversal_grid,
)
from vae_lightning.visualization.plots import (
    figure_of,
    kl_bars,
    latent_map,
    principal_axes,
    search_history,
)


class Recorded:
    """A decoder that keeps the latents it is given."""

    def __call__(self, z):
        self.z = z
        return torch.zeros(len(z), 1, 2, 2)


def test_the_manifold_goes_through_the_inverse_gaussian_cdf_in_equal_shares():
    decode = Recorded()
    manifold_grid(IMAGES, decode, side=4)
    shares = torch.special.ndtr(decode.z).view(4, 4, 2)
    torch.testing.assert_close(shares[0, :, 0], torch.tensor([0.125, 0.375, 0.625, 0.875]))
    torch.testing.assert_close(
        shares[:, 0, 1], torch.tensor([0.875, 0.625, 0.375, 0.125])
    )  # rising upwards
    assert (shares[..., 0] == shares[0, :, 0]).all()


def test_a_traversal_moves_one_latent_a_row_and_leaves_the_others():
    decode, start = Recorded(), torch.tensor([0.1, 0.2, 0.3])
    traversal_grid(IMAGES, decode, start, [2, 0], columns=5, reach=2.0)
    rows = decode.z.view(2, 5, 3)
    steps = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    torch.testing.assert_close(
        rows[0], torch.stack([torch.full((5,), 0.1), torch.full((5,), 0.2), steps], dim=1)
    )
    torch.testing.assert_close(
        rows[1], torch.stack([steps, torch.full((5,), 0.2), torch.full((5,), 0.3)], dim=1)
    )
    assert torch.equal(start, torch.tensor([0.1, 0.2, 0.3]))


def test_an_interpolation_is_straight_in_one_row_and_round_in_the_next():
    decode = Recorded()
    start, end = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    interpolation_grid(IMAGES, decode, start, end, columns=3)
    straight, round_ = decode.z.view(2, 3, 2)
    torch.testing.assert_close(straight[1], torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(round_[1], torch.tensor([math.sqrt(2), math.sqrt(2)]))
    for row in (straight, round_):
        torch.testing.assert_close(row[[0, 2]], torch.cat([start, end]))


def test_slerp_keeps_the_angle_even_and_lengths_in_between():
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 20, generator=generator)
    walked = slerp(start, 3 * end, torch.linspace(0, 1, 7).view(-1, 1))
    cosines = torch.cosine_similarity(walked[:-1], walked[1:])
    torch.testing.assert_close(cosines, cosines[:1].expand(6), rtol=1e-4, atol=1e-4)
    lengths = walked.norm(dim=1)
    torch.testing.assert_close(
        lengths, torch.lerp(start.norm(), 3 * end.norm(), torch.linspace(0, 1, 7))
    )


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_slerp_between_parallel_directions_is_straight(factor):
    start = torch.tensor([1.0, 2.0])
    walked = slerp(start, factor * start, torch.tensor([[0.5]]))
    torch.testing.assert_close(walked[0], (1 + factor) / 2 * start)


@pytest.mark.parametrize("other", [[1.0, 2.0], [0.0, 0.0]])
def test_slerp_from_the_origin_is_straight(other):
    end = torch.tensor(other)
    for ends in ((torch.zeros(2), end), (end, torch.zeros(2))):
        walked = slerp(*ends, torch.tensor([[0.0], [0.5], [1.0]]))
        torch.testing.assert_close(walked, torch.stack([ends[0], end / 2, ends[1]]))


def test_principal_axes_are_those_of_most_variance_and_their_signs_hold_still():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1000, 4, generator=generator) * torch.tensor([0.1, 3.0, 1.0, 0.2]) + 7
    axes = principal_axes(points)
    torch.testing.assert_close(axes.abs(), torch.eye(4)[:, [1, 2]], rtol=0, atol=0.05)
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(axes, principal_axes(-points), rtol=0, atol=1e-5)


def test_the_map_shows_two_latents_themselves_in_the_colours_of_their_labels():
    point, labels = torch.tensor([[0.5, -1.0], [2.0, 3.0]]), torch.tensor([3, 8])
    [axes, _] = latent_map(point, labels, tuple("0123456789")).axes
    [points] = axes.collections
    assert points.get_offsets().tolist() == point.tolist()
    assert points.get_array().tolist() == [3, 8]
    assert axes.get_xlim() == axes.get_ylim() == (-4, 4)


def test_the_bars_fall_and_name_their_latents():
    [axes] = kl_bars(torch.tensor([0.1, 2.0, 0.5])).axes
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([2.0, 0.5, 0.1])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "0"]


def test_a_picture_as_a_figure_keeps_every_pixel(tmp_path):
    picture = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0))
    figure_of(picture).savefig(tmp_path / "x.png", dpi=100)
    with Image.open(tmp_path / "x.png") as drawn:
        assert drawn.size == (30, 20)
        pixels = (
            torch.frombuffer(bytearray(drawn.convert("RGB").tobytes()), dtype=torch.uint8).view(
                20, 30, 3
            )
            / 255
        )
    torch.testing.assert_close(pixels.permute(2, 0, 1), picture, rtol=0, atol=1.01 / 255)


def test_the_history_of_a_search_names_the_figure_that_is_searched_for():
    trials = [(0, -5.0, False), (1, -9.0, True), (2, -4.0, False), (3, -6.0, False)]
    [axes] = search_history(trials, "ELBO").axes
    assert axes.get_ylabel() == "validation ELBO"
    completed, pruned, best = axes.get_lines()
    assert completed.get_label() == "trained to its end"
    assert completed.get_ydata().tolist() == [-5, -4, -6]
    assert pruned.get_label() == "ended early"
    assert pruned.get_ydata().tolist() == [-9]
    assert best.get_ydata().tolist() == [-5, -4, -4]
    [axes] = search_history(trials, "loss", upwards=False).axes
    assert axes.get_lines()[-1].get_ydata().tolist() == [-5, -5, -6]
