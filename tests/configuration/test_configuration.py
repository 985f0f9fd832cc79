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
from vae_lightning.configuration import elsewhere, keys
from vae_lightning.configuration.composing import CONFIGS
from vae_lightning.configuration.keys import MOVED, check
from vae_lightning.configuration.targets import TARGETS
from vae_lightning.data.music.datamodule import Chorales, JSBChorales, Melodies
from vae_lightning.errors import ConfigurationError
from vae_lightning.models.musicvae.model import MusicVAE
from vae_lightning.models.prior.model import Prior
from vae_lightning.models.vqvae.model import VQVAE
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
    others = (
        "logger=csv",
        "logger=wandb",
        "logger=mlflow",
        "model=vqvae",
        "model=prior",
        "model=musicvae",
        *(f"data={name}" for name in ("melodies", "chorales", "jsb_chorales", "cifar10")),
        "data=folder",
        "data=arrays",
        "data=given",
        "callbacks=[default,ema]",
    )
    composed = [compose(), *(compose(each) for each in others)]
    assert ours <= {target for each in composed for target in targets(each)} <= TARGETS


def test_a_recipe_with_another_model_takes_the_keys_of_that_model():
    assert compose("experiment=vqvae", "model.codes=64").model.codes == 64
    assert compose("experiment=prior", "data.run=first", "model.width=32").model.width == 32
    with pytest.raises(ConfigurationError, match=r"unknown key model\.temperature"):
        compose("experiment=vqvae", "model=vae")
    with pytest.raises(ConfigurationError, match=r"unknown key model\.latnet_dim"):
        compose("experiment=vqvae", "+model.latnet_dim=3")
    with pytest.raises(ConfigurationError, match=r"unknown key model\.codes"):
        compose("experiment=speedrun", "+model.codes=64")


PARTS = [
    ("model", "vae", VAE),
    ("model", "vqvae", VQVAE),
    ("model", "prior", Prior),
    ("model", "musicvae", MusicVAE),
    ("optimizer", "adam", Optimization),
    ("data", "mnist", MNISTDataModule),
    ("data", "melodies", Melodies),
    ("data", "chorales", Chorales),
    ("data", "jsb_chorales", JSBChorales),
]


@pytest.mark.parametrize(("group", "option", "part"), PARTS)
def test_the_groups_keys_and_defaults_are_the_constructors(group, option, part):
    config = OmegaConf.to_container(compose(f"{group}={option}")[group], resolve=True)
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
    "+callbacks.stop._target_=lightning.pytorch.callbacks.EarlyStopping": (
        "callbacks.stop.monitor is missing: type callbacks.stop.monitor=…"
    ),
    "model.latnet_dim=3": f"unknown key model.latnet_dim: {LATENT_DIM}",
    "+model.latnet_dim=3": f"unknown key model.latnet_dim: {LATENT_DIM}",
    "++trainer.max_epoch=3": "unknown key trainer.max_epoch: did you mean trainer.max_epochs?",
    "modle.latent_dim=3": f"unknown key modle.latent_dim: {LATENT_DIM}",
    "latent_dim=3": f"unknown key latent_dim: {LATENT_DIM}",
    "modle=vae": "unknown key modle: did you mean model?",
    "~callbacks.nosuch": (
        "unknown key callbacks.nosuch: "
        "callbacks has best, code_grid, dashboard, early_stopping, interpolation, kl"
    ),
    "model=nosuch": ("model=nosuch: not found; choose from conditional, convolutional"),
    "experiment=nosuch": ("experiment=nosuch: not found; choose from aevb, chorales, iwae"),
    "optimizer=nosuch": (
        "optimizer=nosuch: not found; choose from adagrad, adam, adamw, rmsprop, sgd"
    ),
    "latent": "'latent': not a setting; type key=value",
    "model.network=a(b": (
        "model.network=a(b: not understood; as a text it is typed "
        """'model.network='"'"'a(b'"'"''"""
    ),
    "model.hidden_dims.-1=3": "model.hidden_dims.-1=3: model.hidden_dims.-1 is no key; --cfg job",
    "model.latent_dim=2,5": (
        "Ambiguous value for argument 'model.latent_dim=2,5': "
        "a list is typed as [2,5]; --multirun trains once for each value"
    ),
    "~model": "~model: a group can't be left out; choose from conditional, convolutional",
    "logger=null": "logger=null: a group can't be left out; choose from csv, mlflow, none",
    "callbacks.last._target_=torch.hub.load": (
        f"callbacks.last._target_=torch.hub.load: {TARGETS_ONLY}"
    ),
    "trainer.device=2": "unknown key trainer.device: did you mean trainer.devices",
    "model.seed=3": "unknown key model.seed",
    "hydra.run.dir=mine model.latnet_dim=3": f"unknown key model.latnet_dim: {LATENT_DIM}",
    "+data@foo=mnist": "unknown key foo",
    "callbacks.last._target_=[a]": f"callbacks.last._target_=['a']: {TARGETS_ONLY}",
    "--experimental-rerun=config.pickle": "--experimental-rerun would run code from a file",
    "--exp=config.pickle": "--exp=config.pickle: not an option; settings are typed as key=value",
    "+experiment.model.latent_dim=5": f"unknown key experiment.model.latent_dim: {LATENT_DIM}",
    "experiment.seed=5": "unknown key experiment.seed: did you mean seed?",
    "logger=none +logger.foo=1": "unknown key logger.foo: there is no logger; logger=csv",
    "+callbacks.x=5": "unknown key callbacks.x: callbacks has best, ",
    "callbacks=minimal callbacks.latents.count=5": (
        "unknown key callbacks.latents.count: callbacks=[minimal,latents] adds callbacks.latents"
    ),
    "callbacks.best=5": "callbacks.best=5: holds settings, so type callbacks.best.<name>=…",
    "callbacks.early_stopping.min_delta=2": (
        "callbacks.early_stopping.min_delta=2: changes nothing without a patience; "
        "type callbacks.early_stopping.patience=… as well"
    ),
    "callbacks=[]": "callbacks=[]: a group can't be left out; choose from best, code_grid",
    "callbacks=[nosuch]": "callbacks=nosuch: not found; choose from best, code_grid",
    "model=5": "model=5: not found; choose from conditional, convolutional",
    "model=": "model=: not found; choose from conditional, convolutional",
    "+model=null": "model=null: a group can't be left out; choose from conditional, convolutional",
    "model=a/b": "model=a/b: not found; choose from conditional, convolutional",
    "experiment=5": "experiment=5: not found; choose from aevb, chorales, iwae",
    "++model.hidden_dims.a=1": (
        "++model.hidden_dims.a=1: model.hidden_dims holds a value, no settings; "
        "type model.hidden_dims=…"
    ),
    "++seed.x=1": "++seed.x=1: seed holds a value, no settings; type seed=…",
    "=3": "=3: no key; type key=value",
    "~trainer.max_epochs": "~trainer.max_epochs: can't be left out; type trainer.max_epochs=… to",
    "~trainer.accelerator": "~trainer.accelerator: can't be left out; type trainer.accelerator=…",
    "~model.latent_dim": "~model.latent_dim: can't be left out; type model.latent_dim=… to change",
    "~data.batch_size=128": "~data.batch_size=128: can't be left out; type data.batch_size=… to",
    "~seed": "~seed: can't be left out; type seed=… to change it",
    "~resume": "~resume: can't be left out; type resume=… to change it",
    "~callbacks.best.monitor": "~callbacks.best.monitor: can't be left out; type callbacks.",
    "~hydra.run.dir": "~hydra.run.dir: not offered; type a setting, as hydra.run.dir=…",
    "hydra=null": "hydra=null: not offered; type a setting, as hydra.run.dir=…",
    "hydra.job.name=x": "hydra.job.name=x: changes nothing here; of Hydra's settings there are ",
    "hydra.job.chdir=true": "hydra.job.chdir=True: changes nothing here; of Hydra's settings there",
    "+hydra.nosuch=1": "hydra.nosuch=1: changes nothing here; of Hydra's settings there are ",
    "hydra.verbose=x": "hydra.verbose=x: must be true or false",
    "seed=${seed}": "seed=${seed}: Recursive interpolation detected",
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


RECIPES = {
    "model:\n  latent_dim: 5\n": "experiment=mine: no part gets its values; "
    "let {file} begin with the line\n# @package _global_",
    "# @package _global_\nmodel: null\n": "model=None: holds settings, so type model.<name>=…",
    "# @package _global_\ntrainer: 5\n": "trainer=5: holds settings, so type trainer.<name>=…",
    "# @package _global_\nhydra:\n  job: {chdir: true}\n": "hydra.job.chdir=True: changes nothing",
    "# @package _global_\nmodel:\n  1: 5\n": "unknown key model.1: model has ",
    "# @package _global_\nmodel:\n  network: é\n": "the configuration can't be composed: 'utf-8' ",
    "# @package _global_\n- 1\n": "In 'experiment/mine': ConfigTypeError raised while composing ",
    "# @package _global_\nmodel: &a\n  x: *a\n": "the configuration can't be composed: maximum rec",
    "# @package _global_\ndefaults: 5\n": "the configuration can't be composed: Invalid defaults ",
    "# @package _global_\ndefaults: [nosuch]\n": "experiment=nosuch: not found; choose from aevb, ",
}


@pytest.mark.parametrize(("recipe", "message"), RECIPES.items(), ids=range(len(RECIPES)))
def test_a_recipe_that_reaches_no_part_or_can_not_be_read_is_refused(
    tmp_path, monkeypatch, recipe, message
):
    folder, here = tmp_path / "recipes" / "experiment", tmp_path / "here"
    folder.mkdir(parents=True)
    here.mkdir()
    (folder / "mine.yaml").write_bytes(recipe.encode("latin-1"))
    message = message.format(file=folder / "mine.yaml")
    for more in ([], ["--multirun", "seed=1,2"]):
        line = ["--config-dir", str(tmp_path / "recipes"), "experiment=mine", *more]
        told = refusal(here, monkeypatch, *line)
        if not (more and "hydra" in recipe):  # which each job reports
            assert told.startswith(f"error: {message}")


def test_a_search_without_its_package_is_refused_too(tmp_path, monkeypatch):
    folder, here = tmp_path / "mine" / "search", tmp_path / "here"
    folder.mkdir(parents=True)
    here.mkdir()
    (folder / "own.yaml").write_text("search:\n  model:\n    latent_dim: [2, 3]\n")
    line = ["--config-dir", str(tmp_path / "mine"), "search=own"]
    told = refusal(here, monkeypatch, *line, command="tune")
    assert told.startswith("error: search=own: no part gets its values; let ")


def test_a_trainer_of_ones_own_has_all_keys_that_ours_sets(tmp_path, monkeypatch):
    folder, here = tmp_path / "mine" / "trainer", tmp_path / "here"
    folder.mkdir(parents=True)
    here.mkdir()
    line = ["--config-dir", str(tmp_path / "mine"), "trainer.max_epochs=-7"]
    text = "_target_: lightning.Trainer\nmax_epochs: 1\n"
    (folder / "short.yaml").write_text(text)
    (folder / "whole.yaml").write_text(f"defaults: [default]\n{text}")
    told = refusal(here, monkeypatch, *line, "trainer=short")
    assert told.startswith("error: trainer.accelerator is missing: a file of your own for the ")
    assert "trainer.max_epochs=-7: must" in refusal(here, monkeypatch, *line, "trainer=whole")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+model.latent_dim=5", "unknown key model.latent_dim: "),
        ("+experiment.seed=5", "unknown key experiment.seed: "),
        ("experiment=iwae", "unknown key experiment: "),
        ("data=mnist", "data=mnist: data holds settings here, so type data.<name>=…"),
        ("++data=5", "++data=5: data holds settings here, so type data.<name>=…"),
        ("trainer=null", "trainer=null: trainer holds settings here, so type trainer.<name>=…"),
        ("~data.dir", "~data.dir: can't be left out; type data.dir=… to change it"),
    ],
)
def test_what_another_command_would_read_is_refused(tmp_path, monkeypatch, override, message):
    told = refusal(tmp_path, monkeypatch, "checkpoint=x", override, command="evaluate")
    assert told.startswith(f"error: {message}")


# -- other projects' names ------------------------------------------------------------------------

OTHER_NAMES = {
    "epochs=3": "trainer.max_epochs",
    "lr=1e-2": "optimizer.learning_rate",
    "optimizer.lr=1e-2": "optimizer.learning_rate",
    "learning_rate=1": "optimizer.learning_rate",
    "model.beta=4": "model.kl_weight",
    "beta=4": "model.kl_weight",
    "z_dim=2": "model.latent_dim",
    "model.z-dim=2": "model.latent_dim",
    "hidden_size=2": "model.hidden_dims",
    "bs=3": "data.batch_size",
    "batch_size=3": "data.batch_size",
    "overfit_batches=1": "trainer.overfit_batches",
    "profile=simple": "trainer.profiler",
    "patience=3": "callbacks.early_stopping.patience",
    "gpus=2": "trainer.devices",
    "device=cuda": "trainer.accelerator",
    "use_cuda=true": "trainer.accelerator=gpu",
    "no_cuda=true": "trainer.accelerator=cpu",
    "out=x": "hydra.run.dir",
    "ckpt=x": "resume",
    "dataset=mnist": "data",
    "data_dir=x": "data.dir",
    "optim=sgd": "optimizer",
}


@pytest.mark.parametrize(("override", "ours"), OTHER_NAMES.items(), ids=OTHER_NAMES.keys())
def test_another_projects_name_is_answered_with_ours(tmp_path, monkeypatch, override, ours):
    key = override.partition("=")[0]
    told = refusal(tmp_path, monkeypatch, override)
    assert told == f"error: unknown key {key}: did you mean {ours}?"


def test_what_nothing_here_has_is_said_to_be_missing(tmp_path, monkeypatch):
    for key in ("num_workers", "data.num_workers"):
        told = refusal(tmp_path, monkeypatch, f"{key}=2")
        assert (
            told == f"error: unknown key {key}: the images lie in memory, and no workers load them"
        )


def test_the_table_of_names_leads_to_keys_that_a_command_has():
    known = {"hydra.run.dir"}
    for root in CONFIGS.glob("*.yaml"):
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            known |= keys.known_keys(root.stem, [])
    assert {each.partition("=")[0] for each in elsewhere.INSTEAD} <= known
    for instead, names in elsewhere.INSTEAD.items():
        key = instead.partition("=")[0]
        for name in names.split():
            assert elsewhere.instead_of(name, {key}) is not None
            assert elsewhere.instead_of(name.upper().replace("_", "-"), {key}) is not None


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
    keys._composed.cache_clear()
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
