"""The explorer as a local web page, with gradio.

Neither the page nor the process contacts another machine, and no other page can use this one.
gradio is imported where it is used: that takes seconds, and only the extra ``explore`` installs it.
"""

import base64
import html
import io
import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image
from torch import Tensor

from vae_lightning.configuration.quoting import markdown
from vae_lightning.data.modality import Modality, png
from vae_lightning.data.protocol import WHITE
from vae_lightning.visualization.explorer import Explorer, most_active, nearest
from vae_lightning.visualization.grids import slerp
from vae_lightning.visualization.plots import bare_map, rasterize

HOST = "127.0.0.1"
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
"""The page's Content-Security-Policy: nothing is fetched from elsewhere, whatever gradio does."""

REQUESTS = {
    "GET": re.compile(
        r"/|/(favicon\.ico|theme\.css)|/(assets|static)/.+|/gradio_api/heartbeat/\w+"
    ),
    "POST": re.compile("/gradio_api/run/predict"),
}
"""The paths that the page asks for. gradio has more: uploads, files, descriptions of its API."""

LARGEST = 1 << 20
"""The largest body of a request, in bytes: far more than a drawing has."""

CANVAS = 280
"""Pixels of the canvas's side."""

CSS = """
.gradio-container { max-width: 1400px !important; margin: 0 auto; }
.gradio-container .html-container { padding: 0; }
figure { margin: 0; }
.picture img, .map img { display: block; width: 100%; image-rendering: pixelated;
                         border: 1px solid #888; }
.map { position: relative; cursor: crosshair; overflow: hidden; }
.map img { image-rendering: auto; }
.map i { position: absolute; width: 18px; height: 18px; margin: -9px;
         border: 3px solid black; border-radius: 50%;
         box-shadow: 0 0 0 2px white, inset 0 0 0 2px white; pointer-events: none; }
.legend { display: flex; gap: 1em; flex-wrap: wrap; padding: 0.4em 0; }
.legend b { display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.3em;
            border-radius: 50%; }
.drop { display: block; padding: 1em; border: 1px dashed #888; cursor: pointer; }
.drop input { display: block; margin-top: 0.4em; }
audio { width: 100%; height: 32px; }
canvas { display: block; width: 100%; background: black; border: 1px solid #888;
         cursor: crosshair; touch-action: none; }
"""

# Positions are shares of the picture's width and height.
PICK = """
element.addEventListener('click', event => {
    const box = element.querySelector('img').getBoundingClientRect();
    trigger('pick', {across: (event.clientX - box.left) / box.width,
                     down: (event.clientY - box.top) / box.height});
});
"""

# The drawing is sent when a stroke ends.
DRAW = """
const canvas = element.querySelector('canvas');
const pen = canvas.getContext('2d');
const position = event => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width,
            (event.clientY - box.top) * canvas.height / box.height];
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

DROP_HERE = (
    '<label class="drop">Choose or drop a .mid file<input type="file" accept=".mid,.midi"></label>'
)

# The file is read by the page and sent as part of an ordinary call.
DROP = """
const label = element.querySelector('label');
const send = file => {
    const reader = new FileReader();
    reader.onload = () => trigger('dropped', {content: reader.result});
    if (file) reader.readAsDataURL(file);
};
label.querySelector('input').addEventListener('change', event => send(event.target.files[0]));
label.addEventListener('dragover', event => event.preventDefault());
label.addEventListener('drop', event => {
    event.preventDefault();
    send(event.dataTransfer.files[0]);
});
"""

WIPE = """() => {
    const canvas = document.querySelector('#canvas canvas');
    canvas.getContext('2d').fillRect(0, 0, canvas.width, canvas.height);
}"""


QUICK: Any = {
    "queue": False,
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "api_visibility": "private",
}
"""How the page's functions are called: directly, without gradio's queue.

Of the slider moves that arrive while one is answered, only the last counts.
"""


def prepare(scratch: str) -> None:
    """See to it that gradio, imported after this, asks no other machine for anything.

    Args:
        scratch: a folder for its temporary files, which it doesn't remove.
    """
    # Before gradio is imported: no usage statistics, no check for updates, no Hugging Face hub.
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        GRADIO_TEMP_DIR=scratch,
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
    )


def build(explorer: Explorer, sliders: int, title: str, scratch: str) -> Any:
    """Build the page as a ``gradio.Blocks``.

    Args:
        explorer: the model and the split.
        sliders: how many latents have one, the most active first.
        title: what the page says above.
        scratch: see ``prepare``.

    Raises:
        ImportError: gradio is missing.
    """
    prepare(scratch)
    import gradio as gr

    seen = explorer.seen
    shown = most_active(seen, sliders)
    points = explorer.on_map(seen.point)
    bound = max(3.0, seen.point[:, shown].abs().max().ceil().item())
    origin = torch.zeros(seen.point.shape[1])
    conditional = explorer.model.num_classes > 0
    names, noun = explorer.data.spec.class_names, explorer.data.modality.noun

    def picture(example: Tensor, caption: str, plays: bool = False) -> str:
        return figure(example, explorer.data.modality, caption, plays)

    def slider_label(latent: int) -> str:
        return f"z{latent}" + ("" if seen.kl is None else f", {seen.kl[latent]:.2f} nats")

    def marker(z: Tensor) -> list[float]:
        across, up = (explorer.on_map(z) / explorer.reach).tolist()
        return [50 * (1 + across), 50 * (1 - up)]

    def at(z: Tensor, label: int | None) -> list[Any]:
        """Return what goes with a place in latent space: the example and the marker."""
        decoded = explorer.decode(z, label)
        return [picture(decoded, "decoded at the sliders", plays=True), marker(z)]

    def moved(start: list[float], label: int | None, *values: float) -> list[Any]:
        z = torch.tensor(start)
        z[shown] = torch.tensor(values, dtype=z.dtype)  # the page sends 1, not 1.0
        return [z.tolist(), *at(z, label)]

    def within(value: float | None) -> float:
        """Return what was typed beside a slider, within its ends; 0 where nothing is left."""
        return min(max(value or 0.0, -bound), bound)

    def go(z: Tensor, label: int | None, pair: list[str]) -> list[Any]:
        """Return what changes where everything moves to one place."""
        return [
            z.tolist(),
            label,
            *at(z, label),
            *pair,
            *(round(value, 2) for value in z[shown].tolist()),
        ]

    def go_to(image: Tensor, z: Tensor, label: int | None, caption: str) -> list[Any]:
        """The same for an image's place, with the image and its reconstruction."""
        return go(
            z,
            label,
            [picture(image, caption), picture(explorer.decode(z, label), "reconstruction")],
        )

    def picked(event: gr.EventData) -> list[Any]:
        index = nearest(
            points, torch.tensor([2 * event.across - 1, 1 - 2 * event.down]) * explorer.reach
        )
        caption, label = f"{noun} {index}", None
        if seen.y is not None:
            label = int(seen.y[index])
            caption += f": {names[label]}"
        return go_to(seen.x[index], seen.point[index], label if conditional else None, caption)

    def drawn(label: int | None, event: gr.EventData) -> list[Any]:
        image = explorer.take(read(event.picture))
        return go_to(image, explorer.encode(image, label), label, "drawing")

    def dropped(event: gr.EventData) -> list[Any]:
        """Return the same for a user's MIDI file, or a line that says why it can't be read."""
        try:
            window = explorer.take_midi(base64.b64decode(event.content.partition(",")[2]))
        except ValueError as error:
            return [*[gr.skip()] * (6 + len(shown)), str(error)]
        return [*go_to(window, explorer.encode(window, None), None, "your file"), ""]

    def keep_place(z: list[float], label: int | None) -> list[Any]:
        """Return a place as an end of the morph, with its example."""
        return [z, picture(explorer.decode(torch.tensor(z), label), "kept")]

    def walked(share: float, start: list[float], end: list[float], label: int | None) -> list[Any]:
        """Return what changes a share of the way between two places."""
        weight = torch.tensor([[float(share)]])  # the page sends 1, not 1.0
        z = slerp(torch.tensor(start), torch.tensor(end), weight)[0]
        values = [round(value, 2) for value in z[shown].tolist()]
        return [z.tolist(), *at(z, label), *values]

    def start(label: int | None) -> list[Any]:
        tokens = explorer.model.data.is_of_tokens
        empty = torch.full_like(seen.x[0], 0 if tokens else 0.5)
        captions = (f"no {noun} yet", "no reconstruction")
        return go(origin, label, [picture(empty, caption) for caption in captions])

    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.Markdown(f"### {markdown(title)}")
        code = gr.State(origin.tolist())
        with gr.Row():
            with gr.Column(min_width=260):
                decoded = gr.HTML(elem_classes="picture", elem_id="decoded")
                with gr.Row():
                    image = gr.HTML(elem_classes="picture", elem_id="image", min_width=100)
                    reconstruction = gr.HTML(
                        elem_classes="picture", elem_id="reconstruction", min_width=100
                    )
                if explorer.takes_midi:
                    gr.Markdown("**Drop** a MIDI file, of which the first bars are taken:")
                    drop = gr.HTML(html_template=DROP_HERE, js_on_load=DROP, elem_id="drop")
                    refused = gr.Markdown(elem_id="refused")
                if explorer.takes_drawings:
                    gr.Markdown("**Draw** with the mouse:")
                    board = f'<canvas width="{CANVAS}" height="{CANVAS}"></canvas>'
                    canvas = gr.HTML(html_template=board, js_on_load=DRAW, elem_id="canvas")
                    clear = gr.Button("Clear", size="sm")
            with gr.Column(scale=2, min_width=400):
                two = len(origin) <= 2
                axes = "z0 across, z1 up" if two else "along their two principal axes"
                gr.Markdown(f"**Click** a posterior mean: {len(points):,} {noun}s, {axes}")
                place = gr.HTML(
                    marker(origin),
                    html_template='<div class="map"><img src="${picture}" alt="map">'
                    '<i style="left: ${value[0]}%; top: ${value[1]}%"></i></div>',
                    js_on_load=PICK,
                    picture=uri(
                        png(rasterize(bare_map(points, seen.y, names, explorer.reach), dpi=150))
                    ),
                    elem_id="map",
                )
                gr.HTML(legend(seen.y, names))
            with gr.Column(min_width=260):
                which = (
                    f"{len(shown)} most active of {len(origin)} latents"
                    if len(shown) < len(origin)
                    else "latents"
                )
                gr.Markdown(f"**Move** the {which}:")
                choices = (
                    [(name, number) for number, name in enumerate(names)] if conditional else []
                )
                label = gr.Radio(
                    choices,
                    value=0 if conditional else None,
                    label=explorer.data.label_noun,
                    visible=conditional,
                )
                moving = [
                    gr.Slider(
                        -bound,
                        bound,
                        0,
                        step=0.01,
                        label=slider_label(d),
                        elem_classes="latent",
                        buttons=[],
                    )
                    for d in shown
                ]
                home = gr.Button("All latents to 0", size="sm")
                gr.Markdown("**Morph**: keep this place as one end, move on, keep the other.")
                ends = [gr.State(origin.tolist()), gr.State(origin.tolist())]
                with gr.Row():
                    keeps = [gr.Button(f"Keep as {end}", size="sm") for end in ("A", "B")]
                with gr.Row():
                    kept = [
                        gr.HTML(elem_classes="picture", elem_id=f"end{end}", min_width=100)
                        for end in ("A", "B")
                    ]
                share = gr.Slider(
                    0, 1, 0, step=0.01, label="from A to B", buttons=[], elem_id="morph"
                )
        for slider in moving:  # gradio's own check would be a traceback
            slider.preprocess = within
        everything = [code, label, decoded, place, image, reconstruction, *moving]
        for slider in moving:
            slider.input(moved, [code, label, *moving], [code, decoded, place], **QUICK)
        label.input(moved, [code, label, *moving], [code, decoded, place], **QUICK)
        place.pick(picked, None, everything, **QUICK)
        if explorer.takes_drawings:
            place.pick(None, js=WIPE)
            canvas.drawn(drawn, [label], everything, **QUICK)
            clear.click(None, js=WIPE)
        for keep, end, seen_as in zip(keeps, ends, kept, strict=True):
            keep.click(keep_place, [code, label], [end, seen_as], **QUICK)
        share.input(walked, [share, *ends, label], [code, decoded, place, *moving], **QUICK)
        if explorer.takes_midi:
            drop.dropped(dropped, None, [*everything, refused], **QUICK)
        home.click(start, [label], everything, **QUICK)
        blocks.load(start, [label], everything, **QUICK)
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
    app.add_middleware(
        TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]
    )  # no other site's page reaches it by a name
    # A page that is open keeps a connection open.
    settings = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1, lifespan="on")
    uvicorn.Server(settings).run(sockets=[listening])


class Confined:
    """Answers what the page itself asks for, with a Content-Security-Policy, and nothing else."""

    def __init__(self, app: Any) -> None:
        """Take the ASGI application."""
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        if status := refusal(scope["method"], scope["path"], dict(scope["headers"])):
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return

        async def confined(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                ]
            await send(message)

        await self.app(scope, receive, confined)


def refusal(method: str, path: str, headers: Mapping[bytes, bytes]) -> int:
    """Return the HTTP status by which a request is refused; 0: it isn't.

    Args:
        method: GET, POST and so on.
        path: without the query.
        headers: by their names in lower case. A browser names the page that asks as the Origin.
    """
    if headers.get(b"origin", b"").lower() not in (b"", b"http://" + headers.get(b"host", b"")):
        return 403
    asked = REQUESTS.get(method)
    if asked is None:
        return 405
    if not asked.fullmatch(path):
        return 404
    length = headers.get(b"content-length", b"0" if method == "GET" else b"")
    if b"transfer-encoding" in headers or not length.isdigit():
        return 411
    return 413 if int(length) > LARGEST else 0


# -- pictures for the page -------------------------------------------------------------------------


def figure(example: Tensor, modality: Modality, caption: str, plays: bool = False) -> str:
    """Return an example as HTML: a picture inline, so that no second request is needed.

    Args:
        example: ``[...]``.
        modality: how it is drawn; with a sound it can be played, and kept as a file.
        caption: what is said below it.
        plays: whether the sound begins at once.
    """
    is_image = example.dim() == 3
    shown = example.expand(3, -1, -1) if is_image else modality.picture(example.unsqueeze(0), 1)
    escaped = html.escape(caption)
    image = f'<img src="{uri(png(shown))}" alt="{escaped}">'
    if "wav" not in modality.formats:
        return f"<figure>{image}<figcaption>{escaped}</figcaption></figure>"
    sound, score = (
        f"data:audio/{kind};base64,{base64.b64encode(modality.formats[suffix](example)).decode()}"
        for kind, suffix in (("wav", "wav"), ("midi", "mid"))
    )
    player = f'<audio controls{" autoplay" * plays} src="{sound}"></audio>'
    link = f'<a download="melody.mid" href="{score}">MIDI</a>'
    return f"<figure>{image}{player}<figcaption>{escaped} {link}</figcaption></figure>"


def legend(labels: Tensor | None, names: Sequence[str]) -> str:
    """Return the colours of the map's labels ``[N]`` as HTML; nothing where there are none."""
    if labels is None:
        return ""
    colours = colormaps["tab10" if len(names) <= 10 else "tab20"]
    dots = [
        f'<span><b style="background: {to_hex(colours(label))}"></b>{html.escape(name)}</span>'
        for label, name in enumerate(names)
        if (labels == label).any()
    ]
    return f'<div class="legend">{"".join(dots)}</div>'


def uri(file: bytes) -> str:
    """Return a PNG file as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(file).decode()}"


def read(address: str) -> Tensor:
    """Return the canvas's drawing ``[H, W]`` in [0, 1].

    Raises:
        ValueError: it is larger than the canvas, and would be decoded to any size.
    """
    with Image.open(
        io.BytesIO(base64.b64decode(address.partition(",")[2])), formats=["PNG"]
    ) as drawing:
        if max(drawing.size) > CANVAS:
            raise ValueError(f"a drawing of {drawing.size} pixels")
        grey = drawing.convert("L")
    return (
        torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(grey.height, grey.width)
        / WHITE
    )
