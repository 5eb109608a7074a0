"""A head for any number of objects: classes of pixels, and a distance map whose peaks are the objects.

The distance of an object's pixel to its edge, divided by the largest one in the object, is 1 at the center and falls
towards all edges, also between objects that touch (regression of the distance map: Naylor et al., IEEE TMI 2019,
doi:10.1109/TMI.2018.2865709; energy of a watershed: arXiv 1611.08303). A watershed of the predicted map separates the
objects. A peak that rises less than `PROMINENCE` above the saddle to a higher peak is merged into it (the dynamics of
Grimaud, 1992; the same regions as with h-maxima as markers). Two more maps are used only in training: edges, and
offsets to the center of the object (the horizontal and vertical maps of HoVer-Net, arXiv 1812.06499).

Shapes: B images, C_i channels of map i, h_i w_i its grid (0 is the finest, h w), K classes, H W pixels, n objects.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    conv2d,
    cross_entropy,
    interpolate,
    pad,
    smooth_l1_loss,
)
from transformers.utils import ModelOutput

from .bilinear import upsample
from .errors import HfVitSegError
from .layers import OBJECT_HEADS, head_norm
from .segmentation_heads import DEFAULT_HIDDEN_SIZE

EDGE_WEIGHT = 3.0  # weight of pixels at object edges in the class term
OBJECT_WEIGHT = 3.0  # weight of object pixels in the distance term
DICE_WEIGHT = 0.5
DISTANCE_WEIGHT = 2.0
EDGE_TERM_WEIGHT = 0.5
OFFSET_WEIGHT = 1.0
DISTANCE_BETA = 0.1  # where the smooth L1 loss becomes linear
OFFSET_BETA = 0.2
SMOOTHING = 2.0  # standard deviation of the Gaussian filter of the distance map, in pixels
PROMINENCE = 0.1  # minimum prominence of an object's peak
SCORE_THRESHOLD = 0.5
MIN_AREA = 20  # pixels of an object
BELOW_ALL = -1e9  # distance outside of objects
HALF_OF_NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))


# Targets


def number_pixels(
    mask_labels: Sequence[torch.Tensor], class_labels: Sequence[torch.Tensor], num_labels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of the object, from 1, and the class of each pixel, (B, H, W) int64.

    Pixels of no object have the number 0 and the class `num_labels`. Masks are (n, H, W), bool, and classes (n,).
    """
    numbers, classes = [], []
    for masks, own_classes in zip(mask_labels, class_labels, strict=True):
        objects, rows, columns = masks.nonzero(as_tuple=True)
        numbered = masks.new_zeros(masks.shape[1:], dtype=torch.int64)
        numbered[rows, columns] = objects + 1
        table = torch.cat([own_classes.new_full((1,), num_labels), own_classes])
        numbers.append(numbered)
        classes.append(table[numbered])
    return torch.stack(numbers), torch.stack(classes)


def steps_to_run_start(numbers: torch.Tensor) -> torch.Tensor:
    """Return the number of steps (B, H, W) to the left, to the nearest pixel with another number; infinite if there is
    none.

    `numbers` are (B, H, W).
    """
    positions = torch.arange(numbers.shape[-1], device=numbers.device).expand_as(numbers)
    starts = torch.zeros_like(positions)
    starts[..., 1:] = torch.where(numbers[..., 1:] != numbers[..., :-1], positions[..., 1:], 0)
    starts = starts.cummax(dim=-1).values
    return (positions - starts + 1).float().masked_fill(starts == 0, torch.inf)


def run_distances(numbers: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of each pixel of an object to the nearest pixel of another number in its row (B, H,
    W).
    """
    left, right = steps_to_run_start(numbers), steps_to_run_start(numbers.flip(-1)).flip(-1)
    return torch.minimum(left, right).square_().masked_fill_(numbers == 0, 0)


def edge_distances(numbers: torch.Tensor) -> torch.Tensor:
    """Return the exact Euclidean distance of each pixel of an object to the nearest pixel of another number, (B, H, W).

    It is 0 outside of objects. The border of the image is not an edge, because it cuts objects. `numbers` are (B, H,
    W), and 0 outside of objects.
    """
    in_row = run_distances(numbers)
    nearest = torch.minimum(in_row, run_distances(numbers.transpose(1, 2)).transpose(1, 2)).contiguous()
    height = numbers.shape[1]
    for step in range(1, height):  # the nearest pixel is `step` rows away; beyond the object's run this is not nearer
        if step * step >= nearest.max():
            break
        upper, lower = slice(0, height - step), slice(step, height)
        for own, other in ((upper, lower), (lower, upper)):
            torch.minimum(nearest[:, own], in_row[:, other] + step * step, out=nearest[:, own])
    return nearest.sqrt_()


def object_indices(numbers: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return an index of the object of each pixel (B, H, W) that is unique in the batch, and the number of indices."""
    count = int(numbers.max()) + 1
    images = torch.arange(len(numbers), device=numbers.device)[:, None, None]
    return images * count + numbers, len(numbers) * count


def relative_distances(numbers: torch.Tensor) -> torch.Tensor:
    """Return the distance to the edge, divided by the largest one of the object: (B, H, W) from 0 (no object) to 1."""
    distances = edge_distances(numbers).clamp(max=max(numbers.shape[1:]))  # infinite if an object fills the image
    indices, count = object_indices(numbers)
    largest = distances.new_zeros(count).scatter_reduce(0, indices.flatten(), distances.flatten(), "amax")
    return distances / largest[indices].clamp(min=1)


def center_offsets(numbers: torch.Tensor) -> torch.Tensor:
    """Return the offsets (B, 2, H, W) in rows and columns from each pixel to the center of its object.

    They are divided by the radius of a disk with the object's area, and 0 outside of objects.
    """
    indices, count = object_indices(numbers)
    flat = indices.flatten()
    areas = flat.bincount(minlength=count).clamp(min=1)
    radii = (areas / torch.pi).sqrt()
    offsets = []
    for axis in (1, 2):
        shape = [-1 if axis == dimension else 1 for dimension in range(3)]
        positions = torch.arange(numbers.shape[axis], device=numbers.device).view(shape).expand_as(numbers)
        centers = flat.bincount(positions.flatten(), minlength=count) / areas
        offsets.append((centers[indices] - positions) / radii[indices])
    return torch.stack(offsets, dim=1).float() * (numbers > 0)[:, None]


def edge_pixels(numbers: torch.Tensor) -> torch.Tensor:
    """Return the pixels (B, H, W), bool, with a direct neighbor of another number."""
    edges = torch.zeros_like(numbers, dtype=torch.bool)
    below = numbers[:, 1:] != numbers[:, :-1]
    differs = numbers[..., 1:] != numbers[..., :-1]
    edges[:, 1:] |= below
    edges[:, :-1] |= below
    edges[..., 1:] |= differs
    edges[..., :-1] |= differs
    return edges


def dense_loss(
    output: "DistanceOutput",
    mask_labels: Sequence[torch.Tensor],
    class_labels: Sequence[torch.Tensor],
    ignore_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the sum of the terms below at the labels' resolution, each a mean over images.

    They are the cross-entropy of classes, the soft dice of objects, the smooth L1 of distances and offsets, and the
    binary cross-entropy of edges. Each is a mean over the pixels of an image that are not ignored.
    """
    logits, distances, edge_logits, offsets = output.maps()
    numbers, classes = number_pixels(mask_labels, class_labels, logits.shape[1] - 1)
    size = (numbers.shape[1], numbers.shape[2])
    logits, distances = upsample(logits, size), upsample(distances, size)[:, 0]
    edge_logits, offsets = upsample(edge_logits, size)[:, 0], upsample(offsets, size)
    kept = torch.ones_like(distances) if ignore_mask is None else (~ignore_mask).to(distances.dtype)
    inside, edges = (numbers > 0) * kept, edge_pixels(numbers)
    edge_weights = torch.where(edges, EDGE_WEIGHT, 1.0) * kept
    object_weights = torch.where(numbers > 0, OBJECT_WEIGHT, 1.0)

    class_errors = cross_entropy(logits, classes, reduction="none")
    objectness = (1 - logits.softmax(dim=1)[:, -1]) * kept
    dice = (2 * (objectness * inside).sum((1, 2)) + 1) / (objectness.sum((1, 2)) + inside.sum((1, 2)) + 1)
    distance_errors = smooth_l1_loss(distances, relative_distances(numbers), reduction="none", beta=DISTANCE_BETA)
    edge_errors = binary_cross_entropy_with_logits(edge_logits, edges.to(edge_logits.dtype), reduction="none")
    offset_errors = smooth_l1_loss(offsets, center_offsets(numbers), reduction="none", beta=OFFSET_BETA).sum(dim=1)
    terms = (
        mean_per_image(class_errors, edge_weights)
        + DICE_WEIGHT * (1 - dice)
        + DISTANCE_WEIGHT * mean_per_image(distance_errors * object_weights, kept)
        + EDGE_TERM_WEIGHT * mean_per_image(edge_errors, kept)
        + OFFSET_WEIGHT * mean_per_image(offset_errors, inside)
    )
    return terms.mean()


def mean_per_image(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean (B,) of values (B, H, W); 0 if all weights are."""
    return (values * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1)


# Watershed


def smooth(values: torch.Tensor, deviation: float = SMOOTHING) -> torch.Tensor:
    """Apply a Gaussian filter to a map (H, W)."""
    radius = int(4 * deviation + 0.5)
    offsets = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype)
    kernel = torch.exp(-offsets.square() / (2 * deviation**2))
    kernel = kernel / kernel.sum()
    rows = pad(values[None, None], (0, 0, radius, radius), mode="replicate")
    columns = conv2d(rows, kernel[None, None, :, None])
    columns = pad(columns, (radius, radius, 0, 0), mode="replicate")
    return conv2d(columns, kernel[None, None, None])[0, 0]


def climb(values: torch.Tensor) -> torch.Tensor:
    """Return the flat index of the peak that the steepest ascent reaches from each pixel: (H, W) to (H, W) int64."""
    height, width = values.shape
    padded = pad(values[None, None], (1, 1, 1, 1), value=2 * BELOW_ALL)[0, 0]
    highest, target = values, torch.arange(height * width, device=values.device).view(height, width)
    own = target
    for rows in (-1, 0, 1):
        for columns in (-1, 0, 1):
            neighbor = padded[1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]
            higher = neighbor > highest
            highest = torch.where(higher, neighbor, highest)
            target = torch.where(higher, own + rows * width + columns, target)
    target = target.flatten()
    while True:
        further = target[target]
        if torch.equal(further, target):
            return target.view(height, width)
        target = further


def saddles(peaks: torch.Tensor, values: torch.Tensor, inside: torch.Tensor) -> Iterator[tuple[int, int, float]]:
    """Yield the pairs of peaks whose regions touch, and the height of the pass between them, the highest first."""
    height, width = values.shape
    saddles: list[torch.Tensor] = []
    heights: list[torch.Tensor] = []
    for rows, columns in HALF_OF_NEIGHBORS:
        first = slice(0, height - rows), slice(max(0, -columns), width - max(0, columns))
        second = slice(rows, height), slice(max(0, columns), width + min(0, columns))
        touching = (peaks[first] != peaks[second]) & inside[first] & inside[second]
        saddles.append(torch.stack([peaks[first][touching], peaks[second][touching]], dim=1).sort(dim=1).values)
        heights.append(torch.minimum(values[first][touching], values[second][touching]))
    pairs, index = torch.cat(saddles).unique(dim=0, return_inverse=True)
    passes = values.new_full((len(pairs),), BELOW_ALL).scatter_reduce(0, index, torch.cat(heights), "amax")
    order = passes.argsort(descending=True, stable=True)
    for (first_peak, second_peak), saddle in zip(pairs[order].tolist(), passes[order].tolist(), strict=True):
        yield first_peak, second_peak, saddle


def watershed(values: torch.Tensor, inside: torch.Tensor, prominence: float = PROMINENCE) -> torch.Tensor:
    """Divide the pixels `inside` (H, W), bool, into one region for each peak of `values` (H, W): numbers from 1, or 0.

    A peak that rises less than `prominence` above the highest pass to a higher peak belongs to its region.
    """
    masked = torch.where(inside, values, BELOW_ALL)
    peaks = climb(masked)
    own_peaks = peaks[inside].unique()
    heights = dict(zip(own_peaks.tolist(), masked.flatten()[own_peaks].tolist(), strict=True))
    parents = {peak: peak for peak in heights}

    def find(peak: int) -> int:
        while parents[peak] != peak:
            parents[peak] = parents[parents[peak]]
            peak = parents[peak]
        return peak

    for first, second, saddle in saddles(peaks, masked, inside):
        lower, higher = sorted((find(first), find(second)), key=heights.__getitem__)
        if lower != higher and heights[lower] - saddle < prominence:
            parents[lower] = higher
    kept = sorted({find(peak) for peak in heights})
    numbers = {peak: number for number, peak in enumerate(kept, start=1)}
    table = torch.zeros(values.numel(), dtype=torch.int64, device=values.device)
    regions = [numbers[find(peak)] for peak in own_peaks.tolist()]
    table[own_peaks] = torch.tensor(regions, dtype=torch.int64, device=values.device)
    return torch.where(inside, table[peaks], 0)


# Head


@dataclass
class DistanceOutput(ModelOutput):
    """Class logits (B, K + 1, h, w), the last of which is "no object", and relative distances (B, 1, h, w).

    Edge logits (B, 1, h, w) and offsets to the object's center (B, 2, h, w) are for training.
    """

    loss: torch.Tensor | None = None
    class_logits: torch.Tensor | None = None
    distances: torch.Tensor | None = None
    edge_logits: torch.Tensor | None = None
    offsets: torch.Tensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    exported: ClassVar[tuple[str, ...]] = ("class_logits", "distances")  # outputs of programs

    def maps(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the class logits, distances, edge logits and offsets."""
        assert self.class_logits is not None and self.distances is not None
        assert self.edge_logits is not None and self.offsets is not None
        return self.class_logits, self.distances, self.edge_logits, self.offsets

    def head_loss(
        self,
        config: Any,
        mask_labels: Sequence[torch.Tensor],
        class_labels: Sequence[torch.Tensor],
        ignore_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the loss of these predictions, see `dense_loss`."""
        return dense_loss(self, mask_labels, class_labels, ignore_mask)

    def semantic_logits(self) -> torch.Tensor:
        """Return the log-probabilities of the classes (B, K, h, w); with one class, the logit of its probability."""
        assert self.class_logits is not None
        if self.class_logits.shape[1] == 2:
            return self.class_logits[:, :1] - self.class_logits[:, 1:]
        return self.class_logits.log_softmax(dim=1)[:, :-1]

    def segments(
        self,
        image: int,
        size: tuple[int, int],
        threshold: float = SCORE_THRESHOLD,
        prominence: float = PROMINENCE,
        least_area: int = MIN_AREA,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the objects of an image at `size` (H, W): their numbers from 1 (H, W) int64, classes (n,) and scores
        (n,).

        A pixel belongs to an object if "no object" is less probable than all classes together. An object has the class
        with the largest mean probability, and its score is the mean difference to the probability of "no object".
        Objects with a score below `threshold` or with fewer than `least_area` pixels are removed.
        """
        assert self.class_logits is not None and self.distances is not None
        own = slice(image, image + 1)
        probabilities = upsample(self.class_logits[own], size)[0].softmax(dim=0)
        numbers = watershed(smooth(upsample(self.distances[own], size)[0, 0]), probabilities[-1] < 0.5, prominence)
        margins = probabilities[:-1] - probabilities[-1]
        return score_objects(numbers, margins, threshold, least_area)


def score_objects(
    numbers: torch.Tensor, margins: torch.Tensor, threshold: float, least_area: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Renumber the objects (H, W) that are large and certain enough; also return their classes and scores (n,).

    `margins` (K, H, W) are the differences between the probabilities of the classes and that of no object.
    """
    count, flat = int(numbers.max()) + 1, numbers.flatten()
    areas = flat.bincount(minlength=count)
    sums = torch.stack([flat.bincount(object_margins.flatten(), minlength=count) for object_margins in margins])
    scores, classes = (sums / areas.clamp(min=1)).clamp(min=0).max(dim=0)
    kept = (areas >= least_area) & (scores >= threshold)
    kept[0] = False
    table = torch.where(kept, kept.cumsum(0), 0)
    return table[numbers], classes[kept], scores[kept]


class DistanceHead(nn.Module):
    """A feature pyramid network (arXiv 1612.03144) with a 3x3 convolution per level, and 1x1 output convolutions.

    The width of a level is the number of channels of its map, but at most `decode_head_hidden_size`. A stride of 2 in
    the first stage separates small objects better than one of 4.
    """

    def __init__(self, config: Any, in_channels: Sequence[int]):
        super().__init__()
        largest = config.decode_head_hidden_size or DEFAULT_HIDDEN_SIZE
        widths = [min(channels, largest) for channels in in_channels]
        self.lateral = nn.ModuleList(
            [nn.Conv2d(channels, width, 1) for channels, width in zip(in_channels, widths, strict=True)]
        )
        self.reduce = nn.ModuleList([nn.Conv2d(coarse, fine, 1) for fine, coarse in pairwise(widths)])
        self.smooth = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1, bias=False) for width in widths])
        self.norms = nn.ModuleList(
            [head_norm(config.decode_head_norm, width, config.decode_head_norm_eps) for width in widths]
        )
        self.class_head = nn.Conv2d(widths[0], int(config.num_labels or 0) + 1, 1)
        self.distance_head = nn.Conv2d(widths[0], 1, 1)
        self.edge_head = nn.Conv2d(widths[0], 1, 1)
        self.offset_head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, feature_maps: Sequence[torch.Tensor], resample: Any = None) -> DistanceOutput:
        """Predict maps on the finest grid from feature maps (B, C_i, h_i, w_i), finest first; `resample` is applied to
        each.
        """
        merged = None
        for level in reversed(range(len(feature_maps))):
            features = self.lateral[level](feature_maps[level])
            if merged is not None:
                merged = self.reduce[level](merged)
                features = features + interpolate(
                    merged, size=features.shape[-2:], mode="bilinear", align_corners=False
                )
            merged = self.norms[level](self.smooth[level](features)).relu()
        assert merged is not None
        heads = (self.class_head, self.distance_head, self.edge_head, self.offset_head)
        return DistanceOutput(None, *((resample or nn.Identity())(head(merged)) for head in heads))


def build_distance_head(config: Any, in_channels: Sequence[int], is_plain: bool) -> nn.Module:
    """Return the distance head for maps with these numbers of channels, finest first."""
    if is_plain or len(in_channels) < 2:
        raise HfVitSegError(
            f"decode_head 'distance' reads maps of several strides, got {len(in_channels)} of one stride: choose an "
            "encoder with stages, such as segformer"
        )
    return DistanceHead(config, in_channels)


OBJECT_HEADS["distance"] = build_distance_head

__all__ = ["DistanceHead", "DistanceOutput", "relative_distances", "watershed"]
