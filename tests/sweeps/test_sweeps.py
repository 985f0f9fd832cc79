"""A job that fails ends itself, a signal ends the sweep, and an unfinished sweep is continued."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from conftest import LONG, SUBSET, typed
from vae_lightning import VAEModule
from vae_lightning.cli import multirun
from vae_lightning.configuration import quoting
from vae_lightning.configuration.hydra_settings import GuardedLoader
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
        r"error: 2 of 3 jobs failed: job 1, train/\S+ is nan .* \(in outputs/multirun/\S+/1\); "
        r"job 2, model\.latent_dim=0: must be .*",
        error,
    )
    swept, dims = jobs_of(tmp_path)
    assert dims == {"0": 2, "1": 3}
    assert [(swept / name / "metrics.json").exists() for name in ("0", "1")] == [True, False]
    assert sorted(path.name for path in swept.iterdir()) == [".lock", "0", "1", "multirun.yaml"]
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
    arguments = [
        "--multirun",
        *SUBSET,
        *QUICK[1:],
        "trainer.max_epochs=2000",
        "model.latent_dim=2,3",
    ]
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
    "--multirun seed=1,2 sweep=[a]": "sweep=['a']: not the directory of a sweep",
    "--multirun seed=1,2 sweep=old,old": "sweep=old,old: not the directory of a sweep",
    "--multirun seed=1,2 +sweep=nosuch": "sweep=nosuch: not the directory of a sweep",
    "--multirun seed=1,2 sweep=": "sweep=: empty; type a path",
    "--multirun seed=1,2 hydra.sweep.dir=": "hydra.sweep.dir=: empty; type a path",
    "--multirun seed=1,2 sweep=''": "sweep='': empty; type a path",
    "--multirun seed=1,2 hydra.sweep.dir=''": "hydra.sweep.dir='': empty; type a path",
    "--multirun seed=interval(1,2)": "seed=interval(1,2): names no values; list them",
    "--multirun seed=range(3,3)": "seed=range(3,3): holds no value; type range(start,stop)",
    "--multirun model=glob(x*)": "model=glob(x*): matches none of conditional, ",
    "--multirun seed=1,2 hydra.sweep.subdir=.jobs": "hydra.sweep.subdir=.jobs: must name a folder",
    "--multirun seed=1,2 hydra.sweep.subdir=.": "hydra.sweep.subdir=.: must name a folder",
    "--multirun seed=glob(*)": "seed=glob(*): ",
    "--multirun model.latent_dim=2,3 seed=choice()": "seed=choice()",
    "--multirun seed=1,2 hydra.sweep.subdir=../..": "hydra.sweep.subdir=",
    "--multirun seed=1,2 hydra.sweep.subdir=/tmp/x": "hydra.sweep.subdir=",
    "--multirun seed=1,2 hydra.sweep.subdir=x/../../y": "hydra.sweep.subdir=",
    "--multirun seed=1,2 hydra.sweep.subdir='${hydra:job.num}/../..'": "hydra.sweep.subdir=",
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


# -- a sweep that runs, another line, foreign files ------------------------------------------------


@pytest.fixture(scope="module")
def swept_once(tmp_path_factory):
    """A directory with a finished sweep of two jobs."""
    directory = tmp_path_factory.mktemp("swept")
    with pytest.MonkeyPatch.context() as patch:
        sweep(directory, patch, "model.latent_dim=2,3")
    return directory


def continued(swept_once, tmp_path):
    """Copy the finished sweep, and return its path from the new directory."""
    shutil.copytree(swept_once / "outputs", tmp_path / "outputs", symlinks=True)
    [swept] = (tmp_path / "outputs" / "multirun").iterdir()
    return swept.relative_to(tmp_path)


def contents(directory):
    files = (file for file in directory.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file.relative_to(directory)): file.read_bytes() for file in files}


def test_a_sweep_that_runs_is_left_alone(swept_once, tmp_path, monkeypatch):
    swept = continued(swept_once, tmp_path)
    running = ledger.Ledger(tmp_path / swept)
    running.begin({})
    running.note(0, ledger.Job([]))
    before = contents(tmp_path)
    with ledger.locked(tmp_path / swept), pytest.raises(SystemExit) as exit_:
        sweep(tmp_path, monkeypatch, "model.latent_dim=2,3", f"sweep={swept}")
    assert exit_.value.code == (
        f"error: sweep={swept}: a sweep is running there; wait for its end, or stop it with Ctrl-C"
    )
    assert contents(tmp_path) == before


def test_a_killed_sweep_s_files_are_cleared_and_another_s_file_among_them_stays(
    swept_once, tmp_path, monkeypatch, capsys
):
    swept = continued(swept_once, tmp_path)
    running = ledger.Ledger(tmp_path / swept)
    running.begin({})
    running.stop()
    (tmp_path / swept / ".jobs" / "notes.txt").write_text("mine")
    sweep(tmp_path, monkeypatch, "model.latent_dim=2,3", f"sweep={swept}")
    assert capsys.readouterr().out.count("finished before, in") == 2
    assert [file.name for file in (tmp_path / swept / ".jobs").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("changed", ["optimizer.learning_rate=0.5", "data.batch_size=64"])
def test_another_line_does_not_go_on_with_a_sweep(swept_once, tmp_path, monkeypatch, changed):
    swept = continued(swept_once, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        sweep(tmp_path, monkeypatch, "model.latent_dim=2,3", changed, f"sweep={swept}")
    key, _, value = changed.partition("=")
    assert str(exit_.value.code).startswith(f"error: sweep={swept}: was begun with {key}=")
    assert f"and this line has {key}={value}" in str(exit_.value.code)
    assert contents(tmp_path) == before


def test_values_may_be_added_to_a_sweep_and_a_line_says_which(
    swept_once, tmp_path, monkeypatch, capsys
):
    swept = continued(swept_once, tmp_path)
    sweep(tmp_path, monkeypatch, "model.latent_dim=2,3,4", f"sweep={swept}")
    shown = capsys.readouterr().out
    assert f"New in {swept}: model.latent_dim=4" in shown
    assert shown.count("finished before, in") == 2
    assert sorted(jobs_of(tmp_path)[1].values()) == [2, 3, 4]


def test_a_shorter_line_says_how_many_jobs_it_leaves(swept_once, tmp_path, monkeypatch, capsys):
    swept = continued(swept_once, tmp_path)
    sweep(tmp_path, monkeypatch, "model.latent_dim=3", f"sweep={swept}")
    shown = capsys.readouterr().out
    assert f"Not of this line, so left as they are in {swept}: jobs: 1" in shown
    assert shown.count("finished before, in") == 1


@pytest.mark.parametrize("content", ["", "hydra: {job: {config_name: other}}"])
def test_another_program_s_multirun_yaml_is_not_overwritten(tmp_path, monkeypatch, content):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "multirun.yaml").write_text(content)
    with pytest.raises(SystemExit, match=r"^error: sweep=theirs: not a sweep of train; its "):
        sweep(tmp_path, monkeypatch, "model.latent_dim=2,3", "sweep=theirs")
    assert contents(tmp_path) == {"theirs/multirun.yaml": content.encode()}


def test_what_a_sweep_did_not_make_is_not_removed_with_it(tmp_path):
    (tmp_path / "sweep" / ".submitit").mkdir(parents=True)
    (tmp_path / "sweep" / ".submitit" / "mine").touch()
    multirun._remove_if_idle(tmp_path / "sweep", tmp_path)
    assert (tmp_path / "sweep" / ".submitit" / "mine").exists()


def test_a_job_goes_on_on_another_processor_and_with_data_at_another_place(
    swept_once, tmp_path, monkeypatch, capsys
):
    swept = continued(swept_once, tmp_path)
    (tmp_path / swept / "1" / "metrics.json").unlink()
    (tmp_path / "moved").symlink_to(Path(SUBSET[1].partition("=")[2]).absolute())
    line = [SUBSET[0], "data.dir=moved", *QUICK, "model.latent_dim=2,3", "trainer.accelerator=cpu"]
    typed("train", "--multirun", *line, f"sweep={swept}", directory=tmp_path, patch=monkeypatch)
    assert "New in" not in capsys.readouterr().out
    assert (tmp_path / swept / "1" / "metrics.json").exists()
    stored = yaml.safe_load((tmp_path / swept / "1" / ".hydra" / "config.yaml").read_text())
    assert stored["trainer"]["accelerator"] == "cpu"
    assert stored["data"]["dir"] == str(tmp_path / "moved")
    assert sorted(jobs_of(tmp_path)[1]) == ["0", "1"]


@pytest.mark.parametrize(
    "content", ["{", "[" * 100_000, '{"described": 3}', '{"figures": {"a": NaN}}']
)
def test_damaged_figures_of_a_job_are_taken_again(swept_once, tmp_path, monkeypatch, content):
    swept = continued(swept_once, tmp_path)
    file = tmp_path / swept / "1" / "metrics.json"
    before = json.loads(file.read_text())["figures"]
    file.write_text(content)
    sweep(tmp_path, monkeypatch, "model.latent_dim=2,3", f"sweep={swept}")
    assert json.loads(file.read_text())["figures"] == before


def test_damaged_figures_of_a_job_are_named_in_the_table(swept_once, tmp_path, monkeypatch):
    swept = tmp_path / continued(swept_once, tmp_path)
    (swept / "1" / "metrics.json").write_text("[" * 100_000)
    monkeypatch.chdir(swept)
    jobs = [ledger.Job([f"seed={number}"], "", swept / number) for number in "01"]
    assert re.search(r"\n +1  seed=1 +1: its files are damaged: \w+Error: ", ledger.table(jobs))


@pytest.mark.parametrize("place", ["0/train.log", ".jobs", "0/checkpoints"])
def test_a_sweep_with_a_link_in_it_is_refused(swept_once, tmp_path, monkeypatch, place):
    swept = continued(swept_once, tmp_path)
    (tmp_path / "victim").mkdir()
    path = tmp_path / swept / place
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "victim")
    with pytest.raises(SystemExit, match="is a link to"):
        sweep(tmp_path, monkeypatch, "model.latent_dim=2,3", f"sweep={swept}")
    assert not list((tmp_path / "victim").iterdir())


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_while_a_job_is_composed_ends_the_sweep(tmp_path, monkeypatch, capsys, stop, code):
    """Within OmegaConf it once came out as another error, and the next job began."""
    check = multirun.check

    def signalled(*arguments):
        os.kill(os.getpid(), stop)
        check(*arguments)
        raise AttributeError("'NoneType' object has no attribute '_invalidate_flags_cache'")

    monkeypatch.setattr(multirun, "_jobs", jobs_unchecked)
    monkeypatch.setattr(multirun, "check", signalled)
    with pytest.raises(SystemExit) as exit_:
        sweep(tmp_path, monkeypatch, "model.latent_dim=2,3")
    assert exit_.value.code == code
    assert "NoneType" not in capsys.readouterr().out
    assert not list(tmp_path.rglob("metrics.json"))


def jobs_unchecked(name, typed):
    """Return the jobs of a line as the sweep does, without checking what they compose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multirun, "check", lambda *_: None)
        return JOBS(name, typed)


JOBS = multirun._jobs


PHASES = {
    "all jobs composed": (GuardedLoader, "load_sweep_config", 1, 0),
    "the second job composed": (GuardedLoader, "load_sweep_config", 4, 1),
    "compared": (multirun, "resolve", 1, 0),
    "built": (experiment, "build", 1, 0),
    "tested": (experiment, "test", 1, 0),
}
"""Where a signal comes: in which call of which function, and how many jobs are finished by then."""


@pytest.mark.parametrize("how", ["turned into another error", "swallowed"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_that_a_library_hides_ends_the_sweep_all_the_same(
    tmp_path, monkeypatch, capsys, phase, how
):
    place, name, call, finished = PHASES[phase]
    function, calls = getattr(place, name), []

    def signalled(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == call:
            with suppress(SystemExit):
                signal.raise_signal(signal.SIGTERM)
            if how != "swallowed":
                raise AttributeError("'NoneType' object has no attribute '_metadata'")
        return function(*arguments, **settings)

    monkeypatch.setattr(place, name, signalled)
    with pytest.raises(SystemExit) as exit_:
        sweep(tmp_path, monkeypatch, "model.latent_dim=2,3")
    assert exit_.value.code == 143
    assert "NoneType" not in capsys.readouterr().out
    if phase == "tested" and how == "swallowed":
        finished = 1  # and the sweep ends then
    assert len(list(tmp_path.rglob("metrics.json"))) == finished
    assert not list(tmp_path.glob("outputs/multirun/*/1"))


def test_a_quick_pass_shows_no_figure_in_the_table(tmp_path, monkeypatch, capsys):
    sweep(tmp_path, monkeypatch, "model.latent_dim=2,3", "trainer.fast_dev_run=true")
    assert capsys.readouterr().out.count("a quick pass, which measures nothing") == 2


NAMES = ["a=b c'd,e[f{g(h#i;jék$l", "~a"]  # each sign alone: runs/test_printed_commands.py


@pytest.mark.parametrize("name", NAMES)
def test_the_line_that_goes_on_with_a_sweep_can_be_pasted(tmp_path, monkeypatch, capsys, name):
    place = quoting.override("hydra.sweep.dir", Path(name))
    with pytest.raises(SystemExit, match="1 of 2 jobs failed"):
        sweep(tmp_path, monkeypatch, "model.latent_dim=0,2", place)
    line = capsys.readouterr().out.rstrip().rpartition("run by:  ")[2]
    assert (tmp_path / name).is_dir()
    words = subprocess.run(
        ["bash", "-c", f'printf "%s\\0" {line}'], capture_output=True, text=True, check=True
    ).stdout.split("\0")[3:-1]
    with pytest.raises(SystemExit, match="1 of 2 jobs failed"):
        typed("train", *words, directory=tmp_path, patch=monkeypatch)
    assert "finished before, in" in capsys.readouterr().out


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
