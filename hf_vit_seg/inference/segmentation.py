"""The segmentation of one image."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image

from hf_vit_seg.drawing.overlays import draw_overlay
from hf_vit_seg.errors import HfVitSegError

from .annotations import coco, geojson


@dataclass(frozen=True)
class ClassCount:
    """The pixel count and share of one class in an image."""

    index: int
    name: str
    color: tuple[int, int, int]
    pixels: int
    share: float  # fraction of all pixels, 0 .. 1


def class_counts(pixels: np.ndarray, names: tuple[str, ...], palette: np.ndarray) -> list[ClassCount]:
    """Return the classes with pixels, the most frequent first, from pixel counts (K,)."""
    order = sorted(np.flatnonzero(pixels).tolist(), key=lambda index: (-pixels[index], index))
    total = float(pixels.sum())
    return [
        ClassCount(i, names[i], tuple(palette[i].tolist()), int(pixels[i]), float(pixels[i]) / total) for i in order
    ]


def nodata_label(classes: int) -> int:
    """Return the label of pixels without data in files, which is not a class index."""
    return 255 if classes <= 255 else 65535


def file_palette(palette: np.ndarray) -> np.ndarray:
    """Extend a palette (K, 3) by black for all labels up to the `nodata_label`."""
    colors = np.zeros((nodata_label(len(palette)) + 1, 3), np.uint8)
    colors[: len(palette)] = palette
    return colors


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map at the image's size, with class names, palette and optional maps.

    `label_map` is (H, W), uint8 for up to 256 classes, else uint16; pixels without data may have the `nodata_label`.
    `timings` are milliseconds per step. `image` is None if the input has no RGB image, such as an array of five
    channels.

    Optional maps: `scores` (H, W) float32, 0 .. 1, the probability of each pixel's class (for models with one class: of
    that class); `entropy` (H, W) float32, 0 (certain) .. 1 (uniform), the entropy of each pixel's probabilities
    divided by log K; `top_classes` (k, H, W) like `label_map`, the k most likely classes in descending order, and
    `top_scores` (k, H, W) float32, their probabilities.
    """

    image: Image.Image | None
    label_map: np.ndarray
    names: tuple[str, ...]
    palette: np.ndarray
    protocol: str
    timings: Mapping[str, float]
    scores: np.ndarray | None = None
    entropy: np.ndarray | None = None
    top_classes: np.ndarray | None = None
    top_scores: np.ndarray | None = None

    def counts(self) -> list[ClassCount]:
        """Return the classes that occur, the most frequent first."""
        return class_counts(self.pixels_per_class, self.names, self.palette)

    @cached_property
    def pixels_per_class(self) -> np.ndarray:
        """(K,) int64."""
        labels = torch.from_numpy(np.ascontiguousarray(self.label_map))
        labels = labels.flatten() if labels.dtype == torch.uint8 else labels.flatten().int()
        return torch.bincount(labels, minlength=len(self.names)).numpy()[: len(self.names)]

    def hide(self, missing: np.ndarray) -> "Segmentation":
        """Return the segmentation with the `nodata_label` where data is `missing` (H, W), and scores and entropy 0."""
        label = nodata_label(len(self.names))
        kind = np.uint8 if label == 255 else np.uint16
        labels, zeros = np.where(missing, kind(label), self.label_map.astype(kind)), dict[str, np.ndarray]()
        for name in ("scores", "entropy", "top_scores"):
            values = getattr(self, name)
            if values is not None:
                zeros[name] = np.where(missing, values.dtype.type(0), values)
        if self.top_classes is not None:
            zeros["top_classes"] = np.where(missing, kind(label), self.top_classes.astype(kind))
        return replace(self, label_map=labels, **zeros)

    def label_image(self) -> Image.Image:
        """Return the label map as an image with a palette, or as 16-bit gray for more than 256 classes."""
        picture = Image.fromarray(self.label_map)
        if self.label_map.dtype == np.uint8:
            beyond = self.label_map.max(initial=0) >= len(self.palette)
            picture.putpalette((file_palette(self.palette) if beyond else self.palette).tobytes())
        return picture

    def score_image(self) -> Image.Image:
        """Return the scores as an 8-bit grayscale image: 255 is certain."""
        if self.scores is None:
            raise HfVitSegError("Scores were not computed: call the segmenter with scores=True")
        return gray_image(self.scores)

    def entropy_image(self) -> Image.Image:
        """Return the entropy as an 8-bit grayscale image: 0 is certain, 255 means maximum uncertainty."""
        if self.entropy is None:
            raise HfVitSegError("Entropy was not computed: call the segmenter with entropy=True")
        return gray_image(self.entropy)

    def geojson(self) -> dict[str, Any]:
        """Return the regions as GeoJSON polygons with class, pixel count and, if available, mean score."""
        return geojson(self.label_map, self.names, self.palette, self.scores)

    def coco(self, file_name: str = "") -> dict[str, Any]:
        """Return a COCO dataset of this image, with `file_name` and the RLE of every class that occurs."""
        return coco(self.label_map, self.names, file_name, self.scores)

    def overlay(self, opacity: float = 0.5, legend: bool = True, longest_side: int | None = 1600) -> Image.Image:
        """Return the image blended with class colors; see `overlays.draw_overlay`."""
        if self.image is None:
            raise HfVitSegError("an overlay requires an RGB or gray image, and the input was not one")
        rows = [(count.name, count.color, count.share) for count in self.counts()] if legend else []
        return draw_overlay(self.image, self.label_map, file_palette(self.palette), rows, opacity, longest_side)

    def _repr_png_(self) -> bytes:
        """Return the overlay with its legend, or the label map if there is no image, as a notebook displays it."""
        buffer = BytesIO()
        (self.label_image() if self.image is None else self.overlay()).save(buffer, "PNG")
        return buffer.getvalue()


def gray_image(shares: np.ndarray) -> Image.Image:
    """Convert a map of 0 .. 1 to an 8-bit grayscale image."""
    return Image.fromarray((shares * 255 + 0.5).astype(np.uint8))
