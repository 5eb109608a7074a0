"""Exact label maps and score maps at any size, without storing the resized logits.

Shapes: B images, K classes, h w the logits' grid, H W the map, n cells, m candidate classes of a cell, P pixels of a
cell along one axis.

The label of a pixel is the arg-max over K of bilinearly resized logits. A resized value is a convex combination of the
four logits at the corners of its cell. Hence, within a cell:

- a class that is the largest at all four corners is the largest everywhere, without any computation;
- a class below some convex combination of classes (here the mean of the corners' winners) at all four corners is below
  it everywhere and cannot win: only the few others, the candidates, are resized.

On photos, the first rule leaves 5 to 15 % of the cells ("mixed"), and the second leaves 2 candidates on average.
"""

from collections.abc import Iterator

import torch

from .bilinear import Axis, RowResizing, resize_columns, split_axis, working_dtype
from .errors import HfVitSegError

CHUNK_BYTES = 32 * 2**20
CANDIDATE_GROUPS = (4, 16)  # mixed cells are resolved together with others of about as many candidates
CROWDED = 0.25  # fraction of candidates among all classes above which resizing all of them is faster


def label_map(
    logits: torch.Tensor,
    size: tuple[int, int] | None = None,
    *,
    dtype: torch.dtype = torch.int64,
    chunk_bytes: int = CHUNK_BYTES,
) -> torch.Tensor:
    """Return the most likely class of every pixel at another size: logits (B, K, h, w) -> labels (B, H, W).

    Equal to `interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)` except for ties within the
    rounding of float32 (float64 for float64 logits); among exactly tied classes, the first wins. Logits in half
    precision are resized in float32. With a single class, labels are 1 if its probability exceeds one half, otherwise
    0. NaN is treated as the lowest number, infinities as the largest finite ones.

    `size` is (height, width), by default the logits' own; `dtype` an integer type that holds K - 1. Working memory
    is about `chunk_bytes`, or a few bytes per pixel of the map if that is more.
    """
    size = resolve_size(logits, size)
    classes = max(logits.shape[1], 2)
    if classes - 1 > torch.iinfo(dtype).max:
        raise HfVitSegError(f"{classes} classes do not fit into labels of {dtype}")
    labels = torch.empty((len(logits), *size), dtype=dtype, device=logits.device)
    with torch.no_grad():
        for image, out in zip(logits, labels, strict=True):
            small = len(image) == 1 or 2 * out.numel() < image[0].numel()
            if small or not write_labels(image, out, chunk_bytes):
                for rows, planes in resize_in_strips(image, size, chunk_bytes):
                    out[rows] = planes[0] > 0 if len(image) == 1 else planes.max(0).indices
    return labels


def score_map(
    logits: torch.Tensor, size: tuple[int, int] | None = None, *, chunk_bytes: int = CHUNK_BYTES
) -> torch.Tensor:
    """Return the probability of every pixel's most likely class: logits (B, K, h, w) -> scores (B, H, W) of 0 .. 1.

    The largest softmax of the resized logits, in float32 or float64. With a single class, the sigmoid: the probability
    of label 1. Working memory as for `label_map`.
    """
    size = resolve_size(logits, size)
    kind = working_dtype(logits)
    scores = torch.empty((len(logits), *size), dtype=kind, device=logits.device)
    with torch.no_grad():
        for image, out in zip(logits, scores, strict=True):
            for rows, planes in resize_in_strips(image, size, chunk_bytes):
                if len(image) == 1:
                    out[rows] = planes[0].sigmoid()
                else:
                    out[rows] = planes.sub_(planes.amax(0)).exp_().sum(0).reciprocal_()
    return scores


def resolve_size(logits: torch.Tensor, size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the map's (height, width); ValueError if `logits` is not a batch of logit maps."""
    if logits.ndim != 4 or not logits.is_floating_point() or 0 in logits.shape[1:]:
        raise HfVitSegError(
            "Label maps need floating-point logits of shape (images, classes, height, width), got "
            f"{logits.dtype} of shape {tuple(logits.shape)}"
        )
    height, width = logits.shape[-2:] if size is None else map(int, size)
    if height < 1 or width < 1:
        raise HfVitSegError(f"Label maps need at least one pixel, got size {(height, width)}")
    return height, width


def finite(logits: torch.Tensor) -> torch.Tensor:
    """Convert logits to float32 or float64, and replace NaN and infinities."""
    logits = logits.to(working_dtype(logits))
    if torch.isfinite(logits.sum()):
        return logits
    bound = torch.finfo(logits.dtype).max / 8  # so that the sum of four corners is finite
    return logits.nan_to_num(nan=-bound).clamp(-bound, bound)


def resize_in_strips(
    logits: torch.Tensor, size: tuple[int, int], chunk_bytes: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Resize logits (K, h, w) a few rows at a time, and yield the rows with their logits (K, rows, W)."""
    kind = working_dtype(logits)
    height, width = size
    resizing = RowResizing(logits.shape[1], height, kind, logits.device)
    step = max(1, chunk_bytes // (4 * len(logits) * max(width, logits.shape[2]) * kind.itemsize))
    for first in range(0, height, step):
        rows = slice(first, min(first + step, height))
        planes = resizing.resize(logits, rows, dim=1, convert=finite)  # (K, rows, w)
        yield rows, resize_columns(planes.contiguous()[None], width)[0]


def write_labels(logits: torch.Tensor, labels: torch.Tensor, chunk_bytes: int) -> bool:
    """Fill `labels` (H, W) from logits (K, h, w), some rows of cells at a time; False for too many candidates."""
    classes, height, width = logits.shape
    kind = working_dtype(logits)
    rows = split_axis(height, labels.shape[0], kind, logits.device)
    columns = split_axis(width, labels.shape[1], kind, logits.device)
    step = max(1, chunk_bytes // (8 * width * classes * kind.itemsize))
    for first in range(0, height + 1, step):
        stop = min(first + step, height + 1)
        samples = logits[:, max(first - 1, 0) : min(stop, height)]
        values = finite(samples.permute(1, 2, 0)).contiguous()  # (r, w, K): a sample's logits are contiguous
        out = labels[rows.start[first] : rows.start[stop]]
        if not write_cells(values, out, rows.cells(first, stop), columns, chunk_bytes):
            return False
    return True


def write_cells(values: torch.Tensor, labels: torch.Tensor, rows: Axis, columns: Axis, chunk_bytes: int) -> bool:
    """Apply `write_labels` to some rows of cells, whose samples are `values` (r, w, K)."""
    winners = values.argmax(2).to(labels.dtype)  # (r, w)
    upper, lower = winners[rows.lower], winners[rows.upper]
    corners = torch.stack(
        [upper[:, columns.lower], upper[:, columns.upper], lower[:, columns.lower], lower[:, columns.upper]]
    )
    labels.copy_(corners[0][rows.cell][:, columns.cell])
    mixed = (corners != corners[0]).any(0)
    mixed &= (rows.start.diff() > 0)[:, None] & (columns.start.diff() > 0)
    row, column = mixed.nonzero(as_tuple=True)
    step = max(1, chunk_bytes // (8 * values.shape[2] * values.itemsize))
    for part in torch.arange(len(row), device=row.device).split(step):
        i, j = row[part], column[part]
        if not write_mixed_cells(values, corners[:, i, j].long(), labels, rows, columns, i, j):
            return False
    return True


def write_mixed_cells(
    values: torch.Tensor,
    winners: torch.Tensor,
    labels: torch.Tensor,
    rows: Axis,
    columns: Axis,
    row: torch.Tensor,
    column: torch.Tensor,
) -> bool:
    """Write the pixels of the n cells at (row, column), whose corners have different `winners` (4, n)."""
    above, below = rows.lower[row], rows.upper[row]
    left, right = columns.lower[column], columns.upper[column]
    corners = torch.stack([values[above, left], values[above, right], values[below, left], values[below, right]])
    w = corners.gather(2, winners.T.expand(4, -1, -1))  # (4, n, 4): the winners' logits at each corner
    mean = (
        (w[..., 0] + w[..., 1]) + (w[..., 2] + w[..., 3])
    ) * 0.25  # summed in pairs, so that rounding never exceeds the largest
    candidates = (corners >= mean[..., None]).any(0)  # (n, K)
    counts = candidates.sum(1)
    classes = candidates.shape[1]
    if classes > CANDIDATE_GROUPS[0] and counts.sum() > CROWDED * candidates.numel():
        return False
    at_least = 0
    for at_most in (*CANDIDATE_GROUPS, classes):
        cells = ((counts > at_least) & (counts <= at_most)).nonzero()[:, 0]
        at_least = max(at_least, at_most)
        if not len(cells):
            continue
        table = true_indices(candidates[cells])  # (n, m)
        picked = corners[:, cells].gather(2, table.expand(4, -1, -1))  # (4, n, m)
        write_largest(picked, table, labels, rows, columns, row[cells], column[cells])
    return True


def true_indices(chosen: torch.Tensor) -> torch.Tensor:
    """Return the indices of each row's true entries, ascending: (n, K) -> (n, m); shorter rows repeat their first
    index.
    """
    row, index = chosen.nonzero(as_tuple=True)
    counts = chosen.sum(1)
    first = counts.cumsum(0) - counts
    table = index[first][:, None].repeat(1, int(counts.max()))
    table[row, torch.arange(len(row), device=row.device) - first[row]] = index
    return table


def write_largest(
    corners: torch.Tensor,
    classes: torch.Tensor,
    labels: torch.Tensor,
    rows: Axis,
    columns: Axis,
    row: torch.Tensor,
    column: torch.Tensor,
) -> None:
    """Resize the candidates' logits `corners` (4, n, m) within their cells, and write the class of the largest."""
    down, across = rows.weights[row][:, :, None], columns.weights[column][:, None, :]  # (n, P, 1), (n, 1, P)
    indices = classes.to(labels.dtype)[:, :, None, None]
    best = label = torch.empty(0)
    for candidate in range(classes.shape[1]):
        a, b, c, d = corners[:, :, candidate, None, None]  # (n, 1, 1) each
        value = (1 - down) * ((1 - across) * a + across * b) + down * ((1 - across) * c + across * d)
        if candidate == 0:
            best, label = value, indices[:, 0].expand(value.shape)
            continue
        label = torch.where(value > best, indices[:, candidate], label)
        best = torch.maximum(best, value)
    labels[rows.pixels[row][:, :, None], columns.pixels[column][:, None, :]] = label


__all__ = ["label_map", "score_map"]
