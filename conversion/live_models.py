"""Convert models in memory: those of transformers to the classes of this package, and back."""

import copy
import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import output_capturing

from hf_vit_seg.atomic_io import atomic_path

from .checkpoint_readers import Checkpoint
from .convert import plan_conversion
from .errors import ConversionError, UnsupportedCheckpoint, first_few
from .export import export_model
from .rules import origin
from .strict_loading import load_model

# Classes that mask tokens or reconstruct pixels, which ours do not.
PRETRAINING = ("ForPreTraining", "ForMaskedImageModeling", "MAEModel")
# Modules that compute what transformers' code and the config say.
MODULES = ("transformers.", "torch.nn.")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
COMPILED = "_compiled_call_impl"

logger = logging.getLogger(__name__)


def from_transformers(model: PreTrainedModel) -> PreTrainedModel:
    """Convert a model of transformers (Segformer, ViT, DeiT, Cvt, VitPose) to the faster class of this package.

    The result has the same weights, labels, dtype, device, and training modes, and the same outputs up to rounding.
    Parameters whose names alone differ are the same objects, so an optimizer that was built before still trains them;
    do not use both models for training. The original model is not changed.

    Raises UnsupportedCheckpoint for other classes, and for models that are changed (with adapters, hooks, or modules of
    other packages), compiled, quantized, or without data.

    ```python
    model = AutoModelForSemanticSegmentation.from_pretrained("nvidia/segformer-b0-finetuned-ade-512-512")
    model = hf_vit_seg.from_transformers(model)
    ```
    """
    check_plain(model)
    tensors = dict(model.state_dict(keep_vars=True))  # the Parameter objects
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.no_grad():
        planned = plan_conversion(
            Checkpoint(Path(type(model).__name__), tensors, config=config), None, None, {}, load_model
        )
    converted: Any = planned.model
    if planned.label_set is not None:  # exactly those of the model
        converted.config.id2label, converted.config.label2id = config["id2label"], config["label2id"]
    converted.config.problem_type = config.get("problem_type")
    if hasattr(converted.config, "semantic_loss_ignore_index"):
        converted.config.semantic_loss_ignore_index = config.get("semantic_loss_ignore_index", 255)
    for name, parameter in model.named_parameters():  # loading changes them
        parameter.requires_grad_(trained[name])
    origins = {name: origin(planned.detected.form.rules, name).split(", ") for name in converted.state_dict()}
    freeze_parameters(converted, origins, {name for name, is_trained in trained.items() if not is_trained})
    converted.name_or_path = converted.config.name_or_path = model.config.name_or_path
    copy_training_modes(model, converted, origins)
    if dropped := [name for name in planned.translation.dropped if name in tensors]:
        reasons = ", ".join(dict.fromkeys(planned.translation.dropped.values()))
        logger.warning("%d tensors of the %s are not used (%s)", len(dropped), type(model).__name__, reasons)
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        converted.activation_checkpointing_enable()
    attention = getattr(model.config, "_attn_implementation", None)
    if attention not in (None, "eager", "sdpa"):  # ours chooses sdpa
        converted.set_attn_implementation(attention)
    return converted


def check_plain(model: Any) -> None:
    """Raise UnsupportedCheckpoint for a model whose behavior its config and tensors do not describe."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedCheckpoint(f"found {name}, expected a model of transformers; pass its unwrapped module")
    if not type(model).__module__.startswith("transformers."):
        raise UnsupportedCheckpoint(f"{name} is not a class of transformers, whose computation would be known")
    if name.endswith(PRETRAINING):
        raise UnsupportedCheckpoint(f"{name} is for pretraining; convert its encoder, such as ViTModel")
    for reason, paths in find_unsupported_changes(model).items():
        if paths:
            raise UnsupportedCheckpoint(f"the {name} {reason} ({first_few(path or name for path in paths)})")


def find_unsupported_changes(model: PreTrainedModel) -> dict[str, list[str]]:
    """Return the modules and tensors that change what a model computes, by the error message about them."""
    modules = dict(model.named_modules())
    tensors = (*model.named_parameters(), *model.named_buffers())
    with torch.device("meta"):
        unchanged = dict(type(model)(copy.deepcopy(model.config)).named_modules())
    is_quantized = getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None
    return {
        "is quantized; convert it before it is quantized": [""] if is_quantized else [],
        "has adapters; merge them first, or convert it before they are added": [
            path
            for path, module in modules.items()
            if hasattr(module, "base_layer") and hasattr(module, "active_adapters")
        ],
        "is compiled; convert it first, and compile the result": [
            path for path, module in modules.items() if getattr(module, COMPILED, None) is not None
        ],
        "has hooks; remove them first": [path for path, module in modules.items() if has_hooks(module)],
        "has parametrizations; remove them first": [
            path for path, module in modules.items() if nn.utils.parametrize.is_parametrized(module)
        ],
        "has modules that were changed; restore them": [
            path for path, module in modules.items() if is_changed(module, unchanged.get(path))
        ],
        "has tensors without data, on the meta device; load its weights first": [
            path for path, tensor in tensors if tensor.is_meta
        ],
    }


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks other than those with which transformers records outputs."""
    hooks = [hook for table in HOOKS for hook in getattr(module, table, {}).values()]
    own = output_capturing.__name__
    return hasattr(module, "_hf_hook") or any(getattr(hook, "__module__", None) != own for hook in hooks)


def is_changed(module: nn.Module, unchanged: nn.Module | None) -> bool:
    """Return whether the class, `forward` or settings of a module differ from those of the config.

    Linear layers may have other sizes: those of a new classifier are read from its tensors.
    """
    if not type(module).__module__.startswith(MODULES) or "forward" in vars(module):
        return True
    if unchanged is None or (isinstance(module, nn.Linear) and isinstance(unchanged, nn.Linear)):
        return False
    return type(module) is not type(unchanged) or module.extra_repr() != unchanged.extra_repr()


def copy_training_modes(source: nn.Module, model: nn.Module, origins: Mapping[str, Sequence[str]]) -> None:
    """Set the training mode of each module to that of the source's modules with its tensors, if they agree.

    Modules without tensors, such as dropout, have the mode of the module that contains them.
    """
    modes = {
        f"{path}.{name}".removeprefix("."): module.training
        for path, module in source.named_modules()
        for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }
    tensors = {name: {modes[part] for part in parts if part in modes} for name, parts in origins.items()}
    set_training_modes(model, "", source.training, tensors)


def set_training_modes(module: nn.Module, path: str, training: bool, tensors: Mapping[str, set[bool]]) -> None:
    """Set the training modes of a module and those inside it; `tensors` has the modes of the tensors' sources."""
    inside = set().union(*(modes for name, modes in tensors.items() if name.startswith(path)))
    module.training = inside.pop() if len(inside) == 1 else training
    for name, child in module.named_children():
        set_training_modes(child, f"{path}{name}.", module.training, tensors)


def freeze_parameters(model: nn.Module, origins: Mapping[str, Sequence[str]], frozen: Collection[str]) -> None:
    """Freeze the parameters whose sources are all frozen."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not all(source in frozen for source in origins[name]))


def to_transformers(model: PreTrainedModel) -> PreTrainedModel:
    """Convert a model of this package to transformers' class, with copies of the weights, for use without this package.

    transformers' classes ignore some numbers of the config: outputs of models with other epsilons differ slightly. A
    logged line lists the differences. Raises ConversionError for models that transformers does not have.
    """
    with tempfile.TemporaryDirectory() as folder:
        with atomic_path(Path(folder, "model")) as path:
            notes = export_model(model, path, to="transformers")
        saved = transformers.AutoConfig.from_pretrained(Path(folder, "model"))
        model_class = getattr(transformers, (saved.architectures or [""])[0], None)
        if model_class is None:
            raise ConversionError(f"transformers {transformers.__version__} has no class for {saved.model_type}")
        converted = model_class.from_pretrained(Path(folder, "model"), dtype=model.dtype)
    for note in notes:
        logger.warning(note)
    converted.name_or_path = converted.config.name_or_path = model.config.name_or_path
    return converted.to(model.device).train(model.training)


__all__ = ["from_transformers", "to_transformers"]
