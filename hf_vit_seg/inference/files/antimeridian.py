"""Polygons in degrees, cut at the antimeridian (RFC 7946, section 3.1.9), including polygons that contain a pole.

The interior is to the left of all rings: the outer ring, the first, is counterclockwise, and holes are clockwise.
Longitudes along a ring are continuous, and may be beyond 180 degrees; rings that are to be cut end with their first
corner, a turn away from it if they surround a pole. The plane of longitudes from -180 to 180 degrees is a rectangle,
whose upper and lower sides are the poles. Rings are cut into chains where they leave it, and chains are joined along
its border.

Shapes: c corners of a ring, (longitude, latitude).
"""

from dataclasses import dataclass

import numpy as np

HALF, TURN, POLE = 180.0, 360.0, 90.0
DECIMALS = 9  # decimals of degrees: 0.1 mm
AT_POLE = 1e-7  # degrees, 1 cm: closer corners have no longitude
NARROWEST = 1e-8  # degrees, 1 mm: narrower parts are errors of rounding
SAMPLED = 16  # corners of a hole that are compared with polygons
# The border of the rectangle, counterclockwise from its lower right corner, in degrees: where its sides end.
EAST, NORTH, WEST, BORDER = 180.0, 540.0, 720.0, 1080.0
CORNERS = ((EAST, (HALF, POLE)), (NORTH, (-HALF, POLE)), (WEST, (-HALF, -POLE)), (BORDER, (HALF, -POLE)))


@dataclass(frozen=True, eq=False)
class Chain:
    """A part of a ring in the rectangle, (c, 2), which begins and ends at its border, or is closed.

    `turn` counts the turns by which it was shifted.
    """

    points: np.ndarray
    turn: int
    closed: bool = False


def cut_polygon(rings: list[np.ndarray]) -> list[list[np.ndarray]]:
    """Cut a polygon at the antimeridian into polygons with longitudes of -180 to 180 degrees.

    `rings` end with their first corner; returned rings do not.
    """
    around_pole = any(winding(ring) for ring in rings)
    chains = [chain for ring in rings for chain in cut_ring(ring)]
    if all(chain.closed for chain in chains):
        return [[chain.points for chain in chains]]
    polygons = list[list[np.ndarray]]()
    # Without a pole, the turns are separate polygons (of an image wider than the Earth, they overlap).
    for group in [chains] if around_pole else [[c for c in chains if c.turn == turn] for turn in unique_turns(chains)]:
        outer = [[ring] for ring in join_chains([chain.points for chain in group if not chain.closed])]
        place_holes(outer, [chain.points for chain in group if chain.closed])
        polygons += outer
    return polygons


def unique_turns(chains: list[Chain]) -> list[int]:
    """Return the turns of chains, in ascending order."""
    return sorted({chain.turn for chain in chains})


def winding(ring: np.ndarray) -> int:
    """Return the number of turns around the poles, eastward."""
    return round((ring[-1, 0] - ring[0, 0]) / TURN)


def cut_ring(closed: np.ndarray) -> list[Chain]:
    """Cut a ring with continuous longitudes, which ends with its first corner, at the antimeridian."""
    ring, after = closed[:-1], closed[1:]
    turns = np.floor((closed[:, 0] + HALF) / TURN).astype(int)
    sides = np.flatnonzero(turns[:-1] != turns[1:])
    local = ring - np.stack([TURN * turns[:-1], np.zeros(len(ring))], axis=1)
    if not len(sides):
        return [Chain(local, int(turns[0]), closed=True)]
    ends, begins = list[tuple[int, int, tuple[float, float]]](), list[tuple[float, float]]()
    for side in sides.tolist():
        east = int(np.sign(turns[side + 1] - turns[side]))
        for turn in range(int(turns[side]), int(turns[side + 1]), east):
            border = TURN * turn + HALF * east
            share = (border - ring[side, 0]) / (after[side, 0] - ring[side, 0])
            latitude = float(ring[side, 1] + share * (after[side, 1] - ring[side, 1]))
            ends.append((side, turn, (HALF * east, latitude)))
            begins.append((-HALF * east, latitude))
    chains = list[Chain]()
    for k, begin in enumerate(begins):  # from this end to the next
        side, following = ends[k][0], (k + 1) % len(ends)
        stop, turn, end = ends[following]
        stop += len(ring) if following <= k else 0
        inside = local[np.arange(side + 1, stop + 1) % len(ring)]
        chains.append(Chain(np.concatenate([[begin], inside, [end]]), turn))
    return chains


def join_chains(chains: list[np.ndarray]) -> list[np.ndarray]:
    """Join chains to rings: from the end of one, the border is followed counterclockwise to where another begins."""
    if not chains:
        return []
    begins, ends = (np.array([border_position(*chain[place]) for chain in chains]) for place in (0, -1))
    order, ends_order = np.argsort(begins, kind="stable"), np.argsort(ends, kind="stable")
    first = int(np.searchsorted(begins[order], ends[ends_order[0]]))
    following = np.empty(len(chains), int)
    following[ends_order] = np.roll(order, -first)
    rings, left = list[np.ndarray](), set(range(len(chains)))
    while left:
        parts, current = list[np.ndarray](), min(left)
        while current in left:
            left.remove(current)
            parts += [chains[current], border_corners(float(ends[current]), float(begins[following[current]]))]
            current = int(following[current])
        rings.append(drop_repeated_points(np.concatenate(parts)))
    return [ring for ring in rings if len(ring) > 2 and np.ptp(ring, axis=0).min() > NARROWEST]


def border_position(longitude: float, latitude: float) -> float:
    """Return the position on the border of a point with a longitude of -180 or 180 degrees."""
    return latitude + POLE if longitude > 0 else NORTH + POLE - latitude


def border_corners(begin: float, end: float) -> np.ndarray:
    """Return the corners of the rectangle between two positions on its border, (k, 2)."""
    stop = end if end >= begin else end + BORDER
    both = [(place + lap, corner) for lap in (0, BORDER) for place, corner in CORNERS]
    return np.array([corner for place, corner in both if begin < place < stop]).reshape(-1, 2)


def place_holes(polygons: list[list[np.ndarray]], holes: list[np.ndarray]) -> None:
    """Add each hole to the polygon whose outer ring contains most of its corners."""
    for hole in holes:
        inside = [int(contains(polygon[0], hole[:SAMPLED]).sum()) for polygon in polygons]
        if inside:
            polygons[int(np.argmax(inside))].append(hole)


def contains(ring: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return whether points (p, 2) lie in a ring, (p,): rays to the east cross it an odd number of times."""
    (x, y), (next_x, next_y) = ring.T[:, None], np.roll(ring, -1, axis=0).T[:, None]
    px, py = points.T[:, :, None]
    crosses = (y > py) != (next_y > py)
    with np.errstate(divide="ignore", invalid="ignore"):
        east = x + (py - y) / (next_y - y) * (next_x - x) > px
    return (crosses & east).sum(1) % 2 == 1


def drop_repeated_points(ring: np.ndarray) -> np.ndarray:
    """Remove corners that are equal to the one before."""
    return ring[(ring != np.roll(ring, 1, axis=0)).any(1)]


def unwrap(ring: np.ndarray, hole: bool) -> np.ndarray:
    """Close a ring and make its longitudes continuous; its corners are less than half a turn apart.

    Corners at a pole have no longitude: the ring follows a meridian to the pole, and another one back. In between, it
    follows the pole, an outer ring westward at the North Pole and eastward at the South Pole, so that its interior is
    to its left, and a `hole` in the other direction.
    """
    polar = np.abs(ring[:, 1]) > POLE - AT_POLE
    start = int(np.argmin(polar))
    order = np.arange(start, start + len(ring) + 1) % len(ring)
    ring, polar = ring[order], polar[order]
    parts = list[np.ndarray]()
    for part in np.split(np.arange(len(ring)), np.flatnonzero(np.diff(polar)) + 1):
        if not polar[part[0]]:
            longitude = np.unwrap(ring[part, 0], period=TURN)
            if parts:
                longitude += parts[-1][-1, 0] - longitude[0]  # which the pole ends with
            parts.append(np.stack([longitude, ring[part, 1]], axis=1))
            continue
        before, after = parts[-1][-1, 0], ring[part[-1] + 1, 0]
        north = ring[part[0], 1] > 0
        west = north != hole
        turned = ((before - after) if west else (after - before)) % TURN
        turned = TURN if turned < AT_POLE else turned
        latitude = POLE if north else -POLE
        parts.append(np.array([[before, latitude], [before + (-turned if west else turned), latitude]]))
    return np.round(np.concatenate(parts), DECIMALS)  # without the errors of sums of turns


def near(rings: list[np.ndarray]) -> list[np.ndarray]:
    """Shift rings by whole turns, so that holes are close to the outer ring."""
    middle = float(rings[0][:, 0].mean())
    return [ring - (TURN * round((float(ring[:, 0].mean()) - middle) / TURN), 0) for ring in rings]


def orient(rings: list[np.ndarray]) -> list[np.ndarray]:
    """Let the outer ring, the first, be counterclockwise, with y upward; holes are opposite to it."""
    return [ring if (signed_area(ring) > 0) == (i == 0) else ring[::-1] for i, ring in enumerate(rings)]


def signed_area(ring: np.ndarray) -> float:
    """Return the area of a ring (c, 2), positive if it is counterclockwise with y upward."""
    (x, y), (next_x, next_y) = (ring - ring[0]).T, (np.roll(ring, -1, axis=0) - ring[0]).T
    return float((x * next_y - next_x * y).sum() / 2)


__all__ = ["DECIMALS", "cut_polygon", "near", "orient", "signed_area", "unwrap"]
