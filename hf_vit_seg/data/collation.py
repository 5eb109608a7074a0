"""Collation of samples to model inputs, normalized by the image processor that is saved with the model.

Shapes: B images, C channels, H W pixels, K classes or keypoints, n segments of an image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.data.labels.segment_classes import SEGMENT_TASKS
from hf_vit_seg.data.transforms.batch_mixing import read_mixer
from hf_vit_seg.errors import HfVitSegError

from .samples import Labels, Segments
from .stream import BATCH, seed_draw

LABEL_DTYPES = {
    "segmentation": torch.int64,
    "classification": torch.int64,
    "pose": torch.float32,
    **dict.fromkeys(SEGMENT_TASKS, torch.int64),
}
Batch = dict[str, torch.Tensor | list[torch.Tensor]]
# Disables every step of the processor that changes an image's size, as the transforms have already done it.
WITHOUT_GEOMETRY: dict[str, Any] = {"do_resize": False, "do_center_crop": False, "do_pad": False}


class CollationError(HfVitSegError):
    """Samples that cannot be stacked to a batch."""


def normalize_images(processor: BaseImageProcessor, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Normalize images (C, H, W) of one size, bit-identical to `processor(image)`: (B, C, H, W) float32."""
    options: dict[str, Any] = {"return_tensors": "pt", "input_data_format": "channels_first"}
    return processor(list(images), **options, **WITHOUT_GEOMETRY)["pixel_values"]


class Collator:
    """Collate samples to training batches.

    A sample is a mapping with `image` (C, H, W), `target` (a mask (H, W), a class index, `Labels`, or keypoints
    (K, 3)), `name` for messages, and its `draw`. `batch_transforms` are the recipe's entries (mixup, cutmix); their
    random numbers depend on `seed` and the batch's first draw. A batch has `pixel_values` (B, C, H, W) float32 and
    `labels`: (B, H, W) or (B,) int64, (B, K) float32 for several or mixed classes, or (B, K, 3) float32 for keypoints.
    For segments it has the entries of `segment_labels` instead; `segment_ids` adds their maps.
    """

    def __init__(
        self,
        processor: BaseImageProcessor,
        task: str,
        batch_transforms: Sequence[Any] = (),
        num_classes: int | None = None,
        seed: int = 0,
        segment_ids: bool = False,
    ):
        self.segments, self.segment_ids = task in SEGMENT_TASKS, segment_ids
        self.processor, self.seed, self.num_classes = processor, seed, num_classes
        self.dtype = LABEL_DTYPES[task]
        self.mixer = read_mixer(batch_transforms, task, num_classes)

    def target(self, target: Any) -> torch.Tensor:
        """Return a target as a tensor; several classes as (K,) of 0 and 1."""
        if isinstance(target, Labels):
            return target.as_vector(self.num_classes or 0)
        return torch.as_tensor(target, dtype=self.dtype)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> Batch:
        """Stack samples of one shape to `pixel_values` and their labels. Raises CollationError."""
        check_shapes(samples)
        images = normalize_images(self.processor, [sample["image"] for sample in samples])
        if self.segments:
            return {"pixel_values": images} | segment_labels([each["target"] for each in samples], self.segment_ids)
        labels = torch.stack([self.target(sample["target"]) for sample in samples])
        if self.mixer is not None:
            with seed_draw(samples[0]["draw"], self.seed, BATCH):
                images, labels = self.mixer(images, labels)
        return {"pixel_values": images, "labels": labels}


def segment_labels(targets: Sequence[Segments], segment_ids: bool = False) -> Batch:
    """Return the labels of segments of maps of one size, with transformers' names.

    `mask_labels` and `class_labels` are lists of B tensors, (n, H, W) bool and (n,) int64; n may be 0. `ignore_mask`
    (B, H, W) bool marks ignored pixels, and is absent if there are none. With `segment_ids`, also `segment_ids`
    (B, H, W) int32: 0 is background, -1 is ignored, and i is the i-th mask of the image.
    """
    ids = torch.stack([target.ids for target in targets])
    numbers = [torch.arange(1, len(target.classes) + 1, dtype=ids.dtype) for target in targets]
    labels: Batch = {
        "mask_labels": [own == each[:, None, None] for own, each in zip(ids, numbers, strict=True)],
        "class_labels": [torch.tensor(target.classes, dtype=torch.int64) for target in targets],
    }
    ignored = ids < 0
    if ignored.any():
        labels["ignore_mask"] = ignored
    return labels | ({"segment_ids": ids} if segment_ids else {})


def check_shapes(samples: Sequence[Mapping[str, Any]]) -> None:
    """Raise CollationError if the shapes of the images differ."""
    first = samples[0]
    for sample in samples:
        if sample["image"].shape != first["image"].shape:
            named = [
                f"{s.get('name', 'one')} {tuple(s['image'].shape)} (channels, height, width)" for s in (first, sample)
            ]
            raise CollationError(
                f"the images of a batch must have one shape, found {named[0]} and {named[1]}: end the transforms with "
                "one that fixes the size, such as random_crop"
            )


__all__ = ["Batch", "CollationError", "Collator", "normalize_images", "segment_labels"]
