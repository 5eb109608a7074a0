"""Convert images and segmentation maps of any type, mode and layout to tensors.

Shapes: C channels, H W pixels.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import ChannelDimension, load_image

from .errors import HfVitSegError

EIGHT_BIT_WHITE = 255.0
MOST_GRAY = 2**16 - 1  # white in images of 16 bits
RGB_LIKE = (3, 1, 4)  # RGB, gray, RGB with alpha


def rgb_image(image: Image.Image) -> Image.Image:
    """Any PIL image as RGB: transparency is blended with white, 16-bit gray is reduced to 8 bits."""
    if image.mode.startswith("I"):
        return Image.fromarray(reduce_gray(torch.from_numpy(np.asarray(image).astype(np.int64))).numpy()).convert("RGB")
    if image.mode == "La":  # PIL converts premultiplied gray to nothing else
        image = image.convert("LA")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    try:
        return image.convert("RGB")
    except ValueError:
        raise HfVitSegError(f"PIL cannot convert the mode {image.mode} to RGB: pass an RGB image") from None


def reduce_gray(values: torch.Tensor) -> torch.Tensor:
    """Gray values of 16 bits, 0 .. 65535, as uint8, rounded. Raises ValueError for other values."""
    values = values.to(torch.int64)
    low, high = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
    if low < 0 or high > MOST_GRAY:
        raise HfVitSegError(
            f"Found gray values from {low} to {high}, expected 0 .. {MOST_GRAY} for images that become RGB: scale "
            "them, or use a model of one channel, which keeps all values"
        )
    return ((values + 128) // 257).to(torch.uint8)


def to_pixels(
    image: Any,
    channels: Sequence[int] = RGB_LIKE,
    convert: bool = True,
    layout: str | ChannelDimension | None = None,
    white: float = 255.0,
) -> torch.Tensor:
    """Convert a PIL image, an array or a tensor to (C, H, W), uint8 or float32.

    Booleans are black and white: 0 and 255. With `convert`, gray and transparent images become RGB: gray of more than
    8 bits is reduced to 8 bits as `rgb_image` does, and transparency is blended with white: see `integer_white` for
    integers, or `white` for floating-point values. Other images keep their values.

    Without a `layout`, the channel axis is the one whose length is in `channels`, see `channels_first`.
    """
    if isinstance(image, Image.Image):
        image, layout = np.array(image), ChannelDimension.LAST
    if not isinstance(image, torch.Tensor):
        image = torch.from_numpy(native_array(image))
    if image.is_complex():
        raise HfVitSegError(f"Pixels must be real numbers, found {image.dtype}")
    pixels = channels_first(image, channels, layout)
    if pixels.dtype == torch.bool:
        pixels = pixels.to(torch.uint8) * 255
    if convert and not pixels.is_floating_point() and pixels.dtype != torch.uint8:
        if len(pixels) == 1:
            is_8_bit = pixels.dtype == torch.int64 and integer_white(pixels) == EIGHT_BIT_WHITE
            pixels = pixels.to(torch.uint8) if is_8_bit else reduce_gray(pixels)
        elif len(pixels) == 4:
            white = integer_white(pixels)
    if pixels.dtype != torch.uint8:
        pixels = pixels.to(torch.float32)
    return rgb_channels(pixels, white) if convert else pixels


def integer_white(image: torch.Tensor) -> float:
    """The value of white in an integer image of more than 8 bits: 65535, or 255 for 0 .. 255 in 32 or 64 bits.

    Computations on 8-bit images return int32 or int64. Images of 16 bits always have the same scale.
    """
    is_8_bit = image.dtype.itemsize > 2 and image.numel() > 0 and int(image.to(torch.int64).max()) <= 255
    return EIGHT_BIT_WHITE if is_8_bit else MOST_GRAY


def native_array(image: Any) -> np.ndarray:
    """An array that torch can take: contiguous, writable, in the machine's byte order."""
    array = np.asarray(image)
    if array.dtype.kind not in "buif":
        raise HfVitSegError(f"Pixels must be real numbers, found the type {array.dtype}")
    if any(stride < 0 for stride in array.strides):  # also of axes of length 1, which count as contiguous
        array = array.copy()
    return np.require(array, array.dtype.newbyteorder("="), requirements=["C", "W"])


def channels_first(image: torch.Tensor, channels: Sequence[int], layout: str | ChannelDimension | None) -> torch.Tensor:
    """(H, W), (C, H, W) or (H, W, C) as (C, H, W).

    Without a `layout`, the channel axis is the one whose length is in `channels`; the first takes precedence.
    """
    if image.ndim == 2:
        return image[None]
    if image.ndim != 3:
        raise HfVitSegError(f"Found an image of shape {tuple(image.shape)}, expected (H, W), (C, H, W) or (H, W, C)")
    if layout is not None:
        return image.permute(2, 0, 1) if ChannelDimension(layout) == ChannelDimension.LAST else image
    axis = channel_axis(image.shape, channels)
    if axis is None:
        raise HfVitSegError(
            f"An image of shape {tuple(image.shape)} has no axis of {' or '.join(map(str, channels))} channels, "
            "which image_mean requires: pass input_data_format or a processor with one mean per channel"
        )
    return image if axis == 0 else image.permute(2, 0, 1)


def channel_axis(shape: Sequence[int], channels: Sequence[int]) -> int | None:
    """The axis of a shape of three, 0 or 2, whose length is in `channels`; earlier ones take precedence, then axis 0.

    None if there is none.
    """
    ends = (shape[0], shape[2])
    return next((2 * ends.index(count) for count in channels if count in ends), None)


def rgb_channels(image: torch.Tensor, white: float) -> torch.Tensor:
    """(1, H, W) or (4, H, W) as (3, H, W): gray is repeated, transparency blended with white; others are unchanged."""
    if image.shape[0] == 1:
        return image.expand(3, -1, -1)
    if image.shape[0] != 4:
        return image
    white = EIGHT_BIT_WHITE if image.dtype == torch.uint8 else white
    alpha = image[3:] / white
    blended = image[:3] * alpha + white * (1 - alpha)
    return blended.round().to(torch.uint8) if image.dtype == torch.uint8 else blended


def highest_value(do_rescale: bool | None, rescale_factor: float | None) -> float:
    """The value of white in floating-point images of a processor."""
    return 1 / rescale_factor if do_rescale and rescale_factor else 1.0


def list_maps(maps: Any, count: int) -> list[Any]:
    """The segmentation maps of `count` images, each of any type; ValueError for another number of maps.

    An array for one image is one map, also if it has a third axis; for several images, the first axis counts them.
    """
    if isinstance(maps, list | tuple):
        found = [part for item in maps for part in (item if isinstance(item, list | tuple) else [item])]
    elif isinstance(maps, np.ndarray | torch.Tensor) and (count != 1 or maps.ndim > 3):
        found = list(maps)
    else:
        found = [maps]
    if len(found) != count:
        raise HfVitSegError(f"There are {len(found)} segmentation maps for {count} images: pass one map for each image")
    return found


def read_map(source: str | os.PathLike) -> Image.Image:
    """The segmentation map in a file with its stored values, or from an address, from which transformers reads RGB."""
    if os.path.isfile(source):
        with Image.open(source) as image:
            image.load()
            return image
    image = load_image(os.fspath(source))
    red, *others = image.split()
    is_gray = all(red.tobytes() == other.tobytes() for other in others)
    return red if is_gray else image


def class_map(image: Any) -> torch.Tensor:
    """A segmentation map of any type as (H, W) int64; palettes are ignored."""
    if isinstance(image, str | os.PathLike):
        image = read_map(image)
    if isinstance(image, Image.Image):
        image = np.array(image)
    labels = torch.as_tensor(np.asarray(image) if not isinstance(image, torch.Tensor) else image)
    if labels.ndim == 3 and 1 in (labels.shape[0], labels.shape[-1]):
        labels = labels[0] if labels.shape[0] == 1 else labels[..., 0]
    if labels.ndim != 2:
        raise HfVitSegError(
            f"A segmentation map has one class index per pixel, shape (height, width); got {tuple(labels.shape)}. "
            "Convert color masks to class indices first"
        )
    if labels.is_floating_point() and not torch.equal(labels, labels.round()):  # NaN differs from itself
        raise HfVitSegError(
            "A segmentation map has whole class indices, got fractions or NaN: convert scores to classes, and give "
            "ignored pixels an index such as 255"
        )
    return labels.to(torch.int64)


__all__ = ["channel_axis", "class_map", "highest_value", "list_maps", "reduce_gray", "rgb_image", "to_pixels"]
