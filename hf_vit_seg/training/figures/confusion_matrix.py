"""The confusion matrix as a picture: small ones with numbers, large ones with a list of the most frequent confusions.

Shapes: K classes, S classes that are shown. Lengths are inches unless said otherwise.
"""

from typing import NamedTuple

import numpy as np

from hf_vit_seg.training.reports.metrics_report import MetricsReport, counts

from .style import FAINT, GRID, INK, MARGIN, SMALL, TEXT, TITLE, Axes, Figure, new_figure, shortened

MOST_CLASSES = 150  # with a row of their own
MOST_NUMBERS = 20  # classes up to which the cells have numbers
FEW = 6  # classes up to which those have a decimal
MOST_PAIRS = 40  # confusions that are listed beside a large matrix
LONGEST_NAME = 20
CELL, SMALL_CELL, LEAST_SIDE = 0.48, 0.14, 3.2
POINTS = 72  # per inch
LETTER = 0.62  # mean width of a letter by its height


class Sheet(NamedTuple):
    """Measures of the picture."""

    side: float  # of the matrix
    edge: float  # at its left and below, for names and the axis' title
    top: float
    right: float
    scale: float  # of words, for a large picture is seen reduced
    points: float  # size of the names


def sheet_for(names: list[str]) -> Sheet:
    """Measures for classes of these names."""
    many = len(names) > MOST_NUMBERS
    side = SMALL_CELL * len(names) if many else max(CELL * len(names), LEAST_SIDE)
    scale = min(max(side / 9, 1.0), 2.0) if many else 1.0
    points = 6.0 if many else TEXT
    edge = max(map(len, names)) * LETTER * points / POINTS + 0.5 * scale + MARGIN
    return Sheet(side, edge, 0.65 * scale, 3.6 * scale if many else 4 * MARGIN, scale, points)


def confusion_figure(report: MetricsReport) -> Figure | None:
    """The confusion matrix, each row divided by its sum; None without one.

    Up to 20 classes have numbers in the cells. Beyond that the most frequent confusions are listed beside it, and of
    more than 150 classes those with the most mistakes are shown.
    """
    if report.confusion is None or not len(report.names):
        return None
    matrix = counts(report.confusion)
    shown = shown_classes(matrix)
    labelled = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, labelled, out=np.full(matrix.shape, np.nan), where=labelled > 0)
    names = [shortened(report.names[k], LONGEST_NAME) for k in shown]
    sheet = sheet_for(names)
    width, height = sheet.edge + sheet.side + sheet.right, sheet.edge + sheet.side + sheet.top
    low, tall = sheet.edge / height, sheet.side / height
    figure = new_figure(width, height, title_of(report, len(shown)), sheet.scale, free=True)
    axes = figure.add_axes((sheet.edge / width, low, sheet.side / width, tall))
    draw_matrix(axes, shares[np.ix_(shown, shown)], names, sheet)
    if len(shown) <= MOST_NUMBERS:
        write_shares(axes, shares)
    else:
        beside = figure.add_axes(((width - sheet.right + 0.3) / width, low, (sheet.right - 0.3) / width, tall))
        list_confusions(beside, matrix, shares, report.names, sheet)
    return figure


def shown_classes(matrix: np.ndarray) -> np.ndarray:
    """Indexes (S,) of the classes in the picture, in their order."""
    mistakes = matrix.sum(axis=1) + matrix.sum(axis=0) - 2 * np.diagonal(matrix)
    return np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CLASSES])


def title_of(report: MetricsReport, shown: int) -> str:
    """What the picture shows, in two lines."""
    classes = len(report.names)
    some = f"the {shown} of {classes} classes with most mistakes, " if shown < classes else ""
    return f"Confusion matrix\n{some}per cent of each row, {report.split} split"


def draw_matrix(axes: Axes, shares: np.ndarray, names: list[str], sheet: Sheet) -> None:
    """Shares (S, S) as blue squares, of which small ones are lifted by a square root to be seen."""
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
    """Per cent in the cells; what never happened stays empty."""
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
    """The pairs of label and prediction by which most is mistaken, as many as fit beside the matrix."""
    axes.set_axis_off()
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    total, line = max(int(wrong.sum()), 1), 3.4 * TEXT * sheet.scale / POINTS
    order = np.argsort(-wrong, axis=None, kind="stable")[: min(MOST_PAIRS, int(sheet.side / line) - 1)]
    pairs = [(label, found) for label, found in (divmod(int(place), len(matrix)) for place in order)]
    write_line(axes, "Most frequent confusions", 0.3 * line, TITLE, INK, sheet)
    for i, (label, found) in enumerate((pair for pair in pairs if wrong[pair]), start=1):
        share = f"{shares[label, found] * 100:.1f} % of {shortened(names[label], LONGEST_NAME)}"
        pair = f"{shortened(names[label], LONGEST_NAME)} taken for {shortened(names[found], LONGEST_NAME)}"
        write_line(axes, pair, (i + 0.3) * line, TEXT, INK, sheet)
        about = f"{share}, {wrong[label, found] / total * 100:.1f} % of all mistakes"
        write_line(axes, about, (i + 0.68) * line, SMALL, FAINT, sheet)


def write_line(axes: Axes, text: str, below: float, points: float, color: str, sheet: Sheet) -> None:
    """A line of text, `below` the upper edge."""
    style = {"fontsize": points * sheet.scale, "color": color, "va": "center"}
    axes.text(0, 1 - below / sheet.side, text, transform=axes.transAxes, **style)
