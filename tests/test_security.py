"""Nothing in a file is executed: checkpoints, configurations and pictures; nor could it be."""

import ast
import contextlib
import hashlib
import logging
import os
import re
import shutil
import socket
import struct
import sys
import warnings
import zlib
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from PIL import EpsImagePlugin, Image

import vae_lightning
from chaos.runs import run_of, signalled
from conftest import build_module, run, train_in, typed
from hostile import (
    CANARY,
    Runs,
    with_data,
    with_model,
    write_checkpoints,
    write_module,
    write_plain_checkpoints,
    write_runs,
)
from vae_lightning.cli import command, multirun
from vae_lightning.configuration import hydra_settings, keys
from vae_lightning.configuration.composing import CONFIGS
from vae_lightning.configuration.keys import check
from vae_lightning.data.modality import IMAGES
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.checkpoints import data_of, load_model, read
from vae_lightning.runs.log_file import log_to
from vae_lightning.runs.loggers import RunCSVLogger, RunLogger
from vae_lightning.runs.resume import lock_directory
from vae_lightning.training.callbacks import dashboard, pictures
from vae_lightning.visualization.drawings import Encoded


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """The file that hostile ones would create; ``evil`` can be imported, and creates it."""
    write_module(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / CANARY
    sys.modules.pop("evil", None)


# -- checkpoints ----------------------------------------------------------------------------------


def load_data(file):
    """Return the class and the settings of the data of a checkpoint, as a command reads them."""
    return data_of(file, read(file))


@pytest.fixture(scope="module")
def good(trained):
    return torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def hostile_checkpoints(good, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    return write_checkpoints(folder, good), folder / CANARY


CHECKPOINTS = [
    "os_system_in_hyper_parameters",
    "os_system_in_model_settings",
    "os_system_in_target",
    "exec_in_state_dict",
    "eval_in_epoch",
    "hub_load",
    "check_output",
    "callbacks_state",
    "optimizer_states",
    "object_array",
    "partial",
    "hparams_type",
    "datamodule_class",
    "version",
    "legacy_format",
    "bare_pickle_0",
    "bare_pickle_4",
    "torchscript",
    "renamed_member",
    "tar",
]


def test_the_list_of_hostile_checkpoints_is_whole(hostile_checkpoints):
    assert list(hostile_checkpoints[0]) == CHECKPOINTS


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_hostile_checkpoint_would_run_code_and_does_not(hostile_checkpoints, name):
    files, canary = hostile_checkpoints
    told = rf"^checkpoint={files[name]}: not a checkpoint of this project, or damaged$"
    for function in (load_model, load_data):
        with pytest.raises(ConfigurationError, match=told):
            function(files[name])
        assert not canary.exists()
    with warnings.catch_warnings(action="ignore"):
        try:
            torch.load(files[name], weights_only=False)  # shows that the canary sings
        except Exception as error:  # after the deed
            print(repr(error))
    assert canary.exists()
    canary.unlink()


def test_lightning_reads_a_checkpoint_for_a_test_without_running_it(
    hostile_checkpoints, subset, tmp_path
):
    from lightning import Trainer

    files, canary = hostile_checkpoints
    silent = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
    }
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", **silent)
    module = build_module(latent_dim=3)
    for name in ("callbacks_state", "optimizer_states", "legacy_format"):
        with pytest.raises(Exception, match="Weights only load failed"):
            trainer.test(module, subset, ckpt_path=files[name], weights_only=True, verbose=False)
        assert not canary.exists()


def error_of(function, file):
    """Return what a function says of a file that it refuses; empty: it takes it."""
    try:
        function(file)
    except ConfigurationError as error:
        return str(error)
    return ""


def test_checkpoints_that_name_code_or_ask_for_too_much_run_nothing(good, tmp_path, canary):
    files, unfit = write_plain_checkpoints(tmp_path, good)
    refused = set()
    for name, file in files.items():
        for function in (load_model, load_data):
            if told := error_of(function, file):  # or it names code in vain, and is fit for use
                assert len(told.splitlines()) == 1
                refused.add(name)
        assert not canary.exists(), name
    assert set(unfit) <= refused
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        ("model", "lightning.Trainer"),
        ("model", "vae_lightning.data.mnist.MNISTDataModule"),
        ("data", "vae_lightning.models.vae.model.VAE"),
    ],
)
def test_a_checkpoint_can_name_only_a_class_of_the_right_kind(
    good, tmp_path, monkeypatch, kind, target
):
    """An allowed target of another kind isn't built either: a Trainer would write files."""
    file = tmp_path / "model.ckpt"
    changed = with_model if kind == "model" else with_data
    place = "hyper_parameters" if kind == "model" else "datamodule_hyper_parameters"
    torch.save({**good, place: changed(good, target=target)}, file)
    built = []
    monkeypatch.setattr(hydra.utils.get_class(target), "__init__", lambda *_, **__: built.append(1))
    with pytest.raises(ConfigurationError, match=rf"{kind}={target}: must be a "):
        (load_model if kind == "model" else load_data)(file)
    assert not built


def test_a_checkpoint_can_not_say_where_the_data_lies(good, tmp_path):
    file = tmp_path / "model.ckpt"
    settings = good["datamodule_hyper_parameters"]["data"]["settings"]
    data = with_data(good, settings={**settings, "dir": "/elsewhere"})
    torch.save({**good, "datamodule_hyper_parameters": data}, file)
    assert load_data(file)[1] == settings
    assert "dir" not in settings


# -- configurations -------------------------------------------------------------------------------


RUNS = [
    "hub_load",
    "collect_env",
    "os_system",
    "args",
    "partial",
    "eval",
    "prefix",
    "module",
    "trainer",
    "data",
    "optimizer",
    "nested",
    "in_a_list",
    "root",
    "interpolated",
    "interpolated_part",
    "created",
    "from_environment",
    "hydra",
    "yaml_apply",
    "yaml_new",
    "yaml_module",
    "yaml_name",
    "address",
    "file_address",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Hostile run directories, and Hydra as it is when it calls a command."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        settings = hydra.compose("train", return_hydra_config=True)
        settings.hydra.runtime.output_dir = "."
        composed = keys._compositions("train", [])
        return write_runs(tmp_path_factory.mktemp("runs")), settings, composed


def test_the_list_of_hostile_run_directories_is_whole(runs):
    assert list(runs[0]) == RUNS


@pytest.mark.parametrize("name", RUNS)
def test_a_hostile_run_directory_is_refused(runs, monkeypatch, name):
    directories, settings, composed = runs
    canary = directories[name].parent / CANARY
    monkeypatch.syspath_prepend(canary.parent)
    monkeypatch.setattr(keys, "_compositions", lambda *_: composed)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", settings)
    with pytest.raises((ConfigurationError, yaml.YAMLError)) as error:
        check("train", OmegaConf.load(directories[name] / ".hydra" / "config.yaml"), [])
    assert isinstance(
        error.value, yaml.YAMLError if name.startswith("yaml") else ConfigurationError
    ), name
    assert not canary.exists(), name
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "name", ["hub_load", "collect_env", "nested", "interpolated", "created", "yaml_apply"]
)
def test_a_hostile_run_directory_is_not_resumed(runs, monkeypatch, tmp_path, name):
    directory = runs[0][name]
    canary = directory.parent / CANARY
    monkeypatch.syspath_prepend(canary.parent)
    (directory / ".hydra" / "overrides.yaml").write_text(
        "[hydra/launcher=evil, '+callbacks.mine._target_=evil.C']"
    )
    with pytest.raises(SystemExit, match="error: "):
        typed("train", f"resume={directory}", directory=tmp_path, patch=monkeypatch)
    assert not canary.exists()
    assert "evil" not in sys.modules
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_hostile_checkpoint_in_a_run_directory_is_not_resumed(
    tmp_path, monkeypatch, hostile_checkpoints
):
    files, canary = hostile_checkpoints
    directory = train_in(tmp_path, "trainer.max_epochs=1", "callbacks=minimal")
    (directory / "metrics.json").unlink()
    for file in (directory / "checkpoints").iterdir():
        file.unlink()
    for name, file in list(files.items())[::5]:
        planted = directory / "checkpoints" / "step_00000001.ckpt"
        planted.write_bytes(Path(file).read_bytes())
        digest = hashlib.sha256(planted.read_bytes()).hexdigest()
        planted.with_name(f"{planted.name}.sha256").write_text(f"{digest}  {planted.name}\n")
        with pytest.raises(SystemExit, match="none of its checkpoints is whole"):
            typed("train", f"resume={directory}", directory=tmp_path, patch=monkeypatch)
        assert not canary.exists(), name


@pytest.mark.parametrize(
    "name", ["hub_load", "collect_env", "partial", "created", "yaml_apply", "yaml_module"]
)
def test_a_hostile_run_directory_would_run_code(runs, monkeypatch, name):
    file = runs[0][name] / ".hydra" / "config.yaml"
    canary = runs[0][name].parent / CANARY
    monkeypatch.syspath_prepend(canary.parent)
    if name.startswith("yaml"):
        yaml.unsafe_load(file.read_text())
    else:
        callbacks = OmegaConf.load(file).callbacks
        hydra.utils.instantiate(callbacks.get("mine", callbacks.last))
    assert canary.exists()
    canary.unlink()
    sys.modules.pop("evil", None)


# -- links ----------------------------------------------------------------------------------------

SMALL_RUN = [
    *("trainer.max_epochs=2", "callbacks=minimal", "logger=csv", "callbacks.last.every_n_steps=5"),
    *("model.hidden_dims=[16]", "model.latent_dim=2", "data.batch_size=80"),
]
TO_FILES = [
    *("train.log", "metrics.json", ".metrics.json.tmp", "csv/metrics.csv", "csv/hparams.yaml"),
    *(".hydra/config.yaml", ".hydra/.config.yaml.tmp", ".hydra/.lock", ".hydra/begun"),
    *("checkpoints/last.ckpt", "checkpoints/step_00000005.ckpt", "images/prior_samples_001.png"),
]
TO_FOLDERS = ["checkpoints", "csv", "images", ".hydra", "tensorboard"]


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """The run directory of a small run that was stopped after five steps."""
    directory = tmp_path_factory.mktemp("stopped")
    with signalled([5]), pytest.raises(SystemExit):
        train_in(directory, *SMALL_RUN)
    return run_of(directory)


@pytest.mark.parametrize("name", [*TO_FILES, *TO_FOLDERS])
def test_a_run_directory_with_links_is_not_resumed_and_nothing_is_written_elsewhere(
    stopped_run, tmp_path, monkeypatch, name
):
    run = shutil.copytree(stopped_run, tmp_path / "run", symlinks=True)
    outside, link = tmp_path / "outside", run / name
    if name in TO_FOLDERS:
        shutil.copytree(stopped_run / name, outside) if link.exists() else outside.mkdir()
        (outside / "mine").write_text("mine")
        shutil.rmtree(link, ignore_errors=True)
    else:
        if link.exists():
            shutil.copy(link, outside)
        else:
            outside.write_text("mine")
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
    link.symlink_to(outside)
    before = contents_of(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        typed("train", f"resume={run}", directory=tmp_path, patch=monkeypatch)
    assert exit_.value.code == (
        f"error: resume={run}: {name} in it is a link to {outside}, "
        "and nothing is written there; put the real file in its place"
    )
    assert contents_of(tmp_path) == before


def contents_of(directory):
    return {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def test_a_pipe_in_a_run_directory_is_not_waited_at(stopped_run, tmp_path, monkeypatch):
    run = shutil.copytree(stopped_run, tmp_path / "run", symlinks=True)
    (run / "train.log").unlink()
    os.mkfifo(run / "train.log")
    with pytest.raises(SystemExit, match=r"train\.log in it is neither a file nor a folder"):
        typed("train", f"resume={run}", directory=tmp_path, patch=monkeypatch)


def log_a_line(directory):
    with log_to(directory / "train.log"):
        logging.getLogger("vae_lightning").warning("words")


def write_rows(directory):
    for step in (1, 2):
        logger = RunCSVLogger(directory, name="", version="")
        logger.log_hyperparams({"words": 1})
        logger.log_metrics({"loss": 1.0}, step)
        logger.save()


def write_settings(directory):
    logger = RunLogger(directory, name="", version="", default_hp_metric=False)
    logger.log_hyperparams({"words": 1})
    logger.save()
    logger.finalize("success")


def write_points(directory):
    encoded = Encoded(torch.zeros(2, 1, 4, 4), torch.zeros(2), torch.zeros(2, 3), None)
    dashboard._write_embedding(directory, "00001", "posterior_means", encoded)


POINTS = "00001/posterior_means"
WRITERS = {
    "train.log": log_a_line,
    "metrics.csv": write_rows,
    "hparams.yaml": write_rows,
    ".hparams.yaml.tmp": write_settings,
    "images/x.png": lambda directory: pictures._write_in_folder(directory / "images/x.png", b"x"),
    f"{POINTS}/tensors.tsv": write_points,
    f"{POINTS}/.metadata.tsv.tmp": write_points,
    f"{POINTS}/sprite.png": write_points,
    "projector_config.pbtxt": write_points,
    ".hydra/.lock": lock_directory,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("dangling", [False, True])
def test_what_writes_into_a_run_directory_follows_no_link(tmp_path, name, dangling):
    """On its own: a link may come after the directory was looked through."""
    run, outside = tmp_path / "run", tmp_path / "outside"
    link = run / name
    link.parent.mkdir(parents=True)
    if not dangling:
        outside.write_text("loss,step\r\n")
    link.symlink_to(outside)
    with contextlib.suppress(OSError):
        WRITERS[name](run)
    assert not outside.exists() if dangling else outside.read_text() == "loss,step\n"


HUB = "{_target_: torch.hub.load, repo_or_dir: hub, model: model, source: local, trust_repo: true}"
BASIC = "hydra._internal.core_plugins.basic"
SWEEPER = f"# @package hydra.sweeper\n_target_: {BASIC}_sweeper.BasicSweeper\nmax_batch_size: 1\n"
LOGGING = "{version: 1, root: {level: INFO}, filters: {x: {(): evil.C}}}"


def through(group, option="x"):
    """An experiment that chooses an option of one of Hydra's own groups."""
    return f"defaults: [{{override /hydra/{group}: {option}}}]"


def launcher(name, setting):
    """An experiment that chooses what runs the jobs of a sweep, with a setting of its own."""
    return f"{through('launcher', name)}\nhydra: {{launcher: {{{setting}}}}}"


# What a folder from elsewhere may hold, and whether Hydra alone would run it. Hydra's own settings
# are tried with the smallest command, and the parts of a run with the one that builds them.
SETTINGS = {
    "callback": ({"experiment/x": f"hydra: {{callbacks: {{x: {HUB}}}}}"}, True),
    "callback group": (
        {
            "experiment/x": through("callbacks"),
            "hydra/callbacks/x": f"# @package hydra.callbacks\ny: {HUB}",
        },
        True,
    ),
    "job logging": ({"experiment/x": f"hydra: {{job_logging: {LOGGING}}}"}, True),
    "job logging's stream": (
        {"experiment/x": "hydra: {job_logging: {handlers: {terminal: {stream: 'ext://evil.x'}}}}"},
        True,
    ),
    "hydra logging": ({"experiment/x": f"hydra: {{hydra_logging: {LOGGING}}}"}, True),
    "environment": ({"experiment/x": "hydra: {job: {env_set: {PYTHONPATH: .}}}"}, False),
    "environment, interpolated": (
        {"experiment/x": "hydra: {job: {env_set: '${oc.create:{PYTHONPATH:x}}'}}"},
        False,
    ),
    "output": ({"experiment/x": "hydra: {output_subdir: ../mine}"}, False),
    "search path": ({"experiment/x": "hydra: {searchpath: ['pkg://evil']}"}, False),
    "launcher": (
        {
            "experiment/x": through("launcher"),
            "hydra/launcher/x": (
                f"# @package hydra.launcher\n_target_: {BASIC}_launcher.BasicLauncher\nx: [{HUB}]"
            ),
        },
        True,
    ),
    "launcher's script": (
        {"experiment/x": launcher("submitit_slurm", "setup: ['touch executed']")},
        True,
    ),
    "launcher's script, by a line that ends": (
        {"experiment/x": launcher("submitit_slurm", 'comment: "x\\ntouch executed\\n#"')},
        True,
    ),
    "launcher's script, by its folder": (
        {"experiment/x": launcher("submitit_slurm", 'submitit_folder: "x\\ntouch executed\\n#"')},
        True,
    ),
    "launcher's options": (
        {"experiment/x": launcher("submitit_slurm", "additional_parameters: {chdir: /elsewhere}")},
        False,
    ),
    "launcher's environment": (
        {"experiment/x": launcher("ray", "ray: {init: {runtime_env: {pip: [evil]}}}")},
        False,
    ),
    "launcher's cluster": (
        {"experiment/x": launcher("ray", "ray: {init: {address: 192.0.2.1:6379}}")},
        False,
    ),
    "sweeper": (
        {
            "experiment/x": through("sweeper"),
            "hydra/sweeper/x": f"{SWEEPER}params: {{x: {HUB}}}",
        },
        False,  # what a sweep is made of is read before Hydra makes its sweeper
    ),
    "sweeper, interpolated": (
        {
            "experiment/x": f"{through('sweeper')}\nevil: {HUB}",
            "hydra/sweeper/x": SWEEPER + "params: ${evil}",
        },
        True,
    ),
}
PARTS = {
    "tag": {"experiment/x": "seed: !!python/object/apply:os.system ['touch executed']"},
    "target": {"experiment/x": f"callbacks: {{mine: {HUB}}}"},
    "setting in one job of a sweep": {"experiment/x": f"hydra: {{job_logging: {LOGGING}}}"},
}


def write_folder(folder, files):
    for name, content in files.items():
        path = folder / "mine" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        package = "" if name.startswith("hydra") else "# @package _global_\n"
        path.write_text(package + content + "\n")


def use_folder(directory, files, command, *arguments, patch):
    """Use a folder of configurations with a command that fails in the end; return its error."""
    write_folder(directory, files)
    with pytest.raises((SystemExit, Exception)) as error:
        typed(command, "--config-dir", "mine", *arguments, directory=directory, patch=patch)
    return str(getattr(error.value, "code", error.value))


def sweeping(name):
    return ["--multirun", "seed=1,2"] if name.startswith(("launcher", "sweeper")) else ["seed=1"]


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """What runs the script of a job at once, in place of SLURM."""
    (tmp_path / "bin").mkdir()
    for name, line in {
        "sbatch": 'bash "$1"; exit 1',
        "srun": "exit 1",
        "squeue": "",
        "scancel": "",
    }.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.mark.usefixtures("sbatch")
@pytest.mark.parametrize("name", SETTINGS)
def test_hydras_settings_in_a_folder_from_elsewhere_run_nothing(
    tmp_path, monkeypatch, canary, name
):
    arguments = ["experiment=x", "model.latent_dim=0", *sweeping(name)]
    message = use_folder(tmp_path, SETTINGS[name][0], "train", *arguments, patch=monkeypatch)
    assert message.startswith(
        ("error: hydra.", "error: In 'experiment/x': Overriding hydra.searchpath is only supported")
    )
    assert len(message.splitlines()) == 1
    assert not canary.exists()
    assert "evil" not in sys.modules
    assert [path.name for path in tmp_path.iterdir() if path.name == "outputs"] == []


@pytest.mark.usefixtures("sbatch")
@pytest.mark.parametrize("name", [name for name, (_, runs) in SETTINGS.items() if runs])
def test_hydra_alone_would_run_them(tmp_path, monkeypatch, canary, name):
    monkeypatch.setattr(hydra_settings, "_check_hydra", lambda settings: None)
    for module in (command, multirun):
        monkeypatch.setattr(module, "check", lambda *_: None)
    use_folder(
        tmp_path,
        SETTINGS[name][0],
        "train",
        "experiment=x",
        "model.latent_dim=0",
        *sweeping(name),
        patch=monkeypatch,
    )
    assert canary.exists()


@pytest.mark.parametrize("name", PARTS)
def test_the_parts_of_a_run_in_a_folder_from_elsewhere_run_nothing(
    tmp_path, monkeypatch, canary, name
):
    arguments = (
        ["--multirun", "experiment=pytorch_example,x"]
        if name.endswith("sweep")
        else ["experiment=x"]
    )
    message = use_folder(tmp_path, PARTS[name], "train", *arguments, patch=monkeypatch)
    told = "not one of the allowed targets|.*: not offered"
    assert re.match(rf"error: (.*: {told}|could not determine a constructor)", message)
    assert len(message.splitlines()) == 1
    assert not canary.exists()
    assert "evil" not in sys.modules
    assert not (tmp_path / "outputs").exists()


TARGETS_ONLY = "not one of the allowed targets"
SLURM = "-m hydra/launcher=submitit_slurm"
COMMAND_LINES = {  # what is typed with the smallest command, and its error
    "+hydra.callbacks.x._target_=evil.C": (
        "hydra.callbacks={'x': {'_target_': 'evil.C'}}: not offered"
    ),
    "+hydra.job_logging.handlers.x.class=evil.C": "hydra.job_logging=",
    "+hydra.job.env_set.PYTHONPATH=.": "hydra.job.env_set={'PYTHONPATH': '.'}: not offered",
    "hydra.job.env_copy=[HOME]": "hydra.job.env_set={'HOME': ",
    "hydra.searchpath=[pkg://evil]": (
        "hydra.searchpath=[pkg://evil]: not offered; --config-dir adds"
    ),
    "hydra.output_subdir=../x": "hydra.output_subdir=../x: not offered",
    "--multirun seed=1,2 hydra.launcher._target_=evil.C": (
        f"hydra.launcher._target_=evil.C: {TARGETS_ONLY}"
    ),
    "--multirun seed=1,2 hydra.sweeper._target_=evil.C": (
        f"hydra.sweeper._target_=evil.C: {TARGETS_ONLY}"
    ),
    "--multirun seed=1,2 +hydra.launcher.x._target_=evil.C": (
        f"hydra.launcher.x._target_=evil.C: {TARGETS_ONLY}"
    ),
    "-m hydra/launcher=joblib hydra.launcher.backend=threading": (
        "hydra.launcher.backend='threading': not offered; there are"
    ),
    f"{SLURM} hydra.launcher.setup=[ls]": (
        "hydra.launcher.setup=['ls']: not offered; there are name,"
    ),
    f"{SLURM} hydra.launcher.comment='x$y'": "hydra.launcher.comment='x$y': not offered",
    "-m hydra/launcher=submitit_local": (
        "hydra/launcher=submitit_local: not found; choose from basic"
    ),
    "-m hydra/launcher=ray +hydra.launcher.ray.remote.runtime_env={}": (
        "hydra.launcher.ray.remote.runtime_env={}: not offered;"
    ),
    "-m hydra/launcher=ray hydra.launcher.ray.init.address=x:1": (
        "hydra.launcher.ray.init.address='x:1': not offered"
    ),
    "hydra/launcher=joblib": "hydra/launcher=joblib: only of a sweep, so with --multirun",
    "checkpoint=file:///x.ckpt": "checkpoint=file:///x.ckpt: an address",
    "hydra.run.dir=s3://bucket/x": "hydra.run.dir=s3://bucket/x: an address",
    "--config-path /elsewhere": (
        "--config-path, --config-name: not offered; --config-dir adds a folder"
    ),
    "-cn evil": "--config-path, --config-name: not offered",
    "--info searchpath hydra.searchpath=[pkg://evil]": "hydra.searchpath=[pkg://evil]: not offered",
    "--cfg hydra +hydra.callbacks.x._target_=evil.C": "hydra.callbacks=",
    "+mine={_target_:evil.C}": "unknown key mine",
    "data.dir=file:///digits": "unknown key data",
}
OF_TRAINING = {  # the same for the command that builds parts
    **{
        f"{group}._target_=evil.C": f"{group}._target_=evil.C: {TARGETS_ONLY}"
        for group in ("model", "optimizer", "data", "trainer")
    },
    "model.hidden_dims=[{_target_:evil.C}]": (
        f"model.hidden_dims.0._target_=evil.C: {TARGETS_ONLY}"
    ),
    "optimizer.options={_target_:evil.C}": f"optimizer.options._target_=evil.C: {TARGETS_ONLY}",
    "+callbacks.mine={_target_:os.system,_args_:[x],_partial_:true}": (
        "callbacks.mine._target_=os.system: not one of the"
    ),
    "logger.tensorboard.name=s3://bucket/x": (
        "logger.tensorboard.name=s3://bucket/x: an address, where a path of this machine"
    ),
    "logger.tensorboard.name=${oc.env:NO_SUCH,s3}:${oc.env:NO_SUCH,//}x": (
        "logger.tensorboard.name=s3://x: an address"
    ),
}


@pytest.mark.parametrize(
    ("command", "line", "message"),
    [("sample", *each) for each in COMMAND_LINES.items()]
    + [("train", *each) for each in OF_TRAINING.items()],
    ids=[*COMMAND_LINES, *(f"train {line}" for line in OF_TRAINING)],
)
def test_no_command_line_makes_a_configuration_run_code(
    tmp_path, monkeypatch, canary, command, line, message
):
    with pytest.raises(SystemExit) as exit_:
        typed(command, *line.split(), directory=tmp_path, patch=monkeypatch)
    assert str(exit_.value.code).startswith(f"error: {message}")
    assert len(str(exit_.value.code).splitlines()) == 1
    assert not canary.exists()
    assert "evil" not in sys.modules
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "command", ["evaluate", "sample", "encode", "visualize", "explore", "export"]
)
def test_an_address_is_no_checkpoint_and_nobody_is_asked(tmp_path, monkeypatch, command):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ckpt"
        told = f"^error: checkpoint={address}: an address, where a path of this machine is asked"
        with pytest.raises(SystemExit, match=told):
            typed(command, f"checkpoint={address}", directory=tmp_path, patch=monkeypatch)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert not list(tmp_path.iterdir())


def test_an_address_is_no_folder_of_pictures(tmp_path, monkeypatch):
    with pytest.raises(
        SystemExit,
        match=r"^error: images=ftp://x/y: an address, where a path of this machine is asked for$",
    ):
        typed("encode", "checkpoint=x", "images=ftp://x/y", directory=tmp_path, patch=monkeypatch)
    with pytest.raises(FileNotFoundError, match="not found; type a checkpoint file"):
        load_model("http://127.0.0.1/x.ckpt")


def test_an_address_is_refused_before_torch_is_imported(tmp_path):
    finished = run(
        "sample",
        "checkpoint=https://x/y",
        cwd=tmp_path,
        environment={"PYTHONPROFILEIMPORTTIME": "1"},
    )
    imported = {
        line.rsplit("|", 1)[1].strip()
        for line in finished.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert finished.returncode == 1
    assert "error: checkpoint=https://x/y: an address" in finished.stderr
    assert "torch" not in imported


# -- pictures -------------------------------------------------------------------------------------


def png(width, height):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(900)))
        + chunk(b"IEND", b"")
    )


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 28 28
%ImageData: 28 28 8 1 0 1 1 "image"
%%EndComments
(executed) (w) file closefile
%%EOF
"""
PICTURES = {
    "bomb.png": (png(60_000, 60_000), "has more than 67,108,864 pixels"),
    "large.png": (png(9_000, 9_000), "has more than 67,108,864 pixels"),
    "nothing.png": (png(0, 28), "is no picture, or damaged"),
    "cut.png": (png(28, 28)[:-30], "is no picture, or damaged"),
    "program.eps": (EPS, "holds no pictures"),
    "program.png": (EPS, "is no picture, or damaged"),
    "objects.npy": (None, "holds no pictures"),
    "objects.png": (None, "is no picture, or damaged"),
    "table.csv": (b"=cmd|' /C calc'!A0,1\n", "holds no pictures"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", PICTURES)
def test_a_hostile_picture_is_named_and_not_run(tmp_path, canary, monkeypatch, name):
    content, message = PICTURES[name]
    folder = tmp_path / "pictures"
    folder.mkdir()
    if content is None:
        with (folder / name).open("wb") as file:
            np.save(
                file,
                np.array([Runs(os.system, f"touch {canary}")], dtype=object),
                allow_pickle=True,
            )
    else:
        (folder / name).write_bytes(content)
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {canary}\n")  # what Pillow would run on EPS
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(ValueError, match=message):
        IMAGES.read(folder, (1, 28, 28), {})
    assert not canary.exists()
    if name == "program.eps":  # and would be
        with contextlib.suppress(OSError), Image.open(folder / name) as picture:
            picture.load()
        assert canary.exists()
    if name.startswith("objects"):
        np.load(folder / name, allow_pickle=True)
        assert canary.exists()


# -- the source -----------------------------------------------------------------------------------

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "torch.hub",
    "torch.jit",
}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
}
NEEDS = {  # by the last part of a call's name: the argument that it must bring
    "load_from_checkpoint": ("weights_only", True),
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
NEVER = {"weights_only": True, "allow_pickle": False, "shell": False, "trust_repo": False}


def faults(source):
    """Yield what in a source could run code from a file: the line and the name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
            )
            modules += (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            yield from (f"{node.lineno}: {module}" for module in modules if module in MODULES)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in MODULES | CALLS:
            yield f"{node.lineno}: {ast.unparse(node)}"
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
        if name in CALLS:
            yield f"{node.lineno}: {name}"
        for argument, value in given.items():
            if argument in NEVER and value is not NEVER[argument]:
                yield f"{node.lineno}: {name}({argument}={value})"
        needs = [need for call, need in NEEDS.items() if name == call or name.endswith(f".{call}")]
        if "ckpt_path" in given:
            needs.append(("weights_only", True))
        for argument, value in needs:
            if given.get(argument) is not value:
                yield f"{node.lineno}: {name} without {argument}={value}"


PACKAGE = Path(vae_lightning.__file__).parent


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_the_source_reads_nothing_that_could_run(file):
    assert not list(faults(file.read_text()))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from torch import hub",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=None)",
        "VAEModule.load_from_checkpoint(file)",
        "trainer.fit(module, data, ckpt_path=file)",
        "trainer.test(module, ckpt_path=file, weights_only=wanted)",
        "np.load(file)",
        "np.load(file, allow_pickle=True)",
        "np.savez(file, allow_pickle=True, x=x)",
        "yaml.load(file, Loader=yaml.Loader)",
        "yaml.unsafe_load(file)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "torch.hub.load(repo, name)",
        "torch.jit.load(file)",
    ],
)
def test_the_reading_of_the_source_sees(source):
    assert list(faults(source))
