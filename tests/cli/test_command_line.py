"""The command line as people type it: paths as they are, other projects' flags, slips."""

import os
import sys

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from chaos.overrides import SHARED
from conftest import SUBSET, typed
from vae_lightning.cli.command_line import arrange, typed_line, value_of
from vae_lightning.configuration.paths import PATHS, takes_path
from vae_lightning.errors import ConfigurationError

NAMES = [
    "plain",
    "a=b",
    "my data (2)",
    "it's",
    'say "so"',
    "a,b",
    "[a]",
    "[a",
    "{b}",
    "{b:1}",
    "#1;&",
    "é",
    "数字",
    "2024",
    "1e5",
    "2024_11",
    "true",
    "nan",
    "str(a)",
    "glob(*)",
    "choice(a,b)",
    " a ",
    "a${b",
    "a$b",
    "tab\tand\\backslash",
    "!x",
    "a:b",
    "c@d",
]


def arranged(patch, *arguments, name="sample", positional="checkpoint", several=False):
    """Return the overrides that Hydra is handed."""
    patch.setattr(sys, "argv", [name, *arguments])
    arrange(name, positional, several)
    return typed_line().overrides


def told(directory, patch, command, *arguments):
    """Return what a command that is refused says, and check that it left no file."""
    with pytest.raises(SystemExit) as exit_:
        typed(command, *arguments, directory=directory, patch=patch)
    assert not list(directory.iterdir())
    return exit_.value.code.removeprefix("error: ")


# -- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_read_as_typed_whatever_signs_it_holds(monkeypatch, name):
    for key in ("checkpoint", "data.dir", "hydra.run.dir", "resume"):
        overrides = arranged(monkeypatch, f"{key}={name}", name="train", positional=None)
        assert value_of(key, overrides) == name
        again = arranged(monkeypatch, *overrides, name="train", positional=None)
        assert again == overrides  # as Lightning's other processes and the jobs of a sweep have it


def test_quotes_and_references_of_a_path_are_hydras(monkeypatch):
    monkeypatch.setenv("PLACE", "there")
    for value, meaning in {
        "'a b'": "a b",
        '"a=b"': "a=b",
        r"'it\'s'": "it's",
        "a\\ b": "a b",
        "${oc.env:PLACE}/x": "there/x",
        "'${oc.env:PLACE}'": "there",
    }.items():
        assert value_of("data.dir", arranged(monkeypatch, f"data.dir={value}")) == meaning
    assert value_of("checkpoint", arranged(monkeypatch, "checkpoint=null")) is None


def test_a_value_is_read_as_hydra_reads_it():
    overrides = ["+a='x y'", r"b='it\'s'", "c=null", "d=1_0", "e='3'", "f=[1,2]", "g=x,y", "a=z"]
    read = {key: value_of(key, overrides) for key in "bcdefgh"}
    assert read == {
        "b": "it's",
        "c": None,
        "d": "10",
        "e": "3",
        "f": "[1, 2]",
        "g": "x,y",
        "h": None,
    }
    assert value_of("a", overrides) == "z"
    assert value_of("a", overrides[:1]) == "x y"


@pytest.mark.parametrize("key", sorted(PATHS))
def test_the_home_directory_is_meant_by_a_tilde_wherever_a_path_is_taken(monkeypatch, key):
    monkeypatch.setenv("HOME", "/home/é x")
    for value in ("~", "~/a b", "'~/a b'", "~/a=b"):
        [override] = arranged(monkeypatch, f"{key}={value}", name="train", positional=None)
        meant = value.strip("'").replace("~", "/home/é x")
        assert value_of(key, [override]) == meant


def test_the_home_directory_of_a_recipe_is_the_same(tmp_path, monkeypatch):
    folder = tmp_path / "recipes" / "experiment"
    folder.mkdir(parents=True)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    text = "# @package _global_\nhydra:\n  run:\n    dir: ~/runs/one\ndata:\n  dir: ~/digits\n"
    (folder / "mine.yaml").write_text(text)
    (tmp_path / "home" / "digits").symlink_to(SUBSET[1].removeprefix("data.dir="))
    line = ["data=mnist_subset", "trainer.fast_dev_run=true", "callbacks=minimal", "logger=none"]
    recipe = ["--config-dir", str(tmp_path / "recipes"), "experiment=mine"]
    typed("train", *line, *recipe, directory=tmp_path, patch=monkeypatch)
    assert (tmp_path / "home" / "runs" / "one" / "metrics.json").is_file()
    assert not (tmp_path / "~").exists()


def test_keys_of_paths_are_those_that_the_commands_have():
    assert takes_path("logger.csv.save_dir")
    assert takes_path("callbacks.mine.dirpath")
    assert not takes_path("callbacks.best.mode")
    assert not takes_path("data.name")


def test_several_values_of_a_path_are_a_sweeps_only_with_multirun(monkeypatch):
    assert value_of("checkpoint", arranged(monkeypatch, "checkpoint=a,b")) == "a,b"
    [override] = arranged(monkeypatch, "checkpoint=a,b", "-m")
    assert override == "checkpoint=a,b"


def test_a_path_without_a_value_is_refused(monkeypatch):
    for key in ("resume", "hydra.run.dir", "checkpoint"):
        with pytest.raises(ConfigurationError, match=rf"^{key}=: empty; type a path, or leave"):
            arranged(monkeypatch, f"{key}=", name="train", positional=None)


def test_a_path_without_a_key_names_the_checkpoint(tmp_path, monkeypatch):
    assert arranged(monkeypatch, "a b", "count=3") == ["count=3", "checkpoint='a b'"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert arranged(monkeypatch, "a=b") == ["checkpoint='a=b'"]
    assert arranged(monkeypatch, "~/a") == [f"checkpoint={os.path.expanduser('~/a')}"]
    with pytest.raises(ConfigurationError, match=r"^checkpoint=x, y: both name the checkpoint; "):
        arranged(monkeypatch, "y", "checkpoint=x")
    with pytest.raises(ConfigurationError, match=r"^x y: sample takes one checkpoint; "):
        arranged(monkeypatch, "x", "y")
    several = arranged(monkeypatch, "x", "y z", positional="sweep", several=True)
    assert several == ["sweep=['x','y z']"]


@pytest.mark.parametrize("command", ["evaluate", "sample", "encode", "visualize", "export"])
def test_the_commands_for_a_trained_model_take_its_path(tmp_path, monkeypatch, command):
    assert told(tmp_path, monkeypatch, command, "nosuch").startswith("checkpoint=nosuch: not found")


# -- one value for a key --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("seed=1", "seed=2"),
        ("seed=1", "++seed=2"),
        ("model=vae", "model=conditional"),
        ("~callbacks.best", "callbacks.best=null"),
        ("hydra.run.dir=a", "hydra.run.dir=b"),
        ("search.model=1", "search.model=2"),
    ],
)
def test_a_key_that_is_typed_twice_is_refused_with_both(monkeypatch, one, other):
    with pytest.raises(ConfigurationError) as error:
        arranged(monkeypatch, one, "trainer.max_epochs=3", other, name="tune", positional=None)
    key = one.strip("~").partition("=")[0]
    assert str(error.value) == f"{one}, {other}: {key} is typed twice; keep one"


def test_a_process_that_lightning_starts_may_repeat_hydras_own_keys(monkeypatch):
    own = ['hydra.run.dir="."', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    line = ["hydra.run.dir=mine", "seed=2", *own]
    assert arranged(monkeypatch, *line, name="train", positional=None) == line


# -- other projects' flags, and slips -------------------------------------------------------------

FLAGS = {
    "--epochs 3": "--epochs 3: settings are typed without dashes: trainer.max_epochs=3",
    "--epochs=3": "--epochs=3: settings are typed without dashes: trainer.max_epochs=3",
    "--epochs": "--epochs: settings are typed without dashes: trainer.max_epochs=…",
    "--lr 1e-3": "--lr 1e-3: settings are typed without dashes: optimizer.learning_rate=1e-3",
    "--batch-size 64": "--batch-size 64: settings are typed without dashes: data.batch_size=64",
    "--model.latent_dim=2": "--model.latent_dim=2: settings are typed without dashes: "
    "model.latent_dim=2",
    "--no-cuda": "--no-cuda: settings are typed without dashes: trainer.accelerator=cpu",
    "--no-cuda seed=3": "--no-cuda: settings are typed without dashes: trainer.accelerator=cpu",
    "--kl_weight 4": "--kl_weight 4: settings are typed without dashes: model.kl_weight=4",
    "--output_dir x": "--output_dir x: settings are typed without dashes: hydra.run.dir=x",
    "--config mine.yaml": "--config mine.yaml: settings are typed without dashes: experiment=mine",
    "--num-workers 4": "--num-workers 4: the images lie in memory, and no workers load them",
    "--nosuch": "--nosuch: not an option; settings are typed as key=value, see --help",
    "-z 3": "-z 3: not an option; settings are typed as key=value, see --help",
    "--cfg": "--cfg/-c: expected one argument",
    "--cfg nosuch": "--cfg/-c: invalid choice: 'nosuch' (choose from ",
    "--cfg job --info": "--cfg, --info: don't go together; keep one",
    "-m --cfg job": "--multirun, --cfg: don't go together; keep one",
    "--resolve": "--resolve: changes only what --cfg job prints; type both",
    "--package model": "--package: changes only what --cfg job prints; type both",
    "--hydra-help": "--hydra-help: not offered; --help lists the settings that matter most, ",
    "model.hidden_dims=[400, 200]": "model.hidden_dims=[400, 200]: the shell has split it at its "
    "spaces; type 'model.hidden_dims=[400,200]'",
    "+optimizer.options={eps: 1}": "+optimizer.options={eps: 1}: the shell has split it at its "
    "spaces; type '+optimizer.options={eps:1}'",
    "hydra.sweep.dir=x": "hydra.sweep.dir=x: only of a sweep, so with --multirun",
    "hydra/launcher=joblib": "hydra/launcher=joblib: only of a sweep, so with --multirun",
    "-m hydra.run.dir=x": "hydra.run.dir=x: of a single run; a sweep has hydra.sweep.dir=x",
}


@pytest.mark.parametrize(("line", "answer"), FLAGS.items(), ids=FLAGS.keys())
def test_a_newcomers_slip_is_answered_with_what_to_type(tmp_path, monkeypatch, line, answer):
    assert told(tmp_path, monkeypatch, "train", *line.split()).startswith(answer)


def test_the_flags_of_another_command_are_its_own_keys(tmp_path, monkeypatch):
    assert told(tmp_path, monkeypatch, "train_classifier", "--max-epochs", "3").endswith(
        ": epochs=3"
    )
    assert told(tmp_path, monkeypatch, "sample", "--ckpt", "x").endswith(": checkpoint=x")
    assert told(tmp_path, monkeypatch, "evaluate", "--bs=3").endswith(": data.eval_batch_size=3")


def test_flags_may_stand_among_the_overrides(monkeypatch):
    line = ["seed=1", "--cfg", "job", "model=vae", "--resolve", "--package", "model", "data=mnist"]
    assert arranged(monkeypatch, *line, name="train", positional=None) == [
        "seed=1",
        "model=vae",
        "data=mnist",
    ]
    read = typed_line()
    assert (read.cfg, read.resolve, read.package) == ("job", True, "model")
    arranged(monkeypatch, "--config-dir=~/recipes", name="train", positional=None)
    assert typed_line().config_dir == os.path.expanduser("~/recipes")


@pytest.mark.parametrize("override", ["experiment=null", "+experiment=null", "++experiment=NULL"])
def test_no_recipe_can_be_typed_as_such(monkeypatch, override):
    assert arranged(monkeypatch, override, "seed=2", name="train", positional=None) == ["seed=2"]


def test_an_argument_in_another_encoding_is_refused(monkeypatch):
    with pytest.raises(ConfigurationError, match=r"no text in this terminal's encoding; type LC"):
        arranged(monkeypatch, os.fsdecode(b"resume=\xe9"), name="train", positional=None)


def test_hydras_completion_for_shells_can_be_installed(tmp_path, monkeypatch, capsys):
    typed("train", "-sc", "install=bash", directory=tmp_path, patch=monkeypatch)
    assert "complete -o nospace" in capsys.readouterr().out


# -- whatever is typed ----------------------------------------------------------------------------

KEYS = [
    "model",
    "model.latent_dim",
    "model.hidden_dims",
    "model.hidden_dims.0",
    "model.hidden_dims.a",
    "model._target_",
    "model.nosuch",
    "optimizer.options.eps",
    "data.dir",
    "trainer",
    "trainer.max_epochs",
    "callbacks",
    "callbacks.best",
    "callbacks.nosuch._target_",
    "logger",
    "logger.foo",
    "experiment",
    "experiment.model.latent_dim",
    "seed",
    "resume",
    "sweep",
    "hydra",
    "hydra.run.dir",
    "hydra.job.name",
    "hydra.nosuch",
    "hydra.verbose",
    "hydra.sweeper",
    "hydra/launcher",
    "hydra/env",
    "data@foo",
    "",
    ".",
    "a b",
    "é",
    "lr",
]
VALUES = [*SHARED, *(each for each in NAMES if "/" not in each), "", "=", "vae", "[vae]", "[null]"]
FLAGS_SHOWING = ["--cfg=job", "--info=defaults", "--cfg=job --resolve"]


WRONG = {"train": "seed=-1", "tune": "trials=0", "sample": "count=0"}
"""What makes sure that no line does anything."""


@st.composite
def lines(draw, wrong):
    """Draw a command line of which something is wrong."""
    arguments = []
    for _ in range(draw(st.integers(1, 3))):
        prefix = draw(st.sampled_from(["", "", "", "+", "++", "~"]))
        key = draw(st.sampled_from(KEYS))
        value = draw(st.sampled_from([None, *VALUES]))
        arguments.append(f"{prefix}{key}" if value is None else f"{prefix}{key}={value}")
    return [*arguments, wrong]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "count"), [("train", 250), ("tune", 80), ("sample", 80)])
def test_whatever_is_typed_is_answered_in_a_line_or_two_and_leaves_nothing(
    tmp_path, monkeypatch, command, count
):
    wrong = WRONG[command]

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(lines(wrong))
    @example(["++model.hidden_dims.a=1", wrong])
    @example(["+experiment=null", wrong])
    @example(["callbacks.best=5", wrong])
    @example(["callbacks=[5]", wrong])
    @example(["hydra.verbose={a:1}", wrong])
    def check(line):
        message = told(tmp_path, monkeypatch, command, *line)
        assert len(message.splitlines()) <= 2, message

    check()


@pytest.mark.parametrize("command", ["train", "tune", "evaluate", "summarize", "train_classifier"])
@pytest.mark.parametrize("flags", FLAGS_SHOWING)
def test_a_configuration_is_shown_of_every_command(tmp_path, monkeypatch, capsys, command, flags):
    typed(command, *flags.split(), directory=tmp_path, patch=monkeypatch)
    assert capsys.readouterr().out
    message = told(tmp_path, monkeypatch, command, "nosuch=1", *flags.split())
    assert message.startswith("unknown key nosuch: ")
