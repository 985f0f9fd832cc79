"""Train the classifier that measures samples: ``python -m vae_lightning.train_classifier``."""

import logging

from omegaconf import DictConfig

from vae_lightning.cli.command import command
from vae_lightning.runs.directory import make_run_directory, save_configuration

log = logging.getLogger(__name__)


@command("train_classifier")
def main(config: DictConfig) -> None:
    """Train on all training images, test, and write the weights with their accuracy."""
    # Imported here, so that --help and a mistyped key are answered without waiting for torch.
    import torch
    from pydantic import PositiveInt
    from safetensors.torch import save_file
    from torch.nn.functional import cross_entropy

    from vae_lightning.configuration.building import build_part, require
    from vae_lightning.data.batches import Seed
    from vae_lightning.data.mnist import MNISTDataModule
    from vae_lightning.evaluation.classifier import DigitClassifier
    from vae_lightning.runs.processor import flush_denormals

    seed = require("seed", config.seed, Seed)
    epochs = require("epochs", config.epochs, PositiveInt)
    data = build_part("data", MNISTDataModule, config.data, val_size=0, seed=seed)
    data.prepare_data()
    data.setup()
    flush_denormals()
    torch.manual_seed(seed)
    classifier, batches = DigitClassifier(), data.train_dataloader()
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 4e-3, total_steps=epochs * len(batches)
    )
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        for position, batch in enumerate(batches):
            # Shifted by up to two pixels, so that the features don't hang on where a digit stands.
            shifts = torch.randint(-2, 3, (2,)).tolist()
            assert batch.y is not None
            loss = cross_entropy(classifier(batch.x.roll(shifts, dims=(-2, -1))), batch.y)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if position == len(batches) - 1:
                log.info("epoch %d/%d   loss %.3f", epoch + 1, epochs, loss.item())
    with torch.inference_mode():
        test = data.test_dataloader()
        right = [
            classifier.eval()(batch.x).argmax(1).eq(batch.y)
            for batch in test
            if batch.y is not None
        ]
    accuracy = torch.cat(right).double().mean().item()
    directory = make_run_directory("train_classifier")
    save_configuration(config, directory)
    metadata = {
        "test_accuracy": f"{accuracy:.4f}",
        "command": f"python -m vae_lightning.train_classifier seed={seed} epochs={epochs} "
        f"data.batch_size={data.batch_size} data.name={data.name}",
        "data": data.name,
        "torch": torch.__version__,
    }
    save_file(classifier.state_dict(), directory / "classifier.safetensors", metadata)
    log.info(
        "%.2f %% of the test images are recognised; weights in %s",
        100 * accuracy,
        directory / "classifier.safetensors",
    )


if __name__ == "__main__":
    main()
