"""The explorer as a local web page, by gradio. Neither the page nor the process asks anything of another machine.

gradio is imported where it is used: it takes seconds, and comes with the extra ``explore`` only.
"""

import base64
import io
import os
import socket
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image
from torch import Tensor

from vae_lightning.explorer import Explorer, most_active, nearest
from vae_lightning.pictures import png
from vae_lightning.plots import bare_map, rasterize

HOST = "127.0.0.1"
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
"""The page's Content-Security-Policy: what isn't from here is not fetched, whatever gradio or a browser would like."""

CSS = """
.gradio-container { max-width: 1400px !important; margin: 0 auto; }
.gradio-container .html-container { padding: 0; }
figure { margin: 0; }
.picture img, .map img { display: block; width: 100%; image-rendering: pixelated; border: 1px solid #888; }
.map { position: relative; cursor: crosshair; overflow: hidden; }
.map img { image-rendering: auto; }
.map i { position: absolute; width: 18px; height: 18px; margin: -9px; border: 3px solid black; border-radius: 50%;
         box-shadow: 0 0 0 2px white, inset 0 0 0 2px white; pointer-events: none; }
.legend { display: flex; gap: 1em; flex-wrap: wrap; padding: 0.4em 0; }
.legend b { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.3em; border-radius: 50%; }
canvas { display: block; width: 100%; background: black; border: 1px solid #888; cursor: crosshair; touch-action: none; }
"""

# Positions are shares of the picture's width and height.
PICK = """
element.addEventListener('click', event => {
    const box = element.querySelector('img').getBoundingClientRect();
    trigger('pick', {across: (event.clientX - box.left) / box.width, down: (event.clientY - box.top) / box.height});
});
"""

# The drawing is sent when a stroke ends.
DRAW = """
const canvas = element.querySelector('canvas');
const pen = canvas.getContext('2d');
const position = event => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width, (event.clientY - box.top) * canvas.height / box.height];
};
let drawing = false;
pen.fillRect(0, 0, canvas.width, canvas.height);
Object.assign(pen, {lineWidth: 24, lineCap: 'round', lineJoin: 'round', strokeStyle: 'white'});
canvas.addEventListener('pointerdown', event => {
    canvas.setPointerCapture(event.pointerId);
    drawing = true;
    pen.beginPath();
    pen.moveTo(...position(event));
    pen.lineTo(...position(event));
    pen.stroke();
});
canvas.addEventListener('pointermove', event => {
    if (!drawing) return;
    pen.lineTo(...position(event));
    pen.stroke();
});
canvas.addEventListener('pointerup', () => {
    drawing = false;
    trigger('drawn', {picture: canvas.toDataURL()});
});
"""

WIPE = """() => {
    const canvas = document.querySelector('#canvas canvas');
    canvas.getContext('2d').fillRect(0, 0, canvas.width, canvas.height);
}"""


def build(explorer: Explorer, sliders: int, title: str) -> Any:
    """Build the page as a ``gradio.Blocks``.

    Args:
        explorer: the model and the split.
        sliders: how many latents have one, the most active first.
        title: what the page says above.

    Raises:
        ImportError: gradio is missing.
    """
    # Before gradio is imported: no usage statistics, no look for a newer version, no Hugging Face hub.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    import gradio as gr

    seen = explorer.seen
    shown = most_active(seen.kl, sliders)
    points = explorer.on_map(seen.loc)
    bound = max(3.0, seen.loc[:, shown].abs().max().ceil().item())
    origin = torch.zeros(seen.loc.shape[1])
    conditional = explorer.vae.num_classes > 0

    def marker(z: Tensor) -> list[float]:
        across, up = (explorer.on_map(z) / explorer.reach).tolist()
        return [50 * (1 + across), 50 * (1 - up)]

    def at(z: Tensor, label: int | None) -> list[Any]:
        """Return what goes with a place in latent space: the digit and the marker."""
        return [picture(explorer.decode(z, label), "decoded at the sliders"), marker(z)]

    def moved(start: list[float], label: int | None, *values: float) -> list[Any]:
        z = torch.tensor(start)
        z[shown] = torch.tensor(values)
        return at(z, label)

    def go(z: Tensor, label: int | None, pair: list[str]) -> list[Any]:
        """Return what changes where everything moves to one place."""
        return [z.tolist(), label, *at(z, label), *pair, *(round(value, 2) for value in z[shown].tolist())]

    def go_to(image: Tensor, z: Tensor, label: int | None, caption: str) -> list[Any]:
        """The same for an image's place, with the image and its reconstruction."""
        return go(z, label, [picture(image, caption), picture(explorer.decode(z, label), "reconstruction")])

    def picked(event: gr.EventData) -> list[Any]:
        index = nearest(points, torch.tensor([2 * event.across - 1, 1 - 2 * event.down]) * explorer.reach)
        digit = int(seen.labels[index])
        caption = f"image {index}" + (f", a {digit}" if digit >= 0 else "")
        return go_to(seen.images[index], seen.loc[index], digit if conditional else None, caption)

    def drawn(label: int | None, event: gr.EventData) -> list[Any]:
        image = explorer.take(read(event.picture))
        return go_to(image, explorer.encode(image, label), label, "drawing")

    def start(label: int | None) -> list[Any]:
        empty = torch.full_like(seen.images[0], 0.5)
        return go(origin, label, [picture(empty, "no image yet"), picture(empty, "no reconstruction")])

    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.Markdown(f"### {title}")
        code = gr.State(origin.tolist())
        with gr.Row():
            with gr.Column(min_width=260):
                digit = gr.HTML(elem_classes="picture", elem_id="digit")
                with gr.Row():
                    image = gr.HTML(elem_classes="picture", elem_id="image", min_width=100)
                    reconstruction = gr.HTML(elem_classes="picture", elem_id="reconstruction", min_width=100)
                gr.Markdown("**Draw a digit** with the mouse:")
                canvas = gr.HTML(html_template='<canvas width="280" height="280"></canvas>', js_on_load=DRAW, elem_id="canvas")
                clear = gr.Button("Clear", size="sm")
            with gr.Column(scale=2, min_width=400):
                names = "z0 across, z1 up" if len(origin) == 2 else "along their two principal axes"
                gr.Markdown(f"**Click** a posterior mean: {len(points):,} images, {names}")
                place = gr.HTML(
                    marker(origin),
                    html_template='<div class="map"><img src="${picture}" alt="map">'
                    '<i style="left: ${value[0]}%; top: ${value[1]}%"></i></div>',
                    js_on_load=PICK,
                    picture=uri(png(rasterize(bare_map(points, seen.labels, explorer.reach), dpi=150))),
                    elem_id="map",
                )
                gr.HTML(legend(seen.labels))
            with gr.Column(min_width=260):
                which = f"{len(shown)} most active of {len(origin)} latents" if len(shown) < len(origin) else "latents"
                gr.Markdown(f"**Move** the {which}:")
                label = gr.Radio(
                    list(range(explorer.vae.num_classes)), value=0 if conditional else None, label="digit", visible=conditional
                )
                moving = [
                    gr.Slider(
                        -bound, bound, 0, step=0.01, label=f"z{d}, {seen.kl[d]:.2f} nats", elem_classes="latent", buttons=[]
                    )
                    for d in shown
                ]
                home = gr.Button("All latents to 0", size="sm")
        # Straight to the functions, past gradio's queue; of the moves of a slider that come in while one is answered, the last.
        quick: Any = {"queue": False, "show_progress": "hidden", "trigger_mode": "always_last", "api_visibility": "private"}
        everything = [code, label, digit, place, image, reconstruction, *moving]
        for slider in moving:
            slider.input(moved, [code, label, *moving], [digit, place], **quick)
        label.input(moved, [code, label, *moving], [digit, place], **quick)
        place.pick(picked, None, everything, **quick)
        place.pick(None, js=WIPE)
        canvas.drawn(drawn, [label], everything, **quick)
        clear.click(None, js=WIPE)
        home.click(start, [label], everything, **quick)
        blocks.load(start, [label], everything, **quick)
    return blocks


def listen(port: int) -> socket.socket:
    """Return a socket that listens on a port of this machine alone; 0 takes a free one.

    Raises:
        OSError: the port can't be had.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening


def serve(blocks: Any, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C, which comes out as a KeyboardInterrupt."""
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(openapi_url=None)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=CSS,
    )
    app.add_middleware(Confined)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # no other site's page reaches it by a name
    # A page that is open keeps a connection open.
    settings = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, lifespan="on")
    uvicorn.Server(settings).run(sockets=[listening])


class Confined:
    """Adds the Content-Security-Policy to each answer."""

    def __init__(self, app: Any) -> None:
        """Take the ASGI application."""
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""

        async def confined(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, confined)


# -- pictures for the page --------------------------------------------------------------------------------------------


def picture(image: Tensor, caption: str) -> str:
    """Return an image ``[C, H, W]`` in [0, 1] as HTML, inline, so that no second request is needed."""
    return f'<figure><img src="{uri(png(image.expand(3, -1, -1)))}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def legend(labels: Tensor) -> str:
    """Return the colours of the map's labels ``[N]`` as HTML; nothing where images have none."""
    digits = [digit for digit in range(10) if (labels == digit).any()]
    dots = [f'<span><b style="background: {to_hex(colormaps["tab10"](digit))}"></b>{digit}</span>' for digit in digits]
    return f'<div class="legend">{"".join(dots)}</div>'


def uri(file: bytes) -> str:
    """Return a PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def read(address: str) -> Tensor:
    """Return the canvas's drawing ``[H, W]`` in [0, 1]."""
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])), formats=["PNG"]) as drawing:
        grey = drawing.convert("L")
    return torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(grey.height, grey.width) / 255
