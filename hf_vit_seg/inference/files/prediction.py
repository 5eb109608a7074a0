"""Segment many image files and write, for each, a label map, an overlay and a report."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hf_vit_seg.atomic_io import json_text, write_files
from hf_vit_seg.data.images.files import MAX_PIXELS, ImageFile, ImageFileError, real_path
from hf_vit_seg.errors import HfVitSegError, OutOfMemory, error_sentence, is_out_of_memory
from hf_vit_seg.inference.dense.image_preparation import PreparedImage, milliseconds_since
from hf_vit_seg.inference.image_inputs import load_file
from hf_vit_seg.inference.segmentation import ClassCount, Segmentation
from hf_vit_seg.inference.segmenter import Segmenter

LABELS, OVERLAY, SCORES, REPORT = ".png", ".overlay.png", ".scores.png", ".json"
ENTROPY, TOP, GEOJSON, COCO = ".entropy.png", ".top.npz", ".geojson", ".coco.json"
TIFF, VIDEO, FRAMES = ".labels.tif", ".overlay.mp4", ".frames"  # of images in parts, and of videos
SUFFIXES = (REPORT, LABELS, OVERLAY, SCORES, ENTROPY, TOP, GEOJSON, COCO, TIFF, VIDEO, FRAMES)
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")
AHEAD = 2  # images read and results written concurrently with the model


@dataclass(frozen=True)
class Job:
    """An image and the path of its results without suffix."""

    image: ImageFile
    target: Path

    def result(self, suffix: str) -> Path:
        """The path of one result."""
        return self.target.with_name(self.target.name + suffix)

    @property
    def done(self) -> bool:
        """Whether all results exist; the report is written last."""
        return self.result(REPORT).exists()

    @property
    def existing(self) -> Path | None:
        """An existing file that a result would overwrite, or None."""
        return next((path for path in map(self.result, SUFFIXES) if path.exists()), None)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job; `error` is the message of a failure, `bug` its exception unless it is a HfVitSegError."""

    job: Job
    error: str | None = None
    bug: Exception | None = None


def failed_outcome(job: Job, error: Exception) -> Outcome:
    """The outcome of a job that raised an exception."""
    if is_out_of_memory(error):
        error = OutOfMemory(
            f"{job.image.path}: out of memory: use smaller windows (--window 512) or tiles (--tile 1024)"
        )
    return Outcome(job, failure_message(job, error), None if isinstance(error, HfVitSegError) else error)


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The results to write, and how images are read.

    Images above `max_pixels` are tiled; with `tile`, the side of the tiles, all images that support it are. `frames`
    adds label maps of video frames, and `frame_rate` treats folders as videos. `boxes` is a file with the boxes of
    persons, for pose models.
    """

    model: str = ""
    overlay: bool = True
    opacity: float = 0.5
    scores: bool = False
    entropy: bool = False
    top_k: int = 0
    geojson: bool = False
    coco: bool = False
    max_pixels: int = MAX_PIXELS
    tile: int | None = None
    frames: bool = False
    frame_rate: float | None = None
    boxes: Path | None = None

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
        return tuple(suffix for suffix, wanted in requested.items() if wanted)


def plan(images: Sequence[ImageFile], out: Path, reserved: Sequence[Path] = ()) -> list[Job]:
    """Assign each image a unique target in `out` whose results do not overwrite inputs, nor the files `reserved`.

    Images of folders keep their subfolder. If two images differ only in suffix or folder, the name of the later one is
    extended by it, or finally by a number.
    """
    taken = {str(real_path(path)).casefold() for path in (*(image.path for image in images), *reserved)}
    jobs = []
    for image in images:
        for place in places(image):
            job = Job(image, out / place)
            claims = {str(real_path(job.result(s))).casefold() for s in SUFFIXES}
            if not claims & taken:
                taken |= claims
                jobs.append(job)
                break
    return jobs


def places(image: ImageFile) -> Iterator[Path]:
    """Iterate over candidate targets of an image, in order of preference."""
    plain = image.place.with_suffix("")
    kind = image.place.suffix.lstrip(".").lower() or "file"
    yield plain
    yield plain.with_name(f"{plain.name}_{kind}")
    yield Path(real_path(image.path).parent.name or "root") / plain
    number = 2
    while True:
        yield plain.with_name(f"{plain.name}_{kind}_{number}")
        number += 1


def predict(segmenter: Segmenter, jobs: Sequence[Job], options: PredictOptions) -> Iterator[Outcome]:
    """Segment the images of jobs, see `run_jobs`."""

    def segment(loaded: tuple[PreparedImage, float]) -> tuple[Segmentation, float]:
        prepared, milliseconds = loaded
        return segmenter.segment(prepared, options.scores, entropy=options.entropy, top_k=options.top_k), milliseconds

    return run_jobs(
        jobs,
        read=lambda job: read(segmenter, job, options),
        compute=segment,
        write=lambda job, found: write(segmenter, job, found[0], found[1], options),
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


def read(segmenter: Segmenter, job: Job, options: PredictOptions) -> tuple[PreparedImage, float]:
    """Read and preprocess a job's image; also return the milliseconds for reading the file."""
    start = time.perf_counter()
    image, shown = load_file(job.image.path, segmenter.channels, segmenter.processor, options.max_pixels)
    milliseconds = milliseconds_since(start)
    prepared = segmenter.prepare(image)
    return replace(prepared, picture=prepared.picture or shown), milliseconds


def write(
    segmenter: Segmenter, job: Job, result: Segmentation, milliseconds: float, options: PredictOptions
) -> Outcome:
    """Write all results of a job atomically."""
    savers = {suffix: saver(suffix, job, result, options) for suffix in options.suffixes}
    return write_results(job, savers, report(segmenter, job, result, milliseconds, options))


def write_results(job: Job, savers: dict[str, Callable[[Path], Any]], content: dict[str, Any]) -> Outcome:
    """Write the files of a job, by suffix, and last its report, atomically."""
    text = json_text(content, indent=2)
    savers[REPORT] = lambda path: path.write_text(text, encoding="utf-8")
    try:
        write_files({job.result(suffix): save for suffix, save in savers.items()})
    except Exception as error:
        return failed_outcome(job, error)
    return Outcome(job)


def saver(suffix: str, job: Job, result: Segmentation, options: PredictOptions) -> Callable[[Path], Any]:
    """The function that writes one kind of result to a path."""
    table: dict[str, Callable[[Path], Any]] = {
        LABELS: lambda path: result.label_image().save(path),
        OVERLAY: lambda path: result.overlay(options.opacity).save(path),
        SCORES: lambda path: result.score_image().save(path),
        ENTROPY: lambda path: result.entropy_image().save(path),
        TOP: lambda path: save_top_classes(result, path),
        GEOJSON: lambda path: path.write_text(json_text(result.geojson()), encoding="utf-8"),
        COCO: lambda path: path.write_text(json_text(result.coco(job.image.path.name)), encoding="utf-8"),
    }
    return table[suffix]


def save_top_classes(result: Segmentation, path: Path) -> None:
    """Save the top classes of each pixel and their probabilities: `classes` and `scores` (float16), (k, H, W)."""
    if result.top_classes is None or result.top_scores is None:
        raise HfVitSegError("Top classes were not computed: call the segmenter with top_k=3")
    np.savez_compressed(path, classes=result.top_classes, scores=result.top_scores.astype(np.float16))


def report(
    segmenter: Segmenter, job: Job, result: Segmentation, milliseconds: float, options: PredictOptions
) -> dict[str, Any]:
    """The report of an image for JSON: shares, scores and entropy are 0 .. 1, timings in milliseconds."""
    height, width = result.label_map.shape
    timings = {"read": milliseconds, **result.timings}
    means = {"score": result.scores, "entropy": result.entropy}
    return {
        "image": str(job.image.path),
        "height": height,
        "width": width,
        "model": options.model,
        "protocol": result.protocol,
        "device": str(segmenter.device),
        "dtype": str(segmenter.model.dtype).removeprefix("torch."),
        "timings_ms": {step: round(duration, 2) for step, duration in timings.items()},
        **{f"mean_{name}": round(float(found.mean()), 6) for name, found in means.items() if found is not None},
        "classes": class_rows(result.counts()),
    }


def class_rows(counts: Sequence[ClassCount]) -> list[dict[str, Any]]:
    """Convert class counts for JSON."""
    return [
        {"id": c.index, "name": c.name, "color": c.color, "pixels": c.pixels, "share": round(c.share, 6)}
        for c in counts
    ]
