"""The number of objects that a model can find in an image."""

from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig

from hf_vit_seg.data.labels.segment_classes import SEGMENT_TASKS
from hf_vit_seg.loading.errors import INVALID_FILES
from hf_vit_seg.training.recipe.schema import Recipe

from .building import find_architecture, silence_transformers

AUTO_CLASS = "AutoModelForUniversalSegmentation"


def count_queries(model: nn.Module) -> int | None:
    """Return the number of queries of a model; None for models without queries, which find any number of objects."""
    count = getattr(model.config, "num_queries", None)
    named = (name for name, tensor in model.named_parameters() if tensor.shape[:1] == (count,))
    return count if any("quer" in name for name in named) else None


def recipe_queries(recipe: Recipe) -> int | None:
    """Return the number of queries of a recipe's model from its config; None if unknown or without queries."""
    if recipe.task not in SEGMENT_TASKS:
        return None
    try:
        with silence_transformers(), torch.device("meta"):
            config = initial_config(recipe)
            settled = type(config).from_dict({**config.to_dict(), **recipe.model.fields})
            return count_queries(getattr(transformers, AUTO_CLASS).from_config(settled))
    except (*INVALID_FILES, TypeError):  # train reports what is wrong with the model
        return None


def initial_config(recipe: Recipe) -> Any:
    """Return the config of a recipe's variant or pretrained model."""
    if recipe.model.variant is not None:
        return find_architecture(recipe).variant_config(recipe.model.variant)
    return AutoConfig.from_pretrained(recipe.model.from_pretrained or "")


__all__ = ["count_queries", "recipe_queries"]
