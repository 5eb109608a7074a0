"""Results of georeferenced images and of images in tiles: TIFFs, and polygons.

Shapes: H W the image, K classes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_vit_seg.atomic_io import json_text
from hf_vit_seg.data.images.georeference import GeoTags
from hf_vit_seg.inference.annotations import Block, coco_dataset, geojson_text

from .map_coordinates import MapCoordinates
from .rasters import GrayRaster, Raster, column_blocks, row_blocks, write_tiff
from .suffixes import LABELS_TIFF, TIFFS

Saver = Callable[[Path], Any]  # writes a result to a path


@dataclass(frozen=True, eq=False)
class MapResults:
    """The maps of an image with the settings for writing them.

    `maps` are labels, and if selected scores and entropy, (H, W) each, of 0 .. 1 (float) or 0 .. 255 (uint8). `nodata`
    is the label of pixels without data, or None.
    """

    maps: Mapping[str, Raster]
    names: tuple[str, ...]
    palette: np.ndarray  # (K, 3) uint8
    georeference: GeoTags = ()
    coordinates: MapCoordinates | None = None
    nodata: int | None = None

    def tiffs(self) -> Iterator[tuple[str, Saver]]:
        """Yield the functions that write the maps as TIFFs with the georeference, by suffix."""
        yield LABELS_TIFF, self.save_label_tiff
        for name in ("scores", "entropy"):
            if name in self.maps:
                yield TIFFS[name], partial(self.save_gray_tiff, self.maps[name])

    def save_label_tiff(self, path: Path) -> None:
        """Write the label map as a TIFF."""
        write_tiff(path, self.maps["labels"], self.palette, self.georeference, self.nodata)

    def save_gray_tiff(self, raster: Raster, path: Path) -> None:
        """Write scores or entropy as a TIFF of 0 .. 255."""
        write_tiff(path, GrayRaster(raster), None, self.georeference)

    def save_geojson(self, path: Path) -> None:
        """Write the regions as polygons."""
        blocks = self.blocks(row_blocks)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(geojson_text(blocks, self.names, self.palette, self.coordinates))

    def save_coco(self, path: Path, file_name: str) -> None:
        """Write the classes as COCO run-length encoding."""
        content = coco_dataset(self.blocks(column_blocks), self.maps["labels"].shape, self.names, file_name)
        path.write_text(json_text(content), encoding="utf-8")

    def blocks(self, split: Callable[[Raster], Iterator[np.ndarray]]) -> Iterator[Block]:
        """Iterate over the labels, and the scores of 0 .. 1 or None, of rows or columns."""
        scores = self.maps.get("scores")
        if scores is None:
            yield from ((labels, None) for labels in split(self.maps["labels"]))
            return
        for labels, values in zip(split(self.maps["labels"]), split(scores), strict=True):
            yield labels, values / 255 if values.dtype == np.uint8 else values


__all__ = ["MapResults", "Saver"]
