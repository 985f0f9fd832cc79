"""The commands as a user types them, on real digits."""

import concurrent.futures
import csv
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import vae_lightning
from conftest import DATA, SUBSET, run, train_in, typed
from vae_lightning import MNISTDataModule
from vae_lightning.data.sources import read
from vae_lightning.noise import evaluation_noise
from vae_lightning.objectives import log_ratio

QUICK = [*SUBSET, "trainer.max_epochs=1", "callbacks=minimal"]


def test_a_run_leaves_what_the_plan_says(trained):
    found = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    pictures = {f"images/{kind}_{epoch:03d}.png" for kind in ("prior_samples", "reconstructions") for epoch in (1, 2)}
    pictures |= {f"images/{kind}_002.png" for kind in ("traversals", "interpolation", "latents", "kl")}  # once, at the end
    assert {"metrics.json", "train.log", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} | pictures <= found
    assert {".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml"} <= found
    assert any(name.startswith("tensorboard/events") for name in found)
    assert yaml.safe_load((trained / ".hydra/config.yaml").read_text())["model"]["latent_dim"] == 3
    assert "model.latent_dim=3" in yaml.safe_load((trained / ".hydra/overrides.yaml").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", trained.name)


def test_the_metrics_carry_their_protocol(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert set(metrics["figures"]) >= {"test/loss", "test/elbo", "test/log_likelihood", "test/kl"}
    assert metrics["figures"]["test/elbo"] == pytest.approx(-metrics["figures"]["test/loss"])
    assert metrics["protocol"]["data"] == "mnist_subset"
    assert metrics["protocol"]["binarization"].startswith("none: grey levels")
    assert (metrics["run"]["seed"], metrics["run"]["epochs"], metrics["run"]["test_images"]) == (1, 2, 200)


def test_the_log_holds_the_epochs_the_table_and_where_things_lie(trained):
    log = (trained / "train.log").read_text()
    for words in ("epoch 2/2", "test ELBO", "log-likelihood", "KL", "images/s", "tensorboard --logdir", str(trained.name)):
        assert words in log


@pytest.mark.parametrize("eval_batch_size", [7, 200])
def test_evaluate_returns_the_test_figures_of_the_training_run(trained, tmp_path, monkeypatch, eval_batch_size):
    ours = evaluated(trained, tmp_path, monkeypatch, f"data.eval_batch_size={eval_batch_size}", "metrics=[bound]", "samples=1")
    theirs = json.loads((trained / "metrics.json").read_text())
    for name, figure in theirs["figures"].items():
        assert ours["figures"][name] == pytest.approx(figure, rel=1e-6)
    assert ours["protocol"] == theirs["protocol"]


def evaluated(trained, directory, patch, *arguments):
    """Run the evaluation and return what its metrics.json holds."""
    typed("evaluate", f"checkpoint={trained}", SUBSET[1], *arguments, directory=directory, patch=patch)
    *_, written = sorted(directory.glob("outputs/evaluate/*/metrics.json"))
    return json.loads(written.read_text())


def test_evaluate_measures_log_p_and_the_latents_in_use(trained, tmp_path, monkeypatch, capsys):
    figures = evaluated(trained, tmp_path, monkeypatch, "samples=50")["figures"]
    assert figures["test/elbo"] < figures["test/log_marginal"] < 0
    assert 1 <= figures["test/median_effective_samples"] <= 50
    assert 0 < figures["test/log_marginal_estimator_error"] < figures["test/log_marginal_error"]
    assert 0 <= figures["test/active_units"] <= 3
    assert sum(figures["test/kl_per_dimension"]) == pytest.approx(figures["test/kl"], rel=1e-6)
    shown = capsys.readouterr().out
    for words in (
        "log p(x)",
        "a lower bound in expectation, by 50 importance samples",
        "active latents",
        "none of these is a like",
    ):
        assert words in shown


def test_neither_the_memory_bound_nor_the_batch_size_moves_log_p(trained, tmp_path, monkeypatch):
    arguments = ["samples=40", "metrics=[log_marginal]", "data.limit_test=100"]
    settings = (["memory_mb=1", "data.eval_batch_size=7"], ["memory_mb=500"])
    one, other = (evaluated(trained, tmp_path, monkeypatch, *arguments, *each)["figures"] for each in settings)
    assert one == pytest.approx(other, rel=1e-5)


def test_another_protocol_or_split_can_be_asked_for_and_is_named(trained, tmp_path, monkeypatch, capsys):
    arguments = ["metrics=[bound]", "data.binarization=static", "split=val", "data.limit_test=20"]
    written = evaluated(trained, tmp_path, monkeypatch, *arguments)
    assert written["protocol"]["binarization"].startswith("static")
    assert (written["run"]["split"], written["run"]["images"]) == ("val", 20)
    assert "val/elbo" in written["figures"]
    shown = capsys.readouterr().out
    assert "20 val images of mnist_subset, binarisation static" in shown
    assert "another than in training, which had binarization=none" in shown


def test_the_hparams_tab_has_the_settings_and_the_final_figures_of_a_run(trained, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    figures = evaluated(trained, tmp_path, monkeypatch, "samples=3", "data.limit_test=10")["figures"]
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    content = events.summary_metadata
    started = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG].plugin_data.content)
    assert started.hparams["model.latent_dim"].number_value == 3
    assert started.hparams["model.hidden_dims"].string_value == "[400]"
    assert started.hparams["data.binarization"].string_value == "none"
    assert started.hparams["trainer.max_epochs"].number_value == 2
    assert started.hparams["seed"].number_value == 1
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG].plugin_data.content)
    assert {info.name for info in experiment.hparam_infos if info.differs} == {"trainer.max_epochs", "model.latent_dim"}
    assert {info.name for info in experiment.hparam_infos} == set(started.hparams)
    tags = [metric.name.tag for metric in experiment.metric_infos]
    assert {"test/elbo", "test/kl", "test/active_units"} < set(tags[:5])  # which TensorBoard ticks
    assert tags[5:] == ["evaluate/test/log_marginal"]  # and this not: not every run has it
    assert set(tags) <= set(events.Tags()["scalars"])
    theirs = json.loads((trained / "metrics.json").read_text())["figures"]
    for tag in ("test/elbo", "test/kl"):
        assert events.Scalars(tag)[-1].value == pytest.approx(theirs[tag], rel=1e-6)
    assert 0 <= events.Scalars("test/active_units")[-1].value <= 3
    measured = events.Scalars("evaluate/test/log_marginal")[-1].value
    assert measured == pytest.approx(figures["test/log_marginal"], rel=1e-6)


def test_a_card_says_how_the_run_was_made(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    [card] = events.Tensors("run/text_summary")
    text = card.tensor_proto.string_val[0].decode()
    for words in ("model.latent_dim=3", torch.__version__, "cpu", "| vae_lightning | `0.1.0` |"):
        assert words in text


def test_training_and_validation_of_a_quantity_share_a_chart(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    [written] = events.Tensors("custom_scalars__config__")
    [category] = layout_pb2.Layout.FromString(written.tensor_proto.string_val[0]).category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    drawn = events.Tags()["scalars"]
    for name in ("elbo", "log_likelihood", "kl", "loss"):  # tags are looked up as regular expressions
        found = {tag for tag in [*drawn, f"train/{name}"] if any(re.search(each, tag) for each in charts[name])}
        assert found == {f"train/{name}_epoch", f"val/{name}"}


def test_an_evaluation_is_shown_in_the_training_runs_dashboard(trained, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figures = evaluated(trained, tmp_path, monkeypatch, "samples=3", "metrics=[log_marginal]", "data.limit_test=10")["figures"]
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    shown = events.Scalars("evaluate/test/log_marginal")[-1]
    assert (shown.step, shown.value) == (6, pytest.approx(figures["test/log_marginal"], rel=1e-6))


def test_evaluate_measures_what_the_latents_know_and_how_samples_look(trained, tmp_path, monkeypatch, capsys):
    figures = evaluated(trained, tmp_path, monkeypatch, "metrics=[mutual_information,sample_quality,bound]")["figures"]
    assert 0 < figures["test/mutual_information"] <= figures["test/log_images"] == pytest.approx(math.log(200))
    # Hoffman & Johnson's identity: their sum is the mean KL, by the same sample for each image.
    vae = vae_lightning.load(trained)
    data = MNISTDataModule(name="mnist_subset", dir=str(DATA), val_size=80)
    data.setup()
    batch = next(iter(data.split("test")))
    posterior = vae.posterior(batch.images)
    z = posterior.reparameterize(evaluation_noise(batch.indices, 3))
    kl = log_ratio(z, posterior, vae.prior).mean().item()
    assert figures["test/mutual_information"] + figures["test/aggregate_posterior_kl"] == pytest.approx(kl, abs=1e-4)
    assert figures["samples/frechet_distance"] > figures["samples/frechet_distance_floor"] > 0
    assert figures["samples/sample_images"] == 200
    shown = capsys.readouterr().out
    for words in ("I(x; z)", "of at most log 200 = 5.30", "no FID", "precision", "recall"):
        assert words in shown


@pytest.mark.parametrize(
    ("settings", "meaning", "has_bits"),
    [
        (["data.binarization=static"], "log-likelihoods of discrete images", True),
        (["model.likelihood=discretized_logistic"], "log-likelihoods of discrete images", True),
        (["model.likelihood=gaussian", "data.dequantize=true"], "log-densities of dequantised images", True),
        (["model.likelihood=gaussian"], "densities at 256 grey levels, without bound", False),
        (["model.likelihood=continuous_bernoulli"], "densities at 256 grey levels", False),
        ([], "none of these is a likelihood of binary images", False),
    ],
    ids=str,
)
def test_every_figure_says_what_it_is(tmp_path, monkeypatch, capsys, settings, meaning, has_bits):
    typed("train", *QUICK, *settings, directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    assert meaning in json.loads((directory / "metrics.json").read_text())["protocol"]["meaning"]
    written = evaluated(directory, tmp_path, monkeypatch, "metrics=[bound]")
    assert meaning in written["protocol"]["meaning"]
    shown = capsys.readouterr().out
    assert meaning in shown
    assert ("bits/dimension" in shown) == has_bits
    if has_bits:
        figures = written["figures"]
        extra = 8 if "data.dequantize=true" in settings else 0
        bits = -figures["test/elbo"] / (784 * math.log(2)) + extra
        assert figures["test/bits_per_dimension"] == pytest.approx(bits)
        assert figures["test/bits_per_dimension_error"] == pytest.approx(figures["test/elbo_error"] / (784 * math.log(2)))
        assert written["protocol"]["samples"] == 1


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return train_in(tmp_path_factory.mktemp("conditional"), *QUICK[2:], "model=conditional", "model.latent_dim=2")


def test_a_conditional_model_draws_the_label_that_is_asked_for(conditional, tmp_path, monkeypatch):
    typed("sample", f"checkpoint={conditional}", "count=4", "label=7", directory=tmp_path, patch=monkeypatch)
    [written] = tmp_path.glob("outputs/sample/*/samples.png")
    sevens = vae_lightning.load(conditional).sample(4, torch.full((4,), 7), generator=torch.Generator().manual_seed(0))
    picture = Image.open(written)
    drawn = torch.frombuffer(bytearray(picture.convert("L").tobytes()), dtype=torch.uint8).view(picture.height, -1) / 255
    torch.testing.assert_close(drawn[2:58:2, 2:58:2], sevens[0, 0], rtol=0, atol=0.5 / 255 + 1e-6)


def test_a_conditional_model_is_measured_with_its_labels(conditional, tmp_path, monkeypatch):
    measured = evaluated(conditional, tmp_path, monkeypatch, "samples=5")["figures"]
    theirs = json.loads((conditional / "metrics.json").read_text())["figures"]
    assert measured["test/elbo"] == pytest.approx(theirs["test/elbo"], rel=1e-6)
    assert "samples/label_accuracy" in measured


def test_a_label_that_a_model_does_not_know_is_refused(conditional, trained, tmp_path, monkeypatch):
    for checkpoint, label, message in (
        (conditional, 10, "label=10: this model knows labels from 0 to 9"),
        (trained, 7, "label=7: this model knows no labels: train one with model=conditional"),
    ):
        for command in ("sample", "visualize"):
            with pytest.raises(SystemExit, match=message):
                typed(command, f"checkpoint={checkpoint}", f"label={label}", directory=tmp_path, patch=monkeypatch)
    with pytest.raises(SystemExit, match="label=7: says what the pictures of images=<folder> show, and a split has labels"):
        typed("encode", f"checkpoint={conditional}", "label=7", directory=tmp_path, patch=monkeypatch)


def test_without_checkpoint_callbacks_none_is_written(tmp_path, monkeypatch):
    arguments = [*QUICK, "~callbacks.best", "~callbacks.last"]
    typed("train", *arguments, directory=tmp_path, patch=monkeypatch)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_another_protocol_that_the_model_has_no_meaning_for_is_refused(tmp_path, monkeypatch):
    typed("train", *QUICK, "model.likelihood=gaussian", directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    with pytest.raises(SystemExit, match=r"data\.binarization=static: black-and-white images ask for"):
        evaluated(directory, tmp_path, monkeypatch, "data.binarization=static")


OTHERS = ["model=convolutional model.channels=[4,8]", "experiment=jaanli", "experiment=aevb", "experiment=iwae"]


@pytest.mark.parametrize("settings", OTHERS)
def test_other_networks_and_recipes_train(tmp_path, monkeypatch, settings):
    typed("train", *SUBSET, *settings.split(), "trainer.max_steps=3", directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    assert json.loads((directory / "metrics.json").read_text())["run"]["steps"] == 3


def test_an_importance_weighted_run_is_chosen_by_its_own_bound(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = ["model.objective=iwae", "model.num_samples=3", "trainer.max_epochs=2"]
    typed("train", *SUBSET, *arguments, directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    callbacks = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"].values()
    [best] = [each["best"] for each in callbacks if "best" in each]  # when it was written, before the second validation
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    assert best == pytest.approx(events.Scalars("val/importance_bound")[0].value, rel=1e-6)
    assert best != pytest.approx(events.Scalars("val/elbo")[0].value, rel=1e-6)


def test_a_figure_of_another_protocol_is_another_curve_in_the_dashboard(trained, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    evaluated(trained, tmp_path, monkeypatch, "metrics=[bound]", "data.binarization=static", "data.limit_test=10")
    assert "evaluate_static/test/elbo" in EventAccumulator(str(trained / "tensorboard")).Reload().Tags()["scalars"]


def test_sample_writes_the_models_own_samples(trained, tmp_path, monkeypatch):
    typed("sample", f"checkpoint={trained}", "count=4", "seed=7", directory=tmp_path, patch=monkeypatch)
    [written] = tmp_path.glob("outputs/sample/*/samples.png")
    picture = Image.open(written)
    assert picture.size == (2 * 58 + 2, 2 * 58 + 2)
    expected = vae_lightning.load(trained).sample(4, generator=torch.Generator().manual_seed(7))
    drawn = torch.frombuffer(bytearray(picture.convert("L").tobytes()), dtype=torch.uint8).view(picture.height, -1) / 255
    torch.testing.assert_close(drawn[2:58:2, 2:58:2], expected[0, 0], rtol=0, atol=0.5 / 255 + 1e-6)


def test_samples_come_in_the_form_that_is_asked_for(trained, tmp_path, monkeypatch):
    def sampled(*arguments):
        typed("sample", f"checkpoint={trained}", "count=12", *arguments, directory=tmp_path, patch=monkeypatch)
        return max(tmp_path.glob("outputs/sample/*"), key=lambda path: path.stat().st_mtime_ns)

    generator = torch.Generator().manual_seed(0)
    expected = vae_lightning.load(trained).sample(12, generator=generator, temperature=0.5)
    array = np.load(sampled("form=npy", "temperature=0.5") / "samples.npy")
    tensor = torch.load(sampled("form=pt", "temperature=0.5") / "samples.pt", weights_only=True)
    assert array.dtype == np.float32
    assert torch.equal(torch.from_numpy(array), tensor)
    torch.testing.assert_close(tensor, expected)
    files = sorted((sampled("form=png", "temperature=0.5") / "samples").iterdir())
    assert [file.name for file in files] == [f"{number:02d}.png" for number in range(12)]
    with Image.open(files[3]) as picture:
        drawn = torch.frombuffer(bytearray(picture.convert("L").tobytes()), dtype=torch.uint8).view(28, 28) / 255
    torch.testing.assert_close(drawn, expected[3, 0], rtol=0, atol=0.5 / 255 + 1e-6)
    with Image.open(sampled("columns=6") / "samples.png") as picture:
        assert picture.size == (6 * 58 + 2, 2 * 58 + 2)
    folder = files[0].parent
    typed("encode", f"checkpoint={trained}", f"images='{folder}'", directory=tmp_path, patch=monkeypatch)
    assert len(list((tmp_path / "outputs" / "encode").iterdir())) == 1


def test_at_temperature_zero_all_samples_are_the_priors_mean(trained):
    vae = vae_lightning.load(trained)
    mean = vae.likelihood(vae.prior.loc).mean
    torch.testing.assert_close(vae.sample(3, temperature=0.0), mean.expand(3, -1, -1, -1))


def test_encode_writes_the_posteriors_of_a_split(trained, tmp_path, monkeypatch):
    typed("encode", f"checkpoint={trained}", SUBSET[1], "split=val", directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "encode").iterdir()
    data = MNISTDataModule(name="mnist_subset", dir=str(DATA), val_size=80)
    data.setup()
    batch = next(iter(data.split("val")))
    posterior = vae_lightning.load(trained).posterior(batch.images)
    with np.load(directory / "posteriors.npz") as written:
        assert np.array_equal(written["index"], batch.indices.numpy())
        assert np.array_equal(written["label"], batch.labels.numpy())
        assert np.allclose(written["loc"], posterior.loc.numpy(), rtol=1e-5, atol=1e-6)
        assert np.allclose(written["scale"], posterior.scale.numpy(), rtol=1e-5, atol=1e-6)
        rows = list(csv.DictReader((directory / "posteriors.csv").read_text().splitlines()))
        assert len(rows) == 80
        assert [float(rows[7][f"{name}_{d}"]) for name in ("loc", "scale") for d in range(3)] == pytest.approx(
            [*written["loc"][7].tolist(), *written["scale"][7].tolist()]
        )


@pytest.fixture
def own_digits(tmp_path):
    folder = tmp_path / "my digits"
    folder.mkdir()
    images = read("mnist_subset", DATA / "mnist_subset", "test")[0][:3]
    for name, image in zip("cab", images, strict=True):
        Image.fromarray(image[0].numpy()).save(folder / f"{name}.png")
    return folder, images


def test_encode_reads_ones_own_pictures_in_the_order_of_their_names(trained, own_digits, tmp_path, monkeypatch):
    folder, images = own_digits
    typed("encode", f"checkpoint={trained}", f"images='{folder}'", directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "encode").iterdir()
    with np.load(directory / "posteriors.npz") as written:
        assert written["name"].tolist() == ["a.png", "b.png", "c.png"]
        expected = vae_lightning.load(trained).posterior(images[[1, 2, 0]].float() / 255)
        assert np.allclose(written["loc"], expected.loc.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: Image.new("L", (32, 20)).save(folder / "b.png"),
            r"b\.png is 32 × 20 of mode L, .*resize\(\(28, 28\)\)",
        ),
        (lambda folder: Image.new("RGB", (28, 28)).save(folder / "b.png"), r"b\.png is 28 × 28 of mode RGB, .*convert\('L'\)"),
        (lambda folder: (folder / "notes.txt").write_text("x"), r"notes\.txt is no picture, or damaged: take it out"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "holds no pictures"),
        (lambda folder: shutil.rmtree(folder), "images=.*: .*my digits is no folder"),
    ],
)
def test_pictures_that_can_not_be_encoded_are_named(trained, own_digits, tmp_path, monkeypatch, spoil, message):
    folder, _ = own_digits
    spoil(folder)
    with pytest.raises(SystemExit, match=message):
        typed("encode", f"checkpoint={trained}", f"images='{folder}'", directory=tmp_path, patch=monkeypatch)
    assert not (tmp_path / "outputs").exists()


def test_a_conditional_model_encodes_pictures_of_a_digit_that_is_named(conditional, own_digits, tmp_path, monkeypatch):
    arguments = [f"checkpoint={conditional}", f"images='{own_digits[0]}'"]
    with pytest.raises(SystemExit, match=r"label=null: .* conditional; say which digit the pictures show, label=0 to label=9"):
        typed("encode", *arguments, directory=tmp_path, patch=monkeypatch)
    typed("encode", *arguments, "label=7", directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "encode").iterdir()
    with np.load(directory / "posteriors.npz") as written:
        assert written["label"].tolist() == [7, 7, 7]


def drawn_by(directory):
    [written] = (directory / "outputs" / "visualize").iterdir()
    return sorted(path.name for path in written.iterdir() if path.is_file())


def test_visualize_draws_all_that_a_model_has(trained, tmp_path, monkeypatch):
    typed("visualize", f"checkpoint={trained}", SUBSET[1], directory=tmp_path, patch=monkeypatch)
    names = ("interpolation", "kl", "latents", "reconstructions", "samples", "traversals")
    assert drawn_by(tmp_path) == [f"{name}.{form}" for name in names for form in ("pdf", "png")]


def test_visualize_draws_what_the_training_drew_at_its_end(trained, tmp_path, monkeypatch):
    last = f"checkpoint={trained}/checkpoints/last.ckpt"
    arguments = [last, SUBSET[1], "what=[traversals,interpolation]", "formats=[png]"]
    typed("visualize", *arguments, directory=tmp_path, patch=monkeypatch)
    [written] = (tmp_path / "outputs" / "visualize").iterdir()
    for name in ("traversals", "interpolation"):
        with Image.open(trained / "images" / f"{name}_002.png") as theirs, Image.open(written / f"{name}.png") as ours:
            width, height = theirs.size
            assert ours.width > 2 * width  # the rows' and columns' names stand to the left and below, two pixels drawn for one
            shown = np.array(ours.convert("RGB"))[: 2 * height : 2, -2 * width :: 2]
            assert np.array_equal(shown, np.array(theirs.convert("RGB")))


def test_visualize_draws_what_is_asked_for_of_a_conditional_model(conditional, tmp_path, monkeypatch):
    arguments = [f"checkpoint={conditional}", SUBSET[1], "what=[manifold,latents]", "formats=[svg]", "side=3"]
    with pytest.raises(SystemExit, match=r"label=null: .* conditional; say which digit to decode, label=0 to label=9"):
        typed("visualize", *arguments, directory=tmp_path, patch=monkeypatch)
    typed("visualize", *arguments, "label=4", directory=tmp_path, patch=monkeypatch)
    assert drawn_by(tmp_path) == ["latents.svg", "manifold.svg"]


def test_a_manifold_of_three_latents_is_refused_or_left_out(trained, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=r"what=\[manifold\]: is drawn of two latents, and this model has 3"):
        typed("visualize", f"checkpoint={trained}", "what=[manifold]", directory=tmp_path, patch=monkeypatch)
    arguments = [f"checkpoint={trained}", SUBSET[1], "what=[kl,manifold]", "formats=[png]"]
    typed("visualize", *arguments, directory=tmp_path, patch=monkeypatch)
    assert drawn_by(tmp_path) == ["kl.png"]
    assert "No manifold: it is drawn of two latents, and this model has 3" in capsys.readouterr().out


def test_a_process_trains_evaluates_and_samples(tmp_path):
    """The three commands in processes of their own, in the order in which the README shows them."""
    trained = run("train", *QUICK, "trainer.accelerator=cpu", "model.latent_dim=10", "data.batch_size=64", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert not trained.stderr
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    assert f"checkpoint={directory.relative_to(tmp_path)}" in trained.stdout
    checkpoint = f"checkpoint={directory.relative_to(tmp_path)}"
    sampled = run("sample", checkpoint, "count=9", cwd=tmp_path)
    evaluated = run("evaluate", checkpoint, SUBSET[1], "samples=10", cwd=tmp_path)
    for finished in (sampled, evaluated):
        assert finished.returncode == 0, finished.stderr
        assert not finished.stderr
    elbo = re.compile(r"^  (?:test )?ELBO +(-[\d.]+)", re.MULTILINE)
    assert elbo.search(evaluated.stdout).group(1) == elbo.search(trained.stdout).group(1)


def test_a_fast_dev_run_passes_through_every_part(tmp_path, monkeypatch):
    typed("train", *SUBSET, "trainer.fast_dev_run=true", directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    names = ("interpolation", "kl", "latents", "prior_samples", "reconstructions", "traversals")
    assert sorted(path.name for path in (directory / "images").iterdir()) == [f"{name}_001.png" for name in names]
    assert json.loads((directory / "metrics.json").read_text())["run"]["steps"] == 1


@pytest.mark.parametrize("logger", ["csv", "none"])
def test_loggers_can_be_chosen(tmp_path, monkeypatch, logger):
    typed("train", *QUICK, f"logger={logger}", directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    assert (directory / "csv" / "metrics.csv").exists() == (logger == "csv")
    assert not (directory / "tensorboard").exists()


def test_without_validation_only_the_last_checkpoint_is_kept_and_tested(tmp_path, monkeypatch, capsys):
    typed("train", *QUICK, "data.val_size=0", directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    assert [path.name for path in (directory / "checkpoints").iterdir() if path.is_symlink()] == ["last.ckpt"]
    shown = capsys.readouterr().out
    assert "last checkpoint, of step 4" in shown
    assert "none of these is a likelihood of binary images" in shown
    with pytest.raises(SystemExit, match="error: split=val: no images are held out"):
        evaluated(directory, tmp_path, monkeypatch, "metrics=[bound]", "split=val")


def test_the_example_looks_at_the_test_images_and_chooses_nothing_by_them(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # In another order the subset's own val_size would come after the recipe's.
    typed("train", *QUICK, "experiment=pytorch_example", directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    assert [path.name for path in (directory / "checkpoints").iterdir() if path.is_symlink()] == ["last.ckpt"]
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    figures = json.loads((directory / "metrics.json").read_text())["figures"]
    for name in ("loss", "loss_at_posterior_mean"):
        [event] = events.Scalars(f"val/{name}")
        assert event.value == pytest.approx(figures[f"test/{name}"], rel=1e-6)


def test_callbacks_can_be_left_out_by_name(tmp_path, monkeypatch):
    kept = ("reconstructions", "kl_bars", "projector")
    without = [f"~callbacks.{name}" for name in ("prior_samples", "traversals", "interpolation", "latent_map", "best")]
    arguments = [*without, *(f"callbacks.{name}=null" for name in kept)]
    typed("train", *SUBSET, "trainer.max_epochs=1", *arguments, directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    assert not (directory / "images").exists()
    assert not list(directory.rglob("sprite.png"))
    assert [path.name for path in (directory / "checkpoints").iterdir() if path.is_symlink()] == ["last.ckpt"]


def test_the_same_command_twice_gives_the_same_numbers_and_another_seed_others(tmp_path, monkeypatch):
    for seed in (0, 0, 1):
        typed("train", *QUICK, f"seed={seed}", directory=tmp_path, patch=monkeypatch)
    runs = sorted((tmp_path / "outputs" / "train").iterdir())
    figures = [json.loads((run / "metrics.json").read_text())["figures"] for run in runs]
    assert figures[0] == figures[1] != figures[2]


def test_a_run_directory_of_ones_own_must_be_empty(tmp_path, monkeypatch):
    typed("train", *QUICK, "hydra.run.dir=mine", directory=tmp_path, patch=monkeypatch)
    assert (tmp_path / "mine" / "metrics.json").exists()
    with pytest.raises(SystemExit, match=r"hydra\.run\.dir=mine: not empty"):
        typed("train", *QUICK, "hydra.run.dir=mine", directory=tmp_path, patch=monkeypatch)


def test_a_sweep_gives_each_job_a_directory(tmp_path, monkeypatch):
    typed("train", *SUBSET, "--multirun", "model.latent_dim=2,3", *QUICK[2:], directory=tmp_path, patch=monkeypatch)
    jobs = sorted(tmp_path.glob("outputs/multirun/*/*/metrics.json"))
    assert [path.parent.name for path in jobs] == ["0", "1"]
    dims = [yaml.safe_load((path.parent / ".hydra/config.yaml").read_text())["model"]["latent_dim"] for path in jobs]
    assert dims == [2, 3]


def test_the_best_checkpoint_by_validation_elbo_is_what_is_tested(tmp_path, monkeypatch):
    """A learning rate that overshoots makes the best epoch an early one."""
    arguments = [*SUBSET, "trainer.max_epochs=6", "model.learning_rate=0.05", "data.batch_size=16"]
    typed("train", *arguments, directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    told = [
        float(line.split("ELBO ")[1].split()[0])
        for line in (directory / "train.log").read_text().splitlines()
        if "epoch " in line
    ]
    best, last = (torch.load(directory / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert best["epoch"] == told.index(max(told)) < last["epoch"] == 5
    figures = json.loads((directory / "metrics.json").read_text())["figures"]
    measured = evaluated(directory / "checkpoints" / "best.ckpt", tmp_path, monkeypatch, "metrics=[bound]")["figures"]
    assert measured["test/elbo"] == pytest.approx(figures["test/elbo"], rel=1e-6)


def test_the_last_checkpoint_is_the_last_epochs_whether_it_was_validated_or_not(tmp_path, monkeypatch):
    typed("train", *SUBSET, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2", directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    assert torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2


def test_a_run_of_no_epochs_tests_the_model_as_it_is(tmp_path, monkeypatch, capsys):
    typed("train", *SUBSET, "trainer.max_epochs=0", directory=tmp_path, patch=monkeypatch)
    assert "the model as it is: no checkpoint was written" in capsys.readouterr().out
    [written] = tmp_path.glob("outputs/train/*/metrics.json")
    assert json.loads(written.read_text())["run"]["checkpoint"] is None


def test_a_run_that_diverges_says_so_and_keeps_no_checkpoint_of_it(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"error: .* is (nan|inf|-inf) at step 2"):
        typed("train", *SUBSET, "model.learning_rate=1e6", "trainer.max_epochs=3", directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    assert not (directory / "metrics.json").exists()
    assert [path.name for path in (directory / "checkpoints").glob("*_*.ckpt")] == ["step_00000000.ckpt"]
    assert "Traceback" in (directory / "train.log").read_text()


def test_a_callback_can_be_added_by_name(tmp_path, monkeypatch):
    stop = "callbacks.early_stopping"
    arguments = [f"+{stop}._target_=lightning.pytorch.callbacks.EarlyStopping", f"+{stop}.monitor=val/elbo"]
    arguments += [f"+{stop}.mode=max", f"+{stop}.min_delta=1000.0", f"+{stop}.patience=1"]
    typed("train", *SUBSET, *arguments, "trainer.max_epochs=5", directory=tmp_path, patch=monkeypatch)
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    assert json.loads((directory / "metrics.json").read_text())["run"]["epochs"] == 2


MISTAKES = {
    "model.latent_dim=abc": "model.latent_dim=abc: must be a valid integer",
    "model.latent_dim=0": "model.latent_dim=0: must be greater than 0",
    "data.batch_size=-1": "data.batch_size=-1: must be greater than 0",
    "trainer.max_epochs=ten": "trainer.max_epochs=ten: must be a valid integer",
    "trainer.max_epochs=-7": "trainer.max_epochs=-7: must be greater than or equal to -1",
    "trainer.precision=half": "trainer.precision=half: must be ",
    "data.val_size=70000": "data.val_size=70000: mnist_subset has 400 training images, so at most 399",
    "data.dir=/dev/null": "mnist_subset",
    "seed=-1": "seed=-1: must be greater than or equal to 0",
    "seed=abc": "seed=abc: must be a valid integer",
    "model.hidden_dims=[400,0]": "model.hidden_dims=[400, 0]: must be greater than 0",
    "model.optimizer_options={lr:3}": "model.optimizer_options={'lr': 3}: lr has a key of its own",
    "model.optimizer_options={epsilon:1}": "model.optimizer_options={'epsilon': 1}: ",
    "model.schedule=cosine trainer.max_epochs=-1": "model.schedule=cosine: asks for an end, trainer.max_epochs or",
    "model=conditional model.num_classes=5": "model.num_classes=5: the images have 10 labels, so 10 or 0",
    "model.likelihood=gaussian data.binarization=static": "data.binarization=static: black-and-white images ask for",
    "data.dequantize=true": "data.dequantize=true: makes images continuous",
    "data.dequantize=true data.binarization=static": "data.dequantize=true: spreads grey levels",
    "model=convolutional model.channels=[8,8,8]": "model.channels=[8, 8, 8]: each layer halves the sides",
    "model.pixel_scale=0": "model.pixel_scale=0: must be ",
    "data=larochelle data.val_size=100": "data.val_size=100: the Larochelle split brings its own 10,000 validation images",
    "data=larochelle model.num_classes=10": "model.num_classes: the Larochelle split has no labels",
    "model.objective=iwae model.kl_weight=2.0": "model.objective=iwae: its bound has no KL term of its own",
    "hydra.run.dir=. trainer.max_epochs=-7": "trainer.max_epochs=-7",
    "~callbacks.last._target_": "callbacks.last._target_=None: not one of the allowed targets",
    "trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches=0: must be greater than 0",
    "trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch=0: must be greater than 0",
    "trainer.accelerator=CPU": "trainer.accelerator=CPU: must be 'auto', 'cpu', 'gpu', 'cuda' or 'mps'",
    "callbacks.best.monitor=val/ebo": "callbacks.best.monitor=val/ebo: no figure of this run; try val/elbo",
    "model.latent_dim=1000000000000": "model.latent_dim=1000000000000, model.hidden_dims=[400], ",
    "hydra.run.dir=a/b model.latent_dim=0": "model.latent_dim=0: must be greater than 0",
    "experiment=null model.latent_dim=0": "model.latent_dim=0: must be greater than 0",
    "data.dir=nosuch": "mnist_subset is not there and could not be fetched",
    "callbacks.prior_samples.every_n_epochs=0": "callbacks.prior_samples.every_n_epochs=0: must be greater than 0",
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.items(), ids=MISTAKES.keys())
def test_a_wrong_value_is_told_in_a_line_or_two_and_leaves_nothing_behind(tmp_path, monkeypatch, mistake, message):
    with pytest.raises(SystemExit) as exit_:
        typed("train", *SUBSET, *mistake.split(), directory=tmp_path, patch=monkeypatch)
    assert message in str(exit_.value.code)
    assert len(str(exit_.value.code).splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_a_mistake_leaves_the_empty_directory_that_the_user_had_made(tmp_path, monkeypatch):
    mine = tmp_path / "scratch" / "mine"
    mine.mkdir(parents=True)
    (tmp_path / "here").mkdir()
    for named in (mine, mine / "new" / "run"):
        with pytest.raises(SystemExit, match=r"model\.latent_dim=0"):
            typed(
                "train", *SUBSET, f"hydra.run.dir={named}", "model.latent_dim=0", directory=tmp_path / "here", patch=monkeypatch
            )
        assert mine.is_dir()
        assert not list(mine.iterdir())


def test_a_sweep_whose_values_are_all_wrong_leaves_nothing_behind(tmp_path, monkeypatch, capfd):
    with pytest.raises(SystemExit, match=r"model\.latent_dim=0: must be"):
        typed("train", *SUBSET, "model.latent_dim=0,-1", "--multirun", directory=tmp_path, patch=monkeypatch)
    assert not list(tmp_path.iterdir())


def test_the_closing_commands_can_be_pasted_whatever_the_directory_is_called(tmp_path, monkeypatch, capsys):
    typed("train", *QUICK, "hydra.run.dir='my runs'", directory=tmp_path, patch=monkeypatch)
    shown = capsys.readouterr().out
    assert "vae_lightning.sample 'checkpoint=my runs'" in shown or f"'checkpoint={tmp_path / 'my runs'}'" in shown


def test_a_missing_gpu_is_never_replaced_in_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"accelerator=gpu: no CUDA GPU here; type trainer\.accelerator=cpu"):
        typed("train", *SUBSET, "trainer.accelerator=gpu", directory=tmp_path, patch=monkeypatch)
    assert not list(tmp_path.iterdir())


def test_a_mistake_ends_the_process_with_one_line_and_exit_code_1(tmp_path):
    finished = run("train", "model.latent_dim=0", cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr == "error: model.latent_dim=0: must be greater than 0\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("evaluate", [], "checkpoint is missing: write checkpoint=…"),
        ("evaluate", ["checkpoint=nosuch"], "checkpoint=nosuch: is neither a file nor a run directory"),
        ("sample", ["checkpoint=nosuch"], "checkpoint=nosuch: is neither a file nor a run directory"),
        (
            "evaluate",
            ["checkpoint=x", "metrics=[nll]"],
            "metrics=['nll']: must be 'bound', 'log_marginal', 'active_units', 'mutual_information' or 'sample_quality'",
        ),
        (
            "evaluate",
            ["checkpoint=x", "metrics=bound"],
            "metrics=bound: must be a list, in most shells with quotes: 'metrics=[bound]'",
        ),
        (
            "visualize",
            ["checkpoint=x", "what=samples"],
            "what=samples: must be a list, in most shells with quotes: 'what=[samples]'",
        ),
        ("visualize", ["checkpoint=x", "what=[]"], "what=[]: List should have at least 1 item after validation, not 0"),
        ("encode", ["checkpoint=nosuch", "images=x"], "checkpoint=nosuch: is neither a file nor a run directory"),
        ("evaluate", ["checkpoint=x", "metrics=[]"], "metrics=[]: List should have at least 1 item after validation, not 0"),
        ("evaluate", ["checkpoint=nosuch", "data.limit_test=1"], "data.limit_test=1: must be greater than or equal to 2"),
        ("evaluate", ["checkpoint=nosuch", "samples=0"], "samples=0: must be greater than 0"),
        ("sample", ["checkpoint=nosuch", "count=0"], "count=0: must be greater than 0"),
        ("sample", ["checkpoint=nosuch", "form=jpg"], "form=jpg: must be 'grid', 'png', 'npy' or 'pt'"),
        ("sample", ["checkpoint=nosuch", "temperature=-1"], "temperature=-1: must be greater than or equal to 0"),
        ("sample", ["count"], "'count' is no override: write key=value"),
        ("sample", ["checkpoint=nosuch", "seed=x"], "seed=x: must be a valid integer"),
    ],
)
def test_the_other_commands_tell_mistakes_alike(tmp_path, monkeypatch, command, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        typed(command, *arguments, directory=tmp_path, patch=monkeypatch)
    assert exit_.value.code == f"error: {message}"
    assert not list(tmp_path.iterdir())


def test_runs_started_in_the_same_instant_land_in_different_directories(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        finished = list(pool.map(lambda _: run("train", *SUBSET, "trainer.fast_dev_run=true", cwd=tmp_path), range(2)))
    assert [process.returncode for process in finished] == [0, 0]
    directories = list((tmp_path / "outputs" / "train").iterdir())
    assert len(directories) == 2
    assert all((directory / "metrics.json").exists() for directory in directories)
