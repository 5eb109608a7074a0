"""Plots of an evaluation: scores per class, reliability diagram, and scores of a pose model.

Shapes: K classes, M bins of confidence.
"""

import numpy as np

from hf_vit_seg.training.reports.metrics_report import COLUMNS, MetricsReport, score_title

from .style import (
    BLUE,
    FAINT,
    GRID,
    INK,
    ORANGE,
    RED,
    SMALL,
    TEXT,
    TRACK,
    Axes,
    Figure,
    new_figure,
    style_axes,
    truncate_name,
)

MAX_CLASSES = 150  # number of bars
ROWS = 50  # bars per column


def class_figure(report: MetricsReport) -> Figure | None:
    """Draw a bar for each class, best first: IoU, or accuracy for classification. None without scores per class."""
    column = main_column(report)
    if column is None or not report.names:
        return None
    values = report.class_columns()[column]
    order = np.argsort(np.where(np.isnan(values), -1.0, values), kind="stable")[::-1]
    shown = order[-MAX_CLASSES:]
    left_out = f", the {len(shown)} lowest of {len(order)} classes" if len(shown) < len(order) else ""
    towers = -(-len(shown) // ROWS)
    rows = -(-len(shown) // towers)
    mean = float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
    name = COLUMNS[column][:1].upper() + COLUMNS[column][1:]
    title = f"{name} of each class{left_out} (mean {mean:.3f}, {report.split} split)"
    figure = new_figure(7.5 if towers == 1 else 4.8 * towers, max(0.21 * rows + 1.2, 2.2), title)
    for i, axes in enumerate(figure.subplots(1, towers, squeeze=False)[0]):
        part = shown[i * rows : (i + 1) * rows]
        draw_bars(axes, [report.names[k] for k in part], values[part], rows, mean)
    return figure


def precision_recall_figure(report: MetricsReport) -> Figure | None:
    """Draw precision and recall of each class, the lowest F1 last; None without a confusion matrix."""
    curves = report.precision_and_recall()
    if curves is None or not report.names:
        return None
    precision, recall = curves
    with np.errstate(invalid="ignore"):
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall), nan=-1.0)
    order = np.argsort(f1, kind="stable")[::-1][-MAX_CLASSES:]
    towers = -(-len(order) // ROWS)
    rows = -(-len(order) // towers)
    title = f"Precision and recall of each class, {report.split} split"
    figure = new_figure(7.5 if towers == 1 else 4.8 * towers, max(0.21 * rows + 1.6, 2.4), title)
    for i, axes in enumerate(figure.subplots(1, towers, squeeze=False)[0]):
        part = order[i * rows : (i + 1) * rows]
        positions = np.arange(len(part))
        style_axes(axes, grid="x")
        axes.hlines(positions, precision[part], recall[part], color=GRID, linewidth=3)
        axes.scatter(precision[part], positions, color=BLUE, s=22, zorder=3, label="precision")
        axes.scatter(recall[part], positions, color=ORANGE, s=22, zorder=3, marker="D", label="recall")
        axes.set_yticks(positions, [truncate_name(report.names[k], 22) for k in part], fontsize=TEXT, color=INK)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_xlim(-0.02, 1.02)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), frameon=False, fontsize=TEXT, loc="outside lower center", ncols=2
    )
    return figure


def main_column(report: MetricsReport) -> str | None:
    """Return the name of the score per class to draw."""
    columns = report.class_columns()
    return next((name for name in ("iou", "accuracy", "average_precision") if name in columns), None)


def draw_bars(axes: Axes, names: list[str], values: np.ndarray, rows: int, mean: float) -> None:
    """Draw horizontal bars from 0 to 1, from top to bottom, with their values at the right."""
    positions = np.arange(len(names))
    style_axes(axes, grid="x")
    axes.barh(positions, 1.0, height=0.72, color=TRACK)
    axes.barh(positions, np.nan_to_num(values), height=0.72, color=BLUE)
    axes.axvline(mean, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    for position, value in zip(positions, values, strict=True):
        text, color = ("absent", FAINT) if np.isnan(value) else (f"{value:.3f}", INK)
        axes.text(1.02, position, text, va="center", fontsize=SMALL, color=color)
    axes.set_yticks(positions, [truncate_name(name, 22) for name in names], fontsize=TEXT, color=INK)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    axes.spines["bottom"].set_visible(False)


def reliability_figure(report: MetricsReport) -> Figure | None:
    """Draw the reliability diagram: accuracy and number of predictions by confidence; None without counts."""
    if report.reliability is None:
        return None
    number, confidence, hits = np.asarray(report.reliability, dtype=float)
    if not number.sum():
        return None
    edges = np.linspace(0, 1, len(number) + 1)
    width, centers, filled = 1 / len(number), (edges[:-1] + edges[1:]) / 2, number > 0
    accuracy, certainty = hits[filled] / number[filled], confidence[filled] / number[filled]
    error = float((np.abs(accuracy - certainty) * number[filled]).sum() / number.sum())
    figure = new_figure(5.6, 6.2)
    above, below = figure.subplots(2, 1, height_ratios=[3.2, 1], sharex=True)
    style_axes(above, "Reliability: accuracy by confidence", y="accuracy")
    style_axes(below, x="confidence", y="predictions")
    above.bar(centers[filled], accuracy, width=width * 0.92, color=BLUE, label="accuracy")
    gap = certainty - accuracy
    above.bar(
        centers[filled], gap, width=width * 0.92, bottom=accuracy, color=RED, alpha=0.25, edgecolor=RED, label="gap"
    )
    above.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)))
    above.legend(
        frameon=False,
        fontsize=TEXT,
        loc="upper left",
        title=f"calibration error {error:.4f}",
        title_fontsize=TEXT,
        alignment="left",
    )
    below.bar(centers, number, width=width * 0.92, color=FAINT)
    above.set_xlim(0, 1)
    above.set_ylim(0, 1)
    return figure


def scores_figure(report: MetricsReport) -> Figure | None:
    """Draw a bar for each score of a pose model; None for other tasks."""
    if report.task != "pose" or not report.numbers():
        return None
    numbers = report.numbers()
    figure = new_figure(7.5, 0.3 * len(numbers) + 1.2, f"Keypoint similarity, {report.split} split")
    values = np.array(list(numbers.values()))
    draw_bars(figure.subplots(), [score_title(name) for name in numbers], values, len(numbers), float("nan"))
    return figure
