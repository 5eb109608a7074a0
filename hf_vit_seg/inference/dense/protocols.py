"""Inference protocols: whole image or sliding windows, size, scales and flip.

Sizes are (height, width) in pixels. The presets reproduce the published results of SegFormer (arXiv 2105.15203): the
test configurations of NVlabs/SegFormer and its `--aug-test`. There are two deviations. The model's image processor
resizes an image once, directly to a multiple of `divisor` (there: to the scale, then up to the multiple). The logits of
a whole image, or of one that fits into a window, are resized once, directly to the image's size (there: first to that
of the resized image).
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, model_validator
from transformers.image_utils import SizeDict

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.grid_sizes import round_up
from hf_vit_seg.models.image_processing_segmentation import MAX_RESIZED_PIXELS, ResizeError, target_sides
from hf_vit_seg.records import Count, Factor, Record, read_record, suggestion

from .sliding_windows import Blend, WindowGrid


class PredictionError(HfVitSegError):
    """A prediction that is not possible with the given settings."""


class Edges(Record):
    """A target size that keeps the aspect ratio: the largest that satisfies both edges."""

    shortest_edge: Count
    longest_edge: Count | None = None

    def sides(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Return the (height, width) for an image of `size` at a scale, rounded as in mmcv's `imrescale`."""
        factor = int(self.shortest_edge * scale) / min(size)
        if self.longest_edge is not None:
            factor = min(factor, int(self.longest_edge * scale) / max(size))
        return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)

    def __str__(self) -> str:
        bound = f" and longest edge of at most {self.longest_edge}" if self.longest_edge else ""
        return f"with a shortest edge of {self.shortest_edge}{bound}"


class Sides(Record):
    """A fixed target size, independent of the aspect ratio."""

    height: Count
    width: Count

    def sides(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Return the (height, width) for any image at a scale."""
        return round(self.height * scale), round(self.width * scale)

    def __str__(self) -> str:
        return f"at {self.height}x{self.width} (height x width)"


WINDOW_TEXT = re.compile(r"(\d+)(?:x(\d+))?")
SIZE_TEXT = re.compile(r"(\d+)(?:,(\d+))?|(\d+)x(\d+)")
SIZE_HINT = "processor, own, 512 (shortest edge), 512,2048 (shortest and longest edge) or 512x1024 (height x width)"


def pair(value: Any) -> Any:
    """Parse a pair from one integer, or from text such as 512 or 512x1024."""
    if isinstance(value, str):
        match = WINDOW_TEXT.fullmatch(value)
        if match is None:
            raise HfVitSegError(f"found '{value}', expected 512 or 512x1024 (height x width)")
        return int(match[1]), int(match[2] or match[1])
    return (value, value) if isinstance(value, int) else value


def size_rule(value: Any) -> Any:
    """Parse a size rule from a name, a mapping of edges or sides, or text or an integer as in `SIZE_HINT`."""
    if value is None or value in ("processor", "own") or isinstance(value, Edges | Sides):
        return value
    if isinstance(value, Mapping):
        return read_record(Sides if "height" in value or "width" in value else Edges, value)
    match = SIZE_TEXT.fullmatch(str(value))
    if match is None:
        near = suggestion(value, ("processor", "own"))
        raise HfVitSegError(f"found {value!r}, expected {SIZE_HINT}{near}")
    if match[3]:
        return read_record(Sides, {"height": int(match[3]), "width": int(match[4])})
    return read_record(Edges, {"shortest_edge": int(match[1]), "longest_edge": int(match[2]) if match[2] else None})


Pair = Annotated[tuple[Count, Count], BeforeValidator(pair)]
SizeRule = Annotated[Literal["processor", "own"] | Edges | Sides | None, BeforeValidator(size_rule)]
Preset = Literal["whole", "ade20k", "ade20k_multi_scale", "cityscapes", "cityscapes_multi_scale"]

ADE20K = {"size": {"shortest_edge": 512, "longest_edge": 2048}, "divisor": 32}  # SegFormer-B5: shortest edge 640
CITYSCAPES = {"size": {"shortest_edge": 1024, "longest_edge": 2048}, "window": 1024, "stride": 768}
PRESETS: dict[str, dict[str, Any]] = {
    "whole": {},
    "ade20k": ADE20K,
    "ade20k_multi_scale": ADE20K | {"scales": (0.75, 0.875, 1, 1.125, 1.25), "flip": True},
    "cityscapes": CITYSCAPES,
    "cityscapes_multi_scale": CITYSCAPES | {"scales": (0.5, 0.75, 1, 1.25, 1.5, 1.75, 2), "flip": True},
}
assert set(PRESETS) == set(get_args(Preset))


class Protocol(Record):
    """Inference settings; explicit fields override the `preset`.

    An image is resized to `size` times each scale, then up to a multiple of `divisor`: by its image processor (the
    default for whole images), not at all ("own", the default for windows), or to edges or sides. With a `window`, the
    model processes windows of that size every `stride` pixels (default: two thirds of the window), at most
    `window_batch` at a time (default: 1 on a CPU, where larger batches are not faster, otherwise 8), and their logits
    are blended with flat or Gaussian weights. With several `scales`, or `flip` (horizontal), the probabilities of all
    views are averaged.
    """

    preset: Preset | None = None
    size: SizeRule = None
    divisor: Count | None = None
    window: Pair | None = None
    stride: Pair | None = None
    blend: Blend = "flat"
    window_batch: Count | None = None
    scales: tuple[Factor, ...] = (1.0,)
    flip: bool = False

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            return settings
        return {**PRESETS.get(str(settings.get("preset")), {}), **settings}

    @model_validator(mode="after")
    def _check_windows(self) -> "Protocol":
        if not self.scales:
            raise HfVitSegError("scales must have at least one number")
        if self.window is None and (self.stride is not None or self.blend != "flat"):
            raise HfVitSegError("stride and blend require window")
        if self.window and any(step > side for step, side in zip(self.steps, self.window, strict=True)):
            raise HfVitSegError(f"stride {self.stride} leaves gaps between windows of {self.window}")
        return self

    @property
    def steps(self) -> tuple[int, int]:
        """The stride of windows."""
        sides = self.window or (1, 1)
        return self.stride or (max(1, sides[0] * 2 // 3), max(1, sides[1] * 2 // 3))

    @property
    def views(self) -> int:
        """The number of views of an image."""
        return len(self.scales) * (1 + self.flip)

    @property
    def is_single_pass(self) -> bool:
        """Whether the model sees each image once, as a whole."""
        return self.window is None and self.views == 1

    def grid(self, size: tuple[int, int], mirrored: bool = False) -> WindowGrid | None:
        """Return the windows over an image of `size`; None without windows, or if one window covers the image."""
        if self.window is None or (size[0] <= self.window[0] and size[1] <= self.window[1]):
            return None
        window = min(self.window[0], size[0]), min(self.window[1], size[1])
        return WindowGrid(size, window, self.steps, self.blend, mirrored)

    def sides(self, size: tuple[int, int], scale: float, processor: Any) -> tuple[int, int] | None:
        """Return the (height, width) to resize an image of `size` to; None to use the processor's own resizing."""
        rule = self.size or ("processor" if self.window is None else "own")
        if rule == "processor" and scale == 1 and self.divisor is None:
            return None
        if rule == "processor" and getattr(processor, "do_resize", True):
            scaled = {edge: max(1, round(side * scale)) for edge, side in edges(processor).items()}
            sides = target_sides(*size, SizeDict(**scaled), None)
        elif isinstance(rule, Edges | Sides):
            sides = rule.sides(size, scale)
        else:
            sides = round(size[0] * scale), round(size[1] * scale)
        step = self.divisor or (getattr(processor, "size_divisor", None) if rule == "processor" else None) or 1
        height, width = (round_up(max(side, 1), step) for side in sides)
        if height * width > MAX_RESIZED_PIXELS:
            raise ResizeError(f"the image would be resized to {height}x{width} pixels: choose a smaller size or scale")
        return height, width

    def describe(self, shown: tuple[int, int] | None = None) -> str:
        """Describe the protocol for reports; `shown` is the resized size of an image, if known."""
        known = shown is not None and len(self.scales) == 1
        place = f"at {shown[0]}x{shown[1]} (height x width)" if shown and known else self.describe_size()
        text = f"whole image {place}"
        if self.window:
            (height, width), (down, across) = self.window, self.steps
            blend = "flat" if self.blend == "flat" else "by Gaussian weights"
            text = f"windows of {height}x{width} every {down}x{across} pixels, blended {blend}, over the image {place}"
        if len(self.scales) > 1:
            scales = ", ".join(f"{scale:g}" for scale in self.scales)
            text += f", probabilities averaged over scales {scales}{' and mirror images' if self.flip else ''}"
        elif self.flip:
            text += ", probabilities averaged over the image and its mirror image"
        if self.preset is None:
            return text
        return f"{self.preset}{'' if self == Protocol(preset=self.preset) else ' (changed)'}: {text}"

    def describe_size(self) -> str:
        """Describe how images are resized, for reports."""
        rule = self.size or ("processor" if self.window is None else "own")
        words = {"processor": "preprocessed by its image processor", "own": "at its own size"}
        multiple = f", sides up to multiples of {self.divisor}" if self.divisor else ""
        return (words[rule] if isinstance(rule, str) else str(rule)) + multiple


def edges(processor: Any) -> dict[str, int]:
    """Return the edges that are set in a processor's `size`."""
    size = processor.size
    return {edge: int(side) for edge, side in dict(size).items() if side}


__all__ = ["PRESETS", "Edges", "Protocol", "Sides"]
