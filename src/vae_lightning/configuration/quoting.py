"""What a user can paste into a terminal."""

import os
import shutil
import sys
from pathlib import Path


def program(name: str) -> str:
    """Return what to type for a program of this environment: its name if on PATH, else its path."""
    path = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if found and Path(found) == path else os.path.relpath(path)
