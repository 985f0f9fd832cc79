"""Training that begins from an earlier run: a prior over its codes, or from its weights."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from vae_lightning.configuration.building import class_of, require
from vae_lightning.configuration.paths import expanded
from vae_lightning.configuration.quoting import override, printable
from vae_lightning.errors import ConfigurationError
from vae_lightning.models.base import CodePrior, DiscreteModel, Model, target_of
from vae_lightning.runs import checkpoints


def resolve(config: DictConfig) -> None:
    """Put the trained run that ``data=codes`` names into a configuration, in its place.

    ``data`` becomes that of the run, and ``model.autoencoder`` what rebuilds its model. So the
    configuration that is stored with the new run needs the first one no more.

    Raises:
        ConfigurationError: the run has no model with codes, or the model to train is no prior.
    """
    kind = class_of("model._target_", config.model.get("_target_"), Model)  # type: ignore[type-abstract]
    learns_codes = issubclass(kind, CodePrior)
    if "_target_" in config.data:
        if learns_codes and config.model.autoencoder is None:
            raise ConfigurationError(
                "model=prior: learns the codes of a trained model; "
                "type data=codes data.run=<run of a VQ-VAE>"
            )
        return
    if not learns_codes:
        raise ConfigurationError("data=codes: only a prior learns codes; type model=prior")
    if OmegaConf.is_missing(config.data, "run") or config.data.run is None:
        raise ConfigurationError("data=codes: of which run? type data.run=<run of a VQ-VAE>")
    if config.model.autoencoder is not None:
        raise ConfigurationError("model.autoencoder: is taken from data.run; leave it out")
    run = require("data.run", config.data.run, str)
    file, content, model = _open("data.run", run)
    if not isinstance(model, DiscreteModel):
        raise ConfigurationError(
            f"{override('data.run', run)}: its model has no codes ({printable(model.describe())}); "
            "name a run of model=vqvae"
        )
    trained_on, settings = checkpoints.data_of(file, content)
    settings.pop("seed", None)
    known = inspect.signature(trained_on).parameters
    data = {
        key: value
        for key, value in config.data.items()
        if key != "run" and (value is not None or (key == "dir" and key in known))
    }
    described = {
        "target": target_of(type(model)),
        "settings": model.settings,
        **_origin(run, file, content),
    }
    with open_dict(config):
        config.data = {"_target_": target_of(trained_on), **settings, **data}
        config.model.autoencoder = described


def load(model: Model) -> None:
    """Give a new prior the weights of the trained model that it is to learn the codes of.

    Raises:
        ConfigurationError: they are no longer where they were.
    """
    if not isinstance(model, CodePrior):
        return
    described: dict[str, Any] = model.settings["autoencoder"]
    file, _, trained = _open("data.run", described["run"])
    if hashlib.sha256(file.read_bytes()).hexdigest() != described["sha256"]:
        raise ConfigurationError(
            f"{override('data.run', described['run'])}: its checkpoint is another one than when "
            "this run was begun; begin a new run"
        )
    model.autoencoder.load_state_dict(trained.state_dict())


def begin_from(model: Model, run: str) -> dict[str, Any]:
    """Give a new model the weights of a trained one, and return where they come from.

    Raises:
        ConfigurationError: there is no such run, or its model is another one.
    """
    typed = override("init", run)
    file, content, trained = _open("init", run)
    if type(trained) is not type(model):
        raise ConfigurationError(
            f"{typed}: its model is a {printable(trained.describe())}, and this one a "
            f"{printable(model.describe())}"
        )
    try:
        model.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        others = [
            f"model.{key}={json.dumps(value, separators=(',', ':'))}"
            for key, value in trained.settings.items()
            if model.settings.get(key) != value
        ]
        instead = (
            f"type {' '.join(others)}"
            if others
            else (
                f"its data has the shape {list(trained.data.shape)}, "
                f"this one {list(model.data.shape)}"
            )
        )
        raise ConfigurationError(f"{typed}: other weights than this model's; {instead}") from error
    return _origin(run, file, content)


def _origin(run: str, file: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what names a checkpoint, for the runs that begin from it."""
    return {
        "run": str(Path(expanded(run)).absolute()),
        "step": content["global_step"],
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


def _open(key: str, run: str) -> tuple[Path, dict[str, Any], Model]:
    """Return the checkpoint of a run that a key names, what it holds, and its model."""
    typed = override(key, run)
    try:
        file = checkpoints.find_checkpoint(run)
    except FileNotFoundError as error:
        problem = printable(error).partition(": ")[2]  # what comes before names another key
        raise ConfigurationError(f"{typed}: {problem}") from error
    content = checkpoints.read(file)
    return file, content, checkpoints.build_model(file, content)
