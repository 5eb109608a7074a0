"""The class table: maps raw values of masks to class indices or the ignore index.

A raw value is an integer, or a color (red, green, blue) in color-coded masks. The table is applied once, when a sample
is read; later stages (processor, loss, metric) never shift labels.

Shapes: H W pixels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch

from hf_vit_seg.data.list_formatting import format_list

from .class_entries import (
    REDUCE_ZERO_LABEL,
    ClassSettings,
    class_colors,
    class_entries,
    class_targets,
    find_ignored_values,
    thing_classes,
)
from .raw_values import IGNORED_VALUE, UNKNOWN, ClassTableError, Lookup, Raw, UnknownValueError, histogram
from .unicode_names import normalize_name

SHOWN = 5  # unknown values in a message


@dataclass(frozen=True)
class ClassTable:
    """Class names, and the class index of each raw value.

    `targets` are pairs of a raw value and its class, or `ignore_index`. `by_position` is true if no class defines
    `values`; then a source with class names is matched by name (see `match_source`). `things` (K,) is
    true for things and false for stuff; empty if all classes are things.
    """

    names: tuple[str, ...]
    targets: tuple[tuple[Raw, int], ...]
    palette: tuple[tuple[int, int, int], ...] | None = None
    ignore_index: int = 255
    unknown_values: Literal["error", "ignore"] = "error"
    by_position: bool = True
    things: tuple[bool, ...] = ()

    @classmethod
    def from_recipe(
        cls,
        data: ClassSettings,
        source_names: Sequence[str] | None = None,
        task: str = "segmentation",
        source_things: Sequence[str] | None = None,
    ) -> "ClassTable":
        """Build the table of a recipe's `data`; without `data.classes`, of the source's class names.

        `source_things` are the names of the things in the source; None if the source does not mark things and stuff.

        The ignore index is 255, or 65535 for more than 255 classes. A value cannot be both a class's and ignored,
        except for the default `ignore: [255]`, which a class may override. Raises ClassTableError.
        """
        entries = class_entries(data, source_names, task)
        names = tuple(normalize_name(entry.name) for entry in entries)
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            raise ClassTableError(f"data.classes has '{repeated[0]}' twice: merge the values of both into one class")
        first = 1 if data.preset == REDUCE_ZERO_LABEL else 0
        values = [(index,) if e.values is None else tuple(e.values) for index, e in enumerate(entries, first)]
        ignore_index = 255 if len(names) <= 255 else 65535
        targets = class_targets(names, values) | dict.fromkeys(find_ignored_values(data, names, values), ignore_index)
        return cls(
            names=names,
            targets=tuple(sorted(targets.items())),
            palette=class_colors(entries),
            ignore_index=ignore_index,
            unknown_values=data.unknown,
            by_position=not first and all(entry.values is None for entry in entries),
            things=thing_classes(entries, names, source_things, task),
        )

    def is_thing(self, index: int) -> bool:
        """Return whether a class has single objects."""
        return not self.things or self.things[index]

    @property
    def stuff(self) -> frozenset[int]:
        """The indices of the classes that are stuff."""
        return frozenset(index for index in range(len(self.names)) if not self.is_thing(index))

    def match_source(self, source_names: Sequence[str] | None) -> "ClassTable":
        """Return the table for a source with class names, whose raw value i is the class named `source_names[i]`.

        If classes define `values`, these refer to positions in `source_names`, and the table is returned unchanged.
        """
        if source_names is None or not self.by_position:
            return self
        source_names = [normalize_name(name) for name in source_names]
        indices = {name: index for index, name in enumerate(self.names)}
        unmatched = [f"'{name}'" for name in source_names if name not in indices]
        if unmatched and self.unknown_values == "error":
            raise ClassTableError(
                f"the source has the class {format_list(unmatched)}, which is not in data.classes "
                f"({format_list(self.names)}): add it, or set data.unknown to ignore"
            )
        targets = [(index, indices.get(name, self.ignore_index)) for index, name in enumerate(source_names)]
        return replace(self, targets=((IGNORED_VALUE, self.ignore_index), *targets), by_position=False)

    def class_index(self, raw: int) -> int:
        """Return the class index of an image's raw label. Raises UnknownValueError for labels without a class."""
        index = dict(self.targets).get(raw, UNKNOWN)
        if not 0 <= index < len(self.names):
            raise UnknownValueError(
                f"the label {raw} belongs to no class: classes have {self.describe_values()}", {raw: 1}
            )
        return index

    def class_indices(self, labels: Sequence[int]) -> tuple[int, ...]:
        """Return the class indices of an image's raw labels, without ignored ones.

        Raises UnknownValueError for labels without a class, unless `data.unknown` is `ignore`.
        """
        targets = dict(self.targets)
        unknown: dict[Raw, int] = {label: 1 for label in labels if label not in targets}
        if unknown and self.unknown_values == "error":
            raise UnknownValueError(
                f"the labels {format_list(unknown)} belong to no class: classes have {self.describe_values()}", unknown
            )
        indices = {targets[label] for label in labels if label in targets}
        return tuple(sorted(indices - {self.ignore_index}))

    def apply(self, raw: torch.Tensor) -> torch.Tensor:
        """Map a raw mask, (H, W) of values or (3, H, W) of colors, to class indices (H, W) int64.

        Ignored values become `ignore_index`. Raises UnknownValueError for other values, unless `data.unknown` is
        `ignore`.
        """
        classes = self._lookup(raw)
        unknown = classes == UNKNOWN
        if not unknown.any():
            return classes
        if self.unknown_values == "ignore":
            return classes.masked_fill_(unknown, self.ignore_index)
        counts = self.unknown(raw)
        raise UnknownValueError(
            f"the mask has the unknown values {format_list([f'{v} ({n} pixels)' for v, n in counts.items()], SHOWN)}; "
            f"classes have {self.describe_values()}: add them to the values of a class or to data.ignore, or set "
            "data.unknown to ignore",
            counts,
        )

    def unknown(self, raw: torch.Tensor) -> dict[Raw, int]:
        """Return the pixel counts of raw values that are neither mapped to a class nor ignored, the most frequent
        first.
        """
        mapped = {value for value, _ in self.targets}
        counts = [(value, count) for value, count in self.histogram(raw).items() if value not in mapped]
        return dict(sorted(counts, key=lambda item: -item[1]))

    def histogram(self, raw: torch.Tensor) -> dict[Raw, int]:
        """Return the pixel counts by raw value, in order of the values. Raises ClassTableError for a mask of the wrong
        kind.
        """
        return histogram(raw, self._lookup.colored)

    def describe_values(self) -> str:
        """Format the raw values of the classes."""
        return format_list([value for value, target in self.targets if target < len(self.names)], 12)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.targets)


__all__ = ["ClassTable", "ClassTableError", "UnknownValueError"]
