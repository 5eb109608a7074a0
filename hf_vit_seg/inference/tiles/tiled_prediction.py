"""Resumable prediction of tiled images with bounded memory.

Shapes: H W the image, n m a tile or a part of the overview, K classes.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.atomic_io import json_text, write_files
from hf_vit_seg.data.images.display import to_rgb_image
from hf_vit_seg.data.images.files import ImageFileError, within_limits
from hf_vit_seg.drawing.overlays import display_size, draw_overlay, save_overlay
from hf_vit_seg.inference.dense.pixel_maps import MapSelection, PixelMaps
from hf_vit_seg.inference.files.map_coordinates import MapCoordinates, map_coordinates
from hf_vit_seg.inference.files.prediction import Job, PredictOptions, class_rows, polygon_facts
from hf_vit_seg.inference.files.rasters import Raster, row_blocks, write_archive, write_png
from hf_vit_seg.inference.files.results import MapResults, Saver
from hf_vit_seg.inference.files.suffixes import COCO, ENTROPY, GEOJSON, LABELS, OVERLAY, REPORT, SCORES, TOP
from hf_vit_seg.inference.image_segmenter import ImageSegmenter
from hf_vit_seg.inference.segmentation import class_counts, file_palette, nodata_label
from hf_vit_seg.inference.segmenter import Segmenter

from .region_reading import RegionImage, open_regions, region_size
from .tiled_logits import SIDE, Tile, TiledImage, TileGrid, tiling_protocol
from .writing import Plane, TileRecord

OVERVIEW_SIDE = 1600  # the longest of the overlay


@dataclass(frozen=True)
class Progress:
    """The number of tiles that are done, their total, and how many of them an earlier run completed.

    `pixel_polygons` as in `Outcome`.
    """

    done: int
    total: int
    resumed: int
    pixel_polygons: bool = False


def needs_tiles(job: Job, options: PredictOptions) -> bool:
    """Return whether an image is tiled: requested or above the size limit, in a format that supports it."""
    try:
        size = region_size(job.image.path)
    except ImageFileError:
        return False  # reported when the image is read
    return size is not None and (options.tile is not None or not within_limits(*size, options.max_pixels))


def predict_tiled(segmenter: Segmenter, job: Job, options: PredictOptions) -> Iterator[Progress]:
    """Segment one image tile by tile and write its results, yielding the progress after each tile.

    An interrupted run resumes with the missing tiles if it is repeated with the same settings.
    Raises ImageFileError, PredictionError, or HfVitSegError for coordinates of polygons that cannot be computed;
    completed tiles are kept.
    """
    start = time.perf_counter()
    segmenter = segmenter.with_protocol(tiling_protocol(segmenter.protocol, segmenter.processor))
    with open_regions(job.image.path, segmenter.channels) as image, ExitStack() as stack:
        coordinates = None
        if options.geojson:
            coordinates = map_coordinates(job.image.path, image.georeference, image.size, options.coordinates)
        tiles = TileGrid(image.size, options.tile or SIDE)
        folder = job.target.with_name(f".{job.target.name}.tiles")
        record = stack.enter_context(closing(TileRecord(folder, plan_tiles(segmenter, job, image, tiles, options))))
        tiled = stack.enter_context(closing(TiledImage(segmenter, image, tiles, folder)))
        planes = {
            name: stack.enter_context(closing(record.plane(name, image.size, kind)))
            for name, kind in kinds(segmenter, options).items()
        }
        resumed = len(record.done)
        for tile in tiles:
            if tile.index not in record.done:
                maps, missing = tiled.maps(tile, MapSelection(options.scores, options.entropy, options.top_k))
                write_tile(planes, tile, maps, missing)
                record.add(tile)
            yield Progress(len(record.done), len(tiles), resumed, options.uses_pixels(coordinates))
        seconds = time.perf_counter() - start
        facts = tiled_report(
            segmenter, job, planes["labels"], options, {"side": tiles.side, "resumed": resumed}, seconds
        )
        facts |= polygon_facts(coordinates, options)
        results = map_results(segmenter, image, planes, coordinates)
        found = savers(job, image, results, facts, options)
        write_files({job.result(suffix): save for suffix, save in found})
        record.remove()


def plan_tiles(
    segmenter: Segmenter, job: Job, image: RegionImage, tiles: TileGrid, options: PredictOptions
) -> dict[str, Any]:
    """Return all settings and files that the maps depend on, for `TileRecord`."""
    maps = sorted(kinds(segmenter, options))
    return common_plan(segmenter, job, image, options) | {"tile": tiles.side, "maps": maps}


def common_plan(segmenter: ImageSegmenter, job: Job, image: RegionImage, options: PredictOptions) -> dict[str, Any]:
    """Return the image, model and protocol of a prediction."""
    status = job.image.path.stat()
    return {
        "image": [str(job.image.path.resolve()), status.st_size, status.st_mtime_ns, *image.size],
        "model": [options.model, weights_mtimes(options.model), str(segmenter.model.dtype)],
        "protocol": segmenter.protocol.model_dump(mode="json"),
    }


def weights_mtimes(model: str) -> list[int]:
    """Return the modification times of a local model's weights; empty for a Hub id."""
    path = Path(model)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if model else []
    return [file.stat().st_mtime_ns for file in files]


def kinds(segmenter: Segmenter, options: PredictOptions) -> dict[str, Any]:
    """Return the maps to compute and their dtypes."""
    labels = np.uint8 if nodata_label(len(segmenter.names)) == 255 else np.uint16
    dtypes: dict[str, Any] = {"labels": labels}
    dtypes |= {name: np.uint8 for name in ("scores", "entropy") if getattr(options, name)}
    for i in range(options.top_k):
        dtypes |= {f"top_classes.{i}": labels, f"top_scores.{i}": np.float16}
    return dtypes


def write_tile(planes: Mapping[str, Plane], tile: Tile, maps: PixelMaps, missing: np.ndarray | None) -> None:
    """Write a tile's maps (1, n, m), or (1, k, n, m) of the top classes, whose planes have the numbers 0 .. k - 1.

    Floats of 0 .. 1 become 0 .. 255 in planes of uint8. Nodata pixels get the largest label and score 0.
    """
    for name, plane in planes.items():
        kind, _, number = name.partition(".")
        computed: torch.Tensor | None = getattr(maps, kind)
        if computed is None:  # no top classes, since all pixels are nodata
            pixels = np.zeros(tile.size, plane.dtype)
        else:
            values = computed[0, int(number)] if number else computed[0]
            if values.is_floating_point() and plane.dtype == np.uint8:
                values = (values * 255 + 0.5).to(torch.uint8)
            pixels = values.cpu().numpy().astype(plane.dtype)
        if missing is not None:
            pixels[missing] = np.iinfo(plane.dtype).max if kind in ("labels", "top_classes") else 0
        plane.write(tile, pixels)


def map_results(
    segmenter: Segmenter, image: RegionImage, planes: Mapping[str, Plane], coordinates: MapCoordinates | None
) -> MapResults:
    """Return the maps of an image with its georeference."""
    nodata = None if image.nodata is None else nodata_label(len(segmenter.names))
    return MapResults(planes, segmenter.names, segmenter.palette, image.georeference, coordinates, nodata)


def savers(
    job: Job, image: RegionImage, results: MapResults, facts: dict[str, Any], options: PredictOptions
) -> Iterator[tuple[str, Saver]]:
    """Yield the functions that write each result to a path."""
    planes, palette = results.maps, file_palette(results.palette)
    labels = planes["labels"]
    yield LABELS, lambda path: write_png(path, labels, palette)
    yield from results.tiffs()
    for name, suffix in (("scores", SCORES), ("entropy", ENTROPY)):
        if name in planes:
            yield suffix, lambda path, plane=planes[name]: write_png(path, plane)
    if options.top_k:
        top = {name: [planes[f"top_{name}.{i}"] for i in range(options.top_k)] for name in ("classes", "scores")}
        yield TOP, lambda path: write_archive(path, top)
    if options.geojson:
        yield GEOJSON, results.save_geojson
    if options.coco:
        yield COCO, lambda path: results.save_coco(path, job.image.path.name)
    if options.overlay:
        rows = [(c["name"], tuple(c["color"]), c["share"]) for c in facts["classes"]]
        yield (
            OVERLAY,
            lambda path: save_overlay(
                draw_overlay(*overview(image, labels), palette, rows, options.opacity, None), path
            ),
        )
    yield REPORT, lambda path: path.write_text(json_text(facts, indent=2), encoding="utf-8")


def overview(image: RegionImage, labels: Raster) -> tuple[Image.Image, np.ndarray]:
    """Reduce the image (by averaging) and its label map (n, m, by nearest) to `OVERVIEW_SIDE`."""
    height, width = image.size
    small = display_size((width, height), OVERVIEW_SIDE, enlarge=False)
    columns, rows = ((2 * np.arange(n) + 1) * old // (2 * n) for n, old in zip(small, (width, height), strict=True))
    reduced = np.concatenate([labels.rows(row, row + 1)[:, columns] for row in rows.tolist()])
    scale = max(height / small[1], 1.0)
    step = max(1, int(SIDE / scale))
    canvas = Image.new("RGB", small)
    for part in TileGrid((small[1], small[0]), step):
        canvas.paste(resize_part(image, part, small), (part.columns.start, part.rows.start))
    return canvas, reduced


def resize_part(image: RegionImage, part: Tile, small: tuple[int, int]) -> Image.Image:
    """Resize a part of the overview, which has the size `small` (width, height)."""
    across, down = image.size[1] / small[0], image.size[0] / small[1]
    left, right = part.columns.start * across, min(part.columns.stop * across, image.size[1])
    top, bottom = part.rows.start * down, min(part.rows.stop * down, image.size[0])
    rows, columns = slice(int(top), int(np.ceil(bottom))), slice(int(left), int(np.ceil(right)))
    seen = to_rgb_image(image.read(rows, columns)[0])
    box = left - columns.start, top - rows.start, right - columns.start, bottom - rows.start
    return seen.resize((part.size[1], part.size[0]), Image.Resampling.BOX, box=box)


def tiled_report(
    segmenter: Segmenter, job: Job, labels: Raster, options: PredictOptions, tiling: dict[str, int], seconds: float
) -> dict[str, Any]:
    """Return the report of an image for JSON, as in `segmentation_report`."""
    height, width = labels.shape
    lengths = nodata_label(len(segmenter.names)) + 1
    pixels = sum(np.bincount(block.ravel(), minlength=lengths) for block in row_blocks(labels))
    counted = np.asarray(pixels)[: len(segmenter.names)]
    return {
        "image": str(job.image.path),
        "height": height,
        "width": width,
        "model": options.model,
        "protocol": segmenter.protocol.describe((height, width)),
        "device": str(segmenter.device),
        "dtype": str(segmenter.model.dtype).removeprefix("torch."),
        "tiles": tiling,
        "seconds": round(seconds, 2),
        "ignored_pixels": height * width - int(counted.sum()),
        "classes": class_rows(class_counts(counted, segmenter.names, segmenter.palette)),
    }


__all__ = ["Progress", "needs_tiles", "predict_tiled"]
