"""Walk through latent space on a local page.

``python -m vae_lightning.explore checkpoint=<file or run>``
"""

import logging

from omegaconf import DictConfig

from vae_lightning.cli.command import command
from vae_lightning.configuration.quoting import override
from vae_lightning.errors import ConfigurationError

log = logging.getLogger(__name__)


@command("explore", positional="checkpoint")
def main(config: DictConfig) -> None:
    """Encode a split and serve the page on this machine alone, until Ctrl-C."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    import importlib.util
    from tempfile import TemporaryDirectory
    from typing import Annotated

    from pydantic import Field, PositiveInt

    from vae_lightning.configuration.building import require
    from vae_lightning.data.datamodule import Split
    from vae_lightning.data.music import midi
    from vae_lightning.models.base import DiscreteModel, LatentModel, with_codes
    from vae_lightning.runs.trained import choose_split, open_checkpoint
    from vae_lightning.visualization import code_page, drawings, explorer, explorer_page

    split = require("split", config.split, Split)
    sliders = require("sliders", config.sliders, PositiveInt)
    port = require("port", config.port, Annotated[int, Field(ge=0, le=65535)])
    trained = open_checkpoint(config)
    if not importlib.util.find_spec("gradio"):
        raise ConfigurationError("gradio is missing: pip install 'vae-lightning[explore]'")
    if "mid" in trained.modality.formats:
        midi.library()  # the page's links need it
    try:
        listening = explorer_page.listen(port)
    except OSError as error:
        raise ConfigurationError(
            f"port={port}: {error.strerror}; port=0 takes a free one"
        ) from error
    with listening, TemporaryDirectory() as scratch:
        data, file = trained.read_data(config.data), trained.file
        model, title = with_codes(trained.model), f"{file}, {data.name} {split}"
        if isinstance(model, LatentModel):
            explored = explorer.explore(model, data, choose_split(data, split))
            blocks = explorer_page.build(explored, sliders, title, scratch)
        elif isinstance(model, DiscreteModel) and not drawings.missing("codes", model):
            examples = next(iter(choose_split(data, split)))
            blocks = code_page.build(code_page.CodeExplorer(model, data, examples), title, scratch)
        else:
            named = override("checkpoint", file)
            raise ConfigurationError(f"{named}: the model has neither latents nor a grid of codes")
        log.info("http://%s:%d shows %s; Ctrl-C ends it", *listening.getsockname(), file)
        explorer_page.serve(blocks, listening)


if __name__ == "__main__":
    main()
