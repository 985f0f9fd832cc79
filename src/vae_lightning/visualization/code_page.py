"""The explorer of a model with a grid of codes: click a cell, choose another code."""

from typing import Any

import torch
from torch import Tensor

from vae_lightning.configuration.quoting import markdown
from vae_lightning.data.datamodule import DataModule
from vae_lightning.data.modality import png
from vae_lightning.models.base import Batch, DiscreteModel
from vae_lightning.visualization.drawings import images_of_codes
from vae_lightning.visualization.explorer_page import PICK, QUICK, figure, prepare, uri
from vae_lightning.visualization.grids import code_colours

PALETTE_COLUMNS = 16
"""Codes in a row of the palette."""

_CLICKED = (
    '<div class="map"><img src="${value[0]}" style="image-rendering: pixelated" alt="codes">'
    '<i style="left: ${value[1]}%; top: ${value[2]}%"></i></div>'
)


class CodeExplorer:
    """Images as a model's codes, which may be changed one by one.

    Attributes:
        examples: ``[N, C, H, W]``.
        labels: ``[N]``; None where there are none.
        codes: the grid of each, ``[N, h, w]``.
    """

    def __init__(self, model: DiscreteModel, data: DataModule, batch: Batch) -> None:
        """Encode examples."""
        self.model, self.data = model, data
        self.examples, self.labels = batch.x, batch.y
        self.codes = self._encode(batch)

    @torch.inference_mode()
    def _encode(self, batch: Batch) -> Tensor:
        code: Tensor = self.model.encode(self.model.take(batch))["code"].cpu()
        return code

    @torch.inference_mode()
    def decode(self, code: Tensor) -> Tensor:
        """Return the image ``[C, H, W]`` of a grid ``[h, w]``."""
        return self.model.decode_codes(code[None])[0].float().cpu()

    def palette(self) -> Tensor:
        """Return what a grid of each code alone decodes to, as one picture ``[3, H, W]``."""
        images = images_of_codes(self.model)
        missing = -len(images) % PALETTE_COLUMNS
        rows = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
        rows = rows.expand(-1, 3, -1, -1).reshape(-1, PALETTE_COLUMNS, 3, *rows.shape[-2:])
        square: Tensor = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
        return square

    def cell_at(self, across: float, down: float) -> int:
        """Return the cell of the grid at shares of its picture, in the order of reading."""
        height, width = self.model.code_shape
        return _index(down, height) * width + _index(across, width)

    def code_at(self, across: float, down: float) -> int:
        """Return the code at shares of the palette; in its empty end the last one."""
        rows = -(-self.model.codes // PALETTE_COLUMNS)
        code = _index(down, rows) * PALETTE_COLUMNS + _index(across, PALETTE_COLUMNS)
        return min(code, self.model.codes - 1)


def _index(share: float, count: int) -> int:
    return min(max(int(share * count), 0), count - 1)


def _middle(number: int, columns: int, rows: int) -> list[float]:
    """Return where a cell's middle lies, in per cent from the left and from above."""
    return [100 * (number % columns + 0.5) / columns, 100 * (number // columns + 0.5) / rows]


def build(explorer: CodeExplorer, title: str, scratch: str) -> Any:
    """Build the page as a ``gradio.Blocks``; see ``explorer_page.build``."""
    prepare(scratch)
    import gradio as gr

    height, width = explorer.model.code_shape
    palette = uri(png(explorer.palette()))
    palette_rows = -(-explorer.model.codes // PALETTE_COLUMNS)
    noun = explorer.data.modality.noun

    def shown(code: list[int], cell: int) -> list[Any]:
        """Return what goes with a grid: its picture, the palette's marker, the image."""
        grid = torch.tensor(code).view(height, width)
        colours = uri(png(code_colours(grid[None])[0]))
        decoded = figure(explorer.decode(grid), explorer.data.modality, "decoded from these codes")
        places = [_middle(cell, width, height), _middle(code[cell], PALETTE_COLUMNS, palette_rows)]
        return [[colours, *places[0]], [palette, *places[1]], decoded]

    def take(number: int) -> list[Any]:
        """Return what changes with another image."""
        number, cell = int(number), height // 2 * width + width // 2
        caption = f"{noun} {number}"
        if explorer.labels is not None:
            caption += f": {explorer.data.spec.class_names[int(explorer.labels[number])]}"
        image = figure(explorer.examples[number], explorer.data.modality, caption)
        code = explorer.codes[number].flatten().tolist()
        return [code, cell, image, *shown(code, cell)]

    def picked(code: list[int], event: gr.EventData) -> list[Any]:
        cell = explorer.cell_at(event.across, event.down)
        return [cell, *shown(code, cell)]

    def chosen(code: list[int], cell: int, event: gr.EventData) -> list[Any]:
        changed = [*code]
        changed[cell] = explorer.code_at(event.across, event.down)
        return [changed, *shown(changed, cell)]

    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.Markdown(f"### {markdown(title)}")
        code, cell = gr.State([]), gr.State(0)
        with gr.Row():
            with gr.Column(min_width=180):
                image = gr.HTML(elem_classes="picture", elem_id="image")
                number = gr.Slider(
                    0, len(explorer.examples) - 1, 0, step=1, label=f"test {noun}", buttons=[]
                )
                again = gr.Button("Its own codes", size="sm")
            with gr.Column(min_width=180):
                gr.Markdown("**Click** a code of the grid:")
                grid = gr.HTML(["", 0, 0], html_template=_CLICKED, js_on_load=PICK, elem_id="grid")
            with gr.Column(min_width=180):
                decoded = gr.HTML(elem_classes="picture", elem_id="decoded")
        gr.Markdown("**Choose** what stands there: each code, as a grid of it alone decodes")
        codebook = gr.HTML(
            [palette, 0, 0], html_template=_CLICKED, js_on_load=PICK, elem_id="palette"
        )
        everything = [code, cell, image, grid, codebook, decoded]
        number.input(take, [number], everything, **QUICK)
        again.click(take, [number], everything, **QUICK)
        grid.pick(picked, [code], [cell, grid, codebook, decoded], **QUICK)
        codebook.pick(chosen, [code, cell], [code, grid, codebook, decoded], **QUICK)
        blocks.load(take, [number], everything, **QUICK)
    return blocks
