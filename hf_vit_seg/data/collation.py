"""From samples to the batch that a model takes, normalized by the image processor that is saved with it.

Shapes: B images, C bands, H W pixels, K classes or keypoints.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.data.transforms.batch_mixing import read_mixer
from hf_vit_seg.errors import HfVitSegError

from .stream import BATCH, seeded

LABEL_DTYPES = {"segmentation": torch.int64, "classification": torch.int64, "pose": torch.float32}
# What is left of a processor once the transforms have given an image its size.
WITHOUT_GEOMETRY: dict[str, Any] = {"do_resize": False, "do_center_crop": False, "do_pad": False}


class CollationError(HfVitSegError):
    """Samples that make no batch."""


def normalized(processor: BaseImageProcessor, images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images (C, H, W) of one size as `processor(image)` normalizes them, to the bit: (B, C, H, W) float32."""
    options: dict[str, Any] = {"return_tensors": "pt", "input_data_format": "channels_first"}
    return processor(list(images), **options, **WITHOUT_GEOMETRY)["pixel_values"]


class Collator:
    """Samples as batches for training.

    A sample is a mapping with `image` (C, H, W), `target` (a mask (H, W), a class index, or keypoints (K, 3)), `name`
    for messages, and the `draw` that it was made for. `batch_transforms` (mixup, cutmix) are a recipe's; their random
    numbers follow from `seed` and the batch's first draw. A batch has `pixel_values` (B, C, H, W) float32 and `labels`:
    (B, H, W) or (B,) int64, (B, K) float32 of mixed classes, or (B, K, 3) float32 of keypoints.
    """

    def __init__(
        self,
        processor: BaseImageProcessor,
        task: str,
        batch_transforms: Sequence[Any] = (),
        num_classes: int | None = None,
        seed: int = 0,
    ):
        self.processor, self.seed = processor, seed
        self.dtype = LABEL_DTYPES[task]
        self.mixer = read_mixer(batch_transforms, task, num_classes)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Samples to `pixel_values` and `labels`."""
        check_shapes(samples)
        images = normalized(self.processor, [sample["image"] for sample in samples])
        labels = torch.stack([torch.as_tensor(sample["target"], dtype=self.dtype) for sample in samples])
        if self.mixer is not None:
            with seeded(samples[0]["draw"], self.seed, BATCH):
                images, labels = self.mixer(images, labels)
        return {"pixel_values": images, "labels": labels}


def check_shapes(samples: Sequence[Mapping[str, Any]]) -> None:
    """Refuse images of several shapes, with the names of two that differ."""
    first = samples[0]
    for sample in samples:
        if sample["image"].shape != first["image"].shape:
            named = [
                f"{s.get('name', 'one')} {tuple(s['image'].shape)} (bands, height, width)" for s in (first, sample)
            ]
            raise CollationError(
                f"The images of a batch have one shape, found {named[0]} and {named[1]}: let the transforms end with "
                "one that gives all images a size, such as random_crop"
            )


__all__ = ["CollationError", "Collator", "normalized"]
