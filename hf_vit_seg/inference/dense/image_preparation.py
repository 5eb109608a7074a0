"""Preprocessing of images for models of dense prediction.

Shapes: C channels, H W pixels.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from hf_vit_seg.data.images.files import MAX_PIXELS
from hf_vit_seg.inference.image_inputs import load_image

from .protocols import Protocol
from .row_logits import Model


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """A preprocessed image.

    `picture` is the RGB image for display, if available, `size` its (height, width); `views` are the pixel values
    (1, C, H, W) at each scale of the protocol. `missing` (H, W) bool are pixels without data, or None.
    """

    picture: Image.Image | None
    size: tuple[int, int]
    views: tuple[torch.Tensor, ...]
    milliseconds: float
    missing: torch.Tensor | None = None

    @property
    def pixel_values(self) -> torch.Tensor:
        """The first view."""
        return self.views[0]


def prepare_image(
    image: Any, protocol: Protocol, processor: Any, channels: int = 3, max_pixels: int = MAX_PIXELS
) -> PreparedImage:
    """Resize an image (see `Segmenter.prepare`) according to the protocol, and normalize it with the processor."""
    start = time.perf_counter()
    pixels, shown, missing = load_image(image, channels, processor, max_pixels)
    prepared = prepare_pixels(pixels, shown, protocol, processor)
    return replace(prepared, milliseconds=milliseconds_since(start), missing=missing)


def prepare_pixels(
    pixels: torch.Tensor, shown: Image.Image | None, protocol: Protocol, processor: Any
) -> PreparedImage:
    """Resize and normalize loaded pixels (C, H, W) with the model's channels; `shown` is the image for display."""
    start = time.perf_counter()
    size = (pixels.shape[1], pixels.shape[2])
    views = tuple(view(pixels, size, scale, protocol, processor) for scale in protocol.scales)
    return PreparedImage(shown, size, views, milliseconds_since(start))


def view(image: torch.Tensor, size: tuple[int, int], scale: float, protocol: Protocol, processor: Any) -> torch.Tensor:
    """Preprocess an image (C, H, W) of `size` at one scale of the protocol: pixel values (1, C, H, W)."""
    options: dict[str, Any] = {"input_data_format": "channels_first"}
    sides = protocol.sides(size, scale, processor)
    if sides is not None:
        options |= {"do_resize": sides != size, "size": {"height": sides[0], "width": sides[1]}}
        if getattr(processor, "size_divisor", None):
            options["size_divisor"] = 1  # the protocol has rounded the sides already
    return processor(images=image, return_tensors="pt", do_center_crop=False, do_pad=False, **options)["pixel_values"]


class TimedModel:
    """A model that measures the total time of its calls."""

    def __init__(self, model: Model):
        self.model, self.milliseconds = model, 0.0
        self.device = torch.device("cpu")  # device of the last logits

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the model's logits."""
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
    """Return the milliseconds since `start`, a value of `time.perf_counter`."""
    return (time.perf_counter() - start) * 1e3


__all__ = ["PreparedImage", "TimedModel", "milliseconds_since", "prepare_image", "prepare_pixels"]
