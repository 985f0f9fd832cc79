"""What the campaigns do to a run: end it at a system call, and damage its files."""

import contextlib
import os
import random
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from unittest.mock import patch

from tqdm import tqdm

# Forks share tqdm's own lock, and one that is killed may hold it: then all others wait for ever.
tqdm.set_lock(threading.RLock())
tqdm.monitor_interval = 0

# -- processes -----------------------------------------------------------------------------------


class Process:
    """A fork of this process, which has imported everything: it begins at once."""

    def __init__(self, action: Callable[[], int | str | None], output: Path) -> None:
        """Run something; what it prints is added to a file.

        Args:
            action: returns the exit status, or an error's text.
            output: the file.
        """
        self.output = output
        self.pid = os.fork()
        if not self.pid:
            self._run(action)

    def _run(self, action: Callable[[], int | str | None]) -> None:
        status: int | str | None = 70
        try:
            with self.output.open("a", buffering=1) as file:
                for descriptor in (1, 2):
                    os.dup2(file.fileno(), descriptor)
                sys.stdout = sys.stderr = file
                status = action()
                if isinstance(status, str):
                    print(status)
                    status = 1
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status or 0)  # type: ignore[arg-type]

    def wait(self, seconds: float | None = None) -> int | None:
        """Return how it ended, less than 0: by that signal; None: it goes on still."""
        handle = os.pidfd_open(self.pid)
        try:
            if not select.select([handle], [], [], seconds)[0]:
                return None
        finally:
            os.close(handle)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        """End it by SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()


def fresh(directory: Path, *arguments: str) -> Callable[[], int]:
    """Return what turns a process into a new one that runs ``train`` and imports everything."""

    def execute() -> int:
        os.chdir(directory)
        os.execv(sys.executable, [sys.executable, "-m", "vae_lightning.train", *arguments])

    return execute


def forked(action: Callable[[], int | str | None], output: Path) -> int:
    """Run something in a fork of this process; return how it ended, less than 0: by that signal."""
    status = Process(action, output).wait()
    assert status is not None
    return status


# -- system calls --------------------------------------------------------------------------------

When = Literal["before", "in", "after"]


class Calls:
    """The system calls by which our code changes files: at one of them SIGKILL ends the process.

    With ``power`` a power cut does: what was written and not flushed is gone, and what was renamed
    and not flushed has its old name.
    """

    NAMES = ("open", "write", "fsync", "close", "replace", "symlink", "unlink", "mkdir")

    def __init__(
        self, end_at: int | None = None, when: When = "after", power: bool = False
    ) -> None:
        """Take where the process ends.

        Args:
            end_at: the call's position from 0; None: it doesn't end.
            when: before the call, in it (half of a ``write`` is done) or after it.
            power: whether by a power cut.
        """
        self.end_at = end_at
        self.when = when
        self.power = power
        self.called: list[str] = []
        self._names: dict[int, str] = {}
        self._written: set[str] = set()
        self._renamed: list[tuple[str, str, str | None]] = []

    def __enter__(self) -> "Calls":
        """Put this in place of the calls."""
        self._patches = contextlib.ExitStack()
        self._originals = {name: getattr(os, name) for name in self.NAMES}
        for name in self.NAMES:
            self._patches.enter_context(patch.object(os, name, self._calling(name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take it away."""
        self._patches.close()

    def _calling(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **others: Any) -> Any:
            ends = len(self.called) == self.end_at
            self.called.append(name)
            if ends and self.when == "before":
                self._end()
            if ends and self.when == "in":
                descriptor, content = arguments
                arguments = (descriptor, content[: len(content) // 2])
            if self.power:
                self._before(name, arguments)
            try:
                result = self._originals[name](*arguments, **others)
                if name == "open":
                    self._names[result] = str(arguments[0])
                return result
            finally:
                if ends:
                    self._end()

        return call

    def _before(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Keep account of what isn't on the disk yet."""
        if name == "write":
            self._written.add(self._names[arguments[0]])
        elif name == "fsync":
            flushed = self._names[arguments[0]]
            self._written.discard(flushed)
            for _, _, old in (
                each for each in self._renamed if os.path.dirname(each[1]) == flushed and each[2]
            ):
                self._originals["unlink"](old)
            self._renamed = [each for each in self._renamed if os.path.dirname(each[1]) != flushed]
        elif name == "replace":
            source, target = map(str, arguments)
            old = None
            if os.path.lexists(target):
                old = f"{target}.old{len(self.called)}"
                os.link(target, old, follow_symlinks=False)
            self._renamed.append((source, target, old))
            if source in self._written:
                self._written.add(target)

    def _end(self) -> None:
        if self.power:
            for name in self._written:
                with contextlib.suppress(FileNotFoundError):
                    os.truncate(name, 0)
            for source, target, old in reversed(self._renamed):
                os.rename(target, source)
                if old:
                    os.rename(old, target)
        os.kill(os.getpid(), signal.SIGKILL)


def points(called: list[str]) -> Iterator[tuple[int, When]]:
    """Yield where a process can be ended: before and after each call, and within each ``write``."""
    for position, name in enumerate(called):
        yield position, "before"
        if name == "write":
            yield position, "in"
        yield position, "after"


# -- damage --------------------------------------------------------------------------------------


def flipped(content: bytes, draw: random.Random) -> bytes:
    """Return a file's content with one bit of it flipped."""
    position = draw.randrange(len(content))
    return (
        content[:position]
        + bytes([content[position] ^ 1 << draw.randrange(8)])
        + content[position + 1 :]
    )


def truncated(content: bytes, draw: random.Random) -> bytes:
    """Return the beginning of a file's content."""
    return content[: draw.randrange(len(content))]


# -- signals -------------------------------------------------------------------------------------


@contextlib.contextmanager
def called_at(
    owner: Any, name: str, number: int, action: Callable[[], None], after: bool = False
) -> Iterator[None]:
    """Meanwhile do something at the n-th call of a function, from 1, before or after it."""
    original, calls = getattr(owner, name), 0

    def call(*arguments: Any, **others: Any) -> Any:
        nonlocal calls
        calls += 1
        due = calls == number
        if due and not after:
            action()
        result = original(*arguments, **others)
        if due and after:
            action()
        return result

    with patch.object(owner, name, call):
        yield
