"""Models that find objects, for tests of everything around them: one without weights that finds bright spots, and
tiny ones with random weights."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from random_weights import randomize_weights
from scipy import ndimage
from torch import nn
from transformers import AutoModelForUniversalSegmentation

from hf_vit_seg import architectures
from hf_vit_seg.inference import Protocol
from hf_vit_seg.inference.instance_segmenter import InstanceSegmenter
from hf_vit_seg.models.image_processing_universal import UniversalSegmentationImageProcessor

NAMES = ("dark", "bright")


class SpotOutput:
    """The 8-connected spots of images: a pixel depends on its own value only, so windows agree with whole images."""

    def __init__(self, pixels: torch.Tensor):
        self.pixels = pixels

    def semantic_logits(self) -> torch.Tensor:
        return torch.zeros(len(self.pixels), len(NAMES), *self.pixels.shape[-2:])

    def segments(self, image: int, size: tuple[int, int], threshold: float | None = None) -> tuple[Any, Any, Any]:
        """Spots at least as bright as `threshold`; brighter ones than 0.7 are of the second class."""
        values = self.pixels[image, 0].numpy()
        numbers, count = ndimage.label(values > 0, np.ones((3, 3)))
        assert values.shape == size
        means = np.array(ndimage.mean(values, numbers, range(1, count + 1))).reshape(-1)
        kept = means >= (threshold or 0)
        table = np.concatenate([[0], np.where(kept, kept.cumsum(), 0)])
        return (
            torch.from_numpy(table[numbers]),
            torch.from_numpy(means[kept] > 0.7).long(),
            torch.from_numpy(means[kept]),
        )


class SpotModel(nn.Module):
    """Finds the pixels above 0."""

    dtype = torch.float32

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(id2label=dict(enumerate(NAMES)), num_labels=len(NAMES), num_channels=1)

    def forward(self, pixel_values: torch.Tensor) -> SpotOutput:
        return SpotOutput(pixel_values)


def spot_segmenter(protocol: Protocol | None = None, side: int = 64) -> InstanceSegmenter:
    processor = UniversalSegmentationImageProcessor(
        do_resize=False, size={"height": side, "width": side}, image_mean=[0.0], image_std=[1.0]
    )
    return InstanceSegmenter(SpotModel(), processor, "cpu", protocol)


def save_object_model(
    folder: Path, name: str = "vit", stuff: Sequence[int] | None = None, side: int = 64, **fields: Any
) -> Path:
    """Save a tiny model with random weights, whose queries are certain of their classes, and its image processor."""
    architecture = architectures()[name]
    labels = {0: "disc", 1: "bar", 2: "ground"}
    config = architecture.variant_config("tiny", **({"num_queries": 20, "id2label": labels} | fields))
    torch.manual_seed(0)
    model = randomize_weights(AutoModelForUniversalSegmentation.from_config(config))
    if hasattr(model.decode_head, "class_head"):
        with torch.no_grad():
            model.decode_head.class_head.weight.mul_(30)
    model.save_pretrained(folder)
    settings: dict[str, Any] = {} if stuff is None else {"label_ids_to_fuse": list(stuff)}
    processor = architecture.universal_image_processor["torchvision"]
    processor(size={"height": side, "width": side}, **settings).save_pretrained(folder)
    return folder


def draw_spots(height: int, width: int, count: int, largest: int, seed: int = 0) -> np.ndarray:
    """Discs and rectangles that do not touch, with the values 140 to 255, on 0."""
    random = np.random.default_rng(seed)
    image = np.zeros((height, width), np.uint8)
    for _ in range(count):
        side = random.integers(1, largest + 1, 2)
        top, left = (
            int(random.integers(0, max(1, length - step))) for length, step in zip(image.shape, side, strict=True)
        )
        bottom, right = top + int(side[0]), left + int(side[1])
        if not image[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1].any():
            image[top:bottom, left:right] = random.integers(140, 256)
    return image
