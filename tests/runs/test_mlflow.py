"""MLflow: figures and pictures in the run directory, a resume, and servers that don't answer."""

import logging
import sys

import pytest

from conftest import SUBSET, train_in, typed
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.loggers import RunMLFlowLogger

pytestmark = pytest.mark.filterwarnings("ignore")  # of mlflow's own


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No server of whoever runs the tests, and no long wait for one."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def runs_in(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    [experiment] = (each for each in client.search_experiments() if each.name == "vae-lightning")
    return client, client.search_runs([experiment.experiment_id])


@pytest.mark.slow
def test_a_run_logs_into_its_directory_and_a_resumed_one_beside_it(tmp_path, monkeypatch):
    pictures = ("~callbacks.traversals", "~callbacks.interpolation", "~callbacks.projector")
    run = train_in(
        tmp_path,
        *("logger=[tensorboard,mlflow]", "logger.mlflow.name=mine", *pictures),
        *("model.latent_dim=3", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"),
    )
    assert list(run.glob("tensorboard/events*"))
    client, [logged] = runs_in(run / "mlflow" / "1")
    assert (logged.info.status, logged.info.run_name) == ("FINISHED", "mine")
    assert {"train/loss", "val/elbo", "test/elbo"} <= logged.data.metrics.keys()
    [validated] = client.get_metric_history(logged.info.run_id, "val/elbo")
    assert validated.step == 3
    assert logged.data.params["seed"] == "1"
    pictures = [each.name for each in run.glob("mlflow/1/*/artifacts/images/*.png")]
    assert any(each.startswith("images~prior_samples+step+3+") for each in pictures)

    before = (run / "mlflow" / "1" / "mlflow.db").read_bytes()
    line = (f"resume={run}", "trainer.max_epochs=2")
    typed("train", *line, directory=tmp_path, patch=monkeypatch)
    _, [again] = runs_in(run / "mlflow" / "2")
    assert again.info.run_id != logged.info.run_id
    assert (run / "mlflow" / "1" / "mlflow.db").read_bytes() == before
    assert {each.name for each in tmp_path.iterdir()} == {"outputs"}  # and no mlruns


@pytest.mark.slow
def test_a_server_that_does_not_answer_ends_the_start_in_a_line_without_its_password(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    with pytest.raises(SystemExit) as exit_:
        typed("train", *SUBSET, "logger=mlflow", directory=tmp_path, patch=monkeypatch)
    [line] = str(exit_.value.code).splitlines()
    assert line.startswith("error: logger.mlflow: ")
    assert line.endswith(
        "set MLFLOW_TRACKING_URI to a server that answers, or unset it to log here only"
    )
    assert "secret" not in line
    assert not (tmp_path / "outputs").exists()


def test_what_fails_later_warns_once_and_the_run_goes_on(tmp_path, monkeypatch, caplog):
    logger = RunMLFlowLogger(str(tmp_path))
    logger.log_hyperparams({"seed": 1})
    client = logger.experiment

    def refuse(*_, **__):
        raise RuntimeError("no space at http://me:secret@host\nmore")

    monkeypatch.setattr(client, "log_batch", refuse)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            logger.log_metrics({"loss": 1.0}, step)
        logger.finalize()
    [warning] = [each for each in caplog.messages if "no longer written" in each]
    assert "(no space at http://me:***@host); the run goes on" in warning


def test_no_file_can_name_a_server_and_a_missing_package_is_said(tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match=r"no \? may be in the directory"):
        RunMLFlowLogger(str(tmp_path / "a?b"))
    with pytest.raises(SystemExit, match=r"logger.mlflow.tracking_uri"):
        typed(
            *("train", *SUBSET, "logger=mlflow", "logger.mlflow.tracking_uri=sqlite:///x.db"),
            directory=tmp_path,
            patch=monkeypatch,
        )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'vae-lightning\[mlflow\]'"):
        RunMLFlowLogger(str(tmp_path))


@pytest.mark.parametrize("address", ["file:///tmp/x", "/tmp/x", "evil+driver://x"])
def test_an_address_that_mlflow_refuses_is_a_line(tmp_path, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    with pytest.raises(ConfigurationError, match="set MLFLOW_TRACKING_URI to a server that"):
        RunMLFlowLogger(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_named_without_advice_about_a_server(tmp_path):
    (tmp_path / "mlflow").touch()
    with pytest.raises(ConfigurationError, match=r"mlflow'$"):
        RunMLFlowLogger(str(tmp_path)).log_hyperparams({"seed": 1})
    with pytest.raises(ValueError, match="at least 1 character"):
        RunMLFlowLogger(str(tmp_path), experiment="")
