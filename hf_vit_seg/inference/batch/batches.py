"""Batches of images whose preprocessed sizes are equal, from a window of pending images: nothing is padded."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
WINDOW = 4  # images that an image waits for, in batches


class BatchWindow(Generic[Item]):
    """Pending items by size. The wait is bounded: after `window` further items, an item leaves in a smaller batch."""

    def __init__(self, batch: int, window: int | None = None):
        self.batch, self.window = batch, WINDOW * batch if window is None else window
        self.groups: OrderedDict[Hashable, list[Item]] = OrderedDict()  # the group of the oldest item first
        self.started: dict[Hashable, int] = {}  # the number of the first item of each group
        self.count = 0

    def __len__(self) -> int:
        return sum(map(len, self.groups.values()))

    def add(self, size: Hashable, item: Item) -> list[list[Item]]:
        """Add an item, and return the batches that are complete or have waited long enough."""
        self.count += 1
        self.started.setdefault(size, self.count)
        self.groups.setdefault(size, []).append(item)
        batches = [self.take(size)] if len(self.groups[size]) == self.batch else []
        oldest = next(iter(self.groups), None)
        if oldest is not None and self.count - self.started[oldest] >= self.window:
            batches.append(self.take(oldest))
        return batches

    def take(self, size: Hashable) -> list[Item]:
        """Remove and return a group."""
        del self.started[size]
        return self.groups.pop(size)

    def rest(self) -> Iterator[list[Item]]:
        """Yield the remaining items, in batches."""
        while self.groups:
            yield self.take(next(iter(self.groups)))


def batches(items: Iterable[tuple[Hashable, Item]], batch: int, window: int | None = None) -> Iterator[list[Item]]:
    """Divide items with sizes into batches of equal size."""
    pending = BatchWindow[Item](batch, window)
    for size, item in items:
        yield from pending.add(size, item)
    yield from pending.rest()


__all__ = ["BatchWindow", "batches"]
