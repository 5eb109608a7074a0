"""Image preprocessing of converted models, as in their training."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from hf_vit_seg.conversion.errors import ConversionError
from transformers import CONFIG_MAPPING, IMAGE_PROCESSOR_MAPPING
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.models.image_processing_segmentation import MIN_SHARE, check_settings, is_share, is_side
from hf_vit_seg.records import shorten

from .labels import LabelSet, generate_palette

SEGMENTATION = "AutoModelForSemanticSegmentation"
UNIVERSAL = "AutoModelForUniversalSegmentation"
SEGMENTERS = (SEGMENTATION, UNIVERSAL)
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
# Classes of transformers with the steps of ours: resize, center crop, rescale, normalize. They differ in defaults, and
# in what a size that is one number means.
SAME_STEPS = frozenset(
    (
        *("Beit", "Bit", "Blip", "CLIP", "ChineseCLIP", "ConvNext", "DeiT", "MobileNetV1", "MobileNetV2"),
        *("OwlViT", "Pvt", "Segformer", "Siglip", "ViT", "VitPose"),
    )
)
RENAMED = {"ViTHybridImageProcessor": "BitImageProcessor"}  # class of transformers 4, with the same defaults
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def check_processor(processor: Mapping[str, Any], path: Path) -> None:
    """Raise ConversionError for invalid settings of a preprocessor_config.json; null means the default."""
    try:
        check_settings(processor, f"'{path}'")
    except HfVitSegError as error:
        raise ConversionError(str(error)) from None


def source_class(processor: Mapping[str, Any], config: Mapping[str, Any]) -> type[BaseImageProcessor] | None:
    """Return the class of transformers that reads a preprocessor_config.json, as AutoImageProcessor finds it.

    None if it names a class that transformers does not have, and for models that are not of transformers.
    """
    name = processor_type(processor).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    if name.endswith("ImageProcessor"):
        processor_class = getattr(transformers, RENAMED.get(name, name), None)
    else:
        try:
            classes: Any = IMAGE_PROCESSOR_MAPPING[CONFIG_MAPPING[str(config.get("model_type"))]]
            processor_class = classes["torchvision"]
        except KeyError:
            return None
    return (
        processor_class
        if isinstance(processor_class, type) and issubclass(processor_class, BaseImageProcessor)
        else None
    )


def has_same_steps(source: type[BaseImageProcessor]) -> bool:
    """Return whether our image processor computes the same as a class of transformers, with its settings."""
    return source.__name__.removesuffix("ImageProcessor") in SAME_STEPS


def complete_settings(processor: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Complete the settings of a preprocessor_config.json by the defaults of its class in transformers.

    Settings of classes with other steps, and of unknown classes, are returned unchanged. ConversionError for
    settings that the class does not accept.
    """
    source = source_class(processor, config) if processor else None
    completed = dict(processor)
    if source is not None and has_same_steps(source):
        names = (*KEPT, "crop_pct")
        try:
            settled = source(**{name: processor[name] for name in names if name in processor}).to_dict()
        except (LookupError, TypeError, ValueError) as error:
            reason = error_sentence(error, short=True)
            raise ConversionError(f"'{path}' is not accepted by {source.__name__}: {reason}; correct it") from error
        given = {name: settled[name] for name in names if name in settled}
        completed |= {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
        if "resample" in completed:
            completed["resample"] = int(completed["resample"])
    kept = saved_settings(completed)
    if kept.get("do_center_crop") and "crop_size" not in kept:
        raise ConversionError(f"'{path}': do_center_crop is true without crop_size; add its sides")
    return completed


def other_processor(processor: Mapping[str, Any], config: Mapping[str, Any]) -> BaseImageProcessor | None:
    """Build the image processor of a class of transformers with other steps than ours; None for other classes."""
    source = source_class(processor, config) if processor else None
    if source is None or has_same_steps(source):
        return None
    try:
        built: Any = source.from_dict(dict(processor))
    except (LookupError, TypeError, ValueError) as error:
        reason = error_sentence(error, short=True)
        raise ConversionError(f"preprocessor_config.json is not accepted by {source.__name__}: {reason}") from error
    return built


def check_channels(processor: Mapping[str, Any], channels: int, where: Path) -> None:
    """Raise ConversionError if image processor and model have different numbers of channels."""
    mean = processor.get("image_mean")
    if isinstance(mean, list) and len(mean) != channels:
        raise ConversionError(
            f"'{where}': image_mean has {len(mean)} channels, expected those of the model, {channels}; correct "
            "preprocessor_config.json"
        )


TIMM_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def timm_processor(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the preprocessing in the config.json of a timm repository, in the terms of an image processor; or {}.

    timm resizes the shorter side (with `crop_mode` "squash", both sides) to input size / crop_pct, and crops the
    center. ConversionError for invalid values.
    """
    given = config.get("pretrained_cfg")
    if not isinstance(given, Mapping):
        return {}
    size, share = given.get("input_size", (3, 224, 224)), given.get("crop_pct", 0.875)
    if not (isinstance(size, list | tuple) and len(size) == 3 and all(map(is_side, size))):
        raise ConversionError(f"'{path}': input_size is {shorten(size)}, expected [channels, height, width]")
    if not is_share(share):
        raise ConversionError(f"'{path}': crop_pct is {shorten(share)}, expected a number from {MIN_SHARE} to 1")
    height, width = size[1:]
    if given.get("crop_mode") == "squash":
        resized = {"height": math.floor(height / share), "width": math.floor(width / share)}
    else:
        resized = {"shortest_edge": math.floor(min(height, width) / share)}
    processor = {
        "size": resized,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "resample": TIMM_FILTERS.get(str(given.get("interpolation")), TIMM_FILTERS["bicubic"]),
        "image_mean": given.get("mean", IMAGENET["image_mean"]),
        "image_std": given.get("std", IMAGENET["image_std"]),
    }
    processor |= {name: list(value) for name, value in processor.items() if isinstance(value, tuple)}
    check_processor(processor, path)
    return processor


def rectangle(size: Any) -> Any:
    """Convert sizes of old processors, a number or a pair, to a mapping."""
    if isinstance(size, int):
        return {"height": size, "width": size}
    if isinstance(size, list | tuple):
        return {"height": size[0], "width": size[-1]}
    return size


def processor_type(processor: Mapping[str, Any]) -> str:
    """Return the class name of a processor, from its old or new key."""
    return str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")


def convnext_settings(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the sizes of ConvNextImageProcessor: below 384 resize and center crop, otherwise resize to a square."""
    edge = processor.get("size", 384)
    if isinstance(edge, Mapping):
        edge = edge.get("shortest_edge") or next(iter(edge.values()))
    edge = edge[0] if isinstance(edge, list) else edge
    if edge >= 384:
        return {**processor, "size": {"height": edge, "width": edge}, "do_center_crop": False}
    whole = int(edge / (processor.get("crop_pct") or 224 / 256))
    return {**processor, "size": {"shortest_edge": whole}, "do_center_crop": True, "crop_size": edge}


def saved_settings(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a preprocessor_config.json that apply to any processor."""
    if processor_type(processor).startswith("ConvNext"):
        processor = convnext_settings(processor)
    kept = {name: processor[name] for name in KEPT if processor.get(name) is not None}
    return kept | {name: rectangle(kept[name]) for name in ("size", "crop_size") if name in kept}


def default_settings(model: str, labels: LabelSet | None) -> dict[str, Any]:
    """Return the default settings: a square for segmentation, a 224 crop of 256 for classification."""
    if model in SEGMENTERS:
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
    chosen = saved_settings(processor) or default_settings(model, labels) | dict(reference)
    if model not in SEGMENTERS or labels is None:
        return chosen
    reduce = processor.get("do_reduce_labels", processor.get("reduce_labels"))
    if reduce is None or (labels_requested and labels.reduce_zero_label is not None):
        reduce = labels.reduce_zero_label
    chosen["do_reduce_labels"] = bool(reduce)
    chosen["palette"] = [list(color) for color in labels.palette or generate_palette(len(labels.names))]
    return chosen
