"""Loggers that survive a full disk: they warn once, stop writing, and let training continue."""

import csv
import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import FileWriter, SummaryWriter

log = logging.getLogger(__name__)


class Dispensable:
    """Files that a run can do without: the first failed write warns, and no more are tried."""

    def __init__(self, what: str) -> None:
        """Take what they are, in the words of the warning."""
        self.what = what
        self.given_up = False

    def write(
        self, where: str | Path, action: Callable[..., object], *arguments: Any, **others: Any
    ) -> None:
        """Call what writes them, and warn if the system refuses it; do nothing once it has.

        Args:
            where: the file or folder that the warning names.
            action: called with all further arguments.
            *arguments: for it.
            **others: for it.
        """
        if self.given_up:
            return
        try:
            action(*arguments, **others)
        except OSError as error:
            self.given_up = True
            log.warning(
                "%s in %s are no longer written (%s); the run goes on",
                self.what,
                where,
                error.strerror or error,
            )


# -- TensorBoard -----------------------------------------------------------------------------------


class EventFile(FileWriter):
    """An event file: the operating system has each event when the call returns.

    TensorBoard's own writer hands events to a thread. If the process is killed, the waiting events
    are lost, though a checkpoint of a later step may have been saved. And an error that ends the
    thread is raised in the training loop.
    """

    def __init__(self, directory: str, purge_step: int | None, files: Dispensable) -> None:
        """Make the directory and open a file there.

        TensorBoard no longer shows the events of earlier files from ``purge_step`` on.
        """
        self.directory = directory
        self.files = files
        self._file: BinaryIO | None = None
        files.write(directory, self._open)
        self.add_event(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self.add_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def _open(self) -> None:
        os.makedirs(self.directory, exist_ok=True)
        # TensorBoard reads files in the order of their names, and a run may be resumed within the
        # same second.
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(os.path.join(self.directory, name), "xb")  # noqa: SIM115

    def get_logdir(self) -> str:
        """Return the directory."""
        return self.directory

    def add_event(
        self, event: Event, step: int | None = None, walltime: float | None = None
    ) -> None:
        """Write an event, at a step if it hasn't its own."""
        event.wall_time = time.time() if walltime is None else walltime
        if step is not None:
            event.step = int(step)
        self.files.write(self.directory, self._append, event.SerializeToString())

    def _append(self, content: bytes) -> None:
        assert self._file is not None
        length = struct.pack("<Q", len(content))
        self._file.write(b"".join((length, _checksum(length), content, _checksum(content))))
        self._file.flush()

    def flush(self) -> None:
        """Do nothing: all has been written."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with suppress(OSError):  # what a full disk left in the buffer is tried once more
                self._file.close()


def _checksum(content: bytes) -> bytes:
    """Return the masked CRC-32C that follows each part of a record.

    TensorBoard's own writer computes it in Python.
    """
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


class EventWriter(SummaryWriter):
    """TensorBoard's writer of scalars, pictures and the rest, into an ``EventFile``."""

    file_writer: EventFile | None  # type: ignore[assignment]
    all_writers: dict[str, EventFile] | None  # type: ignore[assignment]

    def __init__(self, directory: str | Path, purge_step: int | None = None) -> None:
        """Take a directory, and the step from which its earlier events are no longer shown."""
        self.files = Dispensable("TensorBoard's files")
        super().__init__(str(Path(directory)), purge_step=purge_step)

    def _get_file_writer(self) -> EventFile:
        if self.file_writer is None:
            self.file_writer = EventFile(self.log_dir, self.purge_step, self.files)
            self.all_writers = {self.log_dir: self.file_writer}
            self.purge_step = None  # what is written after a close() follows on this
        return self.file_writer


class RunLogger(TensorBoardLogger):
    """Lightning's logger for TensorBoard, with a writer that survives a full or a lost disk.

    Attributes:
        purge_step: set it before anything is logged, to resume a run: events of earlier files from
            that step on are no longer shown.
    """

    purge_step: int | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> EventWriter:
        """TensorBoard's writer."""
        if self._experiment is None:
            self._experiment = EventWriter(self.log_dir, self.purge_step)
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def save(self) -> None:
        """Write the hyper-parameters to ``hparams.yaml``."""
        self.experiment.files.write(self.experiment.log_dir, super().save)


# -- CSV -------------------------------------------------------------------------------------------


class RowWriter(ExperimentWriter):
    """Lightning's writer of rows, but it keeps the rows that it finds; Lightning's deletes them."""

    def __init__(self, directory: str, purge_step: int | None) -> None:
        """Take a directory, and the step from which its earlier rows are left out."""
        self.purge_step = purge_step
        self.files = Dispensable("Figures")
        super().__init__(directory)

    def save(self) -> None:
        """Write the rows since the last time."""
        self.files.write(self.metrics_file_path, super().save)
        self.metrics = []

    def _check_log_dir_exists(self) -> None:
        file = Path(self.metrics_file_path)
        if not file.exists():
            return
        with file.open(newline="") as lines:
            reader = csv.DictReader(lines)
            self.metrics_keys = list(reader.fieldnames or ())
            kept = [
                row
                for row in reader
                if self.purge_step is None or int(row["step"]) < self.purge_step
            ]
        shortened = file.with_suffix(".new")
        with shortened.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, self.metrics_keys)
            writer.writeheader()
            writer.writerows(kept)
        shortened.replace(file)


class RunCSVLogger(CSVLogger):
    """Lightning's logger for a table: its rows survive a resume, and the run survives a full disk.

    Attributes:
        purge_step: set it before anything is logged, to resume a run: rows from that step on are
            left out.
    """

    purge_step: int | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> RowWriter:
        """The writer of rows."""
        if self._experiment is None:
            self._experiment = RowWriter(self.log_dir, self.purge_step)
        return self._experiment  # type: ignore[return-value]
