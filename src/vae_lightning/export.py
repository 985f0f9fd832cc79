"""Write a VAE for other programs: ``python -m vae_lightning.export checkpoint=<file or run directory> [key=value ...]``."""

import logging

from omegaconf import DictConfig

from vae_lightning.commands import command
from vae_lightning.configuration import ConfigurationError
from vae_lightning.directories import make_run_directory, save_configuration

log = logging.getLogger(__name__)


@command("export")
def main(config: DictConfig) -> None:
    """Write the model in each format and a model card, once every file has been found to compute the same."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    import shutil
    from importlib.util import find_spec
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from vae_lightning import checkpoints, experiment, exporting, model_card

    formats = experiment.require_list("formats", config.formats, exporting.Format)
    missing = [package for package in ("onnx", "onnxruntime", "onnxscript") if not find_spec(package)]
    if "onnx" in formats and missing:
        raise ConfigurationError(f"formats=[onnx]: needs {', '.join(missing)}: pip install 'vae-lightning[export]'")
    file = checkpoints.find_checkpoint(experiment.require("checkpoint", config.checkpoint, str))
    module = checkpoints.load_module(file).eval().requires_grad_(False)
    with TemporaryDirectory() as passed:  # a run directory is made once there is something to keep
        differences = exporting.write(module, formats, Path(passed))
        (Path(passed) / "README.md").write_text(model_card.compose(module, file, differences), encoding="utf-8")
        directory = make_run_directory("export")
        save_configuration(config, directory)
        for written in Path(passed).iterdir():
            shutil.move(written, directory)
    for name, difference in differences.items():
        size = (directory / name).stat().st_size / 1e6
        log.info("%-18s %5.1f MB   largest difference from the model %.1e", name, size, difference)
    log.info("The files, and README.md that says how to use them: %s", directory)


if __name__ == "__main__":
    main()
