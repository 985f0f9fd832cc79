"""The wheel carries all that the commands need."""

import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from conftest import LONG, SUBSET
from vae_lightning.configuration.composing import CONFIGS

PROJECT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_each_constraint_pins_one_package_to_one_version(name):
    lines = [line.partition("#")[0].strip() for line in (PROJECT / name).read_text().splitlines()]
    for line in filter(None, lines):
        assert re.fullmatch(r"[\w.-]+==[\w.+!-]+( *;.*)?", line)


@pytest.mark.slow
def test_a_wheel_runs_elsewhere_from_its_own_files(tmp_path):
    """Built from a copy of the sources, installed and run in an environment of its own."""
    source = tmp_path / "source"
    for name in ("src", "configs"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [
        *pip,
        "wheel",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        tmp_path,
        source,
    ]
    subprocess.run(build, check=True, timeout=LONG)
    [wheel] = tmp_path.glob("*.whl")
    packed = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert {
        Path("vae_lightning/configs") / path.relative_to(CONFIGS)
        for path in CONFIGS.rglob("*.yaml")
    } <= packed
    assert {
        Path("vae_lightning/py.typed"),
        Path("vae_lightning/evaluation/classifier.safetensors"),
    } <= packed

    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    python = environment / "bin" / "python"
    target = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True,
        text=True,
    )
    # The dependencies come from this environment; a plain path brings no editable installs along.
    (Path(target.stdout.strip()) / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    subprocess.run(
        [*pip, "--python", python, "install", "--no-index", "--no-deps", wheel],
        check=True,
        timeout=LONG,
    )

    outside = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [environment / "bin" / "vae-lightning-train", *SUBSET, "trainer.fast_dev_run=true"]
    finished = subprocess.run(
        command, cwd=elsewhere, env=outside, capture_output=True, text=True, timeout=LONG
    )
    assert finished.returncode == 0, finished.stderr
    assert len(list(elsewhere.glob("outputs/train/*/metrics.json"))) == 1
    locate = [python, "-c", "import vae_lightning; print(vae_lightning.__file__)"]
    located = subprocess.run(locate, env=outside, capture_output=True, text=True)
    assert Path(located.stdout.strip()).is_relative_to(environment)
