"""Preprocessing: what makes a converted model see images as it was trained to see them."""

from collections.abc import Mapping
from typing import Any

from .labels import LabelSet, generated_palette

SEGMENTATION = "AutoModelForSemanticSegmentation"
BILINEAR = 2
SQUARE = 512
KEPT = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
)
CONVNEXT = {"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # where a ConvNext processor says nothing
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def rectangle(size: Any) -> Any:
    """A size as old processors wrote it, one number or a pair, by names."""
    if isinstance(size, int):
        return {"height": size, "width": size}
    if isinstance(size, list | tuple):
        return {"height": size[0], "width": size[1]}
    return size


def processor_type(processor: Mapping[str, Any]) -> str:
    """The class name of a processor, under the keys of either generation."""
    return str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")


def with_crop(processor: Mapping[str, Any]) -> dict[str, Any]:
    """ConvNextImageProcessor's sizes spelled out: `size` of a larger resized image below 384, squashed from there."""
    edge = processor.get("size", 384)
    edge = edge["shortest_edge"] if isinstance(edge, Mapping) else edge
    if edge >= 384:
        return {**CONVNEXT, **processor, "size": {"height": edge, "width": edge}, "do_center_crop": False}
    whole = int(edge / (processor.get("crop_pct") or 224 / 256))
    return {**CONVNEXT, **processor, "size": {"shortest_edge": whole}, "do_center_crop": True, "crop_size": edge}


def beside(processor: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preprocessor_config.json that hold for any processor."""
    if processor_type(processor).startswith("ConvNext"):
        processor = with_crop(processor)
    kept = {name: processor[name] for name in KEPT if processor.get(name) is not None}
    return kept | {name: rectangle(kept[name]) for name in ("size", "crop_size") if name in kept}


def usual(model: str, labels: LabelSet | None) -> dict[str, Any]:
    """The evaluation settings of the papers: a square for segmentation, 224 of 256 for classification."""
    if model == SEGMENTATION:
        height, width = labels.image_size if labels and labels.image_size else (SQUARE, SQUARE)
        return {"size": {"height": height, "width": width}, "resample": BILINEAR, **IMAGENET}
    return {
        "size": {"shortest_edge": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "resample": BILINEAR,
        **IMAGENET,
    }


def settings(
    model: str,
    labels: LabelSet | None,
    processor: Mapping[str, Any],
    *,
    labels_asked: bool,
    reference: Mapping[str, Any],
) -> dict[str, Any]:
    """What to build the image processor with; a preprocessor_config.json beside comes first, then the reference's."""
    chosen = beside(processor) or usual(model, labels) | dict(reference)
    if model != SEGMENTATION or labels is None:
        return chosen
    reduce = processor.get("do_reduce_labels", processor.get("reduce_labels"))
    if reduce is None or (labels_asked and labels.reduce_zero_label is not None):
        reduce = labels.reduce_zero_label
    chosen["do_reduce_labels"] = bool(reduce)
    chosen["palette"] = [list(color) for color in labels.palette or generated_palette(len(labels.names))]
    return chosen
