"""The regions of a label map as polygons along the borders of its pixels: drawn again they give the map back.

Shapes: H W pixels, n corners of a ring. Corners are (x, y) in pixels, x to the right and y down, whole numbers: pixel
(row i, column j) is the square from (j, i) to (j + 1, i + 1).

A region is what hangs together over the sides of pixels (4-connected). Every pixel that borders on another class has
directed sides, with the region to their right: its top goes right, its right side down, its bottom left, its left side
up. Sides that continue each other are one run, each run ends where another one begins, and runs that close are rings:
clockwise to the eye around a region, the other way around its holes.
"""

from dataclasses import dataclass

import numpy as np

TOP, RIGHT, BOTTOM, LEFT = range(4)
# After a side comes the next of the same pixel, or where that one is no border the side after the next of the pixel
# that lies ahead and to the left: (rows, columns) from here.
AHEAD_LEFT = ((-1, 1), (1, 1), (1, -1), (-1, -1))
CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1))  # where a pixel's side begins, as (x, y)


@dataclass(frozen=True, eq=False)
class Region:
    """A region of class `label`: its outer ring and those of its holes, (n, 2) int64 each, and its `pixels`."""

    label: int
    rings: tuple[np.ndarray, ...]
    pixels: int


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of one side: rows and columns (r,) of the pixels that they begin and end at, in the order of `keys`."""

    begin: tuple[np.ndarray, np.ndarray]
    end: tuple[np.ndarray, np.ndarray]
    keys: np.ndarray  # of the pixels they begin at, ascending
    stride: tuple[int, int]  # from (row, column) to key

    def find(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """The last run that does not begin behind a pixel."""
        return np.searchsorted(self.keys, row * self.stride[0] + column * self.stride[1], side="right") - 1


def regions(label_map: np.ndarray) -> list[Region]:
    """The regions of a label map (H, W) of whole numbers, ordered by their first pixel."""
    if not label_map.size:
        return []
    borders = pixel_borders(label_map)
    runs = [runs_of(side, borders, label_map) for side in range(4)]
    offsets = np.cumsum([0, *(len(run.keys) for run in runs)])
    following = np.concatenate([next_runs(side, runs, borders, offsets) for side in range(4)])
    x, y = (np.concatenate([run.begin[1 - k] + CORNERS[side][k] for side, run in enumerate(runs)]) for k in (0, 1))
    members, ring_of = rings_of(following, int(offsets[1]))
    if unpinch(following, ring_of, y * (label_map.shape[1] + 1) + x):
        members, ring_of = rings_of(following, int(offsets[1]))
    area = np.bincount(ring_of, weights=x * y[following] - x[following] * y).astype(np.int64) // 2
    owners = outer_rings(area, runs, ring_of, offsets, borders[LEFT])
    return gathered(label_map, members, area, owners, np.stack([x, y], axis=1))


def pixel_borders(labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """For each side, which pixels border there on another class or on nothing: (H, W) bool."""
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    row, column = np.ones((1, labels.shape[1]), bool), np.ones((labels.shape[0], 1), bool)
    top, left = np.concatenate([row, down]), np.concatenate([column, across], axis=1)
    return top, np.concatenate([across, column], axis=1), np.concatenate([down, row]), left


def runs_of(side: int, borders: tuple[np.ndarray, ...], labels: np.ndarray) -> Runs:
    """The runs of a side, along rows for top and bottom, along columns for left and right."""
    upright = side in (LEFT, RIGHT)
    border = borders[side].T if upright else borders[side]
    parted = borders[TOP].T if upright else borders[LEFT]  # from the pixel before, which is of another class
    joined = border[:, 1:] & border[:, :-1] & ~parted[:, 1:]
    first, last = border.copy(), border.copy()
    first[:, 1:] &= ~joined
    last[:, :-1] &= ~joined
    ends = [divmod(np.flatnonzero(mask), border.shape[1]) for mask in (first, last)]
    if upright:
        ends = [(row, column) for column, row in ends]
    begin, end = ends if side in (TOP, RIGHT) else reversed(ends)
    stride = (1, labels.shape[0]) if upright else (labels.shape[1], 1)
    return Runs(begin, end, begin[0] * stride[0] + begin[1] * stride[1], stride)


def next_runs(side: int, runs: list[Runs], borders: tuple[np.ndarray, ...], offsets: np.ndarray) -> np.ndarray:
    """For each run of a side the one that begins where it ends, counted over all sides."""
    row, column = runs[side].end
    turn, opposite = (side + 1) % 4, (side + 3) % 4
    right = borders[turn][row, column]
    down, across = AHEAD_LEFT[side]
    found = np.empty(len(row), np.int64)
    found[right] = runs[turn].find(row[right], column[right]) + offsets[turn]
    found[~right] = runs[opposite].find(row[~right] + down, column[~right] + across) + offsets[opposite]
    return found


def rings_of(following: np.ndarray, starts: int) -> tuple[list[list[int]], np.ndarray]:
    """The cycles of the runs, and to which each run belongs; a cycle has one of the first `starts` runs (tops)."""
    after, rings = following.tolist(), []
    ring_of = [-1] * len(after)
    for start in range(starts):
        if ring_of[start] >= 0:
            continue
        ring, run = [], start
        while ring_of[run] < 0:
            ring_of[run] = len(rings)
            ring.append(run)
            run = after[run]
        rings.append(ring)
    return rings, np.array(ring_of)


def unpinch(following: np.ndarray, ring_of: np.ndarray, corners: np.ndarray) -> bool:
    """Part rings that touch themselves at a corner, as polygons must not: whether there are any.

    There two runs of the ring begin; let each follow what the other one followed. Rings never cross themselves, so
    every such exchange cuts one ring in two, in whatever order.
    """
    order = np.lexsort((corners, ring_of))
    twice = (np.diff(ring_of[order]) == 0) & (np.diff(corners[order]) == 0)
    one, other = order[:-1][twice], order[1:][twice]
    before = np.empty_like(following)
    before[following] = np.arange(len(following))
    following[before[one]], following[before[other]] = other, one
    return len(one) > 0


def outer_rings(
    area: np.ndarray, runs: list[Runs], ring_of: np.ndarray, offsets: np.ndarray, left: np.ndarray
) -> np.ndarray:
    """For each ring the outer ring of its region.

    Above a hole's first row lies its region. From there to the left the nearest border belongs to the outer ring, or
    to a hole that begins further up, whose outer ring is known by then.
    """
    owners = np.arange(len(area))
    bottoms = ring_of[offsets[BOTTOM] : offsets[LEFT]]
    holes, first = np.unique(bottoms, return_index=True)  # runs are in the order of rows
    holes, first = holes[area[holes] < 0], first[area[holes] < 0]
    row, column = (axis[first] for axis in runs[BOTTOM].begin)
    walls = np.flatnonzero(left)
    wall = walls[np.searchsorted(walls, row * left.shape[1] + column, side="right") - 1] % left.shape[1]
    ending = runs[LEFT].end[0] + runs[LEFT].end[1] * left.shape[0]  # a left side goes up: it ends at its topmost pixel
    neighbors = ring_of[offsets[LEFT] + np.searchsorted(ending, row + wall * left.shape[0], side="right") - 1]
    for i in np.argsort(row, kind="stable"):
        owners[holes[i]] = owners[neighbors[i]]
    return owners


def gathered(
    labels: np.ndarray, members: list[list[int]], area: np.ndarray, owners: np.ndarray, corners: np.ndarray
) -> list[Region]:
    """The rings put together to regions."""
    rings: dict[int, list[int]] = {}
    for ring in np.argsort(area < 0, kind="stable").tolist():  # outer rings first
        rings.setdefault(int(owners[ring]), []).append(ring)
    found = []
    for outer, parts in rings.items():
        column, row = corners[members[outer][0]]
        outlines = tuple(corners[members[ring]] for ring in parts)
        found.append(Region(int(labels[row, column]), outlines, int(area[parts].sum())))
    return found


def region_sum(region: Region, integral: np.ndarray) -> float:
    """The sum of a map over a region, from the map's integral (H + 1, W + 1): that of all above and to the left."""
    total = 0.0
    for ring in region.rings:
        (x, y), (next_x, next_y) = ring.T, np.roll(ring, -1, axis=0).T
        upright = x == next_x
        total += float((integral[next_y[upright], x[upright]] - integral[y[upright], x[upright]]).sum())
    return total


__all__ = ["Region", "region_sum", "regions"]
