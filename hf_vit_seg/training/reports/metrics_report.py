"""Evaluation results as metrics.json, and as a table in the console.

    report = MetricsReport(task="segmentation", scores=matrix.scores(), names=names, confusion=matrix.counts, ...)
    write_report(report, directory / "metrics.json")
    console.print(report_view(report))

Shapes: K classes, M bins of confidence.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hf_vit_seg.atomic_io import write_text
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.text_files import read_json_object
from hf_vit_seg.training.recipe.schema import Task

from .html_tables import paragraph, table
from .json_values import json_line, json_value

FILE = "metrics.json"
EVALUATION = "evaluation_"  # + split: the folder in a model directory for the output of `evaluate`
PER_CLASS = "per_category_"  # prefix of scores per class, as in the evaluate library
UNITS: dict[Task, str] = {
    "segmentation": "pixels",
    "classification": "images",
    "pose": "persons",
    "instance": "objects",
    "panoptic": "segments",
}
# Titles of scores in the console, in order; other scores follow under their own names.
TITLES = {
    "mean_iou": "mIoU",
    "overall_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "mean_dice": "mean Dice",
    "mean_boundary_iou": "boundary mIoU",
    "accuracy": "top-1 accuracy",
    "top_5_accuracy": "top-5 accuracy",
    "mean_average_precision": "mAP",
    "macro_f1": "macro F1",
    "micro_f1": "micro F1",
    "exact_match": "exact match",
    "calibration_error": "calibration error",
    "maximum_calibration_error": "largest calibration error",
    "mask_ap": "AP (IoU 0.50:0.95)",
    "mask_ap_50": "AP 0.50",
    "mask_ap_75": "AP 0.75",
    "f1_50": "F1 (IoU 0.50)",
    "aji": "AJI",
    "count_error": "count error",
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
    "pq_things": "PQ, things",
    "pq_stuff": "PQ, stuff",
    "sq_things": "SQ, things",
    "sq_stuff": "SQ, stuff",
    "rq_things": "RQ, things",
    "rq_stuff": "RQ, stuff",
    "mask_ap_small": "AP, small objects",
    "mask_ap_medium": "AP, medium objects",
    "mask_ap_large": "AP, large objects",
    "mask_ar": "AR (IoU 0.50:0.95)",
    "oks_ap": "AP (OKS 0.50:0.95)",
    "oks_ap_50": "AP 0.50",
    "oks_ap_75": "AP 0.75",
    "oks_ap_medium": "AP, medium persons",
    "oks_ap_large": "AP, large persons",
    "oks_ar": "AR (OKS 0.50:0.95)",
    "oks_ar_50": "AR 0.50",
    "oks_ar_75": "AR 0.75",
    "oks_ar_medium": "AR, medium persons",
    "oks_ar_large": "AR, large persons",
    "loss": "validation loss",
}
MAX_ABSENT_NAMES = 5  # classes in the sentences about classes without predictions or labels
COLUMNS = {
    "iou": "IoU",
    "accuracy": "accuracy",
    "dice": "Dice",
    "boundary_iou": "boundary IoU",
    "f1": "F1",
    "average_precision": "AP",
    "mask_ap": "AP",
    "mask_ap_50": "AP 0.50",
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
}


class ReportError(HfVitSegError):
    """A file that is not a valid metrics.json."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MetricsReport:
    """The scores of a model on one split.

    `scores` are numbers, and (K,) arrays under names that begin with `per_category_`; undefined scores are NaN.
    `confusion` (K, K) int64 is [reference, prediction], and `reliability` (3, M) counts predictions, their summed
    confidence and their hits in M equally wide bins of confidence (`CalibrationError.counts`). `dataset` is the Hub id
    of the evaluation data and `dataset_split` its split; None for other data, and for a share of the training split.
    """

    task: Task
    scores: Mapping[str, Any]
    names: tuple[str, ...] = ()
    protocol: str = ""
    images: int = 0
    seconds_per_image: float = float("nan")
    split: str = "validation"
    dataset: str | None = None
    dataset_split: str | None = None
    step: int | None = None
    metric: str | None = None  # the metric that selects the best model
    confusion: Any = None
    reliability: Any = None
    details: Mapping[str, Any] = field(default_factory=dict)  # further entries of metrics.json

    def numbers(self) -> dict[str, float]:
        """Return the scores that are single numbers, in the console's order."""
        numbers = {name: float(value) for name, value in self.scores.items() if not name.startswith(PER_CLASS)}
        places = list(TITLES)
        return dict(
            sorted(numbers.items(), key=lambda item: places.index(item[0]) if item[0] in places else len(places))
        )

    def class_columns(self) -> dict[str, np.ndarray]:
        """Return the scores (K,) of each class by short name (`iou`), given or computed from the confusion matrix."""
        given = {
            name.removeprefix(PER_CLASS): np.asarray(value, dtype=float)
            for name, value in self.scores.items()
            if name.startswith(PER_CLASS)
        }
        if self.task != "classification" or self.confusion is None:
            return given
        return classification_columns(counts(self.confusion)) | given

    def precision_and_recall(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return precision and recall (K,) of each class, from the confusion matrix; None without one.

        NaN for classes that are never predicted, or that have no labels.
        """
        if self.confusion is None:
            return None
        columns = classification_columns(counts(self.confusion))
        return columns["precision"], columns["accuracy"]

    def never_predicted(self) -> list[int]:
        """Return the classes that have labels and that the model never predicts."""
        if self.confusion is None:
            return []
        matrix = counts(self.confusion)
        return np.flatnonzero((matrix.sum(axis=1) > 0) & (matrix.sum(axis=0) == 0)).tolist()

    def class_counts(self) -> np.ndarray | None:
        """Return the number of labeled pixels (or images) of each class (K,); None without a confusion matrix."""
        return None if self.confusion is None else counts(self.confusion).sum(axis=1)

    def _repr_html_(self) -> str:
        header, rows = class_cells(self)
        classes = table(header, rows) if rows else ""
        scores = table(["score", ""], [[score_title(name), decimal(value)] for name, value in self.numbers().items()])
        return classes + scores + paragraph(about(self))


def counts(matrix: Any) -> np.ndarray:
    """Convert a confusion matrix on any device to an array."""
    return np.asarray(matrix.cpu() if hasattr(matrix, "cpu") else matrix, dtype=np.int64)


def describe_never_predicted(report: MetricsReport) -> str | None:
    """Say which labeled classes are never predicted, and the likely causes; None if there are none."""
    absent, labeled = report.never_predicted(), report.class_counts()
    if not absent or labeled is None:
        return None
    total = labeled.sum()
    names = format_list(
        (f"{report.names[k]} ({labeled[k] / total:.2%} of the labels)" for k in absent), MAX_ABSENT_NAMES
    )
    subject = "1 class is" if len(absent) == 1 else f"{len(absent)} classes are"
    return (
        f"{subject} never predicted on the {report.split} split: {names}. Likely causes: too few steps or "
        "too low a learning rate; rare classes (loss.cross_entropy.class_weights, data.sampling or a dice term help); "
        "labels that differ between the splits (see hf-vit-seg check-data)"
    )


def describe_unlabeled(report: MetricsReport) -> str | None:
    """Name the classes without labels in an evaluation of segmentation, which have no score; None if there are none."""
    labeled = report.class_counts()
    if report.task != "segmentation" or labeled is None or labeled.all():
        return None
    names = format_list((report.names[k] for k in np.flatnonzero(labeled == 0)), MAX_ABSENT_NAMES)
    return (
        f"{(labeled == 0).sum()} of {len(labeled)} classes have no labels in the {report.split} split: {names}. If its "
        "masks have other values for them (255 is ignored unless it is in data.classes), override data.classes; "
        "hf-vit-seg check-data counts all values"
    )


def classification_columns(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Compute accuracy (recall), precision and F1 (K,) of each class; NaN for classes without samples."""
    hits, labeled, predicted = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "accuracy": hits / labeled,
            "precision": hits / predicted,
            "f1": 2 * hits / (labeled + predicted),
        }


def write_report(report: MetricsReport, path: Path) -> None:
    """Write metrics.json atomically; NaN becomes null."""
    text = report_text(report)
    write_text(path, text)


def report_content(report: MetricsReport) -> dict[str, Any]:
    """Convert a report to the JSON values of metrics.json; NaN becomes None."""
    columns, labeled = report.class_columns(), report.class_counts()
    classes = [
        {"name": name, **{column: values[i] for column, values in columns.items()}}
        | ({} if labeled is None else {UNITS[report.task]: labeled[i]})
        for i, name in enumerate(report.names)
    ]
    parts = {
        "task": report.task,
        "split": report.split,
        "dataset": report.dataset,
        "dataset_split": report.dataset_split,
        "step": report.step,
        "images": report.images,
        "seconds_per_image": report.seconds_per_image,
        "protocol": report.protocol,
        "metric": report.metric,
        "scores": report.numbers(),
        "classes": classes,
        "confusion_matrix": None if report.confusion is None else counts(report.confusion),
        "reliability": None if report.reliability is None else json_value(report.reliability),
        **report.details,
    }
    return {key: json_value(value) for key, value in parts.items()}


def report_text(report: MetricsReport) -> str:
    """Format metrics.json with a line for each score, each class, and each row of the confusion matrix."""
    parts = report_content(report)
    return "{\n" + ",\n".join(f'  "{key}": {block(value)}' for key, value in parts.items()) + "\n}\n"


def block(plain: Any) -> str:
    """Format a JSON value: entries of a mapping, and nested entries of a list, on a line each."""
    if isinstance(plain, dict) and plain:
        lines = [f"    {json_line(key)}: {json_line(part)}" for key, part in plain.items()]
        return "{\n" + ",\n".join(lines) + "\n  }"
    if isinstance(plain, list) and plain and isinstance(plain[0], list | dict):
        return "[\n" + ",\n".join(f"    {json_line(part)}" for part in plain) + "\n  ]"
    return json_line(plain)


def read_report(path: Path) -> MetricsReport:
    """Read metrics.json; null becomes NaN. ReportError if it is invalid."""
    try:
        parts = read_json_object(path)
        if "measure" in parts:
            raise ReportError(f"{path}: the key 'measure' was renamed to 'metric'")
        classes = parts.pop("classes")
        scores: dict[str, Any] = {name: number(value) for name, value in parts.pop("scores").items()}
        unit = UNITS[parts["task"]]
        for column in [key for key in (classes[0] if classes else {}) if key not in ("name", unit)]:
            scores[PER_CLASS + column] = np.array([number(row[column]) for row in classes])
        confusion, reliability = parts.pop("confusion_matrix"), parts.pop("reliability")
        fields = {key: parts.pop(key) for key in ("task", "split", "step", "images", "protocol", "metric")}
        return MetricsReport(
            **fields,
            dataset=parts.pop("dataset", None),
            dataset_split=parts.pop("dataset_split", None),
            scores=scores,
            names=tuple(row["name"] for row in classes),
            seconds_per_image=number(parts.pop("seconds_per_image")),
            confusion=None if confusion is None else np.array(confusion, dtype=np.int64),
            reliability=None if reliability is None else np.array(reliability, dtype=float),
            details=parts,
        )
    except ReportError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReportError(
            f"{path} is not a valid metrics.json ({type(error).__name__}: {error}); write one with hf-vit-seg evaluate"
        ) from None


def number(value: float | None) -> float:
    """Convert a JSON number; null becomes NaN."""
    return float("nan") if value is None else float(value)


def report_view(report: MetricsReport) -> RenderableType:
    """Format the report for the console: a table of the classes, and a line for each score."""
    parts: list[RenderableType] = [class_table(report)] if report.names and report.class_columns() else []
    summary = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    summary.add_column()
    summary.add_column(justify="right")
    for name, value in report.numbers().items():
        chief = "bold" if name == report.metric else ""
        summary.add_row(Text(score_title(name), style=chief), Text(decimal(value), style=chief))
    return Group(*parts, summary, Text(about(report)))


def score_title(name: str) -> str:
    """Return the title of a score in tables; by default its name with spaces."""
    return TITLES.get(name, name.replace("_", " "))


def class_table(report: MetricsReport) -> Table:
    """Return a table with the scores and the number of labeled pixels (or images) of each class."""
    header, rows = class_cells(report)
    view = Table(header[0], box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in header[1:]:
        view.add_column(title, justify="right")
    for name, *cells in rows:
        view.add_row(escape(name), *cells)
    return view


def class_cells(report: MetricsReport) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of classes; without rows if classes have no scores."""
    columns, labeled = report.class_columns(), report.class_counts()
    titles = [COLUMNS.get(column, column.replace("_", " ")) for column in columns]
    rows = []
    for i, name in enumerate(report.names if columns else ()):
        cells = [decimal(values[i]) for values in columns.values()]
        rows.append([name, *cells, *([] if labeled is None else [f"{labeled[i]:,}"])])
    return ["class", *titles, *([] if labeled is None else [UNITS[report.task]])], rows


def about(report: MetricsReport) -> str:
    """Describe the evaluation in a line: images, split, step, speed, protocol."""
    step = "" if report.step is None else f" at step {report.step}"
    seconds = report.seconds_per_image
    speed = "" if np.isnan(seconds) else f", {seconds:.3g} s per image"
    protocol = f", {report.protocol}" if report.protocol else ""
    return f"{report.images} images of the {report.split} split{step}{speed}{protocol}"


def decimal(value: float) -> str:
    """Format a score with four decimals; a dash for NaN."""
    return "-" if np.isnan(value) else f"{value:.4f}"
