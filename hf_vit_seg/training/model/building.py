"""Build the model and the image processor of a run, from scratch or pretrained, for its classes and channels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from hf_vit_seg.conversion.convert import Conversion
from hf_vit_seg.conversion.errors import ConversionError
from hf_vit_seg.conversion.in_memory import convert_pretrained, describe_conversion
from hf_vit_seg.data.statistics import Statistics
from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.loading.errors import INVALID_FILES
from hf_vit_seg.loading.models import AUTO_CLASSES, label_names
from hf_vit_seg.models.errors import RENAMED_FIELDS
from hf_vit_seg.models.layers import OBJECT_HEADS
from hf_vit_seg.models.recomputation import update_statistics_once
from hf_vit_seg.plugins import Architecture, architectures
from hf_vit_seg.records import RecordError, nearest, unknown_setting
from hf_vit_seg.training.recipe.keypoints import flip_pairs
from hf_vit_seg.training.recipe.schema import ModelRecipe, Recipe

from .adapters import add_adapters
from .freezing import freeze, lock_frozen_encoder, lock_frozen_norms
from .normalization import norm_fields, norm_notes
from .parameter_names import SAVED_ADAPTERS
from .pretrained import BareBackbone, Checkpoint, ConvertedModel, adapt_pretrained_model, head_architectures
from .processor import build_processor, processor_notes
from .shape_probing import channel_configs, set_channels, set_classes

BACKBONE_FIELDS = ("out_features", "out_indices")
IGNORE_FIELD = "semantic_loss_ignore_index"
PAIRS_FIELD = "pose_flip_pairs"
OWN_HEAD = "all_mlp"  # head of architectures without a choice of pixel heads
DERIVED_FIELDS = {  # config fields that a recipe cannot set, and what determines them
    "id2label": "data.classes",
    "label2id": "data.classes",
    "num_labels": "data.classes",
    "num_channels": "the images' channels",
    IGNORE_FIELD: "the label map",
}


@dataclass(frozen=True)
class BuiltModel:
    """The model, its image processor, and notes for the log, such as which tensors are newly initialized."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    notes: list[str]


def output_names(recipe: Recipe, names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a model's outputs: all classes, or only the second of two with `model.single_output`."""
    if not recipe.model.single_output:
        return tuple(names)
    if recipe.task != "segmentation" or len(names) != 2:
        raise RecordError(
            f"model.single_output: found {recipe.task} with {len(names)} classes, expected segmentation with two"
        )
    return (names[1],)


def build_model(
    recipe: Recipe,
    names: Sequence[str],
    ignore_index: int = 255,
    channels: int = 3,
    palette: Sequence[Sequence[int]] | None = None,
    statistics: Statistics | None = None,
) -> BuiltModel:
    """Build the recipe's model in float32 for these classes (keypoints), and its image processor.

    New weights depend only on the recipe's seed. `statistics` of the training images are needed if the recipe's
    processor has fields set to "computed". RecordError for settings that do not fit the model or the data.
    """
    with torch.random.fork_rng(devices=[]), silence_transformers():
        torch.manual_seed(recipe.seed)
        outputs, converted = output_names(recipe, names), convert_initial_model(recipe)
        if recipe.model.from_pretrained is None:
            model, notes = new_model(recipe, outputs, ignore_index, channels)
        else:
            model, notes = load_pretrained_model(recipe, outputs, ignore_index, channels, converted)
        stored = None if converted is None else converted.processor
        processor = build_processor(recipe, model.config, channels, palette, statistics, stored)
    notes += norm_notes(recipe.model.norm, model)
    return BuiltModel(model, processor, notes if converted else [*notes, *processor_notes(recipe)])


def convert_initial_model(recipe: Recipe) -> Conversion | None:
    """Convert the recipe's initial model, if it has another format; RecordError if that fails."""
    path = recipe.model.from_pretrained
    if path is None or not recipe.model.convert:
        return None
    try:
        return convert_pretrained(path)
    except ConversionError as error:
        raise RecordError(f"model.from_pretrained: {error}") from None


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Disable transformers' progress bars and tables of loaded tensors, which the notes replace."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def new_model(
    recipe: Recipe, names: Sequence[str], ignore_index: int, channels: int
) -> tuple[PreTrainedModel, list[str]]:
    """Build a variant of an architecture with new weights."""
    architecture, auto_class = find_architecture(recipe), AUTO_CLASSES[recipe.task]
    assert recipe.model.variant is not None  # checked by the record
    try:
        config = architecture.variant_config(recipe.model.variant)
    except HfVitSegError as error:
        raise RecordError(f"model.variant: {error}") from None
    config = complete_config(config, recipe, names, ignore_index, channels)
    model = getattr(transformers, auto_class).from_config(config, dtype=torch.float32)
    return model, [f"{architecture.name} {recipe.model.variant} from scratch"]


def find_architecture(recipe: Recipe) -> Architecture:
    """Look up the recipe's architecture; RecordError if it is unknown or has no model for the task."""
    registered, name = architectures(), recipe.model.architecture or ""
    if name not in registered:
        hint = nearest(name, sorted(registered))
        raise RecordError(f"model.architecture: unknown architecture '{name}'; {hint}")
    if AUTO_CLASSES[recipe.task] not in registered[name].models:
        able = [
            architecture.name
            for architecture in registered.values()
            if AUTO_CLASSES[recipe.task] in architecture.models
        ]
        raise RecordError(f"model.architecture: {name} has no model for {recipe.task}; choose from {', '.join(able)}")
    return registered[name]


def load_pretrained_model(
    recipe: Recipe, names: Sequence[str], ignore_index: int, channels: int, converted: Conversion | None = None
) -> tuple[PreTrainedModel, list[str]]:
    """Load and adapt a model from a directory or the Hub; with `model.architecture`, add its head to a backbone.

    `converted` is the model of a checkpoint in another format.
    """
    path, auto_class = recipe.model.from_pretrained or "", AUTO_CLASSES[recipe.task]
    try:
        if converted is None:
            stored = AutoConfig.from_pretrained(path)
            checkpoint = Checkpoint(path, auto_class, recipe.model.lora is not None)
        else:
            stored = converted.model.config
            checkpoint = ConvertedModel(path, auto_class, state_dict=converted.model.state_dict())
        if recipe.model.architecture is not None and type(stored) is not find_architecture(recipe).config:
            stored, checkpoint = load_bare_backbone(recipe, path)
    except RecordError:
        raise
    except INVALID_FILES as error:
        reason = error_sentence(error, short=True)
        raise RecordError(f"model.from_pretrained: {path} cannot be loaded: {reason}") from None
    target = complete_config(stored, recipe, names, ignore_index, channels)
    model, notes = adapt_pretrained_model(checkpoint, stored, target, recipe.model.copy_classes)
    if isinstance(checkpoint, ConvertedModel) and converted is not None:
        notes.insert(0, describe_conversion(path, converted))
    if hasattr(model, SAVED_ADAPTERS):
        notes.append("the adapters of the checkpoint are trained further")
    return model, notes


def load_bare_backbone(recipe: Recipe, path: str) -> tuple[PreTrainedConfig, BareBackbone]:
    """Return a config of the recipe's architecture with the backbone's config inside, and the checkpoint."""
    architecture, auto_class = find_architecture(recipe), AUTO_CLASSES[recipe.task]
    if architecture.name not in head_architectures(auto_class):
        raise RecordError(
            f"model.architecture: {architecture.name} cannot load the backbone of another architecture; remove the "
            f"setting, or choose {' or '.join(head_architectures(auto_class))}"
        )
    head_class: Any = architecture.models[auto_class]
    return head_class.config_from_backbone(path), BareBackbone(path, auto_class, head_class=head_class)


def complete_config(
    config: PreTrainedConfig, recipe: Recipe, names: Sequence[str], ignore_index: int, channels: int
) -> PreTrainedConfig:
    """Return a new config with the recipe's fields, and with classes, ignored label and channels of the data."""
    known = {field.name for field in fields(type(config))}
    for name in recipe.model.fields:
        if name in DERIVED_FIELDS:
            raise RecordError(f"model.fields.{name} cannot be set: it follows from {DERIVED_FIELDS[name]}")
        if name == "decode_head" and not has_head(config, recipe.model.fields[name]):
            raise RecordError(unknown_head(config, recipe.model.fields[name]))
        if name not in known:
            raise RecordError(unknown_setting(f"model.fields.{name}", name, sorted(known), RENAMED_FIELDS))
    try:
        given = {name: merge_field(config, name, value) for name, value in recipe.model.fields.items()}
        given |= norm_fields(recipe.model.norm, type(config)) | keypoint_fields(config, recipe, names)
        settled = type(config).from_dict({**config_fields(config), **given})
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = error_sentence(error.__cause__ or error)
        raise RecordError(f"model.fields: {reason}") from None
    set_classes(settled, names)
    if not channel_configs(settled) and channels != 3:
        raise RecordError(
            f"{type(config).__name__} has no num_channels: its images have 3 channels, but the data have {channels}"
        )
    set_channels(settled, channels)
    if hasattr(settled, IGNORE_FIELD):
        setattr(settled, IGNORE_FIELD, ignore_index)
    return settled


def has_choice(config_class: Any) -> bool:
    """Return whether the pixel heads of an architecture can be chosen: others have only the one of their paper."""
    return getattr(config_class(), "decode_head", OWN_HEAD) != OWN_HEAD


def has_head(config: PreTrainedConfig, name: Any) -> bool:
    """Return whether an architecture may have a head: a choice of pixel heads, its own one, or one that predicts
    objects.
    """
    return has_choice(type(config)) or (hasattr(config, "decode_head") and name in (OWN_HEAD, *OBJECT_HEADS))


def unknown_head(config: PreTrainedConfig, name: Any) -> str:
    """Format the message for a head that an architecture without a choice of pixel heads does not have."""
    choices = [architecture.name for architecture in architectures().values() if has_choice(architecture.config)]
    names = [OWN_HEAD, *OBJECT_HEADS] if hasattr(config, "decode_head") else [OWN_HEAD]
    return (
        f"model.fields.decode_head: {config.model_type} has no head '{name}'; {nearest(str(name), names, 'heads')}; "
        f"the architectures with a choice of heads are {', '.join(choices)}"
    )


def keypoint_fields(config: PreTrainedConfig, recipe: Recipe, names: Sequence[str]) -> dict[str, Any]:
    """Return the flip pairs of a pose model's config: those of model.fields, of the data, or of the stored model.

    The stored pairs are kept if the keypoints are the same and were not found by their names. RecordError for pairs
    that contradict each other, and for a flip test without pairs.
    """
    if recipe.task != "pose" or not hasattr(config, PAIRS_FIELD):
        return {}
    pairs, own = flip_pairs(recipe, names), recipe.model.fields.get(PAIRS_FIELD)
    if own is not None:
        if recipe.data.flip_pairs is not None and unordered_pairs(own) != unordered_pairs(pairs):
            raise RecordError(
                f"data.flip_pairs and model.fields.{PAIRS_FIELD} differ: remove one of them (the first sets the second)"
            )
        return {}
    stored = getattr(config, PAIRS_FIELD)
    if pairs is None and label_names(config) == list(names) and stored != getattr(type(config)(), PAIRS_FIELD):
        pairs = stored
    if pairs is None and recipe.model.fields.get("pose_flip_test", getattr(config, "pose_flip_test", False)):
        raise RecordError(
            f"pose_flip_test needs the left and right keypoints, but no names differ by left and right in "
            f"{', '.join(names)}: set data.flip_pairs, or model.fields.pose_flip_test to false"
        )
    return {PAIRS_FIELD: pairs or ()}


def unordered_pairs(pairs: Any) -> set[frozenset[int]]:
    """Convert pairs to a set of unordered pairs, for comparison."""
    return {frozenset(pair) for pair in pairs or ()}


def merge_field(config: PreTrainedConfig, name: str, value: Any) -> Any:
    """Return a field's new value; a nested config is updated field by field, unless `model_type` replaces it."""
    inner = getattr(config, name)
    if not (isinstance(inner, PreTrainedConfig) and isinstance(value, dict)) or "model_type" in value:
        return value
    config_fields = {field.name for field in fields(type(inner))}
    for nested in value.keys() - config_fields:
        raise RecordError(
            unknown_setting(f"model.fields.{name}.{nested}", nested, sorted(config_fields), RENAMED_FIELDS)
        )
    return {**inner.to_dict(), **value}


def config_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a config's fields, without a backbone's default stages, because these depend on its depth."""
    fields = config.to_dict()
    stages = fields.get("stage_names")
    if stages and fields.get("out_features") == stages[-1:]:
        return {name: value for name, value in fields.items() if name not in ("stage_names", *BACKBONE_FIELDS)}
    return fields


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
    lock_frozen_norms(prepared)
    lock_frozen_encoder(prepared)
    if recipe.compile:
        prepared.compile()  # in place, which keeps parameter names
    return prepared.train()


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Enable gradient checkpointing of the encoder's layers."""
    if not model.supports_gradient_checkpointing:
        raise RecordError(f"model.gradient_checkpointing: {type(model).__name__} does not support it")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    update_statistics_once(model)
