"""The plan of the house: a room imports only from the rooms below it."""

import ast
from pathlib import Path

import pytest

import vae_lightning

PACKAGE = Path(vae_lightning.__file__).parent

COMMANDS = {"train", "evaluate", "sample", "encode", "visualize", "explore", "export", "summarize", "train_classifier", "tune"}
ALLOWED = {
    "sweeps": {"durable"},
    "summaries": {"configuration", "sweeps"},
    "tables": {"summaries"},
    "charts": {"summaries", "tables"},
    "configuration": set(),
    "guard": {"configuration"},
    "directories": {"configuration", "durable", "interruption"},
    "launchers": {"configuration", "guard", "interruption", "sweeps"},
    "commands": {"configuration", "guard", "directories", "interruption", "launchers", "sweeps"},
    "mirror": {"configuration", "directories", "durable", "interruption", "sweeps"},
    "resuming": {"configuration", "durable", "mirror"},
    "networks": set(),
    "likelihoods": set(),
    "objectives": set(),
    "optimizers": set(),
    "metrics": set(),
    "features": set(),
    "vae": {"networks", "likelihoods"},
    "data": {"data"},
    "noise": {"data"},
    "module": {"vae", "likelihoods", "objectives", "optimizers", "networks", "noise", "data"},
    "checkpoints": {"configuration", "durable", "module", "data", "vae"},
    "pictures": set(),
    "plots": set(),
    "gallery": {"pictures", "plots", "objectives", "vae", "data"},
    "provenance": {"__version__"},
    "durable": set(),
    "processes": {"configuration", "interruption"},
    "interruption": set(),
    "logs": set(),
    "callbacks": {
        "callbacks",
        "resuming",
        "pictures",
        "plots",
        "gallery",
        "provenance",
        "metrics",
        "durable",
        "interruption",
        "logs",
        "mirror",
        "checkpoints",
        "processes",
        "vae",
        "module",
        "data",
    },
    "evaluation": {"module", "data", "metrics", "features", "noise", "objectives"},
    "experiment": {
        "configuration",
        "directories",
        "resuming",
        "mirror",
        "interruption",
        "processes",
        "module",
        "data",
        "checkpoints",
        "callbacks",
        "likelihoods",
    },
    "report": {
        "configuration",
        "processes",
        "durable",
        "interruption",
        "logs",
        "mirror",
        "provenance",
        "experiment",
        "checkpoints",
        "module",
        "metrics",
        "noise",
        "data",
        "likelihoods",
    },
    "space": {"configuration", "experiment"},
    "study": {"configuration"},
    "findings": {"configuration", "durable", "plots", "report", "space", "study"},
    "search": {"configuration", "directories", "interruption", "data", "experiment", "report", "space", "study", "findings"},
    "exporting": {"configuration", "module", "vae"},
    "model_card": {"__version__", "configuration", "checkpoints", "exporting", "module"},
    "explorer": {"gallery", "data", "plots", "vae"},
    "page": {"explorer", "pictures", "plots"},
    "__init__": {"checkpoints", "data", "module", "vae"},
    **{
        command: {
            "configuration",
            "directories",
            "durable",
            "commands",
            "mirror",
            "resuming",
            "summaries",
            "tables",
            "charts",
            "experiment",
            "report",
            "evaluation",
            "checkpoints",
            "pictures",
            "plots",
            "gallery",
            "features",
            "exporting",
            "model_card",
            "data",
            "explorer",
            "page",
            "search",
        }
        for command in COMMANDS
    },
}
HEAVY = {"torch", "torchvision", "lightning", "numpy", "pydantic", "tensorboard", "gradio", "matplotlib", "fsspec", "optuna"}


def files():
    return sorted(PACKAGE.rglob("*.py"))


def room_of(file):
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(file):
    """Yield (module, imported name, whether at the top level of the file)."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, top
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.module, alias.name, top


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_room_imports_only_from_the_rooms_below_it(file):
    rooms = set()
    for module, name, _ in imports_of(file):
        parts = module.split(".")
        if parts[0] == "vae_lightning":
            rooms.add(parts[1] if len(parts) > 1 else name)
    assert rooms <= ALLOWED[room_of(file)]


@pytest.mark.parametrize("room", ["__init__", "configuration", "mirror", "sweeps", "summaries", "tables", *sorted(COMMANDS)])
def test_what_a_typo_waits_for_imports_nothing_heavy(room):
    top = {module.split(".")[0] for module, _, top in imports_of(PACKAGE / f"{room}.py") if top}
    assert not top & HEAVY


def test_every_room_has_its_place_in_the_plan():
    assert {room_of(file) for file in files()} == set(ALLOWED)
