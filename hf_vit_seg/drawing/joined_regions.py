"""Polygons of label maps larger than memory: regions of blocks of rows, joined across their borders.

The result equals that of `extract_regions` for the whole map, for any height of the blocks. Memory grows with the
length of the outlines of regions that are not complete, not with the number of pixels.

The outline of a region at the border of two blocks consists of the bottom sides of the block above, which point left,
and the top sides of the block below, which point right. Where both pixels have one class, the two sides cancel: the
outline from above continues below at the right end of that span, and the outline from below continues above at its
left end. A ring that is cut at its sides on a border is a list of chains, which are linked until they are closed.

Shapes: n rows of a block, W columns, c corners of a chain or ring.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from .outlines import Region, extract_regions, region_sum, split_touching_rings, trace_rings


@dataclass(eq=False)
class OpenRegion:
    """A region that may continue in the next block; joined regions have a `parent`."""

    label: int
    first: tuple[int, int]  # (row, column) of its first pixel
    last_row: int
    pixels: int
    total: float | None
    rings: list[np.ndarray] = field(default_factory=list)  # closed, (c, 2) int32
    parent: "OpenRegion | None" = None

    def root(self) -> "OpenRegion":
        """Return the region that this one was joined to."""
        region = self
        while region.parent is not None:
            region = region.parent
        while self.parent is not None and self is not region:  # shorten the path
            self.parent, self = region, self.parent
        return region

    def join(self, other: "OpenRegion") -> None:
        """Join another region to this one."""
        one, two = sorted((self.root(), other.root()), key=lambda region: len(region.rings), reverse=True)
        if one is two:
            return
        two.parent = one
        one.first, one.last_row = min(one.first, two.first), max(one.last_row, two.last_row)
        one.pixels += two.pixels
        if one.total is not None and two.total is not None:
            one.total += two.total
        one.rings.extend(two.rings)
        two.rings = []


@dataclass(eq=False)
class Chain:
    """A part of an outline from the corner after one cut to the corner before the next; `following` continues it."""

    region: OpenRegion
    parts: list[np.ndarray]  # (c, 2) int32
    following: "Chain | None" = None

    def end(self, x: int, y: int) -> None:
        """Extend the chain along the border to x."""
        if self.parts[-1][-1, 0] != x:
            self.parts.append(np.array([[x, y]], np.int32))

    def begin(self, x: int, y: int) -> None:
        """Let the chain begin at x on the border."""
        if self.parts[0][0, 0] != x:
            self.parts.insert(0, np.array([[x, y]], np.int32))


@dataclass(eq=False)
class Side:
    """A horizontal part of an outline on a border, from `start` to `stop` (start < stop), between two chains."""

    start: int
    stop: int
    before: Chain
    after: Chain


def join_regions(blocks: Iterable[tuple[np.ndarray, np.ndarray | None]]) -> Iterator[Region]:
    """Iterate over the 4-connected regions of a label map that is given by blocks of rows, from top to bottom.

    A block is its labels (n, W) and, or None, the values (n, W) to sum up in `Region.total`. Regions are in the order
    of their last row, then of their first pixel. Rings begin at their first corner by (y, x); holes are in its order.
    """
    top, above, sides = 0, np.empty(0), list[Side]()
    for labels, values in blocks:
        complete, upper, lower = read_block(labels, values, top)
        spans = equal_spans(above, labels[0]) if top else []
        complete += close_border(sides, upper, spans, top, lower)
        yield from finish_regions(complete)
        top, above, sides = top + len(labels), labels[-1], lower
    yield from finish_regions(close_border(sides, [], [], top, []))


def read_block(
    labels: np.ndarray, values: np.ndarray | None, top: int
) -> tuple[list[OpenRegion], list[Side], list[Side]]:
    """Extract the regions of a block: complete regions, and the sides of the others on its top and bottom."""
    integral = None if values is None else np.pad(values.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside, upper, lower = [], list[Side](), list[Side]()
    for region in extract_regions(labels):
        outer = region.rings[0]
        low, high = int(outer[:, 1].min()), int(outer[:, 1].max())
        total = None if integral is None else region_sum(region, integral)
        rings = [(ring + np.array([0, top])).astype(np.int32) for ring in region.rings]
        first = low + top, int(outer[outer[:, 1] == low, 0].min())
        found = OpenRegion(region.label, first, high + top - 1, region.pixels, total, rings)
        if (low == 0 and top) or high == len(labels):
            found.rings = rings[1:]  # holes do not touch the borders of the block
            cut_ring(found, rings[0], top, top + len(labels), upper, lower)
        else:
            inside.append(found)
    return inside, sorted(upper, key=lambda side: side.start), sorted(lower, key=lambda side: side.start)


def cut_ring(region: OpenRegion, ring: np.ndarray, top: int, bottom: int, upper: list[Side], lower: list[Side]) -> None:
    """Cut an outer ring (c, 2) at its sides on the borders, and add these to `upper` and `lower`."""
    y, after = ring[:, 1], np.roll(ring, -1, axis=0)
    on_border = (y == after[:, 1]) & ((y == bottom) | ((y == top) & (top > 0)))
    cuts = np.flatnonzero(on_border).tolist()
    ring = np.concatenate([ring, ring])
    ends = [*cuts[1:], cuts[0] + len(y)]
    chains = [Chain(region, [ring[cut + 1 : end + 1]]) for cut, end in zip(cuts, ends, strict=True)]
    for i, cut in enumerate(cuts):
        start, stop = sorted((int(ring[cut, 0]), int(ring[cut + 1, 0])))
        (lower if y[cut] == bottom else upper).append(Side(start, stop, chains[i - 1], chains[i]))


def equal_spans(above: np.ndarray, below: np.ndarray) -> list[tuple[int, int]]:
    """Return the spans [start, stop) of columns in which two rows (W,) have the same class."""
    equal = above == below
    cuts = np.flatnonzero((equal[1:] != equal[:-1]) | (above[1:] != above[:-1])) + 1
    starts = np.concatenate([[0], cuts])
    stops = np.append(cuts, len(above))
    return np.stack([starts, stops], axis=1)[equal[starts]].tolist()


def close_border(
    above: list[Side], below: list[Side], spans: list[tuple[int, int]], y: int, pending: list[Side]
) -> list[OpenRegion]:
    """Join the regions at a border, and return the complete ones, which have no `pending` sides on the next border."""
    pieces = link_chains(above, below, spans, y)
    seen = link_paths(pending)
    for chain in [*(side.before for side in (*above, *below)), *pieces]:
        if id(chain) not in seen:
            ring = walk(chain, seen)
            chain.region.root().rings.extend(split_ring(remove_straight_corners(ring)))
    unfinished = {id(side.after.region.root()) for side in pending}
    touching = {id(root): root for root in (side.after.region.root() for side in (*above, *below))}
    return [region for key, region in touching.items() if key not in unfinished]


def link_chains(above: list[Side], below: list[Side], spans: list[tuple[int, int]], y: int) -> list[Chain]:
    """Link the chains that meet at a border, and join their regions; returns the chains between two spans of a side."""
    pieces = list[Chain]()
    # At the start of a span, an outline continues above, and at its end below.
    above_end, above_begin = cut_sides(above, spans, y, pieces, leftward=True)
    below_end, below_begin = cut_sides(below, spans, y, pieces, leftward=False)
    for start, stop in spans:
        above_end[stop].following, below_end[start].following = below_begin[stop], above_begin[start]
        above_end[stop].region.join(below_end[start].region)
    return pieces


def cut_sides(
    sides: list[Side], spans: list[tuple[int, int]], y: int, pieces: list[Chain], leftward: bool
) -> tuple[dict[int, Chain], dict[int, Chain]]:
    """Cut the spans out of the sides of a border: the chains by the columns where they end, and where they begin."""
    ends, begins, i = dict[int, Chain](), dict[int, Chain](), 0
    for side in sides:
        last = i
        while last < len(spans) and spans[last][1] <= side.stop:
            last += 1
        mine, i = spans[i:last], last
        if not mine:
            side.before.following = side.after
            continue
        columns = [span[::-1] for span in reversed(mine)] if leftward else mine  # where it is left, and entered again
        side.before.end(columns[0][0], y)
        ends[columns[0][0]] = side.before
        for (_, entered), (left, _) in pairwise(columns):
            piece = Chain(side.before.region, [np.array([[entered, y], [left, y]], np.int32)])
            begins[entered] = ends[left] = piece
            pieces.append(piece)
        side.after.begin(columns[-1][1], y)
        begins[columns[-1][1]] = side.after
    return ends, begins


def link_paths(pending: list[Side]) -> set[int]:
    """Combine linked chains between pending sides to one chain each; returns the ids of the chains in them."""
    ends, seen = {id(side.before): side for side in pending}, set[int]()
    paths = list[tuple[Side, Chain]]()
    for side in pending:
        chain, parts = side.after, list[np.ndarray]()
        while True:
            seen.add(id(chain))
            parts.extend(chain.parts)
            if chain.following is None:
                break
            chain = chain.following
        side.after.parts = parts
        paths.append((ends[id(chain)], side.after))
    for side, chain in paths:
        chain.following, side.before = None, chain
    return seen


def walk(first: Chain, seen: set[int]) -> np.ndarray:
    """Return the corners (c, 2) of a closed sequence of chains, whose ids are added to `seen`."""
    parts, chain = [], first
    while id(chain) not in seen:
        seen.add(id(chain))
        parts.extend(chain.parts)
        assert chain.following is not None
        chain.following, chain = None, chain.following  # no cycle of references is left
    return np.concatenate(parts)


def remove_straight_corners(ring: np.ndarray) -> np.ndarray:
    """Remove repeated corners of a ring (c, 2), and those at which it does not turn."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(1)]
    straight = (ring == np.roll(ring, 1, axis=0)) & (ring == np.roll(ring, -1, axis=0))
    return ring[~straight.any(1)]


def split_ring(ring: np.ndarray) -> list[np.ndarray]:
    """Split a ring (c, 2) at the corners where it touches itself."""
    following = np.roll(np.arange(len(ring)), -1)
    corners = ring[:, 1].astype(np.int64) * (int(ring[:, 0].max()) + 1) + ring[:, 0]
    if not split_touching_rings(following, np.zeros(len(ring), np.int64), corners):
        return [ring]
    return [ring[members] for members in trace_rings(following, len(ring))[0]]


def finish_regions(complete: list[OpenRegion]) -> Iterator[Region]:
    """Convert complete regions, in the order of their last row, then of their first pixel."""
    for region in sorted(complete, key=lambda region: (region.last_row, region.first)):
        rings = [rotate(ring) for ring in region.rings]
        rings.sort(key=lambda ring: (int(ring[0, 1]), int(ring[0, 0])))  # the outer ring is the first
        yield Region(region.label, tuple(rings), region.pixels, region.total)


def rotate(ring: np.ndarray) -> np.ndarray:
    """Let a ring (c, 2) begin at its first corner by (y, x)."""
    return np.roll(ring, -int(np.lexsort(ring.T)[0]), axis=0).astype(np.int64)


__all__ = ["join_regions"]
