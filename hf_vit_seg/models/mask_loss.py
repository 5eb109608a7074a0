"""The loss of mask classification (arXiv 2112.01527, section 3.3): queries are matched to objects one to one.

Masks are compared at sampled points (arXiv 1912.08193, PointRend), whose coordinates are fractions of the image, so
that predictions and labels may have different sizes. Points in ignored pixels have no weight.

Shapes: B images, Q queries, K classes, n objects of an image, m matched pairs of all images, P points, h w the grid of
the masks, H W that of the labels. Points are (x, y) from 0 to 1.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy, grid_sample, softplus

from .bilinear import to_working_dtype
from .errors import HfVitSegError

Prediction = tuple[torch.Tensor, torch.Tensor]  # class logits (B, Q, K + 1), mask logits (B, Q, h, w)


def sample_logits(logits: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Sample maps (n, C, h, w) bilinearly at points (n, P, 2): (n, C, P)."""
    return grid_sample(logits, 2 * points[:, None] - 1, align_corners=False)[:, :, 0]


def sample_masks(masks: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Sample masks (n, H, W) bool bilinearly at points (n, P, 2), with zeros outside, as `grid_sample`: (n, P).

    With points (1, P, 2), all masks are sampled at the same points. Only the pixels around the points are converted to
    floating point: the masks of a large image with many objects would take gigabytes.
    """
    height, width = masks.shape[-2:]
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    image = torch.arange(len(masks), device=masks.device)[:, None]
    total = torch.zeros((), dtype=points.dtype, device=points.device)
    for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            pixel = row.long().clamp(0, height - 1), column.long().clamp(0, width - 1)
            total = total + masks[image, pixel[0], pixel[1]] * (inside * row_weight * column_weight)
    return total


def sample_weights(ignored: torch.Tensor | None, image: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Return the weights (m, P) of points (m, P, 2) in the images `image` (m,): 0 in ignored pixels (B, H, W)."""
    if ignored is None:
        return torch.ones_like(points[..., 0])
    height, width = ignored.shape[-2:]
    column = (points[..., 0] * width).long().clamp(0, width - 1)
    row = (points[..., 1] * height).long().clamp(0, height - 1)
    return (~ignored[image[:, None], row, column]).to(points.dtype)


def random_points(count: int, number: int, like: torch.Tensor) -> torch.Tensor:
    """Draw uniformly distributed points (count, number, 2)."""
    return torch.rand(count, number, 2, device=like.device, dtype=like.dtype)


def uncertain_points(
    logits: torch.Tensor, ignored: torch.Tensor | None, image: torch.Tensor, config: Any
) -> torch.Tensor:
    """Draw points (m, P, 2) for mask logits (m, 1, h, w), most of them where the logits are close to 0.

    `oversample_ratio` times as many points are drawn; the most uncertain of them are `importance_sample_ratio` of the
    points, and the others are uniform.
    """
    number = config.train_num_points
    uncertain = int(config.importance_sample_ratio * number)
    drawn = random_points(len(logits), int(number * config.oversample_ratio), logits)
    certainty = sample_logits(logits, drawn)[:, 0].abs()
    if ignored is not None:
        certainty = certainty.masked_fill(sample_weights(ignored, image, drawn) == 0, torch.inf)
    chosen = (-certainty).topk(uncertain, dim=1).indices
    points = drawn.gather(1, chosen[..., None].expand(-1, -1, 2))
    if uncertain < number:
        points = torch.cat([points, random_points(len(logits), number - uncertain, logits)], dim=1)
    return points


def matching_costs(
    class_logits: torch.Tensor,
    logits: torch.Tensor,
    classes: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    config: Any,
) -> torch.Tensor:
    """Return the cost (Q, n) of matching each query to each object.

    Class logits (Q, K + 1), mask logits (Q, P), classes (n,), labels (n, P), and weights of points (P,).
    """
    number = weights.sum().clamp(min=1)
    class_cost = -class_logits.softmax(-1)[:, classes]
    # -log p = softplus(-x) and -log(1 - p) = softplus(x), which differ by x.
    mask_cost = ((softplus(logits) @ weights)[:, None] - (logits * weights) @ labels.T) / number
    shares = logits.sigmoid() * weights
    overlap, total = shares @ labels.T, shares.sum(-1)[:, None] + (labels * weights).sum(-1)
    dice_cost = 1 - (2 * overlap + 1) / (total + 1)
    return config.class_weight * class_cost + config.mask_weight * mask_cost + config.dice_weight * dice_cost


def assign(costs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the matching of lowest cost (Q, n): indices of queries and of objects, min(Q, n) each.

    Costs that are not finite are replaced by the largest number, so that such pairs are matched last.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise HfVitSegError("The loss of mask classification needs scipy: run `pip install scipy`") from error
    largest = torch.finfo(torch.float32).max
    finite = costs.nan_to_num(nan=largest, posinf=largest, neginf=largest).clamp(-largest, largest)
    queries, objects = linear_sum_assignment(finite.double().cpu().numpy())
    return torch.as_tensor(queries, device=costs.device), torch.as_tensor(objects, device=costs.device)


@torch.no_grad()
def match(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    masks: torch.Tensor,
    classes: torch.Tensor,
    ignored: torch.Tensor | None,
    config: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Match the queries of one image to its objects: indices of queries and of objects.

    Class logits (Q, K + 1), mask logits (Q, h, w), masks (n, H, W), classes (n,), ignored pixels (H, W).
    """
    if not len(classes):
        nothing = classes.new_zeros(0)
        return nothing, nothing
    points = random_points(1, config.train_num_points, mask_logits)
    image = torch.zeros(1, dtype=torch.long, device=points.device)
    weights = sample_weights(None if ignored is None else ignored[None], image, points)[0]
    logits, labels = sample_logits(mask_logits[None], points)[0], sample_masks(masks, points)
    return assign(matching_costs(class_logits, logits, classes, labels, weights, config))


def loss_sums(
    predictions: Sequence[Prediction],
    mask_labels: Sequence[torch.Tensor],
    class_labels: Sequence[torch.Tensor],
    ignore_mask: torch.Tensor | None,
    config: Any,
) -> torch.Tensor:
    """Return the weighted sums of the class term, and of the mask and dice terms, over all layers' predictions (2,).

    Divided by `loss_units` they are the loss. They are computed in float32 or float64, also under autocast.
    """
    labels = (mask_labels, class_labels, ignore_mask, config)
    sums = torch.stack([torch.stack(prediction_sums(prediction, *labels)) for prediction in predictions]).sum(0)
    weights = (config.class_weight, config.mask_weight, config.dice_weight)
    class_sum, *mask_sums = sums * sums.new_tensor(weights)
    return torch.stack([class_sum, sum(mask_sums, torch.zeros_like(class_sum))])


def loss_units(class_labels: Sequence[torch.Tensor], config: Any) -> torch.Tensor:
    """Return the divisors (2,) of the sums: the sum of the queries' class weights, and the number of objects."""
    matched = sum(min(len(classes), config.num_queries) for classes in class_labels)
    others = len(class_labels) * config.num_queries - matched
    objects = sum(len(classes) for classes in class_labels)
    units = [matched + config.no_object_weight * others, float(objects)]
    return torch.tensor(units, device=class_labels[0].device)


def prediction_sums(
    prediction: Prediction,
    mask_labels: Sequence[torch.Tensor],
    class_labels: Sequence[torch.Tensor],
    ignore_mask: torch.Tensor | None,
    config: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the sums of the class, mask and dice terms of one prediction, without weights."""
    class_logits, mask_logits = (to_working_dtype(logits) for logits in prediction)
    ignored = [None] * len(mask_labels) if ignore_mask is None else list(ignore_mask)
    with torch.autocast(class_logits.device.type, enabled=False):
        pairs = [
            match(*image, config)
            for image in zip(class_logits, mask_logits, mask_labels, class_labels, ignored, strict=True)
        ]
        class_sum = class_term(class_logits, class_labels, pairs, config)
        return class_sum, *mask_terms(mask_logits, mask_labels, ignore_mask, pairs, config)


def class_term(
    class_logits: torch.Tensor,
    class_labels: Sequence[torch.Tensor],
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    config: Any,
) -> torch.Tensor:
    """Return the weighted sum of the cross-entropies of all queries' classes."""
    no_object = class_logits.shape[-1] - 1
    targets = torch.full(class_logits.shape[:2], no_object, dtype=torch.long, device=class_logits.device)
    for image, ((queries, objects), classes) in enumerate(zip(pairs, class_labels, strict=True)):
        targets[image, queries] = classes[objects].long()
    weights = class_logits.new_ones(no_object + 1)
    weights[-1] = config.no_object_weight
    return cross_entropy(class_logits.flatten(0, 1), targets.flatten(), weights, reduction="sum")


def mask_terms(
    mask_logits: torch.Tensor,
    mask_labels: Sequence[torch.Tensor],
    ignore_mask: torch.Tensor | None,
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    config: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of the matched masks' cross-entropies and dice losses; 0 with a gradient of 0 without objects."""
    counts = [len(queries) for queries, _ in pairs]
    image = torch.repeat_interleave(torch.tensor(counts)).to(mask_logits.device)
    matched = mask_logits[image, torch.cat([queries for queries, _ in pairs])][:, None]  # (m, 1, h, w)
    if not len(matched):
        nothing = mask_logits.sum() * 0
        return nothing, nothing
    with torch.no_grad():
        points = uncertain_points(matched, ignore_mask, image, config)  # (m, P, 2)
        parts = zip(mask_labels, pairs, points.split(counts), strict=True)
        labels = torch.cat(
            [sample_masks(masks[objects], points) for masks, (_, objects), points in parts if len(objects)]
        )
        weights = sample_weights(ignore_mask, image, points)
    logits = sample_logits(matched, points)[:, 0]  # (m, P)
    cross_entropies = (softplus(logits) - logits * labels) * weights
    mask_losses = cross_entropies.sum(-1) / weights.sum(-1).clamp(min=1)
    shares, labels = logits.sigmoid() * weights, labels * weights
    dice_losses = 1 - (2 * (shares * labels).sum(-1) + 1) / (shares.sum(-1) + labels.sum(-1) + 1)
    return mask_losses.sum(), dice_losses.sum()


def mean_over_processes(units: torch.Tensor) -> torch.Tensor:
    """Return the mean of the numbers of objects over all processes, at least 1; the weights of classes remain (2,)."""
    weight, objects = units
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        objects = objects.clone()
        torch.distributed.all_reduce(objects)
        objects = objects / torch.distributed.get_world_size()
    return torch.stack([weight.where(weight > 0, 1), objects.clamp(min=1)])


def mask_classification_loss(
    predictions: Sequence[Prediction],
    mask_labels: Sequence[torch.Tensor],
    class_labels: Sequence[torch.Tensor],
    ignore_mask: torch.Tensor | None,
    config: Any,
) -> torch.Tensor:
    """Return the sum of the losses of all layers' predictions; each layer is matched separately.

    A prediction is (class logits (B, Q, K + 1), mask logits (B, Q, h, w)). `mask_labels` and `class_labels` have one
    entry per image, (n, H, W) and (n,). Pixels of `ignore_mask` (B, H, W) have no weight. The class term is the
    weighted mean over queries; the mask terms are divided by the mean number of objects over all processes. `config`
    has the weights `class_weight`, `mask_weight`, `dice_weight` and `no_object_weight`, and the numbers of points.
    """
    sums = loss_sums(predictions, mask_labels, class_labels, ignore_mask, config)
    return (sums / mean_over_processes(loss_units(class_labels, config).to(sums.device)).to(sums)).sum()


__all__ = ["Prediction", "loss_sums", "loss_units", "mask_classification_loss"]
