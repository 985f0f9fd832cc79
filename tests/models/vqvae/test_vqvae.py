"""The VQ-VAE's loss, gradients and averages, and the mistakes that public projects have made."""

import copy
import itertools

import pytest
import torch
from pydantic import ValidationError

from conftest import digits
from vae_lightning import Batch, DataSpec, SamplingNoise
from vae_lightning.models import base
from vae_lightning.models.noise import EvaluationNoise, TrainingNoise
from vae_lightning.models.vqvae.model import VQVAE

SMALL = {"codes": 6, "code_dim": 3, "channels": [4, 5], "residual_channels": 3}
COLOURS = DataSpec((3, 32, 32), "unit")


def build(spec=None, **settings):
    torch.manual_seed(0)
    return VQVAE(spec or digits(), **(SMALL | settings)).double()


def batch_of(spec, n=4):
    x = torch.rand(n, *spec.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Batch(x, None, torch.arange(n))


def noise_of(n=4):
    return TrainingNoise(1).of(0, n, torch.device("cpu"))


@pytest.fixture
def model():
    """A model in double precision whose codebook comes from its data."""
    built = build()
    built.initialize([batch_of(built.data, 20)])
    return built


def test_the_default_network_is_that_of_the_issue():
    model = VQVAE(digits())
    assert model.code_shape == (7, 7)
    assert model.quantizer.codebook.shape == (128, 16)
    shapes = [tuple(w.shape) for n, w in model.encoder.named_parameters() if n.endswith("weight")]
    assert shapes == [
        (32, 1, 4, 4), (64, 32, 4, 4), *[(32, 64, 3, 3), (64, 32, 1, 1)] * 2, (16, 64, 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "channels", "grid"),
    [(digits(), [4], (14, 14)), (COLOURS, [4, 5, 6], (4, 4)), (COLOURS, [4], (16, 16))],
)
def test_grid_depth_and_colours_follow_the_settings(spec, channels, grid):
    model, batch = build(spec, channels=channels), batch_of(spec)
    assert model.encode(batch)["code"].shape == (4, *grid)
    assert model.reconstruct(batch).shape == batch.x.shape
    assert model.sample(5, SamplingNoise(5)).shape == (5, *spec.shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": [2, 2, 2]}, r"^channels=\[2, 2, 2\]: each layer halves the sides 28 and 28"),
        ({"codes": 1}, "codes"),
        ({"decay": 1.0}, "decay"),
        ({"commitment": -1.0}, "commitment"),
        ({"temperature": float("nan")}, "temperature"),
        ({"likelihood": "bernoulli", "codes": True}, "codes"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises((ValueError, ValidationError), match=message):
        VQVAE(digits(), **settings)


# -- the loss ------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_paper_summed_over_an_example(model):
    batch = batch_of(model.data)
    loss, terms = model.loss(batch, noise_of(), 0)
    embedded = model.embed(batch)
    code = torch.cdist(embedded.flatten(0, 2), model.quantizer.codebook).argmin(1)
    chosen = model.quantizer.codebook[code].view_as(embedded)
    expected_ll = model.likelihood(chosen).log_prob(batch.x)
    expected = 0.25 * (embedded - chosen).square().sum((1, 2, 3))  # over positions: not their mean
    torch.testing.assert_close(terms["log_likelihood"], expected_ll)
    torch.testing.assert_close(terms["commitment"], expected)
    torch.testing.assert_close(loss, expected - expected_ll)
    assert expected.min() > 0


def test_the_encoder_gets_the_decoder_s_gradient_and_the_commitment_s(model):
    """So the cost holds the encoder, is taken before the gradient goes straight through, and
    weighs one of its two summands only: the codebook has no gradient."""
    batch = batch_of(model.data)
    embedded, kept = model.embed(batch).detach().requires_grad_(), model.embed
    model.embed = lambda _: embedded
    loss, _ = model.loss(batch, noise_of(), 0)
    model.embed = kept
    (gradient,) = torch.autograd.grad(loss.sum(), embedded)
    code = model.scores(embedded).argmax(-1)
    chosen = model.quantizer(code).detach().requires_grad_()
    log_likelihood = model.likelihood(chosen).log_prob(batch.x).sum()
    (through,) = torch.autograd.grad(-log_likelihood, chosen)
    commitment = 2 * 0.25 * (embedded - chosen).detach()
    torch.testing.assert_close(gradient, through + commitment)
    assert commitment.abs().max() > 1e-3
    assert not any(name.startswith("quantizer") for name, _ in model.named_parameters())


def test_a_weight_s_gradient_is_that_of_finite_differences_with_codes_held_fixed(model):
    """Of the decoder, which the straight-through estimator leaves exact."""
    batch, bias = batch_of(model.data), model.decoder[0].bias
    model.loss(batch, noise_of(), 0)[0].sum().backward()
    for place in range(2):
        losses = []
        for change in (1e-6, -1e-6):
            with torch.no_grad():
                bias[place] += change
                losses.append(model.measure(batch, None)["loss"].sum())
                bias[place] -= change
        difference = (losses[0] - losses[1]) / 2e-6
        assert bias.grad[place].item() == pytest.approx(difference.item(), rel=1e-5)


# -- the averages ----------------------------------------------------------------------------------


def state(model):
    return {name: value.clone() for name, value in model.quantizer.state_dict().items()}


def same(ours, theirs):
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_averages_move_after_a_step_and_at_no_other_time(model):
    batch, before = batch_of(model.data), state(model)
    model.measure(batch, EvaluationNoise(batch.indices))
    model.reconstruct(batch)
    with torch.no_grad():
        first = model.loss(batch, noise_of(), 0)[0]
        second = model.loss(batch, noise_of(), 0)[0]
    assert torch.equal(first, second)  # the look-up comes before the update
    assert same(before, state(model))
    model.after_step(SamplingNoise(1))
    assert not same(before, state(model))


def test_evaluation_leaves_the_averages_alone(model):
    batch, twin = batch_of(model.data), copy.deepcopy(model)
    for each in (model, twin):
        each.train()
        each.loss(batch, noise_of(), 0)
    twin.eval()
    other = Batch(batch.x.flip(0).clamp(0.2, 0.8), None, batch.indices)
    twin.loss(other, noise_of(), 0)
    twin.measure(other, None)
    twin.train()
    for each in (model, twin):
        each.after_step(SamplingNoise(1))
    assert same(state(model), state(twin))


def test_micro_batches_move_the_codebook_as_one_batch(model):
    batch, twin = batch_of(model.data), copy.deepcopy(model)
    model.loss(batch, noise_of(), 0)
    for rows in ([0, 1], [2, 3]):
        twin.loss(batch.take(rows), noise_of(2), 0)
    for each in (model, twin):
        each.quantizer.counts.fill_(100.0)  # no restart, which takes from the last batch
        each.after_step(SamplingNoise(1))
    for name, value in state(model).items():
        torch.testing.assert_close(value, state(twin)[name])


# -- drawn codes ---------------------------------------------------------------------------------


def test_codes_are_drawn_by_their_probabilities():
    scores = torch.tensor([[0.0, -1.0, -3.0], [-2.0, 0.0, -0.5]]).expand(20_000, 2, 3)
    noise = TrainingNoise(1).of(0, 20_000, torch.device("cpu"))
    [code] = base.draw_codes(scores, noise, 0.7)
    expected = torch.softmax(scores[0] / 0.7, -1)
    for position, k in itertools.product(range(2), range(3)):
        share = (code[:, position] == k).double().mean().item()
        assert share == pytest.approx(expected[position, k].item(), abs=0.015)


def test_a_temperature_of_zero_chooses_the_nearest_and_rises_over_its_steps():
    model = build(temperature=0.4, temperature_steps=10)
    assert [model.temperature_at(step) for step in (0, 5, 10, 99)] == [0.0, 0.2, 0.4, 0.4]
    assert model.schedule(5) == {"temperature": 0.2}
    assert build(temperature=0.4).temperature_at(0) == 0.4
    scores = torch.randn(3, 2, 5)
    drawn = base.draw_codes(scores, None, 0.0, samples=2)
    assert torch.equal(drawn, scores.argmax(-1).expand(2, 3, 2))


def test_the_log_likelihood_of_codes_is_that_of_the_loss(model):
    batch = batch_of(model.data)
    code = model.encode(batch)["code"]
    found = model.log_likelihood_of(batch, torch.stack([code, code.flip(0)]))
    _, terms = model.loss(batch, noise_of(), 0)
    torch.testing.assert_close(found[0], terms["log_likelihood"])
    assert not torch.allclose(found[1], found[0])


# -- use -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("likelihood", "values"),
    [("bernoulli", "binary"), ("gaussian", "continuous"), ("discretized_logistic", "unit")],
)
def test_any_likelihood_is_taken(likelihood, values):
    spec = DataSpec((1, 8, 8), values)
    model = build(spec, likelihood=likelihood, pixel_scale="per_pixel")
    batch = batch_of(spec)
    batch = batch._replace(x=batch.x.round()) if values == "binary" else batch
    loss, _ = model.loss(batch, noise_of(), 0)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert model.quantity == "neither"  # without a prior
    assert model.quantity_with_prior == ("density" if values == "continuous" else "mass")


def test_a_model_is_rebuilt_from_its_settings_with_the_same_codebook(model):
    again = type(model)(model.data, **model.settings).double()
    again.load_state_dict(model.state_dict())
    batch = batch_of(model.data)
    assert torch.equal(again.encode(batch)["code"], model.encode(batch)["code"])
