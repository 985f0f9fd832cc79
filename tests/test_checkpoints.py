"""Checkpoints that need nothing but the file, and files that are not ours."""

import pickle
import re
import shutil

import pytest
import torch

import vae_lightning
from vae_lightning.checkpoints import find_checkpoint, load_data_settings, load_module


def test_a_run_directory_stands_for_its_best_checkpoint_else_its_last(trained, tmp_path):
    assert find_checkpoint(trained) == trained / "checkpoints" / "best.ckpt"
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "checkpoints")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"


def test_a_module_needs_nothing_but_the_file(trained):
    module = vae_lightning.VAEModule.load_from_checkpoint(trained / "checkpoints" / "last.ckpt", weights_only=True)
    assert module.latent_dim == 3
    again = load_module(trained / "checkpoints" / "last.ckpt")
    for ours, theirs in zip(module.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_notebook_loads_the_model_in_one_line(trained):
    vae = vae_lightning.load(trained)
    assert not vae.training
    assert vae.sample(2).shape == (2, 1, 28, 28)
    assert not vae.sample(2).requires_grad
    assert isinstance(vae, vae_lightning.VAE)


def test_file_names_can_be_typed_as_overrides(trained):
    names = sorted(file.name for file in (trained / "checkpoints").iterdir())
    assert names[:2] == ["best.ckpt", "last.ckpt"]
    assert all(re.fullmatch(r"step_\d{8}\.ckpt(\.sha256)?", name) for name in names[2:])


def test_checkpoints_hold_plain_values_only(trained):
    settings = load_data_settings(trained)
    assert settings["name"] == "mnist_subset"
    assert settings["val_size"] == 80
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    for value in [*checkpoint["hyper_parameters"].values(), *settings.values()]:
        assert type(value) in (int, float, str, bool, list, tuple, type(None))


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("content", ["empty", "text", "hostile", "foreign"])
def test_files_that_are_no_checkpoints_of_ours_are_refused_and_run_nothing(tmp_path, content):
    file = tmp_path / "model.ckpt"
    if content == "foreign":
        torch.save({"state_dict": {}}, file)
    elif content == "hostile":
        torch.save({"state_dict": {}, "hyper_parameters": Hostile(tmp_path / "executed")}, file, pickle_protocol=2)
    else:
        file.write_bytes(b"" if content == "empty" else b"not a checkpoint")
    for function in (vae_lightning.load, load_data_settings):
        with pytest.raises(ValueError, match=f"checkpoint={file}: not a checkpoint of this project"):
            function(file)
    assert not (tmp_path / "executed").exists()


def test_the_hostile_file_would_have_run_code(tmp_path):
    pickle.loads(pickle.dumps(Hostile(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a file nor a run directory"):
        find_checkpoint(tmp_path / "nosuch")
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoints/best\.ckpt or last\.ckpt"):
        find_checkpoint(tmp_path)
