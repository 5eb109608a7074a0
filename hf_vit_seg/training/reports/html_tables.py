"""Tables in HTML, which notebooks display."""

from collections.abc import Iterable, Sequence
from html import escape


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table; the cells of all columns but the first are aligned to the right."""
    parts = [table_row("th", header), *(table_row("td", row) for row in rows)]
    return f"<table>{''.join(parts)}</table>"


def table_row(tag: str, cells: Sequence[str]) -> str:
    """Return a <tr> with escaped cells, the first aligned left; `tag` is th or td."""
    sides = ["left", *["right"] * (len(cells) - 1)]
    shown = (
        f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True)
    )
    return f"<tr>{''.join(shown)}</tr>"


def paragraph(text: str) -> str:
    """Format a paragraph."""
    return f"<p>{escape(text)}</p>"


__all__ = ["paragraph", "table"]
