"""Walk through latent space on a local web page: ``python -m vae_lightning.explore checkpoint=<file or run directory>``."""

import logging

from omegaconf import DictConfig

from vae_lightning.commands import command
from vae_lightning.configuration import ConfigurationError

log = logging.getLogger(__name__)


@command("explore")
def main(config: DictConfig) -> None:
    """Encode a split and serve the page on this machine alone, until Ctrl-C."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    import importlib.util
    from typing import Annotated, Literal

    from pydantic import Field, PositiveInt

    from vae_lightning import checkpoints, experiment, explorer, page

    split = experiment.require("split", config.split, Literal["train", "val", "test"])
    sliders = experiment.require("sliders", config.sliders, PositiveInt)
    port = experiment.require("port", config.port, Annotated[int, Field(ge=0, le=65535)])
    file = checkpoints.find_checkpoint(experiment.require("checkpoint", config.checkpoint, str))
    if not importlib.util.find_spec("gradio"):
        raise ConfigurationError("gradio is missing: pip install 'vae-lightning[explore]'")
    try:
        listening = page.listen(port)
    except OSError as error:
        raise ConfigurationError(f"port={port}: {error.strerror}; port=0 takes a free one") from error
    with listening:
        module = checkpoints.load_module(file).eval().requires_grad_(False)
        data = experiment.build_data_as_trained(config.data, checkpoints.load_data_settings(file), module)
        explored = explorer.explore(module.vae, experiment.choose_split(data, split), binary=data.binarization != "none")
        blocks = page.build(explored, sliders, f"{file}, {data.dataset} {split}")
        log.info("http://%s:%d shows %s; Ctrl-C ends it", *listening.getsockname(), file)
        page.serve(blocks, listening)


if __name__ == "__main__":
    main()
