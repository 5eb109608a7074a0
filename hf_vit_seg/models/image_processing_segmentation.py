"""Image processors of all architectures, for segmentation and classification, with transformers' two backends.

Shapes: B images, C channels, H W pixels, K classes. Images become (C, H, W) float32, segmentation maps (H, W) int64.

Both backends share everything except the filter that resizes an image: reading images, the target size, segmentation
maps, and label maps. Padding of a segmentation map is 255, which losses and metrics ignore.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils import logging
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .errors import HfVitSegError
from .grid_sizes import round_up
from .image_processing_inputs import RGB_LIKE, class_map, highest_value, list_maps, rgb_image, to_pixels
from .label_maps import label_map

MAX_SIDE = 2**14  # longest side of a resized or cropped image
MAX_NUMBER = 1e9  # of means, standard deviations and factors; the minimum is its inverse: float32 stays finite
MIN_SHARE = 0.01  # minimum fraction of the resized image that a crop keeps
MAX_SHOWN = 80  # characters of a value in a message
SIZE_KEYS = ({"height", "width"}, {"shortest_edge"}, {"longest_edge"}, {"shortest_edge", "longest_edge"})


def is_number(value: Any) -> bool:
    """Return whether a value is a number that float32 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def is_positive(value: Any) -> bool:
    """Return whether a value is a positive number whose inverse float32 can hold."""
    return is_number(value) and value >= 1 / MAX_NUMBER


def is_side(value: Any) -> bool:
    """Return whether a value is a number of pixels."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIDE


def is_size(value: Any) -> bool:
    """Return whether a value is a size: a number, a pair, or a mapping of sides."""
    if isinstance(value, Mapping):
        return set(value) in SIZE_KEYS and all(map(is_side, value.values()))
    return is_side(value) or (isinstance(value, list) and len(value) in (1, 2) and all(map(is_side, value)))


def is_crop(value: Any) -> bool:
    """Return whether a value is the size of a crop, which has both sides."""
    return is_size(value) and (not isinstance(value, Mapping) or set(value) == {"height", "width"})


def is_flag(value: Any) -> bool:
    """Return whether a value is true or false."""
    return isinstance(value, bool)


def is_filter(value: Any) -> bool:
    """Return whether a value is an interpolation filter of both PIL and torchvision."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 3


def is_share(value: Any) -> bool:
    """Return whether a value is a fraction of the image, as of a center crop."""
    return is_number(value) and MIN_SHARE <= value <= 1


def is_channels(value: Any, is_valid: Callable[[Any], bool] = is_number) -> bool:
    """Return whether a value is a number, or a list with a number for each channel."""
    return is_valid(value) or (isinstance(value, list) and len(value) > 0 and all(map(is_valid, value)))


def is_palette(value: Any) -> bool:
    """Return whether a value is a list of colors."""
    return isinstance(value, list) and all(
        isinstance(color, list) and len(color) == 3 and all(type(part) is int and 0 <= part <= 255 for part in color)
        for color in value
    )


def is_index_list(value: Any) -> bool:
    """Return whether a value is a list of class indices."""
    return isinstance(value, list) and all(type(index) is int and index >= 0 for index in value)


# The check of each setting, and the description of valid values.
FLAG = (is_flag, "true or false")
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "do_resize": FLAG,
    "size": (is_size, f"a number of pixels up to {MAX_SIDE}, or sides such as {{height: 512, width: 512}}"),
    "resample": (is_filter, "0 (nearest), 1 (Lanczos), 2 (bilinear) or 3 (bicubic)"),
    "size_divisor": (is_side, f"a number of pixels up to {MAX_SIDE}"),
    "do_center_crop": FLAG,
    "crop_size": (is_crop, f"a number of pixels up to {MAX_SIDE}, or {{height: 224, width: 224}}"),
    "crop_pct": (is_share, f"a number from {MIN_SHARE} to 1"),
    "do_rescale": FLAG,
    "rescale_factor": (is_positive, "a positive number such as 1/255"),
    "do_normalize": FLAG,
    "image_mean": (is_channels, "a number for each channel"),
    "image_std": (lambda value: is_channels(value, is_positive), "a positive number for each channel"),
    "do_convert_rgb": FLAG,
    "do_reduce_labels": FLAG,
    "reduce_labels": FLAG,
    "label_ids_to_fuse": (is_index_list, "a list of class indices"),
    "palette": (is_palette, "a list of colors [red, green, blue] of 0 to 255"),
}


def check_settings(settings: Mapping[str, Any], where: str) -> None:
    """Raise HfVitSegError for invalid settings of an image processor; null means the default. `where` begins the
    message.
    """
    for name, (is_valid, expected) in CHECKS.items():
        value = settings.get(name)
        if value is not None and not is_valid(value):
            raise HfVitSegError(f"{where}: {name} is {show(value)}, expected {expected}; correct or remove it")
    mean, deviation = settings.get("image_mean"), settings.get("image_std")
    if isinstance(mean, list) and isinstance(deviation, list) and len(mean) != len(deviation):
        raise HfVitSegError(
            f"{where}: image_mean has {len(mean)} channels and image_std {len(deviation)}, expected as many; correct "
            "them"
        )


def show(value: Any) -> str:
    """Return a value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


logger = logging.get_logger(__name__)

IGNORED = 255
MAX_RESIZED_PIXELS = 2**28  # limit of a resized image: with `shortest_edge`, long thin images would become very large


class ResizeError(HfVitSegError):
    """An image that would be resized beyond `MAX_RESIZED_PIXELS`."""


class SemanticSegmentationKwargs(ImagesKwargs, total=False):
    """Options in addition to those of transformers' image processors.

    size_divisor: resized sides are rounded up to a multiple of it (after `size`).
    do_reduce_labels: in segmentation maps, 0 becomes 255, 255 is unchanged, and 1 is subtracted from other values.
    palette: the color of each class, as [red, green, blue] of 0 .. 255, for visualization.
    """

    size_divisor: int | None
    do_reduce_labels: bool
    palette: list[list[int]] | None


def target_sides(height: int, width: int, size: SizeDict, divisor: int | None) -> tuple[int, int]:
    """Return the (height, width) that an image is resized to: by the rule of `size`, rounded up to multiples of
    `divisor`.
    """
    if size.height and size.width:
        sides = (size.height, size.width)
    elif size.shortest_edge:
        sides = get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
    elif size.longest_edge:
        scale = size.longest_edge / max(height, width)
        sides = (round(height * scale), round(width * scale))
    else:
        raise HfVitSegError(
            "size must have the keys height and width, or shortest_edge, or longest_edge, or both edges; got "
            f"{dict(size)}"
        )
    height, width = (round_up(max(side, 1), divisor or 1) for side in sides)
    if height * width > MAX_RESIZED_PIXELS:
        raise ResizeError(
            f"The image would be resized to {height}x{width} pixels: bound its longer side with "
            "size={'shortest_edge': ..., 'longest_edge': ...}"
        )
    return height, width


def nearest_exact(labels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize a map (h, w) to (H, W): each pixel takes the value at its center."""
    rows = (2 * torch.arange(height, device=labels.device) + 1) * labels.shape[0] // (2 * height)
    columns = (2 * torch.arange(width, device=labels.device) + 1) * labels.shape[1] // (2 * width)
    return labels[rows[:, None], columns]


def crop_center(pixels: torch.Tensor, size: SizeDict, fill: int) -> torch.Tensor:
    """Return the center (..., H, W) of (..., h, w), padded with `fill`."""
    if size is None or not (size.height and size.width):
        raise HfVitSegError(f"crop_size must have the keys height and width, got {size and dict(size)}")
    return pad_or_crop(pixels, size.height, size.width, fill, central=True)


def pad_or_crop(pixels: torch.Tensor, height: int, width: int, fill: int, central: bool = False) -> torch.Tensor:
    """Pad or crop (..., h, w) to (..., H, W), aligned at the upper left corner or the center."""
    borders = []
    for missing in (width - pixels.shape[-1], height - pixels.shape[-2]):
        before = int(missing / 2) if central else 0  # rounds toward zero, as torchvision's center crop does
        borders += [before, missing - before]
    return torch.nn.functional.pad(pixels, borders, value=fill)


def reduce_labels(labels: torch.Tensor) -> torch.Tensor:
    """Subtract 1 from every class; 0 becomes 255, and 255 is unchanged."""
    return torch.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)


def report_other_ranges(images: Sequence[torch.Tensor], white: float) -> None:
    """Log once that images of 0 .. 1, or RGB images of more than 8 bits, are given to a processor of 0 .. `white`."""
    for image in images:
        if len(image) == 3 and image.dtype != torch.uint8 and image.numel() and image.max() > 2 * white:
            logger.warning_once(
                f"Found RGB images with values up to {image.max():g}, but do_rescale expects 0 to {white:g}: scale "
                "them, pass images of 16 bits as uint16, or use a processor with their rescale_factor."
            )
        if image.is_floating_point() and image.numel() and image.min() >= 0 and 0 < image.max() <= 1:
            logger.warning_once(
                f"Found floating-point images with values from 0 to 1, but do_rescale expects 0 to {white:g}, so that "
                "they become almost black: pass do_rescale=False, or images of 0 to 255."
            )


class SegmentationProcessing(BaseImageProcessor):
    """Methods of both backends; must come before the backend in a processor's bases."""

    valid_kwargs = SemanticSegmentationKwargs
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 512, "width": 512}
    size_divisor = None
    default_to_square = True
    crop_size = None
    do_resize = True
    do_center_crop = None
    do_rescale = True
    do_normalize = True
    do_convert_rgb = None
    do_reduce_labels = False
    rescale_factor = 1 / 255
    palette = None

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return an image processor with the settings of a preprocessor_config.json; HfVitSegError for invalid ones."""
        check_settings(image_processor_dict, "preprocessor_config.json")
        return super().from_dict(image_processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings to save, with the classes of both backends in `auto_map`.

        transformers saves the name of one class only, after which its pipelines (5.23) look for a video processor.
        """
        settings = super().to_dict()
        if "AutoImageProcessor" in settings.get("auto_map", {}):
            module = type(self).__module__.rpartition(".")[2]
            name = type(self).__name__.removesuffix("Pil")
            backends = {"torchvision": f"{module}.{name}", "pil": f"{module}.{name}Pil"}
            settings["auto_map"] = {**settings["auto_map"], "AutoImageProcessor": backends}
        return settings

    def preprocess(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Convert images to `pixel_values` (B, C, H, W) and segmentation maps to `labels` (B, H, W) int64.

        Images may be PIL images of any mode, arrays or tensors (channels first or last), one or a list. With
        three means (or `do_convert_rgb`) gray, palette, CMYK and transparent images become RGB. White is 65535 in RGB
        images of 16 bits, and 1 / rescale_factor in floating-point images.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def as_pixels(
        self,
        image: Any,
        image_mean: float | Sequence[float] | None,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        white: float = 255.0,
    ) -> torch.Tensor:
        """Convert one image to (C, H, W), uint8 or float32; `white` is the highest value, which is rescaled to 1."""
        channels = len(image_mean) if isinstance(image_mean, Sequence) else None
        convert = channels == 3 if do_convert_rgb is None else do_convert_rgb
        is_8_bit = isinstance(image, Image.Image) and not image.mode.startswith(("I", "F"))
        if is_8_bit and (convert or channels == 1):
            image = rgb_image(image) if convert else rgb_image(image).convert("L")
        accepted = ([channels] if channels else []) + (list(RGB_LIKE) if convert or not channels else [])
        pixels = to_pixels(image, accepted, convert, input_data_format, white)
        if channels is not None and channels > 1 and len(pixels) != channels:
            raise HfVitSegError(
                f"The image has {len(pixels)} channels, and image_mean of the processor {channels}: pass images of "
                f"{channels} channels, as arrays if PIL has no such mode"
            )
        return pixels.contiguous()

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
        if isinstance(images, list | tuple):
            gray = [isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 2 for image in images]
            images = [
                image[None] if flat and expected_ndims == 3 else image for image, flat in zip(images, gray, strict=True)
            ]
        elif isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 2:
            images = images[None]
        return super()._prepare_images_structure(images, expected_ndims=expected_ndims)

    def _preprocess_image_like_inputs(
        self,
        images: Any,
        segmentation_maps: Any,
        do_convert_rgb: bool | None,
        input_data_format: str | ChannelDimension | None,
        return_tensors: str | None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        do_rescale, factor = kwargs.get("do_rescale"), kwargs.get("rescale_factor")
        white = highest_value(do_rescale, factor)
        pixels = [
            self.as_pixels(image, kwargs["image_mean"], do_convert_rgb, input_data_format, white)
            for image in self._prepare_images_structure(images)
        ]
        if white > 1:
            report_other_ranges(pixels, white)
        if device is not None:
            pixels = [image.to(device) for image in pixels]
        sides = [image.shape[-2:] for image in pixels]
        features = self._preprocess(pixels, return_tensors=return_tensors, **kwargs)
        if segmentation_maps is not None:
            maps = [class_map(m) for m in list_maps(segmentation_maps, len(pixels))]
            if [m.shape for m in maps] != sides:
                raise HfVitSegError(
                    "Segmentation maps must have the height and width of their images: maps are "
                    f"{[tuple(m.shape) for m in maps]}, images {[tuple(side) for side in sides]}"
                )
            labels = self.process_maps(maps, **kwargs)
            features.update(BatchFeature({"labels": labels}, tensor_type=return_tensors))
        return features

    def process_maps(
        self,
        maps: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        size_divisor: int | None,
        do_center_crop: bool,
        crop_size: SizeDict,
        do_pad: bool | None,
        pad_size: SizeDict | None,
        do_reduce_labels: bool,
        **kwargs: Any,
    ) -> list[torch.Tensor]:
        """Resize, crop and pad segmentation maps like their images: (H, W) int64 each."""
        if do_reduce_labels:
            maps = [reduce_labels(labels) for labels in maps]
        if do_resize:
            maps = [nearest_exact(m, *target_sides(m.shape[0], m.shape[1], size, size_divisor)) for m in maps]
        if do_center_crop:
            maps = [crop_center(labels, crop_size, IGNORED) for labels in maps]
        if do_pad:
            height = (pad_size and pad_size.height) or max(labels.shape[0] for labels in maps)
            width = (pad_size and pad_size.width) or max(labels.shape[1] for labels in maps)
            maps = [pad_or_crop(labels, height, width, IGNORED) for labels in maps]
        return maps

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Label maps (H, W) int64 from `outputs.logits` (B, K, h, w), one for each image.

        `target_sizes` are (height, width) for each image, by default the logits' own size. Labels are the arg-max of
        the resized logits, which are not stored. With one class, labels are 1 if its probability exceeds one
        half, otherwise 0. With `return_segmentation_scores`, each result has `segmentation` and
        `segmentation_scores`, the resized logits (K, H, W).
        """
        logits = outputs.logits
        if target_sizes is not None and len(target_sizes) != len(logits):
            raise HfVitSegError(f"target_sizes has {len(target_sizes)} entries for a batch of {len(logits)} images")
        own = (logits.shape[-2], logits.shape[-1])
        sizes = [own] * len(logits) if target_sizes is None else [(int(h), int(w)) for h, w in target_sizes]
        maps = [label_map(image[None], size)[0] for image, size in zip(logits, sizes, strict=True)]
        if not return_segmentation_scores:
            return maps
        return [
            SemanticSegmentationPostProcessorOutput(
                data={"segmentation": labels, "segmentation_scores": resize_logits(image, size)}
            )
            for labels, image, size in zip(maps, logits, sizes, strict=True)
        ]


def resize_logits(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize one image's logits bilinearly: (K, h, w) to (K, H, W)."""
    if tuple(logits.shape[-2:]) == size:
        return logits
    return torch.nn.functional.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


class SemanticSegmentationImageProcessor(SegmentationProcessing, TorchvisionBackend):
    """Resizes images with torchvision and antialiasing, on any device."""

    def _preprocess(
        self, images: list[torch.Tensor], do_resize: bool, size: SizeDict, size_divisor: int | None, **kwargs: Any
    ) -> BatchFeature:
        if do_resize:
            sides = [target_sides(image.shape[1], image.shape[2], size, size_divisor) for image in images]
            images = [
                self.resize(image, SizeDict(height=height, width=width), resample=kwargs["resample"])
                for image, (height, width) in zip(images, sides, strict=True)
            ]
        return super()._preprocess(images, do_resize=False, size=size, **kwargs)

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs: Any) -> torch.Tensor:
        """Return the center of an image, padded with zeros."""
        return crop_center(image, size, 0)


class SemanticSegmentationImageProcessorPil(SegmentationProcessing, PilBackend):
    """Resizes images with PIL, channel by channel: any number of channels, without torchvision."""

    def _preprocess(
        self, images: list[torch.Tensor], do_resize: bool, size: SizeDict, size_divisor: int | None, **kwargs: Any
    ) -> BatchFeature:
        arrays = [image.cpu().numpy() for image in images]
        if do_resize:
            sides = [target_sides(image.shape[1], image.shape[2], size, size_divisor) for image in images]
            arrays = [
                resize_channels(image, side, kwargs["resample"]) for image, side in zip(arrays, sides, strict=True)
            ]
        return super()._preprocess(arrays, do_resize=False, size=size, **kwargs)

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs: Any) -> np.ndarray:
        """Return the center of an image, padded with zeros."""
        return crop_center(torch.from_numpy(image.copy()), size, 0).numpy()


def resize_channels(image: np.ndarray, size: tuple[int, int], resample: int | None) -> np.ndarray:
    """Resize (C, h, w) to (C, H, W) with PIL."""
    filter_ = PILImageResampling.BILINEAR if resample is None else PILImageResampling(resample)
    height, width = size
    return np.stack([np.asarray(Image.fromarray(channel).resize((width, height), filter_)) for channel in image])


__all__ = [
    "CHECKS",
    "MIN_SHARE",
    "SemanticSegmentationImageProcessor",
    "SemanticSegmentationImageProcessorPil",
    "check_settings",
    "is_share",
    "is_side",
]
