"""Image processors of every architecture here, for segmentation and classification, in transformers' two backends.

Shapes: B images, C channels, H W pixels, K classes. Images become (C, H, W) float32, segmentation maps (H, W) int64.

Both backends share everything but the filter that resizes an image: reading any image, the size that is aimed at,
the whole path of the segmentation maps, and the label maps. Pixels of a segmentation map that come from no pixel
of the input (crop or padding beyond its border) are 255, which losses and metrics ignore.
"""

# pyright: reportIncompatibleMethodOverride=false
# (transformers' two backends override their common base with other types themselves)

from collections.abc import Sequence
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
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .errors import HfVitSegError
from .grid_sizes import round_up
from .image_processing_inputs import as_tensor, channels_first, class_map, rgb_channels, rgb_picture
from .label_maps import label_map

IGNORED = 255
MOST_PIXELS = 2**28  # no image is resized beyond it: long thin ones reach any size by their shortest edge


class ResizeError(HfVitSegError):
    """An image that would be resized beyond `MOST_PIXELS`."""


class SemanticSegmentationKwargs(ImagesKwargs, total=False):
    """What a processor here can be told beyond transformers' own image options.

    size_divisor: resized sides are rounded up to a multiple of it (after `size`).
    do_reduce_labels: segmentation maps only: 0 becomes 255, 255 stays, any other value loses one.
    palette: the colour of each class, as [red, green, blue] of 0 .. 255; saved along, used for pictures only.
    """

    size_divisor: int | None
    do_reduce_labels: bool
    palette: list[list[int]] | None


def resized_sides(height: int, width: int, size: SizeDict, divisor: int | None) -> tuple[int, int]:
    """The (height, width) that an image is resized to: `size`'s rule, then up to a multiple of `divisor`."""
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
    if height * width > MOST_PIXELS:
        raise ResizeError(
            f"The image would be resized to {height}x{width} pixels: bound its longer side with "
            "size={'shortest_edge': ..., 'longest_edge': ...}"
        )
    return height, width


def nearest_exact(labels: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize a map (h, w) to (H, W): each pixel takes the value under its centre."""
    rows = (2 * torch.arange(height, device=labels.device) + 1) * labels.shape[0] // (2 * height)
    columns = (2 * torch.arange(width, device=labels.device) + 1) * labels.shape[1] // (2 * width)
    return labels[rows[:, None], columns]


def central_window(pixels: torch.Tensor, size: SizeDict, fill: int) -> torch.Tensor:
    """The middle (..., H, W) of (..., h, w), with `fill` beyond the border."""
    if size is None or not (size.height and size.width):
        raise HfVitSegError(f"crop_size must have the keys height and width, got {size and dict(size)}")
    return framed(pixels, size.height, size.width, fill, central=True)


def framed(pixels: torch.Tensor, height: int, width: int, fill: int, central: bool = False) -> torch.Tensor:
    """Pad or cut (..., h, w) to (..., H, W), keeping the upper left corner or the centre in place."""
    borders = []
    for missing in (width - pixels.shape[-1], height - pixels.shape[-2]):
        before = int(missing / 2) if central else 0  # towards zero, as torchvision's centre crop rounds
        borders += [before, missing - before]
    return torch.nn.functional.pad(pixels, borders, value=fill)


def reduced(labels: torch.Tensor) -> torch.Tensor:
    """Take one from every class, so that 0 becomes 255; 255 stays."""
    return torch.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1)


class SegmentationProcessing(BaseImageProcessor):
    """What the two backends share; stands before the backend among a processor's bases."""

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

    def to_dict(self) -> dict[str, Any]:
        """The settings as they are saved; a map to code saved with them names both backends.

        transformers writes the name of one class. With that its pipelines (5.23) ask whether to trust the code of a
        video processor, which they take to be there.
        """
        settings = super().to_dict()
        if "AutoImageProcessor" in settings.get("auto_map", {}):
            module = type(self).__module__.rpartition(".")[2]
            name = type(self).__name__.removesuffix("Pil")
            backends = {"torchvision": f"{module}.{name}", "pil": f"{module}.{name}Pil"}
            settings["auto_map"] = {**settings["auto_map"], "AutoImageProcessor": backends}
        return settings

    def preprocess(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Turn images into `pixel_values` (B, C, H, W) and segmentation maps into `labels` (B, H, W) int64.

        Images may be PIL images of any mode, arrays or tensors (channels first or last), one or a list. With
        three means (or `do_convert_rgb`) grey, palette, CMYK, transparent and 16-bit images become RGB.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def as_pixels(
        self,
        image: Any,
        image_mean: float | Sequence[float] | None,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
    ) -> torch.Tensor:
        """One image as (C, H, W), uint8 or float32."""
        bands = len(image_mean) if isinstance(image_mean, Sequence) else None
        convert = bands == 3 if do_convert_rgb is None else do_convert_rgb
        if isinstance(image, Image.Image):
            keeps_values = image.mode == "F" or (image.mode.startswith("I") and not convert)
            if not keeps_values and (convert or bands == 1):
                image = rgb_picture(image) if convert else rgb_picture(image).convert("L")
            input_data_format = ChannelDimension.LAST
        accepted = ([bands] if bands else []) + ([3, 1, 4] if convert or not bands else [])
        pixels = channels_first(as_tensor(image), accepted, input_data_format)
        return (rgb_channels(pixels) if convert else pixels).contiguous()

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> Any:
        if isinstance(images, list | tuple):
            grey = [isinstance(image, np.ndarray | torch.Tensor) and image.ndim == 2 for image in images]
            images = [
                image[None] if flat and expected_ndims == 3 else image for image, flat in zip(images, grey, strict=True)
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
        pictures = [
            self.as_pixels(image, kwargs["image_mean"], do_convert_rgb, input_data_format)
            for image in self._prepare_images_structure(images)
        ]
        if device is not None:
            pictures = [picture.to(device) for picture in pictures]
        sides = [picture.shape[-2:] for picture in pictures]
        features = self._preprocess(pictures, return_tensors=return_tensors, **kwargs)
        if segmentation_maps is not None:
            maps = [class_map(m) for m in self._prepare_images_structure(segmentation_maps, expected_ndims=2)]
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
        """Segmentation maps through the geometry of their images: (H, W) int64 each."""
        if do_reduce_labels:
            maps = [reduced(labels) for labels in maps]
        if do_resize:
            maps = [nearest_exact(m, *resized_sides(m.shape[0], m.shape[1], size, size_divisor)) for m in maps]
        if do_center_crop:
            maps = [central_window(labels, crop_size, IGNORED) for labels in maps]
        if do_pad:
            height = (pad_size and pad_size.height) or max(labels.shape[0] for labels in maps)
            width = (pad_size and pad_size.width) or max(labels.shape[1] for labels in maps)
            maps = [framed(labels, height, width, IGNORED) for labels in maps]
        return maps

    def post_process_semantic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Label maps (H, W) int64 from `outputs.logits` (B, K, h, w), one for each image.

        `target_sizes` are (height, width) for each image; without them the logits' own size is kept. The labels
        are those of the resized logits' arg-max, without ever holding the resized logits; a model of one class
        gives 1 where its probability exceeds one half, else 0. With `return_segmentation_scores` each result has
        `segmentation` and `segmentation_scores`, the resized logits (K, H, W) in full.
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
                data={"segmentation": labels, "segmentation_scores": resized_logits(image, size)}
            )
            for labels, image, size in zip(maps, logits, sizes, strict=True)
        ]


def resized_logits(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resize of one image's logits: (K, h, w) -> (K, H, W)."""
    if tuple(logits.shape[-2:]) == size:
        return logits
    return torch.nn.functional.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


class SemanticSegmentationImageProcessor(SegmentationProcessing, TorchvisionBackend):
    """Images are resized by torchvision, with antialiasing, on any device."""

    def _preprocess(
        self, images: list[torch.Tensor], do_resize: bool, size: SizeDict, size_divisor: int | None, **kwargs: Any
    ) -> BatchFeature:
        if do_resize:
            sides = [resized_sides(image.shape[1], image.shape[2], size, size_divisor) for image in images]
            images = [
                self.resize(image, SizeDict(height=height, width=width), resample=kwargs["resample"])
                for image, (height, width) in zip(images, sides, strict=True)
            ]
        return super()._preprocess(images, do_resize=False, size=size, **kwargs)

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs: Any) -> torch.Tensor:
        """The middle of an image, with zeros beyond its border."""
        return central_window(image, size, 0)


class SemanticSegmentationImageProcessorPil(SegmentationProcessing, PilBackend):
    """Images are resized by PIL, band by band: any number of bands, no torchvision needed."""

    def _preprocess(
        self, images: list[torch.Tensor], do_resize: bool, size: SizeDict, size_divisor: int | None, **kwargs: Any
    ) -> BatchFeature:
        arrays = [image.cpu().numpy() for image in images]
        if do_resize:
            sides = [resized_sides(image.shape[1], image.shape[2], size, size_divisor) for image in images]
            arrays = [resized_bands(image, side, kwargs["resample"]) for image, side in zip(arrays, sides, strict=True)]
        return super()._preprocess(arrays, do_resize=False, size=size, **kwargs)

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs: Any) -> np.ndarray:
        """The middle of an image, with zeros beyond its border."""
        return central_window(torch.from_numpy(image.copy()), size, 0).numpy()


def resized_bands(image: np.ndarray, size: tuple[int, int], resample: int | None) -> np.ndarray:
    """Resize (C, h, w) to (C, H, W) with PIL, whatever C is."""
    filter_ = PILImageResampling.BILINEAR if resample is None else PILImageResampling(resample)
    height, width = size
    return np.stack([np.asarray(Image.fromarray(band).resize((width, height), filter_)) for band in image])


__all__ = ["SemanticSegmentationImageProcessor", "SemanticSegmentationImageProcessorPil"]
