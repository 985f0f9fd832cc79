"""Output that nobody reads, and terminals that aren't UTF-8: no command ends because of them."""

import io
import json
import os
import pty
import subprocess
import sys

import pytest

from conftest import LONG, SUBSET
from vae_lightning.runs import streams

QUICK = [*SUBSET, "trainer.max_epochs=2", "callbacks=minimal", "model.hidden_dims=[8]"]
INSTALL = "import os, sys; from vae_lightning.runs import streams; streams.install()\n"


def command(name, *arguments):
    return [sys.executable, "-m", f"vae_lightning.{name}", *arguments]


def script(text, **named):
    """Run a few lines of Python after ``install``."""
    line = [sys.executable, "-c", INSTALL + text]
    return subprocess.run(line, capture_output=True, timeout=LONG, **named)


def closed(*numbers):
    """Return what closes file descriptors in a process before it begins."""
    return lambda: [os.close(number) for number in numbers]


def is_whole(run):
    """Return whether a run has its figures, and all that it said in its log."""
    log = (run / "train.log").read_text(encoding="utf-8")
    figures = json.loads((run / "metrics.json").read_text())["figures"]
    return "test/elbo" in figures and log.count("epoch ") == 2 and "This run's files" in log


@pytest.mark.slow
def test_a_run_whose_streams_are_closed_is_trained_to_its_end(tmp_path):
    line = command("train", *QUICK, "hydra.run.dir=run")
    assert subprocess.call(line, cwd=tmp_path, preexec_fn=closed(0, 1, 2), timeout=LONG) == 0
    assert is_whole(tmp_path / "run")


@pytest.mark.slow
def test_a_run_whose_reader_goes_is_trained_to_its_end(tmp_path):
    line = command("train", *QUICK, "hydra.run.dir=run")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(line, cwd=tmp_path, **pipes) as process:
        assert process.stdout.readline()
        process.stdout.close()  # as head -1 does
        errors = process.stderr.read()
        assert process.wait(LONG) == 0
    assert errors == b""
    assert is_whole(tmp_path / "run")


@pytest.mark.parametrize(
    "line",
    [command("train", "--cfg", "job"), [sys.executable, "-m", "vae_lightning"]],
    ids=["--cfg job", "the list of commands"],
)
def test_a_short_answer_whose_reader_goes_ends_quietly(tmp_path, line):
    reading, writing = os.pipe()
    os.close(reading)
    pipes = {"stdout": writing, "stderr": subprocess.PIPE}
    finished = subprocess.run(line, cwd=tmp_path, timeout=LONG, **pipes)
    os.close(writing)
    assert (finished.returncode, finished.stderr) == (0, b"")


def test_a_mistake_has_its_exit_code_though_nobody_reads_it(tmp_path):
    line = command("train", "nosuch=1")
    assert subprocess.call(line, cwd=tmp_path, preexec_fn=closed(0, 1, 2), timeout=LONG) == 1


def test_a_terminal_that_is_closed_ends_nothing(tmp_path):
    ours, theirs = pty.openpty()
    text = "print('one'); sys.stdin.read(); print('two'); open('end', 'w').close()"
    line = [sys.executable, "-c", f"{INSTALL}{text}"]
    streams_ = {"stdin": subprocess.PIPE, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(line, cwd=tmp_path, **streams_) as process:
        os.close(theirs)
        assert b"one" in os.read(ours, 1000)
        os.close(ours)
        process.stdin.close()
        assert process.wait(LONG) == 0
    assert (tmp_path / "end").exists()


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
def test_a_terminal_that_is_not_utf_8_gets_all_that_it_can_show(environment):
    text = "import logging; logging.basicConfig(stream=sys.stdout, format='%(message)s')\n"
    text += r"print('\u03c3 = 1'); logging.warning('4 \u2026 5'); print('\u6570', file=sys.stderr)"
    finished = script(text, env={**os.environ, **environment})
    assert finished.returncode == 0
    assert finished.stdout == b"\\u03c3 = 1\n4 \\u2026 5\n"
    assert finished.stderr == b"\\u6570\n"


def test_a_full_disk_in_place_of_the_terminal_is_reported_once():
    with open("/dev/full", "wb") as full:
        line = [sys.executable, "-c", INSTALL + "print('x' * 10**5); print('y', flush=True)"]
        finished = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, timeout=LONG)
    assert finished.returncode == 0
    assert finished.stderr == b"warning: standard output: No space left on device\n"


def test_no_file_is_taken_for_a_stream_that_was_closed(tmp_path):
    text = "import pathlib; number = os.open('file', os.O_CREAT | os.O_WRONLY)\n"
    text += "print('lost'); sys.stdout.flush(); pathlib.Path('number').write_text(str(number))"
    script(text, cwd=tmp_path, preexec_fn=closed(0, 1, 2))
    assert int((tmp_path / "number").read_text()) > 2
    assert (tmp_path / "file").read_bytes() == b""


def test_what_is_logged_before_goes_the_same_way(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    text = "import logging, sys; logging.basicConfig(stream=sys.stdout)\n"
    text += f"{INSTALL}logging.warning('x')"
    line = [sys.executable, "-c", text]
    finished = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, timeout=LONG)
    os.close(writing)
    assert (finished.returncode, finished.stderr) == (0, b"")


def test_streams_that_somebody_else_has_put_there_are_left(monkeypatch):
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    streams.install()
    assert sys.stdout is mine
