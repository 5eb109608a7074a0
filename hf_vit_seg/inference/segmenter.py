"""From an image to its label map, with any semantic segmentation model that transformers' Auto classes know.

Shapes: B images, C channels, H W pixels, h w the logits' grid, K classes.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from hf_vit_seg.models.image_processing_inputs import rgb_picture
from hf_vit_seg.models.label_maps import label_map, score_map

from .image_files import read_image
from .palettes import class_palette
from .segmentation import Segmentation


class ModelError(ValueError):
    """A model that cannot be used, and why, in one sentence."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image ready for the model: its picture, if it is one, its (height, width), and pixel values (1, C, H, W)."""

    picture: Image.Image | None
    size: tuple[int, int]
    pixel_values: torch.Tensor
    milliseconds: float


class Segmenter:
    """A model with its image processor: call it with an image, get a `Segmentation`.

    The whole image goes through the model once, resized as the processor says, and the label map is exact at the
    image's own size. Crops and padding that the processor may ask for are left out: they would lose pixels.
    """

    protocol = "whole image"

    def __init__(self, model: Any, processor: Any, device: str | torch.device | None = None):
        """`device` is a GPU by default where there is one."""
        self.device = chosen_device(device)
        self.model = model.eval().to(self.device)
        self.processor = processor
        labels = model.config.id2label
        names = [labels.get(index, f"class {index}") for index in range(model.config.num_labels)]
        self.names = tuple(names) if len(names) > 1 else ("background", *names)
        self.palette = class_palette(getattr(processor, "palette", None), len(self.names))

    @classmethod
    def from_pretrained(
        cls, name: str, device: str | torch.device | None = None, dtype: str | torch.dtype = torch.float32
    ) -> "Segmenter":
        """Load a local directory or a Hub model; code of the Hub is never run.

        `dtype` is one of torch's floating-point types or its name. ModelError when there is no such model, it has no
        segmentation head, or no image processor.
        """
        where = chosen_device(device)
        kind: Any = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise ModelError(f"{dtype} is no floating-point type of torch: use float32, bfloat16 or float16")
        return cls(load_model(str(name), kind), load_processor(str(name)), where)

    def prepare(self, image: Any) -> Prepared:
        """Resize and normalise one image: a file, PIL in any mode, an array or tensor (C, H, W) or (H, W, C).

        ImageFileError when a file cannot be read.
        """
        start = time.perf_counter()
        if isinstance(image, str | Path):
            image = read_image(Path(image))
        if isinstance(image, Image.Image):
            channels = getattr(self.model.config, "num_channels", 3)
            picture = rgb_picture(image)
            source = picture if channels == 3 else image
            size = (image.height, image.width)
        else:
            picture, source = None, image
            size = array_size(image, getattr(self.model.config, "num_channels", 3))
            if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (*size, 3):
                picture = Image.fromarray(image)
        pixels = self.processor(images=source, return_tensors="pt", do_center_crop=False, do_pad=False)
        return Prepared(picture, size, pixels["pixel_values"], milliseconds_since(start))

    @torch.inference_mode()
    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixel values (B, C, H, W) -> logits (B, K, h, w) on the model's device."""
        return self.model(pixel_values=pixel_values.to(self.device, self.model.dtype)).logits

    @torch.inference_mode()
    def segment(self, prepared: Prepared, scores: bool = False) -> Segmentation:
        """Segment a prepared image."""
        start = time.perf_counter()
        logits = self.logits(prepared.pixel_values)
        timings = {"prepare": prepared.milliseconds, "model": milliseconds_since(start)}
        start = time.perf_counter()
        kind = torch.uint8 if len(self.names) <= 256 else torch.int32
        labels = label_map(logits, prepared.size, dtype=kind)[0].cpu().numpy()
        timings["label_map"] = milliseconds_since(start)
        chances = None
        if scores:
            start = time.perf_counter()
            chances = score_map(logits, prepared.size)[0].float().cpu().numpy()
            timings["scores"] = milliseconds_since(start)
        return Segmentation(
            image=prepared.picture,
            label_map=labels if kind == torch.uint8 else labels.astype(np.uint16),
            scores=chances,
            names=self.names,
            palette=self.palette,
            protocol=self.describe(prepared),
            timings=timings,
        )

    def describe(self, prepared: Prepared) -> str:
        """How an image was segmented, for reports."""
        height, width = prepared.pixel_values.shape[-2:]
        return f"{self.protocol} at {height}x{width} (height x width)"

    def __call__(self, image: Any, scores: bool = False) -> Segmentation:
        """Segment one image; `scores` adds the probability of each pixel's class."""
        return self.segment(self.prepare(image), scores)


def milliseconds_since(start: float) -> float:
    """Time passed on the performance counter."""
    return (time.perf_counter() - start) * 1e3


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, by default a GPU where there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"Device {device} cannot be used: {reason}") from None
    return chosen


def array_size(image: Any, channels: int) -> tuple[int, int]:
    """(height, width) of an array (H, W), (C, H, W) or (H, W, C); of two possible axes the first has the channels."""
    shape = tuple(image.shape)
    if len(shape) == 2:
        return shape
    if len(shape) != 3:
        raise ValueError(f"A segmenter takes one image at a time, got an array of shape {shape}")
    return shape[1:] if shape[0] in (channels, 1) and shape[0] <= shape[2] else shape[:2]


def load_model(name: str, dtype: torch.dtype) -> Any:
    """A semantic segmentation model whose weights are all there."""
    try:
        model, info = AutoModelForSemanticSegmentation.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"{name} cannot be loaded as a segmentation model: {first_sentence(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        saved = ", ".join(model.config.architectures or ["unknown class"])
        raise ModelError(
            f"{name} has no trained segmentation head: {len(missing)} weights such as {missing[0]} are missing "
            f"(it was saved as {saved})"
        )
    return model


def load_processor(name: str) -> Any:
    """The image processor that lies beside a model."""
    try:
        return AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{name} has no image processor (preprocessor_config.json), which says how images are resized and "
            f"normalised: {first_sentence(error)}"
        ) from error


def first_sentence(error: Exception) -> str:
    """What transformers' long messages begin with."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.split(". ")[0][:300]
