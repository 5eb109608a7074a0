"""Terminal output of `predict`."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging

from hf_vit_seg.error_reporting import (
    BUG,
    DONE,
    FAILED,
    error_location,
    is_quiet,
    print_json,
    status_console,
    traceback_text,
)
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.files.classification_and_pose import classify, estimate_poses
from hf_vit_seg.inference.files.objects import predict_objects
from hf_vit_seg.inference.files.prediction import Job, Outcome, PredictOptions, failed_outcome, predict
from hf_vit_seg.inference.files.tables import write_tables
from hf_vit_seg.inference.tiles.objects import predict_tiled_objects
from hf_vit_seg.inference.tiles.prediction import Progress as TileProgress
from hf_vit_seg.inference.tiles.prediction import needs_tiles, predict_tiled
from hf_vit_seg.inference.video.prediction import is_video, predict_video
from hf_vit_seg.records import RecordError, read_record

from .classifier import Classifier
from .instance_segmenter import THRESHOLD, InstanceSegmenter
from .pose_estimator import PoseEstimator
from .segmenter import Segmenter

PLACE = "protocol"
NOTHING = "Nothing to do: every image has results already."
COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def protocol_from_text(scales: str | None = None, **settings: Any) -> Protocol:
    """Build a protocol from command-line options; None is unset, `scales` are comma-separated numbers.

    RecordError names the option.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    if scales is not None:
        given["scales"] = [part.strip() for part in scales.split(",")]
    try:
        return read_record(Protocol, given, PLACE)
    except RecordError as error:
        raise RecordError(re.sub(rf"^{PLACE}\.(\w+)", option_name, str(error))) from None


def option_name(field: re.Match[str]) -> str:
    """Return the option of `predict` for a field of a protocol."""
    return "--protocol" if field[1] == "preset" else f"--{field[1].replace('_', '-')}"


def run_task(
    task: str,
    model: str,
    device: str | None,
    dtype: str,
    planned: Sequence[Job],
    skip_existing: bool,
    options: PredictOptions,
    out: Path,
    *,
    convert: bool = True,
) -> int:
    """Run the jobs of a classification or pose model, see `run`, and write the tables.

    With `skip_existing`, images that have results and earlier rows of the tables are kept.
    """
    console = status_console()
    jobs = [job for job in planned if not (skip_existing and job.done)]
    if not jobs:
        write_tables(task, planned, out, skip_existing)
        console.print(NOTHING)
        print_json(lambda: result_content(task, out, 0, 0, [], 0.0, None))
        return DONE
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    start, failed = time.perf_counter(), set[Job]()
    if task == "classification":
        loaded: Any = Classifier.from_pretrained(model, device, dtype, convert=convert)
        predict_images, done_word = partial(classify, loaded), "classified"
    else:
        loaded = PoseEstimator.from_pretrained(model, device, dtype, convert=convert)
        predict_images, done_word = partial(estimate_poses, loaded), "searched for keypoints"
    videos = [job for job in jobs if is_video(job)]
    outcomes = predict_images([job for job in jobs if job not in videos], options)
    with show_progress() as progress:
        failures = Failures(progress)
        show(collect_failures(outcomes, failed), len(jobs) - len(videos), failures, "predicting")
        for job in videos:
            failures.add(f"{job.image.path}: videos require a segmentation model; extract its frames", None)
    write_tables(task, [job for job in planned if job not in failed and job not in videos], out, skip_existing)
    seconds, done = time.perf_counter() - start, len(jobs) - failures.count
    console.print(
        f"{done} of {len(jobs)} images {done_word} in {seconds:.1f} s on {loaded.device}, results in {escape(str(out))}"
    )
    print_json(lambda: result_content(task, out, len(jobs), done, failures.errors, seconds, loaded.device))
    return failures.exit_code


def collect_failures(outcomes: Iterator[Outcome], failed: set[Job]) -> Iterator[Outcome]:
    """Pass outcomes on, and add the jobs of failures to a set."""
    for outcome in outcomes:
        if outcome.error is not None:
            failed.add(outcome.job)
        yield outcome


def run(
    model: str,
    device: str | None,
    dtype: str,
    jobs: Sequence[Job],
    options: PredictOptions,
    out: Path,
    protocol: Protocol | None = None,
    *,
    convert: bool = True,
    task: str = "segmentation",
) -> int:
    """Run all jobs of a model for segmentation or objects, report failures, and return the exit code."""
    console = status_console()
    if not jobs:
        console.print(NOTHING)
        print_json(lambda: result_content(task, out, 0, 0, [], 0.0, None))
        return DONE
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    segmenter = load_segmenter(task, model, device, dtype, options, protocol or Protocol(), convert)
    finds_objects = isinstance(segmenter, InstanceSegmenter)
    predict_images: Any = predict_objects if finds_objects else predict
    predict_large: Any = predict_tiled_objects if finds_objects else predict_tiled
    start = time.perf_counter()
    videos = [job for job in jobs if is_video(job)]
    tiled = [job for job in jobs if job not in videos and needs_tiles(job, options)]
    whole = [job for job in jobs if job not in videos and job not in tiled]
    with show_progress() as progress:
        failures = Failures(progress)
        show(predict_images(segmenter, whole, options), len(whole), failures)
        for job in tiled:
            show_tiles(predict_large(segmenter, job, options), job, failures)
        for job in videos:
            show_video(segmenter, job, options, failures)
    seconds = time.perf_counter() - start
    done = len(jobs) - failures.count
    if failures.pixel_polygons:
        console.print(
            f"{failures.pixel_polygons} of {len(jobs)} images have no known coordinate reference system: their "
            "polygons are in pixels, x to the right and y down"
        )
    console.print(
        f"{done} of {len(jobs)} {'files' if videos else 'images'} segmented in {seconds:.1f} s on {segmenter.device}, "
        f"results in {escape(str(out))}"
    )
    print_json(lambda: result_content(task, out, len(jobs), done, failures.errors, seconds, segmenter.device))
    return failures.exit_code


def result_content(
    task: str, out: Path, images: int, done: int, errors: Sequence[str], seconds: float, device: Any
) -> dict[str, Any]:
    """Return the JSON value of a run: numbers of images and of those with results, and the errors of the others."""
    counts = {"images": images, "done": done, "errors": list(errors), "seconds": round(seconds, 3)}
    return {"task": task, "out": str(out), **counts, "device": None if device is None else str(device)}


def show_progress() -> Progress:
    """Return a progress bar on stderr, which `--quiet` hides; failures are printed above it."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    return Progress(*COLUMNS, console=console, transient=True, disable=is_quiet())


def load_segmenter(
    task: str,
    model: str,
    device: str | None,
    dtype: str,
    options: PredictOptions,
    protocol: Protocol,
    convert: bool,
) -> Segmenter | InstanceSegmenter:
    """Load a model for segmentation or objects with a protocol. Raises ModelError or PredictionError."""
    if task != "instance":
        return Segmenter.from_pretrained(model, device, dtype, protocol, convert=convert)
    threshold = THRESHOLD if options.threshold is None else options.threshold
    return InstanceSegmenter.from_pretrained(model, device, dtype, threshold, protocol, convert=convert)


class Failures:
    """Reports failed jobs, and for bugs one traceback of each kind; counts the images with polygons in pixels."""

    def __init__(self, progress: Progress):
        self.progress, self.count, self.kinds = progress, 0, set[tuple[str, str, int]]()
        self.pixel_polygons = 0
        self.errors: list[str] = []

    @property
    def exit_code(self) -> int:
        """DONE, FAILED, or BUG if any failure is a bug."""
        return BUG if self.kinds else FAILED if self.count else DONE

    def print_message(self, text: str) -> None:
        """Print a line that is not an error."""
        if not is_quiet():
            self.progress.console.print(text)

    def add(self, text: str, bug: Exception | None) -> None:
        """Report a failure."""
        self.count += 1
        self.errors.append(text)
        if bug is not None and error_location(bug) not in self.kinds:
            self.kinds.add(error_location(bug))
            self.progress.console.print(escape(traceback_text(bug)))
        self.progress.console.print(f"[red]failed[/red] {escape(text)}")


def show(outcomes: Iterator[Outcome], total: int, failures: Failures, task: str = "segmenting") -> None:
    """Show the progress of images."""
    for outcome in failures.progress.track(outcomes, total=total, description=task) if total else ():
        failures.pixel_polygons += outcome.pixel_polygons
        if outcome.error is not None:
            failures.add(outcome.error, outcome.bug)


def show_tiles(states: Iterator[TileProgress], job: Job, failures: Failures) -> None:
    """Show the progress of the tiles of a large image."""
    progress = failures.progress
    task = progress.add_task(f"{escape(job.image.path.name)}, tiles", total=None)
    with report_failure(job, failures):
        state = None
        for number, state in enumerate(states):
            if state.resumed and not number:
                text = f"{job.image.path}: resumed, {state.resumed} of {state.total} tiles are done"
                failures.print_message(escape(text))
            progress.update(task, completed=state.done, total=state.total)
        failures.pixel_polygons += state is not None and state.pixel_polygons
    progress.remove_task(task)


def show_video(segmenter: Segmenter | InstanceSegmenter, job: Job, options: PredictOptions, failures: Failures) -> None:
    """Show the progress of the frames of a video."""
    progress = failures.progress
    task = progress.add_task(f"{escape(job.image.path.name)}, frames", total=None)
    with report_failure(job, failures):
        state = None
        for state in predict_video(segmenter, job, options):
            progress.update(task, completed=state.done, total=state.total or None)
        if state is not None:
            text = f"{job.image.path}: {state.done} frames, {state.frames_per_second:.2f} per second"
            failures.print_message(escape("; ".join([text, *state.notes])))
    progress.remove_task(task)


@contextmanager
def report_failure(job: Job, failures: Failures) -> Iterator[None]:
    """Report an exception as the failure of one job."""
    try:
        yield
    except Exception as error:  # a failure must not stop the other files
        outcome = failed_outcome(job, error)
        failures.add(outcome.error or "", outcome.bug)
