"""LoRA (arXiv 2106.09685) through peft: low-rank adapters in the encoder's linear layers, and a fully trained head.

The head is not in peft's `modules_to_save`: these are copies behind wrappers, which break transformers' loading of
adapters and lists of modules. The head is not frozen, and is saved with the model, including its BatchNorm statistics.
BatchNorms of the encoder do not change.
"""

import copy
import json
import re
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from hf_vit_seg.local_paths import publishable
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.recipe.schema import LoraRecipe

from .parameter_names import encoder_layers, encoder_prefix, has_adapters, plain_model, plain_name, unwrap_model


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

    RecordError if `target_modules` match no layer.
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
    return adapted


def merge_adapters(model: nn.Module) -> PreTrainedModel:
    """Return the plain model, or a copy with the adapters merged into its weights."""
    if not has_adapters(model):
        return plain_model(model)
    return cast(Any, copy.deepcopy(unwrap_model(model))).merge_and_unload()


def save_model(model: nn.Module, directory: str | Path, merge: bool = True) -> None:
    """Write a model directory for `from_pretrained` of the model's Auto class.

    Without `merge`, a model with adapters is saved as the original encoder, the trained head, and peft's adapter
    files; transformers loads these together if peft is installed.
    """
    if merge or not has_adapters(model):
        merge_adapters(model).save_pretrained(directory)
        return
    adapted: Any = copy.deepcopy(unwrap_model(model))
    card = Path(directory) / "README.md"
    had_card = card.exists()
    adapted.save_pretrained(directory)
    settings = Path(directory) / "adapter_config.json"
    known = publishable(json.loads(settings.read_text(encoding="utf-8")))  # peft stores the base model's path
    settings.write_text(json.dumps(known, indent=2, sort_keys=True), encoding="utf-8")
    if not had_card:
        card.unlink(missing_ok=True)  # peft's template with placeholders
    adapted.unload().save_pretrained(directory)
