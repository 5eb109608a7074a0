"""Layouts: invertible operations on the tensors of one rule.

A layout takes a tuple of tensors and gives a tuple of tensors; `inverted` is the layout that undoes it, bit
for bit. A layout that takes an axis apart needs to know its parts: `sizes` gives lengths by axis name.
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
    """What a rule does to the numbers of its tensors."""

    @property
    def inverted(self) -> "Layout":
        """The layout that leads back."""
        ...

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """Lay the tensors out anew; a ValueError says why their shapes do not fit."""
        ...


@dataclass(frozen=True)
class Same:
    """Nothing changes."""

    @property
    def inverted(self) -> "Same":
        """The same."""
        return self

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """Hand the tensors through."""
        return tensors


@dataclass(frozen=True)
class Split:
    """Cut one tensor into equal `parts` along an axis: fused keys and values, fused query, key and value."""

    parts: int
    axis: int = 0

    @property
    def inverted(self) -> "Join":
        """Join the parts again."""
        return Join(self.parts, self.axis)

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """One tensor (parts * n, ...) becomes `parts` tensors (n, ...)."""
        (fused,) = tensors
        if fused.ndim <= self.axis or fused.shape[self.axis] % self.parts:
            raise HfVitSegError(f"shape {list(fused.shape)} cannot be cut into {self.parts} along axis {self.axis}")
        return tuple(part.clone() for part in fused.chunk(self.parts, dim=self.axis))


@dataclass(frozen=True)
class Join:
    """Put `parts` tensors of one shape behind one another along an axis."""

    parts: int
    axis: int = 0

    @property
    def inverted(self) -> Split:
        """Cut them apart again."""
        return Split(self.parts, self.axis)

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """`parts` tensors (n, ...) become one tensor (parts * n, ...)."""
        shapes = {tuple(tensor.shape) for tensor in tensors}
        if len(tensors) != self.parts or len(shapes) != 1:
            raise HfVitSegError(f"{self.parts} tensors of one shape are expected, found shapes {sorted(shapes)}")
        return (torch.cat(tensors, dim=self.axis),)


@dataclass(frozen=True)
class Rearrange:
    """Permute, merge and take apart axes, written as "D h d -> (h d) D".

    A name stands for an axis, `1` for an axis of length one, a bracket for an axis made of several, the first
    varying slowest. Every name stands once on either side. Each tensor of the rule is rearranged alike.
    """

    pattern: str

    @property
    def inverted(self) -> "Rearrange":
        """The pattern read from right to left."""
        left, right = self.pattern.split("->")
        return Rearrange(f"{right.strip()} -> {left.strip()}")

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """Rearrange every tensor by the pattern."""
        left, right = (axes(side) for side in self.pattern.split("->"))
        return tuple(self.rearranged(tensor, left, right, sizes) for tensor in tensors)

    def rearranged(self, tensor: Tensor, left: list[list[str]], right: list[list[str]], sizes: Sizes) -> Tensor:
        """Take all axes apart, permute them, merge them."""
        if tensor.ndim != len(left):
            raise HfVitSegError(f"shape {list(tensor.shape)} does not have the axes of '{self.pattern}'")
        lengths: dict[str, int] = {}
        for length, names in zip(tensor.shape, left, strict=True):
            lengths.update(self.parted(length, names, sizes))
        before = [name for names in left for name in names]
        after = [name for names in right for name in names]
        permuted = tensor.reshape([lengths[name] for name in before]).permute([before.index(n) for n in after])
        return permuted.reshape([math.prod(lengths[name] for name in names) for names in right]).contiguous()

    def parted(self, length: int, names: list[str], sizes: Sizes) -> dict[str, int]:
        """The lengths of the axes that one axis is made of; one of them may be unknown."""
        known = {name: sizes[name] for name in names if len(names) > 1 and name in sizes}
        unknown = [name for name in names if name not in known]
        rest, surplus = divmod(length, math.prod(known.values()))
        if len(unknown) > 1:
            raise HfVitSegError(f"the lengths of {unknown} in '{self.pattern}' are not known")
        if surplus or (rest != 1 and not unknown):
            raise HfVitSegError(f"an axis of length {length} is not {names or 1} of '{self.pattern}' with {known}")
        return known | dict.fromkeys(unknown, rest)


def axes(side: str) -> list[list[str]]:
    """One side of a pattern as a list of axes, each a list of names; `1` is the empty list."""
    found = re.findall(r"\(([^()]*)\)|(\S+)", side)
    return [bracket.split() if bracket else [name] if name != "1" else [] for bracket, name in found]


@dataclass(frozen=True)
class Vector:
    """One axis that is longer than one, whether or not others of length one are written; back go `rank` axes."""

    rank: int

    @property
    def inverted(self) -> Rearrange:
        """All axes but the last have length one."""
        return Rearrange("n -> " + "1 " * (self.rank - 1) + "n")

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """(1, ..., 1, n) or (n,) becomes (n,)."""
        for tensor in tensors:
            if tensor.ndim == 0 or tensor.numel() != tensor.shape[-1]:
                raise HfVitSegError(f"shape {list(tensor.shape)} is not that of a vector")
        return tuple(tensor.reshape(-1) for tensor in tensors)


@dataclass(frozen=True)
class Chain:
    """One layout after the other."""

    steps: tuple[Layout, ...]

    @property
    def inverted(self) -> "Chain":
        """The inverses, last first."""
        return Chain(tuple(step.inverted for step in reversed(self.steps)))

    def apply(self, tensors: Tensors, sizes: Sizes) -> Tensors:
        """Apply the steps in their order."""
        for step in self.steps:
            tensors = step.apply(tensors, sizes)
        return tensors


SAME = Same()
TRANSPOSED = Rearrange("i o -> o i")  # a dense kernel of flax
KERNEL_FIRST = Rearrange("h w i o -> o i h w")  # a convolution kernel of flax or TensorFlow
POINTWISE = Rearrange("o i 1 1 -> o i")  # a 1x1 convolution as a linear layer
