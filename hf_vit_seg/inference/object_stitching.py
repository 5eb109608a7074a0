"""Objects of an image from its windows, joined where windows overlap.

Two objects of overlapping windows are the same if their masks agree in the overlap: an IoU there of at least
`SAME_IOU`. An object that is complete in a window (it does not touch a border of the window inside the image) is taken
from there; an object that no window contains is the union of its parts. Objects that fit into the overlap of windows
therefore do not depend on the position of the windows, if the model's predictions do not. The class has the largest sum
of score times area. Objects are ranked: complete ones before parts, then by score. An object of which higher-ranked
ones cover more than `MAX_COVERED_SHARE` is left out.

Shapes: H W the image, r c a box.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from .found_segments import FoundObject

SAME_IOU = 0.5
MAX_COVERED_SHARE = 0.5
CELL = 256  # side of the squares of the image by which objects are found

Box = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True, eq=False)
class Part:
    """An object as one window shows it; `cut` if it continues beyond the window."""

    found: FoundObject
    cut: bool

    @property
    def weight(self) -> float:
        """The score times the area."""
        return self.found.score * self.found.area


def object_box(instance: FoundObject) -> Box:
    """Return (top, left, bottom, right) of an object in pixels, the last two exclusive."""
    return instance.top, instance.left, instance.top + instance.shape[0], instance.left + instance.shape[1]


def intersection(one: Box, other: Box) -> Box | None:
    """Return the common part of two boxes, or None."""
    top, left = max(one[0], other[0]), max(one[1], other[1])
    bottom, right = min(one[2], other[2]), min(one[3], other[3])
    return (top, left, bottom, right) if top < bottom and left < right else None


def crop_mask(instance: FoundObject, box: Box) -> np.ndarray:
    """Return the mask (r, c) bool of an object in a box of the image, which may exceed its own."""
    crop = np.zeros((box[2] - box[0], box[3] - box[1]), bool)
    common = intersection(object_box(instance), box)
    if common is not None:
        own = instance.mask[
            common[0] - instance.top : common[2] - instance.top, common[1] - instance.left : common[3] - instance.left
        ]
        crop[common[0] - box[0] : common[2] - box[0], common[1] - box[1] : common[3] - box[1]] = own
    return crop


class BoxIndex:
    """Finds boxes of the image that may intersect others, by the cells that they cover."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], list[int]] = defaultdict(list)

    def cells_in(self, box: Box) -> Iterator[tuple[int, int]]:
        """Return the cells of the index that a box touches, as (row, column)."""
        rows, columns = (range(first // CELL, (last - 1) // CELL + 1) for first, last in (box[::2], box[1::2]))
        return product(rows, columns)

    def add(self, number: int, box: Box) -> None:
        """Add a box."""
        for cell in self.cells_in(box):
            self.cells[cell].append(number)

    def near(self, box: Box) -> list[int]:
        """Return the numbers of boxes in the same cells, ascending."""
        return sorted({number for cell in self.cells_in(box) for number in self.cells[cell]})


class ObjectStitcher:
    """Collects the objects of windows, and joins them. `stuff` are classes whose pixels become one segment."""

    def __init__(self, size: tuple[int, int], stuff: Collection[int] = ()):
        self.size, self.stuff = size, frozenset(stuff)
        self.parts: list[Part] = []
        self.windows: list[Box] = []
        self.parents: list[int] = []
        self.owners: list[int] = []  # the window of each part
        self.box_index = BoxIndex()
        self.areas: dict[int, list[FoundObject]] = defaultdict(list)  # stuff regions by class

    def add(self, window: Box, objects: Sequence[FoundObject], core: Box) -> None:
        """Add the objects of a window, in coordinates of the image. Stuff is taken from the `core` of the window."""
        number = len(self.windows)
        self.windows.append(window)
        for instance in objects:
            if instance.label in self.stuff:
                self.add_stuff(instance, core)
                continue
            index = len(self.parts)
            self.parts.append(Part(instance, self.is_cut(instance, window)))
            self.owners.append(number)
            self.parents.append(index)
            for other in self.box_index.near(object_box(instance)):
                if self.owners[other] != number and self.is_same(index, other):
                    self.parents[self.root(index)] = self.root(other)
            self.box_index.add(index, object_box(instance))

    def add_stuff(self, instance: FoundObject, core: Box) -> None:
        """Add the stuff of a window's core."""
        common = intersection(object_box(instance), core)
        mask = None if common is None else crop_mask(instance, common)
        if common is not None and mask is not None and mask.any():
            self.areas[instance.label].append(
                FoundObject.from_mask(instance.label, instance.score, common[0], common[1], mask)
            )

    def is_cut(self, instance: FoundObject, window: Box) -> bool:
        """Return whether an object touches a border of its window inside the image."""
        box, ends = object_box(instance), (0, 0, *self.size)
        return any(box[side] == window[side] != ends[side] for side in range(4))

    def is_same(self, index: int, other: int) -> bool:
        """Return whether two parts are the same object: their masks agree where their windows overlap."""
        zone = intersection(self.windows[self.owners[index]], self.windows[self.owners[other]])
        one, two = self.parts[index].found, self.parts[other].found
        if zone is None or intersection(object_box(one), object_box(two)) is None:
            return False
        boxes = [intersection(object_box(found), zone) for found in (one, two)]
        if boxes[0] is None or boxes[1] is None:
            return False
        joint = union_box([boxes[0], boxes[1]])
        masks = crop_mask(one, joint), crop_mask(two, joint)
        common = int((masks[0] & masks[1]).sum())
        return common > 0 and common >= SAME_IOU * int((masks[0] | masks[1]).sum())

    def root(self, index: int) -> int:
        """Return the part that represents an object."""
        while self.parents[index] != index:
            self.parents[index] = self.parents[self.parents[index]]
            index = self.parents[index]
        return index

    def objects(self) -> list[FoundObject]:
        """Return the joined objects, which do not overlap, in the order of their first pixel; then stuff by class."""
        groups: dict[int, list[Part]] = defaultdict(list)
        for index, part in enumerate(self.parts):
            groups[self.root(index)].append(part)
        joined = [join(parts) for parts in groups.values()]
        joined.sort(key=lambda part: (part.cut, -part.found.score, part.found.top, part.found.left))
        kept = separate([part.found for part in joined])
        kept.sort(key=first_pixel)
        return kept + self.stuff_segments(kept)

    def stuff_segments(self, objects: Sequence[FoundObject]) -> list[FoundObject]:
        """Return one segment for each class of stuff, without the pixels of objects."""
        segments = []
        for label in sorted(self.areas):
            pieces = self.areas[label]
            box = union_box([object_box(piece) for piece in pieces])
            mask = paint(pieces, box)
            for instance in objects:
                if (common := intersection(object_box(instance), box)) is not None:
                    rows, columns = (slice(common[i] - box[i], common[i + 2] - box[i]) for i in (0, 1))
                    mask[rows, columns] &= ~crop_mask(instance, common)
            if mask.any():
                segments.append(FoundObject.from_mask(label, mean_score(pieces), box[0], box[1], mask))
        return segments


def union_box(boxes: Sequence[Box]) -> Box:
    """Return the smallest box that contains others."""
    tops, lefts, bottoms, rights = zip(*boxes, strict=True)
    return min(tops), min(lefts), max(bottoms), max(rights)


def paint(pieces: Sequence[FoundObject], box: Box) -> np.ndarray:
    """Return the union (r, c) bool of masks in a box that contains them."""
    mask = np.zeros((box[2] - box[0], box[3] - box[1]), bool)
    for piece in pieces:
        top, left = piece.top - box[0], piece.left - box[1]
        mask[top : top + piece.shape[0], left : left + piece.shape[1]] |= piece.mask
    return mask


def mean_score(pieces: Sequence[FoundObject]) -> float:
    """Return the mean score, weighted by area."""
    return sum(piece.score * piece.area for piece in pieces) / sum(piece.area for piece in pieces)


def join(parts: Sequence[Part]) -> Part:
    """Join the parts of one object."""
    complete = [part for part in parts if not part.cut]
    counted = complete or parts
    weights: dict[int, float] = defaultdict(float)
    for part in counted:
        weights[part.found.label] += part.weight
    label = max(sorted(weights), key=weights.__getitem__)
    if complete:
        best = max(complete, key=lambda part: part.found.score)
        return Part(replace(best.found, label=label), False)
    pieces = [part.found for part in parts]
    if len(pieces) == 1:
        return Part(replace(pieces[0], label=label), True)
    box = union_box([object_box(piece) for piece in pieces])
    return Part(FoundObject.from_mask(label, mean_score(pieces), box[0], box[1], paint(pieces, box)), True)


def separate(objects: Sequence[FoundObject]) -> list[FoundObject]:
    """Remove the pixels of earlier objects from later ones, and objects with less than half of their pixels left."""
    index, kept = BoxIndex(), list[FoundObject]()
    for instance in objects:
        box = object_box(instance)
        others = [kept[number] for number in index.near(box) if intersection(object_box(kept[number]), box) is not None]
        if others:
            mask = instance.mask.copy()
            for other in others:
                mask &= ~crop_mask(other, box)
            area = int(mask.sum())
            if area < (1 - MAX_COVERED_SHARE) * instance.area or not area:
                continue
            if area < instance.area:
                instance = FoundObject.from_mask(instance.label, instance.score, instance.top, instance.left, mask)
        index.add(len(kept), object_box(instance))
        kept.append(instance)
    return kept


def first_pixel(instance: FoundObject) -> tuple[int, int]:
    """Return the row and column of an object's first pixel."""
    return instance.top, instance.left + int(instance.mask[0].argmax())


def window_core(window: Box, starts: tuple[Sequence[int], Sequence[int]], size: tuple[int, int]) -> Box:
    """Return the part of a window that is nearer to its center than to that of its neighbors; cores cover the image
    once.

    `starts` are the first rows and columns of all windows, ascending.
    """
    bounds = []
    for axis in (0, 1):
        length, index = window[axis + 2] - window[axis], list(starts[axis]).index(window[axis])
        before = 0 if index == 0 else (starts[axis][index - 1] + length + window[axis]) // 2
        last = index == len(starts[axis]) - 1
        after = size[axis] if last else (window[axis] + length + starts[axis][index + 1]) // 2
        bounds.append((before, after))
    return bounds[0][0], bounds[1][0], bounds[0][1], bounds[1][1]


__all__ = ["ObjectStitcher", "window_core"]
