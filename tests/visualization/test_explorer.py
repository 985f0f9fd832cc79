"""What the explorer shows, without gradio and without a browser."""

import base64
import importlib.util
import io
import socket

import pytest
import torch
from PIL import Image

import vae_lightning
from conftest import SUBSET, train_in, typed
from small_sets import make
from vae_lightning.models.base import Batch
from vae_lightning.visualization import explorer_page
from vae_lightning.visualization.drawings import Encoded
from vae_lightning.visualization.explorer import explore, most_active, nearest


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    settings = ["trainer.max_epochs=1", "model=conditional", "model.latent_dim=2"]
    return vae_lightning.load(train_in(tmp_path_factory.mktemp("conditional"), *settings))


def test_a_model_of_black_and_white_images_gets_a_black_and_white_drawing(trained, subset):
    data = make(binarization="static")
    explorer = explore(vae_lightning.load(trained), data, data.split("test"))
    drawing = next(iter(subset.split("test"))).x[0, 0]
    assert explorer.takes_drawings
    assert explorer.take(drawing).unique().tolist() == [0, 1]
    assert torch.equal(explorer.take(drawing)[0], (drawing >= 0.5).float())


def test_a_model_of_grey_images_gets_the_drawing_in_grey(trained, subset):
    explorer = explore(vae_lightning.load(trained), subset, subset.split("test"))
    drawing = next(iter(subset.split("test"))).x[0]
    assert torch.equal(explorer.take(drawing[0]), drawing)


def test_the_nearest_point_is_the_one_that_was_clicked(trained, subset):
    explorer = explore(vae_lightning.load(trained), subset, subset.split("test"))
    points = explorer.on_map(explorer.seen.point)
    assert points.shape == (200, 2)
    assert points.abs().max() < explorer.reach
    assert [nearest(points, point + 1e-5) for point in points[:20]] == list(range(20))


def test_sliders_are_for_the_latents_with_the_most_nats():
    x = torch.zeros(2, 1, 28, 28)
    varied = torch.tensor([[0.0, 0, 1, 5], [9, 0, 2, 9]])
    seen = Encoded(x, None, varied, torch.tensor([0.1, 3, 0, 2]))
    assert most_active(seen, 3) == [1, 3, 0]
    assert most_active(seen._replace(kl=torch.tensor([0.1, 3])), 10) == [1, 0]
    assert most_active(seen._replace(kl=None), 2) == [0, 3]  # by their variance


def test_a_place_on_the_map_decodes_to_the_images_reconstruction(trained, subset):
    model = vae_lightning.load(trained)
    explorer = explore(model, subset, subset.split("test"))
    image = explorer.seen.x[5]
    torch.testing.assert_close(
        explorer.decode(explorer.encode(image, None), None),
        model.reconstruct(Batch(image.unsqueeze(0)))[0],
    )
    torch.testing.assert_close(explorer.encode(image, None), explorer.seen.point[5])


def test_two_latents_are_the_map_themselves_and_labels_reach_a_conditional_model(
    conditional, subset
):
    explorer = explore(conditional, subset, subset.split("test"))
    assert torch.equal(explorer.on_map(explorer.seen.point), explorer.seen.point)
    z = torch.zeros(2)
    assert not torch.equal(explorer.decode(z, 1), explorer.decode(z, 7))
    torch.testing.assert_close(
        explorer.decode(z, 7), conditional.likelihood(torch.zeros(1, 2), torch.tensor([7])).mean[0]
    )
    torch.testing.assert_close(
        explorer.encode(explorer.seen.x[3], int(explorer.seen.y[3])), explorer.seen.point[3]
    )


def test_the_canvas_is_read_as_grey_levels():
    picture = Image.new("RGBA", (3, 2), "black")
    picture.putpixel((2, 1), (255, 255, 255, 255))
    written = io.BytesIO()
    picture.save(written, "png")
    drawing = explorer_page.read(
        f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"
    )
    assert drawing.tolist() == [[0, 0, 0], [0, 0, 1]]


def test_only_this_machine_reaches_the_page():
    with explorer_page.listen(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def wrong(directory, patch, *arguments):
    with pytest.raises(SystemExit) as exit_:
        typed("explore", SUBSET[1], *arguments, directory=directory, patch=patch)
    assert not list(directory.iterdir())
    return exit_.value.code


def test_mistakes_are_told_in_a_line(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert wrong(tmp_path, monkeypatch) == "error: checkpoint is missing: write checkpoint=…"
    assert wrong(tmp_path, monkeypatch, "checkpoint=nosuch").startswith(
        "error: checkpoint=nosuch: is neither"
    )
    assert (
        wrong(tmp_path, monkeypatch, "checkpoint=x", "port=70000")
        == "error: port=70000: must be less than or equal to 65535"
    )
    assert (
        wrong(tmp_path, monkeypatch, "checkpoint=x", "sliders=0")
        == "error: sliders=0: must be greater than 0"
    )
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
