"""Which code a run was made by."""

import platform
import subprocess
from pathlib import Path

import lightning
import torch

from vae_lightning import __version__
from vae_lightning.models.linear import products
from vae_lightning.runs.processor import denormals


def versions() -> dict[str, str]:
    """Return the versions that a figure depends on most, and the commit if run from a checkout."""
    found = {
        "vae_lightning": __version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }
    if commit := commit_of(Path(__file__)):
        found["commit"] = commit
    return found


def commit_of(file: Path) -> str | None:
    """Return the git commit of a file's checkout, and whether the checkout has changes.

    None if git doesn't track the file.
    """
    directory = file.resolve().parent
    try:
        _git(
            directory, "ls-files", "--error-unmatch", file.name
        )  # else a repository that only surrounds the package
        changed = (
            " with changes"
            if _git(directory, "status", "--porcelain", "--untracked-files=no")
            else ""
        )
        return _git(directory, "rev-parse", "HEAD") + changed
    except (OSError, subprocess.SubprocessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=10
    ).stdout.strip()


def envelope(device: torch.device) -> dict[str, str | int]:
    """Return what a result's last bit depends on in addition to the code.

    That is versions, device, threads, the processor's instructions, the library that multiplies on
    it, and how it takes denormals.
    """
    return {
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "products": products(),
        "denormals": denormals(),
    }
