"""report.html: one file with everything about a run: scores, plots, samples, classes, data and recipe."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hf_vit_seg.atomic_io import write_text
from hf_vit_seg.drawing.data_urls import data_url, image_url
from hf_vit_seg.training.checkpoints.run_directory import FACTS, PLOTS, RECIPE, REPORT, SAMPLES
from hf_vit_seg.training.reports.metrics_report import (
    MetricsReport,
    about,
    class_cells,
    decimal,
    describe_never_predicted,
    title_of,
)

TEMPLATE = Path(__file__).with_name("report.html.j2")
WIDEST, QUALITY = 1600, 85  # of samples, which are embedded as JPEG
BATCHES, EXTREMES = "training_batch_", ("worst_", "best_")


@dataclass(frozen=True)
class Embedded:
    """A figure as a data URL with its caption."""

    source: str
    caption: str


def write_html_report(directory: Path, report: MetricsReport | None) -> Path:
    """Write report.html for the run in `directory` from its plots, samples, recipe and data facts, atomically.

    `report` has the scores; None before the first evaluation.
    """
    from jinja2 import Environment

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text("utf-8")
    )
    plots, samples = sorted((directory / PLOTS).glob("*.png")), sorted((directory / SAMPLES).glob("*.png"))
    batches = [path for path in plots if path.stem.startswith(BATCHES)]
    extremes = [path for path in samples if path.stem.startswith(EXTREMES)]
    header, rows = class_cells(report) if report else ([], [])
    recipe, never = directory / RECIPE, report and describe_never_predicted(report)
    text = template.render(
        name=directory.resolve().name,
        summary=about(report) if report else "No evaluation yet.",
        warnings=[never] if never else [],
        scores=[(title_of(name), decimal(value)) for name, value in report.numbers().items()] if report else [],
        sections=[
            ("Training and evaluation", embed_all(path for path in plots if path not in batches)),
            ("Lowest and highest scores", embed_all(extremes)),
            ("Predictions", embed_all(path for path in samples if path not in extremes)),
            ("Training batches", embed_all(batches)),
        ],
        class_header=header,
        classes=rows,
        data=data_rows(directory / FACTS),
        recipe=recipe.read_text("utf-8") if recipe.exists() else "",
    )
    write_text(directory / REPORT, text)
    return directory / REPORT


def embed_all(paths: Iterable[Path]) -> list[Embedded]:
    """Embed image files; plots as they are, larger images as JPEG."""
    return [embed(path) for path in paths]


def embed(path: Path) -> Embedded:
    """Embed an image file as a data URL."""
    caption = path.stem.replace("_", " ")
    if path.parent.name == PLOTS and not path.stem.startswith(BATCHES):
        return Embedded(data_url(path.read_bytes(), "PNG"), caption)
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
