"""What a configuration from elsewhere may not say to Hydra itself, which would run code by it. No torch in this room."""

import re
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl  # the one gate that all compositions go through
from omegaconf import DictConfig, OmegaConf

from vae_lightning.configuration import CONFIGS, ConfigurationError, refuse_address, values_of

HYDRA_TARGETS = frozenset(
    {
        "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
        "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    }
)
"""Everything that Hydra's own settings may name as ``_target_``."""


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
        unknown = isinstance(value, str) and "${" in value and re.match(r"hydra(\.job)?$|hydra\.(launcher|sweeper)\b", key)
        if unknown or ours.get(key, value) != value:
            raise ConfigurationError(
                f"{key}={value}: not offered; a configuration could run foreign code or overwrite files by it"
            )
        if key.endswith("_target_") and str(value) not in HYDRA_TARGETS:
            raise ConfigurationError(f"{key}={value}: not one of the allowed targets, guard.HYDRA_TARGETS")
        if key.startswith(("hydra.run.", "hydra.sweep.")):
            refuse_address(key, value)
