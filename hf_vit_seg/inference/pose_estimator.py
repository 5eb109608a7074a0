"""Top-down pose estimation: keypoints of a person from an image and a box.

Shapes: C channels, H W pixels, h w of the person's crop, K keypoints. Points are (x, y) in pixels of the image.
"""

from typing import Any

import torch
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.data.collation import normalize_images
from hf_vit_seg.data.transforms.person_crops import PersonCrop, person_size
from hf_vit_seg.drawing.skeletons import Skeleton
from hf_vit_seg.models.heatmaps import keypoints_from_heatmaps

from .image_inputs import load_pixels
from .loading import label_names, load_model, load_processor, select_device

Box = tuple[float, float, float, float]  # x, y, width, height


class PoseEstimator:
    """A pose model with its image processor; calling it with an image and a box returns keypoints."""

    def __init__(self, model: Any, processor: BaseImageProcessor, device: str | torch.device | None = None):
        """`device` defaults to a GPU if available."""
        self.device = select_device(device)
        self.model, self.processor = model.eval().to(self.device), processor
        self.size = person_size(processor)

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device | None = None) -> "PoseEstimator":
        """Load a local directory or a Hub model. Raises ModelError if it is not a pose model."""
        return cls(load_model(name, task="pose"), load_processor(name), device)

    @property
    def names(self) -> list[str]:
        """The keypoints' names."""
        return label_names(self.model.config, "keypoint")

    @property
    def skeleton(self) -> Skeleton:
        """The bones, if these are COCO's keypoints, and the left and right keypoints of the model's config."""
        return Skeleton.of(self.names, pairs=getattr(self.model.config, "pose_flip_pairs", None))

    @property
    def channels(self) -> int:
        """The number of image channels."""
        return getattr(self.model.config, "num_channels", 3)

    @torch.inference_mode()
    def __call__(self, image: Any, box: Box | None = None) -> torch.Tensor:
        """The keypoints (K, 3) as x, y, score of the person in a box of an image; default: the whole image.

        See `Segmenter.prepare` for the kinds of images. Raises ValueError for a box without area.
        """
        image, _ = load_pixels(image, self.channels, self.processor)
        crop = PersonCrop.from_box(box or (0, 0, image.shape[2], image.shape[1]), self.size)
        pixels = normalize_images(self.processor, [crop.extract(image)]).to(self.device, self.model.dtype)
        points, scores = keypoints_from_heatmaps(self.model(pixel_values=pixels).heatmaps, self.size)
        return torch.cat([crop.to_image(points[0].cpu()), scores[0, :, None].cpu()], dim=1)


__all__ = ["Box", "PoseEstimator"]
