"""Coordinates of polygons: pixels, the coordinate reference system (CRS) of a georeferenced image, or WGS 84.

rasterio interprets the tags of the image and transforms the coordinates. As it sees the tags only, that are copied to
the results, these have the same georeference as the polygons.

Shapes: c corners of a ring.
"""

import io
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hf_vit_seg.data.images.georeference import KEYS, GeoTags
from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.inference.annotations import polygon_text

WGS84 = "EPSG:4326"
DECIMALS = 9  # of degrees: 0.1 mm
# A straight line of pixels is a curve in other coordinates. With corners at multiples of this many pixels, it deviates
# by less than 0.05 pixels (of 1 km, in UTM at 60 degrees), and polygons with a common border have the same corners.
STEP = 32
PROBES = 33  # points along each side of an image that are transformed before it is segmented


class PolygonCoordinates(StrEnum):
    """Coordinates of polygons of georeferenced images."""

    wgs84 = "wgs84"  # longitude and latitude, as RFC 7946 requires for GeoJSON
    image = "image"  # the CRS of the image
    pixels = "pixels"


@dataclass(frozen=True, eq=False)
class MapCoordinates:
    """The coordinates of the polygons of a georeferenced image of `path`.

    `transform` is rasterio's affine transform, or its ground control points.
    """

    path: Path
    crs: Any
    transform: Any
    kind: PolygonCoordinates

    @property
    def member(self) -> dict[str, Any]:
        """The foreign members of the GeoJSON file: none for WGS 84, else `crs`, as in GeoJSON 2008 and GDAL."""
        if self.kind is PolygonCoordinates.wgs84:
            return {}
        code = self.crs.to_epsg()
        name = self.crs.to_wkt() if code is None else f"urn:ogc:def:crs:EPSG::{code}"
        return {"crs": {"type": "name", "properties": {"name": name}}}

    @cached_property
    def curved(self) -> bool:
        """Whether straight lines of pixels may be curves."""
        projected = self.kind is PolygonCoordinates.wgs84 and not self.crs.is_geographic
        return projected or isinstance(self.transform, list)

    @cached_property
    def transformer(self) -> Any:
        """rasterio's transformer from pixels to the CRS."""
        from rasterio.transform import AffineTransformer, GCPTransformer

        return (GCPTransformer if isinstance(self.transform, list) else AffineTransformer)(self.transform)

    def to_crs(self, corners: np.ndarray) -> np.ndarray:
        """Transform corners (c, 2) in pixels, (x, y), to the CRS of the image."""
        x, y = self.transformer.xy(corners[:, 1].astype(float), corners[:, 0].astype(float), offset="ul")
        return np.stack([x, y], axis=1)

    def to_degrees(self, points: np.ndarray) -> np.ndarray:
        """Transform points (c, 2) of the CRS to longitude and latitude. Raises HfVitSegError outside of its domain."""
        from rasterio.warp import transform

        try:
            found = np.stack(transform(self.crs, WGS84, points[:, 0], points[:, 1])[:2], axis=1)
        except Exception as error:  # of GDAL: CPLE_BaseError, which is not public
            raise self.domain_error(error_sentence(error)) from error
        if not np.isfinite(found).all():
            raise self.domain_error("some are infinite")
        return found

    def domain_error(self, reason: str) -> HfVitSegError:
        """The error for points without longitude and latitude."""
        return HfVitSegError(
            f"{self.path}: parts of the image have no longitude and latitude ({reason}): pass --coordinates image"
        )

    def check(self, size: tuple[int, int]) -> None:
        """Raise HfVitSegError if points of an image of `size` (H, W) cannot be transformed."""
        rows, columns = (np.linspace(0, side, PROBES) for side in size)
        grid = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
        points = self.to_crs(grid)
        if self.kind is PolygonCoordinates.wgs84:
            self.to_degrees(points)

    def geometry_text(self, rings: Sequence[np.ndarray]) -> Iterator[str]:
        """The geometry of a polygon as JSON, in parts: outer rings are counterclockwise, and holes clockwise."""
        if self.curved:
            rings = [add_corners(ring, STEP) for ring in rings]
        located = [self.to_crs(ring) for ring in rings]
        if self.kind is PolygonCoordinates.image:
            yield from polygon_text(orient(located))
            return
        degrees = [self.to_degrees(ring) for ring in located]
        if any(jumps(ring) for ring in degrees):
            yield json.dumps(self.cut_geometry(located, degrees))
        else:
            yield from polygon_text(orient([np.round(ring, DECIMALS) for ring in into_range(degrees)]))

    def cut_geometry(self, located: list[np.ndarray], degrees: list[np.ndarray]) -> dict[str, Any]:
        """The geometry of a polygon that crosses the antimeridian: cut there (RFC 7946, 3.1.9) by GDAL.

        GDAL does not cut all of them. Others get longitudes beyond 180 degrees.
        """
        from rasterio.warp import transform_geom

        closed = [np.concatenate([ring, ring[:1]]).tolist() for ring in located]
        found = transform_geom(self.crs, WGS84, {"type": "Polygon", "coordinates": closed})
        polygons = found["coordinates"] if found["type"] == "MultiPolygon" else [found["coordinates"]]
        cut = [[np.array(ring)[:-1, :2] for ring in polygon] for polygon in polygons]
        if any(jumps(ring) for polygon in cut for ring in polygon):
            cut = [into_range(unwrap(degrees))]
        rounded = [orient([np.round(ring, DECIMALS) for ring in polygon]) for polygon in cut]
        lists = [[np.concatenate([ring, ring[:1]]).tolist() for ring in polygon] for polygon in rounded]
        if len(lists) == 1:
            return {"type": "Polygon", "coordinates": lists[0]}
        return {"type": "MultiPolygon", "coordinates": lists}


def map_coordinates(
    path: Path, tags: GeoTags, size: tuple[int, int], kind: PolygonCoordinates
) -> MapCoordinates | None:
    """The coordinates of the polygons of an image of `size` (H, W) with georeferencing `tags`.

    None for pixels: requested, or without a known CRS. Raises HfVitSegError if rasterio is missing or coordinates
    cannot be transformed.
    """
    if kind is PolygonCoordinates.pixels or KEYS not in {tag[0] for tag in tags}:
        return None
    try:
        crs, transform = read_tags(tags)
    except ImportError:
        raise HfVitSegError(
            f"{path}: the image is georeferenced, and polygons in its coordinates need rasterio: pip install rasterio, "
            "or pass --coordinates pixels"
        ) from None
    except Exception as error:  # RasterioError and others of GDAL, for tags that contradict the standard
        raise HfVitSegError(
            f"{path}: its georeference cannot be read ({error_sentence(error)}): mend its tags, or pass "
            "--coordinates pixels"
        ) from error
    if crs is None or transform is None or not (crs.is_projected or crs.is_geographic):
        return None
    found = MapCoordinates(path, crs, transform, kind)
    found.check(size)
    return found


def read_tags(tags: GeoTags) -> tuple[Any, Any]:
    """The CRS and the transform (affine, or ground control points) that rasterio reads from tags; None if unknown."""
    import rasterio
    import tifffile
    from rasterio.errors import NotGeoreferencedWarning

    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((1, 1), np.uint8), metadata=None, extratags=tags)
    with warnings.catch_warnings(), rasterio.MemoryFile(file.getvalue()) as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver="GTiff") as image:
            points, points_crs = image.gcps
            if points:
                return points_crs, points
            return image.crs, None if image.transform.is_identity else image.transform


def add_corners(ring: np.ndarray, step: int) -> np.ndarray:
    """Add corners to a ring (c, 2) where its horizontal and vertical sides cross multiples of `step`."""
    after = np.roll(ring, -1, axis=0)
    axis = (ring[:, 0] == after[:, 0]).astype(int)  # 0 where x changes, 1 where y does
    rows = np.arange(len(ring))
    begin, end = ring[rows, axis], after[rows, axis]
    first, last = np.minimum(begin, end) // step + 1, (np.maximum(begin, end) - 1) // step  # multiples in between
    added = np.maximum(last - first + 1, 0)
    found = np.repeat(ring, 1 + added, axis=0)
    source = np.repeat(rows, 1 + added)
    place = np.arange(len(found)) - np.repeat(np.cumsum(1 + added) - 1 - added, 1 + added)
    new = np.flatnonzero(place)
    source, place = source[new], place[new] - 1
    multiples = np.where(end[source] > begin[source], first[source] + place, last[source] - place)
    found[new, axis[source]] = multiples * step
    return found


def orient(rings: list[np.ndarray]) -> list[np.ndarray]:
    """Let the outer ring, the first, be counterclockwise, with y upward; holes are opposite to it."""
    return [ring if (signed_area(ring) > 0) == (i == 0) else ring[::-1] for i, ring in enumerate(rings)]


def signed_area(ring: np.ndarray) -> float:
    """The area of a ring (c, 2), positive if it is counterclockwise with y upward."""
    (x, y), (next_x, next_y) = (ring - ring[0]).T, (np.roll(ring, -1, axis=0) - ring[0]).T
    return float((x * next_y - next_x * y).sum() / 2)


def jumps(ring: np.ndarray) -> bool:
    """Whether a ring (c, 2) in degrees crosses the antimeridian, except at a pole."""
    after = np.roll(ring, -1, axis=0)
    polar = (np.abs(ring[:, 1]) > 90 - 1e-9) & (np.abs(after[:, 1]) > 90 - 1e-9)
    return bool(((np.abs(after[:, 0] - ring[:, 0]) > 180) & ~polar).any())


def unwrap(rings: list[np.ndarray]) -> list[np.ndarray]:
    """Rings in degrees with longitudes that are continuous, holes near the outer ring."""
    found, middle = list[np.ndarray](), None
    for ring in rings:
        longitude = np.unwrap(ring[:, 0], period=360)
        middle = float(longitude.mean()) if middle is None else middle
        longitude -= 360 * round((float(longitude.mean()) - middle) / 360)
        found.append(np.stack([longitude, ring[:, 1]], axis=1))
    return found


def into_range(rings: list[np.ndarray]) -> list[np.ndarray]:
    """Rings in degrees, shifted by multiples of 360 so that the outer one has a part in -180 .. 180."""
    low, high = float(rings[0][:, 0].min()), float(rings[0][:, 0].max())
    turns = math.ceil((high - 180) / 360) if low >= 180 else math.floor((low + 180) / 360) if high <= -180 else 0
    return [ring - (360 * turns, 0) for ring in rings] if turns else rings


__all__ = ["MapCoordinates", "PolygonCoordinates", "map_coordinates"]
