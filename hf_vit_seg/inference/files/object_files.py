"""Find the objects of many image files and write, for each, an instance map, an overlay, tables and a report.

Shapes: H W pixels, n objects.
"""

import csv
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.atomic_io import json_text
from hf_vit_seg.data.images.georeference import GeoTags, file_georeference
from hf_vit_seg.drawing.overlays import save_overlay
from hf_vit_seg.inference.dense.image_preparation import milliseconds_since
from hf_vit_seg.inference.found_segments import COLUMNS, FoundSegments, instance_dtype
from hf_vit_seg.inference.image_inputs import load_file
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter

from .map_coordinates import MapCoordinates, map_coordinates
from .prediction import (
    FileFacts,
    Job,
    Outcome,
    PredictOptions,
    failed_outcome,
    polygon_facts,
    rounded_timings,
    run_jobs,
    write_results,
)
from .rasters import write_png, write_tiff
from .results import Saver
from .suffixes import COCO, GEOJSON, LABELS, LABELS_TIFF, OBJECTS, OVERLAY

Loaded = tuple[torch.Tensor, Image.Image | None, FileFacts]


@dataclass(frozen=True, eq=False)
class InstanceRaster:
    """The instance map of an image (H, W), drawn when it is read."""

    segments: FoundSegments

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.segments.size

    @property
    def dtype(self) -> np.dtype:
        """The type of a pixel: 16 bits for up to 65535 objects, else 32."""
        return instance_dtype(len(self.segments.objects))

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Return the rows first .. stop - 1, (n, W)."""
        return self.segments.instance_map(slice(first, stop))

    def columns(self, first: int, stop: int) -> np.ndarray:
        """Return the columns first .. stop - 1, (H, m)."""
        return self.segments.instance_map()[:, first:stop]


def predict_objects(segmenter: InstanceSegmenter, jobs: Sequence[Job], options: PredictOptions) -> Iterator[Outcome]:
    """Find the objects of the images of jobs, see `run_jobs`."""

    def find(loaded: Loaded) -> tuple[FoundSegments, FileFacts]:
        pixels, shown, facts = loaded
        return segmenter.segment_pixels(pixels, shown, facts.missing), facts

    def write(job: Job, result: tuple[FoundSegments, FileFacts]) -> Outcome:
        segments, facts = result
        try:
            savers = object_savers(segments, job, options, facts.georeference, facts.coordinates)
            if options.overlay:
                savers[OVERLAY] = lambda path: save_overlay(segments.overlay(options.opacity), path)
            content = object_report(segmenter, job, segments, options, facts.coordinates)
            content["timings_ms"] = rounded_timings(facts, segments.timings)
        except Exception as error:
            return failed_outcome(job, error)
        outcome = write_results(job, savers, content)
        return replace(outcome, pixel_polygons=outcome.error is None and options.uses_pixels(facts.coordinates))

    return run_jobs(jobs, lambda job: load_job(segmenter, job, options), find, write)


def load_job(segmenter: InstanceSegmenter, job: Job, options: PredictOptions) -> Loaded:
    """Read a job's image and its georeference."""
    start, path = time.perf_counter(), job.image.path
    pixels, shown, missing = load_file(path, segmenter.channels, segmenter.processor, options.max_pixels)
    milliseconds, georeference, coordinates = milliseconds_since(start), file_georeference(path), None
    if options.geojson:
        size = pixels.shape[1], pixels.shape[2]
        coordinates = map_coordinates(path, georeference, size, options.coordinates)
    facts = FileFacts(milliseconds, None if missing is None else missing.numpy(), georeference, coordinates)
    return pixels, shown, facts


def object_savers(
    segments: FoundSegments,
    job: Job,
    options: PredictOptions,
    georeference: GeoTags = (),
    coordinates: MapCoordinates | None = None,
) -> dict[str, Saver]:
    """Return the functions that write each result except the overlay and the report to a path."""
    raster = InstanceRaster(segments)
    savers: dict[str, Saver] = {OBJECTS: lambda path: save_table(segments, path)}
    if raster.dtype == np.uint16:
        savers[LABELS] = lambda path: write_png(path, raster)
    if georeference or raster.dtype != np.uint16:  # PNG has 16 bits at most
        savers[LABELS_TIFF] = lambda path: write_tiff(path, raster, None, georeference)
    if options.geojson:
        savers[GEOJSON] = lambda path: save_geojson(segments, path, coordinates)
    if options.coco:
        savers[COCO] = lambda path: path.write_text(json_text(segments.coco(job.image.path.name)), encoding="utf-8")
    return savers


def save_table(segments: FoundSegments, path: Path) -> None:
    """Write a row for each object as CSV: number, class, score, area, centroid and box in pixels."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows(segments.row(number) for number in range(1, len(segments.objects) + 1))
    path.write_text(text.getvalue(), encoding="utf-8", newline="")


def save_geojson(segments: FoundSegments, path: Path, coordinates: MapCoordinates | None) -> None:
    """Write a polygon for each object."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(segments.geojson_text(coordinates))


def object_report(
    segmenter: InstanceSegmenter,
    job: Job,
    segments: FoundSegments,
    options: PredictOptions,
    coordinates: MapCoordinates | None,
) -> dict[str, Any]:
    """Return the report of an image for JSON: the number of objects of each class, and the share of the image they
    cover.
    """
    height, width = segments.size
    return {
        "image": str(job.image.path),
        "height": height,
        "width": width,
        "model": options.model,
        "protocol": segments.protocol,
        "device": str(segmenter.device),
        "dtype": str(segmenter.model.dtype).removeprefix("torch."),
        **polygon_facts(coordinates, options),
        "objects": sum(found_object.label not in segments.stuff for found_object in segments.objects),
        "classes": class_rows(segments),
    }


def class_rows(segments: FoundSegments) -> list[dict[str, Any]]:
    """Return the number of objects of each class that occurs, the most frequent first; stuff has one segment."""
    rows: list[Mapping[str, Any]] = []
    areas: dict[str, int] = {}
    for found_object in segments.objects:
        name = segments.names[found_object.label]
        areas[name] = areas.get(name, 0) + found_object.area
    for name, count in segments.counts().items():
        share = areas[name] / (segments.size[0] * segments.size[1])
        index = segments.names.index(name)
        rows.append(
            {
                "id": index,
                "name": name,
                "color": segments.palette[index].tolist(),
                "objects": count,
                "pixels": areas[name],
                "share": round(share, 6),
            }
        )
    return [dict(row) for row in rows]


__all__ = ["InstanceRaster", "class_rows", "object_report", "object_savers", "predict_objects", "save_table"]
