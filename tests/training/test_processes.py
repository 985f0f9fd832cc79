"""Several processes train the model that one would, write the same files, and end alike."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chaos.runs import once
from conftest import LONG, SUBSET, typed
from vae_lightning.data.batches import Batches, Share, ShuffledBatches
from vae_lightning.data.protocol import binarize

pytestmark = pytest.mark.slow

# 317 images: in batches of 64 a last one of 61, which two can't share evenly.
TRAIN = (
    *SUBSET,
    "data.val_size=83",
    "model.hidden_dims=[16]",
    "model.latent_dim=3",
    "trainer.max_epochs=10",
)
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "data.batch_size=32")
BARE = ("callbacks=minimal", "logger=none")


def command(*overrides):
    return [sys.executable, "-u", "-m", "vae_lightning.train", *once(*TRAIN, *overrides)]


def run(directory, *overrides):
    """Train in a new process and return its output."""
    done = subprocess.run(
        command(*overrides), cwd=directory, capture_output=True, text=True, timeout=LONG
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def state(run_directory):
    return torch.load(run_directory / "checkpoints" / "last.ckpt", weights_only=True)


def largest_difference(one, another):
    return max(
        float((one["state_dict"][name] - another["state_dict"][name]).abs().max())
        for name in one["state_dict"]
    )


def figures(run_directory):
    return json.loads((run_directory / "metrics.json").read_text())["figures"]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A directory with a finished run of two processes in it, and what it printed."""
    directory = tmp_path_factory.mktemp("two")
    return directory / "run", run(
        directory, *TWO, "data.binarization=stochastic", "hydra.run.dir=run"
    )


# -- shares ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("images", [0, 1, 4, 61, 64])
def test_shares_are_disjoint_complete_and_even(images, processes):
    shares = [
        list(range(images))[Share(number, processes).rows(images)] for number in range(processes)
    ]
    assert [row for share in shares for row in share] == list(range(images))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("drawing", [None, binarize])
def test_the_batches_of_all_processes_together_are_those_of_one(drawing):
    images, labels = torch.arange(13 * 4).view(13, 1, 2, 2).byte(), torch.arange(13)
    indices = torch.tensor([0, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12])

    def loader(batch_size, share):
        return ShuffledBatches(images, labels, indices, batch_size, 1, drawing, share=share)

    alone = list(loader(4, Share()))
    shared = [list(loader(2, Share(number, 2))) for number in range(2)]
    assert [len(batches) for batches in shared] == [len(alone)] * 2
    for whole, *parts in zip(alone, *shared, strict=True):
        for field in ("x", "y", "indices"):
            assert torch.equal(
                torch.cat([getattr(part, field) for part in parts]), getattr(whole, field)
            )
        assert [part.total for part in parts] == [len(whole.x)] * 2
        assert [part.first for part in parts] == [0, len(parts[0].x)]
    assert [len(batch.x) for batch in loader(2, Share(1, 2)).of_all()] == [4, 4, 3]


def test_processes_without_an_image_of_a_batch_get_an_empty_one():
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    sizes = [
        [
            len(batch.x)
            for batch in Batches(images, torch.zeros(3), torch.arange(3), 1, Share(number, 2))
        ]
        for number in range(2)
    ]
    assert sizes == [[1, 0], [1, 1]]


# -- two processes --------------------------------------------------------------------------------


def test_two_processes_train_what_one_does_with_batches_of_both(two, tmp_path):
    run(tmp_path, "data.batch_size=64", "data.binarization=stochastic", "hydra.run.dir=run", *BARE)
    alone, together = state(tmp_path / "run"), state(two[0])
    assert together["global_step"] == alone["global_step"] == 50
    assert largest_difference(alone, together) < 1e-5
    expected = figures(tmp_path / "run")
    assert {name: figures(two[0])[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    # Training figures are means over the images of both.
    sums = [each["figures"]["window"]["sums"] for each in (alone, together)]
    assert torch.allclose(*sums, atol=1e-3)
    assert len({each["figures"]["window"]["examples"] for each in (alone, together)}) == 1


def test_two_processes_move_a_codebook_as_one_does(tmp_path):
    small = ("model=vqvae", "model.codes=8", "model.channels=[4,6]", "model.residual_channels=4")
    line = [each for each in TRAIN if not each.startswith(("model.", "trainer."))]
    ends = []
    for name, others in (("one", ("data.batch_size=64",)), ("two", TWO)):
        whole = (*line, *small, *BARE, *others, "trainer.max_steps=3", f"hydra.run.dir={name}")
        command = [sys.executable, "-m", "vae_lightning.train", *whole]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LONG)
        assert (done.returncode, done.stderr) == (0, "")
        ends.append(state(tmp_path / name))
    # Of two codes that lie equally near, a last bit decides: so a few choices differ.
    for end in ends:
        counts, sums = (
            end["state_dict"].pop(f"model.quantizer.{each}") for each in ("counts", "sums")
        )
        assert counts.sum() > 100
        assert sums.abs().max() > 1
    assert largest_difference(*ends) < 1e-3
    assert ends[0]["state_dict"]["model.quantizer.codebook"].std() > 0.01


def test_what_two_processes_leave_is_written_once(two):
    directory, printed = two
    assert (
        len({path.suffix for path in (directory / "tensorboard").glob("events*")}) == 1
    )  # it ends with the process's number
    names = [path.name for path in (directory / "images").glob("*_010.png")]
    assert {"reconstructions_010.png", "prior_samples_010.png", "traversals_010.png"} <= set(names)
    assert len(re.findall(r"^epoch 10/10 ", printed, re.MULTILINE)) == 1
    assert printed.count("test ELBO") == 1
    log = (directory / "train.log").read_text()
    assert len(re.findall("epoch 10/10 ", log)) == 1


def stop(directory, child, overrides):
    """Send SIGTERM to one process of a run after two epochs; return exit code and output.

    ``child``: to the other process, and not to the first one.
    """
    with subprocess.Popen(
        command(*TWO, *BARE, *overrides), cwd=directory, stdout=subprocess.PIPE, text=True
    ) as process:
        next(line for line in process.stdout if line.startswith("epoch 2/"))
        number = process.pid
        if child:
            number = int(
                Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[-1]
            )
        subprocess.run(["kill", f"-{signal.SIGTERM}", str(number)], check=True)
        said = process.stdout.read()
    return process.returncode, said


@pytest.mark.skipif(sys.platform != "linux", reason="finds the other process in /proc")
def test_a_signal_to_one_process_ends_all_at_the_same_step_and_the_resumed_run_is_the_same_bitwise(
    tmp_path, two, monkeypatch
):
    drawn = "data.binarization=stochastic"
    code, said = stop(tmp_path, True, ("trainer.max_epochs=300", drawn, "hydra.run.dir=run"))
    assert code == 143
    assert re.match(r"(epoch .*\n)*Stopped after \d+ steps; what was done is saved\.", said)
    step = state(tmp_path / "run")["global_step"]
    epochs = max(10, step // 5 + 3)
    resumed = ("resume=run", f"trainer.max_epochs={epochs}", "trainer.accelerator=cpu")
    again = [sys.executable, "-m", "vae_lightning.train", *resumed]
    subprocess.run(again, cwd=tmp_path, check=True, capture_output=True, timeout=LONG)
    uninterrupted = two[0]
    if epochs > 10:  # the machine was so busy that the signal came late
        uninterrupted = tmp_path / "uninterrupted"
        named = (f"trainer.max_epochs={epochs}", drawn, f"hydra.run.dir={uninterrupted}")
        run(tmp_path, *TWO, *BARE, *named)
    one, another = state(tmp_path / "run"), state(uninterrupted)
    assert one["global_step"] == another["global_step"] > step
    assert largest_difference(one, another) == 0
    assert figures(tmp_path / "run") == figures(uninterrupted)
    # One process goes on with the same batches; three can't share them.
    longer = ("resume=run", f"trainer.max_epochs={epochs + 2}", "trainer.accelerator=cpu")
    line = [*again[:3], *longer, "trainer.devices=1"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0
    assert "Not bitwise the run that it was: processes 2 then, 1 now" in done.stdout
    problem = r"trainer\.devices=3: the run's batches of 64 can't be shared by 3 processes$"
    with pytest.raises(SystemExit, match=problem):
        typed("train", *longer, "trainer.devices=3", directory=tmp_path, patch=monkeypatch)


def test_what_goes_wrong_in_all_processes_is_told_once(tmp_path):
    line = command(*TWO, *BARE, "optimizer.learning_rate=1e30", "hydra.run.dir=run")
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: train/loss is nan at step \d; try a lower optimizer\.learning_rate\n"
        r"Its files, saved up to step 0: .*\n",
        done.stderr,
    )


MISTAKES = {
    "--multirun seed=1,2 trainer=ddp": (
        "trainer.devices=2: a job of a sweep is one process; without --multirun the first is"
    ),
    "--multirun seed=1,2 hydra/launcher=submitit_local": (
        "hydra/launcher=submitit_local: not found"
    ),
    "trainer=ddp trainer.num_nodes=2": (
        "trainer.devices=2 trainer.num_nodes=2: start the processes by torchrun or srun"
    ),
    "trainer.devices=100000": "trainer.devices=100000: more processes than the",
    "trainer.devices=0": "trainer.devices=0: must be greater than 0",
    "trainer.devices=auto": "trainer.devices=auto: must be a valid integer",
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.items(), ids=MISTAKES.keys())
def test_what_can_not_be_started_is_refused_in_a_sentence(tmp_path, monkeypatch, mistake, message):
    with pytest.raises(SystemExit) as exit_:
        typed(
            "train",
            *SUBSET,
            *BARE,
            "trainer.accelerator=cpu",
            *mistake.split(),
            directory=tmp_path,
            patch=monkeypatch,
        )
    assert message in str(exit_.value.code)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_more_processes_than_the_configuration_knows_of_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(SystemExit) as exit_:
        typed("train", *SUBSET, *BARE, directory=tmp_path, patch=monkeypatch)
    assert (
        str(exit_.value.code)
        == "error: trainer.devices=1 trainer.num_nodes=1: 1 of one run, where srun has started 2"
    )
    assert not list(tmp_path.iterdir())
