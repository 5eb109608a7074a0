"""Layouts: invertible operations on the tensors of one rule.

A layout maps a tuple of tensors to a tuple of tensors; `inverse` is its lossless inverse. A layout that splits an
axis needs its parts: `sizes` gives lengths by axis name.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hf_vit_seg.errors import HfVitSegError

Tensors = tuple[Tensor, ...]
Sizes = Mapping[str, int]


class Layout(Protocol):
    """An invertible operation on the tensors of a rule, such as a split or a transposition."""

    @property
    def inverse(self) -> "Layout":
        """The layout that undoes this one, for export to the source's format."""
        ...

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """Apply the layout; ValueError if shapes do not fit."""
        ...


@dataclass(frozen=True)
class Identity:
    """The tensors unchanged."""

    @property
    def inverse(self) -> "Identity":
        """The same layout."""
        return self

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """Return the tensors unchanged."""
        return tensors


@dataclass(frozen=True)
class Split:
    """Split one tensor into equal `parts` along an axis, such as fused query, key and value."""

    parts: int
    axis: int = 0

    @property
    def inverse(self) -> "Join":
        """The layout that joins the parts."""
        return Join(self.parts, self.axis)

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """Split a tensor (parts * n, ...) into `parts` tensors (n, ...)."""
        (fused,) = tensors
        if fused.ndim <= self.axis or fused.shape[self.axis] % self.parts:
            raise HfVitSegError(f"shape {list(fused.shape)} cannot be split into {self.parts} along axis {self.axis}")
        return tuple(part.clone() for part in fused.chunk(self.parts, dim=self.axis))


@dataclass(frozen=True)
class Join:
    """Concatenate `parts` tensors of equal shape along an axis."""

    parts: int
    axis: int = 0

    @property
    def inverse(self) -> Split:
        """The layout that splits them."""
        return Split(self.parts, self.axis)

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """Concatenate `parts` tensors (n, ...) to a tensor (parts * n, ...)."""
        shapes = {tuple(tensor.shape) for tensor in tensors}
        if len(tensors) != self.parts or len(shapes) != 1:
            raise HfVitSegError(f"found shapes {sorted(shapes)}, expected {self.parts} tensors of equal shape")
        return (torch.cat(tensors, dim=self.axis),)


@dataclass(frozen=True)
class Rearrange:
    """Permute, merge and split axes, in the notation of einops: "D h d -> (h d) D".

    A name is an axis, `1` an axis of length one, and parentheses a merged axis whose first part varies slowest. Every
    name occurs once on each side. All tensors of the rule are rearranged in the same way.
    """

    pattern: str

    @property
    def inverse(self) -> "Rearrange":
        """The layout with the sides swapped."""
        left, right = self.pattern.split("->")
        return Rearrange(f"{right.strip()} -> {left.strip()}")

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """Rearrange every tensor by the pattern."""
        left, right = (axes(side) for side in self.pattern.split("->"))
        return tuple(self.rearrange(tensor, left, right, sizes) for tensor in tensors)

    def rearrange(self, tensor: Tensor, left: list[list[str]], right: list[list[str]], sizes: Sizes) -> Tensor:
        """Split all axes, permute them, merge them."""
        if tensor.ndim != len(left):
            raise HfVitSegError(f"shape {list(tensor.shape)} does not have the axes of '{self.pattern}'")
        lengths: dict[str, int] = {}
        for length, names in zip(tensor.shape, left, strict=True):
            lengths.update(self.split_axis(length, names, sizes))
        before = [name for names in left for name in names]
        after = [name for names in right for name in names]
        permuted = tensor.reshape([lengths[name] for name in before]).permute([before.index(n) for n in after])
        return permuted.reshape([math.prod(lengths[name] for name in names) for names in right]).contiguous()

    def split_axis(self, length: int, names: list[str], sizes: Sizes) -> dict[str, int]:
        """Return the lengths of the parts of a merged axis; at most one may be missing in `sizes`."""
        known_sizes = {name: sizes[name] for name in names if len(names) > 1 and name in sizes}
        unknown = [name for name in names if name not in known_sizes]
        rest, surplus = divmod(length, math.prod(known_sizes.values()))
        if len(unknown) > 1:
            raise HfVitSegError(f"the lengths of {unknown} in '{self.pattern}' are not known")
        if surplus or (rest != 1 and not unknown):
            raise HfVitSegError(
                f"an axis of length {length} is not {names or 1} of '{self.pattern}' with {known_sizes}"
            )
        return known_sizes | dict.fromkeys(unknown, rest)


def axes(side: str) -> list[list[str]]:
    """Parse one side of a pattern into axes, each a list of names; `1` is an empty list."""
    groups = re.findall(r"\(([^()]*)\)|(\S+)", side)
    return [bracket.split() if bracket else [name] if name != "1" else [] for bracket, name in groups]


@dataclass(frozen=True)
class Vector:
    """Remove leading axes of length one; the inverse adds them up to `rank` axes."""

    rank: int

    @property
    def inverse(self) -> Rearrange:
        """The layout that adds leading axes of length one."""
        return Rearrange("n -> " + "1 " * (self.rank - 1) + "n")

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """Reshape (1, ..., 1, n) or (n,) to (n,)."""
        for tensor in tensors:
            if tensor.ndim == 0 or tensor.numel() != tensor.shape[-1]:
                raise HfVitSegError(f"shape {list(tensor.shape)} is not that of a vector")
        return tuple(tensor.reshape(-1) for tensor in tensors)


@dataclass(frozen=True)
class Chain:
    """A sequence of layouts."""

    steps: tuple[Layout, ...]

    @property
    def inverse(self) -> "Chain":
        """The inverses in reverse order."""
        return Chain(tuple(step.inverse for step in reversed(self.steps)))

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """Apply the steps in order."""
        for step in self.steps:
            tensors = step.apply(tensors, sizes)
        return tensors


SAME = Identity()
TRANSPOSE = Rearrange("i o -> o i")  # a dense kernel of flax
KERNEL_FIRST = Rearrange("h w i o -> o i h w")  # a convolution kernel of flax or TensorFlow
POINTWISE = Rearrange("o i 1 1 -> o i")  # a 1x1 convolution as a linear layer
