"""A job that fails ends itself, a signal ends the sweep, and an unfinished sweep is continued."""

import json
import os
import re
import signal
import subprocess
import sys
import weakref

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from conftest import LONG, SUBSET, typed
from vae_lightning import VAEModule
from vae_lightning.sweeps import ledger
from vae_lightning.training import experiment

QUICK = ["trainer.max_epochs=1", "callbacks=minimal", "logger=none", "model.hidden_dims=[8]"]


def sweep(directory, patch, *arguments):
    typed("train", "--multirun", *SUBSET, *QUICK, *arguments, directory=directory, patch=patch)


def jobs_of(directory):
    """Return the directories of the jobs of the only sweep, with the latent dimension of each."""
    [swept] = (directory / "outputs" / "multirun").iterdir()
    configs = {
        path.parent.parent.name: yaml.safe_load(path.read_text())
        for path in swept.glob("*/.hydra/config.yaml")
    }
    return swept, {name: config["model"]["latent_dim"] for name, config in configs.items()}


@pytest.fixture
def broken_off(tmp_path, monkeypatch, capsys):
    """A sweep of three jobs: one is finished, one met a NaN at its third step, one was refused."""
    line = [
        "model.latent_dim=2,3,0",
        "model.kl_weight='${data.val_size}'",
        "data.val_size=1",
        "data.batch_size=40",
    ]
    step = VAEModule.training_step

    def third_fails(module, batch, batch_idx):
        loss = step(module, batch, batch_idx)
        fails = module.model.latent_dim == 3 and module.global_step == 2
        return loss * torch.nan if fails else loss

    with monkeypatch.context() as patch:
        patch.setattr(VAEModule, "training_step", third_fails)
        with pytest.raises(SystemExit) as exit_:
            sweep(tmp_path, patch, *line)
    return line, str(exit_.value.code), capsys.readouterr().out


def test_a_job_that_fails_ends_itself_and_the_sweep_says_so_at_its_end(tmp_path, broken_off):
    _, error, shown = broken_off
    assert re.fullmatch(
        r"error: 2 of 3 jobs failed: job 1, train/\S+ is nan .*; "
        r"job 2, model\.latent_dim=0: must be .*",
        error,
    )
    swept, dims = jobs_of(tmp_path)
    assert dims == {"0": 2, "1": 3}
    assert [(swept / name / "metrics.json").exists() for name in ("0", "1")] == [True, False]
    assert sorted(path.name for path in swept.iterdir()) == ["0", "1", "multirun.yaml"]
    table = shown.split("test ELBO  directory")[1].splitlines()
    figure = json.loads((swept / "0" / "metrics.json").read_text())["figures"]["test/elbo"]
    place = os.path.relpath(swept, tmp_path)
    assert table[1].split() == ["0", "model.latent_dim=2", f"{figure:.2f}", f"{place}/0"]
    assert re.match(rf"\s+1  model.latent_dim=3 +{place}/1: train/\S+ is nan at step 4", table[2])
    assert re.match(r"\s+2  model.latent_dim=0 +model.latent_dim=0: must be greater", table[3])
    assert shown.rstrip().endswith(f"--multirun sweep={place}")


@pytest.mark.slow
def test_a_sweep_is_continued_by_what_its_jobs_are_and_not_by_their_numbers(
    tmp_path, monkeypatch, broken_off, capsys
):
    line, _, _ = broken_off
    swept, _ = jobs_of(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (swept / "0").rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="1 of 4 jobs failed: job 0, "):
        sweep(
            tmp_path,
            monkeypatch,
            "model.latent_dim=0,3,5,2",
            *line[1:],
            f"sweep={os.path.relpath(swept, tmp_path)}",
        )
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing was overwritten
    dims = jobs_of(tmp_path)[1]
    assert dims == {"0": 2, "1": 3, "2": 5}  # the second was gone on with, where it was
    shown = capsys.readouterr().out
    assert f"finished before, in {os.path.relpath(swept, tmp_path)}/0\n" in shown
    assert (swept / "1" / "metrics.json").exists()
    sweep(
        tmp_path, monkeypatch, "model.latent_dim=2,3,5", *line[1:], f"sweep={swept}"
    )  # nothing is left to do
    assert jobs_of(tmp_path)[1] == dims


@pytest.mark.slow
def test_nothing_of_a_job_is_in_memory_when_the_next_one_begins(tmp_path, monkeypatch):
    build, test, built, alive = experiment.build, experiment.test, [], []

    def remembered(config):
        alive.append([each() for each in built if each() is not None])
        parts = build(config)
        built.extend(map(weakref.ref, (parts.module, parts.data, parts.trainer)))
        return parts

    def third_fails(parts):
        if parts.module.model.latent_dim == 4:
            raise FloatingPointError("no test")
        return test(parts)

    monkeypatch.setattr(experiment, "build", remembered)
    monkeypatch.setattr(experiment, "test", third_fails)
    with pytest.raises(SystemExit, match="1 of 4 jobs failed: job 2, no test"):
        sweep(tmp_path, monkeypatch, "model.latent_dim=2,3,4,5")
    assert len(built) == 12
    assert alive == [[], [], [], []]


@pytest.mark.slow
def test_without_sweep_the_same_line_is_a_new_one(tmp_path, monkeypatch):
    for _ in range(2):
        sweep(tmp_path, monkeypatch, "model.latent_dim=2")
    assert len(list(tmp_path.glob("outputs/multirun/*/0/metrics.json"))) == 2


@pytest.mark.parametrize(
    ("stop", "code"),
    [(SystemExit(143), 143), (SystemExit(), 143), (KeyboardInterrupt(), 130)],
    ids=repr,
)
@pytest.mark.slow
def test_a_signal_ends_the_sweep_and_not_the_job_alone(tmp_path, monkeypatch, capsys, stop, code):
    fit, fitted = experiment.fit, []

    def fit_until_stopped(parts):
        fitted.append(parts.module.model.latent_dim)
        if parts.module.model.latent_dim == 3:
            raise stop
        fit(parts)

    monkeypatch.setattr(experiment, "fit", fit_until_stopped)
    with pytest.raises(SystemExit) as exit_:
        sweep(tmp_path, monkeypatch, "model.latent_dim=2,3,4")
    assert exit_.value.code == code
    assert fitted == [2, 3]
    shown = capsys.readouterr().out
    assert re.search(
        r"\n +1  model.latent_dim=3 +\S+/1: interrupted\n +2  model.latent_dim=4 +not run\n", shown
    )
    assert "sweep=outputs/multirun/" in shown.splitlines()[-2]


@pytest.mark.slow
def test_sigterm_ends_a_sweep_in_another_process(tmp_path):
    arguments = ["--multirun", *SUBSET, *QUICK, "trainer.max_epochs=2000", "model.latent_dim=2,3"]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "vae_lightning.train", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    next(line for line in process.stdout if line.startswith("epoch 3/"))
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=LONG)[0]
    assert process.returncode == 143
    assert re.search(r"/0: interrupted\n +1  model.latent_dim=3 +not run\n", rest)
    assert not list(tmp_path.glob("outputs/multirun/*/1"))


REFUSALS = {
    "--multirun seed=1,2 sweep=nosuch": "sweep=nosuch: not the directory of a sweep, in which a "
    "multirun.yaml lies",
    "--multirun seed=1,2 sweep=[a]": "sweep=[a]: not the directory of a sweep",
    "--multirun seed=1,2 sweep=old,old": "sweep=old,old: not the directory of a sweep",
    "--multirun seed=1,2 +sweep=nosuch": "sweep=nosuch: not the directory of a sweep",
    "--multirun seed=1,2 sweep=old hydra.sweep.dir=old": "sweep=old: names the sweep's "
    "directory, so leave out hydra.sweep.dir",
    "--multirun seed=1,2 hydra.sweep.dir=old": "hydra.sweep.dir=old: not empty; sweep=old "
    "continues the sweep in it",
    "sweep=old": "sweep=old: continues a sweep, with --multirun and the sweep's own line",
    "sweep=3": "sweep=3: continues a sweep, with --multirun",
}


@pytest.mark.parametrize(("mistake", "message"), REFUSALS.items(), ids=REFUSALS.keys())
def test_what_is_no_sweep_is_refused_in_a_sentence(tmp_path, monkeypatch, mistake, message):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "multirun.yaml").touch()
    with pytest.raises(SystemExit) as exit_:
        typed("train", *SUBSET, *mistake.split(), directory=tmp_path, patch=monkeypatch)
    assert str(exit_.value.code).startswith(f"error: {message}")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "multirun.yaml"]


def settings(number=0, directory="a"):
    return OmegaConf.create({"job": {"num": number}, "runtime": {"output_dir": directory}})


def test_configurations_are_told_apart_by_type_and_not_by_place():
    def resolve(value, *others):
        return ledger.resolve(OmegaConf.create({"key": value}), settings(*others))

    assert len({resolve(value) for value in (1, 1.0, True, "1", None, "null", [1])}) == 7
    assert resolve("${hydra:runtime.output_dir}/x", 0, "a") == resolve(
        "${hydra:runtime.output_dir}/x", 1, "b"
    )
    assert resolve("${hydra:job.num}", 0) == resolve(0) != resolve("${hydra:job.num}", 1)


@pytest.mark.parametrize(("name", "free"), [("0", "0_2"), ("seed=1", "seed=1_2")])
def test_a_directory_with_files_is_left_alone(tmp_path, name, free):
    (tmp_path / name).mkdir()
    assert ledger.make_job_directory(tmp_path / name) == tmp_path / name
    (tmp_path / name / "file").touch()
    assert ledger.make_job_directory(tmp_path / name) == tmp_path / free


def test_of_equal_jobs_the_finished_one_counts_and_a_broken_one_does_not(tmp_path):
    for number, finished in enumerate((False, True, False)):
        directory = tmp_path / str(number)
        (directory / ".hydra").mkdir(parents=True)
        OmegaConf.save({"seed": 1}, directory / ".hydra" / "config.yaml")
        OmegaConf.save({"hydra": settings()}, directory / ".hydra" / "hydra.yaml")
        if finished:
            (directory / "metrics.json").touch()
    for number, content in enumerate(("seed: [", "", "3", "seed: ${nosuch:1}"), 3):
        (tmp_path / str(number) / ".hydra").mkdir(parents=True)
        (tmp_path / str(number) / ".hydra" / "config.yaml").write_text(content)
    assert ledger.stored_jobs(tmp_path) == {"seed: 1\n": tmp_path / "1"}
