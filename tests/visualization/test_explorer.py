"""What the explorer shows, without gradio and without a browser."""

import asyncio
import base64
import importlib.util
import io
import socket

import pytest
import torch
from PIL import Image

from conftest import SUBSET, train_in, typed
from small_sets import make
from vae_lightning.models.base import Batch
from vae_lightning.runs.checkpoints import load_model
from vae_lightning.visualization import explorer_page
from vae_lightning.visualization.drawings import Encoded
from vae_lightning.visualization.explorer import explore, most_active, nearest


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    settings = ["trainer.max_epochs=1", "model=conditional", "model.latent_dim=2"]
    return load_model(train_in(tmp_path_factory.mktemp("conditional"), *settings))


def test_a_model_of_black_and_white_images_gets_a_black_and_white_drawing(trained, subset):
    data = make(binarization="static")
    explorer = explore(load_model(trained), data, data.split("test"))
    drawing = next(iter(subset.split("test"))).x[0, 0]
    assert explorer.takes_drawings
    assert explorer.take(drawing).unique().tolist() == [0, 1]
    assert torch.equal(explorer.take(drawing)[0], (drawing >= 0.5).float())


def test_a_model_of_grey_images_gets_the_drawing_in_grey(trained, subset):
    explorer = explore(load_model(trained), subset, subset.split("test"))
    drawing = next(iter(subset.split("test"))).x[0]
    assert torch.equal(explorer.take(drawing[0]), drawing)


def test_the_nearest_point_is_the_one_that_was_clicked(trained, subset):
    explorer = explore(load_model(trained), subset, subset.split("test"))
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
    model = load_model(trained)
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


def test_a_drawing_larger_than_the_canvas_is_not_decoded():
    written = io.BytesIO()
    Image.new("L", (explorer_page.CANVAS + 1, 1)).save(written, "png")
    with pytest.raises(ValueError, match="a drawing of"):
        explorer_page.read(f"data:,{base64.b64encode(written.getvalue()).decode()}")


OWN = {b"host": b"127.0.0.1:7860", b"origin": b"http://127.0.0.1:7860", b"content-length": b"9"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/theme.css"),
        ("GET", "/assets/index.js"),
        ("GET", "/gradio_api/heartbeat/x1"),
        ("POST", "/gradio_api/run/predict"),
    ],
)
def test_what_the_page_asks_for_is_answered_whether_the_browser_names_it_or_not(method, path):
    assert not explorer_page.refusal(method, path, OWN)
    unnamed = {name: value for name, value in OWN.items() if name != b"origin"}
    assert not explorer_page.refusal(method, path, unnamed)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/gradio_api/upload", 404),
        ("POST", "/gradio_api/queue/join", 404),
        ("POST", "/gradio_api/component_server", 404),
        ("POST", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/gradio_api/openapi.json", 404),
        ("GET", "/gradio_api/info", 404),
        ("GET", "/config", 404),
        ("GET", "/gradio_api/file=/etc/hostname", 404),
        ("GET", "/gradio_api/proxy=http://127.0.0.1/", 404),
        ("GET", "/gradio_api/heartbeat/../upload", 404),
        ("OPTIONS", "/gradio_api/run/predict", 405),
        ("PUT", "/", 405),
    ],
)
def test_what_the_page_does_not_ask_for_is_refused(method, path, status):
    assert explorer_page.refusal(method, path, OWN) == status


@pytest.mark.parametrize(
    "origin",
    [
        b"http://example.org",
        b"https://127.0.0.1:7860",
        b"http://127.0.0.1:8080",
        b"http://127.0.0.1:7860.example.org",
        b"null",
    ],
)
def test_another_page_is_refused(origin):
    for method, path in (("GET", "/"), ("POST", "/gradio_api/run/predict")):
        assert explorer_page.refusal(method, path, {**OWN, b"origin": origin}) == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({b"content-length": b"20000000"}, 413),
        ({b"content-length": b"-1"}, 411),
        ({b"content-length": b""}, 411),
        ({b"transfer-encoding": b"chunked"}, 411),
    ],
)
def test_a_body_without_end_is_refused(headers, status):
    assert explorer_page.refusal("POST", "/gradio_api/run/predict", {**OWN, **headers}) == status


def answers(scope):
    """Return what the guard of the page answers, and whether the application was asked."""
    asked, sent = [], []

    async def application(scope, receive, send):
        asked.append(scope["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    asyncio.run(explorer_page.Confined(application)(scope, None, send))
    return sent, asked


def test_a_refused_request_does_not_reach_gradio():
    upload = {"type": "http", "method": "POST", "path": "/gradio_api/upload"}
    sent, asked = answers({**upload, "headers": list(OWN.items())})
    assert (sent[0]["status"], asked) == (404, [])
    sent, asked = answers({"type": "websocket", "path": "/", "headers": []})
    assert (sent, asked) == ([{"type": "websocket.close"}], [])
    sent, asked = answers({"type": "http", "method": "GET", "path": "/", "headers": []})
    assert (sent[0]["status"], asked) == (200, ["http"])
    assert dict(sent[0]["headers"])[b"content-security-policy"].endswith(b"frame-ancestors 'none'")


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
    assert wrong(tmp_path, monkeypatch) == "error: checkpoint is missing: type checkpoint=…"
    assert wrong(tmp_path, monkeypatch, "checkpoint=nosuch").startswith(
        "error: checkpoint=nosuch: not found; type "
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
