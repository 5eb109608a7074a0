"""Batch transforms for classification, which mix pairs of images and their targets (mixup, CutMix).

Shapes: B images, C channels, H W pixels, K classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import one_hot
from torchvision.transforms import v2

from hf_vit_seg.entry_points import BatchTransformRecord
from hf_vit_seg.records import Factor, Record, RecordError, Table

from .context import Share


class BatchOptions(Record):
    """The options of a batch transform in a recipe, with the probability that it is applied to a batch."""

    alpha: Factor = 1.0  # parameter of the Beta distribution of the mixing ratio
    probability: Share = 0.5

    def build(self, num_classes: int) -> v2.Transform:
        """Build the transform from images (B, C, H, W) and classes (B,) to images and soft targets (B, K)."""
        raise NotImplementedError


class Mixup(BatchOptions):
    """mixup (arXiv 1710.09412): the weighted mean of an image and its neighbor in the batch."""

    alpha: Factor = 0.8

    def build(self, num_classes: int) -> v2.Transform:
        return v2.MixUp(alpha=self.alpha, num_classes=num_classes)


class Cutmix(BatchOptions):
    """CutMix (arXiv 1905.04899): a rectangle of an image is replaced by that of its neighbor in the batch."""

    def build(self, num_classes: int) -> v2.Transform:
        return v2.CutMix(alpha=self.alpha, num_classes=num_classes)


BATCH_TRANSFORMS: Table[BatchOptions] = Table(
    "batch transform",
    {"cutmix": Cutmix, "mixup": Mixup},
    kind=BatchOptions,
    group="hf_vit_seg.batch_transforms",
    contract=BatchTransformRecord,
)


class BatchMixer:
    """Apply at most one of several transforms to each batch, drawn by their probabilities."""

    def __init__(self, rows: Sequence[BatchOptions], num_classes: int):
        self.transforms = [row.build(num_classes) for row in rows]
        self.shares = torch.tensor([row.probability for row in rows]).cumsum(0)
        self.num_classes = num_classes

    def __call__(self, images: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map images (B, C, H, W) and classes, (B,) or (B, K) of 0 and 1, to images and soft targets (B, K) float32.

        Those of images that are not mixed are one-hot.
        """
        chosen = int((torch.rand(()) >= self.shares).sum())
        if chosen == len(self.transforms):
            soft = classes if classes.is_floating_point() else one_hot(classes, self.num_classes)
            return images, soft.to(torch.float32)
        return self.transforms[chosen](images, classes)


def read_mixer(
    entries: Sequence[Any], task: str, num_classes: int | None, location: str = "batch_transforms"
) -> BatchMixer | None:
    """Build a recipe's list of batch transforms; None if empty. Raises RecordError if probabilities sum to over 1."""
    if not entries:
        return None
    rows = [BATCH_TRANSFORMS.read_entry(entry, f"{location}.{number}") for number, entry in enumerate(entries)]
    if task != "classification" or num_classes is None:
        raise RecordError(f"{location} requires the task classification, found {task}")
    total = sum(row.probability for row in rows)
    if total > 1 + 1e-6:
        raise RecordError(f"{location}: the probabilities must sum to at most 1, found {total:g}")
    return BatchMixer(rows, num_classes)


__all__ = ["BATCH_TRANSFORMS", "BatchMixer", "read_mixer"]
