"""The order of training samples and their random numbers depend only on the position of the sample."""

import random
from itertools import chain

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from hf_vit_seg.data.stream import BATCH, SAMPLE, Draw, StreamSampler, seed_draw

lengths, batch_sizes, seeds = st.integers(1, 40), st.integers(1, 7), st.integers(0, 2**40)


def flat(batches) -> list[Draw]:
    return list(chain.from_iterable(batches))


class NumbersOfADraw(Dataset):
    """The random numbers of a sample's transforms."""

    def __getitem__(self, draw: Draw) -> list[float]:
        with seed_draw(draw, seed=3):
            return [*draw, random.random(), float(np.random.rand()), float(torch.rand(()))]

    def __len__(self) -> int:
        return 10


@given(lengths, seeds, batch_sizes, st.integers(1, 4))
def test_epochs_are_permutations_and_batches_span_them(length, seed, batch_size, epochs):
    batches = list(StreamSampler(length, seed, batch_size, stop=epochs * length))
    draws = flat(batches)
    assert [draw.position for draw in draws] == list(range(epochs * length))
    for epoch in range(epochs):
        indices = [draw.index for draw in draws if draw.epoch == epoch]
        assert sorted(indices) == list(range(length))
    assert all(len(batch) == batch_size for batch in batches[:-1])


@given(lengths, seeds, batch_sizes, st.data())
def test_later_start_gives_the_tail_of_the_stream(length, seed, batch_size, data):
    stop = data.draw(st.integers(0, 4 * length))
    start = data.draw(st.integers(0, stop))
    whole, tail = (StreamSampler(length, seed, batch_size, start=first, stop=stop) for first in (0, start))
    assert flat(tail) == flat(whole)[start:]
    assert len(tail) == len(list(tail))


@given(lengths, seeds, batch_sizes, st.integers(2, 4), st.integers(0, 5), st.integers(1, 4))
def test_processes_together_equal_one_with_larger_batches(length, seed, batch_size, processes, done, steps):
    portion = processes * batch_size
    start, stop = done * portion, (done + steps) * portion
    one = list(StreamSampler(length, seed, portion, start, stop))
    shards = [
        list(BatchSamplerShard(StreamSampler(length, seed, batch_size, start, stop), processes, rank))
        for rank in range(processes)
    ]
    assert [flat(together) for together in zip(*shards, strict=True)] == one


@pytest.mark.parametrize("workers", [0, 2])
def test_accelerate_loader_does_not_depend_on_workers(workers):
    def samples(processes: int, rank: int, workers: int) -> list[list[list[float]]]:
        sampler = StreamSampler(10, 5, batch_size=4 // processes, start=4, stop=24)
        loader = DataLoader(NumbersOfADraw(), batch_sampler=sampler, num_workers=workers, collate_fn=list)
        return list(prepare_data_loader(loader, num_processes=processes, process_index=rank, put_on_device=False))

    first, second = (samples(2, rank, workers) for rank in range(2))
    assert [a + b for a, b in zip(first, second, strict=True)] == samples(1, 0, 0)


def test_order_depends_on_seed_and_epoch():
    orders = [
        tuple(draw.index for draw in flat(StreamSampler(50, seed, 5, start=50 * epoch)))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == len(orders)


def test_stream_ends_with_its_epoch_by_default():
    assert [draw.position for draw in flat(StreamSampler(5, 0, 2, start=7))] == [7, 8, 9]
    assert not list(StreamSampler(5, 0, 2, start=8, stop=8)) and not len(StreamSampler(5, 0, 2, start=8, stop=8))


@pytest.mark.parametrize("wrong", [{"length": 0}, {"batch_size": 0}, {"start": -1}])
def test_invalid_streams_raise(wrong):
    with pytest.raises(ValueError, match=r"samples|expected batch_size >= 1"):
        StreamSampler(**({"length": 5, "seed": 0, "batch_size": 2} | wrong))


def numbers() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_random_numbers_depend_on_draw_seed_and_purpose():
    cases = [
        (Draw(index, epoch, 0), seed, purpose)
        for index in (0, 1)
        for epoch in (0, 1)
        for seed in (0, 1)
        for purpose in (SAMPLE, BATCH)
    ]

    def draw_numbers(case) -> tuple[float, float, float]:
        with seed_draw(*case):
            return numbers()

    first = [draw_numbers(case) for case in cases]
    assert len(set(chain.from_iterable(first))) == 3 * len(cases)
    numbers()
    assert [draw_numbers(case) for case in reversed(cases)][::-1] == first


def test_global_random_state_is_unchanged():
    def seed_all() -> None:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(1)

    seed_all()
    expected = numbers(), numbers()
    seed_all()
    before = numbers()
    with pytest.raises(ZeroDivisionError), seed_draw(Draw(1, 2, 3), 0):
        raise ZeroDivisionError(numbers())
    assert (before, numbers()) == expected


# Weighted streams

weight_lists = st.lists(st.floats(0, 1e3), min_size=1, max_size=30).filter(any)


@given(weight_lists, seeds, batch_sizes, st.data())
def test_weighted_stream_resumes_at_any_sample(weights, seed, batch_size, data):
    length = len(weights)
    stop = data.draw(st.integers(0, 4 * length))
    start = data.draw(st.integers(0, stop))
    whole, tail = (StreamSampler(length, seed, batch_size, first, stop, weights) for first in (0, start))
    draws = flat(whole)
    assert flat(tail) == draws[start:]
    assert [draw.position for draw in draws] == list(range(stop))
    assert all(weights[draw.index] > 0 for draw in draws)
    assert len({(draw.epoch, draw.index, draw.repeat) for draw in draws}) == len(draws)  # different transforms


def test_weighted_stream_draws_in_proportion():
    weights = [1.0, 0.0, 3.0, 6.0] * 1000
    counts = np.zeros(4)
    for draw in flat(StreamSampler(4000, 1, 64, stop=40000, weights=weights)):
        counts[draw.index % 4] += 1
    assert counts[1] == 0
    assert counts / counts.sum() == pytest.approx([0.1, 0, 0.3, 0.6], abs=0.01)


def test_repeated_draws_have_different_random_numbers():
    numbers = set()
    for draw in flat(StreamSampler(2, 0, 4, stop=20, weights=[0.0, 1.0])):
        with seed_draw(draw, seed=5):
            numbers.add(float(torch.rand(())))
    assert len(numbers) == 20
