"""What SIGTERM, SIGHUP and Ctrl-C do: end the process at once, or in training after a step.

SIGHUP comes when a terminal is closed or a connection is lost.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(SystemExit):
    """The end of the process by a signal, with a shell's exit code.

    SIGTERM 143, Ctrl-C 130, SIGHUP 129.
    """

    def __init__(self, number: int) -> None:
        """Take the signal's number."""
        super().__init__(128 + number)


class _Asked:
    """The state of the signal handling.

    Attributes:
        heeded: the signals that are handled.
        once: whether signals after the first are ignored.
        came: whether a signal has come.
        deferred: whether a signal is only noted, for ``check`` to act on.
        number: the noted signal.
        tell: called when a deferred signal comes.
    """

    heeded: tuple[int, ...] = ()
    once = False
    came = False
    deferred = False
    number: int | None = None
    tell: Callable[[], object] | None = None


@contextmanager
def heeded(*numbers: int, once: bool = False) -> Iterator[None]:
    """Turn signals into ``Interrupted`` while the body runs, to clear away unfinished work.

    Between ``leave_to_system`` and ``heed`` they end the process directly.

    SIGHUP stays ignored in a process that was started with ``nohup``.

    Args:
        *numbers: the signals; by default SIGTERM, Ctrl-C and SIGHUP.
        once: ignore signals after the first, because the sender repeats them. It has SIGKILL if it
            can't wait.
    """
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # where Python lets nobody set handlers
        yield
        return
    if not numbers:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            numbers = numbers[:2]
    _Asked.heeded, _Asked.once, _Asked.came = numbers, once, False
    _Asked.deferred, _Asked.number = False, None
    before = {number: signal.signal(number, _handle) for number in _Asked.heeded}
    try:
        yield
        check()  # Python swallows what is raised while an object is being destroyed
    except Exception:
        if not _Asked.deferred:
            check()  # what a library has made of it
        raise
    finally:
        _Asked.heeded, _Asked.deferred, _Asked.number = (), False, None
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_to_system() -> None:
    """Let signals end the process directly until ``heed``.

    While torch is imported, Python handles no signal for seconds. Use it only while there is
    nothing to clear away.
    """
    for number in _Asked.heeded:
        signal.signal(number, signal.SIG_DFL)


def heed() -> None:
    """Answer signals from here on: something is about to be made."""
    for number in _Asked.heeded:
        signal.signal(number, _handle)


def defer(tell: Callable[[], object] | None = None) -> None:
    """From now on only note a first signal, for ``check``; a second one ends the process at once.

    A second SIGHUP doesn't: it may come of the same closed terminal.

    Args:
        tell: called when a signal comes, to inform others.

    Raises:
        Interrupted: a signal came before.
    """
    check()
    _Asked.deferred, _Asked.tell = True, tell
    for (
        number
    ) in _Asked.heeded:  # from Lightning, which would end in the middle of accumulated gradients
        signal.signal(number, _handle)


def noted() -> int | None:
    """Return the signal that was noted, if one was."""
    return _Asked.number


def note(number: int) -> None:
    """Note a signal that came to another process of the same run."""
    _Asked.number = number


def check() -> None:
    """End here if a signal was noted.

    Raises:
        Interrupted: one was.
    """
    if _Asked.number is not None:
        number, _Asked.number, _Asked.deferred = _Asked.number, None, False
        raise Interrupted(number)


@contextmanager
def held() -> Iterator[None]:
    """Only note signals while the body runs, and act on them at its end.

    Libraries may be left half changed by an exception out of nowhere, or swallow it.

    Raises:
        Interrupted: a signal came.
    """
    deferred, tell = _Asked.deferred, _Asked.tell
    if not deferred:
        _Asked.deferred, _Asked.tell = True, None
    try:
        yield
    finally:
        _Asked.deferred, _Asked.tell = deferred, tell
        if not deferred:
            check()


def defer_no_longer() -> None:
    """Let signals end the process at once again; what was noted ends it here.

    Raises:
        Interrupted: a signal was noted.
    """
    _Asked.deferred = False
    check()


def _handle(number: int, frame: FrameType | None) -> None:
    # A closed terminal may send SIGHUP twice: by the system and by the shell.
    if _Asked.came and (_Asked.once or number == signal.SIGHUP):
        return
    _Asked.number, _Asked.came = number, True
    if not _Asked.deferred:
        raise Interrupted(number)
    if not _Asked.once:
        for each in {*_Asked.heeded} - {signal.SIGHUP}:
            signal.signal(each, signal.SIG_DFL)
    if _Asked.tell:
        _Asked.tell()
