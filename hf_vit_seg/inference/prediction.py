"""Segment many image files and write, for each, a label map, an overlay and a report."""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .image_files import MAX_PIXELS, ImageFile, ImageFileError, read_image
from .segmentation import Segmentation
from .segmenter import Prepared, Segmenter, milliseconds_since

LABELS, OVERLAY, SCORES, REPORT = ".png", ".overlay.png", ".scores.png", ".json"
AHEAD = 2  # images that are read, and results that are written, beside the model's work


@dataclass(frozen=True)
class Job:
    """An image and the path of its results without their suffix."""

    image: ImageFile
    target: Path

    def result(self, suffix: str) -> Path:
        """The path of one result."""
        return self.target.with_name(self.target.name + suffix)

    @property
    def done(self) -> bool:
        """Whether the image has all its results: the report is the last to be written."""
        return self.result(REPORT).exists()

    @property
    def existing(self) -> Path | None:
        """A file that a result would replace."""
        return next((path for path in map(self.result, (REPORT, LABELS, OVERLAY, SCORES)) if path.exists()), None)


@dataclass(frozen=True)
class Outcome:
    """What became of a job: an `error` in one sentence, or results."""

    job: Job
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is written for each image, and up to which size images are read."""

    model: str = ""
    overlay: bool = True
    opacity: float = 0.5
    scores: bool = False
    max_pixels: int = MAX_PIXELS


def plan(images: Sequence[ImageFile], out: Path) -> list[Job]:
    """Give every image a target below `out` that is no other's and whose results overwrite no input.

    A folder's images keep their sub-folder. Where two images differ in suffix or folder only, the later one's name
    gets that in addition, and a number as the last resort.
    """
    taken = {str(image.path.resolve()).casefold() for image in images}
    jobs = []
    for image in images:
        for place in places(image):
            job = Job(image, out / place)
            claims = {str(job.result(s).resolve()).casefold() for s in (LABELS, OVERLAY, SCORES, REPORT)}
            if not claims & taken:
                taken |= claims
                jobs.append(job)
                break
    return jobs


def places(image: ImageFile) -> Iterator[Path]:
    """Targets for an image, the most desired first, without end."""
    plain = image.place.with_suffix("")
    kind = image.place.suffix.lstrip(".").lower() or "file"
    yield plain
    yield plain.with_name(f"{plain.name}_{kind}")
    yield Path(image.path.resolve().parent.name or "root") / plain
    number = 2
    while True:
        yield plain.with_name(f"{plain.name}_{kind}_{number}")
        number += 1


def predict(segmenter: Segmenter, jobs: Sequence[Job], wishes: Wishes) -> Iterator[Outcome]:
    """Do the jobs in order; a failure ends its own job only. Reading and writing go on beside the model."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reading: deque[Future[tuple[Prepared, float]]] = deque()
        writing: deque[Future[Outcome]] = deque()
        upcoming = iter(jobs)
        for job in jobs:
            while len(reading) < AHEAD and (following := next(upcoming, None)) is not None:
                reading.append(reader.submit(read, segmenter, following, wishes))
            try:
                prepared, milliseconds = reading.popleft().result()
                result = segmenter.segment(prepared, wishes.scores)
            except Exception as error:
                writing.append(writer.submit(Outcome, job, sentence(job, error)))
            else:
                writing.append(writer.submit(write, segmenter, job, result, milliseconds, wishes))
            while len(writing) > AHEAD:
                yield writing.popleft().result()
        for outcome in writing:
            yield outcome.result()


def sentence(job: Job, error: Exception) -> str:
    """What went wrong with a job."""
    if isinstance(error, ImageFileError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{job.image.path}: {text[:300] or type(error).__name__}"


def read(segmenter: Segmenter, job: Job, wishes: Wishes) -> tuple[Prepared, float]:
    """A job's image, ready for the model, and the milliseconds that reading the file took."""
    start = time.perf_counter()
    image = read_image(job.image.path, wishes.max_pixels)
    milliseconds = milliseconds_since(start)
    return segmenter.prepare(image), milliseconds


def write(segmenter: Segmenter, job: Job, result: Segmentation, milliseconds: float, wishes: Wishes) -> Outcome:
    """Write all results of a job, or none of them."""
    savers: dict[str, Callable[[Path], Any]] = {LABELS: result.label_image().save}
    if wishes.overlay:
        savers[OVERLAY] = result.overlay(wishes.opacity).save
    if wishes.scores:
        savers[SCORES] = result.score_image().save
    text = json.dumps(report(segmenter, job, result, milliseconds, wishes), indent=2, ensure_ascii=False) + "\n"
    savers[REPORT] = lambda path: path.write_text(text, encoding="utf-8")
    try:
        write_together({job.result(suffix): save for suffix, save in savers.items()})
    except Exception as error:
        return Outcome(job, sentence(job, error))
    return Outcome(job)


def write_together(files: dict[Path, Callable[[Path], Any]]) -> None:
    """Write files under temporary names and give them their own when all are complete."""
    temporary = {path: path.with_name(f".{os.getpid()}.{path.name}") for path in files}
    try:
        for path, save in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            save(temporary[path])
        for path, written in temporary.items():
            os.replace(written, path)
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)


def report(segmenter: Segmenter, job: Job, result: Segmentation, milliseconds: float, wishes: Wishes) -> dict[str, Any]:
    """What is known of an image and its label map, for JSON: shares are of 0 .. 1, times in milliseconds."""
    height, width = result.label_map.shape
    timings = {"read": milliseconds, **result.timings}
    return {
        "image": str(job.image.path),
        "height": height,
        "width": width,
        "model": wishes.model,
        "protocol": result.protocol,
        "device": str(segmenter.device),
        "dtype": str(segmenter.model.dtype).removeprefix("torch."),
        "timings_ms": {step: round(duration, 2) for step, duration in timings.items()},
        "classes": [
            {"id": c.index, "name": c.name, "color": c.colour, "pixels": c.pixels, "share": round(c.share, 6)}
            for c in result.counts()
        ],
    }
