"""What is typed is trained with as it is, or refused.

The overrides are generated, documented, or were once let through.
"""

import math
import re
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

from chaos.overrides import Outcome, Override, examples, fault, meaning, run_here
from conftest import SUBSET, typed
from vae_lightning import VAEModule
from vae_lightning.configuration.building import build_part
from vae_lightning.configuration.composing import CONFIGS
from vae_lightning.configuration.keys import check
from vae_lightning.errors import ConfigurationError
from vae_lightning.training import experiment
from vae_lightning.training.callbacks.progress import Throughput
from vae_lightning.training.optimizers import Optimization
from vae_lightning.training.trainer import build_trainer

PROJECT = Path(__file__).parents[2]


def compose(command, *overrides):
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = hydra.compose(command, list(overrides))
        check(command, config, overrides)
        return config


@pytest.mark.slow
def test_generated_overrides_train_as_typed_or_are_refused():
    """The full form: make chaos."""
    drawn = examples(20)
    assert len(drawn) == 20
    outcomes = {str(override): (override, run_here(override)) for override in drawn}
    assert {
        name: told
        for name, (override, outcome) in outcomes.items()
        if (told := fault(override, outcome))
    } == {}
    assert {outcome.kind for _, outcome in outcomes.values()} == {"trained", "refused"}


RIGHT = Override("model.latent_dim", "3", 3)
WRONG = Override("model.latent_dim", "0", 0)


@pytest.mark.parametrize(
    ("override", "outcome", "told"),
    [
        (WRONG, Outcome("trained", received=0), "trained with a wrong value"),
        (RIGHT, Outcome("trained", received="3"), "received as '3'"),
        (RIGHT, Outcome("trained", received=True), "received as True"),
        (RIGHT, Outcome("refused", "model.latent_dim"), "a right value was refused"),
        (WRONG, Outcome("refused", "must be greater than 0"), "the key isn't named"),
        (WRONG, Outcome("refused", "latent_dim\n" * 6), "told in 6 lines"),
        (WRONG, Outcome("refused", "latent_dim", left=["outputs"]), r"left \['outputs'\] behind"),
        (WRONG, Outcome("refused", "latent_dim", processor_seconds=3.5), r"refused after 3\.5 s"),
        (WRONG, Outcome("crashed", "TypeError"), "crashed"),
    ],
)
def test_the_campaign_sees_each_fault(override, outcome, told):
    assert re.match(told, fault(override, outcome))
    assert fault(RIGHT, Outcome("trained", received=3)) is None
    assert fault(WRONG, Outcome("refused", "model.latent_dim=0: must be greater than 0")) is None


@pytest.mark.parametrize(
    ("key", "value", "is_right"),
    [
        ("model.latent_dim", True, False),
        ("model.latent_dim", 2.0, False),
        ("model.kl_weight", 2, True),
        ("model.kl_weight", math.inf, False),
        ("model.hidden_dims", [], True),
        ("model.hidden_dims", [8, True], False),
        ("seed", 2**32 - 1, True),
        ("seed", 2**32, False),
        ("trainer.limit_train_batches", 1.5, False),
        ("trainer.max_epochs", -2, False),
    ],
)
def test_the_campaign_knows_right_from_wrong(key, value, is_right):
    assert (meaning(Override(key, "", value)) == "right") is is_right


@pytest.fixture(scope="module")
def plain():
    return compose(
        "train", *SUBSET, "callbacks=minimal", "~callbacks.best", "~callbacks.last", "logger=none"
    )


MENDED = {
    "model.kl_weight": [math.inf, math.nan],
    "model.free_bits": [math.inf, 1e39, 1e-50],
    "optimizer.weight_decay": [math.inf],
    "optimizer.schedule_passes": [[]],
    "model.latent_dim": [2**64, 10**9],
    "model.hidden_dims": [[2**64], [10**9], 400, "abc"],
    "model.num_samples": [10**7],
    "optimizer.options": [
        {"amsgrad": "abc"},
        {"eps": math.inf},
        {"betas": [0.9]},
        {"foreach": True},
        {"eps": 1e-300},
        {"eps": "1e-4"},
    ],
    "data.batch_size": [2**64],
    "data.dir": [""],
    "trainer.max_epochs": [-2, None],
    "trainer.max_steps": [-2],
    "trainer.limit_train_batches": [-1, 1.5, math.nan, True, None, 0.1],
    "trainer.limit_test_batches": [-1, 0.5],
    "trainer.fast_dev_run": [-1],
    "trainer.log_every_n_steps": [-1],
    "trainer.gradient_clip_val": [-1, math.nan, math.inf],
    "trainer.num_sanity_val_steps": [-2],
    "trainer.precision": ["16-mixed", "transformer-engine", None],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in MENDED.items() for value in values], ids=str
)
def test_a_wrong_value_that_a_library_takes_is_refused(plain, key, value):
    config = plain.copy()
    OmegaConf.update(config, key, value, merge=False)
    with pytest.raises(ConfigurationError, match=re.escape(key)):
        experiment.build(config)


@pytest.mark.parametrize(
    "options",
    [{"div_factor": -25.0}, {"pct_start": "0.1"}, {"last_epoch": 3}, {"max_momentum": 5.0}],
    ids=str,
)
def test_an_option_of_a_schedule_is_checked(plain, options):
    config = plain.copy()
    OmegaConf.update(config, "optimizer.schedule", "one_cycle")
    OmegaConf.update(config, "optimizer.schedule_options", options, merge=False)
    with pytest.raises(ConfigurationError, match=r"optimizer\.schedule_options"):
        experiment.build(config)


def test_a_reference_is_followed_and_shown_as_typed(tmp_path, monkeypatch):
    target = "vae_lightning.training.callbacks.dashboard.Dashboard"
    arguments = [
        "seed=2",
        "model.latent_dim=${seed}",
        "trainer.max_epochs=1",
        "callbacks=minimal",
        f"+callbacks.dashboard._target_={target}",
    ]
    typed("train", *SUBSET, *arguments, directory=tmp_path, patch=monkeypatch)
    [run] = (tmp_path / "outputs" / "train").iterdir()
    assert "VAE with 2 latents" in (run / "train.log").read_text()
    assert any(
        b"model.latent_dim=${seed}" in file.read_bytes() for file in (run / "tensorboard").iterdir()
    )


@pytest.mark.parametrize(
    "reference", ["${model.nosuch}", "${nosuch:1}", "${oc.env:NO_SUCH_VARIABLE}"]
)
def test_a_reference_to_nothing_is_told_with_its_key(tmp_path, monkeypatch, reference):
    with pytest.raises(SystemExit, match=rf"error: model\.latent_dim={re.escape(reference)}: "):
        typed(
            "train",
            *SUBSET,
            f"model.latent_dim='{reference}'",
            directory=tmp_path,
            patch=monkeypatch,
        )
    assert list(tmp_path.iterdir()) == []


# -- the documentation ----------------------------------------------------------------------------

TEXTS = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile")),
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted(CONFIGS.rglob("*.yaml")),
]
GROUPS = "model|optimizer|data|trainer|callbacks|logger|experiment|seed"
OVERRIDE = re.compile(
    rf"(?<![\w.\-])~?(?:{GROUPS})(?:\.\w+)*="
    r"(?:\[[^\]$]*\]|\{[^}$]*\}|[\w.+,|-]*[\w])(?=[\s`'\",.;:)\]]|$)"
)
CHOICE = re.compile(r"(?<![\w.])(?:experiment|model|data)=\w+(?=[\s`)]|$)")
LEFT_OUT = re.compile(r"(?<![\w.])~callbacks\.\w+")
COMMAND = re.compile(r"python -m vae_lightning\.(\w+)([^#\n`]*)")

COMPANIONS = {
    "data.dequantize=true": "model.likelihood=gaussian",
    "data.file": "data=arrays",
    "logger.wandb.offline=true": "logger=wandb",
    "data.val_share": "data=folder",
    "data=melodies": "model=musicvae",
    "data=chorales": "model=musicvae",
    "data=jsb_chorales": "model=musicvae",
    "model=musicvae": "data=melodies",
    "model.kl_schedule": "model.kl_schedule_steps=10",
}
"""What an override needs beside it."""

OWN = ("--config-dir", "allow=", "fit(")
"""What shows that a line names classes or objects of the user's own."""

FILES = {"data=folder", "data=arrays", "experiment=pictures"}
"""What asks for files of the user's own, which aren't here."""

ELSEWHERE = {"data.limit_test": "evaluate"}
"""The command of a key that train doesn't have."""


def spans(line):
    """Return what a line says to type together: its code spans, or all of it."""
    return re.findall(r"`([^`]+)`", line) or [line]


def documented():
    """Return the documented overrides with their commands, each choice of several on its own.

    A choice of model, data or experiment goes with the others of its span.
    """
    found = {}
    for text in TEXTS:
        content = text.read_text().replace("\\\n", " ")
        for line in content.splitlines():
            command = match[1] if (match := COMMAND.search(line)) else None
            typed_together = [
                (override, [each for each in CHOICE.findall(span) if each != override])
                for span in spans(line)
                for override in (*OVERRIDE.findall(span), *LEFT_OUT.findall(span))
            ]
            for override, beside in typed_together:
                key, equals, values = override.partition("=")
                choices = (
                    re.split(r"[,|]", values) if not values.startswith(("[", "{")) else [values]
                )
                root = command or ELSEWHERE.get(
                    key, text.stem if text.parent == CONFIGS else "train"
                )
                if key.startswith("model"):
                    root = "train"  # also where a page says how a checkpoint was trained
                if override == "experiment=null" or any(each in line for each in OWN):
                    continue  # the command takes the first off; the others are the user's own
                for value in choices:
                    beside = beside if root == "train" else []
                    found.setdefault((root, f"{key}{equals}{value}"), beside)
    return [pytest.param(*each, beside, id=" ".join(each)) for each, beside in found.items()]


def test_the_documentation_is_read():
    found = {each.id for each in documented()}
    assert {
        "train model.latent_dim=5",
        "train ~callbacks.projector",
        "train optimizer.schedule_passes=[1,1,2,3,4,6,9,14]",
    } <= found
    assert {
        "evaluate data.limit_test=500",
        "train experiment=iwae",
        "train model.kl_schedule=cyclical",
    } <= found


@pytest.mark.parametrize(("command", "override", "beside"), documented())
@pytest.mark.slow
def test_a_documented_override_is_accepted(command, override, beside):
    needed = COMPANIONS.get(override, COMPANIONS.get(override.partition("=")[0]))
    composed = compose(command, *beside, *filter(None, (needed,)), override)
    other_machines = ("trainer.accelerator=gpu", "trainer.devices=", "trainer.num_nodes=")
    of_a_run = ("model=prior", "experiment=prior", "data=codes", "data.run=")  # which isn't here
    asks_for_files = FILES & {override, needed, *beside}
    typed_together = (override, *beside)
    of_others = any(each.startswith((*other_machines, *of_a_run)) for each in typed_together)
    skipped = of_others or asks_for_files
    if command == "train" and not skipped:
        config = OmegaConf.create(OmegaConf.to_container(composed))
        config.logger = {}
        # Without the paths of a run.
        for name in ("best", "last"):
            config.callbacks.pop(name, None)
        model, data = experiment.build_sketch(config, config.seed)
        optimization = build_part("optimizer", Optimization, config.optimizer)
        module = VAEModule(model, optimization, config.seed)
        build_trainer(config, module, data, Throughput(), Path())
