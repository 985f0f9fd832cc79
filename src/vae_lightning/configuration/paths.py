"""The keys that take a path."""

import os

PATHS = frozenset(
    {
        "checkpoint",
        "data.dir",
        "data.file",
        "data.run",
        "hydra.run.dir",
        "hydra.sweep.dir",
        "images",
        "init",
        "mirror",
        "resume",
        "storage",
        "study",
        "sweep",
    }
)
"""The keys of all commands that take a path or an address."""

_NAMES = ("dirpath", "save_dir")  # of callbacks and loggers, by whatever name these are added


def takes_path(key: str) -> bool:
    """Return whether the value of a key is a path or an address."""
    return key in PATHS or key.rpartition(".")[2] in _NAMES


def expanded(path: str) -> str:
    """Return a path with the home directory in place of ``~`` at its start."""
    return os.path.expanduser(path)
