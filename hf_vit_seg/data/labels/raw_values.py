"""Counting and lookup of the raw values of masks (integers or colors).

A color (red, green, blue) is encoded as one integer, its code.

Shapes: H W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.errors import HfVitSegError

Raw = int | tuple[int, int, int]

IGNORED_VALUE = -1  # written by sources into pixels that are always ignored
UNKNOWN = -2  # the class index of raw values that are neither mapped to a class nor ignored
DENSE = 2**16  # values below it (for histograms: ranges below it) use a dense array


class ClassTableError(HfVitSegError):
    """Contradictory classes, or a mask that does not match them."""


class UnknownValueError(ClassTableError):
    """Raw values that belong to no class; `counts` are their numbers of pixels (or images)."""

    def __init__(self, message: str, counts: Mapping[Raw, int] | None = None):
        """`counts` are pixels by raw value; empty if the error was pickled by a loader process."""
        super().__init__(message)
        self.counts = dict(counts or {})


def encode_color(red: Any, green: Any, blue: Any) -> Any:
    """Encode a color (integers or tensors) as red * 65536 + green * 256 + blue."""
    return (red << 16) | (green << 8) | blue


def decode_color(code: int) -> tuple[int, int, int]:
    """Decode a color from its code."""
    return code >> 16, code >> 8 & 255, code & 255


def encode_mask(mask: torch.Tensor, colored: bool) -> torch.Tensor:
    """Encode a mask as (H, W) int64 of integers, or of color codes if `colored`.

    Gray RGB masks are accepted for integer values. Raises ClassTableError if mask and classes differ in kind.
    """
    if mask.ndim == 2 and not colored:
        return mask.to(torch.int64)
    if mask.ndim == 2:
        raise ClassTableError(
            f"the mask has integers ({format_list(mask.unique().tolist(), 12)}), but the values of the classes are "
            "colors: use integers"
        )
    if not colored and torch.equal(mask[0], mask[1]) and torch.equal(mask[0], mask[2]):
        return mask[0].to(torch.int64)
    codes = encode_color(*mask.to(torch.int64).unbind())
    if not colored:
        raise ClassTableError(
            f"the mask has colors ({format_list(map(decode_color, codes.unique().tolist()))}), but the values of the "
            "classes are integers: use colors, as in values: [[128, 64, 0]]"
        )
    return codes


def histogram(mask: torch.Tensor, colored: bool) -> dict[Raw, int]:
    """Return the pixel counts by raw value, in order of the values."""
    codes = encode_mask(mask, colored).flatten()
    if not len(codes):
        return {}
    low = int(codes.min())
    if int(codes.max()) - low < DENSE:
        counts = torch.bincount(codes - low)
        positions = counts.nonzero()[:, 0]
        values, counts = positions + low, counts[positions]
    else:
        values, counts = codes.unique(return_counts=True)
    raws = map(decode_color, values.tolist()) if colored else values.tolist()
    return dict(zip(raws, counts.tolist(), strict=True))


class Lookup:
    """A vectorized mapping from raw values to class indices."""

    def __init__(self, targets: Sequence[tuple[Raw, int]]):
        """`targets` are pairs of a raw value and its class, at least one; values are all integers or all colors."""
        self.colored = isinstance(targets[0][0], tuple)
        pairs = sorted((encode_color(*raw) if isinstance(raw, tuple) else raw, target) for raw, target in targets)
        self.keys, self.targets = torch.tensor(pairs, dtype=torch.int64).T.contiguous()
        high = pairs[-1][0]
        self.dense = torch.full((high + 1,) if 0 <= high < DENSE else (0,), UNKNOWN)  # indexed by value
        if len(self.dense):
            self.dense[self.keys[self.keys >= 0]] = self.targets[self.keys >= 0]

    def __call__(self, mask: torch.Tensor) -> torch.Tensor:
        """Map a raw mask, (H, W) of integers or (3, H, W) of colors, to class indices (H, W) int64, or UNKNOWN."""
        codes = encode_mask(mask, self.colored)
        if codes.numel() and codes.min() >= 0 and codes.max() < len(self.dense):
            return self.dense.index_select(0, codes.flatten()).view(codes.shape)
        positions = torch.searchsorted(self.keys, codes).clamp_(max=len(self.keys) - 1)
        return torch.where(self.keys[positions] == codes, self.targets[positions], UNKNOWN)


__all__ = ["IGNORED_VALUE", "UNKNOWN", "ClassTableError", "Lookup", "Raw", "UnknownValueError", "histogram"]
