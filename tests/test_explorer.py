"""What the explorer shows, without gradio and without a browser."""

import base64
import importlib.util
import io
import socket

import pytest
import torch
from PIL import Image
from torch.nn.functional import pad

import vae_lightning
from conftest import SUBSET, train_in, typed
from vae_lightning import page
from vae_lightning.explorer import centre, explore, most_active, nearest


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    settings = ["trainer.max_epochs=1", "model=conditional", "model.latent_dim=2"]
    return vae_lightning.load(train_in(tmp_path_factory.mktemp("conditional"), *settings))


def test_one_of_mnists_own_digits_comes_back_as_it_is_wherever_it_lies(subset):
    for batch in subset.split("test"):
        for digit in batch.images[:, 0]:
            assert torch.equal(centre(pad(digit, (31, 0, 2, 17))), digit)


@pytest.mark.parametrize(
    ("height", "width", "box"), [(200, 100, (20, 10)), (30, 120, (5, 20)), (4, 4, (20, 20)), (90, 1, (20, 1))]
)
def test_a_drawing_fills_a_box_of_20_pixels_whatever_its_size(height, width, box):
    drawing = torch.zeros(280, 280)
    drawing[40 : 40 + height, 60 : 60 + width] = 1
    image = centre(drawing)
    assert image.shape == (28, 28)
    assert ((image > 0.5).any(1).sum(), (image > 0.5).any(0).sum()) == box
    rows = image.sum(1) @ torch.arange(28.0) / image.sum()
    assert rows.item() == pytest.approx(14, abs=0.5)


def test_an_empty_drawing_is_black():
    assert torch.equal(centre(torch.zeros(280, 280)), torch.zeros(28, 28))


def test_ink_that_is_heavy_at_one_end_stays_in_the_frame():
    drawing = torch.full((20, 20), 0.01)
    drawing[0] = 1
    assert centre(drawing).sum().item() == pytest.approx(drawing.sum().item())


def test_a_model_of_black_and_white_images_gets_a_black_and_white_drawing(trained, subset):
    vae = vae_lightning.load(trained)
    explorer = explore(vae, subset.split("test"), binary=True)
    drawing = next(iter(subset.split("test"))).images[0, 0]
    assert explorer.take(drawing).unique().tolist() == [0, 1]
    assert torch.equal(explorer.take(drawing)[0], (drawing >= 0.5).float())


def test_the_nearest_point_is_the_one_that_was_clicked(trained, subset):
    explorer = explore(vae_lightning.load(trained), subset.split("test"))
    points = explorer.on_map(explorer.seen.loc)
    assert points.shape == (200, 2)
    assert points.abs().max() < explorer.reach
    assert [nearest(points, point + 1e-5) for point in points[:20]] == list(range(20))


def test_sliders_are_for_the_latents_with_the_most_nats():
    assert most_active(torch.tensor([0.1, 3, 0, 2]), 3) == [1, 3, 0]
    assert most_active(torch.tensor([0.1, 3]), 10) == [1, 0]


def test_a_place_on_the_map_decodes_to_the_images_reconstruction(trained, subset):
    vae = vae_lightning.load(trained)
    explorer = explore(vae, subset.split("test"))
    torch.testing.assert_close(
        explorer.decode(explorer.encode(explorer.seen.images[5], None), None), vae.reconstruct(explorer.seen.images[5:6])[0]
    )
    torch.testing.assert_close(explorer.encode(explorer.seen.images[5], None), explorer.seen.loc[5])


def test_two_latents_are_the_map_themselves_and_labels_reach_a_conditional_model(conditional, subset):
    explorer = explore(conditional, subset.split("test"))
    assert torch.equal(explorer.on_map(explorer.seen.loc), explorer.seen.loc)
    z = torch.zeros(2)
    assert not torch.equal(explorer.decode(z, 1), explorer.decode(z, 7))
    torch.testing.assert_close(explorer.decode(z, 7), conditional.likelihood(torch.zeros(1, 2), torch.tensor([7])).mean[0])
    torch.testing.assert_close(explorer.encode(explorer.seen.images[3], int(explorer.seen.labels[3])), explorer.seen.loc[3])


def test_the_canvas_is_read_as_grey_levels():
    picture = Image.new("RGBA", (3, 2), "black")
    picture.putpixel((2, 1), (255, 255, 255, 255))
    written = io.BytesIO()
    picture.save(written, "png")
    drawing = page.read(f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}")
    assert drawing.tolist() == [[0, 0, 0], [0, 0, 1]]


def test_only_this_machine_reaches_the_page():
    with page.listen(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def wrong(directory, patch, *arguments):
    with pytest.raises(SystemExit) as exit_:
        typed("explore", SUBSET[1], *arguments, directory=directory, patch=patch)
    assert not list(directory.iterdir())
    return exit_.value.code


def test_mistakes_are_told_in_a_line(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert wrong(tmp_path, monkeypatch) == "error: checkpoint is missing: write checkpoint=…"
    assert wrong(tmp_path, monkeypatch, "checkpoint=nosuch").startswith("error: checkpoint=nosuch: is neither")
    assert (
        wrong(tmp_path, monkeypatch, "checkpoint=x", "port=70000") == "error: port=70000: must be less than or equal to 65535"
    )
    assert wrong(tmp_path, monkeypatch, "checkpoint=x", "sliders=0") == "error: sliders=0: must be greater than 0"
    assert (
        wrong(tmp_path, monkeypatch, f"checkpoint={trained}")
        == "error: gradio is missing: pip install 'vae-lightning[explore]'"
    )


def test_a_port_that_is_taken_is_told_in_a_line(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = wrong(tmp_path, monkeypatch, f"checkpoint={trained}", f"port={port}")
    assert told == f"error: port={port}: Address already in use; port=0 takes a free one"
