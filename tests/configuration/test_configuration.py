"""The configuration: every file composes, keys follow the constructors, mistakes need no torch."""

import concurrent.futures
import inspect
import sys

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import OmegaConf

from conftest import run, typed
from vae_lightning import VAE, MNISTDataModule
from vae_lightning.configuration import keys
from vae_lightning.configuration.composing import CONFIGS
from vae_lightning.configuration.keys import MOVED, check
from vae_lightning.configuration.targets import TARGETS
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs.directory import make_directory
from vae_lightning.training.optimizers import Optimization


def compose(*overrides, name="train"):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose(name, list(overrides))
        check(name, config, overrides)
        return config


def groups():
    return [path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.glob("*/*.yaml")]


@pytest.mark.parametrize("option", groups(), ids=str)
def test_every_option_of_every_group_composes(option):
    if option.parent.name == "callbacks" and option.name not in ("default", "minimal"):
        assert (
            f"{option.name}:" in (CONFIGS / option.with_suffix(".yaml")).read_text()
        )  # composed by those two
    else:
        compose(
            f"{option.parent}={option.name}",
            name="tune" if option.parent.name == "search" else "train",
        )


def targets(node):
    node = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if isinstance(node, dict):
        yield from [node["_target_"]] if "_target_" in node else []
        for child in node.values():
            yield from targets(child)


def test_every_target_on_the_list_exists_and_every_target_of_ours_is_on_it():
    for target in TARGETS:
        assert inspect.isclass(hydra.utils.get_class(target))
    ours = {target for target in TARGETS if target.startswith("vae_lightning")}
    assert set(targets(compose())) <= TARGETS
    assert ours <= set(targets(compose())) | set(targets(compose("logger=csv"))) <= TARGETS


PARTS = [("model", VAE), ("optimizer", Optimization), ("data", MNISTDataModule)]


@pytest.mark.parametrize(("group", "part"), PARTS)
def test_the_groups_keys_and_defaults_are_the_constructors(group, part):
    config = OmegaConf.to_container(compose()[group], resolve=True)
    assert hydra.utils.get_class(config.pop("_target_")) is part
    parameters = inspect.signature(part.__init__).parameters
    # The run hands its one seed to the data, and the data's spec to the model.
    assert set(config) == set(parameters) - {"self", "seed", "data"}
    for key, value in config.items():
        default = parameters[key].default
        assert value == (list(default) if isinstance(default, tuple) else default), key


def test_the_trainers_keys_are_lightnings():
    from lightning import Trainer

    config = compose().trainer
    assert hydra.utils.get_class(config["_target_"]) is Trainer
    assert set(config) - {"_target_"} <= set(inspect.signature(Trainer).parameters)


def test_the_issues_example_composes_as_typed():
    config = compose("trainer.accelerator=gpu", "model.latent_dim=10", "data.batch_size=256")
    assert (config.trainer.accelerator, config.model.latent_dim, config.data.batch_size) == (
        "gpu",
        10,
        256,
    )
    assert compose("trainer=gpu").trainer.accelerator == "gpu"
    assert compose("seed=0").seed == 0


def test_the_example_experiment_is_the_example():
    config = compose("experiment=pytorch_example")
    model, data, optimizer = config.model, config.data, config.optimizer
    assert (model.latent_dim, model.hidden_dims) == (20, [400])
    assert (optimizer.name, optimizer.learning_rate) == ("adam", 1e-3)
    assert (data.batch_size, data.val_size, data.validate_on_test) == (128, 0, True)
    assert (config.trainer.max_epochs, config.seed) == (10, 1)


@pytest.mark.parametrize(
    "target",
    [
        "torch.hub.load",
        "torch.utils.collect_env.run",
        "os.system",
        "lightning",
        "vae_lightning.training.callbacks.Progres",
    ],
)
def test_targets_are_allowed_by_full_name_only(target):
    with pytest.raises(ConfigurationError, match=f"callbacks.last._target_={target}"):
        compose(f"callbacks.last._target_={target}")


LATENT_DIM = "did you mean model.latent_dim?"
TARGETS_ONLY = "not one of the allowed targets"
MISTAKES = {
    "model.latnet_dim=3": f"unknown key model.latnet_dim: {LATENT_DIM}",
    "+model.latnet_dim=3": f"unknown key model.latnet_dim: {LATENT_DIM}",
    "++trainer.max_epoch=3": "unknown key trainer.max_epoch: did you mean trainer.max_epochs?",
    "modle.latent_dim=3": f"unknown key modle.latent_dim: {LATENT_DIM}",
    "latent_dim=3": f"unknown key latent_dim: {LATENT_DIM}",
    "modle=vae": "unknown key modle: did you mean model?",
    "~callbacks.nosuch": (
        "unknown key callbacks.nosuch: "
        "callbacks has best, dashboard, interpolation, kl_bars, last, lat"
    ),
    "model=nosuch": (
        "model=nosuch: there is none of that name; choose from conditional, convolutional, vae"
    ),
    "experiment=nosuch": (
        "experiment=nosuch: there is none of that name; "
        "choose from aevb, iwae, jaanli, pytorch_example"
    ),
    "optimizer=nosuch": (
        "optimizer=nosuch: there is none of that name; "
        "choose from adagrad, adam, adamw, rmsprop, sgd"
    ),
    "latent": "'latent' is no override: write key=value",
    "data.dir=~/x": (
        "data.dir=~/x: not understood; a value with signs that mean something to Hydra is quoted: "
    ),
    "model.latent_dim=2,5": (
        "Ambiguous value for argument 'model.latent_dim=2,5': "
        "a list is written [2,5]; several runs, "
    ),
    "~model": "~model: a group can't be left out; choose from conditional, convolutional, vae",
    "logger=null": "logger=null: a group can't be left out; choose from csv, none, tensorboard",
    "callbacks.last._target_=torch.hub.load": (
        f"callbacks.last._target_=torch.hub.load: {TARGETS_ONLY}"
    ),
    "trainer.device=2": "unknown key trainer.device: did you mean trainer.devices",
    "model.seed=3": "unknown key model.seed",
    "hydra.run.dir=mine model.latnet_dim=3": f"unknown key model.latnet_dim: {LATENT_DIM}",
    "+data@foo=mnist": "unknown key foo",
    "callbacks.last._target_=[a]": f"callbacks.last._target_=['a']: {TARGETS_ONLY}",
    "--experimental-rerun=config.pickle": "--experimental-rerun would run code from a file",
    "--exp=config.pickle": "--experimental-rerun would run code from a file",
    "+hydra.callbacks.x._target_=os.system": (
        "hydra.callbacks={'x': {'_target_': 'os.system'}}: not offered"
    ),
}


@pytest.mark.parametrize(("mistake", "message"), MISTAKES.items(), ids=MISTAKES.keys())
def test_a_mistake_is_told_in_a_line_or_two_and_leaves_nothing_behind(
    tmp_path, monkeypatch, mistake, message
):
    with pytest.raises(SystemExit) as exit_:
        typed("train", *mistake.split(), directory=tmp_path, patch=monkeypatch)
    assert str(exit_.value.code).startswith(
        f"error: {message}"
    )  # a string: printed, and exit code 1
    assert len(str(exit_.value.code).splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def refusal(directory, patch, *arguments, command="train"):
    """Return what a command that is refused says."""
    with pytest.raises(SystemExit) as exit_:
        typed(command, *arguments, directory=directory, patch=patch)
    assert not list(directory.iterdir())
    return exit_.value.code


@pytest.mark.parametrize(("earlier", "now"), MOVED.items(), ids=MOVED.keys())
def test_a_key_of_version_0_1_is_answered_with_its_new_name(tmp_path, monkeypatch, earlier, now):
    told = f"error: {earlier}: is called {now} since version 0.2"
    for override in (f"{earlier}=1", f"+{earlier}=1", f"~{earlier}", f"{earlier}=1,2 --multirun"):
        assert refusal(tmp_path, monkeypatch, *override.split()) == told
    assert OmegaConf.select(compose(), earlier) is None
    assert OmegaConf.select(compose(), now, throw_on_missing=True, default="absent") != "absent"


def test_a_key_below_one_of_version_0_1_is_answered_too(tmp_path, monkeypatch):
    told = refusal(tmp_path, monkeypatch, "+model.optimizer_options.eps=1e-4")
    assert "model.optimizer_options.eps: is called optimizer.options.eps since" in told


def test_a_search_over_a_key_of_version_0_1_is_answered_too(tmp_path, monkeypatch):
    rates = "search.model.learning_rate=[1e-3,1e-2]"
    told = refusal(tmp_path, monkeypatch, rates, command="tune")
    assert "search.model.learning_rate: is called search.optimizer.learning_rate since" in told


def test_a_mistake_in_a_sweep_leaves_nothing_behind_either(tmp_path, monkeypatch):
    for arguments in (["model.latnet_dim=3,4"], ["model=vae,nosuch"], ["seed=1,2", "+model.foo=1"]):
        with pytest.raises(SystemExit, match="error: "):
            typed("train", "--multirun", *arguments, directory=tmp_path, patch=monkeypatch)
    assert not list(tmp_path.iterdir())


def test_an_interpolation_can_not_bring_in_a_target(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        SystemExit, match=r"callbacks\.last\._target_=evil\.C: not one of the allowed targets"
    ):
        typed(
            "train",
            'callbacks.last="${oc.create:{_target_:evil.C}}"',
            directory=tmp_path,
            patch=monkeypatch,
        )


def test_a_config_directory_of_ones_own_is_searched_and_its_keys_are_checked(tmp_path, monkeypatch):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    for name, key in (("good", "model"), ("bad", "modle")):
        (tmp_path / "mine" / "experiment" / f"{name}.yaml").write_text(
            f"# @package _global_\n{key}:\n  latent_dim: 0\n"
        )
    for experiment, message in (
        ("good", "model.latent_dim=0: must be"),
        ("bad", "unknown key modle: did you mean model"),
    ):
        with pytest.raises(SystemExit, match=message):
            typed(
                "train",
                "--config-dir",
                "mine",
                f"experiment={experiment}",
                directory=tmp_path,
                patch=monkeypatch,
            )
    with pytest.raises(SystemExit, match=r"did you mean model\.latent_dim"):
        typed(
            "train",
            "--config-dir",
            "mine",
            "model.latnet_dim=3",
            directory=tmp_path,
            patch=monkeypatch,
        )


def test_the_whole_traceback_comes_on_request(tmp_path):
    finished = run(
        "train", "model.latnet_dim=3", cwd=tmp_path, environment={"HYDRA_FULL_ERROR": "1"}
    )
    assert finished.returncode == 1
    assert "Traceback" in finished.stderr


QUICK = [["--help"], ["--cfg", "job"], ["model.latnet_dim=3"], ["model=nosuch"]]


@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_help_and_typos_are_answered_without_importing_torch(tmp_path, arguments):
    finished = run("train", *arguments, cwd=tmp_path, environment={"PYTHONPROFILEIMPORTTIME": "1"})
    imported = {
        line.rsplit("|", 1)[1].strip()
        for line in finished.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "hydra" in imported
    assert not imported & {"torch", "numpy", "lightning", "pydantic"}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "typo",
    [
        "model.latnet_dim=3",
        "+model.latnet_dim=3",
        "latent_dim=3",
        "--multirun model.latnet_dim=3,4",
    ],
)
def test_a_typo_costs_one_composition(tmp_path, monkeypatch, typo):
    keys._composed_keys.cache_clear()
    composed = []
    compose = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl,
        "load_configuration",
        lambda *args, **named: composed.append(1) or compose(*args, **named),
    )
    with pytest.raises(SystemExit, match=r"did you mean model\.latent_dim"):
        typed("train", *typo.split(), directory=tmp_path, patch=monkeypatch)
    assert len(composed) == 1


def test_help_shows_a_newcomer_the_ten_overrides(capsys, tmp_path, monkeypatch):
    typed("train", "--help", directory=tmp_path, patch=monkeypatch)
    text = capsys.readouterr().out
    shown = [
        line.split()[0].split("=")
        for line in text.split("defaults:")[1].split("\n\n")[0].splitlines()[1:]
    ]
    assert len(shown) == 10
    config = compose()
    for key, value in shown:
        if key in ("data", "experiment"):
            continue
        assert OmegaConf.select(config, key) == OmegaConf.create(f"value: {value}").value, key


def test_directories_made_in_the_same_instant_are_all_different(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda _: make_directory(tmp_path / "outputs"), range(100)))
    assert len(set(made)) == 100
    assert all(path.is_dir() for path in made)
    assert {path.name[:19] for path in made} == {
        path.name[:19] for path in (tmp_path / "outputs").iterdir()
    }


def test_importing_the_package_imports_nothing_heavy():
    import subprocess

    code = "import sys, vae_lightning; assert not {'torch', 'numpy', 'hydra'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
