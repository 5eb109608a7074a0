"""Confusion matrix figures: small ones with numbers, large ones with a list of the most frequent confusions.

Shapes: K classes, S displayed classes. Lengths are inches unless stated otherwise.
"""

from typing import NamedTuple

import numpy as np

from hf_vit_seg.training.reports.metrics_report import MetricsReport, counts

from .style import FAINT, GRID, INK, MARGIN, SMALL, TEXT, TITLE, Axes, Figure, new_figure, truncate_name

MAX_CLASSES = 150  # number of rows
MAX_NUMBERED_CLASSES = 20  # up to this many classes, cells have numbers
FEW = 6  # up to this many classes, numbers have a decimal
MAX_PAIRS = 40  # confusions listed next to a large matrix
MAX_NAME_LENGTH = 20
CELL, SMALL_CELL, MIN_SIDE = 0.48, 0.14, 3.2
POINTS = 72  # per inch
LETTER = 0.62  # mean width of a letter relative to its height


class Sheet(NamedTuple):
    """The layout of the figure."""

    side: float  # side of the matrix in pixels
    edge: float  # to the left of the matrix and below, for class names and axis titles
    top: float
    right: float
    scale: float  # text scale, because large figures are viewed at reduced size
    points: float  # font size of class names


def sheet_for(names: list[str]) -> Sheet:
    """Compute the layout for these class names."""
    many = len(names) > MAX_NUMBERED_CLASSES
    side = SMALL_CELL * len(names) if many else max(CELL * len(names), MIN_SIDE)
    scale = min(max(side / 9, 1.0), 2.0) if many else 1.0
    points = 6.0 if many else TEXT
    edge = max(map(len, names)) * LETTER * points / POINTS + 0.5 * scale + MARGIN
    return Sheet(side, edge, 0.65 * scale, 3.6 * scale if many else 4 * MARGIN, scale, points)


def confusion_figure(report: MetricsReport) -> Figure | None:
    """Draw the confusion matrix with each row divided by its sum; None without one.

    Up to 20 classes, cells have numbers. For more classes, the most frequent confusions are listed next to the matrix;
    of more than 150 classes, those with the most mistakes are shown.
    """
    if report.confusion is None or not len(report.names):
        return None
    matrix = counts(report.confusion)
    shown = select_classes(matrix)
    labeled = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, labeled, out=np.full(matrix.shape, np.nan), where=labeled > 0)
    names = [truncate_name(report.names[k], MAX_NAME_LENGTH) for k in shown]
    sheet = sheet_for(names)
    width, height = sheet.edge + sheet.side + sheet.right, sheet.edge + sheet.side + sheet.top
    low, tall = sheet.edge / height, sheet.side / height
    figure = new_figure(width, height, figure_title(report, len(shown)), sheet.scale, free=True)
    axes = figure.add_axes((sheet.edge / width, low, sheet.side / width, tall))
    draw_matrix(axes, shares[np.ix_(shown, shown)], names, sheet)
    if len(shown) <= MAX_NUMBERED_CLASSES:
        write_shares(axes, shares)
    else:
        side_axes = figure.add_axes(((width - sheet.right + 0.3) / width, low, (sheet.right - 0.3) / width, tall))
        list_confusions(side_axes, matrix, shares, report.names, sheet)
    return figure


def select_classes(matrix: np.ndarray) -> np.ndarray:
    """Return the sorted indices (S,) of the classes with the most mistakes."""
    mistakes = matrix.sum(axis=1) + matrix.sum(axis=0) - 2 * np.diagonal(matrix)
    return np.sort(np.argsort(-mistakes, kind="stable")[:MAX_CLASSES])


def figure_title(report: MetricsReport, shown: int) -> str:
    """Return the title in two lines."""
    classes = len(report.names)
    some = f"the {shown} of {classes} classes with most mistakes, " if shown < classes else ""
    return f"Confusion matrix\n{some}percent of each row, {report.split} split"


def draw_matrix(axes: Axes, shares: np.ndarray, names: list[str], sheet: Sheet) -> None:
    """Draw shares (S, S) as blue cells; the square root of the color scale makes small shares visible."""
    from matplotlib.colors import PowerNorm

    axes.set_facecolor(GRID)  # rows without a label stay gray
    axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=sheet.points, color=INK)
    axes.set_yticks(range(len(names)), names, fontsize=sheet.points, color=INK)
    axes.tick_params(length=0)
    axes.set_xlabel("prediction", fontsize=TITLE * sheet.scale, color=FAINT)
    axes.set_ylabel("label", fontsize=TITLE * sheet.scale, color=FAINT)
    for spine in axes.spines.values():
        spine.set_visible(False)


def write_shares(axes: Axes, shares: np.ndarray) -> None:
    """Write percentages into the cells, except for zeros."""
    few = len(shares) <= FEW
    for row, column in np.argwhere(shares > 0):
        share = shares[row, column]
        text = f"{share * 100:.{1 if few else 0}f}"
        if float(text) == 0:
            text = "<0.1" if few else "<1"
        color = "white" if share > 0.35 else INK
        size = TITLE if few else TEXT
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=color)


def list_confusions(axes: Axes, matrix: np.ndarray, shares: np.ndarray, names: tuple[str, ...], sheet: Sheet) -> None:
    """List the most frequent confusions, as many as fit next to the matrix."""
    axes.set_axis_off()
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    total, line = max(int(wrong.sum()), 1), 3.4 * TEXT * sheet.scale / POINTS
    order = np.argsort(-wrong, axis=None, kind="stable")[: min(MAX_PAIRS, int(sheet.side / line) - 1)]
    pairs = [(label, found) for label, found in (divmod(int(index), len(matrix)) for index in order)]
    write_line(axes, "Most frequent confusions", 0.3 * line, TITLE, INK, sheet)
    for i, (label, found) in enumerate((pair for pair in pairs if wrong[pair]), start=1):
        share = f"{shares[label, found] * 100:.1f} % of {truncate_name(names[label], MAX_NAME_LENGTH)}"
        pair = (
            f"{truncate_name(names[label], MAX_NAME_LENGTH)} taken for {truncate_name(names[found], MAX_NAME_LENGTH)}"
        )
        write_line(axes, pair, (i + 0.3) * line, TEXT, INK, sheet)
        about = f"{share}, {wrong[label, found] / total * 100:.1f} % of all mistakes"
        write_line(axes, about, (i + 0.68) * line, SMALL, FAINT, sheet)


def write_line(axes: Axes, text: str, below: float, points: float, color: str, sheet: Sheet) -> None:
    """Write a line of text, `below` inches from the upper edge."""
    style = {"fontsize": points * sheet.scale, "color": color, "va": "center"}
    axes.text(0, 1 - below / sheet.side, text, transform=axes.transAxes, **style)
