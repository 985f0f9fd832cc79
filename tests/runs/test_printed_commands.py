"""A printed command can be pasted into bash as it stands, whatever the run directory is called."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from chaos.runs import MINIMAL, SMALL, signalled, train
from conftest import typed
from vae_lightning.configuration.quoting import override
from vae_lightning.runs import signals
from vae_lightning.runs.checkpoints import file_of_step
from vae_lightning.training import report

NAMES = [
    *("a=b", "a b", "a'b", "a,b", "a[b", "a{b", "a(b", "a#b", "~a", "a;b", "é", "a$b", "a${b}"),
    *('a"b', "a\\b", "a&b", "a*b", "a|b", "-a", "123", "null", "a:b", "%a", "a`b", "a!b"),
    *("a\tb'c\\d", "a\nb", "a\x1b[2Jb"),
]
REAL = ["a=b c'd,e[f{g(h#i;jék$l\"m\\n&o*p|q:r%s`t!u", "~a", "-a", "123"]
"""Of runs that are really begun, resumed and sampled from."""


@pytest.fixture
def pasted(tmp_path, monkeypatch):
    """Paste a line into bash, and return what the program in it is given."""
    programs, given = tmp_path / "bin", tmp_path / "given"
    programs.mkdir()
    for name in ("python", "tensorboard"):
        script = f"#!/bin/sh\nprintf '%s\\0' \"$@\" > '{given}'\n"
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)

    def paste(line, directory):
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
        subprocess.run(["bash", "-c", line], check=True, cwd=directory, env=environment)
        return given.read_bytes().decode().split("\0")[:-1]

    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(programs / "python"))
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        yield paste


def after(label, output):
    """Return the line that follows a label."""
    return output.rpartition(label)[2].strip().splitlines()[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_line_that_goes_on_with_a_run_can_be_pasted(
    tmp_path, pasted, caplog, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    file = file_of_step(Path(name), 3)
    file.parent.mkdir(parents=True)
    file.touch()
    trainer = SimpleNamespace(is_global_zero=True, global_step=3, loggers=[])
    others = dict.fromkeys(("resumed_step", "mirror", "lock"))
    parts = SimpleNamespace(directory=Path(name), trainer=trainer, **others)
    caplog.set_level(logging.INFO)
    with pytest.raises(signals.Interrupted), report.ending(parts):
        raise signals.Interrupted(signal.SIGTERM)
    argv = pasted(after("Go on with\n", caplog.text), tmp_path)
    assert argv[:2] == ["-m", "vae_lightning.train"]
    [override_] = OverridesParser.create().parse_overrides(argv[2:])
    found = OmegaConf.create({override_.key_or_group: override_.value()})
    assert Path(os.path.expanduser(found.resume)) == Path(name)


@pytest.mark.parametrize("name", REAL)
def test_the_lines_that_a_run_prints_can_be_pasted(tmp_path, pasted, capsys, monkeypatch, name):
    place = tmp_path / "place"
    directory = Path(name) / "run"
    line = [*SMALL, MINIMAL, "trainer.max_epochs=1", override("hydra.run.dir", directory)]
    with signalled([2]):
        assert train(place, *line) == 143
    assert [path.name for path in place.iterdir()] == [name]
    argv = pasted(after("Go on with\n", capsys.readouterr().out), place)
    assert argv[:2] == ["-m", "vae_lightning.train"]
    assert train(place, *argv[2:]) == 0
    assert (place / directory / "metrics.json").exists()
    capsys.readouterr()
    # The same with a relative path.
    assert train(place, override("resume", directory), "trainer.max_epochs=2") == 0
    output = capsys.readouterr().out
    argv = pasted(after("  samples ", output), place)
    assert argv[:2] == ["-m", "vae_lightning.sample"]
    typed("sample", *argv[2:], "count=2", directory=place, patch=monkeypatch)
    assert list(place.glob("outputs/sample/*/samples.png"))
    _, logs, *_ = pasted(after("  dashboard ", output), place)
    assert Path(os.path.expanduser(logs)) == Path(name)  # as TensorBoard does
    assert not logs.startswith("-")
    assert sorted(path.name for path in place.iterdir()) == sorted([name, "outputs"])
