"""Loading a model with its image processor, onto a device; what fails is told in a sentence."""

from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoImageProcessor

from hf_vit_seg.errors import HfVitSegError, error_sentence

AUTO_CLASSES = {
    "segmentation": "AutoModelForSemanticSegmentation",
    "classification": "AutoModelForImageClassification",
    "pose": "AutoModelForPoseEstimation",
}


class ModelError(HfVitSegError):
    """A model that cannot be used, and why, in one sentence."""


def float_type(name: str | torch.dtype) -> torch.dtype:
    """One of torch's floating-point types, by its name."""
    kind: Any = getattr(torch, name, None) if isinstance(name, str) else name
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ModelError(f"{name} is no floating-point type of torch: use float32, bfloat16 or float16")
    return kind


def chosen_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, by default a GPU where there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"Device {device} cannot be used: {error_sentence(error, short=True)}") from None
    return chosen


def load_model(name: str, dtype: torch.dtype = torch.float32, task: str = "segmentation") -> Any:
    """A model for one of the tasks of `AUTO_CLASSES` whose weights are all there."""
    auto_class = getattr(transformers, AUTO_CLASSES[task])
    try:
        model, info = auto_class.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, SafetensorError) as error:
        raise ModelError(f"{name} cannot be loaded as a {task} model: {error_sentence(error, short=True)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        saved = ", ".join(model.config.architectures or ["unknown class"])
        raise ModelError(
            f"{name} has no trained {task} head: {len(missing)} weights such as {missing[0]} are missing "
            f"(it was saved as {saved})"
        )
    return model


def label_names(config: Any, noun: str = "class") -> list[str]:
    """The names of a model's outputs in their order; the keys of `id2label` may be strings, as in JSON."""
    labels = {int(index): name for index, name in (config.id2label or {}).items()}
    return [labels.get(index, f"{noun} {index}") for index in range(config.num_labels)]


def load_processor(name: str) -> Any:
    """The image processor that lies beside a model."""
    try:
        return AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{name} has no image processor (preprocessor_config.json), which says how images are resized and "
            f"normalized: {error_sentence(error, short=True)}"
        ) from error


__all__ = ["AUTO_CLASSES", "ModelError", "chosen_device", "float_type", "label_names", "load_model", "load_processor"]
