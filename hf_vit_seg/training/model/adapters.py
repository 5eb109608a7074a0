"""LoRA (arXiv 2106.09685) through peft: low-rank adapters in the encoder's linear layers, and a fully trained head.

During training the head is not in peft's `modules_to_save`, whose copies behind wrappers break lists of modules: it is
simply not frozen. Saved adapters have it there, with its BatchNorm statistics, and also modules of the encoder that the
pretrained model lacks, such as a stem for other channels: peft then needs only the pretrained model. BatchNorms of the
encoder do not change.
"""

import copy
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_vit_seg.local_paths import publishable
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.recipe.schema import LoraRecipe

from .parameter_names import (
    INITIALIZED,
    SAVED_ADAPTERS,
    encoder_layers,
    encoder_prefix,
    has_adapters,
    plain_model,
    plain_name,
    unwrap_model,
)

logger: Any = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class SavedAdapters:
    """The adapters of a checkpoint that were not merged: tensors by the names that they have in the model."""

    rank: int
    alpha: float
    tensors: Mapping[str, torch.Tensor]


def detach_adapters(model: PreTrainedModel, merge: bool) -> tuple[PreTrainedModel, SavedAdapters | None]:
    """Split a model with adapters, as transformers loads it, into model and adapters; None if there are none.

    With `merge`, they are added to the weights. RecordError for other adapters than LoRA.
    """
    if not getattr(model, "peft_config", None):
        return model, None
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    config = next(iter(cast(Any, model).peft_config.values()))
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    if not all(isinstance(layer, LoraLayer) for layer in layers.values()):
        raise RecordError(f"model.from_pretrained: the checkpoint has {config.peft_type} adapters, expected LoRA")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
    for name, layer in cast(dict[str, Any], layers).items():
        if merge:
            layer.merge()
        model.set_submodule(name, layer.get_base_layer())
    plain = type(model)(model.config)  # transformers saves the loaded model as adapters, by other names
    plain.load_state_dict(model.state_dict())
    plain.name_or_path = model.name_or_path
    return plain, SavedAdapters(config.r, config.lora_alpha, tensors)


def load_adapters(adapted: Any, saved: SavedAdapters, recipe: LoraRecipe) -> None:
    """Load adapters into a model with new ones. RecordError if their settings differ."""
    for name, now, then in (("rank", recipe.rank, saved.rank), ("alpha", recipe.alpha, saved.alpha)):
        if now != then:
            raise RecordError(
                f"model.lora.{name} is {now:g}, but the adapters of the checkpoint have {then:g}; use the same, or "
                "remove model.lora to merge them into the weights"
            )
    model = adapted.get_base_model()
    expected = {name for name in model.state_dict() if ".lora_" in name}
    if expected != saved.tensors.keys():
        raise RecordError(
            f"model.lora.target_modules: found {len(expected)} tensors of adapters, but the checkpoint has "
            f"{len(saved.tensors)}; use its target_modules, or remove model.lora to merge its adapters into the weights"
        )
    model.load_state_dict(saved.tensors, strict=False)


def encoder_linears(model: PreTrainedModel) -> str:
    """Return a regular expression that matches the full names of all linear layers in the encoder's layers."""
    modules = dict(model.named_modules())
    suffixes = {
        name
        for layer in encoder_layers(model)
        for name, module in modules[layer].named_modules()
        if isinstance(module, nn.Linear) and name
    }
    if not suffixes:
        raise RecordError(
            f"model.lora: found no linear layers in the encoder of {type(model).__name__}; set target_modules"
        )
    choices = "|".join(re.escape(suffix) for suffix in sorted(suffixes))
    return rf"{re.escape(encoder_prefix(model))}(?:.+\.)?\d+\.(?:{choices})"


def add_adapters(model: PreTrainedModel, recipe: LoraRecipe) -> Any:
    """Return the model wrapped by peft: adapters and head are trained, the rest of the encoder is frozen.

    Adapters of the checkpoint are trained further. RecordError if `target_modules` match no layer.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise RecordError("model.lora needs peft: pip install peft") from None
    prefix = encoder_prefix(model)
    targets = encoder_linears(model) if recipe.target_modules is None else list(recipe.target_modules)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=cast(int, recipe.alpha), lora_dropout=recipe.dropout, target_modules=targets
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise RecordError(f"model.lora.target_modules: {error}") from None
    for name, parameter in adapted.named_parameters():
        if prefix and not plain_name(name).startswith(prefix):
            parameter.requires_grad_(True)
    if (saved := getattr(model, SAVED_ADAPTERS, None)) is not None:
        load_adapters(adapted, saved, recipe)
        delattr(model, SAVED_ADAPTERS)
    return adapted


def merge_adapters(model: nn.Module) -> PreTrainedModel:
    """Return the plain model, or a copy with the adapters merged into its weights."""
    if not has_adapters(model):
        return plain_model(model)
    return cast(Any, copy.deepcopy(unwrap_model(model))).merge_and_unload()


def trained_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules that the pretrained model lacks or has with other weights.

    These are the modules of the head and those of `initialized_tensors`; containers are replaced by their modules,
    because peft cannot wrap them.
    """
    prefix, modules = encoder_prefix(model), dict(model.named_modules())
    children = [name for name, _ in model.named_children() if prefix and not f"{name}.".startswith(prefix)]
    owners = {tensor.rpartition(".")[0] for tensor in getattr(model, INITIALIZED, ())}
    found = [part for name in children for part in callable_modules(name, modules[name])]
    return found + sorted(owner for owner in owners if owner.startswith(prefix) and owner in modules)


def callable_modules(name: str, module: nn.Module) -> list[str]:
    """Return the name of a module, or those of the modules in a container."""
    if not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [name] if module.state_dict() else []
    return [part for key, child in module.named_children() for part in callable_modules(f"{name}.{key}", child)]


@contextmanager
def modules_to_save(adapted: Any) -> Iterator[None]:
    """Add the trained modules to peft's `modules_to_save`, for the duration of a save."""
    from peft.utils.other import ModulesToSaveWrapper

    model, config = adapted.get_base_model(), adapted.active_peft_config
    originals = {name: model.get_submodule(name) for name in trained_modules(model)}
    for name, module in originals.items():
        model.set_submodule(name, ModulesToSaveWrapper(module, adapted.active_adapter))
    config.modules_to_save = list(originals)
    try:
        yield
    finally:
        config.modules_to_save = None
        for name, module in originals.items():
            model.set_submodule(name, module)


def save_model(model: nn.Module, directory: str | Path, merge: bool = True) -> None:
    """Write a model directory for `from_pretrained` of the model's Auto class.

    Without `merge`, a model with adapters is saved as the original encoder, the trained head, and peft's adapter
    files, which have the trained head too. transformers loads this directory if peft is installed; peft loads it on
    the pretrained model (`base_model_name_or_path`) with this directory's config.
    """
    if merge or not has_adapters(model):
        merge_adapters(model).save_pretrained(directory)
        return
    adapted: Any = copy.deepcopy(unwrap_model(model))
    card = Path(directory) / "README.md"
    had_card = card.exists()
    with modules_to_save(adapted):
        adapted.save_pretrained(directory)
    settings = Path(directory) / "adapter_config.json"
    stored = json.loads(settings.read_text(encoding="utf-8"))
    base = stored.get("base_model_name_or_path") or ""  # peft loads it from here or from the Hub
    if os.path.isabs(base) and Path(base).is_relative_to(Path.cwd()):
        stored["base_model_name_or_path"] = Path(base).relative_to(Path.cwd()).as_posix()
    known = publishable(stored)
    if known["base_model_name_or_path"] != stored["base_model_name_or_path"]:
        logger.warning_once(
            "%s names the pretrained model '%s', as its path outside of the working directory is private: with peft, "
            "load the pretrained model from '%s', or from the Hub.",
            settings.name,
            known["base_model_name_or_path"],
            base,
        )
    settings.write_text(json.dumps(known, indent=2, sort_keys=True), encoding="utf-8")
    if not had_card:
        card.unlink(missing_ok=True)  # peft's template with placeholders
    adapted.unload().save_pretrained(directory)
