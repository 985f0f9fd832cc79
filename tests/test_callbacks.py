"""Pictures that compare across epochs and disturb nothing; progress that counts right."""

import logging
import time

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from vae_lightning import VAEModule
from vae_lightning.callbacks import PriorSamples, Progress, Reconstructions
from vae_lightning.callbacks.progress import Throughput
from vae_lightning.pictures import grid, reconstruction_grid, sample_grid


def fit(subset, tmp_path, *callbacks, epochs=2, logger=False, **settings):
    torch.manual_seed(0)
    module = VAEModule(latent_dim=3, hidden_dims=[20])
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger,
        callbacks=list(callbacks),
        **silent,
        **settings,
    )
    trainer.fit(module, subset)
    return module


def read(file):
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def test_pictures_are_written_after_every_epoch_as_files_and_to_tensorboard(subset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
    fit(subset, tmp_path, Reconstructions(), PriorSamples(), logger=logger)
    names = sorted(file.name for file in (tmp_path / "images").iterdir())
    assert names == [f"{kind}_{epoch:03d}.png" for kind in ("prior_samples", "reconstructions") for epoch in (1, 2)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for tag in ("images/reconstructions", "images/prior_samples"):
        assert [event.step for event in events.Images(tag)] == [10, 20]


def test_pictures_come_as_often_as_asked_for(subset, tmp_path):
    fit(subset, tmp_path, PriorSamples(every_n_epochs=2), epochs=5)
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["prior_samples_002.png", "prior_samples_004.png"]


def test_pictures_change_neither_the_weights_nor_the_random_state_nor_the_mode(subset, tmp_path):
    without = fit(subset, tmp_path)
    state = torch.get_rng_state()
    with_pictures = fit(subset, tmp_path, Reconstructions(), PriorSamples())
    assert torch.equal(state, torch.get_rng_state())
    assert with_pictures.training
    for ours, theirs in zip(with_pictures.parameters(), without.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_top_row_is_the_first_validation_images_to_the_grey_level(subset, tmp_path):
    fit(subset, tmp_path, Reconstructions(count=4))
    drawn = read(tmp_path / "images" / "reconstructions_002.png")[0]
    originals = subset.images["train"][subset.val_indices[:4], 0]
    for i, original in enumerate(originals):
        left = 2 + i * 58  # 28 pixels drawn as 56, and 2 between
        assert torch.equal(drawn[2:58:2, left : left + 56 : 2], original)


def test_prior_samples_are_drawn_from_the_same_latents_in_every_epoch(subset, tmp_path):
    module = fit(subset, tmp_path, PriorSamples(count=4), epochs=1)
    expected = sample_grid(module.vae.sample(4, generator=torch.Generator().manual_seed(0)))
    drawn = read(tmp_path / "images" / "prior_samples_001.png") / 255
    torch.testing.assert_close(drawn, expected.detach(), rtol=0, atol=0.5 / 255 + 1e-6)


def test_nothing_is_rescaled():
    dim = torch.full((2, 1, 3, 3), 0.25)
    assert (grid(dim, columns=2, zoom=1) == 0.25).any()
    assert reconstruction_grid(dim, dim).max() == 0.5  # the lines between


def test_without_validation_images_the_first_test_images_are_drawn(subset):
    from vae_lightning import MNISTDataModule

    data = MNISTDataModule(name="mnist_subset", dir=str(subset.folder.parent), val_size=0, eval_batch_size=2)
    data.setup()
    assert torch.equal(data.examples(3).images, subset.images["test"][:3] / 255)


def test_a_line_is_told_for_each_epoch_with_its_own_figures(subset, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="vae_lightning")
    fit(subset, tmp_path, Progress())
    lines = [record.message for record in caplog.records if record.message.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines]
    assert losses[0] > losses[1] > 0
    assert all("validation ELBO -" in line for line in lines)


def test_an_epoch_without_validation_tells_no_validation_figure(subset, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="vae_lightning")
    fit(subset, tmp_path, Progress(), epochs=3, check_val_every_n_epoch=2)
    lines = [record.message for record in caplog.records if record.message.startswith("epoch")]
    assert ["validation ELBO" in line for line in lines] == [False, True, False]


def test_throughput_counts_training_images_and_leaves_validation_out(subset, tmp_path, monkeypatch):
    original, calls = VAEModule.validation_step, []

    def slow_validation(self, batch):
        calls.append(1)
        time.sleep(0.5)
        original(self, batch)

    monkeypatch.setattr(VAEModule, "validation_step", slow_validation)
    throughput = Throughput()
    started = time.perf_counter()
    fit(subset, tmp_path, throughput, epochs=1, val_check_interval=2, num_sanity_val_steps=0)  # also between training batches
    assert throughput.images == 320
    assert len(calls) == 5
    assert throughput.seconds < time.perf_counter() - started - 0.5 * len(calls)


@pytest.mark.parametrize("wrong", [{"every_n_epochs": 0}, {"count": -1}, {"count": "many"}], ids=str)
def test_callbacks_refuse_values_that_mean_nothing(wrong):
    with pytest.raises(ValueError, match="validation error"):
        PriorSamples(**wrong)
