"""The report of a conversion or an export."""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from .errors import first_few


@dataclass(frozen=True, kw_only=True)
class Report:
    """Source, model, numbers of tensors, and notes on assumptions; `path` is None if nothing was written."""

    path: Path | None
    source: str
    architecture: str
    variant: str
    model: str
    mapped: int
    dropped: tuple[tuple[str, str], ...]
    parameters: int
    labels: str
    weights: str = ""
    license: str = ""
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """Return titles and texts in order."""
        reasons = dict.fromkeys(reason for _, reason in self.dropped)
        dropped = [f"{first_few(name for name, why in self.dropped if why == reason)}: {reason}" for reason in reasons]
        return [
            ("source", self.source),
            *([("weights", self.weights)] if self.weights else []),
            ("architecture", f"{self.architecture}, variant {self.variant}"),
            ("class", self.model),
            ("tensors", f"{self.mapped} mapped, {len(self.dropped)} dropped"),
            *(("dropped", text) for text in dropped),
            ("parameters", f"{self.parameters:,}"),
            ("labels", self.labels),
            *([("license", self.license)] if self.license else []),
            *(("note", note) for note in self.notes),
            *([("written", str(self.path))] if self.path else []),
        ]

    def lines(self) -> list[str]:
        """Format the report as plain lines."""
        return [f"{title}: {text}" for title, text in self.rows()]

    def __rich__(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for title, text in self.rows():
            table.add_row(title, text, style="yellow" if title == "note" else None)
        return table
