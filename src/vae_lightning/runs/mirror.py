"""The mirror of a run: its files at an address, sent in an order that allows a resume anytime.

The files keep their names in the run directory. Object stores have no links, so the files
``checkpoints/last`` and ``checkpoints/best`` replace ``last.ckpt`` and ``best.ckpt``. Each holds
the ``sha256sum`` line of the file that it points to. This module doesn't import torch.
"""

import hashlib
import itertools
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from omegaconf import DictConfig

from vae_lightning.configuration.addresses import check_address
from vae_lightning.configuration.quoting import override, printable
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import atomic_files, signals
from vae_lightning.runs.directory import (
    is_sweep,
    make,
    nearest_standing,
    remove,
    remove_if_empty,
)

log = logging.getLogger(__name__)
Result = TypeVar("Result")

PATIENCE = 20.0
"""Seconds that a run waits for its mirror: less than clusters leave from SIGTERM to SIGKILL."""

PATIENCE_AT_THE_END = 600.0
"""Seconds that a run which has nothing else to do waits for its mirror."""

_PART = r"[\w=,+-][\w.=,+@-]*"
_CHECKPOINT = r"(?:step|best)_(?:[0-9]{8}|[1-9][0-9]{8,})\.ckpt"
_TURNS = tuple(
    re.compile(turn)
    for turn in (
        r"\.hydra/(?:config|hydra|overrides)\.yaml",
        # Logs and pictures: everything logged before the checkpoint.
        rf"(?!checkpoints/|metrics\.json$){_PART}(?:/{_PART})*",
        rf"checkpoints/{_CHECKPOINT}",
        rf"checkpoints/{_CHECKPOINT}\.sha256",
        r"checkpoints/(?:last|best)",
        r"\.hydra/begun",
        r"metrics\.json",  # by which a run is finished
    )
)
"""The files that make up a run, in the order of sending. Others are neither sent nor fetched."""

_REMOVED = 2
"""From this turn on a file is removed that a run no longer has. Others may be the user's own."""

_POINTERS = ("checkpoints/last", "checkpoints/best")
_CONFIGURATION = {f".hydra/{name}.yaml" for name in ("hydra", "overrides", "config")}


def _turn(name: str) -> int | None:
    """Return when a file is sent; None: it is none of a run's."""
    return next((number for number, turn in enumerate(_TURNS) if turn.fullmatch(name)), None)


class Place:
    """An address, and what lies there by the names in a run directory."""

    def __init__(self, key: str, address: str) -> None:
        """Take an address, and the key that it was given by, to name in an error.

        Raises:
            ConfigurationError: it isn't one of a mirror.
        """
        check_address(key, address)
        from fsspec.core import (
            url_to_fs,
        )  # here, for a mistyped key waits for what is imported above

        for name in ("aiobotocore", "botocore"):  # which say where they have found credentials
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("asyncio").setLevel(
            logging.CRITICAL
        )  # which prints what is raised as well
        self.address = address.rstrip("/")
        self.files, self.root = url_to_fs(
            self.address, use_listings_cache=False, skip_instance_cache=True
        )
        self.is_local = address.startswith("file:")
        self._made: list[Path] = []

    def is_empty(self) -> bool:
        """Return whether nothing at all lies there."""
        return not self.files.find(self.root)

    def sizes(self) -> dict[str, int]:
        """Return the files of a run that lie there, with their sizes in bytes."""
        found = {
            path.removeprefix(f"{self.root}/"): info
            for path, info in self.files.find(self.root, detail=True).items()
            if path.startswith(f"{self.root}/") and info["type"] == "file"  # no link on a share
        }
        return {name: info["size"] for name, info in found.items() if _turn(name) is not None}

    def read(self, name: str) -> bytes:
        """Return what a file holds."""
        content: bytes = self.files.cat_file(f"{self.root}/{name}")
        return content

    def holds(self, name: str, content: bytes) -> bool:
        """Return whether a file is there, with a content."""
        try:
            return self.read(name) == content
        except FileNotFoundError:
            return False

    def put(self, name: str, content: bytes, create: bool = False) -> None:
        """Write a file, whole or not at all, and read it back.

        Raises:
            FileExistsError: it was to be created, and is there.
            OSError: what is read is not what was written, or a link lies in the file's place.
        """
        path = f"{self.root}/{name}"
        self._refuse_links(name)
        if self.is_local:
            self._make(Path(path).parent)
            if create:
                Path(path).touch(exist_ok=False)
            atomic_files.write(Path(path), content)
        else:
            self.files.pipe_file(path, content, mode="create" if create else "overwrite")
        if not self.holds(name, content):
            raise OSError(f"{name} is not what was sent, when it is read back")

    def _refuse_links(self, name: str) -> None:
        """Refuse to change a file that a link on a share leads to."""
        if self.is_local:
            path = Path(self.root)
            for part in name.split("/"):
                path = path / part
                if path.is_symlink():
                    raise OSError(f"{path.relative_to(self.root)} is a link there")

    def _make(self, folder: Path) -> None:
        """Make a folder, and note what was made."""
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._made += reversed(missing)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            OSError: it can't be removed, or a link leads to it.
        """
        self._refuse_links(name)
        with suppress(FileNotFoundError):
            self.files.rm_file(f"{self.root}/{name}")

    def remove_folders(self) -> None:
        """Remove the folders that were made here, if nothing is in them."""
        while self._made:
            with suppress(OSError):
                self._made.pop().rmdir()


class Mirror:
    """Keeps a place equal to a run directory, as it is or as it was when last reachable.

    At any moment the file that a pointer names there is whole, and so is a checkpoint to resume
    from. A file is sent and read back, then its SHA-256 is. Then the pointer is moved, and the file
    that it named before is removed. A later checkpoint is sent only after everything that was
    logged before it.
    """

    def __init__(self, address: str, directory: Path) -> None:
        """Take the run's own place, and the run directory.

        Raises:
            ConfigurationError: the address isn't one of a mirror.
        """
        self.address = address
        self._place = Place("mirror", address)
        self._directory = directory
        self._there: set[str] = set()
        self._found: set[str] = (
            set()
        )  # of these what an earlier process left, as long as it hasn't been looked at
        self._sent: dict[str, object] = {}
        self._sending: Future[None] | None = None
        self._told = False

    def begin(self, fresh: bool) -> None:
        """Claim the place for a run; of a fresh one the configuration is sent.

        Args:
            fresh: the run begins. One that goes on may have begun there.

        Raises:
            ConfigurationError: the place can't be reached, or holds something else.
        """
        try:
            _aside(partial(self._claim, fresh)).result(PATIENCE)
        except ConfigurationError:
            raise
        except Exception as error:
            instead = "" if fresh else "; mirror=null goes on without it"
            raise ConfigurationError(
                f"mirror={self.address}: can't be reached ({_reason(error)}){instead}"
            ) from error

    def _claim(self, fresh: bool) -> None:
        identity = (self._directory / ".hydra" / "hydra.yaml").read_bytes()
        if not self._place.is_empty():
            self._found = set(self._place.sizes())
            if (
                fresh
                or ".hydra/hydra.yaml" not in self._found
                or self._place.read(".hydra/hydra.yaml") != identity
            ):
                raise ConfigurationError(
                    f"mirror={self.address}: another run or other files are there; "
                    "name another place"
                )
            ahead, here = _newest(self._found), _newest(self._local())
            if (len(ahead), ahead) > (len(here), here):
                raise ConfigurationError(
                    f"mirror={self.address}: is further than {self._directory}, by {ahead}; "
                    f"resume={self.address} goes on from there, elsewhere or once that directory "
                    "is moved away"
                )
            self._there = set(self._found)
            return
        try:
            self._place.put(".hydra/hydra.yaml", identity, create=True)
        except FileExistsError as error:
            raise ConfigurationError(
                f"mirror={self.address}: another run has just begun there; name another place"
            ) from error
        self._there.add(".hydra/hydra.yaml")
        if fresh:
            try:
                for name in sorted(_CONFIGURATION - self._there):
                    self._there.add(name)
                    self._place.put(name, (self._directory / name).read_bytes())
            except BaseException:
                self._clear()
                raise

    def withdraw(self) -> None:
        """Leave nothing of a run there that came to nothing."""
        try:
            _aside(self._clear).result(PATIENCE)
        except Exception as error:
            log.warning("%s can't be removed again (%s)", self.address, _reason(error))

    def _clear(self) -> None:
        for name in sorted(self._there):
            self._remove(name)
        self._place.remove_folders()

    def update(self) -> None:
        """Send what has changed and wait, but not for a mirror that was unreachable the last time.

        Sending that takes longer than ``PATIENCE`` continues in the background; nothing else is
        sent until it is done. A signal ends the wait.
        """
        if self._begin_to_send():
            self._await(time.monotonic() + (0 if self._told else PATIENCE))

    def complete(self, patience: float | None = None) -> None:
        """Send the rest, in ``patience`` seconds at most; by default ``PATIENCE_AT_THE_END``.

        Raises:
            OSError: not everything could be sent.
        """
        deadline = time.monotonic() + (PATIENCE_AT_THE_END if patience is None else patience)
        if self._sending is not None:
            self._await(deadline)
        if self._begin_to_send():
            self._await(deadline)
        if problem := self._problem():
            raise OSError(
                f"mirror={self.address}: not all of the run is there ({problem}); "
                f"it is whole in {self._directory}, "
                f"and {override('resume', self._directory)} mirrors the rest"
            )

    def _begin_to_send(self) -> bool:
        if self._sending is not None and not self._sending.done():
            return False
        self._tell()
        self._sending = _aside(partial(self._send, *self._changes()))
        return True

    def _await(self, deadline: float) -> None:
        assert self._sending is not None
        while not self._sending.done() and time.monotonic() < deadline and signals.noted() is None:
            wait([self._sending], timeout=0.1)
        self._tell()

    def _tell(self) -> None:
        """Say once that the mirror is away, and once that it is back."""
        problem = self._problem()
        if problem and not self._told:
            log.warning(
                "Not mirrored to %s (%s); the run goes on, "
                "and it is tried again at the next checkpoint",
                self.address,
                problem,
            )
        elif self._told and not problem:
            log.info("Mirrored to %s again", self.address)
        self._told = problem is not None

    def _problem(self) -> str | None:
        if self._sending is None:
            return None
        if not self._sending.done():
            return "it is being sent still"
        error = self._sending.exception()
        return None if error is None else _reason(error)

    def _local(self) -> dict[str, Path]:
        """Return the files of the run directory that are mirrored, by their names there."""
        files = {
            file.relative_to(self._directory).as_posix(): file
            for file in sorted(self._directory.rglob("*"))
        }
        return {
            name: file
            for name, file in files.items()
            if _turn(name) is not None
            and name not in _POINTERS
            and file.is_file()
            and not file.is_symlink()
        }

    def _changes(self) -> tuple[dict[str, object], dict[str, bytes]]:
        """Return which files the mirror should hold, and the content of those that it lacks.

        Each name comes with a mark that changes with the file. A checkpoint that is damaged here is
        left out.
        """
        marks: dict[str, object] = {}
        contents: dict[str, bytes] = {}
        for name, file in self._local().items():
            marks[name] = (file.stat().st_size, file.stat().st_mtime_ns)
            if self._sent.get(name) != marks[name]:
                contents[name] = file.read_bytes()
        for name in [name for name in contents if name.endswith(".ckpt")]:
            noted = contents.get(f"{name}.sha256", b"").split()
            if noted[:1] != [hashlib.sha256(contents[name]).hexdigest().encode()]:
                for each in (name, f"{name}.sha256"):
                    marks.pop(each, None)
                    contents.pop(each, None)
        for pointer in _POINTERS:
            link = self._directory / f"{pointer}.ckpt"
            if link.is_symlink() and f"checkpoints/{link.readlink()}.sha256" in marks:
                marks[pointer] = line = link.with_name(f"{link.readlink()}.sha256").read_bytes()
                if self._sent.get(pointer) != line:
                    contents[pointer] = line
        return marks, contents

    def _send(self, marks: dict[str, object], contents: dict[str, bytes]) -> None:
        gone = {name for name in self._there - marks.keys() if (_turn(name) or 0) >= _REMOVED}
        superseded = {name for name in gone if name.endswith((".ckpt", ".sha256"))}
        for name in gone - superseded:
            self._remove(name)
        for name in sorted(contents, key=lambda name: (_turn(name) or 0, name)):
            if name.endswith(".ckpt"):
                self._disown(name, contents.get(f"{name}.sha256"))
            self._there.add(name)
            if not (name in self._found and self._place.holds(name, contents[name])):
                self._place.put(name, contents[name])
            self._found.discard(name)
            self._sent[name] = marks[name]
        for name in sorted(superseded, reverse=True):  # each SHA-256 before its file
            self._remove(name)

    def _disown(self, name: str, line: bytes | None) -> None:
        """Remove what vouches there for a checkpoint of this name, if another is to be sent."""
        noted = f"{name}.sha256"
        if noted in self._found and line is not None and not self._place.holds(noted, line):
            for pointer in self._found & set(_POINTERS):
                if not self._place.holds(pointer, line):  # it may be the one
                    self._remove(pointer)
            self._remove(noted)

    def _remove(self, name: str) -> None:
        self._place.remove(name)
        self._there.discard(name)
        self._found.discard(name)
        self._sent.pop(name, None)


def begin(config: DictConfig, directory: Path) -> Mirror | None:
    """Claim the place of a run's mirror, and return the mirror.

    None if the configuration names no mirror, or if nothing of the run is kept.

    Raises:
        ConfigurationError: the place can't be reached, or holds something else.
    """
    if config.get("mirror") is None or config.trainer.get("fast_dev_run"):
        return None
    if config.mirror.startswith("file:"):
        place = Path(config.mirror.removeprefix("file://")).resolve()
        if place.is_relative_to(directory.resolve()):
            raise ConfigurationError(
                f"mirror={config.mirror}: lies in the run directory itself; name a folder elsewhere"
            )
    mirror = Mirror(config.mirror, directory)
    mirror.begin(fresh=config.resume is None)
    return mirror


def complete(config: DictConfig) -> None:
    """Send the rest of a finished run to its mirror, if it has one.

    Raises:
        ConfigurationError: the place can't be reached, or holds something else.
        OSError: it can't be sent.
    """
    if mirror := begin(config, Path(config.resume)):
        mirror.complete()


def place_of(address: str, directory: Path) -> str:
    """Return a run's own place below an address.

    It is the name of the run directory, after the sweep's name if the run is a job.

    Raises:
        ConfigurationError: the address is a folder that isn't there, as where nothing is mounted.
    """
    if address.startswith("file:") and not Path(address.removeprefix("file://")).is_dir():
        raise ConfigurationError(f"mirror={address}: no such folder")
    directory = directory.resolve()
    outermost = next((each for each in directory.parents if is_sweep(each)), directory)
    return f"{address.rstrip('/')}/{directory.relative_to(outermost.parent).as_posix()}"


@contextmanager
def fetched(config: DictConfig) -> Iterator[str | None]:
    """Fetch the run at the address in ``resume``, point ``resume`` to the copy; yield the address.

    If the body fails, the copy is removed again.

    Raises:
        ConfigurationError: no run is there, or a directory of its name is here.
    """
    address = config.resume
    if not (isinstance(address, str) and "://" in address):
        yield None
        return
    signals.heed()
    standing, made = nearest_standing("outputs/train"), False
    directory = Path("outputs/train") / address.rstrip("/").rpartition("/")[2]
    if directory.exists():
        raise ConfigurationError(
            f"resume={address}: {directory} is there; {override('resume', directory)} goes on "
            "with that, else move it away"
        )
    try:
        _fetch(Place("resume", address), directory)
        made = True
        config.resume = str(directory)
        # Other processes of the run are started by this line.
        sys.argv[1:] = [
            override("resume", directory) if each.startswith("resume=") else each
            for each in sys.argv[1:]
        ]
        yield address
    except BaseException as error:
        if made:
            remove(directory)
        remove_if_empty(directory, standing)
        if isinstance(error, ConfigurationError):
            raise ConfigurationError(
                str(error).replace(override("resume", directory), f"resume={address}")
            ) from error
        raise


def _fetch(place: Place, directory: Path) -> None:
    """Make a run directory of what is mirrored at a place, whole or not at all.

    Raises:
        ConfigurationError: it can't be reached, holds no run, or more than there is room for.
        OSError: it can't be written.
    """
    temporary: Path | None = None
    try:
        sizes = place.sizes()
        if not sizes.keys() >= _CONFIGURATION:
            what = (
                "the run there ended before its configuration was sent"
                if sizes
                else "no run is mirrored there"
            )
            raise ConfigurationError(f"resume={place.address}: {what}; start it anew")
        room = shutil.disk_usage(nearest_standing(str(directory))).free
        if sum(sizes.values()) > room:
            raise ConfigurationError(
                f"resume={place.address}: {sum(sizes.values()):,} bytes, "
                f"where there is room for {room:,}"
            )
        temporary = _make_beside(directory)
        for name in sorted(sizes):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            if name not in _POINTERS:
                place.files.get_file(f"{place.root}/{name}", str(temporary / name))
            elif named := re.fullmatch(
                rf"[0-9a-f]{{64}}  ({_CHECKPOINT})\n".encode(), place.read(name)
            ):
                (temporary / f"{name}.ckpt").symlink_to(named[1].decode())
        os.sync()
        temporary.rename(directory)
    except (ConfigurationError, signals.Interrupted):
        raise
    except Exception as error:
        raise ConfigurationError(
            f"resume={place.address}: can't be fetched ({_reason(error)})"
        ) from error
    finally:
        if temporary is not None:
            remove(temporary)


def _make_beside(directory: Path) -> Path:
    """Make a hidden folder in which a directory is put together."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        temporary = directory.with_name(f".{directory.name}.{os.getpid()}.{number}")
        with suppress(FileExistsError):  # of a process that was killed
            make(temporary)
            return temporary
    raise AssertionError  # itertools.count does not end


def _newest(names: Any) -> str:
    """Return the newest checkpoint of names that has its SHA-256, as a resume needs; else none."""
    found = [
        name for name in names if name.startswith("checkpoints/step_") and f"{name}.sha256" in names
    ]
    return max(found, key=lambda name: (len(name), name), default="")


def _aside(action: Callable[[], Result]) -> "Future[Result]":
    """Begin something in a thread that the end of the process doesn't wait for."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _reason(error: BaseException) -> str:
    """Return what to say of what a file system raised, in part of a line."""
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer"
    return printable(next(iter(str(error).splitlines()), "")[:200]) or type(error).__name__
