"""Noise is a function of what it belongs to, whatever was drawn before and elsewhere."""

import pytest
import torch

from vae_lightning.models.noise import (
    EvaluationNoise,
    SamplingNoise,
    TrainingNoise,
    keyed_generator,
)

CPU = torch.device("cpu")


def training_noise(seed, batch, shape):
    """Return the noise ``[S, B, D]`` of a batch, drawn by itself, as version 0.1 drew it."""
    return torch.randn(*shape, generator=keyed_generator(seed, batch), dtype=torch.float32)


def evaluation_noise(indices, dim, samples=range(1)):
    """Return the noise ``[S, B, D]`` of examples by their indices, of a range of samples."""
    noise = EvaluationNoise(indices, first_sample=samples.start)
    return noise.normal(dim, samples=len(samples))


# -- training -------------------------------------------------------------------------------------


def test_training_noise_is_a_function_of_seed_and_batch():
    def draw(seed, batch):
        return TrainingNoise(seed).of(batch, 4, CPU).normal(3)

    state = torch.get_rng_state()
    draws = {key: draw(*key) for key in [(1, 0), (1, 1), (2, 0)]}
    assert torch.equal(draws[1, 0], draw(1, 0))
    assert not torch.equal(draws[1, 0], draws[1, 1])
    assert not torch.equal(draws[1, 0], draws[2, 0])
    assert torch.equal(state, torch.get_rng_state())


def test_noise_drawn_for_some_batches_at_once_is_that_of_each_wherever_a_run_goes_on():
    noise, whole, short = TrainingNoise(3), (2, 4, 3), (2, 1, 3)
    visits = [
        (37, whole),
        (38, whole),
        (49, whole),
        (50, whole),
        (51, short),
        (52, whole),
        (99, whole),
        (3, whole),
        (2, whole),
    ]
    for batch, shape in visits:
        samples, examples, dim = shape
        drawn = noise.of(batch, examples, CPU).normal(dim, samples=samples)
        assert torch.equal(drawn, training_noise(3, batch, shape))


@pytest.mark.parametrize(
    ("numbers", "starts"), [(2**24, [50, 100]), (25 * 12, [50, 75, 100]), (1, list(range(31, 101)))]
)
def test_noise_is_moved_to_the_device_once_in_fifty_batches_or_before_it_takes_much_memory(
    monkeypatch, numbers, starts
):
    monkeypatch.setattr("vae_lightning.models.noise._NUMBERS", numbers)
    noise = TrainingNoise(3)
    blocks = [
        noise.of(batch, 4, CPU).normal(3).untyped_storage().data_ptr() for batch in range(30, 101)
    ]
    assert [batch for batch in range(31, 101) if blocks[batch - 30] != blocks[batch - 31]] == starts


def test_each_process_draws_its_rows_of_the_noise_of_all():
    whole = TrainingNoise(3).of(7, 5, CPU).normal(2, samples=4)
    shares = [
        TrainingNoise(3).of(7, examples, CPU, total=5, first=first).normal(2, samples=4)
        for first, examples in ((0, 2), (2, 3), (5, 0))
    ]
    assert torch.equal(torch.cat(shares, dim=1), whole)


def test_each_call_of_a_batch_draws_from_a_stream_of_its_own():
    kinds = {
        "normal": lambda noise: noise.normal(3),
        "uniform": lambda noise: noise.uniform(3),
        "integers": lambda noise: noise.integers(1000),
    }

    def second(first, then, source):
        noise = source()
        kinds[first](noise)
        return kinds[then](noise)

    sources = (
        lambda: TrainingNoise(3).of(7, 8, CPU),
        lambda: EvaluationNoise(torch.arange(8)),
    )
    for source in sources:
        for then, draw in kinds.items():
            # It counts that there was a call before, and not what it drew.
            draws = [second(first, then, source) for first in kinds]
            assert torch.equal(draws[0], draws[1])
            assert torch.equal(draws[0], draws[2])
            assert not torch.equal(draws[0], draw(source()))


def test_noise_after_a_step_is_a_function_of_seed_and_step_and_not_that_of_a_batch():
    def after(seed, step):
        return TrainingNoise(seed).after(step).normal(3)

    assert after(1, 5).shape == (1, 1, 3)
    assert torch.equal(after(1, 5), after(1, 5))
    others = [after(1, 6), after(2, 5), TrainingNoise(1).of(5, 1, CPU).normal(3)]
    assert not any(torch.equal(after(1, 5), other) for other in others)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused_before_a_step(seed):
    with pytest.raises(ValueError, match=f"seed={seed}: "):
        TrainingNoise(seed)


# -- evaluation -----------------------------------------------------------------------------------


def test_evaluation_noise_depends_on_the_image_and_on_nothing_else():
    indices = torch.tensor([3, 4999, 17, 500, 499])
    together = evaluation_noise(indices, 6)
    alone = torch.cat([evaluation_noise(index.view(1), 6) for index in indices], dim=1)
    assert torch.equal(together, alone)
    assert len(together[0].unique(dim=0)) == 5
    samples = evaluation_noise(indices, 6, range(4))
    assert torch.equal(samples[:1], together)
    assert torch.equal(samples[3:], evaluation_noise(indices, 6, range(3, 4)))
    assert len(samples.flatten(0, 1).unique(dim=0)) == 20
    table = evaluation_noise(torch.arange(10_000), 2)
    assert abs(table.mean()) < 0.03
    assert abs(table.std() - 1) < 0.03


def test_evaluation_noise_of_examples_without_indices_is_refused():
    with pytest.raises(ValueError, match=r"Batch\.indices"):
        EvaluationNoise(None)


# -- sampling -------------------------------------------------------------------------------------


def test_sampling_noise_of_a_seed_is_that_of_a_generator_with_it():
    drawn, generator = SamplingNoise(5, 3), torch.Generator().manual_seed(3)
    assert torch.equal(drawn.normal(2), torch.randn(1, 5, 2, generator=generator))
    assert torch.equal(drawn.integers(10), torch.randint(10, (5,), generator=generator))
    goes_on = SamplingNoise(5, generator)
    assert torch.equal(drawn.uniform(2, samples=3), goes_on.uniform(2, samples=3))
    assert torch.equal(drawn.normal(2), goes_on.normal(2))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainingNoise(3).of(0, 40_000, CPU),
        lambda: EvaluationNoise(torch.arange(40_000)),
        lambda: SamplingNoise(40_000),
    ],
    ids=["training", "evaluation", "sampling"],
)
def test_every_kind_of_noise_has_its_distribution_shape_and_type(make):
    noise = make()
    normal, uniform, integers = noise.normal(2, samples=2), noise.uniform(2), noise.integers(4)
    assert normal.shape == (2, 40_000, 2)
    assert uniform.shape == (1, 40_000, 2)
    assert integers.shape == (40_000,)
    assert (normal.dtype, uniform.dtype, integers.dtype) == (*[torch.float32] * 2, torch.int64)
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1) < 0.02
    assert 0 <= uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01
    shares = integers.bincount() / 40_000
    assert len(shares) == 4
    assert (abs(shares - 0.25) < 0.015).all()
