"""A package of the user's own, as docs/parts.md shows it, through the commands in a process."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from conftest import SUBSET, run, typed
from vae_lightning.configuration import targets
from vae_lightning.configuration.building import class_of
from vae_lightning.errors import ConfigurationError
from vae_lightning.models.vae.networks import Network

PAGE = (Path(__file__).parents[1] / "docs" / "parts.md").read_text()
QUICK = ("trainer.max_epochs=1", "callbacks=minimal")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


LINES = [shlex.split(each.replace("\\\n", " "))[3:] for each in blocks("sh")]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with the package and the configuration of the page."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").touch()
    (folder / "my_package" / "parts.py").write_text("\n\n".join(blocks("python")))
    for configuration in blocks("yaml"):
        file = folder / configuration.splitlines()[0].removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(configuration)
    return folder


def finished(here, command, *arguments):
    done = run(command, *arguments, cwd=here)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def typed_here(here, command, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(here)
        typed(command, *arguments, directory=here, patch=patch)


def refused(here, command, *arguments):
    done = run(command, *arguments, cwd=here)
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def runs(here):
    """The run directory of each line of the page."""
    for number, line in enumerate(LINES):
        data = () if any(each.startswith("data=") for each in line) else SUBSET
        train = finished if number == 0 else typed_here  # a process of its own takes seconds
        train(here, "train", *line, *data, *QUICK, f"hydra.run.dir=run{number}")
    return [here / f"run{number}" for number in range(len(LINES))]


@pytest.mark.slow
def test_each_line_of_the_page_trains_and_stores_what_it_names_but_not_that_it_was_allowed(runs):
    assert len(runs) == 7
    for directory in runs:
        stored = (directory / ".hydra" / "config.yaml").read_text()
        assert "my_package.parts." in stored
        stored += (directory / ".hydra" / "overrides.yaml").read_text()
        assert "allow" not in stored
        assert b"allow=" not in (directory / "checkpoints" / "best.ckpt").read_bytes()
    assert b"train/norm" in b"".join(
        file.read_bytes() for file in runs[3].glob("tensorboard/events*")
    )
    assert json.loads((runs[5] / "metrics.json").read_text())["protocol"]["data"] == "stripes"
    assert "val/elbo" in (runs[6] / "figures.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "number", "others"),
    [
        ("sample", 0, ("count=2",)),
        ("export", 1, ("formats=[safetensors]",)),
        ("sample", 4, ("count=2",)),
        ("evaluate", 4, (SUBSET[1], "metrics=[bound]")),
        ("encode", 4, (SUBSET[1],)),
        ("visualize", 4, (SUBSET[1], "what=[samples]")),
        ("evaluate", 5, ("metrics=[bound]",)),
        ("export", 4, ("formats=[safetensors]",)),
    ],
)
def test_a_command_on_its_checkpoint_asks_for_the_package_again(
    here, runs, monkeypatch, command, number, others
):
    monkeypatch.syspath_prepend(here)
    line = (f"checkpoint=run{number}", *others)
    asks = r"not one of the allowed targets .* is a package of your own, type allow=\[my_package\]$"
    with pytest.raises(SystemExit, match=asks):
        typed(command, *line, directory=here, patch=monkeypatch)
    typed(command, *line, "allow=[my_package]", directory=here, patch=monkeypatch)


@pytest.mark.slow
def test_a_run_is_resumed_and_swept_and_searched_with_it(here, runs):
    longer = ("resume=run4", "trainer.max_epochs=2")
    with pytest.raises(SystemExit, match=r"allow=\[my_package\]"):
        typed_here(here, "train", *longer)
    said = finished(here, "train", *longer, "allow=[my_package]")
    [pasted] = [line for line in said.splitlines() if "vae_lightning.sample" in line]
    assert "'allow=[my_package]'" in pasted
    metrics = json.loads((runs[4] / "metrics.json").read_text())
    assert metrics["protocol"]["data"] == "mnist_subset"
    sweep = ("-m", *LINES[0], *SUBSET, *QUICK, "seed=1,2", "hydra/launcher=joblib")
    assert "job" in finished(here, "train", *sweep)
    typed_here(here, "tune", *LINES[0], *SUBSET, *QUICK, "trials=2", "study=mine")


@pytest.mark.slow
def test_two_processes_train_with_it_together(here):
    line = (*LINES[0], *SUBSET, *QUICK, "trainer=ddp", "trainer.devices=2")
    finished(here, "train", *line, "trainer.accelerator=cpu", "data.batch_size=32")


# -- what it doesn't allow -------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Packages to try with, of which my_own is allowed."""
    (tmp_path / "my_own").mkdir()
    (tmp_path / "my_own" / "__init__.py").write_text(
        "import os\n"
        "from vae_lightning.models.vae.networks import MLPEncoder, Network\n"
        "class Good(Network): pass\n"
        "class Other: pass\n"
    )
    (tmp_path / "my_own_evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass X: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VAE_LIGHTNING_ALLOW", "")
    targets.allow(["my_own"])
    yield tmp_path
    targets.allow([])
    assert not (tmp_path / "ran").exists()


def test_a_class_that_is_defined_in_the_package_is_allowed(package):
    assert class_of("key", "my_own.Good", Network).__name__ == "Good"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("my_own.os.system", "can't be imported"),
        ("my_own_evil.X", "not one of the allowed targets"),
        ("my_own.Network", "is of vae_lightning.models.vae.networks, which isn't allowed"),
        ("my_own.MLPEncoder", "isn't allowed"),
        ("my_own.Other", "must be a Network"),
        ("my_own.nosuch", "can't be imported"),
        ("my_own", "can't be imported"),
        ("os.system", "not one of the allowed targets"),
        ("my_own\nX.Y", "not one of the allowed targets"),
    ],
)
def test_nothing_else_is(package, target, message):
    with pytest.raises(ConfigurationError, match=message) as raised:
        class_of("key", target, Network)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("typed", ["allow=[a b]", "allow=../x", "allow=[my.package.]"])
def test_what_is_no_package_is_refused(tmp_path, typed):
    assert refused(tmp_path, "train", typed).startswith("error: allow=")


def test_a_recipe_can_not_allow(tmp_path):
    (tmp_path / "experiment").mkdir()
    recipe = "# @package _global_\nallow: [my_package]\n"
    (tmp_path / "experiment" / "evil.yaml").write_text(recipe)
    line = refused(tmp_path, "train", "--config-dir", str(tmp_path), "experiment=evil")
    assert "unknown key allow" in line


def test_an_inherited_environment_does_not_allow(tmp_path):
    """Only the processes that Lightning starts for a command take it from there."""
    (tmp_path / "my_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass X: pass\n")
    done = run(
        "train",
        "model.network=my_own.X",
        *SUBSET,
        cwd=tmp_path,
        environment={"VAE_LIGHTNING_ALLOW": "my_own"},
    )
    assert done.returncode == 1
    assert "not one of the allowed targets" in done.stderr
    assert not os.path.lexists(tmp_path / "ran")
