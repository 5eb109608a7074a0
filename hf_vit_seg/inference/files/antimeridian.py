"""Polygons in degrees that cross the antimeridian, cut there (RFC 7946, section 3.1.9).

Longitudes of the polygons are continuous, and may be beyond 180 degrees.

Shapes: c corners of a ring, (longitude, latitude). The outer ring is the first, and holes are opposite to it.
"""

import math
from dataclasses import dataclass, field

import numpy as np

HALF, TURN = 180.0, 360.0
SAMPLED = 16  # corners of a hole that are compared with polygons


def cut_polygon(rings: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Cut a polygon at each antimeridian, and shift the parts to longitudes of -180 to 180 degrees."""
    rings = orient(rings)
    low, high = float(rings[0][:, 0].min()), float(rings[0][:, 0].max())
    first = math.floor((low + HALF) / TURN)  # the number of the turn in which the polygon begins
    last = max(first, math.ceil((high - HALF) / TURN))
    rest, found = [rings], list[list[np.ndarray]]()
    for turn in range(first, last + 1):
        right = list[list[np.ndarray]]()
        for polygon in rest:
            west, east = split_polygon(polygon, HALF + TURN * turn) if turn < last else ([polygon], [])
            found += [[ring - (TURN * turn, 0) for ring in part] for part in west]
            right += east
        rest = right
    return found


@dataclass
class Chains:
    """The parts of rings on one side of a meridian: each begins and ends on it, `begins` and `ends` are latitudes."""

    parts: list[np.ndarray] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def add(self, part: np.ndarray) -> None:
        """Add a part (c, 2)."""
        self.parts.append(part)
        self.begins.append(float(part[0, 1]))
        self.ends.append(float(part[-1, 1]))

    def close(self) -> list[np.ndarray]:
        """Join the parts along the meridian to rings.

        The interior is to the left of the rings. Along the meridian it therefore lies between the k-th end and the
        k-th beginning, from the south.
        """
        following = np.empty(len(self.parts), int)
        following[np.argsort(self.ends, kind="stable")] = np.argsort(self.begins, kind="stable")
        rings, left = list[np.ndarray](), set(range(len(self.parts)))
        while left:
            ring, current = list[np.ndarray](), min(left)
            while current in left:
                left.remove(current)
                ring.append(self.parts[current])
                current = int(following[current])
            rings.append(without_repeated(np.concatenate(ring)))
        return [ring for ring in rings if len(ring) > 2 and signed_area(ring) > 0]


def split_polygon(rings: list[np.ndarray], meridian: float) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """Split a polygon into those to the west and to the east of a meridian."""
    chains, whole = (Chains(), Chains()), (list[np.ndarray](), list[np.ndarray]())
    crossed = False
    for ring in rings:
        east = ring[:, 0] >= meridian
        changes = np.flatnonzero(east != np.roll(east, -1))  # sides of the ring that cross the meridian
        if not len(changes):
            whole[int(east[0])].append(ring)
            continue
        crossed = crossed or ring is rings[0]
        after = np.roll(ring, -1, axis=0)
        start, end = ring[changes], after[changes]
        share = (meridian - start[:, 0]) / (end[:, 0] - start[:, 0])
        latitudes = start[:, 1] + share * (end[:, 1] - start[:, 1])
        points = np.stack([np.full(len(changes), meridian), latitudes], axis=1)
        for k, change in enumerate(changes):
            following = (k + 1) % len(changes)
            stop = changes[following] + (len(ring) if following <= k else 0)
            inside = ring[np.arange(change + 1, stop + 1) % len(ring)]
            chains[int(east[(change + 1) % len(ring)])].add(
                np.concatenate([points[k : k + 1], inside, points[following : following + 1]])
            )
    if not crossed:
        return ([rings], []) if not (rings[0][0, 0] >= meridian) else ([], [rings])
    west, east = (place_holes(chain.close(), holes) for chain, holes in zip(chains, whole, strict=True))
    return west, east


def place_holes(outer: list[np.ndarray], holes: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Assign each hole to the ring that contains most of its corners."""
    found = [[ring] for ring in outer]
    for hole in holes:
        if found:
            inside = [int(contains(polygon[0], hole[:SAMPLED]).sum()) for polygon in found]
            found[int(np.argmax(inside))].append(hole)
    return found


def contains(ring: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether points (p, 2) lie in a ring, (p,): rays to the east cross it an odd number of times."""
    (x, y), (next_x, next_y) = ring.T[:, None], np.roll(ring, -1, axis=0).T[:, None]
    px, py = points.T[:, :, None]
    crosses = (y > py) != (next_y > py)
    with np.errstate(divide="ignore", invalid="ignore"):
        east = x + (py - y) / (next_y - y) * (next_x - x) > px
    return (crosses & east).sum(1) % 2 == 1


def without_repeated(ring: np.ndarray) -> np.ndarray:
    """Remove corners that are equal to the one before."""
    return ring[(ring != np.roll(ring, 1, axis=0)).any(1)]


def unwrap(rings: list[np.ndarray]) -> list[np.ndarray] | None:
    """Make longitudes continuous, and holes close to the outer ring. None if a ring contains or touches a pole."""
    found, middle = list[np.ndarray](), None
    for ring in rings:
        longitude = np.unwrap(ring[:, 0], period=TURN)
        if abs(longitude[-1] - longitude[0]) > HALF or (np.abs(ring[:, 1]) > 90 - 1e-9).any():
            return None
        middle = float(longitude.mean()) if middle is None else middle
        longitude -= TURN * round((float(longitude.mean()) - middle) / TURN)
        found.append(np.stack([longitude, ring[:, 1]], axis=1))
    return found


def orient(rings: list[np.ndarray]) -> list[np.ndarray]:
    """Let the outer ring, the first, be counterclockwise, with y upward; holes are opposite to it."""
    return [ring if (signed_area(ring) > 0) == (i == 0) else ring[::-1] for i, ring in enumerate(rings)]


def signed_area(ring: np.ndarray) -> float:
    """The area of a ring (c, 2), positive if it is counterclockwise with y upward."""
    (x, y), (next_x, next_y) = (ring - ring[0]).T, (np.roll(ring, -1, axis=0) - ring[0]).T
    return float((x * next_y - next_x * y).sum() / 2)


__all__ = ["cut_polygon", "orient", "signed_area", "unwrap"]
