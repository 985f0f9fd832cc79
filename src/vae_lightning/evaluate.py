"""Test a trained VAE: ``python -m vae_lightning.evaluate checkpoint=<file or run directory> [key=value ...]``."""

import logging

from omegaconf import DictConfig

from vae_lightning.configuration import command, make_run_directory, save_configuration

log = logging.getLogger(__name__)


@command("evaluate")
def main(config: DictConfig) -> None:
    """Load the model and the protocol it was trained by, test, and write the figures."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    from lightning import Trainer

    from vae_lightning import checkpoints, experiment, report
    from vae_lightning.data import MNISTDataModule

    experiment.quieten_lightning()
    file = checkpoints.find_checkpoint(config.checkpoint)
    module = checkpoints.load_module(file)
    trained_with = checkpoints.load_data_settings(file)
    protocol = {key: value for key, value in trained_with.items() if key not in config.data}
    data = experiment.build_part("data", MNISTDataModule, config.data, **protocol)
    trainer = experiment.build_part(
        "trainer",
        Trainer,
        config.trainer,
        accelerator=experiment.choose_accelerator(config.trainer.accelerator),
        logger=False,
        enable_checkpointing=False,
    )
    figures = experiment.run_test(trainer, module, data)
    directory = make_run_directory("evaluate")
    save_configuration(config, directory)
    written = report.write_metrics(directory, figures, data, {"checkpoint": str(file)})
    log.info(report.table(figures, {"checkpoint": file, "figures": written}))


if __name__ == "__main__":
    main()
