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

from .antimeridian import DECIMALS, cut_polygon, near, orient, unwrap

WGS84 = "EPSG:4326"
# A straight line of pixels is a curve in other coordinates. With corners at multiples of this many pixels, it deviates
# by less than 0.05 pixels (of 1 km, in UTM at 60 degrees), and polygons with a common border have the same corners.
STEP = 32
# Near a pole, a step of more degrees of longitude than this is replaced by steps of one pixel.
MAX_LONGITUDE_STEP = 2
POLAR = 80  # degrees of latitude
STEPS = 16  # along each side of a small image at least: a step is less than 180 degrees, also in an image of the world
PROBES = 33  # points along each side of an image that are transformed before it is segmented


class PolygonCoordinates(StrEnum):
    """Coordinates of polygons of georeferenced images."""

    wgs84 = "wgs84"  # longitude and latitude, as RFC 7946 requires for GeoJSON
    image = "image"  # the CRS of the image
    pixels = "pixels"


@dataclass(frozen=True, eq=False)
class MapCoordinates:
    """The coordinates of the polygons of a georeferenced image of `path`.

    `transform` is rasterio's affine transform, or its ground control points. Where straight lines become curves,
    corners are added at multiples of `step` pixels.
    """

    path: Path
    crs: Any
    transform: Any
    kind: PolygonCoordinates
    step: int = STEP

    @property
    def member(self) -> dict[str, Any]:
        """The foreign members of the GeoJSON file: none for WGS 84, else `crs`, as in GeoJSON 2008 and GDAL."""
        if self.kind is PolygonCoordinates.wgs84:
            return {}
        code = self.crs.to_epsg()
        name = self.crs.to_wkt() if code is None else f"urn:ogc:def:crs:EPSG::{code}"
        return {"crs": {"type": "name", "properties": {"name": name}}}

    @cached_property
    def has_curved_lines(self) -> bool:
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
            degrees = np.stack(transform(self.crs, WGS84, points[:, 0], points[:, 1])[:2], axis=1)
        except Exception as error:  # GDAL raises CPLE_BaseError, which is not public
            raise self.domain_error(error_sentence(error)) from error
        if not np.isfinite(degrees).all():
            raise self.domain_error("some are infinite")
        return degrees

    def domain_error(self, reason: str) -> HfVitSegError:
        """Return the error for points without longitude and latitude."""
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
        """Yield the geometry of a polygon as JSON, in parts: outer rings are counterclockwise, and holes clockwise."""
        if self.has_curved_lines:
            rings = [self.add_corners(ring) for ring in rings]
        if self.kind is PolygonCoordinates.image:
            yield from polygon_text(orient([self.to_crs(ring) for ring in rings]))
            return
        polygons = [orient([np.round(ring, DECIMALS) for ring in polygon]) for polygon in self.to_polygons(rings)]
        if len(polygons) == 1:
            yield from polygon_text(polygons[0])
            return
        lists = [[np.concatenate([ring, ring[:1]]).tolist() for ring in polygon] for polygon in polygons]
        yield json.dumps({"type": "MultiPolygon", "coordinates": lists})

    def add_corners(self, ring: np.ndarray) -> np.ndarray:
        """Add corners to a ring (c, 2) in pixels, so that straight lines between them follow its curves in degrees."""
        ring_with_corners = add_corners(ring, self.step)
        if self.kind is PolygonCoordinates.wgs84 and self.step > 1:
            longitude, latitude = self.to_degrees(self.to_crs(ring_with_corners)).T
            change = np.abs(np.diff(longitude, append=longitude[0]))
            if (np.minimum(change, 360 - change)[np.abs(latitude) > POLAR] > MAX_LONGITUDE_STEP).any():
                return add_corners(ring, 1)
        return ring_with_corners

    def to_polygons(self, rings: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Return the parts in degrees of a polygon in pixels, cut at the antimeridian (RFC 7946, section 3.1.9)."""
        located = orient([self.to_crs(ring) for ring in rings])
        degrees = [np.round(self.to_degrees(ring), DECIMALS) for ring in located]
        if self.crs.is_geographic:
            rings = [self.near_points(*pair) for pair in zip(degrees, located, strict=True)]
            return cut_polygon([np.concatenate([ring, ring[:1]]) for ring in rings])
        return cut_polygon(near([unwrap(ring, hole=k > 0) for k, ring in enumerate(degrees)]))

    def near_points(self, degrees: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Shift longitudes by full turns to those of points (c, 2) of a geographic CRS, which are continuous."""
        factor = math.degrees(self.crs.units_factor[1])
        turns = np.round((points[:, 0] * factor - degrees[:, 0]) / 360)
        return degrees + np.stack([turns * 360, np.zeros_like(turns)], axis=1)


def map_coordinates(
    path: Path, tags: GeoTags, size: tuple[int, int], kind: PolygonCoordinates
) -> MapCoordinates | None:
    """Return the coordinates of the polygons of an image of `size` (H, W) with georeferencing `tags`.

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
    step = max(1, min(STEP, *(side // STEPS for side in size)))
    coordinates = MapCoordinates(path, crs, transform, kind, step)
    coordinates.check(size)
    return coordinates


def read_tags(tags: GeoTags) -> tuple[Any, Any]:
    """Return the CRS and the transform (affine, or ground control points) that rasterio reads from tags; None if
    unknown.
    """
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


__all__ = ["MapCoordinates", "PolygonCoordinates", "map_coordinates"]
