"""Files that appear whole or not at all: written under another name, flushed to disk, renamed.

Nothing here follows a link that lies in a file's place: it may lead anywhere.
"""

import errno
import io
import os
import stat
from contextlib import suppress
from pathlib import Path


def write(path: Path, content: bytes | memoryview, flush: bool = True) -> None:
    """Write a file atomically: a reader sees the old content or the new one.

    That holds whenever the process or the machine stops.

    Args:
        path: the file.
        content: what it shall hold.
        flush: whether to wait for the disk. Else it holds only while the machine runs, which is
            enough for pictures.

    Raises:
        OSError: the file can't be written. The old file is unchanged, and no temporary file stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    made = False
    try:
        _clear(temporary)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        made = True
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if flush:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        if flush:
            _flush_names(path.parent)
    except BaseException as error:
        if made:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"{path} can't be written: {error.strerror}") from error
        raise


def point(link: Path, name: str) -> None:
    """Let ``link`` name another file of its directory, from one moment to the next.

    Raises:
        OSError: it can't be made, or a file lies there; what it named before it names still.
    """
    temporary = link.with_name(f".{link.name}.tmp")
    try:
        if link.exists() and not link.is_symlink():
            raise FileExistsError(errno.EEXIST, "a file is there, and no link", str(link))
        if temporary.is_symlink():  # of a process that was killed
            temporary.unlink()
        os.symlink(name, temporary)
        os.replace(temporary, link)
        _flush_names(link.parent)
    except OSError as error:
        raise OSError(f"{link} can't be written: {error.strerror}") from error


def append(path: Path) -> io.FileIO:
    """Open a file to write at its end, unbuffered; it is made if it isn't there.

    A file with a second name, as a backup of hard links has, is copied first: the other stays.

    Raises:
        OSError: it can't be opened, or a link or something else than a file lies there.
    """
    with suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
            write(path, path.read_bytes())
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return io.FileIO(descriptor, "ab")


def _clear(temporary: Path) -> None:
    """Remove what a killed process left under a temporary name.

    Raises:
        OSError: it is a link or a folder, so another's.
    """
    if temporary.is_symlink():
        raise OSError(errno.ELOOP, f"{temporary.name} is a link", str(temporary))
    temporary.unlink(missing_ok=True)


def _flush_names(directory: Path) -> None:
    """Flush the names of a directory's files to the disk: a rename is in memory only before."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
