"""The benchmark's sides do the same work, and its table says what was reached. Nothing is timed."""

import pytest
import torch

import bench
from conftest import DATA, SUBSET, build_vae
from example import Example
from plain import BareLoop, BareVAE, DecoderProducts, StepProducts
from sides import Laps, fit
from vae_lightning.models.noise import TrainingNoise


@pytest.mark.parametrize(
    "settings",
    [{}, {"network": "convolutional"}, {"objective": "iwae", "num_samples": 3}],
    ids=["default", "convolutional", "iwae"],
)
def test_the_bare_loop_minimises_the_project_s_loss(subset, settings):
    model = build_vae(**settings).double()
    batch = model.take(next(iter(subset.train_dataloader())))
    noise = TrainingNoise(0).of(0, len(batch.x), batch.x.device)
    noise = noise.normal(20, samples=model.num_samples).double()
    ours = -model.objective(batch, noise)[0].mean()
    bare = BareVAE(model)
    loss = bare.loss(batch.x.flatten(1), noise if len(noise) > 1 else noise[0])
    torch.testing.assert_close(loss, ours, rtol=1e-12, atol=0)
    ours.backward()
    loss.backward()
    for weight, its in zip(bare.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, its.grad, rtol=1e-9, atol=1e-12)


def test_the_bare_loop_trains(subset):
    images, noise = subset.x["train"].flatten(1), torch.randn(128, 20)
    loop = BareLoop(build_vae(), images)
    before = loop.model.loss(images[:128] / 255, noise).item()
    for _ in range(12):
        loop.epoch()
    assert loop.model.loss(images[:128] / 255, noise).item() < 0.7 * before


def test_the_products_are_those_of_the_default_model():
    model, device = build_vae(), torch.device("cpu")
    step, decoder = StepProducts(model, device), DecoderProducts(model, device, rows=10)
    weights = [weight.numel() for weight in model.parameters() if weight.ndim == 2]
    # Forward, for the weights, and for what lies below, which the first layer leaves out.
    assert sum(left.numel() * right.shape[1] for left, right, _ in step.products) == 128 * (
        3 * sum(weights) - weights[0]
    )
    assert [tuple(layer.shape) for layer in decoder.layers] == [(10, 20), (10, 400), (10, 784)]
    step.run(1)
    decoder.run(20)


def test_the_example_trains(tmp_path):
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST" / "raw").symlink_to(DATA / "mnist_subset")
    example = Example(tmp_path)
    untrained = example.test()
    losses = [example.train() for _ in range(5)]
    assert untrained == pytest.approx(545, abs=20)  # 784 log 2, and next to no KL
    assert losses[-1] < losses[0]
    assert example.test() < 0.6 * untrained


def test_epochs_are_fitted_by_the_configuration_and_leave_nothing(tmp_path):
    laps = fit(tmp_path, *SUBSET, "callbacks=minimal", "data.batch_size=64", epochs=3)
    assert laps.steps == 15
    assert len(laps.training) == len(laps.validation) == 3
    assert min(*laps.training, *laps.validation, laps.ending) > 0
    assert laps.share == pytest.approx(0.1)
    assert list(tmp_path.iterdir()) == []


def test_the_first_epoch_is_not_counted():
    laps = Laps()
    laps.training, laps.steps, laps.ending = [9.0, 1.0, 2.0, 3.0], 40, 5.0
    assert laps.seconds == pytest.approx(2.0 + 0.5)
    assert laps.seconds_of_step == pytest.approx(0.25)


def test_ten_times_the_data_are_ten_times_the_steps(tmp_path):
    few = (*SUBSET, "callbacks=minimal", "data.batch_size=64")
    assert fit(tmp_path, *few, times_the_data=10).steps == 50


@pytest.mark.parametrize(
    ("ratio", "at_least", "verdict"),
    [
        (0.95, True, "hope"),
        (0.90, True, "hope"),
        (0.85, True, "must"),
        (0.79, True, "missed"),
        (0.39, True, "collapsed"),
        (0.9, False, "hope"),
        (1.0, False, "hope"),
        (1.2, False, "must"),
        (1.3, False, "missed"),
        (2.6, False, "collapsed"),
    ],
)
def test_a_ratio_is_judged_by_its_direction(ratio, at_least, verdict):
    must, hope = (0.80, 0.90) if at_least else (1.25, 1.0)
    assert bench.judge(ratio, must, hope, at_least) == verdict


def test_a_row_without_a_hope_or_a_bound_is_judged_by_what_it_has():
    assert bench.judge(1.01, 1.05, None, at_least=False) == "must"
    assert bench.judge(1.01, None, None, at_least=False) == ""


def test_pairs_alternate_and_the_ratio_is_the_other_s_time_to_ours():
    order = []

    def side(name, seconds):
        return lambda: order.append(name) or next(seconds)

    ours, theirs = side("A", iter([9.0, 1.0, 1.0, 1.0])), side("B", iter([1.0, 2.0, 4.0, 3.0]))
    row = bench.Row("row", lambda _: (ours, theirs), "what", "against", must=2.5, hope=3.5, pairs=3)
    result = bench.measure(row, type("Full", (), {"quick": False})())
    assert order == list("ABABABAB")  # the first pair warms up
    assert (result.ratios, result.median, result.verdict) == ([2.0, 4.0, 3.0], 3.0, "must")
    assert (
        " ".join(bench.line(row, result).split())
        == "row 1.00 s 3.00 s 3.00 2.00 – 4.00 ≥ 2.5 ≥ 3.5 must"
    )


def test_a_row_of_no_name_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SystemExit,
        match=r"^error: ROWS=step,stpe: no row is called stpe; choose from step, [^\n]*$",
    ):
        bench.main(["--rows", "step,stpe"])
    assert list(tmp_path.iterdir()) == []
