"""SIGTERM, Ctrl-C and SIGHUP end a run, leave nothing or all that was done, and set its status."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from chaos.faults import called_at
from chaos.runs import MINIMAL, SMALL, differences, run_of, signalled, train
from conftest import LONG, SUBSET
from vae_lightning import VAEModule
from vae_lightning.data.mnist import MNISTDataModule
from vae_lightning.runs import atomic_files, log_file, signals
from vae_lightning.runs.checkpoints import VerifiedFiles, is_verified, steps
from vae_lightning.training import experiment
from vae_lightning.training.callbacks.pictures import LatentPicture

TYPED = [*SMALL, MINIMAL, "trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    assert train(directory, *TYPED) == 0
    return run_of(directory)


def raise_signal(number):
    return lambda: os.kill(os.getpid(), number)


BEFORE = {
    "the data is read": (MNISTDataModule, "setup", 1, False),
    "the run directory is made": (experiment, "make_run_directory", 1, True),
    "its configuration is written": (atomic_files, "write", 2, False),
    "the directory is locked": (experiment, "lock_directory", 1, True),
    "its log is opened": (log_file, "LogFile", 1, True),
    "Lightning's set-up": (VAEModule, "configure_optimizers", 1, False),
    "the first checkpoint": (VerifiedFiles, "save_checkpoint", 1, True),
}


@pytest.mark.parametrize("phase", BEFORE)
def test_before_the_training_nothing_is_left_behind(tmp_path, phase):
    owner, function, call, after = BEFORE[phase]
    with called_at(owner, function, call, raise_signal(signal.SIGTERM), after):
        assert train(tmp_path, *TYPED) == 143
    assert list(tmp_path.iterdir()) == []


DURING = {
    "forward": (VAEModule, "training_step", 2, False),
    "a validation's batch": (VAEModule, "measure", 1, False),
    "the epoch's figures": (VAEModule, "on_train_epoch_end", 1, True),
    "a test's batch": (VAEModule, "measure", 2, False),
}


@pytest.mark.parametrize("phase", DURING)
@pytest.mark.slow
def test_what_was_done_is_saved_and_the_rest_is_done_by_a_resume(tmp_path, whole, phase):
    owner, function, call, after = DURING[phase]
    with called_at(owner, function, call, raise_signal(signal.SIGINT), after):
        assert train(tmp_path, *TYPED) == 130
    assert train(tmp_path, f"resume={run_of(tmp_path)}") == 0
    assert differences(run_of(tmp_path), whole) == []


@pytest.fixture(autouse=True)
def hangup():
    """SIGHUP as a terminal's process has it: whatever runs the tests may ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_between_accumulated_gradients_waits_for_the_step(tmp_path, number, capsys):
    with called_at(VAEModule, "training_step", 1, raise_signal(number), after=True):
        assert train(tmp_path, *TYPED, "trainer.accumulate_grad_batches=2") == 128 + number
    assert steps(run_of(tmp_path)) == [1, 0]
    assert "Stopped after 1 steps; what was done is saved. Go on with\n" in capsys.readouterr().out


def test_pictures_at_the_end_are_left_at_once(tmp_path):
    drawn = []
    with (
        called_at(LatentPicture, "draw", 1, raise_signal(signal.SIGTERM)),
        called_at(LatentPicture, "draw", 2, lambda: drawn.append(2)),
    ):
        assert train(tmp_path, *SMALL, "trainer.max_epochs=1") == 143
    assert drawn == []


def test_a_signal_that_python_swallows_is_answered_all_the_same(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)

    class Destroyed:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(signals.Interrupted), signals.heeded():
        Destroyed()
    assert signals.noted() is None


@pytest.mark.parametrize("deferred", [True, False])
def test_where_one_signal_is_heeded_the_next_ones_do_not_disturb_what_is_cleared_away(deferred):
    cleared = []

    def work():
        if deferred:
            signals.defer()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signals.check()
        finally:
            signals.heed()  # Lightning puts back the handlers that it found
            os.kill(os.getpid(), signal.SIGTERM)
            cleared.append(True)

    with pytest.raises(signals.Interrupted), signals.heeded(signal.SIGTERM, once=True):
        work()
    assert cleared == [True]


def test_a_signal_that_a_library_turns_into_an_error_of_its_own_is_answered_all_the_same():
    def cleared_away_wrongly():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise AttributeError

    with pytest.raises(signals.Interrupted), signals.heeded():
        cleared_away_wrongly()


def test_what_cannot_be_saved_after_a_signal_is_told(tmp_path):
    def fill():
        os.kill(os.getpid(), signal.SIGTERM)
        patch.setattr(os, "fsync", refuse)

    def refuse(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch, called_at(VAEModule, "training_step", 2, fill):
        assert str(train(tmp_path, *TYPED)).endswith(
            "step_00000002.ckpt can't be written: No space left on device"
        )
    assert steps(run_of(tmp_path)) == [0]


def test_a_resume_that_is_stopped_at_once_tells_the_step_that_it_stands_at(tmp_path, capsys):
    with signalled([2]):
        assert train(tmp_path, *TYPED) == 143
    run = run_of(tmp_path)
    with called_at(VAEModule, "configure_optimizers", 1, raise_signal(signal.SIGTERM)):
        assert train(tmp_path, f"resume={run}") == 143
    assert capsys.readouterr().out.count("Stopped after 2 steps") == 2
    assert steps(run) == [2, 0]


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_process_in_the_middle_of_a_step(tmp_path):
    """As typed in a terminal: the first one is in a step that takes longer than anybody waits."""
    script = (
        "import sys, time; sys.argv[0] = 'train'\n"
        "from vae_lightning import VAEModule, train\n"
        "step = lambda *_: (print('a step', flush=True), time.sleep(600))\n"
        "VAEModule.training_step = step\n"
        "train.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *SUBSET, MINIMAL],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any("a step" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=LONG)
    assert process.returncode == -signal.SIGINT
    assert time.monotonic() - began < LONG / 2


def test_a_process_that_was_begun_with_nohup_is_not_ended_by_sighup(tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with called_at(VAEModule, "training_step", 2, raise_signal(signal.SIGHUP)):
        assert train(tmp_path, *TYPED) == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_second_sighup_does_not_end_the_process_before_it_has_saved(tmp_path, first):
    """The system sends one when a terminal is closed, and its shell may send another."""

    def hang_up():
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), signal.SIGHUP)

    with called_at(VAEModule, "training_step", 2, hang_up):
        assert train(tmp_path, *TYPED) == 128 + first
    assert steps(run_of(tmp_path)) == [2, 0]


def test_a_second_sighup_does_not_disturb_what_is_cleared_away():
    cleared = []

    def work():
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            cleared.append(True)

    with pytest.raises(signals.Interrupted), signals.heeded():
        work()
    assert cleared == [True]


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_is_saved(tmp_path):
    """Nothing can be printed any more: each write to the terminal fails."""
    script = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "sys.argv[0] = 'train'\n"
        "from vae_lightning import train; train.main()"
    )
    ours, theirs = os.openpty()
    typed = [*SMALL[:-2], "trainer.max_epochs=100000", "callbacks.last.every_n_steps=1000000"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *typed, MINIMAL],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    os.close(theirs)
    shown = b""
    while b"epoch 3/" not in shown:
        shown += os.read(ours, 10_000)
    os.close(ours)
    assert process.wait(LONG) == 128 + signal.SIGHUP
    run = run_of(tmp_path)
    assert is_verified((run / "checkpoints" / "last.ckpt").resolve())
    assert "Stopped after" in (run / "train.log").read_text()
