"""Load models of any known format, with their image processors."""

import logging
from collections.abc import Callable, Mapping
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig

from hf_vit_seg.conversion.checkpoint_readers import CONFIG, INDEX_FILES, WEIGHT_FILES, read_json, weight_file
from hf_vit_seg.conversion.convert import Conversion
from hf_vit_seg.conversion.errors import ConversionError
from hf_vit_seg.conversion.files.download import find_file
from hf_vit_seg.conversion.in_memory import (
    ADAPTER,
    check_location,
    convert_pretrained,
    describe_conversion,
    find_classes,
    find_config,
    is_convertible,
    pin_revision,
)
from hf_vit_seg.errors import error_sentence
from hf_vit_seg.local_paths import installed_path
from hf_vit_seg.models.layers import HUB_OPTIONS
from hf_vit_seg.records import nearest

from .devices import float_type, select_device
from .errors import INVALID_FILES, ModelError, as_model_error
from .image_processors import find_processor, load_processor

AUTO_CLASSES = {
    "segmentation": "AutoModelForSemanticSegmentation",
    "classification": "AutoModelForImageClassification",
    "pose": "AutoModelForPoseEstimation",
    "instance": "AutoModelForUniversalSegmentation",  # also of models trained for panoptic segmentation
    "panoptic": "AutoModelForUniversalSegmentation",
}
EXTREMES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # dtypes supported by aminmax
FEATURES = "features"
TASKS = {**AUTO_CLASSES, FEATURES: "AutoModel"}

logger = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model with its image processor (None if it has none).

    `note` describes its conversion, if it was converted, and `hub` the options of its files, with their commit.
    """

    model: Any
    processor: Any
    note: str | None
    hub: dict[str, Any]


def load(
    name: str | Path,
    task: str | None = None,
    *,
    convert: bool = True,
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    **hub: Any,
) -> tuple[Any, Any]:
    """Load a model of any known format, in evaluation mode, with its image processor.

    `name` is a directory, a Hub id, an https address, or a checkpoint file. Checkpoints of transformers (SegFormer,
    ViT, DeiT, CvT, ViTPose), timm, and the papers' authors are converted in memory to the classes of this package,
    with the epsilons, labels and preprocessing of their source; `convert=False` keeps transformers' own class. Models
    of other architectures are loaded by transformers.

    `task` is "segmentation", "classification", "pose", "instance", "panoptic" or "features" (the encoder); the default
    is the task of the checkpoint. `dtype` is a floating-point type of torch or its name; `device` defaults to the CPU.
    `hub` has the options of `from_pretrained` that locate files: `revision`, `subfolder`, `token`, `cache_dir`,
    `local_files_only`, `force_download`.

    Returns (model, image processor). For a checkpoint without settings of an image processor, it is None or, if the
    checkpoint is converted, the default of its format, which is logged. Raises ModelError.

    ```python
    model, processor = hf_vit_seg.load("nvidia/segformer-b0-finetuned-ade-512-512")
    ```
    """
    where, kind = select_device("cpu" if device is None else device), float_type(dtype)
    loaded = load_pretrained(name, kind, task, convert=convert, **hub)
    return loaded.model.eval().to(where), loaded.processor


def load_pretrained(
    name: str | Path,
    dtype: torch.dtype = torch.float32,
    task: str | None = None,
    *,
    convert: bool = True,
    **hub: Any,
) -> Loaded:
    """Load a model as `load` does, without moving it, and log a conversion. Raises ModelError."""
    check_options(load, hub)
    name = installed_path(str(name))
    if task is not None and task not in TASKS:
        raise ModelError(f"unknown task '{task}'; {nearest(task, TASKS, 'tasks')}")
    with as_model_error():
        hub = pin_revision(name, **hub)
    if convert and (converted := find_conversion(name, **hub)) is not None:
        check_task(name, converted, task)
        model: Any = converted.model.base_model if task == FEATURES else converted.model
        note = describe_conversion(name, converted)
        logger.warning(note)
        return Loaded(model.to(dtype), converted.processor, note, hub)
    text = pretrained_path(name)
    model = load_model(text, dtype, task or model_task(text, features=True, **hub), **hub)
    advise_conversion(model)
    processor = find_processor(text, **hub)
    if processor is None:
        source, options = find_base(text, **hub)
        processor = find_processor(source, **options) if source != text else None
    return Loaded(model, processor, None, hub)


def advise_conversion(model: Any) -> None:
    """Log a line of advice, once per class, for a model of transformers that this package has a class for."""
    kind = type(model)
    if kind.__module__.startswith("transformers.") and is_convertible({"model_type": model.config.model_type}):
        log_advice(kind.__name__)


@cache
def log_advice(name: str) -> None:
    """Log the advice for a class."""
    logger.warning(
        "%s is used as transformers' own class; hf_vit_seg.from_transformers(model), or loading without convert=False "
        "(--no-convert), gives the faster class of this package with the same outputs",
        name,
    )


def load_for_inference(
    name: str | Path, task: str, dtype: torch.dtype = torch.float32, *, convert: bool = True, **hub: Any
) -> tuple[Any, Any]:
    """Load a model and its image processor. Raises ModelError if it has no processor."""
    loaded = load_pretrained(name, dtype, task, convert=convert, **hub)
    if loaded.processor is not None:
        return loaded.model, loaded.processor
    return loaded.model, load_processor(pretrained_path(installed_path(str(name))), **loaded.hub)


def pretrained_path(name: str | Path) -> str:
    """Return what transformers accepts for a checkpoint in its format: the directory of a file, a path without `~`.

    ModelError for a file whose directory has other weights, or no config.json.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        return str(path) if path.exists() else str(name)
    if (path.parent / CONFIG).is_file() and path.name in (*WEIGHT_FILES, *INDEX_FILES):
        if weight_file(path.parent) != path:
            raise ModelError(
                f"'{path}' is next to {weight_file(path.parent).name}, which is loaded first; separate them"
            )
        return str(path.parent)
    raise ModelError(
        f"'{path}' is not a checkpoint file in a format that can be converted; to load a model of this package or of "
        f"transformers, pass its directory with {CONFIG} and {WEIGHT_FILES[0]}"
    )


def find_conversion(name: str | Path, **hub: Any) -> Conversion | None:
    """Convert a checkpoint in another format; None for others. Raises ModelError."""
    with as_model_error():
        return convert_pretrained(name, **hub)


def check_task(name: str | Path, converted: Conversion, task: str | None) -> None:
    """Raise ModelError if a converted checkpoint has no head for a task."""
    if task not in (None, FEATURES) and TASKS[task] != converted.detected.form.model:
        raise ModelError(
            f"{name} has no trained {task} head: it is a checkpoint of {type(converted.model).__name__}; "
            "train one with model.from_pretrained of a recipe"
        )


def check_options(function: Callable[..., Any], hub: Mapping[str, Any]) -> None:
    """Raise TypeError for options of a function or class method that neither it nor `HUB_OPTIONS` has."""
    own = [name for name, each in signature(function).parameters.items() if each.kind is not each.VAR_KEYWORD]
    options_of_function = [*own, *HUB_OPTIONS]
    if unknown := [name for name in hub if name not in HUB_OPTIONS]:
        noun = "argument" if len(unknown) == 1 else "arguments"
        options = ", ".join(f"'{name}'" for name in unknown)
        owner: Any = getattr(function, "__self__", None)
        called = function.__name__ if owner is None else f"{owner.__name__}.{function.__name__}"
        raise TypeError(
            f"{called}() got unexpected keyword {noun} {options}; {nearest(unknown[0], options_of_function)}"
        )


def load_model(name: str, dtype: torch.dtype = torch.float32, task: str = "segmentation", **hub: Any) -> Any:
    """Load a model with its class of transformers' Auto classes, for a task of `TASKS`.

    Raises ModelError if it fails, or if weights are missing.
    """
    auto_class = getattr(transformers, TASKS[task])
    try:
        model, info = auto_class.from_pretrained(name, dtype=dtype, output_loading_info=True, **hub)
    except (*INVALID_FILES, RuntimeError, EOFError, SafetensorError) as error:
        raise ModelError(f"{name} cannot be loaded as a {task} model: {error_sentence(error, short=True)}") from error
    except TypeError as error:  # timm's constructors get `model_args` from config.json
        if not (find_config(name, **hub) or {}).get("model_args"):
            raise
        raise ModelError(f"{name}: timm does not accept model_args of its config.json: {error}; remove them") from error
    missing = sorted(info["missing_keys"])
    if missing and task != FEATURES:
        saved = ", ".join(model.config.architectures or ["unknown class"])
        raise ModelError(
            f"{name} has no trained {task} head: {len(missing)} weights such as {missing[0]} are missing "
            f"(it was saved as {saved})"
        )
    check_finite(name, model)
    return unwrap_saved_modules(model)


def check_finite(name: str, model: Any) -> None:
    """Raise ModelError for weights that are NaN or infinite."""
    broken = [key for key, tensor in model.state_dict().items() if not is_finite(tensor)]
    if broken:
        raise ModelError(
            f"{name}: {len(broken)} tensors such as {broken[0]} contain NaN or infinite values; the training diverged, "
            "or the file is damaged: use an earlier checkpoint"
        )


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite; one pass over the extremes where torch has it, without a copy."""
    if type(tensor) is torch.Tensor and tensor.dtype in EXTREMES and tensor.numel():
        return all(bool(extreme.isfinite()) for extreme in tensor.aminmax())
    if tensor.is_floating_point() and tensor.element_size() == 1:  # isfinite does not exist for 8 bits
        tensor = tensor.float()
    return bool(torch.isfinite(tensor).all())


def unwrap_saved_modules(model: Any) -> Any:
    """Replace peft's wrappers of `modules_to_save` in a model that was loaded with its adapter by the saved modules."""
    if getattr(model, "_hf_peft_config_loaded", False):
        from peft.utils.other import ModulesToSaveWrapper

        wrapped = {name: m for name, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)}
        for name, wrapper in wrapped.items():
            model.set_submodule(name, wrapper.modules_to_save[wrapper.active_adapters[0]])
    return model


def model_task(name: str, *, features: bool = False, **hub: Any) -> str:
    """Return the task of a model, from its class in config.json, or from the tensors of another format.

    ModelError if it has none of `AUTO_CLASSES`, unless `features`.
    """
    name = installed_path(name)
    try:
        saved = find_classes(name, **hub)
        if not saved:
            base, options = find_base(name, **hub)
            saved = AutoConfig.from_pretrained(base, **options).architectures or []
    except ConversionError as error:
        raise ModelError(str(error)) from error
    except INVALID_FILES as error:
        raise ModelError(f"{name} cannot be loaded: {error_sentence(error, short=True)}") from error
    for task, auto_class in AUTO_CLASSES.items():
        if any(auto_class.removeprefix("AutoModel") in architecture for architecture in saved):
            return task
    if features:
        return FEATURES
    heads = ", ".join(saved) or "a model without a head"
    raise ModelError(f"{name} is {heads}, expected a model for {', '.join(AUTO_CLASSES)}")


def find_base(name: str, **hub: Any) -> tuple[str, dict[str, Any]]:
    """Return the base model of adapters that were saved without a config.json (by peft), and the options of its files.

    Other names and their options are returned unchanged. ConversionError for a path that does not exist.
    """
    if find_config(name, **hub) is not None:
        return pretrained_path(name), hub
    check_location(name, **hub)
    file = find_file(pretrained_path(name), ADAPTER, **hub)
    base = None if file is None else read_json(file).get("base_model_name_or_path")
    if not isinstance(base, str):
        return pretrained_path(name), hub
    return base, {option: value for option, value in hub.items() if option not in ("revision", "subfolder")}


def label_names(config: Any, noun: str = "class") -> list[str]:
    """Return the names of a model's outputs in their order; the keys of `id2label` may be strings, as in JSON."""
    labels = {int(index): name for index, name in (config.id2label or {}).items()}
    return [labels.get(index, f"{noun} {index}") for index in range(config.num_labels)]


__all__ = [
    "AUTO_CLASSES",
    "TASKS",
    "Loaded",
    "advise_conversion",
    "check_options",
    "find_conversion",
    "label_names",
    "load",
    "load_for_inference",
    "load_model",
    "load_pretrained",
    "model_task",
    "unwrap_saved_modules",
]
