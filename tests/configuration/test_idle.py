"""Typed settings that change nothing are named in a line."""

import pytest
from omegaconf import OmegaConf

from conftest import SUBSET, typed
from vae_lightning.configuration import idle
from vae_lightning.configuration.composing import CONFIGS


@pytest.mark.parametrize(
    ("config", "key", "line"),
    [
        (
            {"model": {"channels": [8], "network": "mlp"}},
            "model.channels",
            "model.channels=[8]: changes nothing with model.network=mlp; "
            "it is of model.network=convolutional",
        ),
        ({"model": {"channels": [8], "network": "convolutional"}}, "model.channels", None),
        ({"model": {"channels": [8], "network": "mine.Network"}}, "model.channels", None),
        ({"model": {"channels": [8]}}, "model.channels", None),
        (
            {"samples": 3, "metrics": ["bound"]},
            "samples",
            "samples=3: changes nothing with metrics=['bound']; it is of metrics=log_marginal",
        ),
        ({"samples": 3, "metrics": ["bound", "log_marginal"]}, "samples", None),
        ({"samples": 3, "metrics": None}, "samples", None),
    ],
)
def test_a_setting_is_idle_by_what_another_one_is(config, key, line):
    config = OmegaConf.create(config)
    assert idle.idle_settings(config, [f"+{key}=typed"]) == ([line] if line else [])
    assert idle.idle_settings(config, ["seed=1"]) == []


def test_the_settings_named_are_those_of_the_configurations():
    roots = [OmegaConf.load(file) for file in [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("*/*.yaml")]]
    keys = {f"{key}" for root in roots for key in root}
    for setting, decides, _ in idle._USED_WITH:
        assert {setting.rpartition(".")[2], decides.rpartition(".")[2]} <= keys


def test_a_run_says_so_and_trains(tmp_path, monkeypatch, capsys):
    line = (*SUBSET, "model.channels=[8]", "trainer.fast_dev_run=true")
    typed("train", *line, directory=tmp_path, patch=monkeypatch)
    shown = capsys.readouterr().out
    assert shown.startswith("model.channels=[8]: changes nothing with model.network=mlp")
    assert "test ELBO" in shown
