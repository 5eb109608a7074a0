"""The base class of `Segmenter` and `InstanceSegmenter`: a model with its image processor, device and protocol."""

import copy
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image

from hf_vit_seg.data.images.files import MAX_PIXELS
from hf_vit_seg.drawing.palettes import class_palette
from hf_vit_seg.inference.dense.image_preparation import PreparedImage, prepare_image, prepare_pixels
from hf_vit_seg.inference.dense.protocols import Protocol, Sides
from hf_vit_seg.loading.devices import float_type, select_device
from hf_vit_seg.loading.image_processors import load_processor
from hf_vit_seg.loading.models import advise_conversion, label_names, load_for_inference

from .runtimes import RuntimeModel, is_program


class ImageSegmenter:
    """The base of `Segmenter` and `InstanceSegmenter`."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: str | torch.device | None = None,
        protocol: Protocol | None = None,
    ):
        """`device` defaults to a GPU if available."""
        advise_conversion(model)
        self.device = select_device(device)
        self.model = model.eval().to(self.device)
        self.processor = processor
        self.protocol = self.resolve_protocol(protocol or Protocol())
        self.names = self.result_names(label_names(model.config))
        self.palette = class_palette(getattr(processor, "palette", None), len(self.names))

    def result_names(self, labels: list[str]) -> tuple[str, ...]:
        """Return the class names of results, from the names of the model's labels."""
        return tuple(labels)

    def resolve_protocol(self, protocol: Protocol) -> Protocol:
        """Return the protocol with the fixed input size of an exported program, if it leaves the size open."""
        sides = self.model.program.sides if isinstance(self.model, RuntimeModel) else None
        if sides is None or protocol.size is not None or protocol.window is not None:
            return protocol
        return protocol.model_copy(update={"size": Sides(height=sides[0], width=sides[1])})

    def with_protocol(self, protocol: Protocol) -> Self:
        """Return the same model with another protocol."""
        other = copy.copy(self)
        other.protocol = self.resolve_protocol(protocol)
        return other

    @property
    def channels(self) -> int:
        """The number of image channels."""
        return getattr(self.model.config, "num_channels", 3)

    def prepare(self, image: Any, max_pixels: int = MAX_PIXELS) -> PreparedImage:
        """Resize and normalize one image.

        It is a path, an http(s) address, bytes, a binary file object, a PIL image of any mode, or an array or tensor
        (H, W), (C, H, W) or (H, W, C). Raises ImageFileError if a file cannot be read, or has more than `max_pixels`
        pixels.
        """
        return prepare_image(image, self.protocol, self.processor, self.channels, max_pixels)

    def prepare_pixels(self, pixels: torch.Tensor, shown: Image.Image | None = None) -> PreparedImage:
        """Resize and normalize pixels (C, H, W) that were read with the model's channels; `shown` is for display."""
        return prepare_pixels(pixels, shown, self.protocol, self.processor)


def load_model_or_program(
    name: str,
    task: str,
    device: str | torch.device | None,
    dtype: str | torch.dtype,
    *,
    convert: bool,
    **hub: Any,
) -> tuple[Any, Any, str | torch.device | None]:
    """Return a model or an exported program, its image processor, and the device, the CPU for programs.

    Raises ModelError if the model does not exist, or has no head for the task or no image processor.
    """
    if is_program(str(name)):
        return RuntimeModel(Path(name), task=task), load_processor(str(Path(name).parent)), device or "cpu"
    where, kind = select_device(device), float_type(dtype)
    return *load_for_inference(name, task, kind, convert=convert, **hub), where


__all__ = ["ImageSegmenter", "load_model_or_program"]
