"""Tables over all images of a command, built from the reports of the images, and written whole or not at all."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from hf_vit_seg.atomic_io import json_text, write_files
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.text_files import read_json

from .prediction import Job
from .suffixes import REPORT

CLASSES_CSV, CLASSES_JSON, KEYPOINTS_JSON = "classes.csv", "classes.json", "keypoints.json"
CLASS_COLUMNS = ("image", "rank", "id", "class", "score")
TABLES: Mapping[str, tuple[str, ...]] = {
    "classification": (CLASSES_CSV, CLASSES_JSON),
    "pose": (KEYPOINTS_JSON,),
}


def table_paths(task: str, out: Path) -> list[Path]:
    """Return the tables of a task in an output folder."""
    return [out / name for name in TABLES.get(task, ())]


def write_tables(task: str, jobs: Sequence[Job], out: Path, keep: bool) -> None:
    """Write the tables of jobs with results; with `keep`, rows of other images are kept."""
    if reports := [read_report(job) for job in jobs]:
        WRITERS[task](reports, out, keep)


def read_report(job: Job) -> dict[str, Any]:
    """Read the report of an image. HfVitSegError if it is not one of this task, such as after a change of the model."""
    path = job.result(REPORT)
    try:
        content = read_json(path)
    except HfVitSegError:
        content = None
    if not isinstance(content, dict) or not content.keys() & {"top_classes", "persons"}:
        raise HfVitSegError(f"{path} is not a report of classes or keypoints: pass --overwrite or another --out")
    return content


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the entries of an earlier table; empty if it does not exist. Raises HfVitSegError for other files."""
    if not path.exists():
        return []
    try:
        content = read_json(path)
    except HfVitSegError:
        content = None
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise HfVitSegError(f"{path} is not a table of an earlier run: pass --overwrite or another --out")
    return content


def write_classes(reports: Sequence[dict[str, Any]], out: Path, keep: bool) -> None:
    """Write the most likely classes of each image as CSV and JSON."""
    entries = [{"image": report["image"], "classes": report["top_classes"]} for report in reports]
    new = {entry["image"] for entry in entries}
    old = read_table(out / CLASSES_JSON) if keep else []
    entries = [*(entry for entry in old if entry.get("image") not in new), *entries]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(CLASS_COLUMNS)
    for entry in entries:
        for rank, found in enumerate(entry["classes"], start=1):
            rows.writerow([entry["image"], rank, found["id"], found["name"], found["score"]])
    write_texts({out / CLASSES_CSV: text.getvalue(), out / CLASSES_JSON: json_text(entries, indent=2)})


def write_keypoints(reports: Sequence[dict[str, Any]], out: Path, keep: bool) -> None:
    """Write keypoints in COCO's results format, with the image's path as `file_name`.

    Images that are not in the file of boxes are numbered, from 1.
    """
    new = {report["image"] for report in reports}
    old = read_table(out / KEYPOINTS_JSON) if keep else []
    image_ids = {entry.get("file_name"): entry.get("image_id") for entry in old}
    image_ids |= {report["image"]: report["image_id"] for report in reports if report["image_id"] is not None}
    numbers = (number for number in count(1) if number not in set(image_ids.values()))
    entries = [entry for entry in old if entry.get("file_name") not in new]
    for report in reports:
        image_id = image_ids.get(report["image"])
        image_id = next(numbers) if image_id is None else image_id
        for person in report["persons"]:
            entries.append(
                {
                    "image_id": image_id,
                    "category_id": report["category_id"],
                    "keypoints": [value for point in person["keypoints"] for value in point],
                    "score": person["score"],
                    "bbox": person["box"],
                    "file_name": report["image"],
                }
            )
    write_texts({out / KEYPOINTS_JSON: json_text(entries)})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write text files, all or none."""
    write_files({path: save_text(text) for path, text in texts.items()})


def save_text(text: str) -> Callable[[Path], Any]:
    """Return the function that writes a text to a path."""
    return lambda path: path.write_text(text, encoding="utf-8", newline="")


WRITERS: Mapping[str, Callable[[Sequence[dict[str, Any]], Path, bool], None]] = {
    "classification": write_classes,
    "pose": write_keypoints,
}

__all__ = ["TABLES", "table_paths", "write_tables"]
