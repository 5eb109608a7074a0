"""Conversion of label maps to annotation formats: GeoJSON polygons and COCO RLE.

Shapes: H W pixels, r runs.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_vit_seg.drawing.outlines import Region, extract_regions, region_sum


def geojson(
    label_map: np.ndarray, names: Sequence[str], palette: np.ndarray, scores: np.ndarray | None = None
) -> dict[str, Any]:
    """Convert a label map (H, W) to a GeoJSON FeatureCollection with one polygon per 4-connected region.

    Coordinates are pixels from the upper left corner, x to the right and y down, along pixel borders. The properties
    are the region's class (`class`, `name`, `color`), its number of `pixels`, and `score`, the mean of its `scores`.
    """
    integral = None if scores is None else np.pad(scores.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    features = []
    for region in extract_regions(label_map):
        properties = {
            "class": region.label,
            "name": names[region.label],
            "color": palette[region.label].tolist(),
            "pixels": region.pixels,
        }
        if integral is not None:
            properties["score"] = round(region_sum(region, integral) / region.pixels, 6)
        features.append({"type": "Feature", "geometry": polygon(region), "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def polygon(region: Region) -> dict[str, Any]:
    """Convert a region to a GeoJSON Polygon with closed rings."""
    rings = [np.concatenate([ring, ring[:1]]).tolist() for ring in region.rings]
    return {"type": "Polygon", "coordinates": rings}


def coco(
    label_map: np.ndarray, names: Sequence[str], file_name: str = "", scores: np.ndarray | None = None
) -> dict[str, Any]:
    """Convert a label map (H, W) to a COCO dataset of one image, with one annotation per class.

    Masks are compressed RLE, as in pycocotools; `score` is the mean of a class's `scores` (H, W).
    """
    height, width = label_map.shape
    flat = label_map.ravel(order="F")
    begin = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    end = np.append(begin[1:], flat.size)
    labels = flat[begin]
    sums = None if scores is None else np.add.reduceat(scores.ravel(order="F").astype(np.float64), begin)
    annotations = []
    for label in np.unique(labels).tolist():
        mine = labels == label
        pixels = int((end[mine] - begin[mine]).sum())
        annotation = {
            "id": len(annotations) + 1,
            "image_id": 1,
            "category_id": label,
            "segmentation": {
                "size": [height, width],
                "counts": compress_counts(counts(begin[mine], end[mine], flat.size)),
            },
            "area": pixels,
            "bbox": box(begin[mine], end[mine] - 1, height),
            "iscrowd": 0,
        }
        annotations.append(annotation if sums is None else annotation | {"score": round(sums[mine].sum() / pixels, 6)})
    return {
        "images": [{"id": 1, "file_name": file_name, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": index, "name": name} for index, name in enumerate(names)],
    }


def counts(begin: np.ndarray, end: np.ndarray, total: int) -> list[int]:
    """COCO's uncompressed RLE counts, alternately outside and inside, of the runs [begin, end) in `total` pixels."""
    borders = np.stack([begin, end], axis=1).ravel()
    lengths = np.diff(borders, prepend=0).tolist()
    return lengths if borders[-1] == total else [*lengths, total - int(borders[-1])]


def compress_counts(lengths: Sequence[int]) -> str:
    """Compress RLE counts as COCO does: differences to the count two before, 5 bits per character, lowest first."""
    characters = bytearray()
    for i, length in enumerate(lengths):
        rest = length - lengths[i - 2] if i > 2 else length
        while True:
            bits, rest = rest & 31, rest >> 5
            more = rest != (-1 if bits & 16 else 0)
            characters.append(48 + bits + 32 * more)
            if not more:
                break
    return characters.decode("ascii")


def box(first: np.ndarray, last: np.ndarray, height: int) -> list[int]:
    """The bounding box [x, y, width, height] of runs (r,) of pixels first .. last, in column-major order."""
    (left, top), (right, bottom) = divmod(first, height), divmod(last, height)
    crossing = left != right  # these runs include the bottom of one column and the top of the next
    highest = int(np.where(crossing, 0, top).min())
    lowest = int(np.where(crossing, height - 1, bottom).max())
    return [int(left.min()), highest, int(right.max() - left.min()) + 1, lowest - highest + 1]


__all__ = ["coco", "geojson"]
