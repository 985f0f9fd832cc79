"""MusicVAE: an exact mass, a bound below it, and what its figures say."""

import itertools
import math

import pytest
import torch

from vae_lightning.models.base import Batch, DataSpec
from vae_lightning.models.musicvae.model import MusicVAE
from vae_lightning.models.noise import EvaluationNoise, SamplingNoise, TrainingNoise

SIZES = {
    "latent_dim": 2,
    "embedding_dim": 3,
    "encoder_dim": 4,
    "parts": 1,
    "decoder_dim": 5,
    "guide_dim": 4,
    "step_dim": 4,
}


def build(shape, vocabulary, values="tokens", **settings):
    torch.manual_seed(0)
    spec = DataSpec(shape, values, vocabulary)
    model = MusicVAE(spec, **SIZES | {"bar": 2} | settings).double().eval()
    for weight in model.parameters():  # far from uniform
        weight.data.mul_(3)
    return model


def every(shape, vocabulary):
    """All sequences of a shape."""
    tokens = itertools.product(range(vocabulary), repeat=math.prod(shape))
    return torch.tensor(list(tokens)).view(-1, *shape)


@pytest.mark.parametrize("decoder", ["flat", "hierarchical"])
@pytest.mark.parametrize(("shape", "vocabulary"), [((4, 1), 4), ((2, 2), 4), ((2, 3), 3)])
def test_the_probabilities_of_all_sequences_sum_to_one(decoder, shape, vocabulary):
    model, x = build(shape, vocabulary, decoder=decoder), every(shape, vocabulary)
    for z in torch.randn(3, 2, dtype=torch.float64):
        log_prob = model.log_likelihood(Batch(x), z.expand(1, len(x), 2))[0]
        assert log_prob.exp().sum().item() == pytest.approx(1, abs=1e-12)
        held_first = (x[:, 0] == 0).any(1)
        assert (log_prob[held_first].exp() == 0).all()


def test_the_probabilities_of_all_lists_of_pitches_sum_to_one_whatever_fills_them_up():
    model, x = build((2, 3), 5, "sets"), every((2, 3), 5)
    z = torch.randn(1, 1, 2, dtype=torch.float64).expand(1, len(x), 2)
    # A piece of two steps: steps behind the end, which begin with nothing, aren't modelled.
    whole = (x[:, :, 0] != 0).all(1)
    probability = model.log_likelihood(Batch(x), z)[0].exp()
    assert probability[whole].sum().item() == pytest.approx(1, abs=1e-12)
    likely = x[whole & (probability > 0)]
    assert len(likely) == (1 + 3 + 3) ** 2  # none, one or two of three pitches, in each step
    for step in likely.flatten(0, 1).tolist():
        pitches = step[: step.index(1)]
        assert pitches == sorted(set(pitches))
        assert set(step[step.index(1) + 1 :]) <= {0}
    ended = torch.cat([likely[:1, :1], torch.zeros(1, 1, 3, dtype=torch.int64)], 1)
    assert model.log_likelihood(Batch(ended), z[:, :1]).item() < 0


def test_the_bound_lies_below_log_p_of_x_by_quadrature():
    model = build((2, 1), 4)
    x = every((2, 1), 4)[4:]
    posterior = model.posterior(Batch(x))
    grid = torch.linspace(-8, 8, 81, dtype=torch.float64)
    z = torch.cartesian_prod(grid, grid)
    log_prior = model.prior().log_prob(z)
    log_likelihood = model.log_likelihood(Batch(x), z[:, None].expand(-1, len(x), 2))
    area = (grid[1] - grid[0]).item() ** 2
    log_marginal = (log_prior[:, None] + log_likelihood).logsumexp(0) + math.log(area)
    assert log_marginal.exp().sum().item() == pytest.approx(1, abs=1e-6)
    # The expectation of the bound, on the same grid.
    density = posterior.log_prob(z[:, None].expand(-1, len(x), 2)).exp() * area
    kl = model.kl(Batch(x), posterior, z[:1, None].expand(-1, len(x), 2))
    bound = (density * log_likelihood).sum(0) - kl
    assert (bound < log_marginal).all()
    assert (bound > log_marginal - 5).all()


@pytest.mark.parametrize("decoder", ["flat", "hierarchical"])
@pytest.mark.parametrize(
    ("shape", "values"), [((4, 1), "tokens"), ((4, 2), "tokens"), ((4, 3), "sets")]
)
def test_going_step_by_step_gives_the_logits_of_the_whole(decoder, shape, values):
    model = build(shape, 5, values, decoder=decoder)
    z = torch.randn(6, 2, dtype=torch.float64)
    seen = {}

    def choose(logits, step, voice):
        seen[step, voice] = logits
        return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]

    generator = torch.Generator().manual_seed(0)
    x = model._run(z, choose)
    whole = model.logits(x, z)
    for (step, voice), logits in seen.items():
        torch.testing.assert_close(whole[:, step, voice], logits)


def test_a_token_depends_on_no_later_one():
    model = build((4, 2), 5)
    z, x = torch.randn(1, 2, dtype=torch.float64), torch.randint(5, (1, 4, 2))
    before = model.logits(x, z).flatten(1, 2)
    for place in range(8):
        changed = x.flatten(1).clone()
        changed[0, place] = (changed[0, place] + 1) % 5
        after = model.logits(changed.view_as(x), z).flatten(1, 2)
        assert torch.equal(after[:, : place + 1], before[:, : place + 1])
        if place < 7:
            assert not torch.equal(after[:, place + 1 :], before[:, place + 1 :])


def test_drawn_sequences_come_as_often_as_their_probability_says():
    model = build((2, 1), 4)
    n = 20_000
    noise = SamplingNoise(n)
    x = model.sample(n, noise)
    z = model.prior().draw(SamplingNoise(4000))[0]
    for sequence in every((2, 1), 4)[4::3]:
        share = (x == sequence).flatten(1).all(1).double().mean().item()
        batch = Batch(sequence.expand(4000, 2, 1))
        each = model.log_likelihood(batch, z[None])[0].exp()
        error = math.sqrt(each.var().item() / 4000 + share * (1 - share) / n)
        assert abs(share - each.mean().item()) < 4.5 * error + 1e-9


def test_at_temperature_zero_the_most_likely_tokens_are_drawn():
    model = build((4, 2), 5)
    x = model.sample(5, SamplingNoise(5), temperature=0.0)
    z = model.prior().draw(SamplingNoise(5))[0]
    assert torch.equal(x, model.decode(z))
    assert torch.equal(model.logits(x, z).argmax(-1), x)


def test_a_decoder_without_use_of_its_latent_has_no_gap():
    model = build((4, 1), 5)
    x = torch.randint(1, 5, (30, 4, 1), generator=torch.Generator().manual_seed(0))
    batch = Batch(x, indices=torch.arange(30))
    gap = model.measure(batch, EvaluationNoise(batch.indices))["latent_gap"]
    assert gap.abs().max() > 1e-3
    for weight in model.decoder.steps.start.parameters():
        weight.data.zero_()
    model.decoder.steps.lstm.weight_ih_l0.data[:, SIZES["embedding_dim"] :] = 0
    gap = model.measure(batch, EvaluationNoise(batch.indices))["latent_gap"]
    assert gap.abs().max() == 0


def test_shares_are_of_the_tokens_of_each_kind():
    model = build((4, 1), 5)
    x = torch.tensor([[2, 0, 1, 0], [3, 4, 2, 2]])[..., None]
    batch = Batch(x, indices=torch.arange(2))
    model._run = lambda z, choose: torch.tensor([[2, 0, 2, 0], [3, 2, 2, 2]])[..., None]
    figures = model.measure(batch, EvaluationNoise(batch.indices))
    counts = {"notes": [1, 4], "holds": [2, 0], "rests": [1, 0], "tokens": [4, 4]}
    right = {"onset": [1, 3], "hold": [2, 0], "rest": [0, 0], "token": [3, 3]}
    for name, values in counts.items():
        assert figures[name].tolist() == values
    for kind, values in right.items():
        assert figures[f"{kind}_accuracy"].tolist() == values
    assert figures["exact"].tolist() == [0, 0]


def test_free_nats_are_those_of_the_whole_sequence():
    model = build((4, 1), 5)
    batch = Batch(torch.randint(1, 5, (6, 4, 1)))
    noise = TrainingNoise(1)
    plain, terms = model.loss(batch, noise.of(0, 6, torch.device("cpu")), 0)
    model.free_nats = free = terms["kl"].median().item()
    free_of, _ = model.loss(batch, noise.of(0, 6, torch.device("cpu")), 0)
    expected = (terms["kl"] - free).clamp(min=0) - terms["log_likelihood"]
    torch.testing.assert_close(free_of, expected)
    assert (free_of < plain).all()


def test_a_hidden_step_is_not_seen_and_the_others_are():
    model = build((4, 1), 5, word_dropout=0.5)
    x = torch.tensor([[2, 3, 4, 2]])[..., None]
    z = torch.zeros(1, 2, dtype=torch.float64)
    other = x.clone()
    other[0, 1] = 0
    kept = torch.tensor([[True, False, True, True]])
    assert torch.equal(model.decoder(x, z, kept), model.decoder(other, z, kept))
    assert not torch.equal(model.decoder(x, z), model.decoder(other, z))


@pytest.mark.parametrize(
    ("shape", "values", "settings", "message"),
    [
        ((1, 28, 28), "unit", {}, "^model=musicvae: needs music"),
        (
            (5, 1),
            "tokens",
            {"decoder": "hierarchical"},
            "^bar=2: 5 steps are no whole number of such bars",
        ),
        ((4, 1), "tokens", {"parts": 3}, "^parts=3: must divide 4 steps"),
        ((4, 1), "tokens", {"kl_schedule": "linear"}, "^kl_schedule=linear: over how many steps"),
    ],
)
def test_what_means_nothing_is_refused(shape, values, settings, message):
    with pytest.raises(ValueError, match=message):
        build(shape, 5, values, **settings)


def test_the_encoder_s_parts_are_means_over_the_steps_that_there_are():
    model = build((4, 2), 5, "sets", parts=2)
    pooled = []
    model.encoder.head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    x = torch.tensor([[[2, 1], [3, 1], [4, 1], [0, 0]]])
    steps = torch.arange(4)
    states = model.encoder.lstm(model.encoder.embedding(x) + model.encoder.embedding.at(steps))[0]
    model.encoder(x)
    expected = torch.cat([states[:, :2].mean(1), states[:, 2]], 1)
    torch.testing.assert_close(pooled[0], expected)


def test_settings_rebuild_the_model():
    model = build((4, 2), 5, decoder="hierarchical", dropout=0.1)
    twin = MusicVAE(model.data, **model.settings).double().eval()
    twin.load_state_dict(model.state_dict())
    batch = Batch(torch.randint(1, 5, (3, 4, 2)), indices=torch.arange(3))
    one, two = (each.measure(batch, EvaluationNoise(batch.indices)) for each in (model, twin))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_dropped_states_are_the_same_at_all_steps_and_make_up_for_it():
    model = build((4, 1), 5, dropout=0.5).train()
    batch = Batch(torch.randint(1, 5, (64, 4, 1)))
    masks = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[3]))
    model.loss(batch, TrainingNoise(1).of(0, 64, torch.device("cpu")), 0)
    assert set(masks[0].unique().tolist()) == {0.0, 2.0}
    assert masks[0].shape == (64, SIZES["decoder_dim"])


@pytest.mark.parametrize("decoder", ["flat", "hierarchical"])
@pytest.mark.parametrize(
    ("shape", "values"), [((4, 1), "tokens"), ((4, 2), "tokens"), ((4, 3), "sets")]
)
def test_every_weight_has_a_gradient_as_several_processes_need(decoder, shape, values):
    model = build(shape, 6, values, decoder=decoder)
    x = model.sample(8, SamplingNoise(8, 0))
    model.loss(Batch(x), SamplingNoise(8, 1), 0)[0].mean().backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


def test_steps_behind_the_end_of_a_piece_cost_nothing():
    model = build((4, 3), 6, "sets")
    x = model.sample(5, SamplingNoise(5, 0))
    z = torch.randn(5, model.latent_dim, dtype=torch.float64)
    shorter = x.clone()
    shorter[:, 2:] = 0
    nats = model.logits(x, z).log_softmax(-1).gather(-1, x[..., None])[..., 0]
    expected = nats[:, :2].flatten(1).sum(1)
    found = model.log_likelihood(Batch(shorter), z[None])[0]
    torch.testing.assert_close(found, expected)
