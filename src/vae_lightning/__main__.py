"""The list of commands: ``python -m vae_lightning``."""

import ast
import sys
from pathlib import Path

from vae_lightning import __version__
from vae_lightning.runs import streams


def commands() -> dict[str, str]:
    """Return what each command does, by its name: the first words of its file's docstring."""
    described = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if f"``python -m vae_lightning.{file.stem}" in docstring:
            first = docstring.splitlines()[0].partition(": ``")[0]
            described[file.stem] = first.removesuffix(".")
    return described


def main() -> None:
    """Print the commands with a line each, or the version."""
    streams.install()
    typed = sys.argv[1:]
    if "--version" in typed:
        print(f"vae-lightning {__version__}")
        return
    if typed and typed not in (["-h"], ["--help"]):
        name = typed[0]
        known = f"type python -m vae_lightning.{name}" if name in commands() else "see --help"
        sys.exit(f"error: {name}: not an option; {known}")
    width = max(map(len, commands()))
    print("Variational autoencoders on PyTorch Lightning. The commands:\n")
    for name, line in commands().items():
        print(f"  python -m vae_lightning.{name:<{width}}  {line}")
    print("\n  --help after a command shows its settings; --version here shows the version.")


if __name__ == "__main__":
    main()
