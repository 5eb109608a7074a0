"""The style of plots. Matplotlib is used without pyplot, so there is no global state.

The colors are Okabe and Ito's, which are distinguishable with any color vision (jfly.uni-koeln.de/color).
"""

from collections.abc import Sequence
from typing import Any

from hf_vit_seg.drawing.fonts import fallback_families

BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
INK, FAINT, GRID, TRACK, PAPER = "#1f2328", "#6e7781", "#e4e7eb", "#f1f3f5", "#ffffff"
TITLE, TEXT, SMALL = 12.0, 9.0, 7.5  # font sizes in points
DPI = 150
MARGIN, GAP = 0.12, 0.05  # around axes in inches, and between them as a share of their size

Figure = Any  # matplotlib.figure.Figure; matplotlib is imported when the first plot is drawn
Axes = Any


def new_figure(width: float, height: float, title: str = "", scale: float = 1.0, free: bool = False) -> Figure:
    """Create an empty figure with a size in inches for the Agg backend, which needs no display.

    The title is enlarged by `scale`. Axes are arranged without overlaps, unless they are placed manually (`free`).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as PlotFigure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = None if free else ConstrainedLayoutEngine(w_pad=MARGIN, h_pad=MARGIN, wspace=GAP)
    figure = PlotFigure(figsize=(width, height), dpi=DPI, facecolor=PAPER, layout=layout)
    FigureCanvasAgg(figure)
    if title:
        # The constrained layout reserves space for a title only if its y is not set.
        height_given = {"y": 1 - MARGIN / height} if free else {}
        place = {"x": MARGIN / width, "ha": "left", "va": "top", **height_given}
        figure.suptitle(escape_text(title), fontsize=TITLE * scale, color=INK, **place)
    return figure


def style_axes(axes: Axes, title: str = "", x: str = "", y: str = "", grid: str = "y") -> Axes:
    """Style axes without a frame: a title at the left, thin grid lines along `grid` (x, y or both), axis labels."""
    axes.set_title(escape_text(title), loc="left", fontsize=TITLE - 1, color=INK, pad=8)
    axes.set_xlabel(x, fontsize=TEXT, color=FAINT)
    axes.set_ylabel(y, fontsize=TEXT, color=FAINT)
    axes.tick_params(labelsize=TEXT, colors=FAINT, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis=grid, color=GRID, linewidth=0.8)
    axes.margins(x=0.01)
    return axes


def integer_steps(axes: Axes, steps: Sequence[float]) -> None:
    """Put the ticks of the x axis on whole steps, with room around a single one."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    if len(steps) and min(steps) == max(steps):
        axes.set_xlim(steps[0] - 1, steps[0] + 1)


def set_font_families(figure: Figure) -> None:
    """Set the fonts of a complete figure so that they have the characters of all its texts."""
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    families = fallback_families(text.get_text() for text in texts)
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)


def escape_text(text: str) -> str:
    """Escape dollar signs, which would start a formula in matplotlib."""
    return text.replace("$", r"\$")


def truncate_name(name: str, length: int) -> str:
    """Truncate a name to `length` characters."""
    return escape_text(name if len(name) <= length else name[: length - 1].rstrip() + "…")
