"""Files that appear whole or not at all: written under another name, flushed to disk, renamed."""

import os
from pathlib import Path


def write(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: a reader sees the old content or the new one.

    That holds whenever the process or the machine stops.

    Raises:
        OSError: the file can't be written. The old file is unchanged, and no temporary file stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        _flush_names(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"{path} can't be written: {error.strerror}") from error
        raise


def point(link: Path, name: str) -> None:
    """Let ``link`` name another file of its directory, from one moment to the next.

    Raises:
        OSError: it can't be made; what it named before it names still.
    """
    temporary = link.with_name(f".{link.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        os.symlink(name, temporary)
        os.replace(temporary, link)
        _flush_names(link.parent)
    except OSError as error:
        raise OSError(f"{link} can't be written: {error.strerror}") from error


def _flush_names(directory: Path) -> None:
    """Flush the names of a directory's files to the disk: a rename is in memory only before."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
