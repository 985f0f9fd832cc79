"""The log of a run as a file, which a full disk doesn't stop."""

import io
import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vae_lightning.runs import atomic_files
from vae_lightning.runs.log_lines import Lines
from vae_lightning.runs.loggers import Dispensable


class LogFile(logging.FileHandler):
    """A log file that a full disk ends with one warning.

    ``logging``'s own handler prints a traceback for each line.
    """

    def __init__(self, file: Path) -> None:
        """Open the file, and write at its end."""
        super().__init__(file)
        self.setFormatter(Lines("%(asctime)s %(message)s"))
        self.files = Dispensable("Lines")

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(
            io.BufferedWriter(atomic_files.append(Path(self.baseFilename))),
            encoding="utf-8",
            errors="backslashreplace",
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        self.files.write(self.baseFilename, super().emit, record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Hand on what the system refuses."""
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # what a full disk left in the buffer is tried once more
            super().close()


@contextmanager
def log_to(file: Path | None) -> Iterator[None]:
    """Write to a file what is logged on the terminal, with times and the traceback of an error.

    None: write no file.
    """
    if file is None:
        yield
        return
    handler = LogFile(file)
    logging.getLogger().addHandler(handler)
    try:
        yield
    except Exception:
        handler.emit(logging.makeLogRecord({"msg": traceback.format_exc().rstrip()}))
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
