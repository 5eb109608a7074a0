"""From an image to the probabilities of its classes, with any image classifier that transformers' Auto classes know.

Shapes: C bands, H W pixels, h w of the model's input, K classes.
"""

from typing import Any

import torch
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import SizeDict

from hf_vit_seg.models.image_processing_segmentation import target_sides

from .loading import chosen_device, label_names, load_model, load_processor


class Classifier:
    """A classification model with its image processor: call it with an image, get the most likely classes."""

    def __init__(self, model: Any, processor: BaseImageProcessor, device: str | torch.device | None = None):
        """`device` is a GPU by default where there is one."""
        self.device = chosen_device(device)
        self.model, self.processor = model.eval().to(self.device), processor

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device | None = None) -> "Classifier":
        """Load a local directory or a Hub model. ModelError when it is no classifier with an image processor."""
        return cls(load_model(name, task="classification"), load_processor(name), device)

    @property
    def channels(self) -> int:
        """How many bands the model takes."""
        return getattr(self.model.config, "num_channels", 3)

    @torch.inference_mode()
    def probabilities(self, image: torch.Tensor) -> torch.Tensor:
        """An image (C, H, W) to the probabilities of its classes, (K,) float32 on the CPU; of one class, its own."""
        pixels = class_input(self.processor, image).to(self.device, self.model.dtype)
        logits = self.model(pixel_values=pixels).logits[0].float().cpu()
        return logits.sigmoid() if len(logits) == 1 else logits.softmax(dim=-1)

    def __call__(self, image: torch.Tensor, top_k: int = 5) -> list[tuple[str, float]]:
        """The `top_k` most likely classes of an image (C, H, W) with their probabilities, the most likely first."""
        found = self.probabilities(image)
        order = found.argsort(descending=True, stable=True)[:top_k].tolist()
        names = label_names(self.model.config)
        return [(names[index], float(found[index])) for index in order]


def class_input(processor: BaseImageProcessor, image: torch.Tensor) -> torch.Tensor:
    """What a classifier is measured with: an image (C, H, W) resized, cropped and normalized, (1, C, h, w).

    ValueError for a long thin one, which its shortest edge would make too large.
    """
    edges = {edge: side for edge, side in dict(getattr(processor, "size", None) or {}).items() if side}
    if getattr(processor, "do_resize", False) and edges:
        target_sides(image.shape[1], image.shape[2], SizeDict(**edges), None)
    return processor(image, return_tensors="pt", input_data_format="channels_first")["pixel_values"]


__all__ = ["Classifier", "class_input"]
