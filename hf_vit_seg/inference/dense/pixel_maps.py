"""What is known of every pixel: its class, how sure that is, and which classes come next.

Shapes: B images of equal size, K classes (background and class where a model has one), k of them, H W pixels, n rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hf_vit_seg.models.label_maps import CHUNK_BYTES, label_map, score_map

from .protocols import PredictionError
from .row_logits import Canvas, LogitGrid, resized_rows

COPIES = 4  # of a band's logits that are alive at once


@dataclass(frozen=True)
class MapSelection:
    """Which maps are made beside the labels."""

    scores: bool = False
    entropy: bool = False
    top_k: int = 0

    @property
    def probabilities(self) -> bool:
        """Whether labels alone would not do."""
        return self.scores or self.entropy or self.top_k > 0


@dataclass(frozen=True, eq=False)
class PixelMaps:
    """Maps of B images: `labels` (B, H, W), and what else was wanted, float32 (or float64 as the logits).

    `scores` (B, H, W) are the probability of each pixel's class (of a model's one class: of that class), `entropy`
    (B, H, W) that of its probabilities over the largest possible, log K: 0 is certainty, 1 total doubt.
    `top_classes` and `top_scores` (B, k, H, W) are the most likely classes in order, and their probabilities.
    """

    labels: torch.Tensor
    scores: torch.Tensor | None = None
    entropy: torch.Tensor | None = None
    top_classes: torch.Tensor | None = None
    top_scores: torch.Tensor | None = None


def read_maps(
    canvases: Sequence[Canvas],
    size: tuple[int, int],
    classes: int,
    wanted: MapSelection | None = None,
    *,
    dtype: torch.dtype = torch.int64,
    chunk_bytes: int = CHUNK_BYTES,
) -> PixelMaps:
    """The maps at `size` (H, W) of images that were seen once, or in several ways.

    With one canvas of logits (B, K, h, w) they are those of the resized logits. With several the probabilities
    (softmax, or sigmoid for one class) of each one's resized logits are averaged, as in mmsegmentation's `aug_test`.
    `dtype` is that of the labels and holds K - 1. Working memory stays near `chunk_bytes` beside canvases and maps.
    """
    wanted = wanted or MapSelection()
    if wanted.top_k > max(classes, 2):
        raise PredictionError(f"top_k is {wanted.top_k}, but there are {max(classes, 2)} classes only")
    alone = canvases[0] if len(canvases) == 1 else None
    exact = label_map(alone.logits, size, dtype=dtype) if isinstance(alone, LogitGrid) else None
    if isinstance(alone, LogitGrid) and exact is not None and not (wanted.entropy or wanted.top_k):
        return PixelMaps(exact, score_map(alone.logits, size) if wanted.scores else None)
    whole: dict[str, torch.Tensor] = {}  # made at once: rows kept one by one would scatter over the heap
    first = 0
    for maps in read_bands(canvases, size, classes, wanted, dtype=dtype, chunk_bytes=chunk_bytes):
        stop = first + maps["labels"].shape[-2]
        for name, rows in maps.items():
            if first == 0:
                whole[name] = rows.new_empty((*rows.shape[:-2], *size))
            whole[name][..., first:stop, :] = rows
        first = stop
    return PixelMaps(**(whole if exact is None else whole | {"labels": exact}))


def read_bands(
    canvases: Sequence[Canvas],
    size: tuple[int, int],
    classes: int,
    wanted: MapSelection,
    *,
    dtype: torch.dtype = torch.int64,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[dict[str, torch.Tensor]]:
    """The fields of `read_maps` some rows at a time, from top to bottom: {"labels": (B, n, W), ...}."""
    step = band_height(canvases, size, classes, chunk_bytes)
    for first in range(0, size[0], step):
        values = read_values(canvases, size, first, min(first + step, size[0]), wanted)
        yield maps_of(values, classes, wanted, dtype)


def band_height(canvases: Sequence[Canvas], size: tuple[int, int], classes: int, chunk_bytes: int) -> int:
    """How many rows of the image are computed at a time."""
    taller = max(1.0, *(canvas.size[0] / size[0] for canvas in canvases))  # canvas rows that a row of the image needs
    wider = max(size[1], *(canvas.size[1] for canvas in canvases))
    return max(1, int(chunk_bytes / (4 * COPIES * classes * wider * taller)))


def read_values(
    canvases: Sequence[Canvas], size: tuple[int, int], first: int, stop: int, wanted: MapSelection
) -> torch.Tensor:
    """Logits or probabilities of some rows, (B, n, W, K): the latter where canvases are averaged or it is wanted."""
    if len(canvases) == 1 and not wanted.probabilities:
        return two_classes(resized_rows(canvases[0], size, first, stop))
    mean = two_classes(resized_rows(canvases[0], size, first, stop)).softmax(-1)
    for canvas in canvases[1:]:
        mean += two_classes(resized_rows(canvas, size, first, stop)).softmax(-1)
    return mean.div_(len(canvases)) if len(canvases) > 1 else mean


def two_classes(logits: torch.Tensor) -> torch.Tensor:
    """Logits of one class as those of background and class, whose softmax is its sigmoid; others as they are."""
    return torch.cat([torch.zeros_like(logits), logits], dim=-1) if logits.shape[-1] == 1 else logits


def maps_of(values: torch.Tensor, classes: int, wanted: MapSelection, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The fields of `PixelMaps` for some rows, from their logits or probabilities (B, n, W, K)."""
    best = values.max(-1)
    maps = {"labels": best.indices.to(dtype)}
    if wanted.scores:
        maps["scores"] = values[..., 1] if classes == 1 else best.values
    if wanted.entropy:
        maps["entropy"] = torch.special.entr(values).sum(-1) / math.log(values.shape[-1])
    if wanted.top_k:
        top = values.topk(wanted.top_k)
        maps |= {"top_classes": top.indices.to(dtype).permute(0, 3, 1, 2), "top_scores": top.values.permute(0, 3, 1, 2)}
    return maps


__all__ = ["MapSelection", "PixelMaps", "read_bands", "read_maps"]
