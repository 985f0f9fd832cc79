"""The codebook: which code is chosen, what moves it, and what must not."""

import copy

import pytest
import torch

from vae_lightning import SamplingNoise
from vae_lightning.models.vqvae.quantizer import Quantizer


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    return Quantizer(codes=5, dim=3, decay=0.9).double()


def nearest(quantizer, embedded):
    return quantizer.scores(embedded).argmax(-1)


def test_a_score_is_minus_the_squared_distance_and_the_nearest_code_wins(quantizer):
    embedded = torch.randn(4, 2, 2, 3, dtype=torch.float64)
    distances = torch.cdist(embedded.flatten(0, 2), quantizer.codebook).square().view(4, 2, 2, 5)
    torch.testing.assert_close(quantizer.scores(embedded), -distances)
    assert torch.equal(nearest(quantizer, embedded), distances.argmin(-1))


def test_the_codebook_starts_from_positions_of_the_data(quantizer):
    embedded = torch.randn(40, 3, dtype=torch.float64)
    quantizer.start(embedded, torch.Generator().manual_seed(1))
    rows = [(embedded == code).all(1).nonzero().item() for code in quantizer.codebook]
    assert len(set(rows)) == 5
    assert torch.equal(quantizer.sums, quantizer.codebook)
    assert torch.equal(quantizer.counts, torch.ones(5, dtype=torch.float64))


def test_a_codebook_larger_than_the_data_starts_all_the_same(quantizer):
    quantizer.start(torch.randn(2, 3, dtype=torch.float64), torch.Generator())
    assert len(quantizer.codebook.unique(dim=0)) == 2


def test_an_update_is_that_of_the_paper_over_all_that_was_seen(quantizer):
    """van den Oord et al., equations 6 to 8, with Laplace smoothing."""
    counts, sums = quantizer.counts.clone(), quantizer.sums.clone()
    seen = [torch.randn(15, 2, 3, dtype=torch.float64) for _ in range(2)]
    chosen = [(torch.arange(30) % 5).view(15, 2), (torch.arange(30) % 3).view(15, 2)]
    for embedded, code in zip(seen, chosen, strict=True):
        quantizer.see(embedded, code)
    quantizer.update(SamplingNoise(1))
    embedded, code = torch.cat(seen).flatten(0, 1), torch.cat(chosen).flatten()
    for k in range(5):
        mine = embedded[code == k]
        counts[k] = 0.9 * counts[k] + 0.1 * len(mine)
        sums[k] = 0.9 * sums[k] + 0.1 * mine.sum(0)
    total = counts.sum()
    smoothed = (counts + 1e-5) / (total + 5e-5) * total
    torch.testing.assert_close(quantizer.counts, counts)
    torch.testing.assert_close(quantizer.sums, sums)
    torch.testing.assert_close(quantizer.codebook, sums / smoothed[:, None])


def test_what_was_seen_counts_once(quantizer):
    embedded = torch.randn(30, 1, 3, dtype=torch.float64)
    quantizer.see(embedded, torch.arange(30) % 5)
    quantizer.update(SamplingNoise(1))
    before = quantizer.counts.clone()
    quantizer.see(embedded, torch.arange(30) % 5)
    quantizer.update(SamplingNoise(1))
    torch.testing.assert_close(quantizer.counts, 0.9 * before + 0.1 * 6)


def test_a_codebook_comes_to_the_means_of_what_chooses_it(quantizer):
    centres = 10 * torch.randn(5, 3, dtype=torch.float64)
    embedded = centres.repeat(20, 1)[:, None]
    quantizer.start(centres + 0.1, torch.Generator())
    for step in range(300):
        quantizer.see(embedded, nearest(quantizer, embedded))
        quantizer.update(SamplingNoise(1, step))
    torch.testing.assert_close(
        quantizer.codebook[nearest(quantizer, embedded)], embedded, rtol=0, atol=1e-3
    )


def test_a_dead_code_moves_to_a_position_and_its_averages_with_it(quantizer):
    embedded = torch.randn(50, 1, 3, dtype=torch.float64)
    code = torch.arange(50) % 4  # nothing chooses the last one
    for step in range(60):
        quantizer.counts[4] = 0.01
        quantizer.see(embedded, code)
        quantizer.update(SamplingNoise(1, step))
        share = quantizer.counts[:4].mean()
        moved = quantizer.codebook[4]
        distance = (embedded - moved).norm(dim=-1).min()
        assert distance < 1e-3
        assert quantizer.counts[4] > 0.5 * share  # else the next update would move it again
        torch.testing.assert_close(
            quantizer.sums[4] / quantizer.counts[4], moved, rtol=1e-3, atol=1e-3
        )


def test_a_restart_is_a_function_of_the_noise(quantizer):
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(0)
        quantizer = Quantizer(codes=5, dim=3, decay=0.0)
        quantizer.see(torch.randn(50, 1, 3), torch.zeros(50, dtype=torch.int64))
        quantizer.update(SamplingNoise(1, seed))
        states.append(quantizer.codebook.clone())
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_processes_move_the_codebook_as_one_does(quantizer, monkeypatch):
    """Each holds some examples of the batch; restarts come from all of it."""
    twins = [copy.deepcopy(quantizer) for _ in range(2)]
    embedded, code = torch.randn(9, 2, 3, dtype=torch.float64), torch.zeros(9, 2, dtype=torch.int64)
    for each in (quantizer, *twins):
        each.decay = 0.0  # so that four codes are dead at once
    quantizer.see(embedded, code)
    quantizer.update(SamplingNoise(1, 5))
    assert len(quantizer.codebook.unique(dim=0)) == 5
    sent = []

    def all_reduce(moved):  # the first process's call sums nothing, the second's all
        sent.append(moved.clone())
        moved.copy_(sum(sent))

    parts = [(slice(0, 4), 0), (slice(4, 9), 4)]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    for twin, (rows, first) in zip(twins, parts, strict=True):
        twin.see(embedded[rows], code[rows], first, 9)
        twin.update(SamplingNoise(1, 5))
    for name, value in quantizer.state_dict().items():
        torch.testing.assert_close(twins[1].state_dict()[name], value)
