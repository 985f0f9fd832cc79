"""What holds on a CPU holds on a CUDA GPU, and no step waits for it: ``make test-gpu``."""

import json
import subprocess
import sys

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from conftest import SUBSET, build_module, build_vae, evaluated, run, train_in, typed
from gpu import Traffic
from plain import GraphLoop
from vae_lightning import Batch, SamplingNoise
from vae_lightning.models.noise import EvaluationNoise, TrainingNoise

if not torch.cuda.is_available():
    pytest.exit("There is no CUDA GPU here", returncode=1)

GPU = "trainer.accelerator=gpu"
SMALL = (GPU, "callbacks=minimal", "logger=none", "data.batch_size=64")


def weights_of(run_directory, name="last.ckpt"):
    file = run_directory / "checkpoints" / name
    return torch.load(file, weights_only=True, map_location="cpu")["state_dict"]


def figures_of(directory):
    return json.loads((directory / "metrics.json").read_text())["figures"]


def same(weights, others):
    assert weights.keys() == others.keys()
    return all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four epochs on the GPU, with pictures and dashboards."""
    directory = tmp_path_factory.mktemp("whole")
    return train_in(directory, GPU, "data.batch_size=64", "trainer.max_epochs=4")


def test_a_run_names_its_device_and_learns(whole):
    checkpoint = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["envelope"]["device"] == torch.cuda.get_device_name()
    assert figures_of(whole)["test/elbo"] > -350
    assert (whole / "images").is_dir()


def test_the_same_run_comes_to_the_same_weights(whole, tmp_path):
    again = train_in(tmp_path, *SMALL, "trainer.max_epochs=4")
    assert same(weights_of(again), weights_of(whole))


def test_a_run_that_is_resumed_comes_to_the_same_weights(whole, tmp_path, monkeypatch):
    first = train_in(tmp_path, *SMALL, "trainer.max_epochs=2")
    assert not same(weights_of(first), weights_of(whole))
    line = (f"resume={first}", "trainer.max_epochs=4")
    typed("train", *line, directory=tmp_path, patch=monkeypatch)
    assert same(weights_of(first), weights_of(whole))


def test_a_checkpoint_of_the_gpu_has_the_same_figures_on_the_cpu(whole, tmp_path, monkeypatch):
    figures = []
    for device in ("gpu", "cpu"):
        (tmp_path / device).mkdir()
        settings = (f"trainer.accelerator={device}", "metrics=[bound,log_marginal]", "samples=100")
        measured = evaluated(whole, tmp_path / device, monkeypatch, *settings)
        figures.append(measured["figures"])
    ours, theirs = figures
    for name in ("test/elbo", "test/log_likelihood", "test/kl", "test/log_marginal"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name


def test_the_gpu_trains_to_what_the_cpu_does(whole, tmp_path):
    line = [each for each in SMALL if each != GPU]
    cpu = train_in(tmp_path, *line, "trainer.accelerator=cpu", "trainer.max_epochs=4")
    assert figures_of(cpu)["test/elbo"] == pytest.approx(figures_of(whole)["test/elbo"], abs=0.5)


@pytest.mark.parametrize("command", ["sample", "visualize", "encode"])
def test_the_commands_take_a_checkpoint_of_the_gpu(whole, tmp_path, monkeypatch, command):
    data = () if command == "sample" else (SUBSET[1],)
    typed(command, f"checkpoint={whole}", *data, directory=tmp_path, patch=monkeypatch)
    assert any((tmp_path / "outputs" / command).glob("*/*"))


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("64-true", 1e-4), ("bf16-mixed", 2e-2), ("16-mixed", 5e-2)],  # whose first steps are skipped
)
def test_each_precision_trains(whole, tmp_path, precision, tolerance):
    other = train_in(tmp_path, *SMALL, "trainer.max_epochs=4", f"trainer.precision={precision}")
    elbo = figures_of(whole)["test/elbo"]
    assert figures_of(other)["test/elbo"] == pytest.approx(elbo, rel=tolerance)


@pytest.mark.parametrize(
    "settings",
    [
        ("model=convolutional",),
        ("model=conditional",),
        ("model.objective=iwae", "model.num_samples=5"),
        ("data.binarization=stochastic",),
        ("data.dequantize=true", "model.likelihood=gaussian"),
        ("model.likelihood=discretized_logistic", "model.pixel_scale=per_pixel"),
        ("optimizer.schedule=one_cycle", "trainer.accumulate_grad_batches=2"),
    ],
    ids=lambda settings: settings[0],
)
def test_each_model_and_protocol_trains_and_is_the_same_again(tmp_path, settings):
    line = (*SMALL, "trainer.max_epochs=2", *settings)
    runs = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        runs.append(train_in(tmp_path / name, *line))
    first, second = (figures_of(each) for each in runs)
    assert first["test/elbo"] == pytest.approx(second["test/elbo"], rel=1e-3)
    if settings[0] != "model=convolutional":  # cuDNN may add in any order
        assert same(*map(weights_of, runs))


def test_a_loss_is_that_of_the_cpu_in_float64():
    torch.manual_seed(0)
    model = build_vae().double()
    x, indices = torch.rand(64, 1, 28, 28, dtype=torch.float64), torch.arange(64)
    losses = []
    for device in ("cpu", "cuda"):
        batch = Batch(x, None, indices).to(torch.device(device))
        noise = TrainingNoise(1).of(0, 64, batch.x.device)
        there = model.to(device)
        losses.append(there.loss(batch, noise, 0)[0].cpu())
        losses.append(there.measure(batch, EvaluationNoise(indices))["elbo"].cpu())
        losses.append(there.sample(8, SamplingNoise(8, 3)).cpu())
    for ours, theirs in zip(losses[:3], losses[3:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("objective", ["sgvb_b", "sgvb_a", "iwae"])
def test_a_compiled_loss_has_the_value_and_the_gradients_of_another(objective):
    torch.manual_seed(0)
    x, results = torch.rand(64, 1, 28, 28, device="cuda"), []
    settings = {"objective": objective, "num_samples": 3}
    plain = build_vae(**settings)
    for model in (plain, build_vae(**settings, compile=True)):
        model.load_state_dict(plain.state_dict())
        model.cuda()
        noise = TrainingNoise(1).of(0, 64, x.device)
        loss = model.loss(Batch(x), noise, 0)[0].mean()
        loss.backward()
        results.append([loss.detach(), *(weight.grad for weight in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


def test_a_compiled_model_learns_as_another(whole, tmp_path):
    compiled = train_in(tmp_path, *SMALL, "trainer.max_epochs=4", "model.compile=true")
    elbo = figures_of(whole)["test/elbo"]
    assert figures_of(compiled)["test/elbo"] == pytest.approx(elbo, rel=1e-2)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_between_logging_points_no_step_waits_for_the_device_or_copies_to_it(
    subset, tmp_path, accumulate
):
    traffic = Traffic(16, 20)
    subset.batch_size = 8  # 40 steps
    Trainer(
        default_root_dir=tmp_path, accelerator="gpu", logger=CSVLogger(tmp_path), max_epochs=1,
        log_every_n_steps=40, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[traffic], accumulate_grad_batches=accumulate,
    ).fit(build_module(optimizer={"learning_rate": 1e-4}), subset)  # fmt: skip
    assert traffic.calls["aten::binary_cross_entropy_with_logits"] == 20
    assert traffic.calls["cudaLaunchKernel"] > 100
    assert "aten::_local_scalar_dense" not in traffic.calls  # what item() and tolist() call
    assert (traffic.copies, traffic.waits) == (0, 0)


def test_a_cuda_graph_replays_the_bare_loop(subset):
    images, noise = subset.x["train"].flatten(1).cuda(), torch.randn(128, 20, device="cuda")
    loop, index = GraphLoop(build_vae(), images), torch.arange(128, device="cuda")
    before = loop.model.loss(images[:128] / 255, noise).item()
    loop.run([index] * 50)
    assert loop.model.loss(images[:128] / 255, noise).item() < 0.7 * before


def test_a_signal_saves_a_run_on_the_gpu_and_it_goes_on(whole, tmp_path):
    script = (
        "import os, signal, sys; from vae_lightning import VAEModule, train\n"
        "kept = VAEModule.on_train_batch_end\n"
        "def stop(self, *batch):\n"
        "    kept(self, *batch)\n"
        "    if batch and self.global_step == 7: os.kill(os.getpid(), signal.SIGTERM)\n"
        "VAEModule.on_train_batch_end = stop\n"
        "sys.argv[0] = 'train'\n"
        "train.main()\n"
    )
    line = [sys.executable, "-c", script, *SUBSET, *SMALL, "trainer.max_epochs=4"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 143, done.stderr
    [stopped] = (tmp_path / "outputs" / "train").iterdir()
    assert run("train", f"resume={stopped}", cwd=tmp_path).returncode == 0
    assert same(weights_of(stopped), weights_of(whole))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_come_to_what_one_does(whole, tmp_path):
    line = [each for each in SMALL if each != "data.batch_size=64"]
    two = ("trainer=ddp", "trainer.devices=2", "data.batch_size=32", "trainer.max_epochs=4")
    both = train_in(tmp_path, *line, *two)
    assert figures_of(both)["test/elbo"] == pytest.approx(figures_of(whole)["test/elbo"], abs=0.1)
