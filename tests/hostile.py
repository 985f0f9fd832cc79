"""Files that run code when they are read carelessly.

Each would create the file ``executed`` in the folder of the corpus.
"""

import functools
import io
import json
import os
import pickle
import subprocess
import tarfile
import warnings
import zipfile

import hydra
import numpy as np
import torch
import yaml
from omegaconf import OmegaConf

CANARY = "executed"


class Runs:
    """An object whose unpickling calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Scripted(torch.nn.Module):
    """A TorchScript program that makes a file when it is loaded."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.count = 0

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.count = torch.from_file(state[0], True, 4).numel()
        self.path = state[0]
        self.training = state[1]


def write_module(folder):
    """Write a module, and a repository for ``torch.hub``, that leave the canary when imported."""
    leave = f"open({str(folder / CANARY)!r}, 'w').close()\n"
    run = f"def run(*arguments, **settings):\n    {leave}"
    c = f"class C:\n    def __init__(self, *arguments, **settings):\n        {leave}"
    (folder / "evil.py").write_text(leave + run + c)
    (folder / "hub").mkdir(exist_ok=True)
    (folder / "hub" / "hubconf.py").write_text(f"def model():\n    {leave}    return None\n")


def with_model(good, **change):
    """Return the hyperparameters of a checkpoint with another description of its model."""
    stored = good["hyper_parameters"]
    return {**stored, "model": {**stored["model"], **change}}


def with_data(good, **change):
    """Return those of its data, with another description."""
    stored = good["datamodule_hyper_parameters"]
    return {**stored, "data": {**stored["data"], **change}}


def write_checkpoints(folder, good):
    """Write checkpoints that run code under ``weights_only=False``.

    Each has all that a good one has, as far as it can.

    Args:
        folder: where to; ``evil.py`` is put beside them.
        good: the content of a checkpoint of this project.

    Returns:
        The files by name.
    """
    write_module(folder)
    touch, code = f"touch {folder / CANARY}", f"open({str(folder / CANARY)!r}, 'w').close()"
    system = Runs(os.system, touch)
    contents = {
        "os_system_in_hyper_parameters": {
            "hyper_parameters": {**good["hyper_parameters"], "seed": system}
        },
        "os_system_in_model_settings": {
            "hyper_parameters": with_model(good, settings={"latent_dim": system})
        },
        "os_system_in_target": {"hyper_parameters": with_model(good, target=system)},
        "exec_in_state_dict": {"state_dict": {**good["state_dict"], "x": Runs(exec, code)}},
        "eval_in_epoch": {"epoch": Runs(eval, code)},
        "hub_load": {
            "extra": Runs(
                functools.partial(torch.hub.load, source="local"), str(folder / "hub"), "model"
            )
        },
        "check_output": {"loops": Runs(subprocess.check_output, ["touch", str(folder / CANARY)])},
        "callbacks_state": {"callbacks": {"ModelCheckpoint": {"best_model_path": system}}},
        "optimizer_states": {"optimizer_states": [{"state": {0: system}}]},
        "object_array": {"extra": np.array([system], dtype=object)},
        "partial": {"extra": Runs(functools.partial(os.system, touch))},
        "hparams_type": {"hparams_type": Runs(exec, code)},
        "datamodule_class": {"datamodule_hyper_parameters": Runs(os.system, touch)},
        "version": {"pytorch-lightning_version": Runs(exec, code)},
    }
    files = {}
    for name, content in contents.items():
        files[name] = folder / f"{name}.ckpt"
        torch.save({**good, **content}, files[name])
    files["legacy_format"] = folder / "legacy.ckpt"
    torch.save(
        {**good, "extra": system}, files["legacy_format"], _use_new_zipfile_serialization=False
    )
    for protocol in (0, 4):
        files[f"bare_pickle_{protocol}"] = folder / f"pickle{protocol}.ckpt"
        files[f"bare_pickle_{protocol}"].write_bytes(
            pickle.dumps({**good, "state_dict": system}, protocol)
        )
    files["torchscript"] = folder / "torchscript.ckpt"
    with warnings.catch_warnings(
        action="ignore", category=FutureWarning
    ):  # deprecated, and still read
        torch.jit.save(torch.jit.script(Scripted(str(folder / CANARY))), files["torchscript"])
    files["renamed_member"] = folder / "renamed.ckpt"
    with (
        zipfile.ZipFile(files["eval_in_epoch"]) as old,
        zipfile.ZipFile(files["renamed_member"], "w") as new,
    ):
        for member in old.namelist():
            new.writestr("elsewhere/" + member.partition("/")[2], old.read(member))
    files["tar"] = folder / "tar.ckpt"
    with tarfile.open(files["tar"], "w") as archive:
        for member in ("storages", "tensors", "pickle"):
            content = pickle.dumps(system, 2)
            header = tarfile.TarInfo(member)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return files


def write_plain_checkpoints(folder, good):
    """Write checkpoints of plain values that name code by its path, or ask for too much.

    Returns:
        The files by name, and the names of those whose model or data nothing may build.
    """
    write_module(folder)
    model, data = good["hyper_parameters"], good["datamodule_hyper_parameters"]
    settings, spec = model["model"]["settings"], model["model"]["data"]
    of_data = data["data"]["settings"]
    refused = {
        "model_target": {"hyper_parameters": with_model(good, target="evil.C")},
        "model_function": {"hyper_parameters": with_model(good, target="evil.run")},
        "model_list": {"hyper_parameters": with_model(good, target=["evil.C"])},
        "model_none": {"hyper_parameters": with_model(good, target=None)},
        "model_prefix": {
            "hyper_parameters": with_model(good, target="vae_lightning.models.vae.model.torch.hub")
        },
        "model_of_another_kind": {"hyper_parameters": with_model(good, target="lightning.Trainer")},
        "model_is_data": {"hyper_parameters": with_model(good, target=data["data"]["target"])},
        "setting_target": {
            "hyper_parameters": with_model(good, settings={**settings, "_target_": "evil.C"})
        },
        "setting_of_another_type": {
            "hyper_parameters": with_model(good, settings={**settings, "likelihood": "evil.C"})
        },
        "spec_target": {"hyper_parameters": with_model(good, data={**spec, "_target_": "evil.C"})},
        "huge_shape": {
            "hyper_parameters": with_model(good, data={**spec, "shape": [1, 2**31, 2**31]})
        },
        "huge_layers": {
            "hyper_parameters": with_model(
                good, settings={**settings, "hidden_dims": [2**31, 2**31]}
            )
        },
        "data_target": {"datamodule_hyper_parameters": with_data(good, target="evil.C")},
        "data_function": {"datamodule_hyper_parameters": with_data(good, target="evil.run")},
        "data_of_another_kind": {
            "datamodule_hyper_parameters": with_data(good, target=model["model"]["target"])
        },
        "datamodule_list": {"datamodule_hyper_parameters": ["evil.C"]},
    }
    contents = refused | {
        "instantiator": {"hyper_parameters": {**model, "_instantiator": "evil.run"}},
        "class_path": {
            "hyper_parameters": {
                **model,
                "_instantiator": "lightning.pytorch.cli.instantiate_module",
                "_class_path": "evil.C",
            }
        },
        "module_type_path": {
            "__pl_module_type_path__": "evil.C",
            "hparams_name": "evil.C",
            "hparams_type": "evil.C",
        },
        "target": {
            "hyper_parameters": {
                **model,
                "_target_": "evil.C",
                "optimizer": {"_target_": "evil.C", "name": "evil.C"},
            }
        },
        "datamodule": {
            "datamodule": "evil.C",
            "datamodule_hyper_parameters": {**data, "_target_": "evil.C"},
        },
        "datamodule_name": {
            "datamodule_hyper_parameters": with_data(good, settings={**of_data, "name": "evil.C"})
        },
    }
    files = {}
    for name, content in contents.items():
        files[name] = folder / f"{name}.ckpt"
        torch.save({**good, **content}, files[name])
    for name in ("huge_size", "zip_bomb"):
        source, files[name] = io.BytesIO(), folder / f"{name}.ckpt"
        torch.save({**good, "extra": torch.zeros(300_000)}, source)
        with (
            zipfile.ZipFile(source) as old,
            zipfile.ZipFile(files[name], "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for member in old.namelist():
                content = old.read(member)
                if name == "huge_size" and member.endswith("data.pkl"):
                    content = content.replace(
                        (300_000).to_bytes(4, "little"), (2**31 - 1).to_bytes(4, "little")
                    )
                if name == "zip_bomb" and len(content) == 4 * 300_000:
                    content = bytes(30 << 20)
                new.writestr(member, content)
    return files, list(refused)


# -- configurations -------------------------------------------------------------------------------


def merge(good, change):
    """Lay nested dictionaries over others."""
    if not (isinstance(good, dict) and isinstance(change, dict)):
        return change
    return {**good, **{key: merge(good.get(key), value) for key, value in change.items()}}


def write_runs(folder):
    """Write run directories whose stored configurations would run code.

    That is, if one instantiated them, or loaded them unsafely: they are for whatever reads
    ``.hydra/config.yaml`` of a directory that may come from elsewhere. Each is the configuration
    of a run of this project but for one place, mostly ``callbacks.mine``. Hydra must be
    initialised.

    Returns:
        The run directories by name.
    """
    write_module(folder)
    touch = f"touch {folder / CANARY}"
    hub = (
        f"{{_target_: torch.hub.load, repo_or_dir: {folder / 'hub'}, model: model, source: local}}"
    )
    places = {
        "hub_load": f"callbacks: {{mine: {hub}}}",
        "collect_env": (
            f"callbacks: {{mine: {{_target_: torch.utils.collect_env.run, command: {touch}}}}}"
        ),
        "os_system": f"callbacks: {{mine: {{_target_: os.system, command: {touch}}}}}",
        "args": (
            f"logger: {{tensorboard: {{_target_: os.system, _args_: [{touch}], _convert_: all, "
            "_recursive_: true}}"
        ),
        "partial": "callbacks: {mine: {_target_: evil.C, _partial_: true}}",
        "eval": "callbacks: {mine: {_target_: builtins.eval, _args_: [\"__import__('evil')\"]}}",
        "prefix": "callbacks: {mine: {_target_: vae_lightning.training.callbacks.os.system}}",
        "module": "model: {_target_: evil.C}",
        "trainer": "trainer: {_target_: evil.C}",
        "data": "data: {_target_: evil.C}",
        "optimizer": "optimizer: {_target_: evil.C}",
        "nested": f"optimizer: {{options: {{eps: {hub}}}}}",
        "in_a_list": f"callbacks: {{last: {{dirpath: [[{hub}]]}}}}",
        "root": "_target_: evil.C",
        "interpolated": "callbacks: {mine: {_target_: '${oc.decode:evil.C}'}}",
        "interpolated_part": "callbacks: {mine: {_target_: '${oc.select:no.such,evil}.C'}}",
        "created": "callbacks: {last: '${oc.create:{_target_:evil.C}}'}",
        "from_environment": (
            "callbacks: {mine: {_target_: '${oc.env:VAE_LIGHTNING_NO_SUCH,evil.C}'}}"
        ),
        "hydra": f"hydra: {{callbacks: {{x: {hub}}}}}",
        "yaml_apply": f"seed: !!python/object/apply:os.system [{touch}]",
        "yaml_new": f"seed: !!python/object/new:os.system [{touch}]",
        "yaml_module": "seed: !!python/module:evil",
        "yaml_name": "seed: !!python/name:evil.C",
        "address": "callbacks: {last: {dirpath: 's3://bucket/key'}}",
        "file_address": "data: {dir: 'file:///digits'}",
    }
    runs = {}
    good = OmegaConf.to_container(hydra.compose("train"), resolve=False)
    for name, place in places.items():
        runs[name] = folder / name
        stored = runs[name] / ".hydra"
        stored.mkdir(parents=True)
        # JSON is YAML, and quicker.
        merged = None if name.startswith("yaml") else merge(good, yaml.safe_load(place))
        text = place if merged is None else json.dumps(merged)
        (stored / "config.yaml").write_text(text)
        (stored / "overrides.yaml").write_text("[]\n")
    return runs
