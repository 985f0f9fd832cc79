"""Runs mirrored to an S3-compatible server on loopback go on from there, and outlive it."""

import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer

from chaos.faults import flipped
from chaos.runs import DATA, MINIMAL, SMALL, differences, run_of, stretches
from vae_lightning.runs import atomic_files
from vae_lightning.runs.mirror import Mirror, Place

BASE = "s3://runs/vae"
RUN = [*SMALL, MINIMAL, "callbacks.last.every_n_steps=1", f"mirror={BASE}"]
"""Two epochs of four steps, each of which is saved."""


@pytest.fixture
def server():
    """The server, which each process finds by its environment."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {"ACCESS_KEY_ID": "id", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**names, "ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(f"AWS_{name}", value)
        request("POST", "/moto-api/reset")
        boto3.client("s3").create_bucket(Bucket="runs")
        yield server
    server.stop()


def request(method, path):
    """Ask the server itself."""
    urlopen(Request(os.environ["AWS_ENDPOINT_URL"] + path, method=method)).close()


def held(pattern="", but="nothing"):
    """Return the objects of the bucket whose keys fit: their contents by their keys."""
    client = boto3.client("s3")
    keys = [each["Key"] for each in client.list_objects_v2(Bucket="runs").get("Contents", ())]
    fitting = [key for key in keys if re.search(pattern, key) and but not in key]
    return {key: client.get_object(Bucket="runs", Key=key)["Body"].read() for key in fitting}


@contextmanager
def training(directory, *arguments):
    """A process that trains in a directory; it ends with this block."""
    directory.mkdir(exist_ok=True)
    command = [sys.executable, "-u", "-m", "vae_lightning.train", *arguments]
    process = subprocess.Popen(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def trained(directory, *arguments):
    """Train in a directory; return the exit status and what was shown."""
    with training(directory, *arguments) as process:
        shown = process.communicate(timeout=120)[0]
    return process.returncode, shown


def test_a_killed_run_goes_on_from_the_bucket_and_ends_the_same(server, tmp_path):
    assert trained(tmp_path / "whole", *RUN)[0] == 0
    whole = run_of(tmp_path / "whole")
    newest = b""
    with training(tmp_path / "here", *RUN) as process:
        while b"step_00000003" not in newest:
            assert process.poll() is None
            [newest] = held(r"checkpoints/last$", but=whole.name).values() or [b""]
    killed = run_of(tmp_path / "here").name
    shutil.rmtree(tmp_path / "here")
    status, shown = trained(tmp_path / "there", f"resume={BASE}/{killed}")
    assert status == 0, shown
    run = run_of(tmp_path / "there")
    assert run.name == killed
    assert stretches(run)[-1][0] >= 3
    assert differences(run, whole) == []
    contents = {
        key.removeprefix(f"vae/{killed}/"): content
        for key, content in held().items()
        if f"/{killed}/" in key
    }
    assert json.loads(contents["metrics.json"]) == json.loads((run / "metrics.json").read_text())
    assert (
        contents["checkpoints/last"]
        == (run / "checkpoints" / "step_00000008.ckpt.sha256").read_bytes()
    )
    assert (
        contents["checkpoints/step_00000008.ckpt"]
        == (run / "checkpoints" / "step_00000008.ckpt").read_bytes()
    )
    assert sum(name.endswith(".ckpt") for name in contents) == sum(
        not file.is_symlink() for file in run.glob("checkpoints/*.ckpt")
    )


def test_a_damaged_object_is_passed_over_for_an_older_one(server, tmp_path):
    with training(tmp_path / "here", *RUN, "trainer.max_epochs=500") as process:
        next(line for line in process.stdout if line.startswith("epoch 2/"))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 143
    run = run_of(tmp_path / "here")
    newest = max(file.name for file in run.glob("checkpoints/step_*.ckpt"))
    assert held()[f"vae/{run.name}/checkpoints/last"].decode().split()[1] == newest
    key = f"vae/{run.name}/checkpoints/{newest}"
    boto3.client("s3").put_object(
        Bucket="runs", Key=key, Body=flipped(held()[key], random.Random(1))
    )
    shutil.rmtree(tmp_path / "here")
    _, shown = trained(tmp_path / "there", f"resume={BASE}/{run.name}", "trainer.max_epochs=4")
    assert (
        f"{newest} is damaged or unfinished, by its SHA-256: going on from an earlier one" in shown
    )


def test_of_two_that_claim_a_place_in_one_instant_one_gets_it(server):
    places = [Place("mirror", f"{BASE}/run") for _ in range(2)]
    places[0].put(".hydra/hydra.yaml", b"first", create=True)
    with pytest.raises(OSError, match=r"pre-conditions|exists"):
        places[1].put(".hydra/hydra.yaml", b"second", create=True)
    assert held() == {"vae/run/.hydra/hydra.yaml": b"first"}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("s3://nosuch/vae", r"The specified bucket does not exist"),
        ("s3://runs/vae", r"Could not connect to the endpoint URL.*"),
    ],
)
def test_a_store_that_is_not_there_is_told_and_nothing_is_made(server, tmp_path, address, reason):
    if "runs" in address:
        server.stop()
    began = time.monotonic()
    status, shown = trained(tmp_path, *SMALL, MINIMAL, f"mirror={address}")
    assert status == 1
    assert re.search(
        rf"^error: mirror={address}/\S+: can't be reached \({reason}\)$",
        shown.strip().splitlines()[-1],
    )
    assert time.monotonic() - began < 60
    assert list(tmp_path.iterdir()) == []


def test_a_run_outlives_its_store_and_says_what_is_not_there(server, tmp_path):
    with training(tmp_path, *RUN, "trainer.max_epochs=20") as process:
        next(line for line in process.stdout if line.startswith("epoch 2/"))
        server.stop()
        shown = process.communicate(timeout=120)[0].splitlines()
    run = run_of(tmp_path).relative_to(tmp_path)
    assert process.returncode == 1
    assert sum("Not mirrored to" in line for line in shown) == 1
    assert not any("Traceback" in line or "credentials" in line for line in shown)
    assert shown[-1].startswith(
        f"error: mirror={BASE}/{run.name}: not all of the run is there (Could not connect"
    )
    assert shown[-1].endswith(f"it is whole in {run}, and resume={run} mirrors the rest")
    assert (tmp_path / run / "metrics.json").exists()


def test_what_a_checkpoint_of_the_default_model_costs_there(server, tmp_path, capsys):
    """A figure, and no more than a second of it."""
    arguments = ["data=mnist_subset", f"data.dir={DATA}", "trainer.max_epochs=1"]
    assert trained(tmp_path, *arguments)[0] == 0
    run = run_of(tmp_path)
    mirror = Mirror(f"{BASE}/run", run)
    mirror.begin(fresh=True)
    mirror.update()
    file = run / "checkpoints" / "step_00000003.ckpt"
    sent, written = [], []
    for step in range(4, 12):
        content = file.read_bytes()
        began = time.perf_counter()
        other = file.with_name(f"step_{step:08d}.ckpt")
        atomic_files.write(other, content)
        written.append(time.perf_counter() - began)
        other.with_name(f"{other.name}.sha256").write_text(
            file.with_name(f"{file.name}.sha256").read_text().replace(file.name, other.name)
        )
        atomic_files.point(run / "checkpoints" / "last.ckpt", other.name)
        began = time.perf_counter()
        mirror.update()
        sent.append(time.perf_counter() - began)
    mirror.complete()
    assert held()["vae/run/checkpoints/last"].endswith(b"step_00000011.ckpt\n")
    with capsys.disabled():
        print(
            f"\na checkpoint of {len(content) / 1e6:.1f} MB: {statistics.median(sent):.2f} s "
            f"to send and read back on loopback ({min(sent):.2f} to {max(sent):.2f}); "
            f"{statistics.median(written):.3f} s to write here"
        )
    assert statistics.median(sent) < 1
