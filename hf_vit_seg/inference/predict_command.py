"""Terminal output of `predict`."""

import re
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
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
from hf_vit_seg.inference.files.object_files import predict_objects
from hf_vit_seg.inference.files.prediction import Job, Outcome, PredictOptions, failed_outcome, predict
from hf_vit_seg.inference.files.tables import TABLES, write_tables
from hf_vit_seg.inference.tiles.tiled_objects import predict_tiled_objects
from hf_vit_seg.inference.tiles.tiled_prediction import Progress as TileProgress
from hf_vit_seg.inference.tiles.tiled_prediction import needs_tiles, predict_tiled
from hf_vit_seg.inference.video.video_prediction import is_video, predict_video
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


@dataclass(frozen=True)
class PredictRun:
    """A call of `predict` that runs in this process.

    With `skip_existing`, jobs that have results are skipped, and earlier rows of tables are kept.
    """

    task: str
    jobs: Sequence[Job]
    options: PredictOptions
    out: Path
    skip_existing: bool

    @property
    def pending(self) -> list[Job]:
        """The jobs to run."""
        return [job for job in self.jobs if not (self.skip_existing and job.done)]

    def write_tables(self, failed: Set[Job] = frozenset()) -> None:
        """Write the tables of the task, if it has any, over all jobs except those that failed."""
        if self.task in TABLES:
            write_tables(self.task, [job for job in self.jobs if job not in failed], self.out, self.skip_existing)

    def print_result(self, images: int, failures: "Failures | None", seconds: float, device: Any) -> None:
        """Print the numbers of images and of those with results, and the errors of the others as JSON."""
        errors = [] if failures is None else failures.errors
        counts = {"images": images, "done": images - len(errors), "errors": errors, "seconds": round(seconds, 3)}
        where = {"device": None if device is None else str(device)}
        print_json(lambda: {"task": self.task, "out": str(self.out), **counts, **where})


@dataclass(frozen=True)
class Predictor:
    """A loaded model, and the functions that write the results of its jobs; without `tiles`, images are never tiled.

    `done` is the participle for the summary, such as "segmented".
    """

    model: Any
    done: str
    images: Callable[[Sequence[Job], PredictOptions], Iterator[Outcome]]
    tiles: Callable[[Job, PredictOptions], Iterator[TileProgress]] | None = None

    @property
    def supports_video(self) -> bool:
        """Whether frames of videos can be predicted."""
        return isinstance(self.model, Segmenter | InstanceSegmenter)


def load_predictor(task: str, options: PredictOptions) -> Predictor:
    """Load the model of a task. Raises ModelError or PredictionError."""
    load = {"name": options.model, "device": options.device, "dtype": options.dtype, "convert": options.convert}
    if task == "classification":
        model: Any = Classifier.from_pretrained(**load)
        return Predictor(model, "classified", partial(classify, model))
    if task == "pose":
        model = PoseEstimator.from_pretrained(**load)
        return Predictor(model, "searched for keypoints", partial(estimate_poses, model))
    if task == "instance":
        threshold = THRESHOLD if options.threshold is None else options.threshold
        model = InstanceSegmenter.from_pretrained(**load, threshold=threshold, protocol=options.protocol)
        return Predictor(model, "segmented", partial(predict_objects, model), partial(predict_tiled_objects, model))
    model = Segmenter.from_pretrained(**load, protocol=options.protocol)
    return Predictor(model, "segmented", partial(predict, model), partial(predict_tiled, model))


def predict_jobs(run: PredictRun) -> int:
    """Load the model, run the pending jobs, report failures, and return the exit code."""
    console, jobs, options = status_console(), run.pending, run.options
    if not jobs:
        run.write_tables()
        console.print(NOTHING)
        run.print_result(0, None, 0.0, None)
        return DONE
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    predictor = load_predictor(run.task, options)
    start = time.perf_counter()
    videos = [job for job in jobs if is_video(job)]
    tiled = [job for job in jobs if predictor.tiles and job not in videos and needs_tiles(job, options)]
    whole = [job for job in jobs if job not in videos and job not in tiled]
    outcomes = predictor.images(whole, options)
    with show_progress() as progress:
        failures = Failures(progress)
        show(outcomes, len(whole), failures)
        for job in tiled:
            assert predictor.tiles is not None
            show_tiles(predictor.tiles(job, options), job, failures)
        for job in videos:
            show_video(predictor, job, options, failures)
    run.write_tables(failures.jobs)
    seconds, device = time.perf_counter() - start, predictor.model.device
    if failures.pixel_polygons:
        console.print(
            f"{failures.pixel_polygons} of {len(jobs)} images have no known coordinate reference system: their "
            "polygons are in pixels, x to the right and y down"
        )
    done, kind = len(jobs) - len(failures.errors), "files" if videos and predictor.supports_video else "images"
    console.print(
        f"{done} of {len(jobs)} {kind} {predictor.done} in {seconds:.1f} s on {device}, results in "
        f"{escape(str(run.out))}"
    )
    run.print_result(len(jobs), failures, seconds, device)
    return failures.exit_code


def show_progress() -> Progress:
    """Return a progress bar on stderr, which `--quiet` hides; failures are printed above it."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    return Progress(*COLUMNS, console=console, transient=True, disable=is_quiet())


class Failures:
    """Reports failed jobs, and for bugs one traceback of each kind; counts the images with polygons in pixels."""

    def __init__(self, progress: Progress):
        self.progress, self.jobs, self.kinds = progress, set[Job](), set[tuple[str, str, int]]()
        self.errors: list[str] = []
        self.pixel_polygons = 0

    @property
    def exit_code(self) -> int:
        """DONE, FAILED, or BUG if any failure is a bug."""
        return BUG if self.kinds else FAILED if self.errors else DONE

    def print_message(self, text: str) -> None:
        """Print a line that is not an error."""
        if not is_quiet():
            self.progress.console.print(text)

    def add(self, job: Job, text: str, bug: Exception | None = None) -> None:
        """Report the failure of a job: its message, and the exception if it is a bug."""
        self.jobs.add(job)
        self.errors.append(text)
        if bug is not None and error_location(bug) not in self.kinds:
            self.kinds.add(error_location(bug))
            self.progress.console.print(escape(traceback_text(bug)))
        self.progress.console.print(f"[red]failed[/red] {escape(text)}")


def show(outcomes: Iterator[Outcome], total: int, failures: Failures) -> None:
    """Show the progress of images."""
    for outcome in failures.progress.track(outcomes, total=total, description="predicting") if total else ():
        failures.pixel_polygons += outcome.pixel_polygons
        if outcome.error is not None:
            failures.add(outcome.job, outcome.error, outcome.bug)


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


def show_video(predictor: Predictor, job: Job, options: PredictOptions, failures: Failures) -> None:
    """Show the progress of the frames of a video; for models without support for videos, report a failure."""
    if not predictor.supports_video:
        return failures.add(job, f"{job.image.path}: videos require a segmentation model; extract its frames")
    progress = failures.progress
    task = progress.add_task(f"{escape(job.image.path.name)}, frames", total=None)
    with report_failure(job, failures):
        state = None
        for state in predict_video(predictor.model, job, options):
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
        failures.add(job, outcome.error or "", outcome.bug)
