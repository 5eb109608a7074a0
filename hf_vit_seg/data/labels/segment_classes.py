"""From raw segments to segments of classes, and the removal of segments.

Shapes: H W pixels, n segments, K classes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.data.samples import RawSegments, Segments

from .class_table import ClassTable
from .raw_values import ClassTableError, Raw, UnknownValueError

BACKGROUND, IGNORED, NO_CLASS = -1, -2, -3  # targets of segments that do not become segments of a class
PANOPTIC = "panoptic"  # in this task, pixels without a segment are ignored
SEGMENT_TASKS = frozenset({"instance", PANOPTIC})


def name_classes(raw: RawSegments, table: ClassTable) -> RawSegments:
    """Return segments with raw values as classes: without classes, those of the only class of the table.

    Raises ClassTableError if the table has several classes.
    """
    if raw.classes is not None:
        return raw
    if len(table.names) > 1:
        raise ClassTableError(
            f"found instance maps without classes, but {len(table.names)} classes ({format_list(table.names)}): list "
            "one class, without a background, or set masks to the class maps"
        )
    value = next(value for value, target in table.targets if target == 0)
    assert isinstance(value, int)
    return replace(raw, classes=(value,) * max(int(raw.ids.max()) if raw.ids.numel() else 0, 0))


def segment_targets(raw: RawSegments, table: ClassTable, task: str) -> list[int]:
    """Return the class index of each raw segment (n,), or BACKGROUND, IGNORED, or NO_CLASS for an unknown class.

    Regions of a thing class, which are groups of objects, are ignored. Regions of an unknown class are background for
    instances, such as the road of a street scene.
    """
    assert raw.classes is not None
    found, targets = dict[Raw, int](table.targets), range(len(table.names))

    def target(number: int, value: int, crowd: int) -> int:
        index = found.get(value)
        if index is None:
            return BACKGROUND if number in raw.regions and task != PANOPTIC else NO_CLASS
        return IGNORED if index not in targets or crowd >= 0 else index

    crowds = crowd_classes(raw, table)
    return [target(number, *pair) for number, pair in enumerate(zip(raw.classes, crowds, strict=True), 1)]


def crowd_classes(raw: RawSegments, table: ClassTable) -> list[int]:
    """Return the class index of each raw segment (n,) that is a group of things, -1 for other segments."""
    assert raw.classes is not None
    found, targets = dict[Raw, int](table.targets), range(len(table.names))
    indices = [found.get(value, -1) if number in raw.regions else -1 for number, value in enumerate(raw.classes, 1)]
    return [index if index in targets and table.is_thing(index) else -1 for index in indices]


def count_segments(raw: RawSegments, table: ClassTable, task: str) -> dict[Raw, int]:
    """Count the segments of each raw class, without background and groups of things; stuff counts once."""
    assert raw.classes is not None
    counts, merged = Counter[Raw](), table.stuff
    for value, index in zip(raw.classes, segment_targets(raw, table, task), strict=True):
        if index >= 0:
            counts[value] = 1 if index in merged else counts[value] + 1
        elif index == NO_CLASS:
            counts[value] += 1
    return dict(sorted(counts.items()))


def count_objects(targets: Sequence[int], table: ClassTable) -> int:
    """Return the number of segments of an image after stuff is merged, from the targets of its raw segments."""
    return max(number_segments(targets, table)[0], default=0)


def apply_classes(raw: RawSegments, table: ClassTable, task: str, unlabeled: torch.Tensor | None = None) -> Segments:
    """Map raw segments to classes; segments of one stuff class are merged, and `unlabeled` (H, W) pixels ignored.

    Raises UnknownValueError for segments of other classes, unless `data.unknown` is `ignore`.
    """
    assert raw.classes is not None
    targets = segment_targets(raw, table, task)
    unknown = Counter[Raw](value for value, index in zip(raw.classes, targets, strict=True) if index == NO_CLASS)
    if unknown and table.unknown_values == "error":
        raise UnknownValueError(
            f"the segments have the unknown classes {format_list([f'{v} ({n} segments)' for v, n in unknown.items()])};"
            f" classes have {table.describe_values()}: add them to the values of a class or to data.ignore, or set "
            "data.unknown to ignore",
            unknown,
        )
    numbers, classes = number_segments(targets, table)
    lookup = torch.tensor([-1, -1 if task == PANOPTIC else 0, *numbers], dtype=torch.int32)
    places, groups = raw.ids.to(torch.int64) + 1, crowd_classes(raw, table)
    ids, crowds = lookup[places], None
    if any(group >= 0 for group in groups):
        crowds = torch.tensor([-1, -1, *groups], dtype=torch.int32)[places]
    if unlabeled is not None:
        ids[unlabeled] = -1
    if unlabeled is not None and crowds is not None:
        crowds[unlabeled] = -1
    return remove_empty(Segments(ids, tuple(classes), crowds))


def number_segments(targets: Sequence[int], table: ClassTable) -> tuple[list[int], list[int]]:
    """Return the new number of each segment (0: none, -1: ignored), and the class of each new segment."""
    numbers, classes, stuff = [], [], dict[int, int]()
    for index in targets:
        if index < 0:
            numbers.append(0 if index == BACKGROUND else -1)
            continue
        number = len(classes) + 1 if table.is_thing(index) else stuff.setdefault(index, len(classes) + 1)
        if number > len(classes):
            classes.append(index)
        numbers.append(number)
    return numbers, classes


def remove_empty(segments: Segments) -> Segments:
    """Remove segments without pixels."""
    return keep_segments(segments, segments.areas() > 0)


def keep_segments(segments: Segments, kept: torch.Tensor) -> Segments:
    """Remove all segments but those `kept` (n,) bool, and renumber the rest; pixels of removed ones are ignored."""
    if kept.all():
        return segments
    numbers = torch.where(kept, kept.cumsum(0), -1)
    lookup = torch.cat([torch.tensor([-1, 0]), numbers]).to(torch.int32)
    classes = tuple(index for index, keep in zip(segments.classes, kept.tolist(), strict=True) if keep)
    return Segments(lookup[segments.ids.to(torch.int64) + 1], classes, segments.crowds)


__all__ = [
    "PANOPTIC",
    "SEGMENT_TASKS",
    "apply_classes",
    "count_objects",
    "count_segments",
    "crowd_classes",
    "keep_segments",
    "name_classes",
    "remove_empty",
    "segment_targets",
]
