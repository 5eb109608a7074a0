"""Prepare a model for training: adapters, frozen parameters, gradient checkpointing, torch.compile."""

from torch import nn
from transformers import PreTrainedModel

from hf_vit_seg.models.recomputation import update_statistics_once
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.recipe.schema import ModelRecipe

from .adapters import add_adapters
from .freezing import freeze, hold_frozen_encoder, hold_frozen_norms


def prepare_for_training(model: PreTrainedModel, recipe: ModelRecipe) -> nn.Module:
    """Change the model in place and return it, wrapped by peft if the recipe has LoRA.

    Call this before the optimizer is built and before `Accelerator.prepare`. RecordError for settings that the model
    does not support.
    """
    if recipe.lora is not None and recipe.from_pretrained is None:
        raise RecordError("model.lora: adapters need a pretrained model; set model.from_pretrained")
    if recipe.gradient_checkpointing:
        checkpoint_activations(model)
    prepared = model if recipe.lora is None else add_adapters(model, recipe.lora)
    freeze(prepared, recipe.freeze)
    hold_frozen_norms(prepared)
    hold_frozen_encoder(prepared)
    if recipe.compile:
        prepared.compile()  # in place, which keeps parameter names
    return prepared.train()


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Enable gradient checkpointing of the encoder's layers."""
    if not model.supports_gradient_checkpointing:
        raise RecordError(f"model.gradient_checkpointing: {type(model).__name__} does not support it")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    update_statistics_once(model)
