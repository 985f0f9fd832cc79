"""The prior over codes: its probabilities, the bound that it makes, and how it is sampled."""

import itertools
import math

import pytest
import torch

from conftest import digits
from vae_lightning import Batch, DataSpec, SamplingNoise
from vae_lightning.errors import ConfigurationError
from vae_lightning.models import base
from vae_lightning.models.noise import EvaluationNoise, TrainingNoise
from vae_lightning.models.prior.model import Prior

TARGET = "vae_lightning.models.vqvae.model.VQVAE"
CPU = torch.device("cpu")


def build(spec=None, codes=2, temperature=0.5, **settings):
    """Return a small prior in double precision; images of 4×2 have a grid of 2×1."""
    torch.manual_seed(0)
    autoencoder = {"codes": codes, "code_dim": 2, "channels": [3], "residual_blocks": 1}
    described = {"target": TARGET, "settings": autoencoder, "run": "first", "step": 7}
    small = {"width": 8, "layers": 2, "heads": 2, "temperature": temperature}
    model = Prior(spec or DataSpec((1, 4, 2), "binary"), described, **(small | settings)).double()
    for weight in model.transformer.parameters():  # far from uniform
        torch.nn.init.normal_(weight, std=0.7)
    return model.eval()


def batch_of(spec, n=5, labels=0):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(n, *spec.shape, generator=generator).round().double()
    return Batch(x, torch.arange(n) % labels if labels else None, torch.arange(n))


def grids(model):
    """Return all grids of codes, ``[N, *grid]``."""
    shape = model.autoencoder.code_shape
    every = itertools.product(range(model.autoencoder.codes), repeat=math.prod(shape))
    return torch.tensor(list(every)).view(-1, *shape)


@pytest.mark.parametrize("classes", [0, 3])
def test_the_probabilities_of_all_grids_sum_to_one(classes):
    spec = DataSpec((1, 4, 4), "binary", class_names=("a", "b", "c"))
    model = build(spec, codes=3, num_classes=classes)
    every = grids(model)
    assert every.shape == (81, 2, 2)
    for label in range(classes or 1):
        y = torch.full((81,), label) if classes else None
        log_prior = model.log_prior(every, y)
        assert log_prior.exp().sum().item() == pytest.approx(1, abs=1e-12)
        assert log_prior.exp().max() > 0.05  # and they differ


def enumerated(model, batch):
    """Return log p(x|z), log p(z) and log q(z|x) of every grid, each ``[N, B]``."""
    every, count = grids(model), len(batch.x)
    codes = every[:, None].expand(-1, count, *every.shape[1:])
    log_likelihood = model.autoencoder.log_likelihood_of(batch, codes)
    log_prior = model.log_prior(every)[:, None].expand(-1, count)
    scores = model.autoencoder.scores(model.autoencoder.embed(batch))
    log_probs = (scores / model.temperature).log_softmax(-1)
    log_q = torch.stack([log_probs.gather(-1, code[..., None]).flatten(1).sum(1) for code in codes])
    return log_likelihood, log_prior, log_q


@torch.no_grad()
def test_the_bound_rises_with_its_samples_and_stays_below_log_p_of_x():
    """Two codes on a grid of two: every expectation is a sum over all draws, in float64."""
    model = build()
    batch = batch_of(model.data)
    assert model.autoencoder.code_shape == (2, 1)
    log_likelihood, log_prior, log_q = enumerated(model, batch)
    log_marginal = torch.logsumexp(log_likelihood + log_prior, 0)
    torch.testing.assert_close(log_q.exp().sum(0), torch.ones(5, dtype=torch.float64))
    log_weights = log_likelihood + log_prior - log_q
    expected = []
    for samples in (1, 2, 3):
        total = torch.zeros(5, dtype=torch.float64)
        for drawn in itertools.product(range(4), repeat=samples):
            probability = sum(log_q[number] for number in drawn).exp()
            weights = torch.stack([log_weights[number] for number in drawn])
            total += probability * (torch.logsumexp(weights, 0) - math.log(samples))
        expected.append(total)
    assert (expected[0] < expected[1]).all()
    assert (expected[1] < expected[2]).all()
    assert (expected[2] < log_marginal).all()
    nearest = (log_likelihood + log_prior).gather(0, log_q.argmax(0)[None])[0]
    assert (nearest < log_marginal).all()


@torch.no_grad()
def test_what_is_drawn_has_the_densities_of_its_codes_and_comes_by_its_probability():
    model = build()
    batch = batch_of(model.data)
    tables = enumerated(model, batch)
    scores = model.autoencoder.scores(model.autoencoder.embed(batch))
    noise = EvaluationNoise(batch.indices)
    log_likelihood, log_prior, log_q = model.drawn(batch, scores, noise, samples=4000)
    code = base.draw_codes(
        scores, EvaluationNoise(batch.indices), model.temperature, samples=4000
    ).flatten(2)
    number = code[..., 0] * 2 + code[..., 1]
    for ours, table in zip((log_likelihood, log_prior, log_q), tables, strict=True):
        torch.testing.assert_close(ours, table.gather(0, number))
    for grid in range(4):
        shares = (number == grid).double().mean(0)
        torch.testing.assert_close(shares, tables[2][grid].exp(), rtol=0, atol=0.04)


@torch.no_grad()
def test_the_figures_are_those_of_one_draw_and_of_the_nearest_codes():
    model = build()
    batch = batch_of(model.data)
    found = model.measure(batch, EvaluationNoise(batch.indices))
    assert list(found) == list(model.figures)
    torch.testing.assert_close(
        found["elbo"], found["log_likelihood"] + found["log_prior"] + found["entropy"]
    )
    log_likelihood, log_prior, log_q = enumerated(model, batch)
    best = log_q.argmax(0)[None]
    torch.testing.assert_close(
        found["elbo_of_nearest"], (log_likelihood + log_prior).gather(0, best)[0]
    )


# -- the order of the codes ------------------------------------------------------------------------


@torch.no_grad()
def test_a_code_changes_no_logits_but_those_after_it():
    model = build(DataSpec((1, 8, 8), "binary"), codes=5)
    code, y = torch.randint(5, (3, 16)), torch.zeros(3, dtype=torch.int64)
    before = model.transformer(code, y)
    for place in range(16):
        changed = code.clone()
        changed[:, place] = (changed[:, place] + 1) % 5
        after = model.transformer(changed, y)
        assert torch.equal(after[:, : place + 1], before[:, : place + 1])
        assert place == 15 or not torch.allclose(after[:, place + 1], before[:, place + 1])


@torch.no_grad()
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.7, 3), (0.0, None), (1.3, 1)])
def test_sampling_with_the_cache_is_sampling_without(temperature, top_k):
    model = build(DataSpec((1, 8, 8), "binary"), codes=5)
    code = model.draw_grids(6, SamplingNoise(6, 4), None, temperature, top_k).flatten(1)
    uniform, drawn = SamplingNoise(6, 4).uniform(16)[0], torch.zeros(6, 16, dtype=torch.int64)
    for place in range(16):
        logits = model.transformer(drawn, torch.zeros(6, dtype=torch.int64))[:, place]
        if top_k:
            kept = logits.topk(top_k).indices
            hidden = torch.full_like(logits, -torch.inf)
            logits = hidden.scatter(1, kept, logits.gather(1, kept))
        if temperature:
            cumulative = (logits / temperature).softmax(-1).cumsum(-1)
            drawn[:, place] = (cumulative <= uniform[:, place, None]).sum(-1)
        else:
            drawn[:, place] = logits.argmax(-1)
    assert torch.equal(code, drawn)
    assert len(code.unique(dim=0)) > 1 or temperature == 0 or top_k == 1


@torch.no_grad()
def test_samples_come_by_their_probability():
    model = build()
    code = model.draw_grids(20_000, SamplingNoise(20_000, 1)).flatten(1)
    probabilities = model.log_prior(grids(model)).exp()
    for number, (first, second) in enumerate(itertools.product(range(2), repeat=2)):
        share = ((code[:, 0] == first) & (code[:, 1] == second)).double().mean()
        assert share.item() == pytest.approx(probabilities[number].item(), abs=0.015)


@torch.no_grad()
def test_samples_are_images_and_a_function_of_the_noise():
    model = build(digits(), codes=5)
    samples = [model.sample(3, SamplingNoise(3, seed)) for seed in (1, 1, 2)]
    assert samples[0].shape == (3, 1, 28, 28)
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


@torch.no_grad()
def test_of_codes_that_are_equally_likely_no_more_than_k_are_drawn():
    model = build(DataSpec((1, 4, 2), "binary"), codes=6)
    for weight in model.transformer.logits.parameters():
        torch.nn.init.zeros_(weight)
    code = model.draw_grids(500, SamplingNoise(500, 1), top_k=2)
    assert len(code.unique()) == 2


@torch.no_grad()
def test_grids_are_the_same_however_many_are_drawn_together(monkeypatch):
    spec = DataSpec((1, 4, 2), "binary", class_names=("a", "b", "c"))
    model = build(spec, num_classes=3)
    together = model.sample(7, SamplingNoise(7, 1))
    monkeypatch.setattr("vae_lightning.models.prior.model._DRAWN_TOGETHER", 3)
    torch.testing.assert_close(model.sample(7, SamplingNoise(7, 1)), together)


def test_codes_without_probability_are_never_chosen():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0]])
    uniform = torch.tensor([0.0, 0.2, 0.99999994])[:, None]
    assert base.choose(logits, uniform).flatten().tolist() == [1, 1, 3]


# -- labels, and the trained model inside ----------------------------------------------------------


def test_a_conditional_prior_depends_on_its_label():
    spec = DataSpec((1, 4, 2), "binary", class_names=("a", "b", "c"))
    model = build(spec, num_classes=3)
    every = grids(model)
    log_priors = [model.log_prior(every, torch.full((4,), label)) for label in range(3)]
    assert not torch.allclose(log_priors[0], log_priors[1])
    with pytest.raises(ValueError, match="needs labels y"):
        model.log_prior(every)
    assert model.sample(4, SamplingNoise(4), torch.tensor([0, 1, 2, 0])).shape == (4, 1, 4, 2)
    assert model.sample(4, SamplingNoise(4)).shape == (4, 1, 4, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 9}, "^heads=2: must divide width=9$"),
        ({"num_classes": 4}, "^num_classes=4: the data has no labels$"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_a_prior_without_a_trained_model_says_what_to_type():
    with pytest.raises(ValueError, match=r"^autoencoder=null: .*data=codes data\.run="):
        Prior(digits())


@pytest.mark.parametrize(
    "target",
    ["os.system", "vae_lightning.models.vae.model.VAE", "vae_lightning.models.prior.model.Prior"],
)
def test_only_a_known_model_with_codes_is_built_inside(target):
    with pytest.raises(ConfigurationError, match=r"^model\.autoencoder\.target="):
        Prior(digits(), {"target": target, "settings": {}, "run": "", "step": 0})


def test_the_trained_model_stays_as_it_is():
    model = build(temperature=50.0)
    batch = batch_of(model.data)
    before = {name: value.clone() for name, value in model.autoencoder.state_dict().items()}
    model.train()
    assert not any(part.training for part in model.autoencoder.modules())
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    noises = [TrainingNoise(1).of(step, 5, CPU) for step in (0, 0, 1)]
    losses = [model.loss(batch, noise, 0)[0] for noise in noises]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])  # codes are drawn anew
    losses[0].sum().backward()
    optimizer.step()
    model.after_step(SamplingNoise(1))
    assert all(
        torch.equal(value, before[name]) for name, value in model.autoencoder.state_dict().items()
    )
    assert all(weight.grad is None for weight in model.autoencoder.parameters())
    assert all(weight.grad is not None for weight in model.transformer.parameters())


def test_a_prior_is_rebuilt_from_its_settings():
    model = build()
    again = type(model)(model.data, **model.settings).double()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.log_prior(grids(model)), model.log_prior(grids(model)))
