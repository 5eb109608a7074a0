"""The command `hf-vit-seg check-data`: check every file of a recipe, and write a report and contact sheets.

report.json            the complete report
train.png ...          a contact sheet of each split
facts.json             cached facts of each file, for later checks
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_vit_seg.atomic_io import write_files
from hf_vit_seg.data.checks.check import SPLITS, check
from hf_vit_seg.data.checks.report import UNITS, CheckReport, Occurrence, SplitFacts
from hf_vit_seg.data.datasets import Split
from hf_vit_seg.data.labels.segment_classes import SEGMENT_TASKS
from hf_vit_seg.data.list_formatting import format_list
from hf_vit_seg.directory_lock import lock_directory
from hf_vit_seg.drawing.overlays import percent
from hf_vit_seg.error_reporting import is_quiet, print_result
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.figures.contact_sheet import contact_sheet
from hf_vit_seg.training.losses.class_weights import RULES, class_weights
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.reports.json_values import json_line, json_value

from .model.queries import recipe_queries
from .recipe.paths import describe_data
from .recipe_loading import load_recipe

REPORT, FACTS = "report.json", "facts.json"
SUGGESTED = ("inverse_root", "median_frequency")
WITHOUT_WEIGHTS = frozenset({"pose", *SEGMENT_TASKS})
MAX_LINES = 20  # lines of each kind on the console; the report is complete


def check_data(
    source: str | Path, settings: Sequence[str] = (), out: Path | None = None, splits: Sequence[str] = SPLITS
) -> bool:
    """Check the data of a recipe, print a summary, and write a report to `out` (default: data-check/NAME).

    Returns whether no problems were found. Raises ValueError for a recipe or data that cannot be opened.
    """
    recipe = load_recipe(source, settings)
    folder = out or Path("data-check") / recipe.name
    with lock_directory(folder):
        report = check(recipe, select_splits(splits), folder / FACTS, progress=not is_quiet())
        report = replace(report, queries=recipe_queries(recipe))
        if not report.splits:
            raise RecordError(f"{source} has no data for {' and '.join(splits)}")
        console = Console()
        for line in describe_data({split: getattr(recipe.data, split) for split in report.splits}):
            console.print(escape(line), soft_wrap=True, highlight=False)
        print_report(recipe, report, console)
        write_check(recipe, report, folder)
    console.print(f"report and contact sheets: {escape(str(folder))}", soft_wrap=True, highlight=False)
    return not report.problems


def select_splits(names: Sequence[str]) -> list[Split]:
    """Select splits by name, in the usual order; RecordError for unknown names."""
    if unknown := [name for name in names if name not in SPLITS]:
        raise RecordError(f"unknown split '{unknown[0]}'; splits are {', '.join(SPLITS)}")
    return [split for split in SPLITS if split in names]


def write_check(recipe: Recipe, report: CheckReport, folder: Path) -> None:
    """Write the report, and a contact sheet for each split with readable samples."""
    text = json_line(report_content(recipe, report))
    files: dict[Path, Any] = {folder / REPORT: lambda path: Path(path).write_text(text, encoding="utf-8")}
    for split, part in report.splits.items():
        if len(part.faults) < len(part.facts):
            files[folder / f"{split}.png"] = contact_sheet(part).save
    write_files(files)


def suggest_class_weights(report: CheckReport) -> dict[str, list[float]]:
    """Compute class weights (K,) of the training split by rule; empty for tasks whose models compute the loss."""
    part = report.splits.get("train")
    if part is None or report.task in WITHOUT_WEIGHTS:
        return {}
    counts = report.class_counts()
    weights = {rule: class_weights(rule, len(counts), counts) for rule in RULES if rule in SUGGESTED}
    return {rule: [round(value, 4) for value in found.tolist()] for rule, found in weights.items() if found is not None}


def report_content(recipe: Recipe, report: CheckReport) -> dict[str, Any]:
    """Convert the report to JSON values."""
    return {
        "recipe": recipe.name,
        "task": report.task,
        "unit": UNITS[report.task],
        "problems": report.problems,
        "warnings": report.warnings,
        "suggested_class_weights": suggest_class_weights(report),
        "splits": {str(split): split_content(part) for split, part in report.splits.items()},
    }


def split_content(part: SplitFacts) -> dict[str, Any]:
    """Convert the facts of a split to JSON values."""
    names = part.table.names
    return {
        "samples": len(part.facts),
        "faults": part.faults,
        "skipped": part.skipped_samples,
        "turned_by_orientation": len(part.rotated_samples),
        "channels_and_dtypes": dict(part.kinds),
        "sizes": {"x".join(map(str, size)): count for size, count in part.sizes.most_common()},
        "classes": [
            {"name": name, "count": found.count, "samples": len(found.samples)}
            for name, found in zip(names, part.classes, strict=True)
        ],
        "not_counted": part.ignored_count,
        "objects": object_content(part),
        "raw_values": [
            {"value": raw, "meaning": part.class_name(raw), "count": found.count, "samples": len(found.samples)}
            for raw, found in part.values.items()
        ],
        "unknown_values": [
            {"value": raw, "count": found.count, "samples": [part.dataset.location(index) for index in found.samples]}
            for raw, found in part.unknown.items()
        ],
    }


def object_content(part: SplitFacts) -> dict[str, Any] | None:
    """Convert the facts of objects to JSON values; None for other tasks."""
    if part.dataset.task not in SEGMENT_TASKS:
        return None
    counts = [facts.objects.count for facts in part.facts if facts.objects is not None]
    totals = {name: part.object_total(name) for name in ("count", "tiny", "split", "hidden", "overlaps")}
    samples = {name: part.samples_with(name) for name in ("tiny", "split", "hidden", "overlaps")}
    return totals | {
        "most_in_a_sample": max(counts, default=0),
        "samples": {name: [part.dataset.location(index) for index in found] for name, found in samples.items()},
    }


def print_report(recipe: Recipe, report: CheckReport, console: Console) -> None:
    """Print a summary of each split, the classes, problems and warnings."""
    write_line = partial(console.print, soft_wrap=True, highlight=False)
    for part in report.splits.values():
        write_line(escape(summary(part)))
    weights = "; suggested class weights by two rules" if suggest_class_weights(report) else ""
    write_line(f"\nshare of the {UNITS[report.task]}, and number of samples with the class{weights}", style="dim")
    print_result(class_view(report), lambda: json_value(report_content(recipe, report)), console)
    for title, style, sentences in (("problem", "red", report.problems), ("warning", "yellow", report.warnings)):
        for sentence in sentences[:MAX_LINES]:
            write_line(f"[{style}]{title}[/] {escape(sentence)}")
        if len(sentences) > MAX_LINES:
            write_line(f"[{style}]{len(sentences) - MAX_LINES} more {title}s[/] are in the report")
    if not report.problems:
        write_line("[green]no problems[/]: every file can be used")


def summary(part: SplitFacts) -> str:
    """Describe a split in a line: number of samples, sizes, channels and dtypes."""
    areas = sorted(part.sizes, key=lambda size: size[0] * size[1])
    sizes = " to ".join(dict.fromkeys("x".join(map(str, size)) for size in (areas[0], areas[-1]))) if areas else "-"
    kinds = format_list(part.kinds, 5) or "none that can be read"
    rotated = f", {len(part.rotated_samples)} turned upright by their orientation tag" if part.rotated_samples else ""
    counts = [facts.objects.count for facts in part.facts if facts.objects is not None]
    unit = UNITS[part.dataset.task]
    objects = f", {sum(counts)} {unit} ({min(counts)} to {max(counts)} in a sample)" if counts else ""
    return f"{part.split}: {len(part.facts)} samples of {sizes} pixels (height x width), {kinds}{objects}{rotated}"


def class_view(report: CheckReport) -> Table:
    """Return a table of classes with raw values, shares and weights, and of ignored and unknown values."""
    parts, weights = list(report.splits.values()), suggest_class_weights(report)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("class", no_wrap=True)
    table.add_column("values", overflow="fold")
    for part in parts:
        table.add_column(part.split, justify="right", no_wrap=True)
        table.add_column("in", justify="right", no_wrap=True)
    for rule in weights:
        table.add_column(rule.replace("_", "\n"), justify="right", no_wrap=True)
    for index, name in enumerate(parts[0].table.names):
        values = format_list([raw for raw, target in parts[0].targets.items() if target == index], 4)
        cells = occurrence_cells((part, part.classes[index]) for part in parts)
        table.add_row(escape(name), values, *cells, *(f"{column[index]:.3g}" for column in weights.values()))
    if any(part.ignored_count for part in parts):
        cells = [cell for part in parts for cell in (share(part, part.ignored_count), "")]
        table.add_row("not counted", "", *cells, style="dim")
    for raw in list(dict.fromkeys(raw for part in parts for raw in part.unknown))[:MAX_LINES]:
        cells = occurrence_cells((part, part.unknown.get(raw, Occurrence())) for part in parts)
        table.add_row("unknown", str(raw), *cells, style="red")
    return table


def occurrence_cells(occurrences: Iterable[tuple[SplitFacts, Occurrence]]) -> list[str]:
    """Return the share and the number of samples of a row, for each split."""
    return [cell for part, o in occurrences for cell in (share(part, o.count), str(len(o.samples)))]


def share(part: SplitFacts, count: int) -> str:
    """Format a count as a share of a split's total."""
    total = sum(found.count for found in part.values.values())
    return percent(count / total) if total else "-"


__all__ = ["check_data"]
