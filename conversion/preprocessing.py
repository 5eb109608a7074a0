"""Image preprocessing of converted models, as in their training."""

from collections.abc import Mapping
from typing import Any

from .labels import LabelSet, generate_palette

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
CONVNEXT = {"resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # defaults of a ConvNext processor
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def rectangle(size: Any) -> Any:
    """Convert sizes of old processors, a number or a pair, to a mapping."""
    if isinstance(size, int):
        return {"height": size, "width": size}
    if isinstance(size, list | tuple):
        return {"height": size[0], "width": size[1]}
    return size


def processor_type(processor: Mapping[str, Any]) -> str:
    """Return the class name of a processor, from its old or new key."""
    return str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")


def convnext_settings(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the sizes of ConvNextImageProcessor: below 384 resize and center crop, otherwise resize to a square."""
    edge = processor.get("size", 384)
    edge = edge["shortest_edge"] if isinstance(edge, Mapping) else edge
    if edge >= 384:
        return {**CONVNEXT, **processor, "size": {"height": edge, "width": edge}, "do_center_crop": False}
    whole = int(edge / (processor.get("crop_pct") or 224 / 256))
    return {**CONVNEXT, **processor, "size": {"shortest_edge": whole}, "do_center_crop": True, "crop_size": edge}


def saved_settings(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a preprocessor_config.json that apply to any processor."""
    if processor_type(processor).startswith("ConvNext"):
        processor = convnext_settings(processor)
    kept = {name: processor[name] for name in KEPT if processor.get(name) is not None}
    return kept | {name: rectangle(kept[name]) for name in ("size", "crop_size") if name in kept}


def usual(model: str, labels: LabelSet | None) -> dict[str, Any]:
    """Return the usual settings: a square for segmentation, a 224 crop of 256 for classification."""
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
    labels_requested: bool,
    reference: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the settings of the image processor: from preprocessor_config.json, or else the reference's."""
    chosen = saved_settings(processor) or usual(model, labels) | dict(reference)
    if model != SEGMENTATION or labels is None:
        return chosen
    reduce = processor.get("do_reduce_labels", processor.get("reduce_labels"))
    if reduce is None or (labels_requested and labels.reduce_zero_label is not None):
        reduce = labels.reduce_zero_label
    chosen["do_reduce_labels"] = bool(reduce)
    chosen["palette"] = [list(color) for color in labels.palette or generate_palette(len(labels.names))]
    return chosen
