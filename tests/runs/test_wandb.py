"""Weights & Biases, offline: figures and pictures, a resume, and what is said without a login."""

import sys

import pytest

from conftest import SUBSET, train_in, typed
from vae_lightning.runs.loggers import RunWandbLogger

WANDB = ("logger=[tensorboard,wandb]", "logger.wandb.offline=true")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path_factory):
    """No account of whoever runs the tests, and none of their folders."""
    home = tmp_path_factory.mktemp("home")
    for key in ("HOME", "NETRC", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(key, str(home / key.lower()))
    for key in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(key, raising=False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_logs_offline_beside_tensorboard_and_is_resumed(tmp_path, monkeypatch):
    pictures = ("~callbacks.traversals", "~callbacks.interpolation", "~callbacks.projector")
    run = train_in(tmp_path, *WANDB, *pictures, "model.latent_dim=3", "trainer.max_epochs=1")
    import wandb

    wandb.teardown()  # its own process writes the file, and has all in it when it ends
    [first] = (run / "wandb").glob("offline-run-*")
    assert list(run.glob("tensorboard/events*"))
    logged = b"".join(file.read_bytes() for file in first.glob("*.wandb"))
    for name in (b"val/elbo", b"train/loss", b"images/reconstructions"):
        assert name in logged
    assert list(first.glob("files/media/images/images/prior_samples_*.png"))
    line = (f"resume={run}", "trainer.max_epochs=2")
    typed("train", *line, directory=tmp_path, patch=monkeypatch)
    assert len(list((run / "wandb").glob("offline-run-*"))) == 2


@pytest.mark.filterwarnings("ignore")
def test_without_a_login_a_line_says_what_to_type_and_nothing_is_left(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="not logged in; type wandb login first"):
        typed("train", *SUBSET, "logger=wandb", directory=tmp_path, patch=monkeypatch)
    assert not (tmp_path / "outputs").exists()


def test_without_wandb_a_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'vae-lightning\[wandb\]'"):
        RunWandbLogger(str(tmp_path))
