"""results.csv: a row for each evaluation of a run, for spreadsheets and pandas.

Columns: step, epoch, the mean training loss since the previous evaluation, the learning rate, images per second, and
the scores of the evaluation that are single numbers (`validation_loss` is the loss).
"""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_vit_seg.atomic_io import write_text

from .metrics_report import PER_CLASS
from .run_log import Line, read_run_log

RESULTS = "results.csv"
OF_STEPS = {"epoch": "epoch", "learning_rate": "learning_rate", "images_per_second": "images_per_second"}


def write_results(directory: Path) -> Path | None:
    """Write results.csv from the log of a run, atomically; None without an evaluation."""
    rows = result_rows(read_run_log(directory))
    if not rows:
        return None
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(directory / RESULTS, text.getvalue())
    return directory / RESULTS


def result_rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return a row for each evaluation; numbers that are not finite are empty."""
    rows: list[dict[str, Any]] = []
    since: list[Line] = []
    for line in lines:
        if "evaluation" not in line:
            since.append(line)
            continue
        losses = [step["loss"] for step in since if is_number(step.get("loss"))]
        row: dict[str, Any] = {"step": line["step"]}
        row |= {column: since[-1].get(name, "") if since else "" for name, column in OF_STEPS.items()}
        row["training_loss"] = math.fsum(losses) / len(losses) if losses else ""
        for name, value in line["evaluation"].items():
            if not name.startswith(PER_CLASS) and not isinstance(value, list | dict):
                row["validation_loss" if name == "loss" else name] = value if is_number(value) else ""
        rows.append(row)
        since = []
    return rows


def is_number(value: Any) -> bool:
    """Return whether a value of the log is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


__all__ = ["RESULTS", "write_results"]
