"""What a configuration from elsewhere may not say to Hydra itself, which would run code by it. No torch in this room."""

import re
import warnings
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl  # the one gate that all compositions go through
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from vae_lightning.configuration import CONFIGS, ConfigurationError, refuse_address, values_of

LAUNCHERS = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher": None,
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher": "joblib",
    "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher": "ray",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher": "submitit_slurm",
}
"""What may run the jobs of a sweep, and the file in ``configs/hydra/launcher`` that has all of its settings."""

HYDRA_TARGETS = frozenset({*LAUNCHERS, "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"})
"""Everything that Hydra's own settings may name as ``_target_``."""

_PLAIN = re.compile(r"[\w .,:;=+@%&|*()\[\]/-]*")


def install() -> None:
    """Let all that Hydra composes in this process go through the guard."""
    hydra._internal.hydra.ConfigLoaderImpl = GuardedLoader  # type: ignore[attr-defined]


class GuardedLoader(ConfigLoaderImpl):
    """Composes as Hydra does, and refuses the settings by which Hydra itself would run foreign code, before it acts on them.

    Runs, jobs of a sweep and flags such as ``--info`` all compose by it. What it refuses may come from a ``--config-dir``.
    """

    def load_configuration(self, config_name: str | None, overrides: list[str], *arguments: Any, **settings: Any) -> DictConfig:
        """Compose.

        Raises:
            ConfigurationError: the composition holds such a setting.
        """
        for override in overrides:
            if "searchpath" in override.partition("=")[0]:  # pkg://… is imported while composing
                raise ConfigurationError(f"{override}: not offered; --config-dir adds a folder of configurations")
        with warnings.catch_warnings():  # that a plugin's own types hold for our settings too is welcome
            warnings.filterwarnings("ignore", "\\s*'hydra/launcher/")
            config = super().load_configuration(config_name, overrides, *arguments, **settings)
        _check_hydra(OmegaConf.to_container(config, resolve=False)["hydra"])  # type: ignore[call-overload, index]
        return config


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
        "hydra.job_logging": OmegaConf.to_container(OmegaConf.load(CONFIGS / "hydra" / "job_logging" / "terminal.yaml")),
        "hydra.job.env_set": {},  # PYTHONPATH among them
        "hydra.job.env_copy": [],
    }
    for key, value in values_of({"hydra": settings}):
        unknown = isinstance(value, str) and "${" in value and re.match(r"hydra(\.(job|launcher))?$|hydra\.sweeper\b", key)
        if unknown or ours.get(key, value) != value:
            raise ConfigurationError(
                f"{key}={value}: not offered; a configuration could run foreign code or overwrite files by it"
            )
        if key.endswith("_target_") and str(value) not in HYDRA_TARGETS:
            raise ConfigurationError(f"{key}={value}: not one of the allowed targets, guard.HYDRA_TARGETS")
        if key.startswith(("hydra.run.", "hydra.sweep.")):
            refuse_address(key, value)
    _check_launcher(settings["launcher"])


def settings_of(launcher: str | None) -> dict[str, Any]:
    """Return the settings of a launcher that our own file has, by their keys in dots; of another launcher none."""
    file = CONFIGS / "hydra" / "launcher" / f"{launcher}.yaml"
    return dict(values_of(OmegaConf.to_container(OmegaConf.load(file)))) if file.is_file() else {}


def _check_launcher(settings: Any) -> None:
    """Check the settings of what runs the jobs of a sweep: those of our own file may be others, its plugin's further ones not.

    Among these are the commands that submitit writes into the script of a job, and what Ray is to install. Nor may a text end
    its line in that script, or a cluster elsewhere be named, which could answer with code.

    Raises:
        ConfigurationError: naming the key.
    """
    if not isinstance(settings, dict) or settings.get("_target_") not in LAUNCHERS:
        raise ConfigurationError(f"hydra.launcher={settings}: not one of the launchers, guard.LAUNCHERS")
    name = LAUNCHERS[settings["_target_"]]
    free = settings_of(name)
    known = ConfigStore.instance().repo["hydra"]["launcher"].get(f"{name or 'basic'}.yaml")
    fixed = dict(values_of(OmegaConf.to_container(known.node))) if known else {}  # none where the plugin isn't installed
    fixed |= {key: free.pop(key) for key in ("_target_", "submitit_folder") if key in free}
    for key, value in values_of(settings):
        if key not in free and (key not in fixed or value != fixed[key]):
            raise ConfigurationError(f"hydra.launcher.{key}={value!r}: not offered; there are {', '.join(free)}")
        allowed = (free.get(key), "auto") if key == "ray.init.address" else (value,)
        if value not in allowed or (key in free and isinstance(value, str) and not _PLAIN.fullmatch(value)):
            raise ConfigurationError(
                f"hydra.launcher.{key}={value!r}: not offered; a configuration could run foreign code by it"
            )
