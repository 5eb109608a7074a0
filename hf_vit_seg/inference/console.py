"""Prediction as seen in a terminal."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging

from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.files.prediction import Job, Outcome, Wishes, predict, sentence
from hf_vit_seg.inference.tiles.prediction import needs_tiles, predict_tiled
from hf_vit_seg.inference.video.prediction import is_film, predict_film
from hf_vit_seg.records import read_record

from .segmenter import Segmenter

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def protocol_from_text(scales: str | None = None, **settings: Any) -> Protocol:
    """A protocol from what was typed: None was not, `scales` are numbers with commas between them."""
    given = {name: value for name, value in settings.items() if value is not None}
    if scales is not None:
        given["scales"] = [part.strip() for part in scales.split(",")]
    return read_record(Protocol, given, "protocol")


def run(
    model: str,
    device: str | None,
    dtype: str,
    jobs: Sequence[Job],
    wishes: Wishes,
    out: Path,
    protocol: Protocol | None = None,
) -> int:
    """Do all jobs under a progress bar, name each failure in a sentence, and return how many failed."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if not jobs:
        console.print("Nothing to do: every image has results already.")
        return 0
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    segmenter = Segmenter.from_pretrained(model, device, dtype, protocol)
    start = time.perf_counter()
    films = [job for job in jobs if is_film(job)]
    tiled = [job for job in jobs if job not in films and needs_tiles(job, wishes)]
    whole = [job for job in jobs if job not in films and job not in tiled]
    with Progress(*COLUMNS, console=console, transient=True) as progress:
        failed = show(predict(segmenter, whole, wishes), len(whole), progress)
        failed += sum(show_tiles(segmenter, job, wishes, progress) for job in tiled)
        failed += sum(show_film(segmenter, job, wishes, progress) for job in films)
    seconds = time.perf_counter() - start
    done = len(jobs) - failed
    console.print(
        f"{done} of {len(jobs)} {'files' if films else 'images'} segmented in {seconds:.1f} s on {segmenter.device}, "
        f"results in {escape(str(out))}"
    )
    return failed


def show(outcomes: Iterator[Outcome], total: int, progress: Progress) -> int:
    """Show images coming in, and return how many failed."""
    failed = 0
    for outcome in progress.track(outcomes, total=total, description="segmenting") if total else ():
        if outcome.error is not None:
            failed += 1
            tell_failure(outcome.error, progress)
    return failed


def show_tiles(segmenter: Segmenter, job: Job, wishes: Wishes, progress: Progress) -> bool:
    """Show the tiles of a large image coming in, and return whether it failed."""
    task = progress.add_task(f"{escape(job.image.path.name)}, tiles", total=None)
    with told(job, progress) as failure:
        for number, state in enumerate(predict_tiled(segmenter, job, wishes)):
            if state.resumed and not number:
                text = f"{job.image.path}: going on, {state.resumed} of {state.total} tiles are done"
                progress.console.print(escape(text))
            progress.update(task, completed=state.done, total=state.total)
    progress.remove_task(task)
    return bool(failure)


def show_film(segmenter: Segmenter, job: Job, wishes: Wishes, progress: Progress) -> bool:
    """Show the frames of a film coming in, and return whether it failed."""
    task = progress.add_task(f"{escape(job.image.path.name)}, frames", total=None)
    with told(job, progress) as failure:
        state = None
        for state in predict_film(segmenter, job, wishes):
            progress.update(task, completed=state.done, total=state.total or None)
        if state is not None:
            text = f"{job.image.path}: {state.done} frames, {state.frames_per_second:.2f} per second"
            progress.console.print(escape("; ".join([text, *state.notes])))
    progress.remove_task(task)
    return bool(failure)


@contextmanager
def told(job: Job, progress: Progress) -> Iterator[list[str]]:
    """Name a failure in a sentence, and list it."""
    failures: list[str] = []
    try:
        yield failures
    except Exception as error:  # one file's failure ends no other's
        failures.append(sentence(job, error))
        tell_failure(failures[0], progress)


def tell_failure(text: str, progress: Progress) -> None:
    """Print what went wrong."""
    progress.console.print(f"[red]failed[/red] {escape(text)}")
