"""Photometric transforms for images of any number of channels.

Shapes: C channels, H W pixels.

torchvision's color jitter supports one or three channels and converts to HSV, which takes 12 ms for 512x512 pixels.
Here brightness, contrast, saturation and hue are composed to one affine map of the channels, `M @ values + offset`,
which takes less than 1 ms.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import Count

from .context import PositiveBounds, Share, TransformContext, TransformOptions, find_image

LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as in PIL and torchvision
# Converts RGB to luma and two chroma axes (YIQ), in whose plane the hue is an angle.
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
RGB = 3


def brightness_map(strength: float, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale all values by `strength`."""
    return strength * torch.eye(len(means)), torch.zeros(len(means))


def contrast_map(strength: float, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale the distances from the mean luma by `strength`; from each channel's mean unless the image is RGB."""
    center = (LUMA @ means).expand(RGB) if len(means) == RGB else means
    return strength * torch.eye(len(means)), (1 - strength) * center


def saturation_map(strength: float, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale the distances of RGB values from their luma by `strength`."""
    return strength * torch.eye(RGB) + (1 - strength) * LUMA.expand(RGB, RGB), torch.zeros(RGB)


def hue_map(turn: float, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate colors about the gray axis by `turn` of a full circle; keeps the luma (HSV would keep the value)."""
    cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    rotation = torch.tensor([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    return torch.linalg.solve(YIQ, rotation @ YIQ), torch.zeros(RGB)


# In the order of application: function, neutral strength, and whether it requires RGB.
STEPS = {
    "brightness": (brightness_map, 1.0, False),
    "contrast": (contrast_map, 1.0, False),
    "saturation": (saturation_map, 1.0, True),
    "hue": (hue_map, 0.0, True),
}


class ChannelJitter(v2.Transform):
    """Change brightness, contrast, saturation and hue by random strengths."""

    def __init__(self, options: "Photometric"):
        super().__init__()
        self.options = options

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the steps to apply and their strengths."""
        channels, strengths = find_image(flat_inputs).shape[0], {}
        for name, (_, neutral, for_colors) in STEPS.items():
            reach = getattr(self.options, name)
            chance, uniform = torch.rand(2).tolist()
            if reach > 0 and chance < self.options.probability and (channels == RGB or not for_colors):
                strengths[name] = neutral + (2 * uniform - 1) * reach
        return {"strengths": strengths}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Jitter an image; other values are returned unchanged."""
        if not isinstance(inpt, tv_tensors.Image) or not params["strengths"]:
            return inpt
        return tv_tensors.Image(apply_jitter(inpt.as_subclass(torch.Tensor), params["strengths"]))


def apply_jitter(image: torch.Tensor, strengths: dict[str, float]) -> torch.Tensor:
    """Apply the steps of `strengths` to an image (C, H, W); uint8 is rounded and clamped to 0 .. 255."""
    values = image.contiguous().flatten(1).to(torch.float32)  # (C, H * W)
    matrix, offset, means = torch.eye(len(values)), torch.zeros(len(values)), values.mean(dim=1)
    for name, strength in strengths.items():
        step, shift = STEPS[name][0](strength, matrix @ means + offset)
        matrix, offset = step @ matrix, step @ offset + shift
    values = torch.addmm(offset[:, None], matrix, values).view(image.shape)
    return values.round_().clamp_(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else values


class Photometric(TransformOptions):
    """Jitter brightness, contrast, saturation and hue, each with `probability` (0.5 as in mmseg).

    Strengths are uniform in 1 - x .. 1 + x for brightness, contrast and saturation, and in -x .. x of a full circle for
    hue. Saturation and hue are applied to three channels only. Float images are not clamped.
    """

    brightness: Share = 0.25
    contrast: Share = 0.5
    saturation: Share = 0.5
    hue: float = Field(0.1, ge=0, le=0.5)
    probability: Share = 0.5

    def build(self, context: TransformContext) -> v2.Transform:
        """Build a `ChannelJitter`."""
        return ChannelJitter(self)


class RandomBlur(TransformOptions):
    """Gaussian blur with a standard deviation in pixels drawn from `sigma`."""

    sigma: PositiveBounds = (0.1, 2.0)
    probability: Share = 0.5

    def build(self, context: TransformContext) -> v2.Transform:
        """Build a randomly applied `v2.GaussianBlur`, with a kernel of 3 standard deviations on each side."""
        kernel = 2 * math.ceil(3 * self.sigma[1]) + 1
        return v2.RandomApply([v2.GaussianBlur(kernel, self.sigma)], self.probability)


class RequireUint8(v2.Transform):
    """Raise for images that torchvision's automatic augmentations would misinterpret."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Return the input, or raise HfVitSegError."""
        if isinstance(inpt, tv_tensors.Image) and (inpt.dtype != torch.uint8 or inpt.shape[0] not in (1, RGB)):
            raise HfVitSegError(
                f"{self.name} requires 8-bit images of 1 or 3 channels, found {inpt.shape[0]} of {inpt.dtype}: "
                "use photometric, which supports all images"
            )
        return inpt


class RandAugment(TransformOptions):
    """RandAugment (arXiv 1909.13719): `operations` random operations out of 14, with one `magnitude` of 0 .. 30."""

    tasks: ClassVar = frozenset({"classification"})
    operations: Count = 2
    magnitude: int = Field(9, ge=0, le=30)
    fill: float = 128

    def build(self, context: TransformContext) -> v2.Transform:
        """Build `v2.RandAugment`, which requires uint8 images."""
        augment = v2.RandAugment(self.operations, self.magnitude, interpolation=context.resample, fill=self.fill)
        return v2.Compose([RequireUint8("rand_augment"), augment])


class TrivialAugment(TransformOptions):
    """TrivialAugment (arXiv 2103.10158): one random operation of random magnitude."""

    tasks: ClassVar = frozenset({"classification"})
    fill: float = 128

    def build(self, context: TransformContext) -> v2.Transform:
        """Build `v2.TrivialAugmentWide`, which requires uint8 images."""
        augment = v2.TrivialAugmentWide(interpolation=context.resample, fill=self.fill)
        return v2.Compose([RequireUint8("trivial_augment"), augment])


class RawValueErasing(v2.RandomErasing):
    """torchvision's RandomErasing with fill values in the raw range of the image; targets are unchanged."""

    def __init__(self, options: "RandomErasing", context: TransformContext):
        super().__init__(options.probability, options.area, options.ratio)
        self.options, self.context = options, context

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the rectangle and its values (C, h, w)."""
        params = super().make_params(flat_inputs)
        if params["v"] is None:
            return params
        image, fill = find_image(flat_inputs), self.options.fill
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.context.mean, self.context.std))
        noise = std * torch.randn(len(image), params["h"], params["w"]) * (fill == "noise")
        values = noise + (mean if isinstance(fill, str) else fill)
        whole = image.dtype == torch.uint8
        return params | {"v": values.round().clamp(0, 255).to(torch.uint8) if whole else values}


class RandomErasing(TransformOptions):
    """Random erasing (arXiv 1708.04896): a rectangle is replaced by `fill`.

    `area` is the rectangle's share of the image. `fill` is a raw value, the mean of the dataset, or noise with the
    mean and standard deviation of the dataset (timm's "pixel").
    """

    tasks: ClassVar = frozenset({"classification"})
    probability: Share = 0.25
    area: PositiveBounds = (0.02, 1 / 3)
    ratio: PositiveBounds = (0.3, 10 / 3)
    fill: float | Literal["mean", "noise"] = "noise"

    def build(self, context: TransformContext) -> v2.Transform:
        """Build a `RawValueErasing`."""
        return RawValueErasing(self, context)


__all__ = ["Photometric", "RandAugment", "RandomBlur", "RandomErasing", "TrivialAugment"]
