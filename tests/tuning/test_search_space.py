"""What a search may vary, how it is written, and the recipe of what was best."""

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from optuna.distributions import FloatDistribution, IntDistribution

from vae_lightning.configuration.composing import CONFIGS
from vae_lightning.errors import ConfigurationError
from vae_lightning.tuning import search_space


@pytest.fixture(scope="module")
def config():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(
            compose("tune", ["model=convolutional", "trainer.max_epochs=3"])
        )


def read(config, varied):
    return search_space.read_space(
        {**config, "search": OmegaConf.to_container(OmegaConf.create(varied))}
    )


def test_what_varies_is_read_from_ranges_and_lists(config):
    found = read(
        config,
        "{model: {latent_dim: {int: [2, 9], log: true}, hidden_dims: [[8], [8, 4]], "
        "kl_weight: {float: [0, 4], step: 0.5}, pixel_scale: [0.1, learnt, null]}, "
        "optimizer: {name: [adam, sgd]}, data: {batch_size: [64, 128]}, "
        "trainer: {max_epochs: {int: [1, 9], step: 4}}}",
    )
    assert found.distributions["optimizer.name"].choices == ("adam", "sgd")
    assert found.distributions["model.latent_dim"] == IntDistribution(2, 9, log=True)
    assert found.distributions["model.kl_weight"] == FloatDistribution(0, 4, step=0.5)
    assert found.distributions["trainer.max_epochs"] == IntDistribution(1, 9, step=4)
    assert found.distributions["model.hidden_dims"].choices == ("[8]", "[8, 4]")
    drawn = {
        "model.hidden_dims": "[8, 4]",
        "model.pixel_scale": None,
        "data.batch_size": 64,
        "model.latent_dim": 5,
    }
    assert found.values(drawn) == {**drawn, "model.hidden_dims": [8, 4]}


@pytest.mark.parametrize(
    "option", [path.stem for path in sorted((CONFIGS / "search").glob("*.yaml"))]
)
def test_each_search_that_is_shipped_can_be_read(option):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = OmegaConf.to_container(compose("tune", [f"search={option}"]))
    assert len(search_space.read_space(config).distributions) >= 3


REFUSALS = [
    ("{count: [2]}", "search.count: count is no value of the configuration"),
    (
        "{model: {likelihood: [bernoulli, gaussian]}}",
        "search.model.likelihood: not offered; data.batch_size and all of model",
    ),
    ("{model: {num_classes: [0, 10]}}", "search.model.num_classes: not offered"),
    ("{data: {binarization: [none, static]}}", "search.data.binarization: not offered"),
    ("{seed: [1, 2]}", "search.seed: not offered"),
    (
        "{optimizer: {options: {eps: [1e-4]}}}",
        "search.optimizer.options.eps: optimizer.options.eps is no",
    ),
    ("{model: [1]}", "search.model: model is no value of the configuration"),
    (
        "{model: {latent_dim: 3}}",
        "search.model.latent_dim=3: must be a list, {int: [2, 64]} or {float: ",
    ),
    ("{model: {latent_dim: null}}", "search.model.latent_dim=None: must be a list"),
    (
        "{model: {latent_dim: []}}",
        "search.model.latent_dim=[]: List should have at least 1 item",
    ),
    ("{model: {latent_dim: {int: [5, 2]}}}", "search.model.latent_dim={'int': [5, 2]}: "),
    (
        "{model: {latent_dim: {int: [2]}}}",
        "search.model.latent_dim.int=[2]: List should have at least 2 items",
    ),
    (
        "{model: {latent_dim: {int: [2, a]}}}",
        "search.model.latent_dim.int=[2, 'a']: must be a valid integer",
    ),
    (
        "{model: {latent_dim: {int: [2, 5.5]}}}",
        "search.model.latent_dim.int=[2, 5.5]: must be a valid integer",
    ),
    (
        "{model: {latent_dim: {int: [2, 5], float: [2, 5]}}}",
        "search.model.latent_dim={'int': [2, 5], 'float': [2, 5]}: must be",
    ),
    (
        "{model: {latent_dim: {int: [2, 5], lgo: true}}}",
        "search.model.latent_dim={'int': [2, 5], 'lgo': True}: must be a list",
    ),
    (
        "{model: {latent_dim: {int: [2, 5], step: 2}}}",
        "search.model.latent_dim={'int': [2, 5], 'step': 2}: ",
    ),
    (
        "{model: {latent_dim: {int: [2, 5], log: 1}}}",
        "search.model.latent_dim.log=1: must be a valid boolean",
    ),
    (
        "{model: {kl_weight: {float: [0, 4], log: true}}}",
        "search.model.kl_weight={'float': [0, 4], 'log': True}: ",
    ),
    (
        "{model: {kl_weight: {float: [0, .inf]}}}",
        "search.model.kl_weight.float=[0, inf]: must be a finite number",
    ),
    (
        "{model: {kl_weight: {float: [0, 4], step: -1.0}}}",
        "search.model.kl_weight.step=-1.0: must be greater than 0",
    ),
    ("{}", "search: names nothing that varies"),
    ("{model: {}}", "search: names nothing that varies"),
]


def test_what_the_default_search_varies_and_a_model_lacks_is_named_and_left_out(caplog):
    default = OmegaConf.load(CONFIGS / "search" / "default.yaml").search
    config = {"model": {"codes": 8}, "optimizer": {"learning_rate": 1e-3}, "search": default}
    config = OmegaConf.to_container(OmegaConf.create(config | {"data": {"batch_size": 8}}))
    with caplog.at_level("INFO"):
        space = search_space.read_space(config)
    assert set(space.distributions) == {"optimizer.learning_rate", "data.batch_size"}
    assert "this model has no model.hidden_dims" in caplog.text
    config["search"]["model"]["hidden_dims"] = [[3]]
    with pytest.raises(ConfigurationError, match=r"model\.hidden_dims is no value of the config"):
        search_space.read_space(config)


@pytest.mark.parametrize(("varied", "message"), REFUSALS, ids=[each for each, _ in REFUSALS])
def test_what_cannot_vary_is_refused_by_its_key(config, varied, message):
    with pytest.raises(ConfigurationError) as error:
        read(config, varied)
    assert str(error.value).startswith(message)


def test_changes_are_nested_as_what_they_are_found_in():
    base = {"a": 1, "b": {"c": 2, "d": None, "e": {"f": 1}}, "g": [1]}
    new = {"a": 1.0, "b": {"c": 2, "d": {"x": 1}}, "g": [1], "h": {}}
    found = search_space.changes(new, base)
    assert found == {"a": 1.0, "b": {"d": {"x": 1}, "e": None}, "h": {}}
    assert search_space.changes(base, base) == {}
    assert search_space.first_of(found) == ("a", 1.0)
    assert search_space.first_of({"b": {"d": {"x": 1}}}) == ("b.d.x", 1)


def test_a_recipe_says_what_differs_and_nothing_of_where_the_data_lies(config):
    trial = search_space.of_a_trial(
        config, {"model.hidden_dims": [8], "optimizer.learning_rate": 3e-5}, "somewhere"
    )
    trial.callbacks.best = None  # as ~callbacks.best leaves it out
    trial.optimizer.options = {"eps": 1e-4}
    choices = {
        "model": "convolutional",
        "optimizer": "adam",
        "data": "mnist",
        "callbacks": "minimal",
        "logger": "none",
        "search": "default",
        "hydra/x": "y",
    }
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        text = search_space.recipe(trial, choices, ["made by a test"])
    assert text.startswith("# @package _global_\n# made by a test\n")
    assert OmegaConf.to_container(OmegaConf.create(text)) == {
        "defaults": [{"override /model": "convolutional"}, {"override /logger": "none"}],
        "model": {"hidden_dims": [8]},
        "optimizer": {"learning_rate": 3e-5, "options": {"eps": 1e-4}},
        "trainer": {"max_epochs": 3},
        "callbacks": {"best": None},
        "logger": {"tensorboard": trial.logger.tensorboard},
    }


VALUES = [None, True, 3, 1e-05, "learnt", "null", "1e3", "a,b", "it's", [8, 4], ["a b", None], []]
VALUES += [{"eps": 1e-08, "name": "a b"}, [[8], [8, 4]], "${x}", -0.5]


@pytest.mark.parametrize("value", VALUES, ids=map(str, VALUES))
def test_a_trial_s_value_is_written_as_hydra_reads_it(value):
    typed = search_space.typed("model.x", value)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("train", [f"+{typed}"])
    read = composed.model.x
    assert (OmegaConf.to_container(read) if OmegaConf.is_config(read) else read) == value
    assert type(read) is type(value) or OmegaConf.is_config(read)
