"""Plots of a run, from its log.jsonl and metrics.json.

training.png          loss, learning rate, gradient norm, speed over the steps
metrics.png           the scores of the evaluations over the steps
per_class_iou.png     a bar for each class (per_class_accuracy.png for classification)
precision_recall.png  precision and recall of each class
confusion_matrix.png  shares of each row
reliability.png       classification: accuracy by confidence
keypoint_scores.png   pose: average precision and recall
"""

import warnings
from collections.abc import Callable
from pathlib import Path

from hf_vit_seg.atomic_io import write_files
from hf_vit_seg.training.checkpoints.run_directory import PLOTS
from hf_vit_seg.training.reports.metrics_report import FILE, MetricsReport, read_report
from hf_vit_seg.training.reports.run_log import read_run_log

from .classes import class_figure, main_column, precision_recall_figure, reliability_figure, scores_figure
from .confusion_figures import confusion_figure
from .curves import metric_figure, training_figure
from .style import Figure, set_font_families

REPORTS = (Path(FILE), Path("best") / FILE, Path("last") / FILE)  # the first one that exists is used
OF_REPORT: dict[str, Callable[[MetricsReport], Figure | None]] = {
    "per_class_{column}": class_figure,
    "precision_recall": precision_recall_figure,
    "confusion_matrix": confusion_figure,
    "reliability": reliability_figure,
    "keypoint_scores": scores_figure,
}


def draw_plots(directory: Path | str, report: MetricsReport | None = None) -> list[Path]:
    """Draw all plots for which the run in `directory` has data, atomically, and return their paths.

    `report` replaces the metrics.json of the directory, or of its best or last model.
    """
    directory = Path(directory)
    report = report or find_report(directory)
    lines = read_run_log(directory)
    figures = {"training": training_figure(lines), "metrics": metric_figure(lines, report and report.metric)}
    if report is not None:
        column = main_column(report) or ""
        figures |= {name.format(column=column): draw(report) for name, draw in OF_REPORT.items()}
    files = {directory / PLOTS / f"{name}.png": figure for name, figure in figures.items() if figure is not None}
    for figure in files.values():
        set_font_families(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # `find_font` has said so once
        write_files({path: figure.savefig for path, figure in files.items()})
    return list(files)


def find_report(directory: Path) -> MetricsReport | None:
    """Read the metrics.json of a directory, or of its best or last model; None if there is none."""
    path = next((directory / place for place in REPORTS if (directory / place).exists()), None)
    return None if path is None else read_report(path)
