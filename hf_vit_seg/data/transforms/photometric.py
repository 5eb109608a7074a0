"""Transforms that change an image's values and leave its geometry: images of any number of bands.

Shapes: C bands, H W pixels.

torchvision's color jitter takes one or three bands and goes through HSV, 12 ms for 512x512 pixels. Here brightness,
contrast, saturation and hue are one affine map of an image's bands, `values -> M @ values + offset`, in less than one.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_vit_seg.errors import HfVitSegError

from .context import PositiveBounds, Share, TransformContext, TransformOptions, image_of

LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601, as PIL and torchvision have it
# From red, green, blue to luma and two axes of color (YIQ), in whose plane a hue is an angle.
YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
RGB = 3


def brightness_map(strength: float, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All values times `strength`."""
    return strength * torch.eye(len(means)), torch.zeros(len(means))


def contrast_map(strength: float, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances from the mean gray times `strength`; with other than three bands from each band's own mean."""
    center = (LUMA @ means).expand(RGB) if len(means) == RGB else means
    return strength * torch.eye(len(means)), (1 - strength) * center


def saturation_map(strength: float, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distances of red, green and blue from their gray times `strength`."""
    return strength * torch.eye(RGB) + (1 - strength) * LUMA.expand(RGB, RGB), torch.zeros(RGB)


def hue_map(turn: float, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All colors turned about the gray axis by `turn` of a circle; luma stays (in HSV, value would)."""
    cosine, sine = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
    rotation = torch.tensor([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]])
    return torch.linalg.solve(YIQ, rotation @ YIQ), torch.zeros(RGB)


# In the order in which they are applied: map, neutral strength, whether it takes red, green and blue.
STEPS = {
    "brightness": (brightness_map, 1.0, False),
    "contrast": (contrast_map, 1.0, False),
    "saturation": (saturation_map, 1.0, True),
    "hue": (hue_map, 0.0, True),
}


class BandJitter(v2.Transform):
    """Brightness, contrast, saturation and hue by random strengths."""

    def __init__(self, options: "Photometric"):
        super().__init__()
        self.options = options

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The steps that are taken this time, and how strongly."""
        bands, strengths = image_of(flat_inputs).shape[0], {}
        for name, (_, neutral, for_colors) in STEPS.items():
            reach = getattr(self.options, name)
            chance, place = torch.rand(2).tolist()
            if reach > 0 and chance < self.options.probability and (bands == RGB or not for_colors):
                strengths[name] = neutral + (2 * place - 1) * reach
        return {"strengths": strengths}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """An image with other values; anything else as it is."""
        if not isinstance(inpt, tv_tensors.Image) or not params["strengths"]:
            return inpt
        return tv_tensors.Image(mapped_bands(inpt.as_subclass(torch.Tensor), params["strengths"]))


def mapped_bands(image: torch.Tensor, strengths: dict[str, float]) -> torch.Tensor:
    """An image (C, H, W) through the steps of `strengths`; uint8 is rounded and stays within 0 .. 255."""
    values = image.contiguous().flatten(1).to(torch.float32)  # (C, H * W)
    matrix, offset, means = torch.eye(len(values)), torch.zeros(len(values)), values.mean(dim=1)
    for name, strength in strengths.items():
        step, shift = STEPS[name][0](strength, matrix @ means + offset)
        matrix, offset = step @ matrix, step @ offset + shift
    values = torch.addmm(offset[:, None], matrix, values).view(image.shape)
    return values.round_().clamp_(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else values


class Photometric(TransformOptions):
    """Jitter of brightness, contrast, saturation and hue, each with a `probability` (mmseg's distortion: one half).

    Strengths are uniform within 1 - x .. 1 + x of brightness, contrast and saturation, and -x .. x of a circle of hue.
    Saturation and hue are for three bands only. Values of float images have no bounds.
    """

    brightness: Share = 0.25
    contrast: Share = 0.5
    saturation: Share = 0.5
    hue: float = Field(0.1, ge=0, le=0.5)
    probability: Share = 0.5

    def build(self, context: TransformContext) -> v2.Transform:
        """The transform itself."""
        return BandJitter(self)


class RandomBlur(TransformOptions):
    """A Gaussian blur whose sigma, in pixels, is drawn from `sigma`."""

    sigma: PositiveBounds = (0.1, 2.0)
    probability: Share = 0.5

    def build(self, context: TransformContext) -> v2.Transform:
        """The transform itself."""
        kernel = 2 * math.ceil(3 * self.sigma[1]) + 1
        return v2.RandomApply([v2.GaussianBlur(kernel, self.sigma)], self.probability)


class ByteImages(v2.Transform):
    """Refuse images that torchvision's automatic augmentations misread."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """The input as it is."""
        if isinstance(inpt, tv_tensors.Image) and (inpt.dtype != torch.uint8 or inpt.shape[0] not in (1, RGB)):
            raise HfVitSegError(
                f"{self.name} takes 8-bit images of 1 or 3 bands, found {inpt.dtype} of {inpt.shape[0]}: "
                "use photometric, which takes any"
            )
        return inpt


class RandAugment(TransformOptions):
    """RandAugment (arXiv 1909.13719): `operations` random ones of fourteen, of one magnitude of 0 .. 30."""

    tasks: ClassVar = frozenset({"classification"})
    operations: int = Field(2, ge=1)
    magnitude: int = Field(9, ge=0, le=30)
    fill: float = 128

    def build(self, context: TransformContext) -> v2.Transform:
        """The transform itself."""
        augment = v2.RandAugment(self.operations, self.magnitude, interpolation=context.resample, fill=self.fill)
        return v2.Compose([ByteImages("rand_augment"), augment])


class TrivialAugment(TransformOptions):
    """TrivialAugment (arXiv 2103.10158): one random operation of random magnitude, nothing to tune."""

    tasks: ClassVar = frozenset({"classification"})
    fill: float = 128

    def build(self, context: TransformContext) -> v2.Transform:
        """The transform itself."""
        augment = v2.TrivialAugmentWide(interpolation=context.resample, fill=self.fill)
        return v2.Compose([ByteImages("trivial_augment"), augment])


class FilledErasing(v2.RandomErasing):
    """torchvision's, filled with a value of the image's own range; targets are left as they are."""

    def __init__(self, options: "RandomErasing", context: TransformContext):
        super().__init__(options.probability, options.area, options.ratio)
        self.options, self.context = options, context

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The rectangle and its values (C, h, w)."""
        params = super().make_params(flat_inputs)
        if params["v"] is None:
            return params
        image, fill = image_of(flat_inputs), self.options.fill
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.context.mean, self.context.std))
        noise = std * torch.randn(len(image), params["h"], params["w"]) * (fill == "noise")
        values = noise + (mean if isinstance(fill, str) else fill)
        whole = image.dtype == torch.uint8
        return params | {"v": values.round().clamp(0, 255).to(torch.uint8) if whole else values}


class RandomErasing(TransformOptions):
    """Random erasing (arXiv 1708.04896): a rectangle loses what it shows.

    `area` is the rectangle's share of the image. `fill` is a raw value, the data's mean, or noise of the data's mean
    and standard deviation (timm's "pixel").
    """

    tasks: ClassVar = frozenset({"classification"})
    probability: Share = 0.25
    area: PositiveBounds = (0.02, 1 / 3)
    ratio: PositiveBounds = (0.3, 10 / 3)
    fill: float | Literal["mean", "noise"] = "noise"

    def build(self, context: TransformContext) -> v2.Transform:
        """The transform itself."""
        return FilledErasing(self, context)


__all__ = ["Photometric", "RandAugment", "RandomBlur", "RandomErasing", "TrivialAugment"]
