"""Adapt a pretrained classifier to other classes: copy the rows of classes with the same name.

Shapes: K classes; a tensor may have its K rows on any axis.
"""

from collections.abc import Mapping, Sequence

import torch


def matching_rows(old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    """Match classes by name, ignoring case and outer spaces; return {new row: old row}."""
    old_rows: dict[str, int] = {}
    for row, name in enumerate(old):
        old_rows.setdefault(name.strip().casefold(), row)
    rows = {row: old_rows.get(name.strip().casefold()) for row, name in enumerate(new)}
    return {new_row: old_row for new_row, old_row in rows.items() if old_row is not None}


def copy_rows(fresh: torch.Tensor, trained: torch.Tensor, axis: int, rows: Mapping[int, int]) -> torch.Tensor | None:
    """Return a copy of `fresh` with the rows {new: old} of `trained`; None if shapes differ in another axis."""
    others = [(shape[:axis], shape[axis + 1 :]) for shape in (fresh.shape, trained.shape)]
    if others[0] != others[1] or max(rows.values(), default=-1) >= trained.shape[axis]:
        return None
    result = fresh.clone()
    for new_row, old_row in rows.items():
        result.select(axis, new_row).copy_(trained.select(axis, old_row))
    return result


def describe_rows(names: Sequence[str], rows: Mapping[int, int]) -> str:
    """Describe which classes keep their weights, for the log."""
    kept = [name for row, name in enumerate(names) if row in rows]
    new = [name for row, name in enumerate(names) if row not in rows]
    if not new:
        return f"the rows of all {len(names)} classes are copied from the checkpoint, matched by name"
    if not kept:
        return f"all {len(names)} rows are newly initialized: no class name matches the checkpoint's"
    copied = f"the rows of {join_names(kept)} are copied from the checkpoint"
    return f"{copied}; those of {join_names(new)} are newly initialized"


def join_names(names: Sequence[str], max_names: int = 20) -> str:
    """Join names with commas, at most `max_names`."""
    rest = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + rest
