"""Guard Hydra's own settings: a configuration from elsewhere could make Hydra run code with them.

This module doesn't import torch.
"""

import re
import warnings
from pathlib import PurePath
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import (
    ConfigLoaderImpl,
)  # the one gate that all compositions go through
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from vae_lightning.configuration.addresses import refuse_address
from vae_lightning.configuration.composing import CONFIGS, values_of
from vae_lightning.configuration.paths import expanded, takes_path
from vae_lightning.configuration.quoting import printable
from vae_lightning.errors import ConfigurationError

LAUNCHERS = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher": None,
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": "joblib",
    "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher": "ray",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": "submitit_slurm",
}
"""The launchers that may run a sweep's jobs, each with its file in ``configs/hydra/launcher``."""

HYDRA_TARGETS = frozenset({*LAUNCHERS, "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"})
"""Everything that Hydra's own settings may name as ``_target_``."""

_PLAIN = re.compile(r"[\w .,:;=+@%&|*()\[\]/-]*")


def install() -> None:
    """Make Hydra use ``GuardedLoader`` for everything that it composes in this process."""
    hydra._internal.hydra.ConfigLoaderImpl = GuardedLoader  # type: ignore[attr-defined]


class GuardedLoader(ConfigLoaderImpl):
    """Composes as Hydra does, and refuses settings with which Hydra itself would run foreign code.

    It refuses them before Hydra acts on them. They may come from a ``--config-dir``. Runs, jobs of
    a sweep and flags such as ``--info`` all compose with it.
    """

    def load_configuration(
        self, config_name: str | None, overrides: list[str], *arguments: Any, **settings: Any
    ) -> DictConfig:
        """Compose.

        Raises:
            ConfigurationError: the composition holds such a setting.
        """
        if settings.get("validate_sweep_overrides") is False:
            # Asked for hydra.mode alone, which the command line sets. Composing takes 0.3 s.
            typed = [each.partition("=")[2] for each in overrides if each.startswith("hydra.mode=")]
            return OmegaConf.create({"hydra": {"mode": RunMode[typed[-1]] if typed else None}})
        for override in overrides:
            if "searchpath" in override.partition("=")[0]:  # pkg://… is imported while composing
                raise ConfigurationError(
                    f"{override}: not offered; --config-dir adds a folder of configurations"
                )
        # Hydra adds it to a single run, where it would hide what a recipe says.
        is_single = overrides[-1:] == ["hydra.mode=RUN"]
        if is_single:
            overrides = overrides[:-1]
        with (
            warnings.catch_warnings()
        ):  # that a plugin's own types hold for our settings too is welcome
            warnings.filterwarnings("ignore", "\\s*'hydra/launcher/")
            try:
                config = super().load_configuration(config_name, overrides, *arguments, **settings)
            except (HydraException, OmegaConfBaseException, YAMLError, OSError):
                raise
            except Exception as error:  # at values that Hydra and OmegaConf don't expect
                problem = printable(str(error).strip().partition("\n")[0])
                raise ConfigurationError(
                    f"the configuration can't be composed: {problem}"
                ) from error
        plain: Any = OmegaConf.to_container(config, resolve=False)
        _check_hydra(plain["hydra"])
        with flag_override(config, ["readonly", "struct"], False):
            if is_single:
                _check_single(plain["hydra"])
                config.hydra.mode = RunMode.RUN
            for key, value in values_of(plain):
                if isinstance(value, str) and value.startswith("~") and takes_path(key):
                    OmegaConf.update(config, key, expanded(value))
        return config

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """Compose a job of a sweep. Hydra does so with all of them before it runs the first.

        Raises:
            ConfigurationError: the job's directory would lie outside of the sweep's.
        """
        config = super().load_sweep_config(master_config, sweep_overrides)
        _check_subdir(config)
        return config


def _check_single(settings: Any) -> None:
    """Refuse settings of a sweep in the configuration of a single run.

    Raises:
        ConfigurationError: a recipe holds one, by which nothing would be swept.
    """
    params = settings["sweeper"].get("params")
    for key, value in (("mode", settings["mode"]), ("sweeper.params", params)):
        if value:
            raise ConfigurationError(
                f"hydra.{key}={printable(getattr(value, 'name', value))}: only of a sweep, so with "
                "--multirun"
            )


def _check_subdir(config: DictConfig) -> None:
    """Refuse a job's directory that isn't a folder in the directory of its sweep.

    Raises:
        ConfigurationError: it is elsewhere, or one of those that the sweep itself uses.
    """
    hydra_config: Any = HydraConfig.instance()
    present, hydra_config.cfg = hydra_config.cfg, config  # ${hydra:…} looks there
    try:
        with open_dict(config):
            config.hydra.job.num = 0  # Hydra numbers the job later
        subdir = str(OmegaConf.select(config, "hydra.sweep.subdir"))
    finally:
        hydra_config.cfg = present
    path = PurePath(subdir)
    if path.is_absolute() or not path.parts or ".." in path.parts or subdir.startswith("."):
        raise ConfigurationError(
            f"hydra.sweep.subdir={printable(subdir)}: must name a folder in the sweep's directory, "
            "without .. in it and without a dot at its start, as ${hydra.job.num}"
        )


def _check_hydra(settings: Any) -> None:
    """Check Hydra's own settings as they are composed, interpolations unresolved.

    Raises:
        ConfigurationError: naming the key by which a configuration could run foreign code.
    """
    ours = {
        "hydra.callbacks": {},
        "hydra.env": {},
        "hydra.searchpath": [],
        "hydra.output_subdir": None,  # overwrites three files wherever it says
        "hydra.hydra_logging": {"version": 1, "root": None, "disable_existing_loggers": False},
        "hydra.job_logging": OmegaConf.to_container(
            OmegaConf.load(CONFIGS / "hydra" / "job_logging" / "terminal.yaml")
        ),
        "hydra.job.env_set": {},  # PYTHONPATH among them
        "hydra.job.env_copy": [],
    }
    for key, value in values_of({"hydra": settings}):
        unknown = (
            isinstance(value, str)
            and "${" in value
            and re.match(r"hydra(\.(job|launcher))?$|hydra\.sweeper\b", key)
        )
        if unknown or ours.get(key, value) != value:
            raise ConfigurationError(
                f"{key}={value}: not offered; "
                "a configuration could run foreign code or overwrite files by it"
            )
        if key.endswith("_target_") and str(value) not in HYDRA_TARGETS:
            raise ConfigurationError(
                f"{key}={value}: not one of the allowed targets (configuration/hydra_settings.py)"
            )
        if key.startswith(("hydra.run.", "hydra.sweep.")):
            refuse_address(key, value)
    if not isinstance(settings["verbose"], bool):
        raise ConfigurationError(f"hydra.verbose={settings['verbose']}: must be true or false")
    if not isinstance(settings["sweeper"], dict):
        raise ConfigurationError(f"hydra.sweeper={settings['sweeper']}: holds settings")
    _check_launcher(settings["launcher"])


def settings_of(launcher: str | None) -> dict[str, Any]:
    """Return the settings in our own file for a launcher, by dotted key; empty without a file."""
    file = CONFIGS / "hydra" / "launcher" / f"{launcher}.yaml"
    return dict(values_of(OmegaConf.to_container(OmegaConf.load(file)))) if file.is_file() else {}


def _check_launcher(settings: Any) -> None:
    """Check the settings of the launcher of a sweep.

    Settings in our own file may be changed. The plugin's other settings may not: among them are the
    commands that submitit writes into a job's script, and the packages that Ray installs. No text
    may end its line in that script. No cluster elsewhere may be named, since it could answer with
    code.

    Raises:
        ConfigurationError: a setting is refused; the message names its key.
    """
    if not isinstance(settings, dict) or settings.get("_target_") not in LAUNCHERS:
        raise ConfigurationError(
            f"hydra.launcher={settings}: not one of the launchers (configuration/hydra_settings.py)"
        )
    name = LAUNCHERS[settings["_target_"]]
    free = settings_of(name)
    known = ConfigStore.instance().repo["hydra"]["launcher"].get(f"{name or 'basic'}.yaml")
    fixed = (
        dict(values_of(OmegaConf.to_container(known.node))) if known else {}
    )  # none where the plugin isn't installed
    fixed |= {key: free.pop(key) for key in ("_target_", "submitit_folder") if key in free}
    for key, value in values_of(settings):
        if key not in free and (key not in fixed or value != fixed[key]):
            raise ConfigurationError(
                f"hydra.launcher.{key}={value!r}: not offered; there are {', '.join(free)}"
            )
        allowed = (free.get(key), "auto") if key == "ray.init.address" else (value,)
        if value not in allowed or (
            key in free and isinstance(value, str) and not _PLAIN.fullmatch(value)
        ):
            raise ConfigurationError(
                f"hydra.launcher.{key}={value!r}: not offered; "
                "a configuration could run foreign code by it"
            )
