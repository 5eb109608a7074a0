"""Curves over the steps of a run: loss, learning rate, gradient norm, speed, and the metrics of evaluations.

Shapes: T lines of the log.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_vit_seg.training.recipe.metric_names import SMALLER_IS_BETTER
from hf_vit_seg.training.reports.metrics_report import PER_CLASS, TITLES, score_title
from hf_vit_seg.training.reports.run_log import Line

from .style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    RED,
    SMALL,
    TEXT,
    Axes,
    Figure,
    escape_text,
    integer_steps,
    new_figure,
    style_axes,
)

OUTLIERS = 0.02  # share of the highest losses (and norms) that may exceed the axis
REACH = 50  # smoothing: the mean over 1/50 of the run on either side
MAX_METRICS = 6
MAX_GROUPS = 4  # learning rates that are drawn apart
GROUP_COLORS = (BLUE, GREEN, RED, INK)
WIDE = 20  # ratio of learning rates that needs a logarithmic axis
# The main metric by task, unless the run sets one.
MAIN_METRICS = ("mean_iou", "accuracy", "mean_average_precision", "oks_ap")


class Panel(NamedTuple):
    """A value of the log with its own panel."""

    name: str
    title: str
    color: str
    smooth: bool = False
    clip: bool = False


PANELS = (
    Panel("loss", "loss", BLUE, smooth=True, clip=True),
    Panel("learning_rate", "learning rate", ORANGE),
    Panel("grad_norm", "gradient norm before clipping", GREEN, smooth=True, clip=True),
    Panel("images_per_second", "images per second", RED, smooth=True),
)


def training_figure(lines: Sequence[Line]) -> Figure | None:
    """Draw a panel for each logged value of the steps; None if there are none."""
    logged = [line for line in lines if "evaluation" not in line]
    evaluations = [{"step": line["step"], **line["evaluation"]} for line in lines if "evaluation" in line]
    panels = [(panel, *series(logged, panel.name)) for panel in PANELS]
    panels = [(panel, steps, values) for panel, steps, values in panels if np.isfinite(values).any()]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    figure = new_figure(11 if len(panels) > 1 else 6.5, 3.1 * rows + 0.4)
    grid = figure.subplots(rows, min(len(panels), 2), squeeze=False).flatten()
    for axes, (panel, steps, values) in zip(grid, panels, strict=False):
        draw_panel(axes, panel, steps, values)
        if panel.name == "loss":
            draw_validation_loss(axes, *series(evaluations, "loss"))
        elif panel.name == "learning_rate":
            draw_group_rates(axes, [line for line in logged if "learning_rates" in line])
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def series(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps (T,) and values (T,) of the lines with `name`; values that are not numbers are NaN."""
    points = [(line["step"], line[name]) for line in lines if name in line]
    values = [float(value) if isinstance(value, int | float) else np.nan for _, value in points]
    return np.array([step for step, _ in points], dtype=float), np.array(values, dtype=float)


def draw_panel(axes: Axes, panel: Panel, steps: np.ndarray, values: np.ndarray) -> None:
    """Draw a curve, smoothed if it is noisy, and mark steps with values that are not finite."""
    style_axes(axes, panel.title, x="step")
    noisy = panel.smooth and len(values) > 10
    marker = "o" if np.isfinite(values).sum() == 1 else None
    axes.plot(
        steps, values, color=panel.color, linewidth=0.8 if noisy else 1.8, alpha=0.3 if noisy else 1, marker=marker
    )
    if noisy:
        axes.plot(steps, moving_average(values, max(len(values) // REACH, 2)), color=panel.color, linewidth=1.8)
    finite = values[np.isfinite(values)]
    axes.yaxis.set_major_formatter("{x:.3g}")
    integer_steps(axes, steps.tolist())
    if panel.clip and len(finite) > 1 / OUTLIERS:
        top = float(np.quantile(finite, 1 - OUTLIERS))
        axes.set_ylim(top=top + 0.05 * (top - finite.min()))
    if panel.clip and finite.min() >= 0:
        axes.set_ylim(bottom=0)
    broken = steps[~np.isfinite(values)]
    if len(broken):
        axes.vlines(broken, 0, 1, transform=axes.get_xaxis_transform(), color=RED, linewidth=0.8, alpha=0.6)
        message = f"not finite at {len(broken)} steps"
        axes.text(0.99, 0.96, message, transform=axes.transAxes, ha="right", va="top", color=RED, fontsize=SMALL)


def draw_validation_loss(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """Add the validation loss, if it has values, to the panel of the training loss, with a legend."""
    finite = np.isfinite(values)
    if not finite.any():
        return
    axes.lines[-1].set_label("training")
    axes.plot(steps[finite], values[finite], color=ORANGE, linewidth=1.8, marker="o", markersize=4, label="validation")
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, 1.05 * float(values[finite].max())))
    axes.autoscale(axis="x")
    integer_steps(axes, [*axes.lines[0].get_xdata(), *steps[finite]])
    axes.legend(frameon=False, fontsize=TEXT, loc="best")


def draw_group_rates(axes: Axes, lines: Sequence[Line]) -> None:
    """Draw the learning rate of each group of parameters, or the range of many; nothing if all have one rate."""
    if not lines:
        return
    axes.lines[-1].set_label("recipe")
    steps = [line["step"] for line in lines]
    names = list(dict.fromkeys(name for line in lines for name in line["learning_rates"]))
    rates = np.array([[line["learning_rates"].get(name, np.nan) for line in lines] for name in names], dtype=float)
    marker = "o" if len(steps) == 1 else None
    if len(names) <= MAX_GROUPS:
        for name, values, color in zip(names, rates, GROUP_COLORS, strict=False):
            axes.plot(steps, values, color=color, linewidth=1.2, marker=marker, label=escape_text(name))
    else:
        low, high = np.nanmin(rates, axis=0), np.nanmax(rates, axis=0)
        axes.fill_between(steps, low, high, color=FAINT, alpha=0.25, label=f"{len(names)} groups")
    positive = rates[rates > 0]
    if positive.size and positive.max() > WIDE * positive.min():
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=SMALL)


def moving_average(values: np.ndarray, reach: int) -> np.ndarray:
    """Compute means (T,) of the finite values among `reach` values on either side, fewer at the ends."""
    finite = np.isfinite(values)
    sums, numbers = (np.concatenate([[0], np.cumsum(part)]) for part in (np.where(finite, values, 0), finite))
    positions = np.arange(len(values))
    first, last = np.maximum(positions - reach, 0), np.minimum(positions + reach + 1, len(values))
    number = numbers[last] - numbers[first]
    return np.divide(sums[last] - sums[first], number, out=np.full(len(values), np.nan), where=number > 0)


def metric_figure(lines: Sequence[Line], metric: str | None = None) -> Figure | None:
    """Draw the scores of the evaluations, and mark the best one; None if there was no evaluation."""
    evaluations = [{"step": line["step"], **line["evaluation"]} for line in lines if "evaluation" in line]
    names = select_metrics(evaluations, metric)
    if not names:
        return None
    figure = new_figure(8, 4.2)
    axes = style_axes(figure.subplots(), score_title(names[0]), x="step")
    colors = [BLUE, ORANGE, GREEN, RED, FAINT, INK]
    for i, name in reversed(list(enumerate(names))):
        weight, opacity = (2.2, 1.0) if i == 0 else (1.1, 0.7)
        style = {"color": colors[i], "linewidth": weight, "marker": "o", "markersize": 1.8 * weight, "alpha": opacity}
        axes.plot(*series(evaluations, name), **style)
    integer_steps(axes, [line["step"] for line in evaluations])
    label_ends(axes, evaluations, names, colors)
    mark_best(axes, *series(evaluations, names[0]), names[0])
    return figure


def select_metrics(evaluations: Sequence[Mapping[str, Any]], metric: str | None) -> list[str]:
    """Return the main metric and other known ones, at most `MAX_METRICS`."""
    names = dict.fromkeys(
        name for line in evaluations for name in line if name not in ("step", "loss") and not name.startswith(PER_CLASS)
    )
    usable = [name for name in names if np.isfinite(series(evaluations, name)[1]).any()]
    main = next((name for name in (metric, *MAIN_METRICS, *usable) if name in usable), None)
    known = [name for name in TITLES if name in usable]
    return [name for name in dict.fromkeys([main, *known]) if name is not None][:MAX_METRICS]


def label_ends(
    axes: Axes, evaluations: Sequence[Mapping[str, Any]], names: Sequence[str], colors: Sequence[str]
) -> None:
    """Write each curve's name next to its last value, without overlap."""
    ends = []
    for name, color in zip(names, colors, strict=False):
        _, values = series(evaluations, name)
        ends.append((float(values[np.isfinite(values)][-1]), name, color))
    low, high = axes.get_ylim()
    gap, position = (high - low) * 0.055, -np.inf
    right = max(line["step"] for line in evaluations)
    for value, name, color in sorted(ends):
        position = max(value, position + gap)
        axes.annotate(
            escape_text(f"{score_title(name)} {value:.3f}"),
            (right, position),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontsize=TEXT,
            fontweight="bold" if name == names[0] else "normal",
            annotation_clip=False,
        )


def mark_best(axes: Axes, steps: np.ndarray, values: np.ndarray, name: str) -> None:
    """Draw a ring around the best value, and write it in the title."""
    best = int(np.nanargmin(values) if name in SMALLER_IS_BETTER else np.nanargmax(values))
    ring = {"marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgecolor": INK}
    axes.plot(steps[best], values[best], clip_on=False, **ring)
    axes.set_title(f"best {values[best]:.4f} at step {int(steps[best])}", loc="right", fontsize=TEXT, color=FAINT)
