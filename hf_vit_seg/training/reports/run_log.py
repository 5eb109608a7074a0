"""The log of a run: a line of JSON for every logged step and every evaluation, also sent to accelerate's trackers.

`log.jsonl` has two kinds of lines:
    {"step": 10, "epoch": 0.5, "loss": 0.71, "learning_rate": 6e-5, "grad_norm": 1.2, "images_per_second": 40.1, ...}
    {"step": 100, "evaluation": {"mean_iou": 0.61, "per_category_iou": [0.9, 0.32], ...}}
A number that is not finite is null. Only the main process writes; each call closes the file after its line.

    log = RunLog(directory, accelerator, recipe.trackers, name=recipe.name, settings=recipe.model_dump())
    log.truncate(step)  # when a run is resumed at `step`, before anything is logged
    log.step({"step": 10, "loss": loss, ...})
    log.evaluation(100, scores)
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_vit_seg.atomic_io import write_text
from hf_vit_seg.directory_lock import LOG as FILE
from hf_vit_seg.errors import HfVitSegError, write_errors
from hf_vit_seg.text_files import parse_json

from .json_values import Json, json_line, json_value
from .trackers import check_trackers, start_trackers

Line = dict[str, Any]


class RunLogError(HfVitSegError):
    """A log that cannot be read."""


class RunLog:
    """Writes the log of the run in `directory`."""

    def __init__(
        self,
        directory: Path | str,
        accelerator: Any = None,
        trackers: Sequence[str] = (),
        *,
        name: str = "run",
        settings: Mapping[str, Any] | None = None,
    ):
        """Without an `accelerator` this process is the only one. `settings` are passed to trackers.

        RecordError for trackers that are unknown or not installed.
        """
        check_trackers(trackers)
        self.path = Path(directory) / FILE
        self.accelerator, self.trackers, self.name, self.settings = accelerator, tuple(trackers), name, settings
        self.main = accelerator is None or bool(accelerator.is_main_process)
        self.resumed_after: int | None = None
        self.tracking: bool | None = None  # None: not yet begun
        if self.main:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                drop_incomplete_line(self.path)

    def step(self, values: Mapping[str, Any]) -> None:
        """Log the `values` of a step, including `step` itself."""
        flat = {
            key: value for name, value in values.items() if name != "step" for key, value in scalar_entries(name, value)
        }
        self._append(values, {f"train/{key}": value for key, value in flat.items()})

    def evaluation(self, step: int, scores: Mapping[str, Any]) -> None:
        """Log the scores of an evaluation after `step`: numbers, and lists of one number per class."""
        kept = {name: value for name, value in scores.items() if getattr(value, "ndim", 0) < 2}
        self._append({"step": step, "evaluation": kept}, {f"evaluation/{name}": value for name, value in kept.items()})

    def truncate(self, step: int, evaluated: bool = True) -> None:
        """Remove lines after `step`, for a run that resumes there.

        Without `evaluated`, the evaluation after `step` itself is removed too.
        """
        if not self.main:
            return
        self.resumed_after = step
        if self.path.exists():
            last = {True: step - (not evaluated), False: step}  # by whether a line is an evaluation
            kept = [line for line in read_run_log(self.path.parent) if line["step"] <= last["evaluation" in line]]
            text = "".join(f"{json_line(line)}\n" for line in kept)
            write_text(self.path, text)

    def _append(self, line: Mapping[str, Any], tracked: Mapping[str, Any]) -> None:
        if not self.main:
            return
        with write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json_line(line) + "\n")
        self._track(tracked, line["step"])

    def _track(self, values: Mapping[str, Any], step: int) -> None:
        """Send numbers to the trackers. A failing tracker, for example without network, does not end the run."""
        if not self.trackers or self.accelerator is None or self.tracking is False:
            return
        numbers: dict[str, Json] = {name: json_value(value) for name, value in values.items()}
        numbers = {name: value for name, value in numbers.items() if isinstance(value, float | int)}
        try:
            if self.tracking is None:
                folder = self.path.parent / "trackers"
                start_trackers(self.accelerator, self.trackers, folder, self.name, self.settings, self.resumed_after)
            self.tracking = True
            self.accelerator.log(numbers, step=step)
        except Exception as error:  # third-party code may raise anything
            self.tracking = False
            logging.getLogger(__name__).warning(
                "trackers (%s) failed and are disabled from step %d on: %s", ", ".join(self.trackers), step, error
            )


def scalar_entries(name: str, value: Any) -> list[tuple[str, Any]]:
    """Return a value with its name, or the entries of a mapping with names such as "learning_rates/head"."""
    return [(f"{name}/{key}", part) for key, part in value.items()] if isinstance(value, Mapping) else [(name, value)]


def read_run_log(directory: Path | str) -> list[Line]:
    """Read all lines of a run's log, an empty list if there is none. An incomplete last line is dropped.

    RunLogError for invalid lines.
    """
    path = Path(directory) / FILE
    if not path.exists():
        return []
    return [parse_line(text, path, number) for number, text in enumerate(complete_lines(path.read_bytes()), start=1)]


def parse_line(text: bytes, path: Path, number: int) -> Line:
    """Parse a line of the log; RunLogError if it is invalid."""
    try:
        line = parse_json(text.decode())
    except ValueError:
        line = None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        raise RunLogError(f"{path}, line {number}: not a line of a run's log, expected a JSON object with 'step'")
    return line


def complete_lines(content: bytes) -> list[bytes]:
    """Split into lines, without an incomplete last line."""
    return content[: content.rfind(b"\n") + 1].splitlines()


def drop_incomplete_line(path: Path) -> None:
    """Truncate the file after its last line break."""
    with path.open("rb+") as file:
        whole = file.read().rfind(b"\n") + 1
        if whole != file.seek(0, os.SEEK_END):
            file.truncate(whole)
