"""Training as a user types it, on real digits."""

import concurrent.futures
import json
import re

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata

import vae_lightning
from conftest import SUBSET, evaluated, run, train_in, typed

QUICK = ["trainer.max_epochs=1", "callbacks=minimal"]


def metrics_of(directory):
    return json.loads((directory / "metrics.json").read_text())


def links(directory):
    """Return the names of the checkpoints that stand for another."""
    return [path.name for path in (directory / "checkpoints").iterdir() if path.is_symlink()]


def events_of(directory):
    return EventAccumulator(str(directory / "tensorboard")).Reload()


# -- what a run leaves ----------------------------------------------------------------------------


def test_a_run_leaves_what_the_plan_says(trained):
    found = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    each_epoch, at_the_end = ("prior_samples", "reconstructions"), ("traversals", "interpolation")
    pictures = {f"images/{kind}_{epoch:03d}.png" for kind in each_epoch for epoch in (1, 2)}
    pictures |= {f"images/{kind}_002.png" for kind in (*at_the_end, "latents", "kl")}
    files = {"metrics.json", "train.log", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert files | pictures <= found
    assert {".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml"} <= found
    assert any(name.startswith("tensorboard/events") for name in found)
    assert yaml.safe_load((trained / ".hydra/config.yaml").read_text())["model"]["latent_dim"] == 3
    assert "model.latent_dim=3" in yaml.safe_load((trained / ".hydra/overrides.yaml").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", trained.name)


def test_the_metrics_carry_their_protocol(trained):
    metrics = metrics_of(trained)
    figures, protocol, made = metrics["figures"], metrics["protocol"], metrics["run"]
    assert set(figures) >= {"test/loss", "test/elbo", "test/log_likelihood", "test/kl"}
    assert figures["test/elbo"] == pytest.approx(-figures["test/loss"])
    assert protocol["data"] == "mnist_subset"
    assert protocol["binarization"].startswith("none: grey levels")
    assert (made["seed"], made["epochs"], made["test_examples"]) == (1, 2, 200)


def test_the_metrics_say_how_each_figure_is_read(trained):
    metrics = metrics_of(trained)
    assert metrics["comparison"] == "test/elbo"
    assert metrics["terms"] == ["test/elbo", "test/log_likelihood", "test/kl"]
    assert set(metrics["described"]) == set(metrics["figures"])
    described = {"label": "ELBO", "unit": "nats per image", "better": "max", "per": ""}
    assert metrics["described"]["test/elbo"] == described
    assert metrics["described"]["test/loss"]["better"] == "min"


def test_the_log_holds_the_epochs_the_table_and_where_things_lie(trained):
    log = (trained / "train.log").read_text()
    for words in (
        "epoch 2/2",
        "test ELBO",
        "log-likelihood",
        "KL",
        "images/s",
        "tensorboard --logdir",
        str(trained.name),
    ):
        assert words in log


# -- the dashboard --------------------------------------------------------------------------------


def test_the_hparams_tab_has_the_settings_and_the_final_figures_of_a_run(
    trained, tmp_path, monkeypatch
):
    arguments = ["samples=3", "data.limit_test=10"]
    figures = evaluated(trained, tmp_path, monkeypatch, *arguments)["figures"]
    events = events_of(trained)
    content = events.summary_metadata
    started = metadata.parse_session_start_info_plugin_data(
        content[metadata.SESSION_START_INFO_TAG].plugin_data.content
    )
    assert started.hparams["model.latent_dim"].number_value == 3
    assert started.hparams["model.hidden_dims"].string_value == "[400]"
    assert started.hparams["optimizer.learning_rate"].number_value == 1e-3
    assert started.hparams["data.binarization"].string_value == "none"
    assert started.hparams["trainer.max_epochs"].number_value == 2
    assert started.hparams["seed"].number_value == 1
    experiment = metadata.parse_experiment_plugin_data(
        content[metadata.EXPERIMENT_TAG].plugin_data.content
    )
    differing = {info.name for info in experiment.hparam_infos if info.differs}
    assert differing == {"trainer.max_epochs", "model.latent_dim"}
    assert {info.name for info in experiment.hparam_infos} == set(started.hparams)
    tags = [metric.name.tag for metric in experiment.metric_infos]
    assert {"test/elbo", "test/kl", "test/active_units"} < set(tags[:5])  # which TensorBoard ticks
    assert tags[5:] == ["evaluate/test/log_marginal"]  # and this not: not every run has it
    assert set(tags) <= set(events.Tags()["scalars"])
    theirs = metrics_of(trained)["figures"]
    for tag in ("test/elbo", "test/kl"):
        assert events.Scalars(tag)[-1].value == pytest.approx(theirs[tag], rel=1e-6)
    assert 0 <= events.Scalars("test/active_units")[-1].value <= 3
    measured = events.Scalars("evaluate/test/log_marginal")[-1].value
    assert measured == pytest.approx(figures["test/log_marginal"], rel=1e-6)


def test_a_card_says_how_the_run_was_made(trained):
    [card] = events_of(trained).Tensors("run/text_summary")
    text = card.tensor_proto.string_val[0].decode()
    version = f"| vae_lightning | `{vae_lightning.__version__}` |"
    for words in ("model.latent_dim=3", torch.__version__, "cpu", version):
        assert words in text


def test_training_and_validation_of_a_quantity_share_a_chart(trained):
    events = events_of(trained)
    [written] = events.Tensors("custom_scalars__config__")
    [category] = Layout.FromString(written.tensor_proto.string_val[0]).category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    for name in ("elbo", "log_likelihood", "kl", "loss"):
        drawn = [*events.Tags()["scalars"], f"train/{name}"]
        # TensorBoard looks tags up as regular expressions.
        found = {tag for tag in drawn if any(re.search(each, tag) for each in charts[name])}
        assert found == {f"train/{name}_epoch", f"val/{name}"}


# -- settings, recipes and callbacks --------------------------------------------------------------

OTHERS = [
    "model=convolutional model.channels=[4,8]",
    "optimizer=adamw optimizer.weight_decay=0.01",
    "experiment=jaanli",
    "experiment=aevb",
    "experiment=iwae",
    "experiment=speedrun",
    "experiment=vqvae",
]


@pytest.mark.parametrize("settings", OTHERS)
def test_other_networks_and_recipes_train(tmp_path, settings):
    directory = train_in(tmp_path, *settings.split(), "trainer.max_steps=3")
    assert metrics_of(directory)["run"]["steps"] == 3


def test_an_importance_weighted_run_is_chosen_by_its_own_bound(tmp_path):
    objective = ["model.objective=iwae", "model.num_samples=3"]
    directory = train_in(tmp_path, *objective, "trainer.max_epochs=2")
    last = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)
    # As it was written before the second validation.
    [best] = [each["best"] for each in last["callbacks"].values() if "best" in each]
    events = events_of(directory)
    assert best == pytest.approx(events.Scalars("val/importance_bound")[0].value, rel=1e-6)
    assert best != pytest.approx(events.Scalars("val/elbo")[0].value, rel=1e-6)
    # It is of so many samples, and compares with no other run; the unweighted bound does.
    assert metrics_of(directory)["comparison"] == "test/elbo"


def test_a_fast_dev_run_passes_through_every_part(tmp_path):
    directory = train_in(tmp_path, "trainer.fast_dev_run=true")
    names = ("interpolation", "kl", "latents", "prior_samples", "reconstructions", "traversals")
    written = sorted(path.name for path in (directory / "images").iterdir())
    assert written == [f"{name}_001.png" for name in names]
    assert metrics_of(directory)["run"]["steps"] == 1


@pytest.mark.parametrize("logger", ["csv", "none"])
def test_loggers_can_be_chosen(tmp_path, logger):
    directory = train_in(tmp_path, *QUICK, f"logger={logger}")
    assert (directory / "csv" / "metrics.csv").exists() == (logger == "csv")
    assert not (directory / "tensorboard").exists()


def test_without_validation_only_the_last_checkpoint_is_kept_and_tested(tmp_path, capsys):
    directory = train_in(tmp_path, *QUICK, "data.val_size=0")
    assert links(directory) == ["last.ckpt"]
    shown = capsys.readouterr().out
    assert "last checkpoint, of step 4" in shown
    assert "none of these is a likelihood of binary images" in shown


def test_without_checkpoint_callbacks_none_is_written(tmp_path):
    train_in(tmp_path, *QUICK, "~callbacks.best", "~callbacks.last")
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_example_looks_at_the_test_images_and_chooses_nothing_by_them(tmp_path):
    # In another order the subset's own val_size would come after the recipe's.
    directory = train_in(tmp_path, *QUICK, "experiment=pytorch_example")
    assert links(directory) == ["last.ckpt"]
    events, figures = events_of(directory), metrics_of(directory)["figures"]
    for name in ("loss", "loss_at_posterior_mean"):
        [event] = events.Scalars(f"val/{name}")
        assert event.value == pytest.approx(figures[f"test/{name}"], rel=1e-6)


def test_callbacks_can_be_left_out_by_name(tmp_path):
    names = ("prior_samples", "traversals", "interpolation", "latent_map", "best")
    without = [f"~callbacks.{name}" for name in names]
    without += [f"callbacks.{name}=null" for name in ("reconstructions", "kl_bars", "projector")]
    directory = train_in(tmp_path, "trainer.max_epochs=1", *without)
    assert not (directory / "images").exists()
    assert not list(directory.rglob("sprite.png"))
    assert links(directory) == ["last.ckpt"]


def test_a_callback_can_be_added_by_name(tmp_path):
    stop = "callbacks.other"
    target = f"+{stop}._target_=lightning.pytorch.callbacks.EarlyStopping"
    settings = {"monitor": "val/elbo", "mode": "max", "min_delta": "1000.0", "patience": "1"}
    settings = [f"+{stop}.{key}={value}" for key, value in settings.items()]
    directory = train_in(tmp_path, target, *settings, "trainer.max_epochs=5")
    assert metrics_of(directory)["run"]["epochs"] == 2


# -- numbers and checkpoints ----------------------------------------------------------------------


def test_the_same_command_twice_gives_the_same_numbers_and_another_seed_others(
    tmp_path, monkeypatch
):
    for seed in (0, 0, 1):
        typed("train", *SUBSET, *QUICK, f"seed={seed}", directory=tmp_path, patch=monkeypatch)
    runs = sorted((tmp_path / "outputs" / "train").iterdir())
    figures = [metrics_of(each)["figures"] for each in runs]
    assert figures[0] == figures[1] != figures[2]


@pytest.mark.slow
def test_the_best_checkpoint_by_validation_elbo_is_what_is_tested(tmp_path, monkeypatch):
    """A learning rate that overshoots makes the best epoch an early one."""
    settings = ["trainer.max_epochs=6", "optimizer.learning_rate=0.05", "data.batch_size=16"]
    directory = train_in(tmp_path, *settings)
    lines = (directory / "train.log").read_text().splitlines()
    shown = [float(line.split("ELBO ")[1].split()[0]) for line in lines if "epoch " in line]
    best, last = (
        torch.load(directory / "checkpoints" / f"{name}.ckpt", weights_only=True)
        for name in ("best", "last")
    )
    assert best["epoch"] == shown.index(max(shown)) < last["epoch"] == 5
    checkpoint = directory / "checkpoints" / "best.ckpt"
    measured = evaluated(checkpoint, tmp_path, monkeypatch, "metrics=[bound]")["figures"]
    figures = metrics_of(directory)["figures"]
    assert measured["test/elbo"] == pytest.approx(figures["test/elbo"], rel=1e-6)


def test_the_last_checkpoint_is_the_last_epochs_whether_it_was_validated_or_not(tmp_path):
    directory = train_in(tmp_path, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2")
    assert torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2


def test_a_run_that_writes_no_checkpoint_tests_the_model_as_it_is(tmp_path, capsys):
    directory = train_in(tmp_path, "~callbacks.last", "~callbacks.best", "trainer.max_epochs=1")
    assert "the model as it is: no checkpoint was written" in capsys.readouterr().out
    assert metrics_of(directory)["run"]["checkpoint"] is None


def test_a_run_that_diverges_says_so_and_keeps_no_checkpoint_of_it(tmp_path, monkeypatch):
    settings = ["optimizer.learning_rate=1e6", "trainer.max_epochs=3"]
    told = r"error: .* is (nan|inf|-inf) at step 2; try a lower optimizer\.learning_rate"
    with pytest.raises(SystemExit, match=told):
        typed("train", *SUBSET, *settings, directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    assert not (directory / "metrics.json").exists()
    written = [path.name for path in (directory / "checkpoints").glob("*_*.ckpt")]
    assert written == ["step_00000000.ckpt"]
    assert "Traceback" in (directory / "train.log").read_text()


# -- directories ----------------------------------------------------------------------------------


def test_a_run_directory_of_ones_own_must_be_empty(tmp_path, monkeypatch):
    line = [*SUBSET, *QUICK, "hydra.run.dir=mine"]
    typed("train", *line, directory=tmp_path, patch=monkeypatch)
    assert (tmp_path / "mine" / "metrics.json").exists()
    with pytest.raises(SystemExit, match=r"hydra\.run\.dir=mine: not empty"):
        typed("train", *line, directory=tmp_path, patch=monkeypatch)


@pytest.mark.slow
def test_a_sweep_gives_each_job_a_directory(tmp_path, monkeypatch):
    line = [*SUBSET, "--multirun", "model.latent_dim=2,3", *QUICK]
    typed("train", *line, directory=tmp_path, patch=monkeypatch)
    jobs = [path.parent for path in sorted(tmp_path.glob("outputs/multirun/*/*/metrics.json"))]
    assert [job.name for job in jobs] == ["0", "1"]
    configs = [yaml.safe_load((job / ".hydra/config.yaml").read_text()) for job in jobs]
    assert [config["model"]["latent_dim"] for config in configs] == [2, 3]


@pytest.mark.slow
def test_runs_started_in_the_same_instant_land_in_different_directories(tmp_path):
    def begin(_):
        return run("train", *SUBSET, "trainer.fast_dev_run=true", cwd=tmp_path)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        finished = list(pool.map(begin, range(2)))
    assert [process.returncode for process in finished] == [0, 0]
    directories = list((tmp_path / "outputs" / "train").iterdir())
    assert len(directories) == 2
    assert all((directory / "metrics.json").exists() for directory in directories)
