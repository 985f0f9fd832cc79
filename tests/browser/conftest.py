"""A browser that stays on this machine, and the processes that it looks at."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from playwright.sync_api import sync_playwright

from vae_lightning.configuration.quoting import override

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "outputs" / "browser"
CHROMIUM = next(
    filter(
        None,
        map(
            shutil.which,
            [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"],
        ),
    ),
    "",
)
QUIET = [
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]


def pytest_configure(config):
    if not CHROMIUM:
        raise pytest.UsageError(
            "no Chromium found: apt-get install chromium, or name one with "
            "CHROMIUM=/path/to/chromium"
        )
    SHOTS.mkdir(parents=True, exist_ok=True)


def is_local(address):
    """Whether a request stays on this machine."""
    url = urlsplit(address)
    return url.scheme in ("data", "blob") or url.hostname in ("127.0.0.1", "localhost")


@pytest.fixture(scope="session")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *QUIET]
        )
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    """An empty page; the test fails if it requests anything from another machine."""
    with browser.new_context(viewport={"width": 1280, "height": 960}) as context:
        context.set_default_timeout(60_000)
        asked = []
        context.on("request", lambda request: asked.append(request.url))
        context.route(lambda address: not is_local(address), lambda route: route.abort())
        yield context.new_page()
        assert [address for address in asked if not is_local(address)] == []


def small_run(directory, *arguments):
    """Train by the real command, and return the run's directory."""
    command = [sys.executable, "-m", "vae_lightning.train", *arguments, "hydra.run.dir=run"]
    subprocess.run([*command, "callbacks=minimal"], cwd=directory, check=True)
    return directory / "run"


@contextmanager
def without_errors(tab, address):
    """Open a page; what its scripts raise fails the test."""
    errors = []
    tab.on("pageerror", lambda error: errors.append(error))
    tab.goto(address)
    yield tab
    assert errors == []


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@contextmanager
def process(*command, log, environment=None):
    """Run a process beside the test, with its output in a file; it is ended with Ctrl-C."""
    with log.open("w") as written:
        running = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdout=written,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            cwd=log.parent,
        )
    try:
        yield running
    finally:
        running.send_signal(signal.SIGINT)
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def wait_for(condition, running, log, seconds=120):
    """Return what a condition returns once it is true; the process must live meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if running.poll() is not None:
            break
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not ready: {log.read_text()}")


# Python asks the system for a connection or an address through these, whatever library asks.
WATCH = """
import os, sys
def heard(event, values):
    if event in ("socket.connect", "socket.sendto", "socket.bind"):
        place = values[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        place = values
    else:
        return
    with open(os.environ["WATCHED"], "a") as file:
        print(place[0] if isinstance(place, tuple) else place, file=file)
sys.addaudithook(heard)
"""


@pytest.fixture(scope="session")
def watched_explorer(tmp_path_factory, trained):
    """The address of the explorer's page, and the file of the places that its process talks to."""
    with explorer_on(trained, tmp_path_factory.mktemp("explorer")) as (address, folder, _):
        yield address, folder / "places"


@contextmanager
def explorer_on(run_directory, folder, data_dir=ROOT / "tests" / "data"):
    """Run the explorer on a free port; gives its address, its folder, and the process."""
    (folder / "watch").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    paths = os.pathsep.join([str(folder / "watch"), *filter(None, [os.environ.get("PYTHONPATH")])])
    log = folder / "log"
    command = [
        "vae_lightning.explore",
        override("checkpoint", run_directory),
        override("data.dir", data_dir),
        "port=0",
    ]
    (folder / "temporary").mkdir()
    environment = {"PYTHONPATH": paths, "WATCHED": str(folder / "places")}
    environment["TMPDIR"] = str(folder / "temporary")
    with process(*command, log=log, environment=environment) as running:
        address = wait_for(
            lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()), running, log
        )
        yield address[0], folder, running


@pytest.fixture(scope="session")
def dashboard(tmp_path_factory, trained):
    """The address of a TensorBoard on the trained run."""
    port = free_port()
    log = tmp_path_factory.mktemp("tensorboard") / "log"
    command = [
        "tensorboard.main",
        "--logdir",
        str(trained),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--load_fast",
        "false",
    ]

    def answers():
        try:
            with urlopen(f"http://127.0.0.1:{port}/data/runs") as answer:
                return b"tensorboard" in answer.read()  # the run has been read
        except OSError:
            return False

    with process(*command, log=log) as running:
        wait_for(answers, running, log)
        yield f"http://127.0.0.1:{port}"
