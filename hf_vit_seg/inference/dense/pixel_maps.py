"""Per-pixel maps of an image: labels, scores, entropy and the top classes.

Shapes: B images of equal size, K classes (for models with one class: background and class), k of them, H W pixels,
n rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hf_vit_seg.models.label_maps import CHUNK_BYTES, label_map, score_map

from .protocols import PredictionError
from .row_logits import LogitGrid, RowLogits, resize_rows

COPIES = 4  # copies of a chunk's logits in memory at once


@dataclass(frozen=True)
class MapSelection:
    """The maps to compute in addition to the labels."""

    scores: bool = False
    entropy: bool = False
    top_k: int = 0

    @property
    def probabilities(self) -> bool:
        """Whether probabilities are required."""
        return self.scores or self.entropy or self.top_k > 0


@dataclass(frozen=True, eq=False)
class PixelMaps:
    """Maps of B images: `labels` (B, H, W) and the selected maps, float32 (or float64 like the logits).

    `scores` (B, H, W) is the probability of each pixel's class (for models with one class: of that class), `entropy`
    (B, H, W) the entropy divided by its maximum log K: 0 is certain, 1 is maximum uncertainty. `top_classes` and
    `top_scores` (B, k, H, W) are the most likely classes in descending order, and their probabilities.
    """

    labels: torch.Tensor
    scores: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    top_classes: torch.Tensor | None = None
    top_scores: torch.Tensor | None = None


def read_maps(
    row_logits: Sequence[RowLogits],
    size: tuple[int, int],
    classes: int,
    selection: MapSelection | None = None,
    *,
    dtype: torch.dtype = torch.int64,
    chunk_bytes: int = CHUNK_BYTES,
) -> PixelMaps:
    """Compute the maps at `size` (H, W) from the logits of one or several views of the images.

    With one view, the maps are computed from its resized logits (B, K, h, w). With several, the probabilities (softmax,
    or sigmoid for one class) of the resized logits are averaged, as in mmsegmentation's `aug_test`. `dtype` is the
    dtype of the labels and must hold K - 1. Working memory is about `chunk_bytes`, in addition to logits and maps.
    """
    selection = selection or MapSelection()
    if selection.top_k > max(classes, 2):
        raise PredictionError(f"top_k must be at most the number of classes, {max(classes, 2)}, got {selection.top_k}")
    alone = row_logits[0] if len(row_logits) == 1 else None
    exact = label_map(alone.logits, size, dtype=dtype) if isinstance(alone, LogitGrid) else None
    if isinstance(alone, LogitGrid) and exact is not None and not (selection.entropy or selection.top_k):
        return PixelMaps(exact, score_map(alone.logits, size) if selection.scores else None)
    whole: dict[str, torch.Tensor] = {}  # allocated at once, as a list of chunks would fragment the heap
    first = 0
    for maps in iterate_maps(row_logits, size, classes, selection, dtype=dtype, chunk_bytes=chunk_bytes):
        stop = first + maps["labels"].shape[-2]
        for name, rows in maps.items():
            if first == 0:
                whole[name] = rows.new_empty((*rows.shape[:-2], *size))
            whole[name][..., first:stop, :] = rows
        first = stop
    return PixelMaps(**(whole if exact is None else whole | {"labels": exact}))


def iterate_maps(
    row_logits: Sequence[RowLogits],
    size: tuple[int, int],
    classes: int,
    selection: MapSelection,
    *,
    dtype: torch.dtype = torch.int64,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[dict[str, torch.Tensor]]:
    """Compute the fields of `PixelMaps` in chunks of rows, from top to bottom: {"labels": (B, n, W), ...}."""
    step = rows_per_chunk(row_logits, size, classes, chunk_bytes)
    for first in range(0, size[0], step):
        values = compute_values(row_logits, size, first, min(first + step, size[0]), selection)
        yield compute_maps(values, classes, selection, dtype)


def rows_per_chunk(row_logits: Sequence[RowLogits], size: tuple[int, int], classes: int, chunk_bytes: int) -> int:
    """Return the number of image rows per chunk."""
    taller = max(1.0, *(logits.size[0] / size[0] for logits in row_logits))  # rows of logits per row of the image
    wider = max(size[1], *(logits.size[1] for logits in row_logits))
    return max(1, int(chunk_bytes / (4 * COPIES * classes * wider * taller)))


def compute_values(
    row_logits: Sequence[RowLogits], size: tuple[int, int], first: int, stop: int, selection: MapSelection
) -> torch.Tensor:
    """Compute logits of some rows (B, n, W, K), or probabilities if these are selected or views are averaged."""
    if len(row_logits) == 1 and not selection.probabilities:
        return expand_binary(resize_rows(row_logits[0], size, first, stop))
    mean = expand_binary(resize_rows(row_logits[0], size, first, stop)).softmax(-1)
    for logits in row_logits[1:]:
        mean += expand_binary(resize_rows(logits, size, first, stop)).softmax(-1)
    return mean.div_(len(row_logits)) if len(row_logits) > 1 else mean


def expand_binary(logits: torch.Tensor) -> torch.Tensor:
    """Add background logits of 0 to logits of one class, so that softmax equals sigmoid; others are unchanged."""
    return torch.cat([torch.zeros_like(logits), logits], dim=-1) if logits.shape[-1] == 1 else logits


def compute_maps(
    values: torch.Tensor, classes: int, selection: MapSelection, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Compute the fields of `PixelMaps` from logits or probabilities (B, n, W, K)."""
    best = values.max(-1)
    maps = {"labels": best.indices.to(dtype)}
    if selection.scores:
        maps["scores"] = values[..., 1] if classes == 1 else best.values
    if selection.entropy:
        maps["entropy"] = torch.special.entr(values).sum(-1) / math.log(values.shape[-1])
    if selection.top_k:
        top = values.topk(selection.top_k)
        maps |= {"top_classes": top.indices.to(dtype).permute(0, 3, 1, 2), "top_scores": top.values.permute(0, 3, 1, 2)}
    return maps


__all__ = ["MapSelection", "PixelMaps", "iterate_maps", "read_maps"]
