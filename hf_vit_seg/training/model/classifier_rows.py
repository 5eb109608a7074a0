"""A pretrained classifier for other classes: rows go by the class's name, the rest begins anew.

Shapes: K classes; a tensor has its K rows on any axis.
"""

from collections.abc import Mapping, Sequence

import torch


def matching_rows(old: Sequence[str], new: Sequence[str]) -> dict[int, int]:
    """For each new class that is among the old ones, case and outer spaces aside, its row there: {new: old}."""
    places: dict[str, int] = {}
    for row, name in enumerate(old):
        places.setdefault(name.strip().casefold(), row)
    rows = {row: places.get(name.strip().casefold()) for row, name in enumerate(new)}
    return {new_row: old_row for new_row, old_row in rows.items() if old_row is not None}


def fitted(fresh: torch.Tensor, trained: torch.Tensor, axis: int, rows: Mapping[int, int]) -> torch.Tensor | None:
    """`fresh`, with the rows {new: old} of `trained` in it; None where the tensors differ in more than their rows."""
    others = [(shape[:axis], shape[axis + 1 :]) for shape in (fresh.shape, trained.shape)]
    if others[0] != others[1] or max(rows.values(), default=-1) >= trained.shape[axis]:
        return None
    result = fresh.clone()
    for new_row, old_row in rows.items():
        result.select(axis, new_row).copy_(trained.select(axis, old_row))
    return result


def fit_in_words(names: Sequence[str], rows: Mapping[int, int]) -> str:
    """Which classes came along and which begin anew."""
    kept = [name for row, name in enumerate(names) if row in rows]
    anew = [name for row, name in enumerate(names) if row not in rows]
    if not anew:
        return f"the rows of all {len(names)} classes come from the checkpoint, by name"
    if not kept:
        return f"all {len(names)} rows are initialized anew, none of the classes is the checkpoint's"
    return f"the rows of {enumerated(kept)} come from the checkpoint; those of {enumerated(anew)} are initialized anew"


def enumerated(names: Sequence[str], most: int = 20) -> str:
    """Names in a row, of very many the first."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
