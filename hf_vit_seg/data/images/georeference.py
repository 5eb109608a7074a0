"""The georeference of images: the tags of OGC 19-008 (GeoTIFF), copied unchanged to results, or a world file.

A world file, such as `scene.jgw` for `scene.jpg`, has six numbers but no coordinate reference system.
"""

import math
from pathlib import Path
from typing import Any

from PIL import Image

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.text_files import read_text

from .files import TIFFS, ImageFileError, first_bytes, raise_image_errors
from .orientation import UPRIGHT, pil_orientation, tiff_orientation

KEYS = 34735  # the GeoKeyDirectory, which defines the coordinate reference system
MATRIX = 34264
TRANSFORMS = (33550, 33922, MATRIX)  # scale, tie points, matrix
GEOREFERENCE = (*TRANSFORMS, KEYS, 34736, 34737)  # also the keys and their parameters
DOUBLE = 12  # type of a tag
RASTER_TYPE, POINTS = 1025, 2  # the key and value if coordinates are those of pixel centers
MAX_WORLD_FILE = 10_000  # bytes

# Tags in tifffile's format: (code, type, count, value, once).
GeoTags = tuple[tuple[Any, ...], ...]


def page_georeference(page: Any, path: Path) -> GeoTags:
    """Return the georeferencing tags of a page of a TIFF, with those of its world file if the page has no coordinates.

    Empty without a georeference. Raises ImageFileError if the page also has an orientation tag, or for an invalid world
    file.
    """
    tags = (page.tags.get(code) for code in GEOREFERENCE)
    values = tuple((tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags if tag is not None)
    if not any(tag[0] in TRANSFORMS for tag in values):
        values += world_file_tags(path, centers=has_pixel_centers(values))
    check_upright(path, values, tiff_orientation(page))
    return values


def check_upright(path: Path, tags: GeoTags, orientation: int) -> None:
    """Raise ImageFileError for an image with a georeference that is not stored upright."""
    if tags and orientation != UPRIGHT:
        raise ImageFileError(
            f"{path}: it has an orientation ({orientation}: turned or mirrored) and a georeference, which contradict "
            "each other: save it upright"
        )


def has_pixel_centers(tags: GeoTags) -> bool:
    """Return whether coordinates in tags are those of pixel centers, not of corners."""
    keys = next((tag[3] for tag in tags if tag[0] == KEYS), ())
    return any(keys[k] == RASTER_TYPE and keys[k + 3] == POINTS for k in range(4, len(keys) - 3, 4))


def find_world_file(path: Path) -> Path | None:
    """Return the world file of an image, by the names that GDAL knows: .jgw, .jpgw and .wld for .jpg."""
    kind = path.suffix[1:]
    for suffix in (f"{kind[:1]}{kind[-1:]}w", f"{kind}w", "wld"):
        for spelled in (suffix, suffix.lower(), suffix.upper()):
            if (candidate := path.with_suffix(f".{spelled}")).is_file():
                return candidate
    return None


def world_file_tags(path: Path, centers: bool = False) -> GeoTags:
    """Return the matrix of an image's world file as a tag; empty without one. Raises ImageFileError if it is invalid.

    World files have coordinates of pixel centers; the matrix has those of corners, unless `centers`.
    """
    if (file := find_world_file(path)) is None:
        return ()
    try:
        a, d, b, e, x, y = (float(word.replace(",", ".")) for word in read_text(file, MAX_WORLD_FILE).split())
    except HfVitSegError as error:
        raise ImageFileError(str(error)) from None
    except ValueError:
        raise ImageFileError(f"{file}: it is not a world file, expected six numbers: fix or remove it") from None
    if not all(map(math.isfinite, (a, b, d, e, x, y))) or a * e == b * d:
        raise ImageFileError(f"{file}: its transform is not invertible or not finite: fix or remove it")
    half = 0.0 if centers else 0.5
    values = (a, b, 0.0, x - half * (a + b), d, e, 0.0, y - half * (d + e), *[0.0] * 7, 1.0)
    return ((MATRIX, DOUBLE, len(values), values, True),)


def file_georeference(path: Path) -> GeoTags:
    """Return the georeferencing tags of a file, or of its world file; empty without either."""
    import tifffile

    if not first_bytes(path).startswith(TIFFS):
        if tags := world_file_tags(path):
            with raise_image_errors(path), Image.open(path) as image:
                orientation = pil_orientation(image, path)
            check_upright(path, tags, orientation)
        return tags
    with raise_image_errors(path), tifffile.TiffFile(path) as tiff:
        return page_georeference(tiff.pages.first, path)


__all__ = ["KEYS", "GeoTags", "file_georeference", "page_georeference"]
