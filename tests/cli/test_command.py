"""What all commands share: a mistake takes a line or two, and leaves nothing."""

import re

import pytest
import torch

from conftest import SUBSET, run, typed
from vae_lightning.cli.messages import explain

LABELS = "the data has 10 labels"
MISTAKES = {
    "model.latent_dim=abc": "model.latent_dim=abc: must be a valid integer",
    "model.latent_dim=0": "model.latent_dim=0: must be greater than 0",
    "data.batch_size=-1": "data.batch_size=-1: must be greater than 0",
    "trainer.max_epochs=ten": "trainer.max_epochs=ten: must be a valid integer",
    "trainer.max_epochs=-7": "trainer.max_epochs=-7: must be greater than 0, or must be -1",
    "trainer.precision=half": "trainer.precision=half: must be ",
    "data.val_size=70000": (
        "data.val_size=70000: mnist_subset has 400 training images, so at most 399"
    ),
    "data.dir=/dev/null": "mnist_subset",
    "seed=-1": "seed=-1: must be greater than or equal to 0",
    "seed=abc": "seed=abc: must be a valid integer",
    "model.hidden_dims=[400,0]": "model.hidden_dims=[400, 0]: must be greater than 0",
    "optimizer.options={lr:3}": "optimizer.options={'lr': 3}: lr has a key of its own",
    "optimizer.options={epsilon:1}": "optimizer.options={'epsilon': 1}: ",
    "optimizer.schedule=cosine trainer.max_epochs=-1": (
        "optimizer.schedule=cosine: needs an end, trainer.max_epochs or"
    ),
    "model=conditional model.num_classes=5": f"model.num_classes=5: {LABELS}",
    "model.likelihood=gaussian data.binarization=static": (
        "model.likelihood=gaussian: black-and-white images need model.likelihood=bernoulli"
    ),
    "data.dequantize=true": (
        "model.likelihood=bernoulli: not a density, which data.dequantize=true needs"
    ),
    "data.dequantize=true model.likelihood=discretized_logistic": (
        "model.likelihood=discretized_logistic: a mass on the grey levels themselves"
    ),
    "data.dequantize=true data.binarization=static": ("data.dequantize=true: spreads grey levels"),
    "model=convolutional model.channels=[8,8,8]": (
        "model.channels=[8, 8, 8]: each layer halves the sides"
    ),
    "model.pixel_scale=0": "model.pixel_scale=0: must be ",
    "data=larochelle data.val_size=100": (
        "data.val_size=100: the Larochelle split brings its own 10,000 validation images"
    ),
    "data=larochelle model.num_classes=10": "model.num_classes=10: the data has no labels",
    "model.objective=iwae model.kl_weight=2.0": (
        "model.objective=iwae: its bound has no KL term of its own"
    ),
    "hydra.run.dir=. trainer.max_epochs=-7": "trainer.max_epochs=-7",
    "~callbacks.last._target_": "~callbacks.last._target_: can't be left out; type callbacks.",
    "~model._target_": "~model._target_: can't be left out; type model._target_=… to change it",
    "model._target_=lightning.Trainer": "model._target_=lightning.Trainer: must be a Model",
    "trainer.accumulate_grad_batches=0": (
        "trainer.accumulate_grad_batches=0: must be greater than 0"
    ),
    "trainer.check_val_every_n_epoch=0": (
        "trainer.check_val_every_n_epoch=0: must be greater than 0"
    ),
    "trainer.accelerator=CPU": (
        "trainer.accelerator=CPU: must be 'auto', 'cpu', 'gpu', 'cuda' or 'mps'"
    ),
    "callbacks.best.monitor=val/ebo": (
        "callbacks.best.monitor=val/ebo: no figure of this run; try val/elbo"
    ),
    "model.latent_dim=1000000000000": "model.latent_dim=1000000000000, model.hidden_dims=[400], ",
    "hydra.run.dir=a${": "hydra.run.dir: no viable alternative at input",
    "hydra.run.dir=${nosuch}": "hydra.run.dir: Interpolation key 'nosuch' not found",
    "-m seed=1,2 hydra.sweep.dir=a${": "hydra.sweep.dir: ",
    "hydra.run.dir=a/b model.latent_dim=0": "model.latent_dim=0: must be greater than 0",
    "experiment=null model.latent_dim=0": "model.latent_dim=0: must be greater than 0",
    "data.dir=nosuch": "mnist_subset is not there and could not be fetched",
    "callbacks.prior_samples.every_n_epochs=0": (
        "callbacks.prior_samples.every_n_epochs=0: must be greater than 0"
    ),
}


def refusal(directory, patch, command, *arguments):
    """Return what a command that is refused says, and check that it left no file."""
    with pytest.raises(SystemExit) as exit_:
        typed(command, *arguments, directory=directory, patch=patch)
    assert not list(directory.iterdir())
    return str(exit_.value.code)  # a string is printed, and the exit code is 1


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.items(), ids=MISTAKES.keys())
def test_a_wrong_value_takes_a_line_or_two_and_leaves_nothing_behind(
    tmp_path, monkeypatch, mistake, message
):
    typed_keys = [each.partition("=")[0] for each in mistake.split()]
    data = [each for each in SUBSET if each.partition("=")[0] not in typed_keys]
    told = refusal(tmp_path, monkeypatch, "train", *data, *mistake.split())
    assert message in told
    assert len(told.splitlines()) <= 2


def test_a_mistake_leaves_the_empty_directory_that_the_user_had_made(tmp_path, monkeypatch):
    mine, here = tmp_path / "scratch" / "mine", tmp_path / "here"
    mine.mkdir(parents=True)
    here.mkdir()
    for named in (mine, mine / "new" / "run"):
        line = [*SUBSET, f"hydra.run.dir={named}", "model.latent_dim=0"]
        assert "model.latent_dim=0" in refusal(here, monkeypatch, "train", *line)
        assert mine.is_dir()
        assert not list(mine.iterdir())


@pytest.mark.slow
def test_a_sweep_whose_values_are_all_wrong_leaves_nothing_behind(tmp_path, monkeypatch, capfd):
    line = [*SUBSET, "model.latent_dim=0,-1", "--multirun"]
    assert "model.latent_dim=0: must be" in refusal(tmp_path, monkeypatch, "train", *line)


def test_a_missing_gpu_is_never_replaced_in_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = refusal(tmp_path, monkeypatch, "train", *SUBSET, "trainer.accelerator=gpu")
    assert "accelerator=gpu: no CUDA GPU here; type trainer.accelerator=cpu" in told


NO_FILE = (
    "checkpoint=nosuch: not found; "
    "type a checkpoint file or a run directory, as outputs/train/<run>"
)
OTHER_COMMANDS = [
    ("evaluate", [], "checkpoint is missing: type checkpoint=…"),
    ("evaluate", ["checkpoint=nosuch"], NO_FILE),
    ("sample", ["checkpoint=nosuch"], NO_FILE),
    ("encode", ["checkpoint=nosuch", "images=x"], NO_FILE),
    ("visualize", ["checkpoint=nosuch"], NO_FILE),
    ("export", ["checkpoint=nosuch"], NO_FILE),
    ("explore", ["checkpoint=nosuch"], NO_FILE),
    (
        "visualize",
        ["checkpoint=x", "what=samples"],
        "what=samples: must be a list, in most shells with quotes: 'what=[samples]'",
    ),
    (
        "visualize",
        ["checkpoint=x", "what=[]"],
        "what=[]: List should have at least 1 item after validation, not 0",
    ),
    ("sample", ["checkpoint=nosuch", "count=0"], "count=0: must be greater than 0"),
    (
        "sample",
        ["checkpoint=nosuch", "form=jpg"],
        "form=jpg: must be 'grid', 'files', 'png', 'mid', 'wav', 'npy' or 'pt'",
    ),
    (
        "sample",
        ["checkpoint=nosuch", "temperature=-1"],
        "temperature=-1: must be greater than or equal to 0",
    ),
    ("sample", ["nosuch"], NO_FILE),
    ("sample", ["nosuch", "count=9"], NO_FILE),
    ("summarize", ["checkpoint=x"], "unknown key checkpoint: did you mean sweep?"),
    (
        "evaluate",
        ["checkpoint=x", "metrics=nosuch"],
        "metrics=['nosuch']: must be 'bound', 'log_marginal', 'active_units', "
        "'mutual_information', 'sample_quality' or 'music'",
    ),
    ("train_classifier", ["nosuch"], "'nosuch': not a setting; type key=value"),
    ("sample", ["checkpoint=nosuch", "seed=x"], "seed=x: must be a valid integer"),
]


@pytest.mark.parametrize(("command", "arguments", "message"), OTHER_COMMANDS)
def test_the_other_commands_report_mistakes_alike(
    tmp_path, monkeypatch, command, arguments, message
):
    assert refusal(tmp_path, monkeypatch, command, *arguments) == f"error: {message}"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(13, "Permission denied", "outputs"),
            "outputs: Permission denied; hydra.run.dir=… names another directory for a run",
        ),
        (OSError(28, "No space left on device", "x"), "x: No space left on device"),
        (FileNotFoundError("checkpoint=x: not found"), "checkpoint=x: not found"),
    ],
    ids=str,
)
def test_what_the_system_refuses_is_told_with_its_file(error, message):
    assert explain("train", error) == message


def test_a_directory_that_can_not_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"error: \S*file/run: Not a directory; hydra"):
        typed("train", *SUBSET, "hydra.run.dir=file/run", directory=tmp_path, patch=monkeypatch)


# -- as processes of their own --------------------------------------------------------------------


@pytest.mark.slow
def test_a_mistake_ends_the_process_with_one_line_and_exit_code_1(tmp_path):
    finished = run("train", "model.latent_dim=0", cwd=tmp_path)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr == "error: model.latent_dim=0: must be greater than 0\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_process_trains_evaluates_and_samples(tmp_path):
    """The three commands in processes of their own, in the order in which the README shows them."""
    settings = ["trainer.accelerator=cpu", "model.latent_dim=10", "data.batch_size=64"]
    quick = ["trainer.max_epochs=1", "callbacks=minimal"]
    trained = run("train", *SUBSET, *quick, *settings, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert not trained.stderr
    [directory] = (tmp_path / "outputs" / "train").iterdir()
    checkpoint = f"checkpoint={directory.relative_to(tmp_path)}"
    assert checkpoint in trained.stdout
    sampled = run("sample", checkpoint, "count=9", cwd=tmp_path)
    evaluated = run("evaluate", checkpoint, SUBSET[1], "samples=10", cwd=tmp_path)
    for finished in (sampled, evaluated):
        assert finished.returncode == 0, finished.stderr
        assert not finished.stderr
    elbo = re.compile(r"^  (?:test )?ELBO +(-[\d.]+)", re.MULTILINE)
    assert elbo.search(evaluated.stdout).group(1) == elbo.search(trained.stdout).group(1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("mode: MULTIRUN", "hydra.mode=MULTIRUN: only of a sweep, so with --multirun"),
        ("sweeper: {params: {seed: '1,2'}}", "hydra.sweeper.params={'seed': '1,2'}: only of a"),
    ],
)
def test_a_recipe_s_settings_of_a_sweep_are_refused_in_a_single_run(
    tmp_path, monkeypatch, settings, told
):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    recipe = f"# @package _global_\nhydra:\n  {settings}\n"
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(recipe)
    with pytest.raises(SystemExit) as exit_:
        typed(
            *("train", *SUBSET, "--config-dir", "own", "experiment=mine"),
            directory=tmp_path,
            patch=monkeypatch,
        )
    assert told in str(exit_.value)
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["model.hidden_dims=(40,20)"], "a list is typed as 'model.hidden_dims=[40,20]'"),
        (["model.latent_dim", "=", "2"], "not a setting; type it without spaces around ="),
        (["model.latent_dim=", "2"], "not a setting; type it without spaces around ="),
        (["wandb=true"], "unknown key wandb: did you mean logger=wandb?"),
        (["hydra.run.dir=own/model/small.yaml"], "hydra.run.dir=… names another directory"),
        (
            ["--config-dir", "own", "experiment=again"],
            "resume: comes from a recipe or a folder of configurations, and is taken only from",
        ),
        (["run"], "'run': not a setting; resume=run goes on with a run"),
        (["model.dropout=0.1"], "unknown key model.dropout: only model=musicvae has it"),
        (["model.latent_dim=1e39"], "model.latent_dim=1e+39: must be a valid integer"),
        (["--multirun", "seed=1,2", "hydra.sweep.dir=full"], "not empty; type a directory that"),
        (["--config-dir", "own", "model=small"], "model._target_ is missing: a file of your own"),
    ],
)
def test_a_slip_is_answered_with_what_works(tmp_path, monkeypatch, line, told):
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "small.yaml").write_text("latent_dim: 5\n")
    (tmp_path / "own" / "experiment").mkdir()
    recipe = "# @package _global_\nresume: run\n"
    (tmp_path / "own" / "experiment" / "again.yaml").write_text(recipe)
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(SystemExit) as exit_:
        typed("train", *SUBSET, *line, directory=tmp_path, patch=monkeypatch)
    assert told in str(exit_.value)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["full", "own", "run"]


@pytest.mark.parametrize("name", ["${seed}", "${oc.env:HOME}", "a${b"])
def test_a_folder_whose_name_hydra_would_read_is_refused_and_left_empty(
    tmp_path, monkeypatch, name
):
    (tmp_path / name).mkdir()
    with pytest.raises(SystemExit, match="work in another folder"):
        typed("train", *SUBSET, "callbacks=minimal", directory=tmp_path / name, patch=monkeypatch)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert list((tmp_path / name).iterdir()) == []
