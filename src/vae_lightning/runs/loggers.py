"""Loggers that survive a full disk: they warn once, stop writing, and let training continue."""

import csv
import importlib.util
import io
import itertools
import logging
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import google_crc32c
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from omegaconf import OmegaConf
from pydantic import ConfigDict, Field, validate_call
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import FileWriter, SummaryWriter

from vae_lightning.configuration.quoting import without_password
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import atomic_files

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
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            log.warning(
                "%s in %s are no longer written (%s); the run goes on",
                self.what,
                where,
                cause.strerror or cause,
            )


def _write_settings(folder: str, settings: Mapping[str, Any]) -> None:
    """Write ``hparams.yaml`` in a folder, which is made."""
    os.makedirs(folder, exist_ok=True)
    content = OmegaConf.to_yaml(OmegaConf.create(dict(settings))).encode()
    atomic_files.write(Path(folder) / "hparams.yaml", content, flush=False)


# -- TensorBoard -----------------------------------------------------------------------------------


_PREFIX = "events.out.tfevents."
_DATED = re.compile(re.escape(_PREFIX) + r"([0-9]{10})\b")
"""The names of event files begin with their time in seconds."""


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
        # TensorBoard reads files in the order of their names. A run may be resumed within the same
        # second, or where the clock is behind.
        origin = f"{socket.gethostname()}.{os.getpid()}"
        name = f"{_PREFIX}{time.time():.6f}.{origin}"
        newest = max(filter(_DATED.match, os.listdir(self.directory)), default="")
        if found := _DATED.match(newest if newest >= name else ""):
            name = f"{_PREFIX}{int(found[1]) + 1}.000000.{origin}"
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


def _evaluations(directory: str, first: int) -> list[tuple[str, float, int, float]]:
    """Return what ``evaluate`` has logged from a step on: tags, values, steps and times.

    A run that goes on purges what it will log again, and that it won't.
    """
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.CRITICAL)  # it speaks of each file it opens
    try:
        events = EventAccumulator(directory, size_guidance={SCALARS: 0}).Reload()
        return [
            (tag, event.value, event.step, event.wall_time)
            for tag in events.Tags()["scalars"]
            if tag.startswith("evaluate")
            for event in events.Scalars(tag)
            if event.step >= first
        ]
    except Exception as error:  # what damaged records raise is of many kinds
        log.warning("%s: what evaluate logged can't be read (%s)", directory, type(error).__name__)
        return []


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
            purged = self.purge_step
            kept = [] if purged is None else _evaluations(self.log_dir, purged)
            self._experiment = EventWriter(self.log_dir, purged)
            for tag, value, step, time_ in kept:
                self._experiment.add_scalar(tag, value, step, time_)
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def save(self) -> None:
        """Write the hyper-parameters to ``hparams.yaml``, once."""
        writer = self.experiment
        if not os.path.lexists(Path(writer.log_dir) / "hparams.yaml"):
            writer.files.write(writer.log_dir, _write_settings, writer.log_dir, self.hparams)


# -- CSV -------------------------------------------------------------------------------------------


class RowWriter(ExperimentWriter):
    """Lightning's writer of rows, but whole rows are never lost.

    Lightning deletes those that it finds, and is cut off in the middle of them when a new figure
    makes it write all anew.
    """

    def __init__(self, directory: str, purge_step: int | None) -> None:
        """Take a directory, and the step from which its earlier rows are left out."""
        self.purge_step = purge_step
        self.files = Dispensable("Figures")
        self.hparams: dict[str, Any] = {}
        self.files.write(directory, super().__init__, directory)

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Write the hyper-parameters to ``hparams.yaml``."""
        self.hparams.update(params)
        self.files.write(self.log_dir, _write_settings, self.log_dir, self.hparams)

    def save(self) -> None:
        """Write the rows since the last time."""
        if self.metrics:
            self.files.write(self.metrics_file_path, self._append)
        self.metrics = []

    def _append(self) -> None:
        file = Path(self.metrics_file_path)
        if not self._record_new_keys() and file.exists():
            with io.BufferedWriter(atomic_files.append(file)) as lines:
                lines.write(_table(self.metrics_keys, self.metrics, header=False))
        else:
            earlier, _ = _whole_rows(file)
            rows: list[Mapping[str, Any]] = [*earlier, *self.metrics]
            atomic_files.write(file, _table(self.metrics_keys, rows))

    def _check_log_dir_exists(self) -> None:
        """Leave out the rows from the purged step on, and what a killed process left of one."""
        file = Path(self.metrics_file_path)
        if not file.exists():
            return
        rows, damaged = _whole_rows(file)
        first = self.purge_step
        kept = [row for row in rows if first is None or int(row["step"]) < first]
        self.metrics_keys = list(rows[0]) if rows else []
        if damaged:
            log.warning("%s: damaged lines are left out (%d)", file, damaged)
        if rows and (damaged or len(kept) < len(rows)):
            atomic_files.write(file, _table(self.metrics_keys, kept))


def _table(keys: Sequence[str], rows: Sequence[Mapping[str, Any]], header: bool = True) -> bytes:
    """Return rows as the lines of a CSV file."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, keys)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return lines.getvalue().encode()


def _whole_rows(file: Path) -> tuple[list[dict[str, str]], int]:
    """Return the rows of a CSV file, none if it isn't there, and the number of damaged lines.

    A row needs a step, a field for each key, and an end of its line.

    Raises:
        OSError: the file can't be read, or its first line has no key ``step``.
    """
    content = file.read_bytes() if file.exists() else b""
    whole, _, rest = content.rpartition(b"\n")
    reader = csv.reader(io.StringIO(whole.decode(errors="replace"), newline=""))
    damaged = int(rest != b"")
    keys: list[str] | None = None
    rows: list[dict[str, str]] = []
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return rows, damaged
        except csv.Error:
            fields = []
        if keys is None:
            keys = fields
            if "step" not in keys:
                raise OSError("its first line is damaged")
            continue
        row = dict(zip(keys, fields, strict=False))
        text = "".join(fields)
        if len(fields) == len(keys) and row["step"].isdecimal() and not {*"\0\ufffd"} & {*text}:
            rows.append(row)
        else:
            damaged += 1


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


# -- Weights & Biases --------------------------------------------------------------------------


class RunWandbLogger(WandbLogger):
    """Lightning's logger for Weights & Biases, in the run directory."""

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self,
        save_dir: str,
        project: str = "vae-lightning",
        name: str | None = None,
        offline: bool = False,
    ) -> None:
        """Choose where figures and pictures go; a run that is resumed is another one there.

        Args:
            save_dir: the run directory.
            project: of the account that ``wandb login`` has chosen.
            name: of the run there; by default wandb makes one up.
            offline: write into the run directory only, for ``wandb sync``.

        Raises:
            ConfigurationError: wandb is missing, or not logged in.
        """
        if importlib.util.find_spec("wandb") is None:
            raise ConfigurationError("wandb is missing: pip install 'vae-lightning[wandb]'")
        import wandb

        is_offline = offline or os.environ.get("WANDB_MODE") in ("offline", "disabled")
        if not (is_offline or wandb.login(prompt=False)):
            raise ConfigurationError(
                "logger.wandb: not logged in; type wandb login first, or logger.wandb.offline=true"
            )
        settings = wandb.Settings(symlink=False)  # a run directory with links isn't resumed
        super().__init__(
            name=name, save_dir=save_dir, offline=offline, project=project, settings=settings
        )

    @rank_zero_only
    def finish(self) -> None:
        """End the run there, so that the next one of this process is another."""
        if self._experiment is not None:
            self._experiment.finish()
            self._experiment = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run there.

        Raises:
            ConfigurationError: it can't be begun.
        """
        if self._experiment is None:
            Path(self.save_dir or ".").mkdir(parents=True, exist_ok=True)
        try:
            return super().experiment
        except Exception as error:  # wandb's own errors derive from Exception alone
            raise ConfigurationError(
                f"logger.wandb: {_first_line(error)[:200]}; "
                "type logger.wandb.offline=true to log here only"
            ) from error


# -- MLflow ----------------------------------------------------------------------------------------


_SERVER = "MLFLOW_TRACKING_URI"
_Name = Annotated[str, Field(min_length=1)]


class RunMLFlowLogger(MLFlowLogger):
    """Lightning's logger for MLflow, to a server or into the run directory.

    The server is that of ``MLFLOW_TRACKING_URI``, so no file can name it. Without one, each start
    of a run has a database of its own, since an earlier one may come from elsewhere and name
    places.
    """

    @validate_call(config=ConfigDict(strict=True))
    def __init__(
        self, save_dir: str, experiment: _Name = "vae-lightning", name: _Name | None = None
    ) -> None:
        """Choose where figures and pictures go; a run that is resumed is another one there.

        Args:
            save_dir: the run directory.
            experiment: the one that the run belongs to there.
            name: of the run there; by default MLflow makes one up.

        Raises:
            ConfigurationError: mlflow is missing, its server doesn't answer, or the run directory's
                name has a ``?`` in it.
        """
        if importlib.util.find_spec("mlflow") is None:
            raise ConfigurationError("mlflow is missing: pip install 'vae-lightning[mlflow]'")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # 7 take four minutes
        for each in ("mlflow.store.db.utils", "alembic", "lightning.pytorch.loggers.mlflow"):
            logging.getLogger(each).setLevel(logging.ERROR)  # they speak of each table they make
        address = os.environ.get(_SERVER)
        if not address and "?" in save_dir:
            raise ConfigurationError(f"logger=mlflow: no ? may be in the directory {save_dir}")
        self._place = None if address else Path(save_dir).absolute() / "mlflow"
        self.files = Dispensable("MLflow's figures and pictures")
        # A client of a database would make it at once, before there is a run directory.
        with _refused(address):
            super().__init__(experiment, name, address or "http://localhost")
        if address:
            self._refuse_silent(address)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client, of a run that has been begun.

        Raises:
            ConfigurationError: it can't be begun.
        """
        if self._initialized:
            return super().experiment
        with _refused(None if self._place else os.environ.get(_SERVER)):
            if self._place is not None:
                self._make_database(self._place)
            client = super().experiment
            if self._place is not None:  # mlflow has set it, and the next run would go by it
                os.environ.pop(_SERVER, None)
            return client

    def _make_database(self, place: Path) -> None:
        from mlflow.tracking import MlflowClient

        place.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            folder = place / str(number)
            with suppress(FileExistsError):
                folder.mkdir()
                break
        self._tracking_uri, self._artifact_location = f"sqlite:///{folder}/mlflow.db", str(folder)
        self._mlflow_client = MlflowClient(self._tracking_uri)

    @rank_zero_only
    def _refuse_silent(self, address: str) -> None:
        """Ask the server for anything, before there is a run directory.

        Raises:
            ConfigurationError: it doesn't answer.
        """
        with _refused(address):
            self._mlflow_client.search_experiments(max_results=1)

    def _send(self, action: Callable[..., object], *arguments: Any) -> None:
        """Call what sends something, unless that has failed before."""

        def send() -> None:
            try:
                action(*arguments)
            except ConfigurationError:
                raise
            except Exception as error:
                raise OSError(without_password(_first_line(error))[:200]) from error

        self.files.write(self._place or _SERVER, send)

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Send the hyper-parameters."""
        self._send(super().log_hyperparams, params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send figures."""
        self._send(super().log_metrics, metrics, step)

    @rank_zero_only
    def log_picture(self, name: str, picture: Any, step: int) -> None:
        """Send a picture, an array ``[H, W, 3]`` of bytes."""
        self._send(lambda: self.experiment.log_image(self.run_id, picture, key=name, step=step))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Say that the run has ended."""
        if self._initialized:
            self._send(super().finalize, status)


@contextmanager
def _refused(address: str | None) -> Iterator[None]:
    """Turn MLflow's errors, of many kinds, into a line; ``address`` is that of its server."""
    try:
        yield
    except Exception as error:
        instead = f"; set {_SERVER} to a server that answers, or unset it to log here only"
        raise ConfigurationError(
            f"logger.mlflow: {_first_line(error)[:200]}{instead if address else ''}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
