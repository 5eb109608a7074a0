"""Top-down pose estimation: keypoints of a person from an image and a box.

Shapes: C channels, H W pixels, h w of the person's crop, K keypoints. P persons. Points are (x, y) in pixels of the
image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.data.collation import normalize_images
from hf_vit_seg.data.transforms.person_crops import PersonCrop, person_size
from hf_vit_seg.drawing.skeletons import Skeleton
from hf_vit_seg.loading.models import label_names
from hf_vit_seg.models.heatmaps import keypoints_from_heatmaps

from .image_inputs import load_pixels
from .image_model import ImageModel
from .output_checks import check_outputs

TOGETHER = 16  # persons per forward pass
Box = tuple[float, float, float, float]  # x, y, width, height


class PoseEstimator(ImageModel):
    """A pose model with its image processor; calling it with an image and a box returns keypoints."""

    task = "pose"

    def __init__(self, model: Any, processor: BaseImageProcessor, device: str | torch.device | None = None):
        """`device` defaults to a GPU if available."""
        super().__init__(model, processor, device)
        self.size = person_size(processor)

    @property
    def names(self) -> list[str]:
        """The keypoints' names."""
        return label_names(self.model.config, "keypoint")

    @property
    def skeleton(self) -> Skeleton:
        """The bones, if these are COCO's keypoints, and the left and right keypoints of the model's config."""
        return Skeleton.of(self.names, pairs=getattr(self.model.config, "pose_flip_pairs", None))

    @torch.inference_mode()
    def __call__(self, image: Any, box: Box | None = None) -> torch.Tensor:
        """Return the keypoints (K, 3) as x, y, score of the person in a box of an image; default: the whole image.

        See `Segmenter.prepare` for the kinds of images. Raises ValueError for a box without area, and
        InvalidOutputError if the outputs of the model contain NaN or infinity.
        """
        pixels, _ = load_pixels(image, self.channels, self.processor)
        keypoints = self.estimate(pixels, [box or (0, 0, pixels.shape[2], pixels.shape[1])])[0]
        check_outputs(keypoints, pixels)
        return keypoints

    @torch.inference_mode()
    def estimate(self, pixels: torch.Tensor, boxes: Sequence[Box]) -> torch.Tensor:
        """Return the keypoints (P, K, 3) as x, y, score of the persons in boxes of an image (C, H, W).

        Raises ValueError for a box without area.
        """
        keypoints = [torch.zeros(0, len(self.names), 3)]
        for start in range(0, len(boxes), TOGETHER):
            crops = [PersonCrop.from_box(box, self.size) for box in boxes[start : start + TOGETHER]]
            inputs = normalize_images(self.processor, [crop.extract(pixels) for crop in crops])
            heatmaps = self.model(pixel_values=inputs.to(self.device, self.model.dtype)).heatmaps
            points, scores = (each.cpu() for each in keypoints_from_heatmaps(heatmaps, self.size))
            points = torch.stack([crop.to_image(own) for crop, own in zip(crops, points, strict=True)])
            keypoints.append(torch.cat([points, scores[..., None]], dim=2))
        return torch.cat(keypoints)


__all__ = ["Box", "PoseEstimator"]
