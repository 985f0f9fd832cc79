"""Execute the notebook anew: ``make notebook``.

What would change with the machine or the day is left out.
"""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("walk.ipynb")


def main() -> None:
    """Run all cells on the newest run below ``outputs/train`` here, and store their outputs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": os.getcwd()}},
    ).execute()
    notebook.metadata = {name: notebook.metadata[name] for name in ("kernelspec", "language_info")}
    notebook.metadata["language_info"] = {
        "name": "python"
    }  # else Python's version, down to the patch
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.name}: {NOTEBOOK.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
