"""Image classification with any model of transformers' Auto classes.

Shapes: C channels, H W pixels, h w of the model's input, K classes.
"""

from typing import Any

import torch
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict

from hf_vit_seg.loading.models import label_names
from hf_vit_seg.models.image_processing_segmentation import target_sides

from .image_inputs import load_pixels
from .image_model import ImageModel
from .output_checks import check_outputs

# transformers' names of the kinds of classification, which pipelines read.
SINGLE_LABEL, MULTI_LABEL = "single_label_classification", "multi_label_classification"


class Classifier(ImageModel):
    """A classification model with its image processor; calling it returns the most likely classes of an image."""

    task = "classification"

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several classes."""
        return getattr(self.model.config, "problem_type", None) == MULTI_LABEL

    def probabilities(self, image: Any) -> torch.Tensor:
        """Compute the class probabilities (K,) float32 of an image, on the CPU.

        A model with one class or of several classes per image has a sigmoid for each, others a softmax.

        See `Segmenter.prepare` for the kinds of images.
        """
        return self.pixel_probabilities(load_pixels(image, self.channels, self.processor)[0])

    @torch.inference_mode()
    def pixel_probabilities(self, pixels: torch.Tensor) -> torch.Tensor:
        """Compute the class probabilities (K,) of pixels (C, H, W) that were read with the model's channels."""
        inputs = class_input(self.processor, pixels).to(self.device, self.model.dtype)
        logits = self.model(pixel_values=inputs).logits[0].float().cpu()
        return logits.sigmoid() if len(logits) == 1 or self.multi_label else logits.softmax(dim=-1)

    def __call__(self, image: Any, top_k: int = 5) -> Any:
        """Return the `top_k` most likely classes of an image with their probabilities, the most likely first.

        For a list of images, a list of these. See `Segmenter.prepare` for the kinds of images. Raises
        InvalidOutputError if the outputs of the model contain NaN or infinity.
        """
        if isinstance(image, list | tuple):
            return [self(each, top_k) for each in image]
        pixels, _ = load_pixels(image, self.channels, self.processor)
        probabilities = self.pixel_probabilities(pixels)
        check_outputs(probabilities, pixels)
        order = probabilities.argsort(descending=True, stable=True)[:top_k].tolist()
        names = label_names(self.model.config)
        return [(names[index], float(probabilities[index])) for index in order]


def class_input(processor: BaseImageProcessor, image: torch.Tensor) -> torch.Tensor:
    """Preprocess an image (C, H, W) for a classifier: resized, cropped and normalized, (1, C, h, w).

    Raises ValueError for elongated images, which become too large when the shortest edge is resized.
    """
    edges = {edge: side for edge, side in dict(getattr(processor, "size", None) or {}).items() if side}
    if getattr(processor, "do_resize", False) and edges:
        target_sides(image.shape[1], image.shape[2], SizeDict(**edges), None)
    return processor(image, return_tensors="pt", input_data_format="channels_first")["pixel_values"]


__all__ = ["MULTI_LABEL", "SINGLE_LABEL", "Classifier", "class_input"]
