"""The georeference of TIFFs: the tags of OGC 19-008 (GeoTIFF), copied unchanged to results."""

from pathlib import Path
from typing import Any

from .files import TIFFS, ImageFileError, failures_in_words, first_bytes
from .orientation import UPRIGHT, tiff_orientation

KEYS = 34735  # the GeoKeyDirectory, which defines the coordinate reference system
GEOREFERENCE = (33550, 33922, 34264, KEYS, 34736, 34737)  # scale, tie points, matrix, keys and their parameters

# Tags in tifffile's format: (code, type, count, value, once).
GeoTags = tuple[tuple[Any, ...], ...]


def page_georeference(page: Any, path: Path) -> GeoTags:
    """The georeferencing tags of a page of a TIFF; empty without a georeference.

    Raises ImageFileError if the page also has an orientation tag.
    """
    tags = (page.tags.get(code) for code in GEOREFERENCE)
    found = tuple((tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags if tag is not None)
    orientation = tiff_orientation(page)
    if found and orientation != UPRIGHT:
        raise ImageFileError(
            f"{path}: it has an orientation ({orientation}: turned or mirrored) and a georeference, which contradict "
            "each other: save it upright"
        )
    return found


def file_georeference(path: Path) -> GeoTags:
    """The georeferencing tags of a file; empty for files without them, and for files other than TIFFs."""
    import tifffile

    if not first_bytes(path).startswith(TIFFS):
        return ()
    with failures_in_words(path), tifffile.TiffFile(path) as tiff:
        return page_georeference(tiff.pages.first, path)


__all__ = ["KEYS", "GeoTags", "file_georeference", "page_georeference"]
