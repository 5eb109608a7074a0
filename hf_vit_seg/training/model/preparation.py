"""From a built model to one that is trained: adapters, frozen parts, checkpointing, compiler."""

from torch import nn
from transformers import PreTrainedModel

from hf_vit_seg.models.recomputation import update_statistics_once
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.recipe.schema import ModelRecipe

from .adapters import with_adapters
from .freezing import freeze, hold_frozen_encoder, hold_frozen_norms


def prepare_for_training(model: PreTrainedModel, recipe: ModelRecipe) -> nn.Module:
    """The same model, changed in place; with LoRA it is wrapped in peft's.

    To be called before the optimizer is built and before accelerate prepares the model. RecordError for what the
    model or the machine cannot do.
    """
    if recipe.lora is not None and recipe.from_pretrained is None:
        raise RecordError("model.lora: adapters need a pretrained model, give model.from_pretrained")
    if recipe.gradient_checkpointing:
        checkpoint_activations(model)
    prepared = model if recipe.lora is None else with_adapters(model, recipe.lora)
    freeze(prepared, recipe.freeze)
    hold_frozen_norms(prepared)
    hold_frozen_encoder(prepared)
    if recipe.compile:
        prepared.compile()  # in place: names of parameters, saving and copying stay as they are
    return prepared.train()


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Compute the encoder's layers a second time in the backward pass instead of keeping their activations."""
    if not model.supports_gradient_checkpointing:
        raise RecordError(f"model.gradient_checkpointing: {type(model).__name__} does not support it")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    update_statistics_once(model)
