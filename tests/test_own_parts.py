"""A model and data of one's own pass through every command; the package doesn't know them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import typed
from toys import Bigrams, Clusters, Colours, SkewedVAE, Words, batch_of
from vae_lightning.configuration import targets
from vae_lightning.models.base import target_of
from vae_lightning.models.noise import SamplingNoise
from vae_lightning.runs.checkpoints import load_model

PAIRS = {
    "latent": (SkewedVAE, Colours),
    "discrete": (Clusters, Colours),
    "sequences": (Bigrams, Words),
}
LIMITED = ["trainer.max_epochs=2", "trainer.log_every_n_steps=2"]


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    """Put the toys on the list of what a configuration may name."""
    kinds = {target_of(kind) for pair in PAIRS.values() for kind in pair}
    monkeypatch.setattr(targets, "TARGETS", targets.TARGETS | kinds)


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Return a folder with a model and a data file for each pair, as a user would write them."""
    folder = tmp_path_factory.mktemp("configs")
    for group in ("model", "data", "search"):
        (folder / group).mkdir()
    for name, (model, data) in PAIRS.items():
        (folder / "model" / f"{name}.yaml").write_text(f"_target_: {target_of(model)}\n")
        lines = f"_target_: {target_of(data)}\nbatch_size: 16\nval_size: 20\n"
        (folder / "data" / f"{name}.yaml").write_text(lines)
    search = "# @package _global_\nsearch:\n  optimizer:\n    learning_rate: [1e-2, 1e-3]\n"
    (folder / "search" / "rates.yaml").write_text(search)
    return folder


class Here:
    """Runs commands in an empty directory."""

    def __init__(self, directory, configs, patch):
        self.directory, self.configs, self.patch = directory, configs, patch

    def __call__(self, command, *arguments):
        typed(command, *arguments, directory=self.directory, patch=self.patch)
        made = list((self.directory / "outputs").glob(f"{command}/*"))
        return max(made, key=lambda path: path.stat().st_mtime_ns) if made else None


@pytest.fixture
def here(tmp_path, monkeypatch, configs):
    """Return what runs a command in an empty directory, by name and arguments."""
    return Here(tmp_path, configs, monkeypatch)


@pytest.fixture(scope="module")
def trained_toys(tmp_path_factory, configs):
    """Return the run directory of each model, trained without pictures."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        kinds = {target_of(kind) for pair in PAIRS.values() for kind in pair}
        patch.setattr(targets, "TARGETS", targets.TARGETS | kinds)
        for name in PAIRS:
            there = Here(tmp_path_factory.mktemp(name), configs, patch)
            runs[name] = train(there, name, "callbacks=minimal")
    return runs


def train(here, name, *arguments, epochs=2):
    chosen = [f"model={name}", f"data={name}", *LIMITED[1:], f"trainer.max_epochs={epochs}"]
    return here("train", "--config-dir", str(here.configs), *chosen, *arguments)


@pytest.mark.parametrize("name", PAIRS)
def test_a_model_of_ones_own_trains_and_its_figures_are_named_by_it(here, name, capsys):
    run = train(here, name)
    metrics = json.loads((run / "metrics.json").read_text())
    model = load_model(run)
    noun = {"sequences": "sequence"}.get(name, "image")
    assert metrics["comparison"] == f"test/{model.criterion}"
    assert metrics["figures"].keys() == {f"test/{figure}" for figure in model.figures}
    label = model.figures[model.criterion].label
    described = metrics["described"][metrics["comparison"]]
    assert described["label"] == label
    assert described["unit"] == ("" if name == "discrete" else f"nats per {noun}")
    assert metrics["protocol"]["meaning"] == model.meaning
    shown = capsys.readouterr().out
    assert f"test {label}" in shown
    assert f"{noun}s (training + validation + test)" in shown
    assert "digit" not in shown.lower()
    assert (run / "images" / "prior_samples_002.png").exists()
    assert (run / "images" / "reconstructions_002.png").exists() == (name != "sequences")
    assert (run / "images" / "manifold_002.png").exists() == (name == "latent")


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("latent", []),
        ("discrete", []),
        (
            "sequences",
            [
                "figures of the latents: the model has neither latents nor codes",
                "picture of the reconstructions: the model doesn't encode examples",
            ],
        ),
    ],
)
def test_what_a_model_lacks_is_left_out_with_a_line(here, name, lines, capsys):
    train(here, name, epochs=1)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("No ")]
    assert sorted(said) == [f"No {line}" for line in lines]


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.slow
def test_a_run_that_goes_on_comes_to_the_same_weights(here, name, monkeypatch):
    whole = train(here, name, "callbacks=minimal", epochs=4)
    short = train(here, name, "callbacks=minimal")
    initialized = []
    kind = PAIRS[name][0]
    monkeypatch.setattr(kind, "initialize", lambda self, examples: initialized.append(self))
    here("train", f"resume={short}", "trainer.max_epochs=4")
    assert not initialized  # from the data only before the first step
    ours, theirs = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for run in (short, whole)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    if name == "discrete":  # once per step: a resume that began anew would count again from 0
        steps = 4 * 5
        assert theirs["model.updates"] == steps


def test_what_no_gradient_reaches_is_updated_once_a_step_over_all_its_batches(here):
    run = train(here, "discrete", "callbacks=minimal", "trainer.accumulate_grad_batches=5")
    model = load_model(run)
    assert model.updates == 2  # two epochs of five batches, of which five make a step
    assert model.means.std() > 0


@pytest.mark.parametrize("name", PAIRS)
def test_evaluate_measures_what_the_model_has(here, trained_toys, name, capsys):
    run = trained_toys[name]
    directory = here("evaluate", f"checkpoint={run}", "samples=20", "trainer.accelerator=cpu")
    metrics = json.loads((directory / "metrics.json").read_text())
    model, shown = load_model(run), capsys.readouterr().out
    measured = {figure.removeprefix("test/") for figure in metrics["figures"]}
    assert set(model.figures) <= measured
    assert ("log_marginal" in measured) == (name == "latent")
    assert "mutual_information" not in measured  # of a Gaussian posterior alone
    assert ("no log_marginal" in shown) == (name != "latent")
    assert "no sample_quality" in shown
    if name == "latent":
        assert metrics["figures"]["test/log_marginal"] > metrics["figures"]["test/elbo"]
        bits = -metrics["figures"]["test/log_marginal"] / (3 * 8 * 8 * np.log(2))
        assert metrics["figures"].get("test/bits_per_dimension", bits) == pytest.approx(bits)


@pytest.mark.parametrize("name", PAIRS)
def test_sample_writes_new_examples_in_their_own_form(here, trained_toys, name):
    run = trained_toys[name]
    arrays = here("sample", f"checkpoint={run}", "count=6", "form=npy", "seed=3")
    model = load_model(run)
    expected = model.sample(6, SamplingNoise(6, 3))
    assert np.array_equal(np.load(arrays / "samples.npy"), expected.numpy())
    assert expected.shape == (6, *model.data.shape)
    grid = here("sample", f"checkpoint={run}", "count=6")
    with Image.open(grid / "samples.png") as picture:
        assert picture.width > 8
    files = here("sample", f"checkpoint={run}", "count=6", "form=files") / "samples"
    suffix = ".txt" if name == "sequences" else ".png"
    assert {file.suffix for file in files.iterdir()} == {suffix}
    assert len(list(files.iterdir())) == 6


@pytest.mark.parametrize("name", ["latent", "discrete"])
def test_encode_writes_codes_by_the_models_own_columns(here, trained_toys, name):
    run = trained_toys[name]
    directory = here("encode", f"checkpoint={run}")
    model, data = load_model(run), Colours()
    batch = batch_of(data)
    stem, column = ("posteriors", "loc") if name == "latent" else ("codes", "code")
    with np.load(directory / f"{stem}.npz") as arrays:
        assert np.array_equal(arrays["label"], batch.y.numpy())
        assert np.allclose(arrays[column], model.encode(batch)[column].numpy(), atol=1e-6)
    first = (directory / f"{stem}.csv").read_text().splitlines()[0]
    assert first.startswith(f"index,label,{column}_0")


def test_encode_reads_a_folder_of_pictures_of_the_datas_shape(here, trained_toys):
    run = trained_toys["latent"]
    folder = here.directory / "mine"
    folder.mkdir()
    Image.new("RGB", (8, 8), (200, 80, 20)).save(folder / "warm.png")
    directory = here("encode", f"checkpoint={run}", f"images={folder}")
    with np.load(directory / "posteriors.npz") as arrays:
        assert arrays["name"].tolist() == ["warm.png"]


def test_what_encode_and_visualize_cannot_do_is_said_in_a_line(here, trained_toys, capsys):
    run = trained_toys["sequences"]
    with pytest.raises(SystemExit, match="a Bigrams has no codes"):
        here("encode", f"checkpoint={run}")
    with pytest.raises(SystemExit, match="the model has no continuous latents"):
        here("visualize", f"checkpoint={run}", "what=[traversals]")


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("latent", "interpolation latents manifold reconstructions samples traversals"),
        ("discrete", "reconstructions samples"),
        ("sequences", "samples"),
    ],
)
def test_visualize_draws_what_the_model_has(here, trained_toys, name, drawn):
    run = trained_toys[name]
    directory = here("visualize", f"checkpoint={run}", "formats=[png]", "side=3")
    assert {file.stem for file in directory.glob("*.png")} == set(drawn.split())
    if name == "latent":
        with pytest.raises(SystemExit, match="the KL of each latent isn't known"):
            here("visualize", f"checkpoint={run}", "what=[kl]")


@pytest.mark.parametrize("name", PAIRS)
def test_export_writes_the_models_parts_and_a_card(here, trained_toys, name):
    run = trained_toys[name]
    directory = here("export", f"checkpoint={run}", "formats=[torch_export,safetensors]")
    files = {file.name for file in directory.glob("*.*")}
    assert {"model.safetensors", "config.json", "README.md"} <= files
    assert ("decoder.pt2" in files) == (name == "latent")
    card = (directory / "README.md").read_text()
    noun = "sequence" if name == "sequences" else "image"
    assert f"test {noun}s" in card
    assert not [word for word in ("28 × 28", "digit", "MNIST") if word in card]
    blocks = [block.split("```")[0] for block in card.split("```python\n")[1:]]
    assert len(blocks) == (2 if name == "latent" else 1)
    for block in blocks:
        names = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(directory)
            exec(block, names)
        if "samples" in names:
            assert len(names["samples"]) == 16


@pytest.mark.parametrize("name", PAIRS)
def test_tune_searches_by_the_models_own_figure(here, name):
    chosen = [f"model={name}", f"data={name}", "search=rates", "trials=2", *LIMITED]
    study = here("tune", "--config-dir", str(here.configs), *chosen)
    log = (study / "tune.log").read_text()
    model = load_model(study / "trials" / "0")
    assert model.figures[model.criterion].label in log
    assert "_target_" in (study / "experiment" / "best.yaml").read_text()


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.slow
def test_a_sweep_ends_with_a_table_and_is_summarized(here, name, capsys):
    rates = "optimizer.learning_rate=1e-2,1e-3"
    chosen = [f"model={name}", f"data={name}", *LIMITED, "callbacks=minimal", rates]
    here("train", "--config-dir", str(here.configs), "--multirun", *chosen)
    table = capsys.readouterr().out
    kind, _ = PAIRS[name]
    label = kind.figures[kind.criterion].label
    assert f"test {label}" in table
    [sweep] = (here.directory / "outputs" / "multirun").iterdir()
    directory = here("summarize", str(sweep))
    assert f"test {label}" in (directory / "summary.md").read_text()
    best = (directory / "summary.csv").read_text().splitlines()[1]
    figures = {
        rate: json.loads((job / "metrics.json").read_text())["figures"][f"test/{kind.criterion}"]
        for rate, job in (("0.01", sweep / "0"), ("0.001", sweep / "1"))
    }
    choose = min if kind.figures[kind.criterion].better == "min" else max
    assert best.split(",")[0].strip('"') == choose(figures, key=figures.get)


def test_a_class_that_is_not_on_the_list_is_refused(here, monkeypatch):
    monkeypatch.setattr(targets, "TARGETS", targets.TARGETS - {target_of(SkewedVAE)})
    with pytest.raises(SystemExit, match=r"model\._target_=toys\.SkewedVAE: not one of"):
        train(here, "latent")


def test_a_class_of_another_kind_is_refused(here):
    other = f"model._target_={target_of(Colours)}"
    with pytest.raises(SystemExit, match=r"model\._target_=toys\.Colours: must be a Model"):
        train(here, "latent", other)


def test_a_checkpoint_of_a_class_that_is_not_on_the_list_is_refused(
    here, trained_toys, monkeypatch
):
    run = trained_toys["latent"]
    monkeypatch.setattr(targets, "TARGETS", targets.TARGETS - {target_of(SkewedVAE)})
    with pytest.raises(ValueError, match=r"toys\.SkewedVAE: not one of the allowed targets"):
        load_model(run)


def test_a_model_and_data_that_do_not_go_together_are_refused(here):
    with pytest.raises(SystemExit, match=r"model.*needs images"):
        here("train", "--config-dir", str(here.configs), "model=vae", "data=sequences")


def test_the_explorer_shows_a_latent_model_of_ones_own(trained_toys):
    from vae_lightning.visualization.explorer import explore, most_active

    model, data = load_model(trained_toys["latent"]), Colours()
    data.setup()
    explored = explore(model, data, data.split("test"))
    assert explored.decode(torch.zeros(2), None).shape == (3, 8, 8)
    example = explored.seen.x[3]
    torch.testing.assert_close(explored.encode(example, None), explored.seen.point[3])
    assert not explored.takes_drawings
    assert sorted(most_active(explored.seen, 10)) == [0, 1]


@pytest.mark.slow
def test_a_vqvae_and_its_prior_pass_through_every_command_on_colour_pictures(here, tmp_path):
    (here.configs / "data" / "pictures.yaml").write_text(
        f"_target_: {target_of(Colours)}\nbatch_size: 16\nval_size: 20\nsize: 32\n"
    )
    own = ("train", "--config-dir", str(here.configs), *LIMITED)
    small = ("model.codes=8", "model.channels=[4,6]", "model.residual_channels=4")
    settings = (*small, "model.likelihood=discretized_logistic", "model.pixel_scale=learnt")
    first = here(*own, "model=vqvae", "data=pictures", *settings)
    model = load_model(first)
    assert model.code_shape == (8, 8)
    prior = ("model=prior", "data=codes", f"data.run={first}", "model.width=16", "model.layers=1")
    second = here("train", *LIMITED, *prior, "model.num_classes=2")
    assert load_model(second).sample(3, SamplingNoise(3)).shape == (3, 3, 32, 32)
    for run in (first, second):
        sampled = here("sample", f"checkpoint={run}", "form=npy", "count=4")
        assert np.load(sampled / "samples.npy").shape == (4, 3, 32, 32)
    exported = here("export", f"checkpoint={second}")
    assert (exported / "decoder.onnx").exists()
    drawn = here("visualize", f"checkpoint={second}", "formats=[png]", "label=1")
    assert {f"{each}.png" for each in ("samples", "reconstructions", "codes")} <= {
        each.name for each in drawn.iterdir()
    }
    assert (here("encode", f"checkpoint={second}") / "codes.npz").exists()
    assert (exported / "prior.onnx").exists()
    labelled = here("sample", f"checkpoint={second}", "label=1", "form=npy", "count=4")
    assert np.load(labelled / "samples.npy").shape == (4, 3, 32, 32)
    measured = here(
        "evaluate", f"checkpoint={second}", "metrics=[bound,log_marginal,active_units]", "samples=2"
    )
    figures = json.loads((measured / "metrics.json").read_text())["figures"]
    assert figures["test/bits_per_dimension"] > 0
    assert 1 <= figures["test/perplexity"] <= figures["test/codes_in_use"] <= 8
    assert figures["test/log_marginal"] > figures["test/elbo_of_nearest"]
