"""The order of training: which sample comes when, and with which random numbers.

Both are stateless functions of the seed and of the number of samples drawn so far. So a run goes on from any sample as
if it had never stopped, and neither loader workers nor the number of processes change what is drawn: accelerate deals
batches out in turn, and two processes with batches of B see what one process sees with batches of 2B.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import BatchSampler

from hf_vit_seg.errors import HfVitSegError

ORDER, SAMPLE, BATCH = range(3)  # what random numbers are for; each has a stream of its own


class Draw(NamedTuple):
    """One sample of the stream: the dataset's `index`, in which `epoch`, as the stream's `position`-th (from 0)."""

    index: int
    epoch: int
    position: int


def mixed(*numbers: int) -> int:
    """A seed of 64 bits from several numbers; those of close numbers have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> np.ndarray:
    """All indices below `length` in the order of one epoch, int64."""
    generator = torch.Generator().manual_seed(mixed(ORDER, seed, epoch))
    return torch.randperm(length, generator=generator).numpy()


class StreamSampler(BatchSampler):
    """Batches of draws, epoch after epoch without a border between them.

    `length` is the dataset's. The stream is read from sample `start` to before sample `stop`, both counted over all
    epochs and processes; without `stop` to the end of the epoch in which `start` lies. The last batch is shorter
    where `batch_size` does not divide their distance; where `batch_size` times processes does not, accelerate fills
    the last round with samples of the first.
    """

    def __init__(self, length: int, seed: int, batch_size: int, start: int = 0, stop: int | None = None):
        if length < 1:
            raise HfVitSegError("there is nothing to train on: the dataset has no samples")
        if batch_size < 1 or start < 0:
            raise HfVitSegError(f"batch_size is at least 1 and start at least 0, got {batch_size} and {start}")
        super().__init__(range(length), batch_size, drop_last=False)
        self.length, self.seed, self.start = length, seed, start
        self.stop = (start // length + 1) * length if stop is None else stop

    def __len__(self) -> int:
        """Batches from start to stop."""
        return -(-max(self.stop - self.start, 0) // self.batch_size)

    def draws(self) -> Iterator[Draw]:
        """The stream, sample by sample."""
        for position in range(self.start, self.stop):
            epoch, place = divmod(position, self.length)
            yield Draw(int(epoch_order(self.length, self.seed, epoch)[place]), epoch, position)

    def __iter__(self) -> Iterator[list[Draw]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The stream, batch by batch."""
        batch: list[Draw] = []
        for draw in self.draws():
            batch.append(draw)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


@contextmanager
def seeded(draw: Draw, seed: int, purpose: int = SAMPLE) -> Iterator[None]:
    """Python's, numpy's and torch's random numbers (on the CPU) as they belong to a draw, and as before afterwards.

    They depend on the run's `seed`, the draw's epoch and index, and on what they are for: `SAMPLE` is the transforms of
    one sample, `BATCH` those of a whole batch, which take the batch's first draw.
    """
    before = random.getstate(), np.random.get_state()
    number = mixed(purpose, seed, draw.epoch, draw.index)
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(number)
            np.random.seed(number % 2**32)
            torch.default_generator.manual_seed(number)  # torch.manual_seed would touch the accelerator's as well
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


__all__ = ["BATCH", "SAMPLE", "Draw", "StreamSampler", "seeded"]
