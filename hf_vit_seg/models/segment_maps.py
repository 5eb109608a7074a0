"""Segments of an image at its own size, from class and mask logits of queries, without storing all resized masks.

The results are those of transformers' EoMT (EomtImageProcessor), but masks are resized to the size of the image at
once. Mask logits are resized where they can matter only. A resized value lies between the smallest and the largest of
the surrounding logits, and the sigmoid is monotonic. Hence

- an object is computed in the box that surrounds its positive logits;
- in a block of the image, a query whose highest weighted probability is below the lowest of another cannot be the
  largest anywhere, and is not computed.

Shapes: Q queries, n of them that are kept, K classes, h w the grid of the logits, H W the pixels of the image, r c a
part of them.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import max_pool2d, pad

from .bilinear import neighbors, to_working_dtype, working_dtype

BLOCK = 16  # rows and columns of logits of a block
MARGIN = 1e-5  # relative, for the rounding of resized values


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """An object of one query: its number in the segmentation, class, score and mask.

    `mask` (r, c) bool is that of the box whose first pixel is in row `top` and column `left`.
    """

    id: int
    label_id: int
    score: float
    top: int
    left: int
    mask: torch.Tensor

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rows and columns of the box."""
        rows, columns = self.mask.shape
        return slice(self.top, self.top + rows), slice(self.left, self.left + columns)

    def info(self) -> dict[str, Any]:
        """Return the entry of `segments_info`."""
        return {"id": self.id, "label_id": self.label_id, "was_fused": False, "score": round(self.score, 6)}


class Resizing:
    """Bilinear resizing of parts of maps (h, w, n) to (H, W), as `interpolate` with `align_corners=False`.

    The maps are the last axis, because the samples of a pixel are then copied together.
    """

    def __init__(self, grid: tuple[int, int], size: tuple[int, int], dtype: torch.dtype, device: torch.device):
        self.grid, self.size = grid, size
        self.axes = [
            tuple(part.to(device) for part in neighbors(samples, pixels, dtype))
            for samples, pixels in zip(grid, size, strict=True)
        ]

    def pixels(self, axis: int, first: int, last: int) -> slice:
        """Return the pixels of an axis that depend on the samples `first` .. `last`."""
        lower, upper, _ = self.axes[axis]
        start = int(torch.searchsorted(upper, first))
        stop = int(torch.searchsorted(lower, last, right=True))
        return slice(start, max(stop, start))

    def blocks(self, axis: int, length: int) -> list[slice]:
        """Return the pixels whose lower sample is in each block of `length` samples."""
        starts = torch.arange(0, self.grid[axis], length, device=self.axes[axis][0].device)
        bounds = [*torch.searchsorted(self.axes[axis][0], starts).tolist(), self.size[axis]]
        return [slice(first, stop) for first, stop in pairwise(bounds)]

    def resize(
        self, logits: torch.Tensor, rows: slice, columns: slice, maps: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Resize some rows and columns of some maps: (h, w, n) to (r, c, n) in float32 or float64."""
        (top, bottom, down), (left, right, across) = (
            [part[s] for part in axis] for axis, s in zip(self.axes, (rows, columns), strict=True)
        )
        first, stop = int(left[0]), int(right[-1]) + 1
        samples = logits[int(top[0]) : int(bottom[-1]) + 1, first:stop]
        samples = to_working_dtype(samples if maps is None else samples.index_select(2, maps))
        upper, lower = (samples.index_select(0, part - top[0]) for part in (top, bottom))
        values = torch.lerp(upper, lower, down[:, None, None])
        before, after = (values.index_select(1, part - first) for part in (left, right))
        return torch.lerp(before, after, across[:, None])


def logit(probability: float) -> float:
    """Return the logit of a probability; infinite for 0 and 1."""
    if not 0 < probability < 1:
        return -math.inf if probability <= 0 else math.inf
    return math.log(probability / (1 - probability))


def objects_of_queries(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    size: tuple[int, int],
    threshold: float,
    mask_threshold: float = 0.5,
) -> Iterator[ObjectMask]:
    """Yield the objects of an image in the order of the queries, numbered from 1; their masks may overlap.

    `class_logits` are (Q, K + 1), `mask_logits` (Q, h, w). The score of an object is the probability of its class times
    the mean probability of its mask; objects with a score below `threshold`, and without pixels, are left out. A
    pixel belongs to a mask if its probability exceeds `mask_threshold`.
    """
    scores, labels = to_working_dtype(class_logits).softmax(-1)[:, :-1].max(-1)
    resizing = Resizing(map_size(mask_logits), size, working_dtype(mask_logits), mask_logits.device)
    bound, number = logit(mask_threshold), 0
    for query in (scores >= threshold).nonzero()[:, 0].tolist():
        box = positive_box(mask_logits[query], bound, resizing)
        if box is None:
            continue
        values = resizing.resize(mask_logits[query][:, :, None], *box)[:, :, 0]
        mask = values > bound
        area = int(mask.sum())
        score = float(scores[query] * ((values.sigmoid() * mask).sum() / (area + 1e-6))) if area else 0.0
        if area and score >= threshold:
            number += 1
            yield ObjectMask(number, int(labels[query]), score, box[0].start, box[1].start, mask)


def map_size(maps: torch.Tensor) -> tuple[int, int]:
    """Return the height and width of maps."""
    return maps.shape[-2], maps.shape[-1]


def positive_box(logits: torch.Tensor, bound: float, resizing: Resizing) -> tuple[slice, slice] | None:
    """Return the rows and columns of pixels whose resized logits (h, w) can exceed a bound; None if there are none."""
    positive = logits > bound
    places = [positive.any(1 - axis).nonzero()[:, 0] for axis in (0, 1)]
    if not len(places[0]):
        return None
    rows, columns = (resizing.pixels(axis, int(found[0]), int(found[-1])) for axis, found in enumerate(places))
    return None if rows.start == rows.stop or columns.start == columns.stop else (rows, columns)


def draw_objects(objects: Sequence[ObjectMask], size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Draw objects as a map of their numbers (H, W) int32; 0 is none, and later objects cover earlier ones."""
    segmentation = torch.zeros(size, dtype=torch.int32, device=device)
    for instance in objects:
        segmentation[instance.slices].masked_fill_(instance.mask, instance.id)
    return segmentation


@dataclass(frozen=True, eq=False)
class QueryPixels:
    """The query (H, W) int32 of each pixel, -1 for none, and areas (n,) int64 of each query in pixels.

    `largest` counts the pixels where a query's weighted probability is the largest, `above` those where its probability
    reaches the mask threshold, and `both` those of both kinds.
    """

    queries: torch.Tensor
    largest: torch.Tensor
    above: torch.Tensor
    both: torch.Tensor


def assign_pixels(
    scores: torch.Tensor, mask_logits: torch.Tensor, size: tuple[int, int], mask_threshold: float
) -> QueryPixels:
    """Assign each pixel to the query (n,) with the largest product of its score and the mask's probability.

    A pixel belongs to no query if the probability of this one is below `mask_threshold`.
    """
    n, device = len(scores), mask_logits.device
    queries = torch.full(size, -1, dtype=torch.int32, device=device)
    largest, above, both = (torch.zeros(n, dtype=torch.int64, device=device) for _ in range(3))
    resizing = Resizing(map_size(mask_logits), size, working_dtype(mask_logits), device)
    scores = scores.to(working_dtype(mask_logits))
    needed = needed_queries(scores, mask_logits, logit(mask_threshold)).cpu()
    logits = mask_logits.permute(1, 2, 0).contiguous()
    for i, rows in enumerate(resizing.blocks(0, BLOCK)):
        for j, columns in enumerate(resizing.blocks(1, BLOCK)):
            if rows.start == rows.stop or columns.start == columns.stop:
                continue
            own = needed[:, i, j].nonzero()[:, 0].to(device)
            values = resizing.resize(logits, rows, columns, own).sigmoid_()  # (r, c, own)
            inside = values >= mask_threshold
            best = (values * scores[own]).max(-1).indices  # several times faster than argmax on a CPU
            kept = inside.gather(-1, best[..., None])[..., 0]
            above[own] += inside.sum((0, 1))
            counts = torch.bincount(best.flatten() * 2 + kept.flatten(), minlength=2 * len(own)).view(-1, 2)
            largest[own] += counts.sum(1)
            both[own] += counts[:, 1]
            queries[rows, columns] = torch.where(kept, own[best], -1).to(torch.int32)
    return QueryPixels(queries, largest, above, both)


def needed_queries(scores: torch.Tensor, mask_logits: torch.Tensor, bound: float) -> torch.Tensor:
    """Return the queries (n, i, j) bool that can be the largest in a block, or reach the mask threshold in it."""
    logits = to_working_dtype(mask_logits)
    height, width = map_size(logits)
    beyond = (0, -width % BLOCK + 1, 0, -height % BLOCK + 1)
    padded = pad(logits[None], beyond, mode="replicate")
    highest = max_pool2d(padded, BLOCK + 1, BLOCK)[0]
    lowest = -max_pool2d(-padded, BLOCK + 1, BLOCK)[0]
    weights = scores[:, None, None]
    lower_bound = (weights * lowest.sigmoid()).amax(0)
    possible = weights * highest.sigmoid() >= lower_bound * (1 - MARGIN)
    return possible | (highest >= bound - MARGIN * max(1.0, abs(bound)))


def panoptic_segments(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    size: tuple[int, int],
    threshold: float,
    mask_threshold: float,
    overlap_mask_area_threshold: float,
    label_ids_to_fuse: Collection[int] = (),
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """Return segments that do not overlap: their numbers from 1 (H, W) int32, 0 for none, and their `segments_info`.

    Queries with a class probability above `threshold` compete for each pixel (see `assign_pixels`). A query is
    kept if the share of its mask that it wins exceeds `overlap_mask_area_threshold`. Queries of a class in
    `label_ids_to_fuse` become one segment, with the score of the first.
    """
    scores, labels = to_working_dtype(class_logits).softmax(-1).max(-1)
    kept = ((labels < class_logits.shape[-1] - 1) & (scores > threshold)).nonzero()[:, 0]
    if not len(kept):
        return torch.zeros(size, dtype=torch.int32, device=mask_logits.device), []
    assigned = assign_pixels(scores[kept], mask_logits[kept], size, mask_threshold)
    whole = (assigned.above > 0) & (assigned.both > 0)
    whole &= (assigned.largest / assigned.above).to(torch.float64) > overlap_mask_area_threshold
    infos, fused, numbers = [], dict[int, int](), torch.zeros(len(kept) + 1, dtype=torch.int32)
    for index in whole.nonzero()[:, 0].tolist():
        label, score = int(labels[kept[index]]), float(scores[kept[index]])
        number = fused.get(label, len(infos) + 1)
        if number > len(infos):
            fuse = label in label_ids_to_fuse
            infos.append({"id": number, "label_id": label, "was_fused": fuse, "score": round(score, 6)})
            if fuse:
                fused[label] = number
        numbers[index] = number
    return numbers.to(assigned.queries.device)[assigned.queries.long()], infos


def fuse_segments(
    numbers: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor, label_ids_to_fuse: Collection[int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Join the segments of each class in `label_ids_to_fuse`, with the score of the first, and renumber all.

    `numbers` are (H, W) from 1, 0 for none; labels and scores are (n,).
    """
    table, kept, fused = [0], list[int](), dict[int, int]()
    for index, label in enumerate(labels.tolist()):
        number = fused.get(label, len(kept) + 1)
        if number > len(kept):
            kept.append(index)
            if label in label_ids_to_fuse:
                fused[label] = number
        table.append(number)
    lookup = torch.tensor(table, dtype=numbers.dtype, device=numbers.device)
    return lookup[numbers.long()], labels[kept], scores[kept]


__all__ = ["ObjectMask", "draw_objects", "fuse_segments", "objects_of_queries", "panoptic_segments"]
