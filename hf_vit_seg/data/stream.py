"""The order of the training samples and their random numbers.

Both are stateless functions of the seed and of the number of samples drawn so far. A run can therefore resume at any
sample with identical results, and the samples depend neither on the number of loader workers nor on the number of
processes: accelerate distributes batches in turn, so two processes with batches of B see the same samples as one
process with batches of 2B.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import BatchSampler

from hf_vit_seg.errors import HfVitSegError

ORDER, SAMPLE, BATCH = range(3)  # purposes of random numbers; each has a separate stream


class Draw(NamedTuple):
    """One sample of the stream: its `index` in the dataset, its `epoch`, and its `position` in the stream (from 0).

    `repeat` counts the earlier draws of the index in the same epoch, which only weighted streams have.
    """

    index: int
    epoch: int
    position: int
    repeat: int = 0


def mix_seed(*numbers: int) -> int:
    """Hash several integers to a seed of 64 bits."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation (length,) int64 of the indices in one epoch."""
    generator = torch.Generator().manual_seed(mix_seed(ORDER, seed, epoch))
    return torch.randperm(length, generator=generator).numpy()


def weighted_order(weights: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Draw the indices (length,) int64 of one epoch with replacement, in proportion to `weights` (length,)."""
    bounds = np.cumsum(weights, dtype=np.float64)
    numbers = np.random.default_rng(mix_seed(ORDER, seed, epoch)).random(len(weights)) * bounds[-1]
    return np.searchsorted(bounds, numbers, side="right").clip(max=int(np.flatnonzero(weights)[-1]))


def count_repeats(order: np.ndarray) -> np.ndarray:
    """Count the earlier occurrences (length,) of each index in an order."""
    by_index = np.argsort(order, kind="stable")
    starts = np.searchsorted(order[by_index], order[by_index])
    repeats = np.empty(len(order), np.int64)
    repeats[by_index] = np.arange(len(order)) - starts
    return repeats


class StreamSampler(BatchSampler):
    """Batches of draws; batches may span two epochs.

    With `weights` (length,), an epoch is `length` draws with replacement, in proportion to the weights.

    `length` is the length of the dataset. The stream covers samples `start` to `stop` (exclusive), counted over all
    epochs and processes; the default `stop` is the end of the epoch that contains `start`. The last batch is shorter
    if `batch_size` does not divide the number of samples. If `batch_size` times the number of processes does not,
    accelerate fills the last round with samples of the first.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        batch_size: int,
        start: int = 0,
        stop: int | None = None,
        weights: Sequence[float] | None = None,
    ):
        if length < 1:
            raise HfVitSegError("the dataset has no samples to train on")
        if batch_size < 1 or start < 0:
            raise HfVitSegError(f"expected batch_size >= 1 and start >= 0, got {batch_size} and {start}")
        super().__init__(range(length), batch_size, drop_last=False)
        self.length, self.seed, self.start = length, seed, start
        self.weights = None if weights is None else np.asarray(weights, np.float64)
        self.stop = (start // length + 1) * length if stop is None else stop

    def __len__(self) -> int:
        return -(-max(self.stop - self.start, 0) // self.batch_size)

    def draws(self) -> Iterator[Draw]:
        """Iterate over single draws."""
        if self.weights is not None:
            yield from self.weighted_draws(self.weights)
            return
        for position in range(self.start, self.stop):
            epoch, offset = divmod(position, self.length)
            yield Draw(int(epoch_order(self.length, self.seed, epoch)[offset]), epoch, position)

    def weighted_draws(self, weights: np.ndarray) -> Iterator[Draw]:
        """Iterate over single draws in proportion to the weights."""
        for epoch in range(self.start // self.length, -(-self.stop // self.length)):
            order, first = weighted_order(weights, self.seed, epoch), epoch * self.length
            repeats = count_repeats(order)
            for position in range(max(self.start, first), min(self.stop, first + self.length)):
                offset = position - first
                yield Draw(int(order[offset]), epoch, position, int(repeats[offset]))

    def __iter__(self) -> Iterator[list[Draw]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        batch: list[Draw] = []
        for draw in self.draws():
            batch.append(draw)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


@contextmanager
def seed_draw(draw: Draw, seed: int, purpose: int = SAMPLE) -> Iterator[None]:
    """Seed the CPU generators of Python, numpy and torch for a draw, and restore their states on exit.

    The seed depends on the run's `seed`, the draw's epoch, index and repeat, and the purpose: `SAMPLE` for the
    transforms of one sample, `BATCH` for those of a batch, which use its first draw.
    """
    before = random.getstate(), np.random.get_state()
    number = mix_seed(purpose, seed, draw.epoch, draw.index, *([draw.repeat] if draw.repeat else []))
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(number)
            np.random.seed(number % 2**32)
            torch.default_generator.manual_seed(number)  # torch.manual_seed would also seed the accelerator
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


__all__ = ["BATCH", "SAMPLE", "Draw", "StreamSampler", "seed_draw"]
