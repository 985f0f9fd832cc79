"""Summaries average what is finished, once for each seed, and equal settings only."""

import csv
import json
import os
import re
import struct

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from conftest import SUBSET, run, typed
from vae_lightning.runs.loggers import _checksum
from vae_lightning.sweeps import charts, summaries, tables

PROTOCOL = {
    "data": "mnist",
    "binarization": "none: grey levels",
    "dequantize": False,
    "likelihood": "bernoulli",
    "meaning": "grey levels as probabilities",
    "samples": 1,
    "evaluation_seed": 1,
}
DESCRIBED = {
    f"test/{name}": {"label": label, "unit": "nats per image", "better": better}
    for name, label, better in (
        ("loss", "loss", "min"),
        ("elbo", "ELBO", "max"),
        ("log_likelihood", "log-likelihood", "max"),
        ("kl", "KL", "none"),
    )
}
TERMS = ["test/elbo", "test/log_likelihood", "test/kl"]
NAN = """2026-01-02 03:04:05,678 VAE with 2 latents
2026-01-02 03:04:06,678 Traceback (most recent call last):
  File "module.py", line 1, in training_step
FloatingPointError: train/loss is nan at step 4
"""


def leave(directory, elbo=None, kl=20.0, *, seed=1, log="", protocol=PROTOCOL, other=None, **model):
    """Write what a run leaves: finished where an ELBO is given."""
    (directory / ".hydra").mkdir(parents=True)
    config = {
        "seed": seed,
        "resume": None,
        "model": {"latent_dim": 2, "hidden_dims": [400], **model},
        **(other or {}),
    }
    (directory / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (directory / "train.log").write_text(log)
    if elbo is not None:
        figures = {
            "test/loss": -elbo,
            "test/elbo": elbo,
            "test/log_likelihood": elbo + kl,
            "test/kl": kl,
        }
        content = {"figures": figures, "described": DESCRIBED, "protocol": protocol}
        content |= {"comparison": "test/elbo", "terms": TERMS, "run": {"test_examples": 10_000}}
        (directory / "metrics.json").write_text(json.dumps(content))
    return directory


def summarized(directory, patch, *arguments):
    """Run the command without writing charts, which takes longest; return its directory."""
    patch.setattr(Figure, "savefig", lambda *arguments, **settings: None)
    typed("summarize", *arguments, directory=directory, patch=patch)
    return max(
        (directory / "outputs" / "summarize").iterdir(), key=lambda path: path.stat().st_mtime_ns
    )


def rows_of(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


ELBOS = {2: (-140.25, -141.5, -139.0), 20: (-105.5, -105.0, -105.125), 5: (-120.0, -118.5)}
"""For each number of latents, by seed."""


@pytest.fixture
def sweep(tmp_path):
    for latent_dim, elbos in ELBOS.items():
        for seed, elbo in enumerate(elbos, 1):
            leave(
                tmp_path / "sweep" / f"{latent_dim}_{seed}",
                elbo,
                18.0 + seed,
                seed=seed,
                latent_dim=latent_dim,
            )
    return tmp_path / "sweep"


def test_means_and_sample_deviations_are_those_of_the_seeds_the_best_first(
    sweep, tmp_path, monkeypatch, capsys
):
    rows = rows_of(summarized(tmp_path, monkeypatch, "sweep") / "summary.csv")
    assert [row["model.latent_dim"] for row in rows] == ["20", "5", "2"]
    for row in rows:
        elbos = ELBOS[int(row["model.latent_dim"])]
        assert int(row["n"]) == len(elbos)
        for name, values in (("test/elbo", elbos), ("test/kl", [19.0, 20.0, 21.0][: len(elbos)])):
            assert float(row[f"{name} mean"]) == pytest.approx(np.mean(values), rel=1e-12)
            assert float(row[f"{name} std"]) == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert set(rows[0]) == {"model.latent_dim", "n"} | {
        f"test/{name} {what}"
        for name in ("loss", "elbo", "log_likelihood", "kl")
        for what in ("mean", "std")
    }
    shown = capsys.readouterr().out
    likelihoods = [elbo + kl for elbo, kl in zip(ELBOS[20], (19.0, 20.0, 21.0), strict=True)]
    likelihood = f"{np.mean(likelihoods):.2f} ± {np.std(likelihoods, ddof=1):.2f}"
    row = rf"model.latent_dim=20  3  -105\.21 ± 0\.26 +{likelihood}  20\.00 ± 1\.00"
    assert re.search(rf"\n    1  {row}\n", shown)
    assert re.search(r"combination +n +test ELBO +log-likelihood +KL\n", shown)
    assert "over the n seeds of a combination, in nats per image\n" in shown
    assert "Not counted" not in shown


def test_what_is_not_finished_is_listed_and_moves_no_mean(sweep, tmp_path, monkeypatch, capsys):
    before = (summarized(tmp_path, monkeypatch, "sweep") / "summary.csv").read_bytes()
    leave(sweep / "diverged", latent_dim=5, seed=3, log=NAN)
    leave(sweep / "resumed", latent_dim=5, seed=4, log=f"{NAN}2026-01-02 03:05:00,000 epoch 2/3\n")
    for step in (90, 1200):
        (sweep / "resumed" / "checkpoints").mkdir(exist_ok=True)
        (sweep / "resumed" / "checkpoints" / f"step_{step:08d}.ckpt").touch()
    described = '{"described": {}, "figures": {%s}}'
    contents = ("{", described % "", "[]", described % '"test/elbo": NaN')
    for number, content in enumerate(contents):
        (leave(sweep / f"damaged_{number}", seed=9) / "metrics.json").write_text(content)
    (leave(sweep / "damaged_4", -1.0) / ".hydra" / "config.yaml").write_text("model: [")
    (leave(sweep / "damaged_5", -1.0) / ".hydra" / "config.yaml").write_text(
        "model: {}\nseed: ${nosuch}"
    )
    capsys.readouterr()
    written = summarized(tmp_path, monkeypatch, "sweep")
    assert (written / "summary.csv").read_bytes() == before
    jobs = {row["job"].removeprefix("sweep/"): row for row in rows_of(written / "jobs.csv")}
    assert len(jobs) == 8 + 8
    states = {name: row["state"] for name, row in jobs.items() if row["state"] != "finished"}
    assert states == {
        "diverged": "failed",
        "resumed": "unfinished",
        **{f"damaged_{number}": "damaged" for number in range(6)},
    }
    shown = capsys.readouterr().out
    assert "Not counted, 8 of 16 jobs:" in shown
    for expected in (
        r"failed       sweep/diverged  model.latent_dim=5 seed=3\n +no checkpoint; "
        r"FloatingPointError: train/loss is nan at",
        r"unfinished   sweep/resumed  .*\n +saved up to step 1,200; stopped, or at work still",
        r"damaged      sweep/damaged_0 .*\n +metrics.json, JSONDecodeError",
        r"damaged      sweep/damaged_1 .*\n +metrics.json, KeyError: 'comparison'",
        r"damaged      sweep/damaged_3 .*\n +metrics.json, .*test/elbo is nan",
        r"damaged      sweep/damaged_4\n +\.hydra/config\.yaml, ParserError",
    ):
        assert re.search(expected, shown)
    assert (
        r"| failed | sweep/diverged | model.latent\_dim=5 seed=3 | no checkpoint;"
        in (written / "summary.md").read_text()
    )


def test_where_nothing_is_finished_nothing_is_written(tmp_path, monkeypatch, capsys):
    leave(tmp_path / "sweep" / "0", log=NAN)
    with pytest.raises(
        SystemExit, match=r"^error: sweep=sweep: none of its 1 jobs counts, as listed above$"
    ):
        typed("summarize", "sweep", directory=tmp_path, patch=monkeypatch)
    assert "failed       sweep/0  seed=1" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["sweep"]


def test_one_seed_has_no_deviation(tmp_path, monkeypatch, capsys):
    leave(tmp_path / "runs" / "a", -100.0)
    [row] = rows_of(summarized(tmp_path, monkeypatch, "runs") / "summary.csv")
    assert (row["n"], row["test/elbo mean"], row["test/elbo std"]) == ("1", "-100.0", "")
    assert re.search(r"1  all runs +1 +-100\.00 +-80\.00  20\.00\n", capsys.readouterr().out)


def test_of_two_runs_with_one_configuration_and_one_seed_the_newer_counts(tmp_path, monkeypatch):
    for name, elbo in (("older", -90.0), ("newer", -100.0), ("other", -102.0)):
        leave(tmp_path / "runs" / name, elbo, seed=2 if name == "other" else 1)
    os.utime(tmp_path / "runs" / "older" / "metrics.json", (1, 1))
    written = summarized(tmp_path, monkeypatch, "runs")
    [row] = rows_of(written / "summary.csv")
    assert (row["n"], float(row["test/elbo mean"])) == ("2", -101.0)
    [repeated] = [row for row in rows_of(written / "jobs.csv") if row["state"] != "finished"]
    assert (repeated["job"], repeated["state"]) == ("runs/older", "repeated")
    assert "runs/newer, which is newer and counts" in repeated["problem"]


def test_settings_make_a_combination_and_the_place_does_not(tmp_path, monkeypatch):
    def other(place):
        return {
            "data": {"dir": place, "val_size": 80},
            "logger": {place: {"save_dir": "${hydra:runtime.output_dir}"}},
        }

    leave(tmp_path / "a" / "0", -100.0, seed=1, kl_weight="${data.val_size}", other=other("here"))
    leave(tmp_path / "b" / "0", -102.0, seed=2, kl_weight=80, other=other("there"))
    leave(tmp_path / "b" / "1", -110.0, seed=1, kl_weight=79, other=other("there"))
    rows = rows_of(summarized(tmp_path, monkeypatch, "a", "b") / "summary.csv")
    assert [(row["model.kl_weight"], row["n"]) for row in rows] == [("80", "2"), ("79", "1")]
    assert set(rows[0]) & {"seed", "data.dir", "data.val_size"} == set()


def test_what_a_configuration_takes_from_its_job_is_looked_up_there(tmp_path, monkeypatch):
    for number in (3, 7):
        values = {"num_samples": "${hydra:job.num}", "channels": ["${seed}"]}
        directory = leave(tmp_path / "sweep" / str(number), -100.0 - number, **values)
        settings = {"hydra": {"job": {"num": number}, "runtime": {"output_dir": "elsewhere"}}}
        (directory / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump(settings))
    rows = rows_of(summarized(tmp_path, monkeypatch, "sweep") / "summary.csv")
    assert [row["model.num_samples"] for row in rows] == ["3", "7"]
    assert "model.channels" not in rows[0]


def test_a_figure_that_a_job_lacks_is_not_averaged_and_that_is_said(
    sweep, tmp_path, monkeypatch, capsys
):
    file = sweep / "20_1" / "metrics.json"
    content = json.loads(file.read_text())
    del content["figures"]["test/kl"]
    content["figures"]["test/importance_bound"] = -101.0
    file.write_text(json.dumps(content))
    first = rows_of(summarized(tmp_path, monkeypatch, "sweep") / "summary.csv")[0]
    assert (first["n"], first["test/kl mean"], first["test/kl std"]) == ("3", "", "")
    assert "test/importance_bound mean" not in first
    shown = capsys.readouterr().out
    assert (
        "not averaged, as not all jobs of combination 1 have it: test/importance_bound, test/kl"
        in shown
    )
    rows = rows_of(summarized(tmp_path, monkeypatch, "sweep", "sort=test/kl") / "summary.csv")
    assert [row["model.latent_dim"] for row in rows] == ["5", "2", "20"]  # what has none comes last


def test_figures_of_different_protocols_are_said_not_to_compare(
    sweep, tmp_path, monkeypatch, capsys
):
    other = PROTOCOL | {
        "binarization": "static: drawn once",
        "meaning": "log-likelihoods of discrete images",
    }
    leave(sweep / "static", -80.0, protocol=other, other={"data": {"binarization": "static"}})
    written = summarized(tmp_path, monkeypatch, "sweep")
    said = (
        "not all compare with each other, for binarization differs: "
        "static: drawn once; none: grey levels"
    )
    for text in (capsys.readouterr().out, (written / "summary.md").read_text()):
        assert said in text
        assert "grey levels as probabilities" in text
        assert "log-likelihoods of discrete images" in text
    typed("summarize", "sweep/2_1", directory=tmp_path, patch=monkeypatch)
    assert "not all compare" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("test/log_likelihood", ["20", "5", "2"]),
        ("test/loss", ["20", "5", "2"]),
        ("test/kl", ["5", "2", "20"]),
        ("model.latent_dim", ["2", "5", "20"]),
    ],
)
def test_rows_come_in_the_order_that_is_asked_for(sweep, tmp_path, monkeypatch, sort, order):
    rows = rows_of(summarized(tmp_path, monkeypatch, "sweep", f"sort={sort}") / "summary.csv")
    assert [row["model.latent_dim"] for row in rows] == order


def test_the_terminal_keeps_to_100_columns_whatever_differs(tmp_path, monkeypatch, capsys):
    for number in range(3):
        few = {
            "learning_rate": 0.001 * number,
            "posterior_scale": "exp",
            "kl_weight": 10.0 / (number + 1),
        }
        many = (
            {f"a_rather_long_name_{key}": [number, key] for key in range(12)} if number == 2 else {}
        )
        for seed in (1, 2):
            leave(
                tmp_path / "runs" / f"{number}_{seed}",
                -100.0 - number - seed,
                seed=seed,
                **few,
                **many,
            )
    leave(tmp_path / "runs" / "bad", log=f"{NAN.strip()}{' and so on' * 30}\n")
    summarized(tmp_path, monkeypatch, "runs")
    *lines, _, _ = capsys.readouterr().out.splitlines()  # the last one holds the paths
    assert max(map(len, lines)) <= 100
    assert sum("±" in line for line in lines) == 3 + 1
    assert sum(line.strip() == "… 15 keys: summary.csv" for line in lines) == 1


def test_directories_are_named_by_their_place_on_the_line(tmp_path, monkeypatch):
    for seed, name in enumerate(("it's a=1,b", "[c] d", "e"), 1):
        leave(tmp_path / name / "0", -100.0 - seed, seed=seed)
    [row] = rows_of(
        summarized(tmp_path, monkeypatch, "it's a=1,b", "sort=test/kl", "[c] d", "e", "e")
        / "summary.csv"
    )
    assert row["n"] == "3"
    [row] = rows_of(summarized(tmp_path, monkeypatch, "sweep=e") / "summary.csv")
    assert row["n"] == "1"


MISTAKES = {
    "": "sweep is missing: type sweep=…",
    "nosuch": "sweep=nosuch: no such directory",
    "sweep=[]": "sweep=[]: name a directory at least",
    "sweep=": "sweep=: empty; type a path, or leave out sweep=",
    "sweep=''": "sweep='': empty; type a path, or leave out sweep=",
    "sweep=['']": "sweep='': empty; name a sweep's directory or a folder of runs",
    "empty": "sweep=empty: no runs in it; name a sweep's directory, or one of run directories",
    "runs sweep=empty": "sweep=empty, runs: both name the sweep; keep one",
    "runs --multirun": "--multirun: summarize runs once, over all that is named",
    "runs sort=test/ebo": "sort=test/ebo: no figure or key of these runs; choose from test/loss, "
    "test/elbo, test/log_likelihood, test/kl, model.latent_dim",
    "runs srot=test/kl": "unknown key srot: did you mean sort?",
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.items(), ids=MISTAKES.keys())
def test_a_mistake_is_told_in_a_line_and_leaves_nothing_behind(
    tmp_path, monkeypatch, mistake, message
):
    (tmp_path / "empty").mkdir()
    for latent_dim in (2, 3):
        leave(tmp_path / "runs" / str(latent_dim), -100.0, latent_dim=latent_dim)
    with pytest.raises(SystemExit) as exit_:
        typed("summarize", *mistake.split(), directory=tmp_path, patch=monkeypatch)
    assert exit_.value.code == f"error: {message}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "runs"]


def test_other_commands_runs_and_a_folder_that_holds_runs_are_no_jobs(tmp_path, monkeypatch):
    leave(tmp_path / "outputs" / "tune" / "study")
    leave(tmp_path / "outputs" / "tune" / "study" / "trials" / "0", -100.0)
    for command in ("evaluate", "summarize"):
        folder = tmp_path / "outputs" / command / "a" / ".hydra"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("checkpoint: x\n")
        (folder.parent / "metrics.json").write_text("{}")
    (tmp_path / "outputs" / ".submitit" / "1").mkdir(parents=True)
    assert [job.name for job in summaries.find_jobs([tmp_path / "outputs"])] == [
        str(tmp_path / "outputs" / "tune" / "study" / "trials" / "0")
    ]


def test_jobs_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 1):
        leave(tmp_path / str(number), -100.0, seed=number)
    assert [job.directory.name for job in summaries.find_jobs([tmp_path])] == ["1", "9", "10"]


def test_a_file_from_elsewhere_runs_nothing(tmp_path, monkeypatch):
    leave(tmp_path / "runs" / "0", -100.0)
    call = "!!python/object/apply:os.mkdir [ran]"
    (leave(tmp_path / "runs" / "1", -100.0) / ".hydra" / "config.yaml").write_text(
        f"model: {call}\nseed: 1\n"
    )
    (tmp_path / "runs" / "multirun.yaml").write_text(f"hydra: {call}\n")
    written = summarized(tmp_path, monkeypatch, "runs")
    states = [row["state"] for row in rows_of(written / "jobs.csv")]
    assert states == ["finished", "damaged", "damaged"]
    monkeypatch.chdir(tmp_path)
    yaml.unsafe_load(call)
    assert (tmp_path / "ran").exists()  # where it is read carelessly


def judged_by_bits(directory, bits, **more):
    """Leave a run of a model that is judged by bits, which are better the fewer they are."""
    file = leave(directory, -100.0, **more) / "metrics.json"
    content = json.loads(file.read_text())
    content["figures"]["test/bits"] = bits
    content["described"] |= {"test/bits": {"label": "bits", "unit": "bits", "better": "min"}}
    file.write_text(json.dumps(content | {"comparison": "test/bits", "terms": ["test/kl"]}))


def damaged(run, kind):
    """Damage or spoil a finished run in one way, and return the state that it is listed by."""
    metrics, config = run / "metrics.json", run / ".hydra" / "config.yaml"
    if kind == "a pipe":
        metrics.unlink()
        os.mkfifo(metrics)
        return "unfinished"
    if kind == "an endless device":
        config.unlink()
        config.symlink_to("/dev/zero")
    elif kind == "nested":
        metrics.write_text("[" * 200_000)
    elif kind == "nested settings":
        config.write_text("model: " + "{a: " * 20_000 + "}" * 20_000)
    elif kind == "aliases":
        lines = ["model: {}", "a0: &a0 [x, x]"]
        lines += [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
        config.write_text("\n".join(lines))
    elif kind == "bytes":
        config.write_bytes(b"\xff\x00model")
    elif kind == "a huge number":
        metrics.write_text(metrics.read_text().replace("20.0", "1" * 400))
    elif kind == "types":
        metrics.write_text('{"described": 1, "figures": [], "comparison": {}, "terms": 3}')
    elif kind == "a seed":
        config.write_text(config.read_text().replace("seed: 1", "seed: [x]"))
    elif kind == "a key twice":
        config.write_text(config.read_text() + "seed: 2\n")
    elif kind == "a quick pass":
        config.write_text(config.read_text() + "trainer: {fast_dev_run: true}\n")
        return "quick pass"
    return "damaged"


KINDS = ["a pipe", "an endless device", "nested", "nested settings", "aliases", "bytes"]
KINDS += ["a huge number", "types", "a seed", "a key twice", "a quick pass"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_run_is_left_out_with_a_line_and_nothing_waits(
    tmp_path, monkeypatch, capsys, kind
):
    leave(tmp_path / "runs" / "whole", -100.0, seed=2)
    state = damaged(leave(tmp_path / "runs" / "spoilt", -1.0), kind)
    written = summarized(tmp_path, monkeypatch, "runs")
    states = {row["job"]: row["state"] for row in rows_of(written / "jobs.csv")}
    assert states == {"runs/whole": "finished", "runs/spoilt": state}
    [row] = rows_of(written / "summary.csv")
    assert float(row["test/elbo mean"]) == -100.0
    assert "Not counted, 1 of 2 jobs:" in capsys.readouterr().out


def test_values_beyond_all_measure_end_in_no_traceback(tmp_path, monkeypatch, capsys):
    sizes = (2, 3, 10**400, -5, True)
    for number, (size, elbo) in enumerate(
        zip(sizes, (1e100, -1e100, -1.0, 0.0, -2.0), strict=True)
    ):
        run = leave(tmp_path / "runs" / f"{number}", elbo, latent_dim=size)
        (run / "csv").mkdir()
        rows = f"1,1e308\n2,-1e99\n3,1e100\n{10**400},1\n"
        (run / "csv" / "metrics.csv").write_text(f"step,val/elbo\n{rows}")
    rows = rows_of(summarized(tmp_path, monkeypatch, "runs") / "summary.csv")
    assert [float(row["test/elbo mean"]) for row in rows] == [1e100, 0.0, -1.0, -2.0, -1e100]
    assert "-1e+100" in capsys.readouterr().out


def test_a_run_without_its_own_criterion_is_damaged(tmp_path, monkeypatch):
    leave(tmp_path / "runs" / "whole", -100.0, seed=2)
    file = leave(tmp_path / "runs" / "spoilt", -1.0) / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"comparison": "test/bits"}))
    written = summarized(tmp_path, monkeypatch, "runs")
    assert [row["state"] for row in rows_of(written / "jobs.csv")] == ["damaged", "finished"]
    assert [row["n"] for row in rows_of(written / "summary.csv")] == ["1"]


SWEPT = "hydra: {sweeper: {params: null}, overrides: {task: [%s]}}"
MULTIRUNS = {
    "too many jobs": SWEPT % '"seed=range(0,1000000000)", "model.latent_dim=range(0,1000000000)"',
    "no values": SWEPT % '"seed=interval(1,2)"',
    "other types": SWEPT % "1, {}",
    "nothing": "",
}


@pytest.mark.parametrize("content", MULTIRUNS.values(), ids=MULTIRUNS)
def test_a_damaged_multirun_yaml_is_named(tmp_path, monkeypatch, capsys, content):
    leave(tmp_path / "runs" / "0", -100.0)
    (tmp_path / "runs" / "multirun.yaml").write_text(content)
    summarized(tmp_path, monkeypatch, "runs")
    shown = capsys.readouterr().out
    assert "-100.00" in shown
    assert re.search(r"Not counted, 1 of 2 jobs:\n  damaged +runs/multirun\.yaml\n +\w", shown)


def test_one_damaged_list_of_overrides_hides_no_job_that_was_never_begun(
    tmp_path, monkeypatch, capsys
):
    for seed, content in ((1, "[seed=1]"), (2, "[[]]")):
        run = leave(tmp_path / "runs" / f"{seed}", -100.0, seed=seed)
        (run / ".hydra" / "overrides.yaml").write_text(content)
    (tmp_path / "runs" / "multirun.yaml").write_text(SWEPT % '"seed=1,2,3"')
    summarized(tmp_path, monkeypatch, "runs")
    assert re.findall(r"never begun  (\S+)", capsys.readouterr().out) == ["seed=2", "seed=3"]


def test_a_user_s_own_files_are_not_overwritten_by_a_summary(sweep, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.csv").write_text("mine")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit, match=r"^error: hydra\.run\.dir=mine: not empty"):
        summarized(tmp_path, monkeypatch, "sweep", "hydra.run.dir=mine")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


HOSTILE = "=1+1|<b>`x`\x1b[31m\nSorted, $x_{"


def test_words_of_a_run_from_elsewhere_stay_words(tmp_path, monkeypatch, capsys):
    for number in (1, 2):
        run = leave(tmp_path / "runs" / f"{number}", -100.0 - number, objective=HOSTILE * number)
        file = run / "metrics.json"
        content = json.loads(file.read_text())
        content["described"]["test/kl"] |= {"label": HOSTILE, "unit": HOSTILE}
        content["protocol"]["meaning"] = HOSTILE
        file.write_text(json.dumps(content))
    typed("summarize", "runs", directory=tmp_path, patch=monkeypatch)
    [written] = (tmp_path / "outputs" / "summarize").iterdir()
    page = (written / "summary.md").read_text()
    assert "<b>" not in page
    assert not [line for line in page.splitlines() if line.startswith("Sorted, ")]
    for name in ("summary.csv", "jobs.csv"):
        with (written / name).open(newline="") as lines:
            cells = [cell for row in csv.reader(lines) for cell in row]
        assert not [cell for cell in cells if cell.startswith("=")]
        assert any(cell.startswith("'=1+1") for cell in cells)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown + page
    assert r"\x1b[31m\nSorted" in shown


@pytest.mark.parametrize("kind", ["record", "cell", "pipe"])
def test_a_log_that_cannot_be_read_costs_its_curve_only(tmp_path, monkeypatch, capsys, kind):
    run = leave(tmp_path / "runs" / "a", -100.0)
    folder = run / "csv" if kind == "cell" else run / "tensorboard"
    folder.mkdir()
    if kind == "cell":
        (folder / "metrics.csv").write_text("step,val/elbo\n1,-3\n2," + "9" * 2_000_000 + "\n")
    else:
        writer = SummaryWriter(folder)
        writer.add_scalar("val/elbo", 1.0, 1)
        writer.close()
        [file] = folder.iterdir()
        if kind == "pipe":
            os.mkfifo(folder / f"{file.name}.2")
        else:
            content = b"\xff" * 40
            size = struct.pack("<Q", len(content))
            with file.open("ab") as events:
                for part in (size, content):
                    events.write(part + _checksum(part))
    summarized(tmp_path, monkeypatch, "runs")
    shown = capsys.readouterr().out
    assert "-100.00" in shown
    assert "no learning curve, since no log that can be read holds val/elbo: runs/a" in shown


def test_a_log_with_the_projector_s_folders_beside_it_is_drawn(tmp_path, monkeypatch, capsys):
    folder = leave(tmp_path / "runs" / "a", -100.0) / "tensorboard"
    (folder / "00012").mkdir(parents=True)
    writer = SummaryWriter(folder)
    writer.add_scalar("val/elbo", -101.0, 12)
    writer.close()
    summarized(tmp_path, monkeypatch, "runs")
    assert "no learning curve" not in capsys.readouterr().out


def test_keys_in_a_legend_are_cut_to_what_tells_them_apart():
    settings = {"optimizer.name": "adam", "data.name": "mnist", "model.latent_dim": 2}
    all_of_them = [summaries.Combination(settings, [], {})]
    shown = "optimizer.name=adam, data.name=mnist, latent_dim=2"
    assert tables.label(settings, all_of_them) == shown
    del settings["data.name"]  # of this combination, which stays apart from those that have it
    all_of_them.append(summaries.Combination({"data.name": "mnist"}, [], {}))
    assert tables.label(settings, all_of_them) == "optimizer.name=adam, latent_dim=2"


def test_models_of_different_classes_are_named_in_the_legend(tmp_path):
    settings = [(-100.0 - number, 25.0, {"_target_": name}) for number, name in enumerate("AB")]
    figure = charts.rate_distortion(combined(tmp_path, settings))
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "model._target_=A",
        "model._target_=B",
    ]


def test_a_model_s_own_criterion_heads_the_table_and_sorts_it(tmp_path, monkeypatch, capsys):
    for latent_dim, bits in ((2, 5.0), (5, 3.0), (20, 4.0)):
        judged_by_bits(tmp_path / "runs" / str(latent_dim), bits, latent_dim=latent_dim)
    rows = rows_of(summarized(tmp_path, monkeypatch, "runs") / "summary.csv")
    assert [row["model.latent_dim"] for row in rows] == ["5", "20", "2"]
    shown = capsys.readouterr().out
    assert re.search(r"combination +n  test bits +KL\n", shown)
    assert "over the n seeds of a combination, in bits\n" in shown
    combinations = summaries.combine(summaries.find_jobs([tmp_path / "runs"]), "test/bits")
    [axes] = charts.figure_against_latent_dim(combinations).axes
    assert axes.get_ylabel() == "test bits, bits"


def test_models_of_different_criteria_are_compared_by_one_that_all_have(
    tmp_path, monkeypatch, capsys
):
    judged_by_bits(tmp_path / "runs" / "0", 5.0, latent_dim=2)
    leave(tmp_path / "runs" / "1", -110.0, latent_dim=5)
    for number, header, values in ((0, "val/bits,val/elbo", "5,-101"), (1, "val/elbo", "-112")):
        folder = tmp_path / "runs" / str(number) / "csv"
        folder.mkdir()
        (folder / "metrics.csv").write_text(f"step,{header}\n10,{values}\n")
    summarized(tmp_path, monkeypatch, "runs")
    assert re.search(r"combination +n  test ELBO ", capsys.readouterr().out)
    combinations = summaries.combine(summaries.find_jobs([tmp_path / "runs"]), "test/elbo")
    curves, without = summaries.mean_curves(combinations, 8)
    assert not without
    assert [curve for _, curve in curves] == [[(10, -101.0, None)], [(10, -112.0, None)]]


def test_figures_of_version_0_1_are_refused_and_said_to_be_so(tmp_path, monkeypatch, capsys):
    file = leave(tmp_path / "runs" / "0", -100.0) / "metrics.json"
    content = json.loads(file.read_text())
    del content["described"]
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="none of its 1 jobs counts, as listed above"):
        typed("summarize", "runs", directory=tmp_path, patch=monkeypatch)
    assert re.search(
        r"damaged      runs/0 .*\n +metrics.json, ValueError: written by version 0\.1",
        capsys.readouterr().out,
    )


# -- charts -------------------------------------------------------------------------------------


def combined(tmp_path, settings):
    """Return combinations of two seeds each."""
    for number, (elbo, kl, model) in enumerate(settings):
        for seed in (1, 2):
            leave(tmp_path / f"{number}_{seed}", elbo + seed, kl + seed, seed=seed, **model)
    return summaries.combine(summaries.find_jobs([tmp_path]), "test/elbo")


def test_the_elbo_is_drawn_against_the_latents_a_line_for_each_combination_of_the_rest(tmp_path):
    values = {(0.5, 2): -150.0, (0.5, 20): -110.0, (1.0, 20): -105.0, (1.0, 2): -140.0}
    combinations = combined(
        tmp_path,
        [(elbo, 20.0, {"kl_weight": w, "latent_dim": d}) for (w, d), elbo in values.items()],
    )
    [axes] = charts.figure_against_latent_dim(combinations).axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("latents", "test ELBO, nats per image")
    drawn = {container.get_label(): container for container in axes.containers}
    for name, weight in (("kl_weight=0.5", 0.5), ("kl_weight=1.0", 1.0)):
        assert drawn[name][0].get_xydata().tolist() == [
            [d, values[weight, d] + 1.5] for d in (2, 20)
        ]
        for d, bar in zip((2, 20), drawn[name][2][0].get_segments(), strict=True):
            middle, deviation = values[weight, d] + 1.5, np.std([1, 2], ddof=1)
            assert bar.tolist() == [
                [d, pytest.approx(middle - deviation)],
                [d, pytest.approx(middle + deviation)],
            ]
    assert (
        charts.figure_against_latent_dim(
            combined(tmp_path / "one", [(-1.0, 1.0, {"kl_weight": w}) for w in (1, 2)])
        )
        is None
    )


def test_rate_and_distortion_are_drawn_on_lines_of_equal_elbo(tmp_path):
    [axes] = charts.rate_distortion(
        combined(tmp_path, [(-100.0, 25.0, {"kl_weight": 1}), (-120.0, 5.0, {"kl_weight": 4})])
    ).axes
    points = {
        container.get_label(): container[0].get_xydata().tolist() for container in axes.containers
    }
    assert points == {
        "kl_weight=1": [[26.5, 72.0]],
        "kl_weight=4": [[6.5, 112.0]],
    }  # rate + distortion = −ELBO
    told = {
        text.get_text(): text.get_position()
        for text in axes.texts
        if text.get_text().startswith("ELBO")
    }
    assert len(told) >= 2
    for text, (rate, distortion) in told.items():
        assert rate + distortion == pytest.approx(float(text.removeprefix("ELBO −")), rel=1e-3)
        left, right = axes.get_xlim()
        assert (
            min(abs((rate - left) / (right - left) - edge) for edge in (0.07, 0.93)) < 0.03
        )  # away from the points


def test_of_more_than_eight_combinations_the_first_are_drawn_and_the_chart_says_so(tmp_path):
    combinations = combined(
        tmp_path, [(-100.0 - number, 25.0, {"kl_weight": number}) for number in range(10)]
    )
    [axes] = charts.rate_distortion(combinations).axes
    assert [container.get_label() for container in axes.containers] == [
        f"kl_weight={number}" for number in range(8)
    ]
    assert axes.get_title().startswith("the first 8 of 10 combinations")


def test_one_epoch_of_one_seed_is_a_point(tmp_path):
    combinations = combined(tmp_path, [(-100.0, 25.0, {})])
    [axes] = charts.learning_curves([(combinations[0], [(10, -130.0, None)])], 1).axes
    assert axes.lines[0].get_xydata().tolist() == [[10, -130]]
    assert axes.get_ylim()[0] < -130 < axes.get_ylim()[1]


def test_a_mean_curve_goes_as_far_as_all_seeds_do(tmp_path):
    for seed, values in ((1, {10: -130.0, 20: -120.0, 30: -110.0}), (2, {10: -134.0, 20: -121.0})):
        (leave(tmp_path / str(seed), -100.0, seed=seed) / "csv").mkdir()
        rows = "".join(
            f"{step},{value}\n{step},\n" for step, value in (values | {40: np.nan}).items()
        )
        (tmp_path / str(seed) / "csv" / "metrics.csv").write_text(f"step,val/elbo\n{rows}")
    leave(tmp_path / "3", -100.0, seed=3)
    [(_, curve)], [without] = summaries.mean_curves(
        summaries.combine(summaries.find_jobs([tmp_path]), "test/elbo"), 8
    )
    assert without.seed == 3
    assert curve == [(10, -132.0, pytest.approx(8**0.5)), (20, -120.5, pytest.approx(0.5**0.5))]


# -- a real sweep -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_sweep(tmp_path_factory):
    """A sweep of three latent sizes and two seeds, one size refused, and a run typed by hand."""
    directory = tmp_path_factory.mktemp("sweep")
    quick = [
        *SUBSET,
        "callbacks=minimal",
        "model.hidden_dims=[8]",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
    ]
    with pytest.MonkeyPatch.context() as patch:
        with pytest.raises(SystemExit, match="2 of 6 jobs failed"):
            typed(
                "train",
                "--multirun",
                *quick,
                "model.latent_dim=3,0,2",
                "seed=1,2",
                directory=directory,
                patch=patch,
            )
        typed(
            "train",
            *quick,
            "model.latent_dim=2",
            "seed=3",
            "logger=csv",
            directory=directory,
            patch=patch,
        )
    return directory


def told(directory):
    """Return the validation ELBO after each epoch as the log tells it, and the test ELBO."""
    log = (directory / "train.log").read_text()
    return [float(each) for each in re.findall(r"validation ELBO (-[\d.]+)", log)], float(
        re.search(r"test ELBO +(\S+)", log)[1]
    )


@pytest.mark.slow
def test_a_real_sweep_is_summarized_with_its_curves_and_what_was_never_begun(
    trained_sweep, monkeypatch, capsys
):
    [sweep] = (trained_sweep / "outputs" / "multirun").iterdir()
    [single] = (trained_sweep / "outputs" / "train").iterdir()
    runs = {3: [sweep / "0", sweep / "1"], 2: [sweep / "4", sweep / "5", single]}
    runs = {
        dim: [told(directory) for directory in directories] for dim, directories in runs.items()
    }
    arguments = [f"outputs/multirun/{sweep.name}", "outputs/train", "sort=model.latent_dim"]
    typed("summarize", *arguments, directory=trained_sweep, patch=monkeypatch)
    [written] = (trained_sweep / "outputs" / "summarize").iterdir()
    rows = rows_of(written / "summary.csv")
    assert [(row["model.latent_dim"], row["n"]) for row in rows] == [("2", "3"), ("3", "2")]
    for row in rows:
        elbos = [elbo for _, elbo in runs[int(row["model.latent_dim"])]]
        assert float(row["test/elbo mean"]) == pytest.approx(np.mean(elbos), abs=0.006)
        assert float(row["test/elbo std"]) == pytest.approx(np.std(elbos, ddof=1), abs=0.01)
    shown = capsys.readouterr().out
    for seed in (1, 2):
        assert re.search(
            rf"never begun  model.latent_dim=0 seed={seed}\n"
            r" +or refused at once: asked for in \S+multirun.yaml",
            shown,
        )
    assert shown.count("never begun") == 2
    names = ("elbo_against_latent_dim", "learning_curves", "rate_distortion")
    expected = {f"{name}.{form}" for name in names for form in ("png", "pdf")} | {
        "summary.csv",
        "summary.md",
        "jobs.csv",
    }
    assert {path.name for path in written.iterdir()} == expected | {".hydra"}
    for name in names:
        assert f"![{name.replace('_', ' ')}]({name}.png)" in (written / "summary.md").read_text()

    monkeypatch.chdir(trained_sweep)
    combinations = summaries.combine(
        summaries.find_jobs([sweep, single.parent]), "model.latent_dim"
    )
    curves, without = summaries.mean_curves(combinations, 8)
    assert not without
    for (each, curve), dim in zip(curves, (2, 3), strict=True):
        assert each.settings == {"model.latent_dim": dim}
        values = np.array([elbos for elbos, _ in runs[dim]])  # [seeds, epochs]
        assert [step for step, _, _ in curve] == [3, 6]
        assert [mean for _, mean, _ in curve] == pytest.approx(values.mean(0).tolist(), abs=0.006)
        assert [deviation for _, _, deviation in curve] == pytest.approx(
            values.std(0, ddof=1).tolist(), abs=0.01
        )
    [axes] = charts.learning_curves(curves, len(curves)).axes
    assert [line.get_label() for line in axes.lines] == ["latent_dim=2", "latent_dim=3"]
    band = axes.collections[0].get_paths()[0].vertices
    low, high = axes.get_ylim()
    assert (
        low
        < min(curve[-1][1] for _, curve in curves)
        < max(curve[-1][1] for _, curve in curves)
        < high
    )
    step, mean, deviation = curves[0][1][1]
    assert sorted({round(y, 4) for x, y in band if x == step}) == [
        round(mean - deviation, 4),
        round(mean + deviation, 4),
    ]


@pytest.mark.slow
def test_a_summary_needs_no_torch_and_says_which_run_has_no_log(trained_sweep, tmp_path):
    leave(tmp_path / "runs" / "0", -100.0)
    environment = {"PYTHONPROFILEIMPORTTIME": "1"}
    finished = run(
        "summarize", "runs", str(trained_sweep / "outputs"), cwd=tmp_path, environment=environment
    )
    assert finished.returncode == 0
    imported = {
        line.rsplit("|", 1)[1].strip()
        for line in finished.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert imported & {"torch", "lightning", "matplotlib"} == {"matplotlib"}
    missing = "no learning curve, since no log that can be read holds val/elbo: runs/0\n"
    assert missing in finished.stdout
    assert [
        line for line in finished.stderr.splitlines() if not line.startswith("import time:")
    ] == []
