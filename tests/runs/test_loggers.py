"""A full disk under logs and pictures warns once and stops nothing; a resumed run is shown once."""

import csv
import ctypes
import errno
import gc
import json
import logging
import os
import statistics
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import memory
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

from chaos.faults import Calls, forked
from conftest import DATA, SUBSET, build_module, typed
from vae_lightning.data.mnist import MNISTDataModule
from vae_lightning.runs import loggers
from vae_lightning.runs.log_file import log_to
from vae_lightning.runs.loggers import RunCSVLogger, RunLogger
from vae_lightning.training import experiment
from vae_lightning.training.callbacks.dashboard import Dashboard, Projector
from vae_lightning.training.callbacks.latents import LatentUse
from vae_lightning.training.callbacks.pictures import PriorSamples, Reconstructions

pytestmark = pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs a device that is always full"
)

TENSORBOARD = {"name": "tensorboard", "version": "", "default_hp_metric": False}


@pytest.fixture(autouse=True)
def without_closed_handlers(monkeypatch):
    """Leave out the handlers of an earlier test's command: their output is closed."""
    root = logging.getLogger()
    monkeypatch.setattr(
        root,
        "handlers",
        [
            each
            for each in root.handlers
            if not getattr(getattr(each, "stream", None), "closed", False)
        ],
    )


def fill(descriptor):
    """Let an open file lie on a full disk from now on."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, descriptor)
    os.close(full)


def fill_at(patch, name):
    """Let the disk be full wherever a file of a name is opened from now on."""
    opened = os.open

    def open_(path, *arguments, **others):
        if name in os.path.basename(os.fsdecode(path)):
            return opened("/dev/full", os.O_WRONLY)
        return opened(path, *arguments, **others)

    patch.setattr(os, "open", open_)


def fill_event_file(logger):
    """Let the event file of a logger lie on a full disk.

    TensorBoard's writer opens the file anew for each event, ours doesn't.
    """
    [file] = Path(logger.log_dir).glob("events*")
    file.unlink()
    file.symlink_to("/dev/full")
    for descriptor in Path("/proc/self/fd").iterdir():
        if descriptor.is_symlink() and os.readlink(descriptor) == f"{file} (deleted)":
            fill(int(descriptor.name))


class FullDisk(Callback):
    """Fills the disk under the event file in the middle of the second epoch."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 15:
            fill_event_file(trainer.logger)


def fit(subset, directory, logger, *callbacks):
    torch.manual_seed(0)
    module = build_module(latent_dim=3, hidden_dims=[20])
    drawn = [
        Reconstructions(),
        PriorSamples(),
        LatentUse(count=80),
        Dashboard(),
        Projector(count=10),
    ]
    saved = ModelCheckpoint(
        directory / "checkpoints",
        filename="last",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    silent = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        default_root_dir=directory,
        accelerator="cpu",
        max_epochs=4,
        log_every_n_steps=1,
        logger=logger,
        callbacks=[*drawn, *callbacks, saved],
        **silent,
    )
    trainer.fit(module, subset)
    return module


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of a training that nothing disturbs."""
    data = MNISTDataModule(name="mnist_subset", dir=str(DATA), batch_size=32, val_size=80)
    data.prepare_data()
    data.setup()
    return fit(data, tmp_path_factory.mktemp("undisturbed"), False).state_dict()


def assert_equal(weights, others):
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def no_longer_written(what, where, number=errno.ENOSPC):
    """Return the warning that a run gives once about files that it can do without."""
    return f"{what} in {where} are no longer written ({os.strerror(number)}); the run goes on"


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- TensorBoard ----------------------------------------------------------------------------------


@contextmanager
def threads_ended(writers=frozenset()):
    """Wait for the threads that the body starts: what they raise later would be another test's.

    A writer's thread may outlive the training that it has ended. It reads from a queue for ever.
    """
    before = set(threading.enumerate())
    yield
    for thread in {*threading.enumerate(), *writers} - (before - writers):
        if isinstance(thread, _AsyncWriterThread):
            thread.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_ends_a_training_with_lightning_s_own_logger(subset, tmp_path):
    with threads_ended(), pytest.raises((ValueError, OSError)):
        fit(subset, tmp_path, TensorBoardLogger(tmp_path, **TENSORBOARD), FullDisk())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_writer_thread_ends_a_training_with_lightning_s_own_logger(
    subset, tmp_path, monkeypatch
):
    logger = TensorBoardLogger(tmp_path, **TENSORBOARD)
    worker = logger.experiment._get_file_writer().event_writer._async_writer._worker
    monkeypatch.setattr(worker._record_writer, "write", lambda content: os.write(-1, content))
    with threads_ended({worker}), pytest.raises((ValueError, OSError)):
        fit(subset, tmp_path, logger)


def test_a_full_disk_under_tensorboard_is_told_once_and_changes_nothing_else(
    subset, tmp_path, caplog, undisturbed, capfd
):
    threads = threading.active_count()
    logger = RunLogger(tmp_path, **TENSORBOARD)
    module = fit(subset, tmp_path, logger, FullDisk())
    folder = tmp_path / "tensorboard"
    assert warnings_of(caplog) == [no_longer_written("TensorBoard's files", folder)]
    assert "Traceback" not in capfd.readouterr().err
    assert_equal(module.state_dict(), undisturbed)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 40
    assert_equal(saved["state_dict"], undisturbed)
    assert len(list((tmp_path / "images").iterdir())) == 8
    assert not (
        folder / "projector_config.pbtxt"
    ).exists()  # written at the end, by which it has been given up
    assert threading.active_count() == threads  # what writes from no thread has none that dies


def test_a_folder_that_cannot_be_made_is_told_once_and_changes_nothing_else(
    subset, tmp_path, caplog, undisturbed
):
    (tmp_path / "tensorboard").write_text("in the way")
    assert_equal(
        fit(subset, tmp_path, RunLogger(tmp_path, **TENSORBOARD)).state_dict(), undisturbed
    )
    told = no_longer_written("TensorBoard's files", tmp_path / "tensorboard", errno.EEXIST)
    assert warnings_of(caplog) == [told]


def test_a_full_disk_under_the_projector_is_told_once(
    subset, tmp_path, caplog, undisturbed, monkeypatch
):
    fill_at(monkeypatch, "tensors.tsv")
    assert_equal(
        fit(subset, tmp_path, RunLogger(tmp_path, **TENSORBOARD)).state_dict(), undisturbed
    )
    told = no_longer_written("TensorBoard's files", tmp_path / "tensorboard")
    assert warnings_of(caplog) == [told]
    assert not (tmp_path / "tensorboard" / "projector_config.pbtxt").exists()


def test_what_is_logged_is_with_the_system_at_once(tmp_path):
    logger = RunLogger(tmp_path, **TENSORBOARD)
    for step in range(100):
        logger.log_metrics({"train/loss": float(step)}, step)
        assert EventAccumulator(logger.log_dir).Reload().Scalars("train/loss")[-1].value == step
    logger.finalize("success")


@pytest.mark.parametrize("torn", [0, 5])
def test_a_resumed_logger_purges_the_steps_that_come_again(tmp_path, torn):
    logger = RunLogger(tmp_path, **TENSORBOARD)
    for step in (10, 20, 30):
        logger.log_metrics({"train/loss": 1.0}, step)
        logger.experiment.add_histogram("latents/kl", torch.ones(3), step)
    logger.finalize("success")
    [file] = Path(logger.log_dir).glob("events*")
    os.truncate(file, file.stat().st_size - torn)  # as a kill or a full disk leaves it
    for purge_step, steps in ((20, [20]), (None, [40])):
        resumed = RunLogger(tmp_path, **TENSORBOARD)  # within the same second, mostly
        resumed.purge_step = purge_step
        for step in steps:
            resumed.log_metrics({"train/loss": 2.0}, step)
            resumed.finalize("success")  # as after fit, with the test still to come
            resumed.log_metrics({"train/elbo": 2.0}, step)
        resumed.finalize("success")
    events = EventAccumulator(
        logger.log_dir, {"histograms": 0}
    ).Reload()  # by itself it keeps one of them
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (10, 1),
        (20, 2),
        (40, 2),
    ]
    assert [event.step for event in events.Scalars("train/elbo")] == [20, 40]
    assert [event.step for event in events.Histograms("latents/kl")] == [10]


def test_what_evaluate_logged_outlives_a_run_that_goes_on(tmp_path):
    logger = RunLogger(tmp_path, **TENSORBOARD)
    for step in (10, 20):
        logger.log_metrics({"train/loss": 1.0}, step)
        logger.log_metrics({"evaluate/test/elbo": -100.0 - step}, step)
    logger.finalize("success")
    for _ in range(2):  # and one that goes on twice
        resumed = RunLogger(tmp_path, **TENSORBOARD)
        resumed.purge_step = 20
        resumed.log_metrics({"train/loss": 2.0}, 20)
        resumed.finalize("success")
    events = EventAccumulator(logger.log_dir).Reload()
    assert [event.value for event in events.Scalars("evaluate/test/elbo")] == [-110, -120]
    assert [event.value for event in events.Scalars("train/loss")] == [1, 2]


@pytest.mark.parametrize("behind", [0.5, 2, 100_000])
def test_where_the_clock_is_behind_at_a_resume_each_step_is_shown_once_and_in_order(
    tmp_path, monkeypatch, behind
):
    """As on another node: TensorBoard reads event files in the order of their names."""
    now = time.time()
    for clock, purge_step, logged in ((0, None, (10, 20, 30)), (-behind, 20, (20, 30))):
        monkeypatch.setattr(loggers.time, "time", lambda clock=clock: now + clock)
        for _ in range(2):  # as fit and test, and as a run that is resumed twice
            logger = RunLogger(tmp_path, **TENSORBOARD)
            logger.purge_step = purge_step
            for step in logged:
                logger.log_metrics({"train/loss": step + clock}, step)
            logger.finalize("success")
            purge_step = purge_step or 10
    events = EventAccumulator(logger.log_dir).Reload().Scalars("train/loss")
    expected = [(10, 10), (20, pytest.approx(20 - behind)), (30, pytest.approx(30 - behind))]
    assert [(event.step, event.value) for event in events] == expected


# -- pictures and lines ---------------------------------------------------------------------------


def test_a_full_disk_under_the_pictures_is_told_once(
    subset, tmp_path, caplog, undisturbed, monkeypatch
):
    fill_at(monkeypatch, "reconstructions_002.png")
    assert_equal(fit(subset, tmp_path, False).state_dict(), undisturbed)
    told = no_longer_written("Pictures", tmp_path / "images")
    assert warnings_of(caplog) == [told]
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == [
        "prior_samples_001.png",
        "reconstructions_001.png",
    ]


def test_a_full_disk_under_the_log_file_is_told_once(tmp_path, caplog, capfd):
    log = logging.getLogger("vae_lightning")
    caplog.set_level(logging.INFO)
    with log_to(tmp_path / "train.log"):
        log.info("one")
        fill(logging.getLogger().handlers[-1].stream.fileno())
        log.info("two")
        log.info("three")
    told = no_longer_written("Lines", tmp_path / "train.log")
    assert [record.getMessage() for record in caplog.records] == ["one", "two", told, "three"]
    assert not capfd.readouterr().err


def test_a_logged_line_holds_no_control_characters_but_line_ends_and_tabs(tmp_path):
    with log_to(tmp_path / "train.log"):
        logging.getLogger("vae_lightning").warning("a\x1b[31m\rb\n\tc é")
    line = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert line.endswith("a\\x1b[31m\\rb\n\tc é\n")


def test_a_mistake_in_a_logged_line_is_still_shown(tmp_path, capfd):
    with log_to(tmp_path / "train.log"):
        logging.getLogger().handlers[-1].emit(
            logging.makeLogRecord({"msg": "%d", "args": ("word",)})
        )
    assert "TypeError" in capfd.readouterr().err


def train_with(obstacles, directory, patch, *arguments):
    """Train by the command; put obstacles into the run directory before the first step."""
    original = experiment.fit

    def fit(parts):
        obstacles(parts)
        original(parts)

    patch.setattr(experiment, "fit", fit)
    typed(
        "train",
        *SUBSET,
        "trainer.max_epochs=2",
        "model.latent_dim=3",
        *arguments,
        directory=directory,
        patch=patch,
    )


def test_a_run_with_a_full_disk_under_all_that_it_can_do_without_ends_as_it_would(
    tmp_path, trained, monkeypatch, capfd
):
    def obstacles(parts):
        assert parts.trainer.logger.experiment
        fill_event_file(parts.trainer.logger)
        fill(logging.getLogger().handlers[-1].stream.fileno())
        fill_at(monkeypatch, "prior_samples_001.png")

    train_with(obstacles, tmp_path, monkeypatch)
    shown = capfd.readouterr()
    assert shown.out.count("no longer written") == 3
    assert not shown.err
    [run] = (tmp_path / "outputs" / "train").iterdir()
    ended, would = (
        json.loads((each / "metrics.json").read_text())["figures"] for each in (run, trained)
    )
    assert ended == would
    for name in ("best", "last"):
        ours, theirs = (
            torch.load(each / "checkpoints" / f"{name}.ckpt", weights_only=True)
            for each in (run, trained)
        )
        assert_equal(ours["state_dict"], theirs["state_dict"])


def test_a_full_disk_under_the_figures_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(
        SystemExit, match=rf"metrics.json can't be written: {os.strerror(errno.ENOSPC)}"
    ):
        train_with(
            lambda parts: fill_at(monkeypatch, ".metrics.json.tmp"),
            tmp_path,
            monkeypatch,
        )


# -- CSV ------------------------------------------------------------------------------------------


def log_rows(kind, directory, purge_step=None, steps=(10, 20, 30)):
    logger = kind(directory, name="csv", version="", flush_logs_every_n_steps=1)
    logger.purge_step = purge_step
    for step in steps:
        logger.log_metrics(
            {"train/loss": step + (purge_step or 0)} | ({"val/elbo": -step} if step == 30 else {}),
            step,
        )
    return Path(logger.log_dir) / "metrics.csv"


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_lightning_s_own_table_loses_the_rows_of_before(tmp_path):
    log_rows(CSVLogger, tmp_path)
    assert "10" not in log_rows(CSVLogger, tmp_path, steps=(20, 30)).read_text()


def test_a_resumed_table_keeps_its_rows_up_to_the_step_that_comes_again(tmp_path):
    log_rows(RunCSVLogger, tmp_path)
    with log_rows(RunCSVLogger, tmp_path, purge_step=20, steps=(20, 30)).open(newline="") as file:
        rows = [
            (int(row["step"]), row["train/loss"], row["val/elbo"]) for row in csv.DictReader(file)
        ]
    assert rows == [(10, "10", ""), (20, "40", ""), (30, "50", "-30")]


def test_a_full_disk_under_the_table_is_told_once(tmp_path, caplog, monkeypatch):
    logger = RunCSVLogger(tmp_path, name="csv", version="")
    fill_at(monkeypatch, "metrics.csv")
    for step in (99, 199):
        logger.log_metrics({"train/loss": 1.0}, step)
    logger.finalize("success")
    assert not logger.experiment.metrics  # what can't be written isn't kept either
    assert len(warnings_of(caplog)) == 1


def logged_rows(directory, *end):
    """Write the rows of three steps in a fork that ends while it does so; return those left."""

    def run():
        with Calls(*end) as calls:
            log_rows(RunCSVLogger, directory)
        (directory / "called").write_text(str(len(calls.called)))
        return 0

    directory.mkdir()
    status = forked(run, directory / "output")
    assert status == (-9 if end else 0), (directory / "output").read_text()
    return rows_of(directory)


def rows_of(directory):
    """Return the steps and the losses of a table; none if it isn't there."""
    file = directory / "csv" / "metrics.csv"
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(lines)]


ROWS = [("10", "10"), ("20", "20"), ("30", "30")]
"""The last one has a figure more, for which the table is written anew."""


def test_whenever_it_ends_a_table_holds_the_rows_that_were_written_before(tmp_path):
    assert logged_rows(tmp_path / "whole") == ROWS
    counts = []
    for position in range(int((tmp_path / "whole" / "called").read_text())):
        rows = logged_rows(tmp_path / str(position), position, "after")
        assert rows == ROWS[: len(rows)]
        counts.append(len(rows))
    assert counts == sorted(counts)
    assert set(counts) == {0, 1, 2, 3}


DAMAGES = {
    "cut": lambda content: content[:-4],
    "zeros": lambda content: content + bytes(4096),
    "zeros within": lambda content: content.replace(b"30.0", bytes(4)).replace(b"30", bytes(2)),
    "no text": lambda content: content + b"\xff\xfe,\x80\r\n",
    "no step": lambda content: content.replace(b"\n30,", b"\n,"),
    "a field less": lambda content: content + b"40\r\n",
    "a long field": lambda content: content + b"4" * 200_000 + b",40,1\r\n",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_of_a_table_is_left_out_and_the_others_stay(tmp_path, caplog, damage):
    file = log_rows(RunCSVLogger, tmp_path)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    log_rows(RunCSVLogger, tmp_path, purge_step=100, steps=(100,))
    kept = ROWS[:2] if damage in ("cut", "zeros within", "no step") else ROWS
    assert rows_of(tmp_path) == [*kept, ("100", "200")]
    assert warnings_of(caplog) == [f"{file}: damaged lines are left out (1)"]


def test_a_table_that_is_none_of_ours_stays(tmp_path, caplog):
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").write_text("name,mark\r\nAda,1\r\n")
    log_rows(RunCSVLogger, tmp_path)
    assert (tmp_path / "csv" / "metrics.csv").read_bytes() == b"name,mark\r\nAda,1\r\n"
    assert "are no longer written (its first line is damaged)" in warnings_of(caplog)[0]


def test_a_new_run_does_not_log_into_the_table_of_an_earlier_one(tmp_path, monkeypatch):
    line = (*SUBSET, "logger=csv", "logger.csv.save_dir=mine", "trainer.max_epochs=1")
    line = (*line, "callbacks=minimal", "model.hidden_dims=[4]")
    typed("train", *line, directory=tmp_path, patch=monkeypatch)
    table = tmp_path / "mine" / "csv" / "metrics.csv"
    before, runs = table.read_bytes(), os.listdir(tmp_path / "outputs" / "train")
    with pytest.raises(SystemExit, match=r"save_dir=mine: mine/csv holds what another run has"):
        typed("train", *line, directory=tmp_path, patch=monkeypatch)
    assert table.read_bytes() == before
    assert os.listdir(tmp_path / "outputs" / "train") == runs
    resumed = ("trainer.max_epochs=2", f"resume=outputs/train/{runs[0]}")
    typed("train", *resumed, *line[2:4], directory=tmp_path, patch=monkeypatch)
    assert len(table.read_text().splitlines()) > len(before.splitlines())


# -- memory ---------------------------------------------------------------------------------------


class Mallinfo(ctypes.Structure):
    """What glibc says of the memory that it has given away."""

    names = (
        "arena",
        "ordblks",
        "smblks",
        "hblks",
        "hblkhd",
        "usmblks",
        "fsmblks",
        "uordblks",
        "fordblks",
        "keepcost",
    )
    _fields_ = [(name, ctypes.c_size_t) for name in names]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
@pytest.mark.slow
def test_of_what_an_epoch_allocates_only_a_leak_is_kept(tmp_path, monkeypatch):
    """The campaign's own leak shows that one would be seen.

    Tensors and buffers are counted in bytes, Python's small objects at 64 each.
    """
    from matplotlib.figure import Figure

    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    figures = []

    def used():
        figures.extend(each for each in gc.get_objects() if type(each) is Figure)
        gc.collect()
        given = mallinfo()
        return given.uordblks + given.hblkhd + 64 * sys.getallocatedblocks()

    few = [f"callbacks.{name}.count=20" for name in (*memory.DRAWN, "projector")]
    monkeypatch.chdir(tmp_path)
    typed_ = [each for each in memory.OVERRIDES if not each.startswith("trainer.max_epochs=")]
    monkeypatch.setattr(sys, "argv", ["train", *typed_, *few, "trainer.max_epochs=6"])
    gc.collect()  # of earlier tests
    gc.disable()  # so that it isn't luck if no figure waits to be freed
    try:
        sizes = memory.watched(True, used)
    finally:
        gc.enable()
    assert not figures
    # What a library allocates once, in one of the epochs, isn't one.
    grown = statistics.median(sizes[epoch + 1] - sizes[epoch] for epoch in range(1, 6))
    assert grown == pytest.approx(memory.LEAK, abs=40_000)
