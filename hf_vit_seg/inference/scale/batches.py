"""Batches of images whose preprocessed sizes are equal, from a window of pending images: nothing is padded."""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
WINDOW = 4  # pending images, in batches


class BatchWindow(Generic[Item]):
    """Pending items by size. The wait is bounded: above `window` items, the oldest leaves in a smaller batch."""

    def __init__(self, batch: int, window: int | None = None):
        self.batch, self.window = batch, WINDOW * batch if window is None else window
        self.groups: OrderedDict[Hashable, list[Item]] = OrderedDict()  # the group of the oldest item first

    def __len__(self) -> int:
        return sum(map(len, self.groups.values()))

    def add(self, size: Hashable, item: Item) -> list[Item]:
        """Add an item, and return a batch, or an empty list."""
        group = self.groups.setdefault(size, [])
        group.append(item)
        if len(group) == self.batch:
            return self.groups.pop(size)
        return self.groups.popitem(last=False)[1] if len(self) > self.window else []

    def rest(self) -> Iterator[list[Item]]:
        """The remaining items, in batches."""
        while self.groups:
            yield self.groups.popitem(last=False)[1]


def batches(items: Iterable[tuple[Hashable, Item]], batch: int, window: int | None = None) -> Iterator[list[Item]]:
    """Divide items with sizes into batches of equal size."""
    pending = BatchWindow[Item](batch, window)
    for size, item in items:
        if full := pending.add(size, item):
            yield full
    yield from pending.rest()


__all__ = ["BatchWindow", "batches"]
