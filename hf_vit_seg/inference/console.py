"""Prediction as seen in a terminal."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging

from .prediction import Job, Wishes, predict
from .segmenter import Segmenter


def run(model: str, device: str | None, dtype: str, jobs: Sequence[Job], wishes: Wishes, out: Path) -> int:
    """Do all jobs under a progress bar, name each failure in a sentence, and return how many failed."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if not jobs:
        console.print("Nothing to do: every image has results already.")
        return 0
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    segmenter = Segmenter.from_pretrained(model, device, dtype)
    start, failed = time.perf_counter(), 0
    columns = (TextColumn("segmenting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for outcome in progress.track(predict(segmenter, jobs, wishes), total=len(jobs)):
            if outcome.error is not None:
                failed += 1
                console.print(f"[red]failed[/red] {escape(outcome.error)}")
    seconds = time.perf_counter() - start
    done = len(jobs) - failed
    console.print(
        f"{done} of {len(jobs)} images segmented in {seconds:.1f} s on {segmenter.device}, "
        f"results in {escape(str(out))}"
    )
    return failed
