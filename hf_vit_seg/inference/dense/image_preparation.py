"""Preprocessing of images from files, PIL, arrays or tensors.

Shapes: C channels, H W pixels.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.data.images.display import to_rgb_image
from hf_vit_seg.data.images.files import MAX_PIXELS
from hf_vit_seg.data.images.nodata import file_nodata, fill_missing
from hf_vit_seg.data.images.pixels import pil_pixels, read_pixels
from hf_vit_seg.data.transforms.context import TransformContext
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.image_processing_inputs import rgb_image

from .protocols import Protocol
from .row_logits import Model


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """A preprocessed image.

    `picture` is the RGB image for display, if available, `size` its (height, width); `views` are the pixel values
    (1, C, H, W) at each scale of the protocol.
    """

    picture: Image.Image | None
    size: tuple[int, int]
    views: tuple[torch.Tensor, ...]
    milliseconds: float

    @property
    def pixel_values(self) -> torch.Tensor:
        """The first view."""
        return self.views[0]


def prepare(
    image: Any, protocol: Protocol, processor: Any, channels: int = 3, max_pixels: int = MAX_PIXELS
) -> PreparedImage:
    """Resize an image (see `Segmenter.prepare`) according to the protocol, and normalize it with the processor."""
    start = time.perf_counter()
    shown = None
    if isinstance(image, str | Path):
        image, shown = read_file(Path(image), channels, max_pixels, processor)
    if isinstance(image, Image.Image):
        shown = rgb_image(image)
        image = pil_pixels(image, channels, "the image")
    elif isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        shown = Image.fromarray(image) if array_size(image, channels) == image.shape[:2] else None
    size = array_size(image, channels) if shown is None else (shown.height, shown.width)
    views = tuple(view(image, size, scale, protocol, processor) for scale in protocol.scales)
    return PreparedImage(shown, size, views, milliseconds_since(start))


def read_file(path: Path, channels: int, max_pixels: int, processor: Any) -> tuple[torch.Tensor, Image.Image]:
    """Read an image file as pixels (C, H, W), as in training, and as an RGB image for display.

    Pixels that a TIFF declares as missing become the processor's mean, as in training and in tiles.
    """
    pixels = read_pixels(path, channels, max_pixels)
    pixels, _ = fill_missing(
        pixels, file_nodata(path), lambda: TransformContext.from_processor(processor, "segmentation").mean
    )
    return pixels, to_rgb_image(pixels)


def view(image: Any, size: tuple[int, int], scale: float, protocol: Protocol, processor: Any) -> torch.Tensor:
    """Preprocess an image of `size` at one scale of the protocol: pixel values (1, C, H, W)."""
    options: dict[str, Any] = {}
    sides = protocol.sides(size, scale, processor)
    if sides is not None:
        options = {"do_resize": sides != size, "size": {"height": sides[0], "width": sides[1]}}
        if getattr(processor, "size_divisor", None):
            options["size_divisor"] = 1  # the protocol has rounded the sides already
    return processor(images=image, return_tensors="pt", do_center_crop=False, do_pad=False, **options)["pixel_values"]


def array_size(image: Any, channels: int) -> tuple[int, int]:
    """The (height, width) of an array (H, W), (C, H, W) or (H, W, C), with axes inferred as in image processors."""
    shape = tuple(image.shape)
    if len(shape) == 2:
        return shape
    if len(shape) != 3:
        raise HfVitSegError(f"A segmenter takes one image at a time, got an array of shape {shape}")
    count = next((count for count in (channels, 3, 1, 4) if count in (shape[0], shape[2])), None)
    return shape[1:] if shape[0] == count else shape[:2]


class TimedModel:
    """A model that measures the total time of its calls."""

    def __init__(self, model: Model):
        self.model, self.milliseconds = model, 0.0
        self.device = torch.device("cpu")  # of the last logits

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The model's logits."""
        self.wait()
        start = time.perf_counter()
        logits = self.model(pixel_values)
        self.device = logits.device
        self.wait()
        self.milliseconds += milliseconds_since(start)
        return logits

    def wait(self) -> None:
        """Synchronize with an accelerator, whose calls are asynchronous."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def milliseconds_since(start: float) -> float:
    """Milliseconds since a value of `time.perf_counter`."""
    return (time.perf_counter() - start) * 1e3


__all__ = ["PreparedImage", "TimedModel", "array_size", "milliseconds_since", "prepare", "read_file"]
