"""Pictures that compare across epochs and disturb nothing; progress that counts right."""

import io
import logging
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from lightning import Trainer
from PIL import Image

from conftest import build_module, build_vae
from vae_lightning import Batch, SamplingNoise, VAEModule
from vae_lightning.data.modality import IMAGES
from vae_lightning.runs.loggers import RunLogger
from vae_lightning.runs.provenance import commit_of
from vae_lightning.training.callbacks.dashboard import Dashboard, Projector
from vae_lightning.training.callbacks.latents import SETTLING_STEPS, LatentUse
from vae_lightning.training.callbacks.pictures import LatentPicture, PriorSamples, Reconstructions
from vae_lightning.training.callbacks.progress import Progress, Throughput
from vae_lightning.visualization.grids import reconstruction_grid, sample_grid


def fit(subset, tmp_path, *callbacks, epochs=2, logger=False, latent_dim=3, **settings):
    torch.manual_seed(0)
    module = build_module(latent_dim=latent_dim, hidden_dims=[20])
    silent = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
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
    return torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)


def read_bytes(content):
    return read(io.BytesIO(content))


def test_pictures_are_written_after_every_epoch_as_files_and_to_tensorboard(subset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = RunLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
    fit(subset, tmp_path, Reconstructions(), PriorSamples(), logger=logger)
    names = sorted(file.name for file in (tmp_path / "images").iterdir())
    assert names == [
        f"{kind}_{epoch:03d}.png"
        for kind in ("prior_samples", "reconstructions")
        for epoch in (1, 2)
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for tag in ("images/reconstructions", "images/prior_samples"):
        assert [event.step for event in events.Images(tag)] == [10, 20]


def test_pictures_come_as_often_as_asked_for_and_at_the_end(subset, tmp_path):
    fit(subset, tmp_path, PriorSamples(every_n_epochs=2), epochs=5)
    drawn = sorted(file.name for file in (tmp_path / "images").iterdir())
    assert drawn == ["prior_samples_002.png", "prior_samples_004.png", "prior_samples_005.png"]


def test_pictures_change_neither_the_weights_nor_the_random_state_nor_the_mode(subset, tmp_path):
    without = fit(subset, tmp_path)
    state = torch.get_rng_state()
    with_pictures = fit(
        subset,
        tmp_path,
        Reconstructions(),
        PriorSamples(),
        LatentPicture("traversals", every_n_epochs=1),
    )
    assert torch.equal(state, torch.get_rng_state())
    assert with_pictures.training
    for ours, theirs in zip(with_pictures.parameters(), without.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_top_row_is_the_first_validation_images_to_the_grey_level(subset, tmp_path):
    fit(subset, tmp_path, Reconstructions(count=4))
    drawn = read(tmp_path / "images" / "reconstructions_002.png")[0]
    originals = subset.x["train"][subset.val_indices[:4], 0]
    for i, original in enumerate(originals):
        left = 2 + i * 58  # 28 pixels drawn as 56, and 2 between
        assert torch.equal(drawn[2:58:2, left : left + 56 : 2], original)


def test_prior_samples_are_drawn_from_the_same_latents_in_every_epoch(subset, tmp_path):
    module = fit(subset, tmp_path, PriorSamples(count=4), epochs=1)
    expected = sample_grid(IMAGES, module.model.sample(4, SamplingNoise(4, 0)))
    drawn = read(tmp_path / "images" / "prior_samples_001.png") / 255
    torch.testing.assert_close(drawn, expected.detach(), rtol=0, atol=0.5 / 255 + 1e-6)


def test_nothing_is_rescaled():
    dim = torch.full((2, 1, 3, 3), 0.25)
    assert (IMAGES.picture(dim, columns=2, zoom=1) == 0.25).any()
    assert reconstruction_grid(IMAGES, dim, dim).max() == 0.5  # the lines between


def test_without_validation_images_the_first_test_images_are_drawn(subset):
    from vae_lightning import MNISTDataModule

    data = MNISTDataModule(
        name="mnist_subset", dir=str(subset.folder.parent), val_size=0, eval_batch_size=2
    )
    data.setup()
    assert torch.equal(data.examples(3).x, subset.x["test"][:3] / 255)


def test_a_line_is_told_for_each_epoch_with_its_own_figures(subset, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="vae_lightning")
    fit(subset, tmp_path, Progress())
    lines = [record.message for record in caplog.records if record.message.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines]
    assert losses[0] > losses[1] > 0
    assert all("validation ELBO -" in line for line in lines)


@pytest.mark.parametrize("drawn", [True, False])
def test_a_bar_is_drawn_on_a_terminal_but_where_several_jobs_share_it(
    subset, tmp_path, monkeypatch, capsys, drawn
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    if not drawn:
        monkeypatch.setenv("TQDM_DISABLE", "1")
    fit(subset, tmp_path, Progress())
    assert ("epoch 1/2:   0%|" in capsys.readouterr().err) == drawn


def test_an_epoch_without_validation_tells_no_validation_figure(subset, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="vae_lightning")
    fit(subset, tmp_path, Progress(), epochs=3, check_val_every_n_epoch=2)
    lines = [record.message for record in caplog.records if record.message.startswith("epoch")]
    assert ["validation ELBO" in line for line in lines] == [False, True, False]


@pytest.mark.slow
def test_throughput_counts_training_images_and_leaves_validation_out(subset, tmp_path, monkeypatch):
    original, calls = VAEModule.validation_step, []

    def slow_validation(self, batch):
        calls.append(1)
        time.sleep(0.5)
        original(self, batch)

    monkeypatch.setattr(VAEModule, "validation_step", slow_validation)
    throughput = Throughput()
    started = time.perf_counter()
    # Validation also comes between training batches.
    fit(subset, tmp_path, throughput, epochs=1, val_check_interval=2, num_sanity_val_steps=0)
    assert throughput.examples == 320
    assert len(calls) == 5
    assert throughput.seconds < time.perf_counter() - started - 0.5 * len(calls)


@pytest.mark.parametrize(
    "wrong", [{"every_n_epochs": 0}, {"count": -1}, {"count": "many"}], ids=str
)
def test_callbacks_refuse_values_that_mean_nothing(wrong):
    with pytest.raises(ValueError, match="validation error"):
        PriorSamples(**wrong)


def test_the_other_pictures_come_once_at_the_end_or_as_often_as_asked_for(subset, tmp_path):
    fit(
        subset,
        tmp_path,
        LatentPicture("traversals"),
        LatentPicture("kl", every_n_epochs=2),
        epochs=5,
    )
    names = sorted(file.name for file in (tmp_path / "images").iterdir())
    assert names == ["kl_002.png", "kl_004.png", "kl_005.png", "traversals_005.png"]


def said(caplog):
    return [
        record.getMessage() for record in caplog.records if record.name.startswith("vae_lightning")
    ]


def test_only_two_latents_have_a_manifold(subset, tmp_path, caplog):
    fit(subset, tmp_path, LatentPicture("manifold"), epochs=1)
    assert not (tmp_path / "images").exists()
    assert not said(caplog)  # it is there by default
    fit(subset, tmp_path, LatentPicture("manifold", every_n_epochs=1), epochs=1)
    line = "No picture of the manifold: it needs two latents, and this model has 3"
    assert said(caplog) == [line]
    fit(subset, tmp_path, LatentPicture("manifold"), epochs=1, latent_dim=2)
    assert (tmp_path / "images" / "manifold_001.png").is_file()


def test_a_plot_is_the_same_picture_in_the_dashboard_and_as_a_file(subset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = RunLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
    fit(subset, tmp_path, LatentPicture("latents"), epochs=1, logger=logger)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    [shown] = events.Images("images/latents")
    decoded = read_bytes(shown.encoded_image_string)
    assert torch.equal(decoded, read_bytes((tmp_path / "images" / "latents_001.png").read_bytes()))
    assert len(decoded.unique()) > 10


def test_the_projector_gets_codes_labels_and_digits(subset, tmp_path):
    from tensorboard.plugins.projector import projector_config_pb2

    logger = RunLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
    module = fit(subset, tmp_path, Projector(count=50), epochs=1, logger=logger)
    folder = tmp_path / "tensorboard"
    config = text_format.Parse(
        (folder / "projector_config.pbtxt").read_text(), projector_config_pb2.ProjectorConfig()
    )
    [embedding] = config.embeddings
    assert embedding.tensor_name.startswith("posterior_means")
    rows = [
        list(map(float, line.split()))
        for line in (folder / embedding.tensor_path).read_text().splitlines()
    ]
    batch = Batch(subset.x["test"][:50] / 255)
    torch.testing.assert_close(torch.tensor(rows), module.model.posterior(batch).loc.detach())
    labels = (folder / embedding.metadata_path).read_text().split()
    assert labels == [str(label) for label in subset.y["test"][:50].tolist()]
    sprite = read(folder / embedding.sprite.image_path)[0]
    assert torch.equal(sprite[:28, 28:56], subset.x["test"][1, 0])


def test_the_projector_keeps_the_codes_of_earlier_steps_of_a_run_that_goes_on(subset, tmp_path):
    for epochs in (1, 2):
        logger = RunLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
        fit(subset, tmp_path, Projector(count=50), epochs=epochs, logger=logger)
    config = (tmp_path / "tensorboard" / "projector_config.pbtxt").read_text()
    steps = re.findall(r'tensor_name: "posterior_means:(\d+)"', config)
    assert len(steps) == 2
    assert steps == sorted(steps)


def test_without_tensorboard_there_is_no_dashboard_to_fill(subset, tmp_path):
    fit(subset, tmp_path, Projector(), Dashboard(), epochs=1)
    assert not list(tmp_path.rglob("*.tsv"))


def test_a_commit_is_told_of_a_checkout_only(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    file = tmp_path / "module.py"
    file.write_text("x = 1")
    assert commit_of(file) is None  # no repository
    git("init")
    assert commit_of(file) is None  # a repository that doesn't track it
    git("add", "module.py")
    git("commit", "-m", "Add it")
    clean = commit_of(file)
    assert re.fullmatch("[0-9a-f]{40}", clean)
    file.write_text("x = 2")
    assert commit_of(file) == f"{clean} with changes"


# -- latents --------------------------------------------------------------------------------------


def test_the_kl_of_each_latent_and_the_active_ones_are_logged(subset, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from vae_lightning.evaluation.estimators import active
    from vae_lightning.models.vae.objectives import kl_per_dimension

    logger = RunLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
    module = fit(subset, tmp_path, LatentUse(), logger=logger)
    events = EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance={"histograms": 0}
    ).Reload()
    examples = subset.examples(1000)
    assert len(examples.x) == 80
    posterior = module.model.posterior(examples)
    kl = kl_per_dimension(posterior.loc, posterior.scale).mean(0)
    [_, last] = events.Histograms("latents/kl")
    assert last.step == 20
    assert last.histogram_value.num == 3
    assert last.histogram_value.sum == pytest.approx(kl.sum().item(), rel=1e-5)
    assert [event.step for event in events.Scalars("latents/active_units")] == [10, 20]
    assert events.Scalars("latents/active_units")[-1].value == active(posterior.loc).sum()
    assert module.training


def test_looking_at_the_latents_changes_nothing(subset, tmp_path):
    without, looked_at = fit(subset, tmp_path), fit(subset, tmp_path, LatentUse())
    for ours, theirs in zip(without.parameters(), looked_at.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def warnings_of(caplog, *kls, step=SETTLING_STEPS, kl_weight=1.0, settings=None):
    callback = LatentUse()
    if settings is None:
        settings = build_vae(latent_dim=2, hidden_dims=[2], kl_weight=kl_weight).settings
    for epoch, kl in enumerate(kls, start=1):
        callback._warn(torch.tensor(kl), epoch, step if epoch > 1 else step - 1, settings)
    return [record.getMessage() for record in caplog.records]


def test_the_collapse_of_all_latents_is_told_once_and_says_what_to_try(caplog):
    [message] = warnings_of(caplog, [0.001, 0.002], [0.001, 0.002])
    assert "after epoch 2" in message
    collapsed = "all 2 latents are, since epoch 1. Try a lower model.kl_weight, or model.free_bits"
    assert collapsed in message
    assert f"model.kl_schedule=linear with model.kl_schedule_steps={SETTLING_STEPS}" in message


def test_a_model_without_a_kl_weight_is_told_of_the_collapse_and_of_no_remedy(caplog):
    [message] = warnings_of(caplog, [0.001, 0.002], [0.001, 0.002], settings={"latent_dim": 2})
    assert message.endswith("all 2 latents are, since epoch 1")


def test_a_kl_weight_above_one_is_the_first_thing_to_try(caplog):
    [message] = warnings_of(caplog, [1.0], [0.001], [0.002], kl_weight=20.0)
    assert "all 1 latents are, since epoch 2. Try model.kl_weight=1, " in message


def test_the_loss_of_a_third_of_the_latents_in_use_says_which_and_since_when(caplog):
    used, lost = [1.0, 1.0, 1.0, 0.0], [1.0, 0.001, 1.0, 0.0]
    [message] = warnings_of(caplog, used, used, lost, lost)
    assert "after epoch 3" in message
    assert "1 of 3 latents that were in use are: 1 (since epoch 3)" in message


def test_no_warning_comes_while_latents_are_in_use_or_have_not_settled(caplog):
    assert not warnings_of(caplog, [1.0, 1.0, 1.0, 1.0], [1.0, 0.001, 1.0, 1.0])  # a quarter
    assert not warnings_of(caplog, [0.5, 0.0, 0.0], [0.5, 0.0, 0.0])  # never in use is not lost
    assert not warnings_of(caplog, [0.0, 0.0], step=SETTLING_STEPS - 1)


def test_a_model_whose_kl_costs_too_much_collapses_and_is_warned_of(subset, tmp_path, caplog):
    torch.manual_seed(0)
    module = build_module(latent_dim=3, hidden_dims=[20], kl_weight=1000.0)
    silent = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=60,
        callbacks=[LatentUse()],
        **silent,
    ).fit(module, subset)
    assert [
        record.getMessage()
        for record in caplog.records
        if "Posterior collapse" in record.getMessage()
    ]
