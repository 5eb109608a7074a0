"""Results that are made once from a model's tensors, and made anew when one of these has changed.

The comparison is by value, because nothing else is safe: writing through `.data`, as many moving averages do, leaves
no trace in a tensor's version, identity or address.
"""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import torch

from .fast_paths import runs_eagerly

T = TypeVar("T")


def remembering_pays(tensor: torch.Tensor) -> bool:
    """Whether a result may be kept: without autograd, with values to compare, with nobody looking on."""
    return not torch.is_grad_enabled() and not tensor.is_meta and runs_eagerly()


class Kept(NamedTuple, Generic[T]):
    """A result, and what it was made from."""

    key: object
    sources: list[torch.Tensor]
    result: T


class ValueCache(Generic[T]):
    """The last result, the key that it was asked by, and copies of the tensors that it was made from.

    Threads may share a cache: all three are replaced as one. Copies and pickles of a cache are empty.
    """

    def __init__(self):
        self.kept: Kept[T] | None = None

    def __reduce__(self):
        return ValueCache, ()

    def get(self, key: object, sources: Sequence[torch.Tensor], make: Callable[[], T]) -> T:
        """`make()`, or what it returned when key and sources were, value for value, what they are now."""
        kept = self.kept
        if kept is None or kept.key != key or not same_values(kept.sources, sources):
            copies = [tensor.detach().clone() for tensor in sources]
            self.kept = kept = Kept(key, copies, make())
        return kept.result


def same_values(olds: Sequence[torch.Tensor], news: Sequence[torch.Tensor]) -> bool:
    """Whether two lists of tensors agree in length, dtypes, devices and values."""
    return len(olds) == len(news) and all(
        old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)
        for old, new in zip(olds, news, strict=True)
    )


__all__ = ["ValueCache", "remembering_pays"]
