"""The model and the image processor of a run, from scratch or pretrained, for its classes and bands."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging

from hf_vit_seg.data.statistics import Statistics
from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.inference.loading import AUTO_CLASSES
from hf_vit_seg.models.errors import RENAMED_FIELDS
from hf_vit_seg.plugins import Architecture, architectures
from hf_vit_seg.records import RecordError, nearest, unknown
from hf_vit_seg.training.recipe.schema import ModelRecipe, Recipe

from .normalization import norm_fields, norm_notes
from .pretrained import BareBackbone, Checkpoint, fitted_model, wearers
from .processor import build_processor, processor_notes
from .shape_probing import band_configs, set_bands, set_classes

BACKBONE_FIELDS = ("out_features", "out_indices")
IGNORE_FIELD = "semantic_loss_ignore_index"
SETTLED = {  # config fields that follow from elsewhere
    "id2label": "data.classes",
    "label2id": "data.classes",
    "num_labels": "data.classes",
    "num_channels": "the images' bands",
    IGNORE_FIELD: "the label map",
}


@dataclass(frozen=True)
class BuiltModel:
    """What is trained, the processor that is saved with it, and a sentence on every tensor that began anew."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    notes: list[str]


def output_names(recipe: Recipe, names: Sequence[str]) -> tuple[str, ...]:
    """The names of a model's outputs: all classes, or of two the second with `model.single_output`."""
    if not recipe.model.single_output:
        return tuple(names)
    if recipe.task != "segmentation" or len(names) != 2:
        raise RecordError(
            f"model.single_output is for segmentation into two classes, the second of which is the output; this is "
            f"{recipe.task} into {len(names)}"
        )
    return (names[1],)


def build_model(
    recipe: Recipe,
    names: Sequence[str],
    ignore_index: int = 255,
    bands: int = 3,
    palette: Sequence[Sequence[int]] | None = None,
    measured: Statistics | None = None,
) -> BuiltModel:
    """The recipe's model for these classes (keypoints), in float32, and its image processor.

    Fresh weights depend on the recipe's seed alone. `measured` are those of the training images, for a recipe whose
    processor asks for them. RecordError for what does not fit.
    """
    with torch.random.fork_rng(devices=[]), transformers_silent():
        torch.manual_seed(recipe.seed)
        build = new_model if recipe.model.from_pretrained is None else pretrained_model
        model, notes = build(recipe, output_names(recipe, names), ignore_index, bands)
        processor = build_processor(recipe, model.config, bands, palette, measured)
    return BuiltModel(model, processor, [*notes, *norm_notes(recipe.model.norm, model), *processor_notes(recipe)])


@contextmanager
def transformers_silent() -> Iterator[None]:
    """Without progress bars and transformers' tables of loaded tensors: the notes tell all of that in words."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def new_model(recipe: Recipe, names: Sequence[str], ignore_index: int, bands: int) -> tuple[PreTrainedModel, list[str]]:
    """A variant of an architecture, initialized."""
    architecture, auto_class = wanted_architecture(recipe), AUTO_CLASSES[recipe.task]
    assert recipe.model.variant is not None  # the record sees to it
    try:
        config = architecture.variant_config(recipe.model.variant)
    except HfVitSegError as error:
        raise RecordError(f"model.variant: {error}") from None
    config = settled_config(config, recipe.model, names, ignore_index, bands)
    model = getattr(transformers, auto_class).from_config(config, dtype=torch.float32)
    return model, [f"{architecture.name} {recipe.model.variant} from scratch"]


def wanted_architecture(recipe: Recipe) -> Architecture:
    """The plugin that the recipe names, if it has a model for the task."""
    known, name = architectures(), recipe.model.architecture or ""
    if name not in known:
        hint = nearest(name, sorted(known))
        raise RecordError(f"model.architecture: there is no architecture called '{name}'; {hint}")
    if AUTO_CLASSES[recipe.task] not in known[name].models:
        able = [each.name for each in known.values() if AUTO_CLASSES[recipe.task] in each.models]
        raise RecordError(f"model.architecture: {name} has no model for {recipe.task}; {', '.join(able)} has")
    return known[name]


def pretrained_model(
    recipe: Recipe, names: Sequence[str], ignore_index: int, bands: int
) -> tuple[PreTrainedModel, list[str]]:
    """A directory's or Hub id's model, fitted; with an architecture, that one's head on a bare backbone."""
    path = recipe.model.from_pretrained or ""
    try:
        stored, checkpoint = AutoConfig.from_pretrained(path), Checkpoint(path, AUTO_CLASSES[recipe.task])
        if recipe.model.architecture is not None and type(stored) is not wanted_architecture(recipe).config:
            stored, checkpoint = bare_backbone(recipe, path)
    except RecordError:
        raise
    except (OSError, ValueError) as error:
        reason = error_sentence(error, short=True)
        raise RecordError(f"model.from_pretrained: {path} cannot be loaded: {reason}") from None
    target = settled_config(stored, recipe.model, names, ignore_index, bands)
    return fitted_model(checkpoint, stored, target, recipe.model.copy_classes)


def bare_backbone(recipe: Recipe, path: str) -> tuple[PreTrainedConfig, BareBackbone]:
    """A backbone's config with the recipe's architecture around it, and the checkpoint."""
    architecture, auto_class = wanted_architecture(recipe), AUTO_CLASSES[recipe.task]
    if architecture.name not in wearers(auto_class):
        raise RecordError(
            f"model.architecture: {architecture.name} puts no head on other checkpoints; leave it out, or take "
            f"{' or '.join(wearers(auto_class))} for a bare backbone"
        )
    wearer: Any = architecture.models[auto_class]
    return wearer.config_from_backbone(path), BareBackbone(path, auto_class, wearer)


def settled_config(
    config: PreTrainedConfig, recipe: ModelRecipe, names: Sequence[str], ignore_index: int, bands: int
) -> PreTrainedConfig:
    """A new config with the recipe's fields and what the data settles: classes, ignored label and bands."""
    known = {field.name for field in fields(type(config))}
    for name in recipe.fields:
        if name in SETTLED:
            raise RecordError(f"model.fields.{name} follows from {SETTLED[name]}, and is not given here")
        if name not in known:
            raise RecordError(unknown(f"model.fields.{name}", name, sorted(known), RENAMED_FIELDS))
    try:
        given = {name: merged_field(config, name, value) for name, value in recipe.fields.items()}
        settled = type(config).from_dict({**stored_fields(config), **given, **norm_fields(recipe.norm, type(config))})
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = error_sentence(error.__cause__ or error)
        raise RecordError(f"model.fields: {reason}") from None
    set_classes(settled, names)
    if not band_configs(settled) and bands != 3:
        raise RecordError(f"{type(config).__name__} has no num_channels: its images have 3 bands, these have {bands}")
    set_bands(settled, bands)
    if hasattr(settled, IGNORE_FIELD):
        setattr(settled, IGNORE_FIELD, ignore_index)
    return settled


def merged_field(config: PreTrainedConfig, name: str, value: Any) -> Any:
    """A field's new value; fields of a nested config stand over those that it has, unless it is another model's."""
    inner = getattr(config, name)
    if not (isinstance(inner, PreTrainedConfig) and isinstance(value, dict)) or "model_type" in value:
        return value
    known = {field.name for field in fields(type(inner))}
    for nested in value.keys() - known:
        raise RecordError(unknown(f"model.fields.{name}.{nested}", nested, sorted(known), RENAMED_FIELDS))
    return {**inner.to_dict(), **value}


def stored_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """A config's fields, but for the stages of a backbone where these are the default, which follows its depth."""
    found = config.to_dict()
    stages = found.get("stage_names")
    if stages and found.get("out_features") == stages[-1:]:
        return {name: value for name, value in found.items() if name not in ("stage_names", *BACKBONE_FIELDS)}
    return found
