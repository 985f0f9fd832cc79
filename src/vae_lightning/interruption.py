"""What SIGTERM and Ctrl-C do: end the process at once, or, in training, after the optimiser step that is being taken."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(SystemExit):
    """The end of the process by a signal, with the exit code that shells give it: 143 for SIGTERM, 130 for Ctrl-C."""

    def __init__(self, number: int) -> None:
        """Take the signal's number."""
        super().__init__(128 + number)


class _Asked:
    """Which signals are heeded, whether one has come, whether somebody will look before the process ends, and who is told."""

    heeded: tuple[int, ...] = ()
    once = False
    came = False
    deferred = False
    number: int | None = None
    tell: Callable[[], object] | None = None


@contextmanager
def heeded(*numbers: int, once: bool = False) -> Iterator[None]:
    """Turn signals into ``Interrupted`` meanwhile, so that what is half-done is cleared away.

    But for the time between ``leave_to_system`` and ``heed``.

    Args:
        *numbers: the signals; by default SIGTERM and Ctrl-C.
        once: further ones after the first do nothing, for what sends them repeats itself, and has SIGKILL for haste.
    """
    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody set handlers
        yield
        return
    _Asked.heeded, _Asked.once, _Asked.came = numbers or (signal.SIGTERM, signal.SIGINT), once, False
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
    """Let signals end the process by themselves until ``heed``: while torch is imported, Python answers none for seconds.

    For as long as nothing has been made that would have to be cleared away.
    """
    for number in _Asked.heeded:
        signal.signal(number, signal.SIG_DFL)


def heed() -> None:
    """Answer signals from here on: something is about to be made."""
    for number in _Asked.heeded:
        signal.signal(number, _handle)


def defer(tell: Callable[[], object] | None = None) -> None:
    """From now on only note a first signal, for ``check`` to act on; a second one ends the process at once.

    Args:
        tell: called when it comes, to let others know.

    Raises:
        Interrupted: one came before.
    """
    check()
    _Asked.deferred, _Asked.tell = True, tell
    for number in _Asked.heeded:  # from Lightning, which would end in the middle of accumulated gradients
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


def defer_no_longer() -> None:
    """Let signals end the process at once again; what was noted ends it here.

    Raises:
        Interrupted: a signal was noted.
    """
    _Asked.deferred = False
    check()


def _handle(number: int, frame: FrameType | None) -> None:
    if _Asked.once and _Asked.came:
        return
    _Asked.number, _Asked.came = number, True
    if not _Asked.deferred:
        raise Interrupted(number)
    if not _Asked.once:
        for each in _Asked.heeded:
            signal.signal(each, signal.SIG_DFL)
    if _Asked.tell:
        _Asked.tell()
