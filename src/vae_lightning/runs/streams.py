"""The terminal: no command ends because nobody reads its output, or because of an encoding.

A run that was started from a terminal which is closed, or whose output goes into ``| head``, is
trained to its end. All that it says is in its log as well.
"""

import errno
import io
import logging
import os
import sys
from contextlib import suppress

_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.EBADF)  # a pipe's end, a terminal that is gone


class Patient(io.TextIOWrapper):
    r"""A standard stream that stops writing, and says nothing, when its reader has gone.

    Characters that its encoding lacks are written as ``\xd7``.
    """

    def __init__(self, number: int, like: io.TextIOWrapper) -> None:
        """Write to a file descriptor, which isn't closed with the stream.

        Args:
            number: the file descriptor.
            like: the stream whose encoding and buffering it has.
        """
        file = io.FileIO(number, "w", closefd=False)
        super().__init__(
            file if like.write_through else io.BufferedWriter(file),  # as with python -u
            encoding=like.encoding,
            errors="backslashreplace",
            line_buffering=like.line_buffering,
            write_through=like.write_through,
        )

    def write(self, text: str) -> int:
        """Write a text, if anybody reads it."""
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Write what is left in the buffer, if anybody reads it."""
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        super().flush()
        if error.errno not in _NOBODY_READS and self is sys.stdout:
            print(f"warning: standard output: {error.strerror}", file=sys.stderr)


def install() -> None:
    """Put such streams in place of standard output and standard error.

    Streams that were closed read and write nothing. Others than the process began with are left as
    they are. Whatever is logged goes the same way.
    """
    for number, (name, mode) in enumerate([("stdin", "r"), ("stdout", "w"), ("stderr", "w")]):
        try:
            os.fstat(number)
        except OSError:  # or the next file that is opened would be taken for the stream
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if type(stream) is not io.TextIOWrapper or stream is not getattr(sys, f"__{name}__"):
            continue
        if stream.fileno() == number:
            with suppress(OSError):
                stream.flush()
            patient = Patient(number, stream)
            setattr(sys, name, patient)
            for handler in logging.getLogger().handlers:
                if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                    handler.stream = patient
