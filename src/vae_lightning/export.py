"""Write a model for other programs: ``python -m vae_lightning.export checkpoint=<file or run>``."""

import logging

from omegaconf import DictConfig

from vae_lightning.cli.command import command
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.directory import new_run_directory

log = logging.getLogger(__name__)


@command("export", positional="checkpoint")
def main(config: DictConfig) -> None:
    """Write the model in each format and a model card, once every file computes the same."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    from importlib.util import find_spec

    from vae_lightning.configuration.building import require_list
    from vae_lightning.exporting import model_card, programs
    from vae_lightning.runs.trained import open_checkpoint

    formats = require_list("formats", config.formats, programs.Format)
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if not find_spec(name)]
    if "onnx" in formats and missing:
        raise ConfigurationError(
            f"formats=[onnx]: needs {', '.join(missing)}: pip install 'vae-lightning[export]'"
        )
    trained = open_checkpoint(config)
    model = trained.model  # read before a directory is made
    with new_run_directory("export", config) as writing:
        differences = programs.write(model, formats, writing)
        card = model_card.compose(trained, differences)
        (writing / "README.md").write_text(card, encoding="utf-8")
    directory = writing.parent
    for name, difference in differences.items():
        size = (directory / name).stat().st_size / 1e6
        line = "%-18s %5.1f MB   largest difference from the model %.1e"
        log.info(line, name, size, difference)
    if not model.exports() and set(formats) != {"safetensors"}:
        log.info("No ONNX and torch.export programs: the model has no parts to export")
    log.info("The files, and README.md that says how to use them: %s", directory)


if __name__ == "__main__":
    main()
