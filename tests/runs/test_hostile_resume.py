"""A run from elsewhere that is resumed reaches no file outside of its directory."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from conftest import SUBSET, train_in, typed

OWN = "lightning.pytorch.callbacks.ModelCheckpoint"
FAST = ("callbacks=minimal", "logger=none", "model.hidden_dims=[8]", "trainer.max_epochs=1")


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return train_in(tmp_path_factory.mktemp("begun"), *FAST)


@pytest.fixture
def run(begun, tmp_path):
    """A copy of a run that may go on."""
    shutil.copytree(begun, tmp_path / "run", symlinks=True)
    (tmp_path / "run" / "metrics.json").unlink()
    return tmp_path / "run"


@pytest.fixture
def victim(tmp_path):
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    return folder


def resume(run, patch, *arguments):
    line = (f"resume={run}", "trainer.max_epochs=2", *arguments)
    typed("train", *line, directory=run.parent, patch=patch)


def add(run, group, **settings):
    """Add a part to the run's stored configuration."""
    file = run / ".hydra" / "config.yaml"
    config = OmegaConf.load(file)
    config[group]["mine"] = settings
    OmegaConf.save(config, file)


@pytest.mark.parametrize(
    ("group", "settings"),
    [
        ("callbacks", {"_target_": OWN, "dirpath": "{victim}", "filename": "x"}),
        ("callbacks", {"_target_": OWN, "filename": "../../victim/y"}),
        ("callbacks", {"_target_": OWN, "dirpath": "${hydra:runtime.cwd}/victim"}),
        (
            "logger",
            {"_target_": "vae_lightning.runs.loggers.RunCSVLogger", "save_dir": "{victim}"},
        ),
        (
            "logger",
            {
                "_target_": "vae_lightning.runs.loggers.RunCSVLogger",
                "save_dir": "${hydra:runtime.output_dir}",
                "name": "../victim",
                "version": "",
            },
        ),
        (
            "logger",
            {
                "_target_": "vae_lightning.runs.loggers.RunLogger",
                "save_dir": "${hydra:runtime.output_dir}",
                "sub_dir": "{victim}",
            },
        ),
    ],
)
def test_a_stored_configuration_that_writes_elsewhere_is_refused(
    run, victim, monkeypatch, group, settings
):
    add(
        run,
        group,
        **{key: value.replace("{victim}", str(victim)) for key, value in settings.items()},
    )
    with pytest.raises(SystemExit, match=r"its configuration writes to another place, \w+\.mine\."):
        resume(run, monkeypatch)
    assert [each.name for each in victim.iterdir()] == ["thesis.txt"]


def test_a_line_end_of_a_file_is_printed_as_text(run, monkeypatch):
    file = run / ".hydra" / "config.yaml"
    config = OmegaConf.load(file)
    config.model._target_ = "x\x1b[31mX\nimport os"
    OmegaConf.save(config, file)
    with pytest.raises(SystemExit, match=r"^error: model\._target_=x\\x1b\[31mX\\nimport os: not"):
        resume(run, monkeypatch)


def test_data_that_the_run_was_not_of_is_not_fetched(run, monkeypatch):
    file = run / ".hydra" / "config.yaml"
    config = OmegaConf.load(file)
    config.data.update({"name": "kmnist", "dir": str(run.parent / "elsewhere")})
    OmegaConf.save(config, file)
    with pytest.raises(SystemExit, match=r"data\.name is kmnist in its configuration, mnist"):
        resume(run, monkeypatch)
    assert not (run.parent / "elsewhere").exists()


@pytest.mark.parametrize("place", ["dirpath={victim}", "dirpath=../victim", "filename=../../x"])
def test_a_callback_writes_into_the_run_directory_only(run, victim, monkeypatch, place):
    own = ("_target_=" + OWN, place.format(victim=victim))
    with pytest.raises(SystemExit, match="outside of the run directory"):
        resume(run, monkeypatch, *(f"+callbacks.mine.{each}" for each in own))
    assert [each.name for each in victim.iterdir()] == ["thesis.txt"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
def test_a_callback_s_folder_lies_in_the_run_directory(run, monkeypatch):
    own = ("_target_=" + OWN, "dirpath=mine", "filename=x")
    resume(run, monkeypatch, *(f"+callbacks.mine.{each}" for each in own))
    assert sorted(each.name for each in (run / "mine").iterdir()) == ["x.ckpt", "x.ckpt.sha256"]
    assert not Path("mine").exists()


def test_a_checkpoint_that_remembers_files_of_others_deletes_none(run, victim, monkeypatch):
    inside = run / "mine"
    add(run, "callbacks", _target_=OWN, dirpath=str(inside), monitor="val/elbo", mode="max")
    [*_, file] = sorted((run / "checkpoints").glob("step_*.ckpt"))
    content = torch.load(file, weights_only=True)
    low, thesis = torch.tensor(-1e9), str(victim / "thesis.txt")
    name = (
        "ModelCheckpoint{'monitor': 'val/elbo', 'mode': 'max', 'every_n_train_steps': 0, "
        "'every_n_epochs': 1, 'train_time_interval': None}"
    )
    content["callbacks"][name] = {
        "monitor": "val/elbo", "best_model_score": low, "best_model_path": thesis,
        "current_score": low, "dirpath": str(inside), "best_k_models": {thesis: low},
        "kth_best_model_path": thesis, "kth_value": low, "last_model_path": "",
    }  # fmt: skip
    torch.save(content, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    file.with_name(f"{file.name}.sha256").write_text(f"{digest}  {file.name}\n")
    with pytest.raises(SystemExit, match="a ModelCheckpoint names files of other folders"):
        resume(run, monkeypatch)
    assert (victim / "thesis.txt").read_text() == "precious"


def test_a_backup_of_hard_links_stays_as_it_was(run, tmp_path, monkeypatch):
    backup = tmp_path / "backup"
    shutil.copytree(run, backup, symlinks=True, copy_function=os.link)
    before = {each: each.read_bytes() for each in backup.rglob("*") if each.is_file()}
    resume(run, monkeypatch)
    assert {each: each.read_bytes() for each in backup.rglob("*") if each.is_file()} == before
    assert len((run / "train.log").read_text()) > len((backup / "train.log").read_text())


def test_lists_a_thousand_deep_are_refused_in_a_line(run, monkeypatch):
    with (run / ".hydra" / "config.yaml").open("a") as file:
        file.write(f"x: {'[' * 1000}{']' * 1000}\n")
    with pytest.raises(SystemExit, match="no run directory that train has made"):
        resume(run, monkeypatch)


def test_a_mirror_in_the_run_directory_is_refused(run, monkeypatch):
    with pytest.raises(SystemExit, match="lies in the run directory itself"):
        resume(run, monkeypatch, f"mirror=file://{run}")
    with pytest.raises(SystemExit, match="lies in the run directory itself"):
        resume(run, monkeypatch, f"mirror=file://{run.parent}")


def test_another_figure_chooses_the_best_checkpoint_anew(tmp_path, monkeypatch):
    first = (*FAST[:-1], "trainer.max_epochs=2", "callbacks.best.monitor=val/kl")
    run = train_in(tmp_path, *first)
    typed(
        "train", f"resume={run}", "trainer.max_epochs=4", "callbacks.best.monitor=val/elbo",
        directory=tmp_path, patch=monkeypatch,
    )  # fmt: skip
    best = (run / "checkpoints" / "best.ckpt").resolve()
    assert best == (run / "checkpoints" / "last.ckpt").resolve()  # the ELBO still rises


@pytest.mark.parametrize("damage", ["nan", "complex", "whole"])
def test_weights_that_are_no_finite_numbers_are_refused(begun, tmp_path, monkeypatch, damage):
    content = torch.load(begun / "checkpoints" / "best.ckpt", weights_only=True)
    change = {
        "nan": lambda weight: torch.full_like(weight, torch.nan),
        "complex": lambda weight: weight.to(torch.complex64),
        "whole": lambda weight: weight.to(torch.int8),
    }[damage]
    content["state_dict"] = {name: change(each) for name, each in content["state_dict"].items()}
    torch.save(content, tmp_path / "file.ckpt")
    for command, more in (("sample", ()), ("encode", (SUBSET[1],))):
        line = (f"checkpoint={tmp_path / 'file.ckpt'}", *more)
        with pytest.raises(SystemExit, match="not a checkpoint of this project, or damaged"):
            typed(command, *line, directory=tmp_path, patch=monkeypatch)
    assert not (tmp_path / "outputs").exists()
