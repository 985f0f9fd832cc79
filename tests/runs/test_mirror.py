"""A mirror is always whole, takes nothing foreign, and a run goes on when it is out of reach."""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import threading
import time

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from chaos.faults import flipped, forked
from chaos.runs import DATA, MINIMAL, SMALL, differences, run_of, signalled, stretches, train
from conftest import run as run_as_process
from vae_lightning import VAEModule
from vae_lightning.configuration import addresses
from vae_lightning.errors import ConfigurationError
from vae_lightning.runs import mirror, signals

BASE = "memory://m"
SHORT = [
    *SMALL,
    MINIMAL,
    "trainer.max_epochs=1",
    "callbacks.last.every_n_steps=2",
    f"mirror={BASE}",
]
"""Four steps, of which the second and the fourth are saved, and the first state."""


@pytest.fixture(autouse=True)
def store():
    """The in-memory file system's files, empty before and after."""
    MemoryFileSystem.store.clear()
    yield MemoryFileSystem.store
    MemoryFileSystem.store.clear()


def held():
    """Return what the in-memory file system holds, by path."""
    return {path: file.getvalue() for path, file in MemoryFileSystem.store.items()}


def hold(contents):
    MemoryFileSystem.store.clear()
    for path, content in contents.items():
        MemoryFileSystem.store[path] = MemoryFile(None, path, content)


def mirrored():
    """Return what the one mirror of a run holds, by name in the run directory, and its address."""
    [place] = {path[: path.index("/.hydra/")] for path in held() if "/.hydra/" in path}
    return {
        path.removeprefix(f"{place}/"): content for path, content in held().items()
    }, f"memory:/{place}"


def local(run):
    """Return what a run directory holds, by name, but for the lock and the links."""
    files = (
        file
        for file in run.rglob("*")
        if file.is_file() and not file.is_symlink() and file.name != ".lock"
    )
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def is_whole(contents, pointer):
    """Say whether what a pointer names is there, and what was noted of it."""
    digest, name = contents[f"checkpoints/{pointer}"].decode().split()
    content, noted = (
        contents.get(f"checkpoints/{name}", b""),
        contents.get(f"checkpoints/{name}.sha256"),
    )
    return (
        hashlib.sha256(content).hexdigest() == digest
        and noted == contents[f"checkpoints/{pointer}"]
    )


@contextlib.contextmanager
def changes(states):
    """Meanwhile note what the in-memory file system holds after each change."""

    def noted(change):
        def then_noted(*arguments, **others):
            change(*arguments, **others)
            states.append(held())

        return then_noted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("pipe_file", "_rm"):
            patch.setattr(MemoryFileSystem, name, noted(getattr(MemoryFileSystem, name)))
        yield


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """A run that wasn't stopped.

    Its directory, what its mirror held after each change, and its mirror's address.
    """
    states = []
    directory = tmp_path_factory.mktemp("once")
    MemoryFileSystem.store.clear()
    with changes(states):
        assert train(directory, *SHORT) == 0
    return run_of(directory), states, mirrored()[1]


def test_a_mirror_holds_what_the_run_directory_holds(once):
    run, states, address = once
    hold(states[-1])
    contents, _ = mirrored()
    assert address == f"{BASE}/{run.name}"
    for pointer in ("last", "best"):
        line = contents.pop(f"checkpoints/{pointer}").decode()
        assert line.split()[1] == str((run / "checkpoints" / f"{pointer}.ckpt").readlink())
    assert contents == local(run)


def test_at_any_moment_what_a_pointer_names_is_whole(tmp_path):
    states = []
    with changes(states):
        assert (
            train(tmp_path, *SHORT, "trainer.max_epochs=2", "callbacks.last.every_n_steps=1") == 0
        )
    assert named_and_whole(states) > 50
    best = {
        content
        for state in states
        for path, content in state.items()
        if path.endswith("checkpoints/best")
    }
    assert len(best) == 2


def named_and_whole(states):
    """See to it that in each state what a pointer names is whole; return how many times one did."""
    pointed = 0
    for state in states:
        hold(state)
        contents, _ = mirrored()
        for pointer in {"last", "best"} & {name.removeprefix("checkpoints/") for name in contents}:
            assert is_whole(contents, pointer)
            pointed += 1
    return pointed


@pytest.mark.slow
def test_from_any_state_that_a_killed_run_leaves_it_ends_the_same(once, tmp_path):
    run, states, address = once
    kept = {}
    for state in states:  # the first of those that differ in logs alone
        kept.setdefault(frozenset(path for path in state if "tensorboard" not in path), state)
    ended = []
    for number, state in enumerate([*kept.values()][:3] + [*kept.values()][3::2]):
        hold(state)
        status = train(tmp_path / str(number), f"resume={address}")
        if status == 0:
            ours = run_of(tmp_path / str(number))
            assert differences(ours, run) == []
            assert is_whole(mirrored()[0], "last")
            assert (
                mirrored()[0].keys() - {"checkpoints/last", "checkpoints/best"}
                == local(ours).keys()
            )
        else:
            assert (
                status == f"error: resume={address}: the run there ended before its configuration "
                "was sent; start it anew"
            )
            assert list((tmp_path / str(number)).iterdir()) == []
        ended.append(status == 0)
    assert ended == [False] * 2 + [True] * (len(ended) - 2)
    assert len(ended) > 8


@pytest.mark.slow
def test_a_process_that_is_killed_is_gone_on_for_elsewhere(once, tmp_path):
    """By SIGKILL, in the middle of a file that is being sent to a folder."""
    share = tmp_path / "share"
    share.mkdir()
    place = [each.replace(BASE, f"file://{share}") for each in SHORT]
    reference = tmp_path / "reference"
    assert train(reference, *place) == 0
    shutil.move(share / run_of(reference).name, tmp_path / "other")

    def killed():
        write, count = os.write, [0]

        def write_half(descriptor, content):
            if "step_00000004.ckpt" in os.readlink(f"/proc/self/fd/{descriptor}"):
                count[0] += 1
                if count[0] == 3:  # the file, its SHA-256, and the file there
                    write(descriptor, content[: len(content) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
            return write(descriptor, content)

        os.write = write_half
        return train(tmp_path / "here", *place)

    assert forked(killed, tmp_path / "output") == -signal.SIGKILL
    shutil.rmtree(tmp_path / "here")
    [left] = share.iterdir()
    assert (left / "checkpoints" / ".step_00000004.ckpt.tmp").exists()
    assert train(tmp_path / "there", f"resume=file://{left}") == 0
    run = run_of(tmp_path / "there")
    assert differences(run, run_of(reference)) == []
    assert stretches(run)[-1][0] == 2
    assert not list(run.rglob(".*.tmp"))


@pytest.mark.slow
def test_a_signal_leaves_the_last_step_on_the_mirror(once, tmp_path):
    with signalled([3]):
        assert train(tmp_path / "here", *SHORT) == 143
    contents, address = mirrored()
    assert contents["checkpoints/last"].endswith(b"  step_00000003.ckpt\n")
    shutil.rmtree(tmp_path / "here")
    assert train(tmp_path / "there", f"resume={address}") == 0
    run = run_of(tmp_path / "there")
    assert differences(run, once[0]) == []
    assert stretches(run)[-1][0] == 3
    assert "metrics.json" in mirrored()[0]


def test_a_run_that_comes_to_nothing_leaves_nothing_there(tmp_path, monkeypatch, store):
    def stop(*_):
        raise signals.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(VAEModule, "on_fit_start", stop)
    assert train(tmp_path, *SHORT) == 143
    assert not store
    assert not list(tmp_path.glob("outputs/train/*"))


def test_a_damaged_checkpoint_there_is_passed_over_and_mended(once, tmp_path, capsys):
    run, states, address = once
    named = address.removeprefix("memory:/") + "/checkpoints/step_00000004.ckpt"
    state = next(
        state
        for state in reversed(states)
        if named in state and not any("metrics" in path for path in state)
    )
    hold({**state, named: flipped(state[named], random.Random(1))})
    assert train(tmp_path, f"resume={address}") == 0
    assert (
        "step_00000004.ckpt is damaged or unfinished, by its SHA-256: going on from an earlier one"
        in capsys.readouterr().out
    )
    assert differences(run_of(tmp_path), run) == []
    assert is_whole(mirrored()[0], "last")


def test_where_no_checkpoint_there_is_whole_nothing_is_left_here(once, tmp_path):
    _, states, address = once
    draw = random.Random(1)
    state = {
        path: flipped(content, draw) if path.endswith(".ckpt") else content
        for path, content in states[-2].items()
    }
    hold(state)
    assert train(tmp_path, f"resume={address}") == (
        f"error: resume={address}: none of its checkpoints is whole, so that nothing was done; "
        "start the run anew"
    )
    assert list(tmp_path.iterdir()) == []
    assert held() == state


def test_what_is_damaged_on_its_way_is_never_named(tmp_path, monkeypatch, capsys):
    pipe = MemoryFileSystem.pipe_file

    def damage(self, path, content, **others):
        hit = path.endswith("step_00000004.ckpt")
        pipe(self, path, flipped(content, random.Random(1)) if hit else content, **others)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", damage)
    status = train(tmp_path, *SHORT)
    assert "(checkpoints/step_00000004.ckpt is not what was sent, when it is read back)" in status
    contents, _ = mirrored()
    assert contents["checkpoints/last"].endswith(b"  step_00000002.ckpt\n")
    assert is_whole(contents, "last")
    assert "checkpoints/step_00000004.ckpt.sha256" not in contents
    assert "metrics.json" not in contents


# -- a mirror that doesn't answer -----------------------------------------------------------------


def broken(patch, when):
    """Let writing fail in the in-memory file system while ``when(path)`` says so."""
    pipe = MemoryFileSystem.pipe_file

    def pipe_file(self, path, content, **others):
        if when(path):
            raise PermissionError("Forbidden")
        pipe(self, path, content, **others)

    patch.setattr(MemoryFileSystem, "pipe_file", pipe_file)


def test_a_mirror_that_cannot_be_reached_is_told_before_anything_is_made(
    tmp_path, monkeypatch, store
):
    broken(monkeypatch, lambda path: path.endswith("config.yaml"))
    error = train(tmp_path, *SHORT)
    assert re.fullmatch(rf"error: mirror={BASE}/\S+: can't be reached \(Forbidden\)", error)
    assert list(tmp_path.iterdir()) == []
    assert not store


def test_a_run_goes_on_while_its_mirror_is_away_and_sends_what_it_missed(
    once, tmp_path, monkeypatch, capsys
):
    refused = []
    broken(
        monkeypatch, lambda path: "step_" in path and len(refused) < 2 and not refused.append(path)
    )
    assert train(tmp_path, *SHORT) == 0
    shown = capsys.readouterr().out
    assert shown.count("Not mirrored to") == 1
    assert shown.index(
        "(Forbidden); the run goes on, and it is tried again at the next checkpoint"
    ) < shown.index(" again\n")
    assert differences(run_of(tmp_path), once[0]) == []


@pytest.mark.slow
def test_what_is_not_mirrored_at_the_end_is_an_error_that_a_resume_mends(
    once, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        broken(patch, lambda path: "step_" in path)
        error = train(tmp_path, *SHORT)
    run = run_of(tmp_path)
    name = run.relative_to(tmp_path)
    assert error == (
        f"error: mirror={BASE}/{run.name}: not all of the run is there (Forbidden); "
        f"it is whole in {name}, and resume={name} mirrors the rest"
    )
    assert differences(run, once[0]) == []
    assert "metrics.json" not in mirrored()[0]
    assert train(tmp_path, f"resume={name}") == 0
    contents, _ = mirrored()
    assert {name: contents[name] for name in local(run)} == local(run)


@pytest.mark.slow
def test_a_mirror_that_hangs_holds_the_run_up_once_and_what_it_took_is_finished(
    once, tmp_path, monkeypatch, capsys
):
    pipe, answer, waited = MemoryFileSystem.pipe_file, threading.Event(), []
    step = VAEModule.training_step

    def pipe_file(self, path, content, **others):
        if path.endswith("step_00000000.ckpt"):
            waited.append(answer.wait(30))
        pipe(self, path, content, **others)

    def training_step(module, batch, batch_idx):
        if module.global_step == 3:
            answer.set()
        return step(module, batch, batch_idx)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    monkeypatch.setattr(VAEModule, "training_step", training_step)
    monkeypatch.setattr(mirror, "PATIENCE", 0.2)
    assert train(tmp_path, *SHORT) == 0
    assert waited == [True]
    assert "(it is being sent still); the run goes on" in capsys.readouterr().out
    assert differences(run_of(tmp_path), once[0]) == []
    assert is_whole(mirrored()[0], "last")


def test_a_mirror_that_is_away_is_waited_for_once_and_at_the_end(tmp_path, monkeypatch):
    broken(monkeypatch, lambda path: "step_" in path)
    waits, wait = [], mirror.Mirror._await

    def noted(self, deadline):
        waits.append(deadline > time.monotonic())
        self._sending.exception(10)
        wait(self, deadline)

    monkeypatch.setattr(mirror.Mirror, "_await", noted)
    assert "not all of the run is there (Forbidden)" in train(tmp_path, *SHORT)
    assert waits == [True, False, False, False, True, True]


@pytest.mark.slow
def test_where_the_mirror_is_away_for_good_a_run_goes_on_without_it(tmp_path, monkeypatch, store):
    with signalled([3]):
        assert train(tmp_path, *SHORT) == 143
    run = run_of(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "find", lambda *_, **__: 1 / 0)
        error = train(tmp_path, f"resume={run}")
        assert error.endswith(
            ": can't be reached (division by zero); mirror=null goes on without it"
        )
        assert train(tmp_path, f"resume={run}", "mirror=null") == 0
    assert b"step_00000003" in mirrored()[0]["checkpoints/last"]


# -- which place is whose -------------------------------------------------------------------------


def test_a_place_that_is_taken_is_refused_and_left_as_it_is(once, tmp_path):
    run, states, address = once
    hold(states[-1])
    error = train(tmp_path, *SHORT, f"hydra.run.dir={run.name}")
    assert (
        error
        == f"error: mirror={address}: another run or other files are there; name another place"
    )
    assert list(tmp_path.iterdir()) == []
    assert held() == states[-1]


def test_a_mirror_that_is_further_than_the_run_directory_is_not_set_back(once, tmp_path):
    run, states, address = once
    hold(states[-2])
    ours = shutil.copytree(run, tmp_path / run.name, symlinks=True)
    for name in (
        "metrics.json",
        "checkpoints/step_00000004.ckpt",
        "checkpoints/step_00000004.ckpt.sha256",
    ):
        (ours / name).unlink()
    error = train(tmp_path, f"resume={ours}")
    assert error.startswith(
        f"error: mirror={address}: is further than {ours}, by checkpoints/step_00000004.ckpt; "
        f"resume={address}"
    )
    assert held() == states[-2]


def test_a_checkpoint_that_came_out_otherwise_elsewhere_is_replaced_and_never_named_in_between(
    once, tmp_path
):
    run, states, _ = once
    other = flipped(states[-2][f"/m/{run.name}/checkpoints/step_00000004.ckpt"], random.Random(1))
    line = f"{hashlib.sha256(other).hexdigest()}  step_00000004.ckpt\n".encode()
    theirs = {
        "step_00000004.ckpt": other,
        **dict.fromkeys(("step_00000004.ckpt.sha256", "last", "best"), line),
    }
    hold(
        {
            **states[-2],
            **{f"/m/{run.name}/checkpoints/{name}": content for name, content in theirs.items()},
        }
    )
    assert is_whole(mirrored()[0], "last")
    ours = shutil.copytree(run, tmp_path / run.name, symlinks=True)
    (ours / "metrics.json").unlink()
    since = []
    with changes(since):
        assert train(tmp_path, f"resume={ours}") == 0
    assert named_and_whole(since) > 5
    assert (
        b"".join(mirrored()[0][f"checkpoints/{name}"] for name in ("last", "best")).count(line) == 0
    )


@pytest.mark.slow
def test_a_run_that_had_no_mirror_is_given_one_and_a_longer_one_is_unfinished_there_until_it_ends(
    tmp_path, monkeypatch
):
    assert train(tmp_path, *SHORT[:-1]) == 0
    run = run_of(tmp_path)
    assert train(tmp_path, f"resume={run}", f"mirror={BASE}") == 0
    assert {name: mirrored()[0][name] for name in local(run)} == local(run)
    seen = []
    step = VAEModule.training_step
    monkeypatch.setattr(
        VAEModule,
        "training_step",
        lambda self, *batch: (seen.append("metrics.json" in mirrored()[0]), step(self, *batch))[1],
    )
    assert train(tmp_path, f"resume={run}", f"mirror={BASE}", "trainer.max_epochs=2") == 0
    assert set(seen) == {False}
    contents, address = mirrored()
    assert json.loads(contents["metrics.json"])["run"]["steps"] == 8
    assert f"mirror: {address}\n" in (run / ".hydra" / "config.yaml").read_text()


@pytest.mark.slow
def test_each_job_of_a_sweep_has_a_place_of_its_own_and_keeps_it(tmp_path, store):
    line = [
        "--multirun",
        "model.latent_dim=2,3",
        *(each for each in SHORT if "latent_dim" not in each),
    ]
    with signalled([3]):
        assert train(tmp_path, *line) == 143
    [swept] = (tmp_path / "outputs" / "multirun").iterdir()
    assert train(tmp_path, *line, f"sweep={swept}") == 0
    places = {path[: path.index("/.hydra/")] for path in store if "/.hydra/" in path}
    assert places == {f"/m/{swept.name}/{job}" for job in (0, 1)}
    shown = [each.name for each in swept.iterdir() if not each.name.startswith(".")]
    assert sorted(shown) == ["0", "1", "multirun.yaml"]
    for job in (0, 1):
        contents = {
            path.removeprefix(f"/m/{swept.name}/{job}/"): content
            for path, content in held().items()
        }
        assert {name: contents[name] for name in local(swept / str(job))} == local(swept / str(job))


def test_a_rehearsal_is_not_mirrored(tmp_path, store):
    assert train(tmp_path, *SHORT, "trainer.fast_dev_run=true") == 0
    assert not store


# -- what is foreign ------------------------------------------------------------------------------

REFUSALS = {
    "http://x/y": "http://…: must be one of file://, memory://, s3://",
    "github://x:y@z/": "github://…: must be one of",
    "simplecache::s3://bucket/x": "simplecache::s3://…: must be one of",
    "s3://bucket/x::http://y/z": "s3://…: must be an address as s3://bucket/folder",
    "s3://key:topsecret@bucket/x": (
        "s3://…: must be an address as s3://bucket/folder or file:///folder, of letters, digits and"
    ),
    "s3://topsecret@bucket": "s3://…: must be an address as",
    "s3://": "s3://…: must be an address as",
    "s3:///x": "s3://…: must be an address as",
    "memory://x/../y": "memory://…: must be an address as",
    "memory://x//y": "memory://…: must be an address as",
    "memory://x/*": "memory://…: must be an address as",
    "file://here/x": "file://…: must be an address as",
}


@pytest.mark.parametrize(("address", "message"), REFUSALS.items(), ids=REFUSALS.keys())
def test_an_address_of_another_kind_or_with_a_secret_in_it_is_refused_and_not_shown(
    address, message
):
    with pytest.raises(ConfigurationError) as refused:
        addresses.refuse_address("mirror", address)
    assert str(refused.value).startswith(f"mirror={message}")
    assert "topsecret" not in str(refused.value)


@pytest.mark.parametrize(
    "typed",
    [
        "mirror=s3://key:topsecret@bucket/x",
        "resume=http://x/y",
        "--multirun seed=1,2 mirror=ftp://x",
    ],
)
def test_such_an_address_leaves_nothing_behind(tmp_path, capsys, typed):
    error = train(tmp_path, *SHORT[:-1], *typed.split())
    assert "topsecret" not in error + capsys.readouterr().out
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("outputs/mirror", "mirror=outputs/mirror: must be an address"),
        ("3", "mirror=3: must be an address"),
        ("[a]", "mirror=[a]: must be an address"),
        ("file:///nosuch/folder", "mirror=file:///nosuch/folder: no such folder"),
        ("${data.dir}", f"mirror={DATA}: must be an address"),
    ],
)
def test_what_is_no_address_is_refused_in_a_sentence(tmp_path, value, message):
    assert train(tmp_path, *SHORT[:-1], f"mirror={value}").startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_told_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(addresses.importlib.util, "find_spec", lambda name: None)
    assert train(tmp_path, *SHORT[:-1], "mirror=s3://bucket/vae") == (
        "error: mirror=s3://bucket/vae: asks for s3fs, which isn't installed; "
        "pip install 'vae-lightning[s3]'"
    )


def test_what_is_no_address_is_refused_before_torch_is_imported(tmp_path):
    finished = run_as_process(
        "train", "mirror=ftp://x/y", cwd=tmp_path, environment={"PYTHONPROFILEIMPORTTIME": "1"}
    )
    imported = {
        line.rsplit("|", 1)[1].strip()
        for line in finished.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "hydra" in imported
    assert not {"torch", "fsspec"} & imported
    assert finished.returncode == 1


def test_where_no_run_is_mirrored_nothing_is_made(once, tmp_path):
    assert (
        train(tmp_path, f"resume={BASE}/nosuch")
        == f"error: resume={BASE}/nosuch: no run is mirrored there; start it anew"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_here_is_not_fetched_over(once, tmp_path):
    run, states, address = once
    hold(states[-1])
    (tmp_path / "outputs" / "train" / run.name).mkdir(parents=True)
    error = train(tmp_path, f"resume={address}")
    assert error.startswith(
        f"error: resume={address}: outputs/train/{run.name} is there; "
        f"resume=outputs/train/{run.name} goes on"
    )


@pytest.mark.parametrize("typed", ["model.latent_dim=3", "data.dir=/nosuch"])
def test_what_is_refused_beside_the_address_leaves_nothing_here(once, tmp_path, typed):
    _, states, address = once
    hold(states[-2])
    assert str(train(tmp_path, f"resume={address}", typed)).startswith("error: ")
    assert list(tmp_path.iterdir()) == []
    assert held() == states[-2]


def test_nothing_foreign_is_fetched_and_nothing_lies_outside(once, tmp_path):
    _, states, address = once
    root = address.removeprefix("memory:/")
    last = (f"{'0' * 64}  ../../../../outside\n").encode()
    names = (
        "../../outside",
        "/outside",
        "a/../../outside",
        ".git/hooks/x",
        ".hydra/.lock",
        "checkpoints/x.ckpt",
        ".bashrc",
        "a\nb",
    )
    hold(
        {
            **states[-2],
            **{f"{root}/{name}": b"foreign" for name in names},
            f"{root}/checkpoints/last": last,
        }
    )
    assert train(tmp_path, f"resume={address}") == 0
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert all(file.is_relative_to(run_of(tmp_path)) for file in files)
    assert not [file for file in files if b"foreign" in file.read_bytes()]
    assert all(
        link.readlink().name == str(link.readlink())
        for link in tmp_path.rglob("*")
        if link.is_symlink()
    )


def test_a_link_on_a_share_is_not_followed(once, tmp_path):
    (tmp_path / "secret").write_text("secret")
    run = shutil.copytree(once[0], tmp_path / "share" / "run", symlinks=True)
    (run / "notes").symlink_to(tmp_path / "secret")
    (run / "metrics.json").unlink()
    assert train(tmp_path / "here", f"resume=file://{run}") == 0
    assert not (run_of(tmp_path / "here") / "notes").exists()


def test_a_configuration_there_that_names_code_is_refused_and_gone_again(once, tmp_path):
    _, states, address = once
    file = f"{address.removeprefix('memory:/')}/.hydra/config.yaml"
    hold({**states[-2], file: states[-2][file] + b"extra:\n  _target_: os.system\n"})
    assert str(train(tmp_path, f"resume={address}")).startswith("error: unknown key extra")
    assert list(tmp_path.iterdir()) == []


def test_more_than_there_is_room_for_is_not_fetched(once, tmp_path, monkeypatch):
    _, states, address = once
    hold(states[-2])
    monkeypatch.setattr(
        mirror.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**6, 0, 1000)
    )
    assert re.fullmatch(
        rf"error: resume={address}: [\d,]+ bytes, where there is room for 1,000",
        str(train(tmp_path, f"resume={address}")),
    )
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_being_mirrored_to_where_it_was_fetched_from(once, tmp_path):
    """Not to where its configuration there says, which may be anybody's."""
    _, states, address = once
    root = address.removeprefix("memory:/")
    hold({path.replace(root, "/copied/run"): content for path, content in states[-2].items()})
    assert train(tmp_path, "resume=memory://copied/run") == 0
    assert {path.split("/")[1] for path in held()} == {"copied"}
    assert "/copied/run/metrics.json" in held()
    assert (
        "mirror: memory://copied/run\n" in (run_of(tmp_path) / ".hydra" / "config.yaml").read_text()
    )


# -- what the user has there ----------------------------------------------------------------------

THEIRS = ["notes.txt", "images/mine.png", "backup/best.ckpt", "checkpoints/best_model.ckpt", ".x"]


def test_a_run_that_comes_to_nothing_takes_only_its_own_files_away_again(tmp_path, monkeypatch):
    """A file that came there in between stays, and so do the folders around it."""
    share = tmp_path / "share"
    share.mkdir()

    def stop(*_):
        [place] = share.iterdir()
        (place / "notes.txt").write_text("mine")
        raise signals.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(VAEModule, "on_fit_start", stop)
    assert train(tmp_path / "here", *SHORT[:-1], f"mirror=file://{share}") == 143
    assert [file.name for file in share.rglob("*") if file.is_file()] == ["notes.txt"]


def test_a_run_that_comes_to_nothing_leaves_no_folder_there_but_that_which_it_found(
    tmp_path, monkeypatch
):
    share = tmp_path / "share"
    share.mkdir()

    def stop(*_):
        raise signals.Interrupted(signal.SIGTERM)

    monkeypatch.setattr(VAEModule, "on_fit_start", stop)
    assert train(tmp_path / "here", *SHORT[:-1], f"mirror=file://{share}") == 143
    assert list(share.iterdir()) == []


def test_files_of_the_user_stay_there_when_a_run_goes_on(once, tmp_path):
    run, states, address = once
    root = address.removeprefix("memory:/")
    hold({**states[-2], **{f"{root}/{name}": b"mine" for name in THEIRS}})
    ours = shutil.copytree(run, tmp_path / run.name, symlinks=True)
    (ours / "metrics.json").unlink()
    assert train(tmp_path, f"resume={ours}") == 0
    contents, _ = mirrored()
    assert {name: contents.get(name) for name in THEIRS} == dict.fromkeys(THEIRS, b"mine")
    assert "metrics.json" in contents


@pytest.mark.parametrize("name", ["train.log", "checkpoints", ".hydra/begun"])
def test_nothing_is_written_through_a_link_on_a_share(once, tmp_path, capsys, name):
    run = shutil.copytree(once[0], tmp_path / "here" / once[0].name, symlinks=True)
    place = shutil.copytree(once[0], tmp_path / "share" / once[0].name)
    (run / "metrics.json").unlink()
    (place / "metrics.json").unlink()
    outside = tmp_path / "outside"
    (place / name).rename(outside)
    (place / name).symlink_to(outside)
    if outside.is_file():
        outside.write_text("mine")
    before = {file: file.read_bytes() for file in [outside, *outside.rglob("*")] if file.is_file()}
    status = train(tmp_path, f"resume={run}", f"mirror=file://{tmp_path / 'share'}")
    assert f"not all of the run is there ({name} is a link there)" in status
    assert f"({name} is a link there); the run goes on" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in before} == before
    assert (place / name).is_symlink()
    assert (run / "metrics.json").exists()


def test_a_folder_of_the_name_in_which_a_run_is_put_together_stays(once, tmp_path):
    _, states, address = once
    hold(states[-2])
    name = f".{address.rpartition('/')[2]}.{os.getpid()}.0"
    folder = tmp_path / "outputs" / "train" / name
    folder.mkdir(parents=True)
    (folder / "mine").touch()
    assert train(tmp_path, f"resume={address}") == 0
    assert (folder / "mine").exists()
    assert len(list(folder.parent.iterdir())) == 2


def test_of_steps_of_nine_digits_the_newest_is_seen():
    names = {f"checkpoints/step_{step:08d}.ckpt" for step in (99_999_999, 100_000_000)}
    names |= {f"{name}.sha256" for name in names}
    assert mirror._newest(names) == "checkpoints/step_100000000.ckpt"
    assert all(mirror._turn(name) for name in names)
