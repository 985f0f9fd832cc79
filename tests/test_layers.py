"""The layers of the package: imports go down, never up, and never in a circle."""

import ast
from pathlib import Path

import pytest

import vae_lightning

PACKAGE = Path(vae_lightning.__file__).parent

LAYERS = [  # lowest first; what stands in one line may import each other, but not in a circle
    {"__init__"},
    {"errors"},
    {"configuration"},
    {"models/base", "models/noise", "models/distributions", "models/likelihoods"},
    {"data"},
    {"models"},
    {"runs"},
    {"evaluation", "visualization", "exporting"},
    {"training"},
    {"sweeps"},
    {"tuning"},
    {"cli"},
    {"commands"},
]

# What a typo waits for imports none of these.
HEAVY = {"torch", "torchvision", "lightning", "numpy", "pydantic", "tensorboard", "gradio"}
HEAVY |= {"matplotlib", "fsspec", "optuna"}
QUICK = [*("errors", "configuration/keys", "configuration/hydra_settings", "runs/mirror")]
QUICK += ["runs/resume", "runs/directory", "runs/signals", "sweeps/summaries", "sweeps/tables"]
QUICK += ["cli/command", "cli/command_line", "cli/messages", "cli/multirun"]


def files():
    return sorted(PACKAGE.rglob("*.py"))


def name_of(file):
    return str(file.relative_to(PACKAGE).with_suffix("").as_posix())


def layer_of(name):
    """Return the layer of a file or a package, as ``models/vae/model`` or ``runs``."""
    parts = name.removesuffix("/__init__").split("/")
    prefixes = {"/".join(parts[:length]) for length in range(1, len(parts) + 1)}
    for number, layer in enumerate(LAYERS):
        if prefixes & layer:
            return number
    assert len(parts) == 1, f"{name} has no layer"
    return len(LAYERS) - 1  # a command


def imports_of(file):
    """Yield (module or name in the package, whether at the top of the file) of each import."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                path = PACKAGE.parent / node.module.replace(".", "/") / alias.name
                is_module = path.with_suffix(".py").exists() or path.is_dir()
                yield f"{node.module}.{alias.name}" if is_module else node.module, top


def own(module):
    """Return what of the package a module is, as ``runs/mirror``; None: of another package."""
    parts = module.split(".")
    if parts[0] != "vae_lightning":
        return None
    return "/".join(parts[1:]) or "__init__"


@pytest.mark.parametrize("file", files(), ids=name_of)
def test_a_file_imports_from_its_own_layer_or_a_lower_one(file):
    if name_of(file) == "__init__":  # its public names are loaded when they are used
        return
    mine = layer_of(name_of(file))
    higher = {
        name for module, _ in imports_of(file) if (name := own(module)) and layer_of(name) > mine
    }
    assert not higher


def test_no_imports_go_in_a_circle():
    graph = {name_of(file): {own(module) for module, _ in imports_of(file)} for file in files()}
    del graph["__init__"]
    done, path = set(), []

    def visit(name):
        assert name not in path, f"a circle: {' → '.join([*path[path.index(name) :], name])}"
        if name in done or name not in graph:
            return
        path.append(name)
        for each in graph[name]:
            visit(each)
        done.add(path.pop())

    for name in graph:
        visit(name)


def test_a_circle_is_found(monkeypatch, tmp_path):
    (tmp_path / "vae_lightning").mkdir()
    for name, other in (("one", "two"), ("two", "one"), ("__init__", "one")):
        code = f"from vae_lightning.{other} import x\n"
        (tmp_path / "vae_lightning" / f"{name}.py").write_text(code)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "vae_lightning")
    with pytest.raises(AssertionError, match="a circle"):
        test_no_imports_go_in_a_circle()


@pytest.mark.parametrize("name", QUICK)
def test_what_a_typo_waits_for_imports_nothing_heavy(name):
    top = {module.split(".")[0] for module, top in imports_of(PACKAGE / f"{name}.py") if top}
    assert not top & HEAVY


def test_commands_import_nothing_heavy_before_they_run():
    for file in set(PACKAGE.glob("*.py")) - {PACKAGE / "api.py"}:  # which is imported when used
        top = {module.split(".")[0] for module, top in imports_of(file) if top}
        assert not top & HEAVY, file


EXPLAINING = ["models/vae/objectives", "models/vae/model", "training/module", "train"]


def test_the_four_files_that_explain_the_project_stay_short():
    lengths = {name: len((PACKAGE / f"{name}.py").read_text().splitlines()) for name in EXPLAINING}
    assert sum(lengths.values()) < 600, lengths


def test_no_file_but_its_own_knows_a_concrete_model():
    concrete = {
        name for name in map(name_of, files()) if name.count("/") > 1 and name.startswith("models/")
    }
    for file in files():
        if name_of(file) not in concrete | {"__init__"}:
            assert not {own(module) for module, _ in imports_of(file)} & concrete, file
