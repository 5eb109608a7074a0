"""Lossless conversion of label maps to polygons along pixel borders.

Shapes: H W pixels, n corners of a ring. Corners are integer (x, y), x to the right and y down: pixel (row i, column j)
is the square from (j, i) to (j + 1, i + 1).

Regions are 4-connected. A pixel's sides that border on another class are directed, with the region on their right: the
top points right, the right side down, the bottom left, the left side up. Collinear adjacent sides form a run, each run
ends where another begins, and closed sequences of runs are rings: clockwise on the screen around a region,
counterclockwise around its holes.
"""

from dataclasses import dataclass

import numpy as np

TOP, RIGHT, BOTTOM, LEFT = range(4)
# A side is followed by the pixel's next side if that is a border, otherwise by a side of the pixel diagonally ahead to
# the left, at this offset (rows, columns).
AHEAD_LEFT = ((-1, 1), (1, 1), (1, -1), (-1, -1))
CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1))  # where the sides of a pixel begin, as (x, y)


@dataclass(frozen=True, eq=False)
class Region:
    """A region of class `label`: its outer ring, then the rings of its holes, (n, 2) int64, and its pixel count.

    `total` is the sum of values over the region, if there are any.
    """

    label: int
    rings: tuple[np.ndarray, ...]
    pixels: int
    total: float | None = None


@dataclass(frozen=True, eq=False)
class Runs:
    """The runs of one side: rows and columns (r,) of their first and last pixels, sorted by `keys`."""

    begin: tuple[np.ndarray, np.ndarray]
    end: tuple[np.ndarray, np.ndarray]
    keys: np.ndarray  # keys of their first pixels, ascending
    stride: tuple[int, int]  # from (row, column) to key

    def find(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Return the index of the last run that begins at or before a pixel."""
        return np.searchsorted(self.keys, row * self.stride[0] + column * self.stride[1], side="right") - 1


def extract_regions(label_map: np.ndarray) -> list[Region]:
    """Extract the 4-connected regions of an integer label map (H, W), ordered by their first pixel."""
    if not label_map.size:
        return []
    borders = pixel_borders(label_map)
    runs = [find_runs(side, borders, label_map) for side in range(4)]
    offsets = np.cumsum([0, *(len(run.keys) for run in runs)])
    following = np.concatenate([next_runs(side, runs, borders, offsets) for side in range(4)])
    x, y = (np.concatenate([run.begin[1 - k] + CORNERS[side][k] for side, run in enumerate(runs)]) for k in (0, 1))
    members, ring_ids = trace_rings(following, int(offsets[1]))
    if split_touching_rings(following, ring_ids, y * (label_map.shape[1] + 1) + x):
        members, ring_ids = trace_rings(following, int(offsets[1]))
    area = np.bincount(ring_ids, weights=x * y[following] - x[following] * y).astype(np.int64) // 2
    owners = assign_outer_rings(area, runs, ring_ids, offsets, borders[LEFT])
    return collect_regions(label_map, members, area, owners, np.stack([x, y], axis=1))


def pixel_borders(labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return a mask (H, W) bool for each side: pixels with another class or the image border on that side."""
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    row, column = np.ones((1, labels.shape[1]), bool), np.ones((labels.shape[0], 1), bool)
    top, left = np.concatenate([row, down]), np.concatenate([column, across], axis=1)
    return top, np.concatenate([across, column], axis=1), np.concatenate([down, row]), left


def find_runs(side: int, borders: tuple[np.ndarray, ...], labels: np.ndarray) -> Runs:
    """Find the runs of a side: along rows for top and bottom, along columns for left and right."""
    upright = side in (LEFT, RIGHT)
    border = borders[side].T if upright else borders[side]
    separated = borders[TOP].T if upright else borders[LEFT]  # from the previous pixel, which has another class
    joined = border[:, 1:] & border[:, :-1] & ~separated[:, 1:]
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
    """Return the index, over all sides, of the run that begins where each run of a side ends."""
    row, column = runs[side].end
    turn, opposite = (side + 1) % 4, (side + 3) % 4
    right = borders[turn][row, column]
    down, across = AHEAD_LEFT[side]
    following = np.empty(len(row), np.int64)
    following[right] = runs[turn].find(row[right], column[right]) + offsets[turn]
    following[~right] = runs[opposite].find(row[~right] + down, column[~right] + across) + offsets[opposite]
    return following


def trace_rings(following: np.ndarray, starts: int) -> tuple[list[list[int]], np.ndarray]:
    """Trace the cycles of runs; also return each run's cycle. Every cycle has one of the first `starts` runs."""
    after, rings = following.tolist(), []
    ring_ids = [-1] * len(after)
    for start in range(starts):
        if ring_ids[start] >= 0:
            continue
        ring, run = [], start
        while ring_ids[run] < 0:
            ring_ids[run] = len(rings)
            ring.append(run)
            run = after[run]
        rings.append(ring)
    return rings, np.array(ring_ids)


def split_touching_rings(following: np.ndarray, ring_ids: np.ndarray, corners: np.ndarray) -> bool:
    """Split rings that touch themselves at a corner, which is invalid in polygons. Returns whether any were split.

    Two runs of the ring begin at such a corner; their predecessors are swapped. As rings do not cross themselves, each
    swap splits one ring into two, independent of the order.
    """
    order = np.lexsort((corners, ring_ids))
    twice = (np.diff(ring_ids[order]) == 0) & (np.diff(corners[order]) == 0)
    one, other = order[:-1][twice], order[1:][twice]
    before = np.empty_like(following)
    before[following] = np.arange(len(following))
    following[before[one]], following[before[other]] = other, one
    return len(one) > 0


def assign_outer_rings(
    area: np.ndarray, runs: list[Runs], ring_ids: np.ndarray, offsets: np.ndarray, left: np.ndarray
) -> np.ndarray:
    """Find the outer ring of the region of each ring.

    The pixel above the first row of a hole belongs to the region. The nearest border to the left of that pixel belongs
    to the outer ring, or to a hole that begins further up, whose outer ring is already known.
    """
    owners = np.arange(len(area))
    bottoms = ring_ids[offsets[BOTTOM] : offsets[LEFT]]
    holes, first = np.unique(bottoms, return_index=True)  # runs are in the order of rows
    holes, first = holes[area[holes] < 0], first[area[holes] < 0]
    row, column = (axis[first] for axis in runs[BOTTOM].begin)
    walls = np.flatnonzero(left)
    wall = walls[np.searchsorted(walls, row * left.shape[1] + column, side="right") - 1] % left.shape[1]
    ending = (
        runs[LEFT].end[0] + runs[LEFT].end[1] * left.shape[0]
    )  # left sides point up, so they end at their topmost pixel
    neighbors = ring_ids[offsets[LEFT] + np.searchsorted(ending, row + wall * left.shape[0], side="right") - 1]
    for i in np.argsort(row, kind="stable"):
        owners[holes[i]] = owners[neighbors[i]]
    return owners


def collect_regions(
    labels: np.ndarray, members: list[list[int]], area: np.ndarray, owners: np.ndarray, corners: np.ndarray
) -> list[Region]:
    """Combine rings to regions."""
    rings: dict[int, list[int]] = {}
    for ring in np.argsort(area < 0, kind="stable").tolist():  # outer rings first
        rings.setdefault(int(owners[ring]), []).append(ring)
    regions = []
    for outer, parts in rings.items():
        column, row = corners[members[outer][0]]
        outlines = tuple(corners[members[ring]] for ring in parts)
        regions.append(Region(int(labels[row, column]), outlines, int(area[parts].sum())))
    return regions


def region_sum(region: Region, integral: np.ndarray) -> float:
    """Return the sum of a map over a region, from the map's integral image (H + 1, W + 1)."""
    total = 0.0
    for ring in region.rings:
        (x, y), (next_x, next_y) = ring.T, np.roll(ring, -1, axis=0).T
        upright = x == next_x
        total += float((integral[next_y[upright], x[upright]] - integral[y[upright], x[upright]]).sum())
    return total


__all__ = ["Region", "extract_regions", "region_sum", "split_touching_rings", "trace_rings"]
