"""Loading of models and image processors onto a device."""

from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor

from hf_vit_seg.errors import HfVitSegError, error_sentence

AUTO_CLASSES = {
    "segmentation": "AutoModelForSemanticSegmentation",
    "classification": "AutoModelForImageClassification",
    "pose": "AutoModelForPoseEstimation",
}


class ModelError(HfVitSegError):
    """A model that cannot be used."""


def float_type(name: str | torch.dtype) -> torch.dtype:
    """A floating-point dtype of torch by name. Raises ModelError for others."""
    kind: Any = getattr(torch, name, None) if isinstance(name, str) else name
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ModelError(f"{name} is not a floating-point type of torch: use float32, bfloat16 or float16")
    return kind


def select_device(device: str | torch.device | None) -> torch.device:
    """The device, by default a GPU if available. Raises ModelError if it cannot be used."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"Device {device} cannot be used: {error_sentence(error, short=True)}") from None
    return chosen


def load_model(name: str, dtype: torch.dtype = torch.float32, task: str = "segmentation") -> Any:
    """Load a model for a task of `AUTO_CLASSES`. Raises ModelError if it fails, or if weights are missing."""
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
    return unwrap_saved_modules(model)


def unwrap_saved_modules(model: Any) -> Any:
    """Replace peft's wrappers of `modules_to_save` in a model that was loaded with its adapter by the saved modules."""
    if getattr(model, "_hf_peft_config_loaded", False):
        from peft.utils.other import ModulesToSaveWrapper

        wrapped = {name: m for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)}
        for name, wrapper in wrapped.items():
            model.set_submodule(name, wrapper.modules_to_save[wrapper.active_adapters[0]])
    return model


def task_of(name: str) -> str:
    """The task of a model, by the class that its config names. ModelError if it has none of `AUTO_CLASSES`."""
    try:
        saved = AutoConfig.from_pretrained(name).architectures or []
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{name} cannot be loaded: {error_sentence(error, short=True)}") from error
    for task, auto_class in AUTO_CLASSES.items():
        if any(auto_class.removeprefix("AutoModel") in architecture for architecture in saved):
            return task
    found = ", ".join(saved) or "a model without a head"
    raise ModelError(f"{name} is {found}, expected a model for {', '.join(AUTO_CLASSES)}")


def label_names(config: Any, noun: str = "class") -> list[str]:
    """The names of a model's outputs in their order; the keys of `id2label` may be strings, as in JSON."""
    labels = {int(index): name for index, name in (config.id2label or {}).items()}
    return [labels.get(index, f"{noun} {index}") for index in range(config.num_labels)]


def load_processor(name: str) -> Any:
    """Load the image processor of a model. Raises ModelError if there is none."""
    try:
        return AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{name} has no image processor (preprocessor_config.json), which is required to resize and normalize "
            f"images: {error_sentence(error, short=True)}"
        ) from error


__all__ = [
    "AUTO_CLASSES",
    "ModelError",
    "float_type",
    "label_names",
    "load_model",
    "load_processor",
    "select_device",
    "task_of",
    "unwrap_saved_modules",
]
