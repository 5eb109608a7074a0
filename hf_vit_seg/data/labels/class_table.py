"""The one label map: which raw values of a mask mean which class, and which do not count.

A raw value is a number, or a color (red, green, blue) where masks are painted. The table is applied once, when a
sample is read; nothing behind it (processor, loss, metric) shifts labels again.

Shapes: H W pixels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch

from hf_vit_seg.data.wording import listed

from .class_entries import (
    REDUCE_ZERO_LABEL,
    ClassSettings,
    class_colors,
    class_entries,
    class_targets,
    ignored_targets,
)
from .raw_values import UNCOUNTED, UNKNOWN, ClassTableError, Lookup, Raw, UnknownValueError, histogram

SHOWN = 5  # unknown values that a message lists


@dataclass(frozen=True)
class ClassTable:
    """Classes by name, and the raw values that mean them.

    `targets` are pairs of a raw value and its class, or `ignore_index`. `by_place` says that no class gave values of
    its own: then a source that names its classes is matched by name instead (see `matched`).
    """

    names: tuple[str, ...]
    targets: tuple[tuple[Raw, int], ...]
    palette: tuple[tuple[int, int, int], ...] | None = None
    ignore_index: int = 255
    unknown_values: Literal["error", "ignore"] = "error"
    by_place: bool = True

    @classmethod
    def from_recipe(cls, data: ClassSettings, source_names: Sequence[str] | None = None) -> "ClassTable":
        """The table that a recipe's `data` describes; without `classes` there, that of the names a source gives.

        The ignore index is 255, or 65535 for more than 255 classes. A value may be a class's or ignored, not both;
        only `ignore: [255]`, the default, gives way to a class that has this value. ClassTableError in one sentence.
        """
        entries = class_entries(data, source_names)
        names = tuple(entry.name for entry in entries)
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise ClassTableError(f"data.classes has '{repeated[0]}' twice: give the values of both to one class")
        first = 1 if data.preset == REDUCE_ZERO_LABEL else 0
        values = [(place,) if e.values is None else tuple(e.values) for place, e in enumerate(entries, first)]
        ignore_index = 255 if len(names) <= 255 else 65535
        targets = class_targets(names, values) | dict.fromkeys(ignored_targets(data, names, values), ignore_index)
        return cls(
            names=names,
            targets=tuple(sorted(targets.items())),
            palette=class_colors(entries),
            ignore_index=ignore_index,
            unknown_values=data.unknown,
            by_place=not first and all(entry.values is None for entry in entries),
        )

    def matched(self, source_names: Sequence[str] | None) -> "ClassTable":
        """This table for a source that names its classes: raw value i is there the class with the i-th name.

        Where classes have values of their own, those are the places of the names in the source, and nothing changes.
        """
        if source_names is None or not self.by_place:
            return self
        places = {name: place for place, name in enumerate(self.names)}
        strange = [f"'{name}'" for name in source_names if name not in places]
        if strange and self.unknown_values == "error":
            raise ClassTableError(
                f"the source has the class {listed(strange)}, which is not among the classes ({listed(self.names)}): "
                "name it in data.classes, or set data.unknown to ignore"
            )
        targets = [(place, places.get(name, self.ignore_index)) for place, name in enumerate(source_names)]
        return replace(self, targets=((UNCOUNTED, self.ignore_index), *targets), by_place=False)

    def class_of(self, raw: int) -> int:
        """The class of an image whose raw label is given. UnknownValueError when it has none."""
        found = dict(self.targets).get(raw, UNKNOWN)
        if not 0 <= found < len(self.names):
            raise UnknownValueError(f"the label {raw} is no class's: classes have {self.known_values()}", {raw: 1})
        return found

    def apply(self, raw: torch.Tensor) -> torch.Tensor:
        """A raw mask, (H, W) of values or (3, H, W) of colors, as classes (H, W) int64 and `ignore_index`.

        UnknownValueError when values are neither a class's nor ignored, and the recipe does not ignore them too.
        """
        classes = self._lookup(raw)
        unknown = classes == UNKNOWN
        if not unknown.any():
            return classes
        if self.unknown_values == "ignore":
            return classes.masked_fill_(unknown, self.ignore_index)
        counts = self.unknown(raw)
        raise UnknownValueError(
            f"the mask has the unknown values {listed([f'{v} ({n} pixels)' for v, n in counts.items()], SHOWN)}; "
            f"classes have {self.known_values()}: add them to a class's values or to data.ignore, or set data.unknown "
            "to ignore",
            counts,
        )

    def unknown(self, raw: torch.Tensor) -> dict[Raw, int]:
        """Pixels by raw value, of the values that are neither a class's nor ignored, the most frequent first."""
        known = {value for value, _ in self.targets}
        counts = [(value, count) for value, count in self.histogram(raw).items() if value not in known]
        return dict(sorted(counts, key=lambda item: -item[1]))

    def histogram(self, raw: torch.Tensor) -> dict[Raw, int]:
        """Pixels by raw value, in the order of the values. ClassTableError for colors where values are numbers."""
        return histogram(raw, self._lookup.colored)

    def known_values(self) -> str:
        """The raw values of the classes, in words."""
        return listed([value for value, target in self.targets if target < len(self.names)], 12)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.targets)


__all__ = ["ClassTable", "ClassTableError", "UnknownValueError"]
