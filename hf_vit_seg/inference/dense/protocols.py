"""How an image is shown to a model: whole or in windows, at which size, and how often.

Sizes are (height, width), pixels. The presets are what the numbers of SegFormer (arXiv 2105.15203) were measured with,
by the test configurations of NVlabs/SegFormer and its `--aug-test`. Two things differ from there. An image is resized
once, straight to a multiple of `divisor`, by the model's own image processor (there: to the scale, then up to the
multiple). And the logits of a whole image, or of one that fits into a window, are resized once, straight to the image's
size (there: to that of the resized image in between).
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator
from transformers.image_utils import SizeDict

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.grid_sizes import round_up
from hf_vit_seg.models.image_processing_segmentation import MOST_PIXELS, ResizeError, target_sides
from hf_vit_seg.records import Record, read_record

from .sliding_windows import Blend, WindowGrid


class PredictionError(HfVitSegError):
    """A prediction that cannot be made as it was asked for, in one sentence."""


class Edges(Record):
    """A size that keeps an image's ratio: as large as both edges allow."""

    shortest_edge: int = Field(ge=1)
    longest_edge: int | None = Field(default=None, ge=1)

    def sides(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """(height, width) of an image of `size` at a scale, rounded as in mmcv's `imrescale`."""
        factor = int(self.shortest_edge * scale) / min(size)
        if self.longest_edge is not None:
            factor = min(factor, int(self.longest_edge * scale) / max(size))
        return int(size[0] * factor + 0.5), int(size[1] * factor + 0.5)

    def __str__(self) -> str:
        bound = f" and longest edge of at most {self.longest_edge}" if self.longest_edge else ""
        return f"with a shortest edge of {self.shortest_edge}{bound}"


class Sides(Record):
    """A size that every image is resized to, whatever its ratio."""

    height: int = Field(ge=1)
    width: int = Field(ge=1)

    def sides(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """(height, width) of any image at a scale."""
        return round(self.height * scale), round(self.width * scale)

    def __str__(self) -> str:
        return f"at {self.height}x{self.width} (height x width)"


WINDOW_TEXT = re.compile(r"(\d+)(?:x(\d+))?")
SIZE_TEXT = re.compile(r"(\d+)(?:,(\d+))?|(\d+)x(\d+)")
SIZE_HINT = "processor, own, 512 (shortest edge), 512,2048 (shortest and longest edge) or 512x1024 (height x width)"


def pair(value: Any) -> Any:
    """Two numbers from one, or from text such as 512 or 512x1024."""
    if isinstance(value, str):
        found = WINDOW_TEXT.fullmatch(value)
        if found is None:
            raise HfVitSegError(f"is written as 512 or 512x1024 (height x width), found '{value}'")
        return int(found[1]), int(found[2] or found[1])
    return (value, value) if isinstance(value, int) else value


def size_rule(value: Any) -> Any:
    """A rule of size by name, from a mapping of edges or sides, or from text or a number as in `SIZE_HINT`."""
    if value is None or value in ("processor", "own") or isinstance(value, Edges | Sides):
        return value
    if isinstance(value, Mapping):
        return read_record(Sides if "height" in value or "width" in value else Edges, value)
    found = SIZE_TEXT.fullmatch(str(value))
    if found is None:
        raise HfVitSegError(f"is one of {SIZE_HINT}, found {value!r}")
    if found[3]:
        return read_record(Sides, {"height": int(found[3]), "width": int(found[4])})
    return read_record(Edges, {"shortest_edge": int(found[1]), "longest_edge": int(found[2]) if found[2] else None})


Pair = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], BeforeValidator(pair)]
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
    """How images are shown to a model; what is given stands above what the `preset` says.

    An image is resized to `size` times each scale, then up to a multiple of `divisor`: as its image processor says
    (the default for whole images), not at all ("own", the default for windows), or to edges or sides. With a `window`
    the model sees windows of that size every `stride` pixels (two thirds of the window unless told), at most
    `window_batch` at a time (by default 1 on a CPU, where more cost memory and bring nothing, and 8 elsewhere), and
    their logits are blended, all alike or by Gaussian weights. With several `scales`, or `flip` (left to right), the
    probabilities of all views are averaged.
    """

    preset: Preset | None = None
    size: SizeRule = None
    divisor: int | None = Field(default=None, ge=1)
    window: Pair | None = None
    stride: Pair | None = None
    blend: Blend = "flat"
    window_batch: int | None = Field(default=None, ge=1)
    scales: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    flip: bool = False

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            return settings
        return {**PRESETS.get(str(settings.get("preset")), {}), **settings}

    @model_validator(mode="after")
    def _complete(self) -> "Protocol":
        if not self.scales:
            raise HfVitSegError("scales has one number at least")
        if self.window is None and (self.stride is not None or self.blend != "flat"):
            raise HfVitSegError("stride and blend are of windows: give window")
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
        """How often an image is shown."""
        return len(self.scales) * (1 + self.flip)

    def grid(self, size: tuple[int, int], mirrored: bool = False) -> WindowGrid | None:
        """The windows over a picture of `size`; None where a single one would cover it, or whole images are shown."""
        if self.window is None or (size[0] <= self.window[0] and size[1] <= self.window[1]):
            return None
        window = min(self.window[0], size[0]), min(self.window[1], size[1])
        return WindowGrid(size, window, self.steps, self.blend, mirrored)

    def sides(self, size: tuple[int, int], scale: float, processor: Any) -> tuple[int, int] | None:
        """(height, width) to which an image of `size` is resized; None where its processor may do as it does."""
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
        if height * width > MOST_PIXELS:
            raise ResizeError(f"the image would be resized to {height}x{width} pixels: choose a smaller size or scale")
        return height, width

    def describe(self, shown: tuple[int, int] | None = None) -> str:
        """The protocol in words, for reports; `shown` is the size to which an image was resized, once it is known."""
        known = shown is not None and len(self.scales) == 1
        place = f"at {shown[0]}x{shown[1]} (height x width)" if shown and known else self.size_in_words()
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

    def size_in_words(self) -> str:
        """The size of the first view, before an image is known."""
        rule = self.size or ("processor" if self.window is None else "own")
        words = {"processor": "resized as its image processor says", "own": "at its own size"}
        multiple = f", sides up to multiples of {self.divisor}" if self.divisor else ""
        return (words[rule] if isinstance(rule, str) else str(rule)) + multiple


def edges(processor: Any) -> dict[str, int]:
    """A processor's `size`, what is set of it."""
    size = processor.size
    return {edge: int(side) for edge, side in dict(size).items() if side}


__all__ = ["PRESETS", "Edges", "Protocol", "Sides"]
