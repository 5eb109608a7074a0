"""Terminal output and exit code of `export`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hf_vit_seg.error_reporting import print_result
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
from hf_vit_seg.inference.runtimes import find_task
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.records import RecordError

from .exported_model import ExportOptions, export_model
from .exporters import EXPORTERS
from .parity import Parity, ParityError


def run_export(
    model: str,
    out: Path,
    to: str,
    export_options: ExportOptions,
    options: dict[str, Any],
    *,
    overwrite: bool = False,
    score: Callable[[Segmenter], float] | None = None,
    convert: bool = True,
) -> int:
    """Export, print the parity check, and return the exit code: 1 if the check fails."""
    console = Console(soft_wrap=True, highlight=False)
    exporter = EXPORTERS.read(to, options, "--to")
    kind = InstanceSegmenter if find_task(model) == "instance" else Segmenter
    segmenter = kind.from_pretrained(model, "cpu", convert=convert)
    if score is not None and not isinstance(segmenter, Segmenter):
        raise RecordError("--recipe measures the mean IoU of classes: omit it for a model that finds objects")
    try:
        parity = export_model(segmenter, out, to, exporter, export_options, overwrite=overwrite, score=score)
    except ParityError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"hf-vit-seg: {error}", markup=False)
        return 1
    print_result(parity_view(parity), lambda: parity.as_json() | {"path": str(out / exporter.file)}, console)
    for when, value in parity.scores.items():
        console.print(f"mean IoU {when} 8 bits: {value:.4f}")
    console.print(f"written to {out / exporter.file}")
    return 0


def parity_view(parity: Parity) -> Table:
    """Format the parity check as a table; 8-bit cases are summarized by mean and worst."""
    table = Table(box=None, title=f"{parity.format}, {parity.dtype}, against the model", title_justify="left")
    for column in ("images", "batch", "size", "largest difference", "equal labels", "no ties"):
        table.add_column(column, justify="left" if column == "images" else "right")
    cases = parity.cases
    if parity.dtype == "int8":
        mean = replace(cases[0], images=f"mean of {len(cases)}", agreement=parity.mean_agreement)
        cases = (mean, replace(parity.worst, images=f"worst: {parity.worst.images}"))
    for case in cases:
        difference = "" if case.difference is None else f"{case.difference:.1e} sd"
        size = f"{case.height}x{case.width}"
        wrong = "" if case.wrong is None else str(case.wrong)
        table.add_row(escape(case.images), str(case.batch), size, difference, f"{case.agreement:.4%}", wrong)
    return table


def label_size(text: str | None) -> str | tuple[int, int] | None:
    """Parse --label-map: None, "input", or a size such as 1024x2048."""
    return text if text in (None, "input") else sides(text, "--label-map")


def sides(text: str, option: str) -> tuple[int, int]:
    """Parse (height, width) from 512 or 512x1024. Raises RecordError for other text."""
    numbers = text.split("x")
    if not all(number.isdecimal() and int(number) for number in numbers) or len(numbers) > 2:
        raise RecordError(f"{option} takes a size such as 512 or 512x1024 (height x width), found '{text}'")
    return int(numbers[0]), int(numbers[-1])


__all__ = ["label_size", "run_export", "sides"]
