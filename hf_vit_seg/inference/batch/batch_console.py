"""Terminal output of batch inference: progress with images per second and time left, failures, and a summary."""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from transformers.utils import logging

from hf_vit_seg.data.storage.addresses import is_address
from hf_vit_seg.error_reporting import BUG, DONE, FAILED, is_quiet, status_console

from .batch_inputs import PARQUET, TAR
from .processes import Event, ShardProgress
from .run import ERRORS, BatchRun, RunError, RunObserver, RunSummary, is_launched, segment_images
from .shard import ShardStatus

LINE_SECONDS = 30  # between lines of progress that is not shown in a terminal
SHOWN = 20  # failures that are printed; all are in the table of errors


class RateColumn(ProgressColumn):
    """Images per second."""

    def render(self, task: Task) -> Text:
        """Return the rate of the last seconds."""
        return Text("" if task.speed is None else f"{task.speed:.1f} images/s")


COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())


class BatchProgress(RunObserver):
    """Shows a progress bar, or without a terminal, a line every 30 seconds.

    Images of earlier commands do not count toward the rate.
    """

    def __init__(self, hidden: bool):
        self.bar = Progress(*COLUMNS, console=status_console(), transient=True, disable=hidden)
        self.task = self.bar.add_task("planning", total=None)
        self.shards, self.before, self.failures = Counter[int](), 0, 0
        self.bugs = set[str]()
        self.last_line = time.monotonic()

    def on_plan(self, images: int) -> None:
        """Show the number of images found so far."""
        self.bar.update(self.task, completed=images)

    def on_start(self, images: int, done: int) -> None:
        """Begin to count images that are segmented."""
        self.before = done
        self.bar.reset(self.task, total=images, completed=done, description="segmenting")

    def on_event(self, event: Event) -> None:
        """Show the progress of a shard, and its failures when it ends."""
        if isinstance(event, ShardProgress):
            self.shards[event.index] = event.done
        else:
            self.shards[event.index] = event.images
            self.show_failures(event)
        self.bar.update(self.task, completed=self.before + self.shards.total())
        self.show_line()

    def show_line(self) -> None:
        """Print the progress if there is no terminal and the last line is old, such as in the log of a job."""
        if self.bar.disable or self.bar.console.is_terminal or time.monotonic() < self.last_line + LINE_SECONDS:
            return
        self.last_line = time.monotonic()
        (task,) = self.bar.tasks
        left = "" if task.time_remaining is None else f", {timedelta(seconds=int(task.time_remaining))} left"
        rate = "" if task.speed is None else f", {task.speed:.1f} images/s"
        self.bar.console.print(f"{task.completed:.0f} of {task.total:.0f} images{rate}{left}")

    def show_failures(self, status: ShardStatus) -> None:
        """Print the failures of a shard, and each kind of traceback once."""
        for failure in status.failures:
            self.failures += 1
            location = failure.bug[-500:]
            if failure.bug and location not in self.bugs:
                self.bugs.add(location)
                self.bar.console.print(escape(failure.bug))
            if self.failures <= SHOWN:
                self.bar.console.print(f"[red]failed[/red] {escape(f'{failure.image}: {failure.reason}')}")


def run_batch(run: BatchRun) -> tuple[int, RunSummary]:
    """Segment the images of a run, show its progress, and return the exit code and the summary."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    start = time.perf_counter()
    observer = BatchProgress(hidden=is_quiet() or (run.rank > 0 and is_launched()))
    console = status_console()
    try:
        with observer.bar:
            summary = segment_images(run, observer)
    except KeyboardInterrupt:
        console.print("stopped; the same command continues the run")
        raise
    for line in summary_lines(run, summary, time.perf_counter() - start):
        console.print(escape(line))
    if any(failure.bug for failure in summary.failures):
        return BUG, summary
    return FAILED if summary.failures else DONE, summary


def summary_lines(run: BatchRun, summary: RunSummary, seconds: float) -> list[str]:
    """Return the lines at the end of a run."""
    images = "image" if summary.images == 1 else "images"
    lines = []
    if summary.seconds:
        share = summary.model_seconds / summary.seconds
        lines.append(
            f"{summary.segmented} of {summary.images} {images} segmented in {seconds:.1f} s, "
            f"{summary.segmented / seconds:.2f} images/s; model utilization {share:.0%}; "
            f"results in {run.out}"
        )
    elif summary.finished == summary.images and run.world == 1:
        lines.append(f"Nothing to do: {summary.images} of {summary.images} {images} finished, results in {run.out}")
    lost = sum(failure.lost for failure in summary.failures)
    if failed := len(summary.failures) - lost:
        lines.append(f"{failed} {'image' if failed == 1 else 'images'} cannot be segmented, see {run.out}/{ERRORS}")
    if summary.finished < summary.images and run.world == 1:
        left = summary.images - summary.finished
        verb = "image is" if left == 1 else "images are"
        lines.append(f"{left} {verb} in shards that are not finished: run the same command again")
    if run.world > 1:
        lines.append(f"this was process {run.rank} of {run.world}, which segments every {run.world}th shard")
    return lines


def share_of_processes(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return the rank of this process and the number of processes, as set by `accelerate launch` or HF Jobs.

    The variables WORLD_SIZE or NUM_SHARDS count only with RANK. Raises RunError for values that are not such numbers.
    """
    if "RANK" not in environment:
        return 0, 1
    for name in ("WORLD_SIZE", "NUM_SHARDS"):
        rank, world = environment["RANK"], environment.get(name, "1")
        if not (rank.isdecimal() and world.isdecimal()):
            raise RunError(f"found RANK={rank} and {name}={world}, expected whole numbers")
        if int(world) > 1:
            if int(rank) >= int(world):
                raise RunError(f"found RANK={rank} and {name}={world}: ranks are 0 to {int(world) - 1}")
            return int(rank), int(world)
    return 0, 1


def requires_shards(inputs: list[str], out: str, options: Sequence[Any]) -> bool:
    """Return whether a command of `predict` is one of batch inference.

    It is one if an option of batch inference is given (a true value in `options`), for inputs that are not files or
    folders of images, for an output at an address, and in several processes.
    """
    special = any(is_address(each) or each.lower().endswith((TAR, PARQUET)) for each in inputs)
    return special or is_address(out) or any(options) or share_of_processes()[1] > 1


__all__ = ["BatchProgress", "requires_shards", "run_batch", "share_of_processes"]
