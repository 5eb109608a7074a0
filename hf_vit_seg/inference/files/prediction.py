"""Segment many image files and write, for each, a label map, an overlay and a report."""

import time
import typing
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.atomic_io import json_text, write_files
from hf_vit_seg.data.images.files import MAX_PIXELS, ImageFile, ImageFileError, real_path
from hf_vit_seg.data.images.georeference import GeoTags, file_georeference
from hf_vit_seg.data.images.pixels import File
from hf_vit_seg.drawing.overlays import save_overlay
from hf_vit_seg.errors import HfVitSegError, OutOfMemory, error_sentence, is_out_of_memory
from hf_vit_seg.inference.dense.image_preparation import PreparedImage, milliseconds_since
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.image_inputs import load_file
from hf_vit_seg.inference.segmentation import ClassCount, Segmentation, nodata_label
from hf_vit_seg.inference.segmenter import Segmenter

from .map_coordinates import MapCoordinates, PolygonCoordinates, map_coordinates
from .rasters import ArrayRaster
from .results import MapResults, Saver
from .suffixes import COCO, ENTROPY, GEOJSON, LABELS, OVERLAY, REPORT, SCORES, SUFFIXES, TOP

Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
AHEAD = 2  # images read and results written concurrently with the model


@dataclass(frozen=True)
class Job:
    """An image and the path of its results without suffix."""

    image: ImageFile
    target: Path

    def result(self, suffix: str) -> Path:
        """Return the path of one result."""
        return self.target.with_name(self.target.name + suffix)

    @property
    def done(self) -> bool:
        """Whether all results exist; the report is written last."""
        return self.result(REPORT).exists()

    @property
    def existing_result(self) -> Path | None:
        """An existing file that a result would overwrite, or None."""
        return next((path for path in map(self.result, SUFFIXES) if path.exists()), None)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job; `error` is the message of a failure, `bug` its exception unless it is a HfVitSegError.

    `pixel_polygons`: polygons have pixel coordinates because the image has no known CRS.
    """

    job: Job
    error: str | None = None
    bug: Exception | None = None
    pixel_polygons: bool = False


def failed_outcome(job: Job, error: Exception) -> Outcome:
    """Return the outcome of a job that raised an exception."""
    if is_out_of_memory(error):
        error = OutOfMemory(
            f"{job.image.path}: out of memory: use smaller windows (--window 512) or tiles (--tile 1024)"
        )
    return Outcome(job, failure_message(job, error), None if isinstance(error, HfVitSegError) else error)


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The options of `predict` for one or many images: the results to write, how images are read, and the model.

    `coordinates` is the coordinate system of polygons of georeferenced images in GeoJSON. Images above `max_pixels` are
    tiled; with `tile`, the side of a tile in pixels, all images in formats that support it. `frames` adds label maps of
    video frames, and `frame_rate` treats folders as videos. `boxes` is a file with the boxes of persons, for pose
    models. `threshold` is the lowest score of an object, by default 0.5. `model`, `device`, `dtype`, `convert` and
    `protocol` are arguments of `Segmenter.from_pretrained`.
    """

    model: str = ""
    overlay: bool = True
    opacity: float = 0.5
    scores: bool = False
    entropy: bool = False
    top_k: int = 0
    geojson: bool = False
    coco: bool = False
    coordinates: PolygonCoordinates = PolygonCoordinates.wgs84
    max_pixels: int = MAX_PIXELS
    tile: int | None = None
    frames: bool = False
    frame_rate: float | None = None
    boxes: Path | None = None
    threshold: float | None = None
    device: str | None = None
    dtype: str = "float32"
    convert: bool = True
    protocol: Protocol = field(default_factory=Protocol)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The suffixes of the results to write, except the report."""
        requested = {
            LABELS: True,
            OVERLAY: self.overlay,
            SCORES: self.scores,
            ENTROPY: self.entropy,
            TOP: self.top_k > 0,
            GEOJSON: self.geojson,
            COCO: self.coco,
        }
        return tuple(suffix for suffix, is_requested in requested.items() if is_requested)

    def uses_pixels(self, coordinates: MapCoordinates | None) -> bool:
        """Return whether polygons have pixel coordinates for lack of a known CRS."""
        return self.geojson and coordinates is None and self.coordinates is not PolygonCoordinates.pixels


# The options that apply to the models of each task.
ALL_TASKS = frozenset({"model", "device", "dtype", "convert", "overlay", "max_pixels"})
OPTIONS: Mapping[str, frozenset[str]] = {
    "segmentation": frozenset(PredictOptions.__dataclass_fields__) - {"boxes", "threshold"},
    "instance": ALL_TASKS
    | {"opacity", "geojson", "coco", "coordinates", "threshold", "frames", "frame_rate", "protocol"},
    "classification": ALL_TASKS | {"top_k"},
    "pose": ALL_TASKS | {"boxes"},
}
OPTION_NAMES = {
    "geojson": "--polygons",
    "coco": "--polygons",
    "protocol": "inference settings such as --size and --window",
}


def check_task_options(task: str, options: PredictOptions) -> None:
    """Raise HfVitSegError for options that do not apply to the task of the model."""
    defaults = PredictOptions()
    given = [name for name, value in vars(options).items() if value != getattr(defaults, name)]
    wrong = [OPTION_NAMES.get(name, f"--{name.replace('_', '-')}") for name in given if name not in OPTIONS[task]]
    if wrong:
        raise HfVitSegError(
            f"{options.model} is a model for {task}, which has no {', '.join(dict.fromkeys(wrong))}: remove them"
        )


@dataclass(frozen=True, eq=False)
class FileFacts:
    """Facts about an image file besides its pixels.

    The time to read it, the mask (H, W) of pixels without data or None, its georeference, and the coordinates of its
    polygons, None for pixels.
    """

    milliseconds: float = 0.0
    missing: np.ndarray | None = None
    georeference: GeoTags = ()
    coordinates: MapCoordinates | None = None


class Preparation(typing.Protocol):
    """Everything that reads an image for a model, without the model itself."""

    @property
    def channels(self) -> int:
        """The number of image channels."""
        ...

    @property
    def processor(self) -> Any:
        """The image processor."""
        ...

    def prepare_pixels(self, pixels: torch.Tensor, shown: Image.Image | None = None) -> PreparedImage:
        """Resize and normalize pixels (C, H, W)."""
        ...


def create_jobs(images: Sequence[ImageFile], out: Path, reserved: Sequence[Path] = ()) -> list[Job]:
    """Assign each image a unique target in `out` whose results do not overwrite inputs, nor the files `reserved`.

    Images of folders keep their subfolder. If two images differ only in suffix or folder, the name of the later one is
    extended by it, or finally by a number.
    """
    taken = {str(real_path(path)).casefold() for path in (*(image.path for image in images), *reserved)}
    jobs = []
    for image in images:
        for path in result_paths(image):
            job = Job(image, out / path)
            claims = {str(real_path(job.result(s))).casefold() for s in SUFFIXES}
            if not claims & taken:
                taken |= claims
                jobs.append(job)
                break
    return jobs


def result_paths(image: ImageFile) -> Iterator[Path]:
    """Iterate over candidate targets of an image, in order of preference."""
    plain = image.relative_path.with_suffix("")
    kind = image.relative_path.suffix.lstrip(".").lower() or "file"
    yield plain
    yield plain.with_name(f"{plain.name}_{kind}")
    yield Path(real_path(image.path).parent.name or "root") / plain
    number = 2
    while True:
        yield plain.with_name(f"{plain.name}_{kind}_{number}")
        number += 1


def predict(segmenter: Segmenter, jobs: Sequence[Job], options: PredictOptions) -> Iterator[Outcome]:
    """Segment the images of jobs, see `run_jobs`."""

    def segment(loaded: tuple[PreparedImage, FileFacts]) -> tuple[Segmentation, FileFacts]:
        prepared, facts = loaded
        return segmenter.segment(prepared, options.scores, entropy=options.entropy, top_k=options.top_k), facts

    return run_jobs(
        jobs,
        read=lambda job: read_job(segmenter, job, options),
        compute=segment,
        write=lambda job, found: write_job(segmenter, job, found[0], found[1], options),
    )


def run_jobs(
    jobs: Sequence[Job],
    read: Callable[[Job], Loaded],
    compute: Callable[[Loaded], Result],
    write: Callable[[Job, Result], Outcome],
) -> Iterator[Outcome]:
    """Run jobs in order; a failure affects only its job. Files are read and written concurrently with the model."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading: deque[Future[Loaded]] = deque()
        writing: deque[Future[Outcome]] = deque()
        upcoming = iter(jobs)
        for job in jobs:
            while len(reading) < AHEAD and (following := next(upcoming, None)) is not None:
                reading.append(reader.submit(read, following))
            try:
                result = compute(reading.popleft().result())
            except Exception as error:
                writing.append(writer.submit(failed_outcome, job, error))
            else:
                writing.append(writer.submit(write, job, result))
            while len(writing) > AHEAD:
                yield writing.popleft().result()
        for outcome in writing:
            yield outcome.result()


def failure_message(job: Job, error: Exception) -> str:
    """Format the error of a job with its image and, for a bug, the type of the exception."""
    if isinstance(error, ImageFileError):
        return str(error)
    text = error_sentence(error)
    if not isinstance(error, HfVitSegError):
        return f"{job.image.path}: prediction failed with {type(error).__name__}: {text}"
    return text if text.startswith(f"{job.image.path}:") else f"{job.image.path}: {text}"


def read_job(segmenter: Segmenter, job: Job, options: PredictOptions) -> tuple[PreparedImage, FileFacts]:
    """Read and preprocess a job's image."""
    return read_image(segmenter, job.image.path, options)


def read_image(preparation: Preparation, file: File, options: PredictOptions) -> tuple[PreparedImage, FileFacts]:
    """Read and preprocess an image. Only files of a disk have a georeference. Raises ImageFileError."""
    start = time.perf_counter()
    image, shown, missing = load_file(
        file, preparation.channels, preparation.processor, options.max_pixels, options.overlay
    )
    milliseconds = milliseconds_since(start)
    georeference = file_georeference(file) if isinstance(file, Path) else ()
    coordinates = None
    if options.geojson and isinstance(file, Path):
        size = image.shape[1], image.shape[2]
        coordinates = map_coordinates(file, georeference, size, options.coordinates)
    prepared = preparation.prepare_pixels(image, shown)
    facts = FileFacts(milliseconds, None if missing is None else missing.numpy(), georeference, coordinates)
    return prepared, facts


def write_job(
    segmenter: Segmenter, job: Job, result: Segmentation, facts: FileFacts, options: PredictOptions
) -> Outcome:
    """Write all results of a job atomically."""
    try:
        if facts.missing is not None:
            result = result.hide(facts.missing)
        maps = map_results(result, facts)
        savers = {suffix: saver(suffix, job, result, maps, options) for suffix in options.suffixes}
        if facts.georeference:
            savers |= maps.tiffs()
        content = segmentation_report(segmenter, job, result, facts, options)
    except Exception as error:
        return failed_outcome(job, error)
    outcome = write_results(job, savers, content)
    return replace(outcome, pixel_polygons=outcome.error is None and options.uses_pixels(facts.coordinates))


def write_results(job: Job, savers: dict[str, Saver], content: dict[str, Any]) -> Outcome:
    """Write the files of a job, by suffix, and last its report, atomically."""
    text = json_text(content, indent=2)
    savers[REPORT] = lambda path: path.write_text(text, encoding="utf-8")
    try:
        write_files({job.result(suffix): save for suffix, save in savers.items()})
    except Exception as error:
        return failed_outcome(job, error)
    return Outcome(job)


def map_results(result: Segmentation, facts: FileFacts) -> MapResults:
    """Return the maps of a segmentation as rasters."""
    maps = {"labels": result.label_map, "scores": result.scores, "entropy": result.entropy}
    return MapResults(
        maps={name: ArrayRaster(values) for name, values in maps.items() if values is not None},
        names=result.names,
        palette=result.palette,
        georeference=facts.georeference,
        coordinates=facts.coordinates,
        nodata=None if facts.missing is None else nodata_label(len(result.names)),
    )


def saver(suffix: str, job: Job, result: Segmentation, maps: MapResults, options: PredictOptions) -> Saver:
    """Return the function that writes one kind of result to a path."""
    table: dict[str, Saver] = {
        LABELS: lambda path: result.label_image().save(path, compress_type=zlib.Z_RLE),
        OVERLAY: lambda path: save_overlay(result.overlay(options.opacity), path),
        SCORES: lambda path: result.score_image().save(path),
        ENTROPY: lambda path: result.entropy_image().save(path),
        TOP: lambda path: save_top_classes(result, path),
        GEOJSON: maps.save_geojson,
        COCO: lambda path: maps.save_coco(path, job.image.path.name),
    }
    return table[suffix]


def save_top_classes(result: Segmentation, path: Path) -> None:
    """Save the top classes of each pixel and their probabilities: `classes` and `scores` (float16), (k, H, W)."""
    if result.top_classes is None or result.top_scores is None:
        raise HfVitSegError("Top classes were not computed: call the segmenter with top_k=3")
    np.savez_compressed(path, classes=result.top_classes, scores=result.top_scores.astype(np.float16))


def segmentation_report(
    segmenter: Segmenter, job: Job, result: Segmentation, facts: FileFacts, options: PredictOptions
) -> dict[str, Any]:
    """Return the report of an image for JSON: shares, scores and entropy are 0 .. 1, timings in milliseconds.

    Pixels without data do not count for shares and means.
    """
    height, width = result.label_map.shape
    maps = {"score": result.scores, "entropy": result.entropy}
    counted = slice(None) if facts.missing is None else ~facts.missing
    means = {name: found[counted].mean() for name, found in maps.items() if found is not None and found[counted].size}
    return {
        "image": str(job.image.path),
        "height": height,
        "width": width,
        "model": options.model,
        "protocol": result.protocol,
        "device": str(segmenter.device),
        "dtype": str(segmenter.model.dtype).removeprefix("torch."),
        "timings_ms": rounded_timings(facts, result.timings),
        **{f"mean_{name}": round(float(mean), 6) for name, mean in means.items()},
        **polygon_facts(facts.coordinates, options),
        **({} if facts.missing is None else {"ignored_pixels": int(facts.missing.sum())}),
        "classes": class_rows(result.counts()),
    }


def rounded_timings(facts: FileFacts, timings: Mapping[str, float]) -> dict[str, float]:
    """Return the milliseconds of each step, with the time to read the file."""
    return {step: round(duration, 2) for step, duration in {"read": facts.milliseconds, **timings}.items()}


def polygon_facts(coordinates: MapCoordinates | None, options: PredictOptions) -> dict[str, str]:
    """Return the entry of a report on the coordinates of polygons in GeoJSON, if there are any."""
    kind = PolygonCoordinates.pixels if coordinates is None else coordinates.kind
    return {"polygon_coordinates": kind.value} if options.geojson else {}


def class_rows(counts: Sequence[ClassCount]) -> list[dict[str, Any]]:
    """Convert class counts for JSON."""
    return [
        {"id": c.index, "name": c.name, "color": c.color, "pixels": c.pixels, "share": round(c.share, 6)}
        for c in counts
    ]
