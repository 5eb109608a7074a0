"""LoRA (arXiv 2106.09685) through peft: the encoder's linear layers get low-rank adapters, the head is trained in full.

The head is no `modules_to_save` of peft's: those are copies behind wrappers, which neither transformers' own loading
of adapters nor a list of modules survives. It is simply not frozen, and saved with the model; so are its BatchNorm
statistics. The encoder's BatchNorms, if it has any, stay as they were.
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

from .parameter_names import encoder_layers, encoder_prefix, has_adapters, plain_model, plain_name, unwrapped


def encoder_linears(model: PreTrainedModel) -> str:
    """A regular expression of the full names of all linear layers inside the encoder's layers."""
    modules = dict(model.named_modules())
    suffixes = {
        name
        for layer in encoder_layers(model)
        for name, module in modules[layer].named_modules()
        if isinstance(module, nn.Linear) and name
    }
    if not suffixes:
        raise RecordError(
            f"model.lora: no linear layers are known in the encoder of {type(model).__name__}; name target_modules"
        )
    choices = "|".join(re.escape(suffix) for suffix in sorted(suffixes))
    return rf"{re.escape(encoder_prefix(model))}(?:.+\.)?\d+\.(?:{choices})"


def with_adapters(model: PreTrainedModel, recipe: LoraRecipe) -> Any:
    """The model as peft's, its encoder frozen but for the adapters; RecordError where they find no layer."""
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


def merged(model: nn.Module) -> PreTrainedModel:
    """The plain model: itself, or a copy with the adapters multiplied in."""
    if not has_adapters(model):
        return plain_model(model)
    return cast(Any, copy.deepcopy(unwrapped(model))).merge_and_unload()


def save_model(model: nn.Module, directory: str | Path, merge: bool = True) -> None:
    """Write a directory that `from_pretrained` of the model's Auto class loads.

    With adapters and without `merge` it holds the encoder as it was before, the trained head, and the adapters as
    peft writes them; transformers puts them in at loading, which needs peft.
    """
    if merge or not has_adapters(model):
        merged(model).save_pretrained(directory)
        return
    adapted: Any = copy.deepcopy(unwrapped(model))
    card = Path(directory) / "README.md"
    had_card = card.exists()
    adapted.save_pretrained(directory)
    settings = Path(directory) / "adapter_config.json"
    known = publishable(json.loads(settings.read_text(encoding="utf-8")))  # peft's names the path of the base
    settings.write_text(json.dumps(known, indent=2, sort_keys=True), encoding="utf-8")
    if not had_card:
        card.unlink(missing_ok=True)  # peft's, with gaps to fill in
    adapted.unload().save_pretrained(directory)
