"""report.html: one file with everything about a run: scores, plots, samples, classes, data and recipe."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hf_vit_seg.atomic_io import write_text
from hf_vit_seg.drawing.data_urls import data_url, image_url
from hf_vit_seg.training.checkpoints.run_directory import FACTS, PLOTS, RECIPE, REPORT, SAMPLES, TEST
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS
from hf_vit_seg.training.reports.metrics_report import (
    MetricsReport,
    about,
    class_cells,
    decimal,
    describe_never_predicted,
    read_report,
    score_title,
)

TEMPLATE = Path(__file__).with_name("report.html.j2")
WIDEST, QUALITY = 1600, 85  # samples are embedded as JPEG
BATCHES, EXTREMES = "training_batch_", ("worst_", "best_")
CURVES = ("training", "metrics")


@dataclass(frozen=True)
class Embedded:
    """A figure as a data URL with its caption."""

    source: str
    caption: str


def write_html_report(directory: Path, report: MetricsReport | None) -> Path:
    """Write report.html for the run in `directory` from its plots, samples, recipe and data facts, atomically.

    `report` has the scores; None before the first evaluation. The results on the test split are added if they exist.
    """
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text("utf-8")
    )
    test = directory / TEST
    reports = [report] if report else []
    if (test / METRICS).exists():
        reports.append(read_report(test / METRICS))
    plots, samples = list_images(directory / PLOTS), list_images(directory / SAMPLES)
    batches = [path for path in plots if path.stem.startswith(BATCHES)]
    extremes = [path for path in samples if path.stem.startswith(EXTREMES)]
    sections = [
        ("Training and evaluation", [path for path in plots if path not in batches]),
        ("Best and worst images", extremes),
        ("Predictions", [path for path in samples if path not in extremes]),
        ("Evaluation on the test split", list_images(test / PLOTS)),
        ("Predictions on the test split", list_images(test / SAMPLES)),
        ("Training batches", batches),
    ]
    recipe = directory / RECIPE
    text = template.render(
        name=directory.resolve().name,
        summaries=[about(each) for each in reports] or ["No evaluation yet."],
        warnings=list(filter(None, map(describe_never_predicted, reports))),
        splits=[each.split for each in reports],
        scores=score_rows(reports),
        sections=[(title, [embed(path) for path in paths]) for title, paths in sections],
        class_tables=[(each.split, *class_cells(each)) for each in reports],
        data=data_rows(directory / FACTS),
        recipe=recipe.read_text("utf-8") if recipe.exists() else "",
    )
    write_text(directory / REPORT, text)
    return directory / REPORT


def list_images(directory: Path) -> list[Path]:
    """List the PNG files of a directory: the curves of the training first, the others by name."""
    return sorted(directory.glob("*.png"), key=lambda path: (path.stem not in CURVES, path.stem))


def score_rows(reports: Sequence[MetricsReport]) -> list[list[str]]:
    """Return a row for each metric: its title and its value in each report, empty where a report does not have it."""
    numbers = [report.numbers() for report in reports]
    names = dict.fromkeys(name for each in numbers for name in each)
    return [[score_title(name), *(decimal(each[name]) if name in each else "" for each in numbers)] for name in names]


def embed(path: Path) -> Embedded:
    """Embed an image file as a data URL; images larger than plots are compressed as JPEG."""
    caption = path.stem.replace("_", " ").replace("iou", "IoU")
    if path.parent.name == PLOTS:
        if not path.stem.startswith(BATCHES):
            return Embedded(data_url(path.read_bytes(), "PNG"), caption)
    elif not path.stem.startswith(EXTREMES):
        caption = path.stem  # the name of the image
    with Image.open(path) as image:
        shown = image.convert("RGB")
    shown.thumbnail((WIDEST, shown.height))
    return Embedded(image_url(shown, "JPEG", quality=QUALITY), caption)


def data_rows(facts: Path) -> list[tuple[str, str]]:
    """Read facts of the checked samples from data_facts.json; empty if it does not exist."""
    if not facts.exists():
        return []
    samples = list(json.loads(facts.read_text("utf-8"))["samples"].values())
    shapes = Counter(tuple(sample["shape"]) for sample in samples if sample.get("shape"))
    heights, widths = ([shape[axis] for shape in shapes] for axis in (1, 2))
    rows = [("checked samples", f"{len(samples):,}")]
    if shapes:
        rows.append(("height", f"{min(heights)} .. {max(heights)} pixels"))
        rows.append(("width", f"{min(widths)} .. {max(widths)} pixels"))
        rows.append(("channels", ", ".join(sorted({str(shape[0]) for shape in shapes}))))
    kinds = sorted({sample["dtype"] for sample in samples if sample.get("dtype")})
    faults = sum(sample.get("fault") is not None for sample in samples)
    return [*rows, ("pixel type", ", ".join(kinds)), ("unusable samples", f"{faults:,}")]


__all__ = ["REPORT", "write_html_report"]
