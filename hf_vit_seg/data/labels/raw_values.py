"""Raw values of masks, numbers or colors, and how they are counted and looked up.

A color (red, green, blue) is handled as one number, its code.

Shapes: H W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_vit_seg.data.wording import listed
from hf_vit_seg.errors import HfVitSegError

Raw = int | tuple[int, int, int]

UNCOUNTED = -1  # what sources write where they know themselves that a pixel does not count
UNKNOWN = -2  # in place of a class: neither a class's value nor an ignored one
DENSE = 2**16  # values below it (when counted: ranges of values) are looked up in a plain array


class ClassTableError(HfVitSegError):
    """Classes that contradict each other, or a mask that does not fit them, in one sentence."""


class UnknownValueError(ClassTableError):
    """Raw values that are no class's; `counts` says how many pixels (or images) have each."""

    def __init__(self, message: str, counts: Mapping[Raw, int] | None = None):
        """`counts` are pixels by raw value; loader processes hand on the message alone."""
        super().__init__(message)
        self.counts = dict(counts or {})


def code_of(red: Any, green: Any, blue: Any) -> Any:
    """A color, or tensors of the parts of many, as one number each."""
    return (red << 16) | (green << 8) | blue


def color_of(code: int) -> tuple[int, int, int]:
    """The color that a number stands for."""
    return code >> 16, code >> 8 & 255, code & 255


def codes_of(mask: torch.Tensor, colored: bool) -> torch.Tensor:
    """A mask as numbers (H, W) int64, for classes whose values are colors or not.

    Gray that is painted in colors is taken for its values. ClassTableError for any other mask of the other kind.
    """
    if mask.ndim == 2 and not colored:
        return mask.to(torch.int64)
    if mask.ndim == 2:
        raise ClassTableError(
            f"the mask has whole numbers ({listed(mask.unique().tolist(), 12)}), but the classes have colors: give "
            "the classes whole numbers as values"
        )
    if not colored and torch.equal(mask[0], mask[1]) and torch.equal(mask[0], mask[2]):
        return mask[0].to(torch.int64)
    codes = code_of(*mask.to(torch.int64).unbind())
    if not colored:
        raise ClassTableError(
            f"the mask is painted in colors ({listed(map(color_of, codes.unique().tolist()))}), but the classes have "
            "whole numbers: give the classes colors as values, as in values: [[128, 64, 0]]"
        )
    return codes


def histogram(mask: torch.Tensor, colored: bool) -> dict[Raw, int]:
    """Pixels by raw value, in the order of the values."""
    codes = codes_of(mask, colored).flatten()
    if not len(codes):
        return {}
    low = int(codes.min())
    if int(codes.max()) - low < DENSE:
        counts = torch.bincount(codes - low)
        places = counts.nonzero()[:, 0]
        values, counts = places + low, counts[places]
    else:
        values, counts = codes.unique(return_counts=True)
    raws = map(color_of, values.tolist()) if colored else values.tolist()
    return dict(zip(raws, counts.tolist(), strict=True))


class Lookup:
    """The class of every raw value, for whole masks at once."""

    def __init__(self, targets: Sequence[tuple[Raw, int]]):
        """`targets` are pairs of a raw value and its class, at least one; values are all numbers or all colors."""
        self.colored = isinstance(targets[0][0], tuple)
        pairs = sorted((code_of(*raw) if isinstance(raw, tuple) else raw, target) for raw, target in targets)
        self.keys, self.targets = torch.tensor(pairs, dtype=torch.int64).T.contiguous()
        high = pairs[-1][0]
        self.dense = torch.full((high + 1,) if 0 <= high < DENSE else (0,), UNKNOWN)  # by value, where values are small
        if len(self.dense):
            self.dense[self.keys[self.keys >= 0]] = self.targets[self.keys >= 0]

    def __call__(self, mask: torch.Tensor) -> torch.Tensor:
        """A raw mask, (H, W) of numbers or (3, H, W) of colors, as classes (H, W) int64, or UNKNOWN."""
        codes = codes_of(mask, self.colored)
        if codes.numel() and codes.min() >= 0 and codes.max() < len(self.dense):
            return self.dense.index_select(0, codes.flatten()).view(codes.shape)
        places = torch.searchsorted(self.keys, codes).clamp_(max=len(self.keys) - 1)
        return torch.where(self.keys[places] == codes, self.targets[places], UNKNOWN)


__all__ = ["UNCOUNTED", "UNKNOWN", "ClassTableError", "Lookup", "Raw", "UnknownValueError", "histogram"]
