"""Architectures are plugins: frozen records behind the entry point group `hf_vit_seg.architectures`.

The built-in ones are declared in this package's own pyproject.toml exactly as a stranger's would be; there is no
second way in. A plugin that fails to load is reported by name and never takes the others down. What else a package may
bring (heads, losses, data sources, transforms, formats) comes the same way: `plugin_listing` has all groups.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources.abc import Traversable
from typing import Any

import transformers
import yaml
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.models.bundled_code import name_conflict
from hf_vit_seg.models.registered_heads import REGISTERED_HEADS
from hf_vit_seg.models.segmentation_heads import HEADS

from .entry_points import PREFIX, Plugin, load_all, subclass_of
from .remote_code import file_of, obstacle, register_code

GROUP = PREFIX + "architectures"
HEADS_GROUP = PREFIX + "heads"
BACKENDS = frozenset({"torchvision", "pil"})
# What a row of `variants` says beside config fields: a golden parameter count, and of which model it is.
NOT_FIELDS = ("parameters", "counted")

# The image-segmentation pipeline checks a copy of this table of names, which registration does not reach, and
# logs a false error for every registered model that is not in it (transformers 5.23, image_segmentation.py).
PIPELINE_NAMES: dict[str, Any] = {
    "AutoModelForSemanticSegmentation": modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """All that the package needs to know of an architecture.

    `models` maps the name of an Auto class ("AutoModelForSemanticSegmentation") to the class it shall build;
    `image_processor` maps both backends, "torchvision" and "pil", to a class. `variants` is a YAML file with a
    row per published size. `conversions` name the sources of `hf-vit-seg convert`, and `forms` the tables of export
    forms (`hf_vit_seg.export.forms`), as "module:attribute": they are imported only to convert or to export.
    """

    name: str
    config: type[PreTrainedConfig]
    models: Mapping[str, type[PreTrainedModel]]
    image_processor: Mapping[str, type]
    variants: Traversable
    conversions: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()

    def variant_rows(self) -> dict[str, dict[str, Any]]:
        """The published sizes by name: config fields, and `parameters`, a golden count.

        `counted` names the model that it counts, {model: auto class, num_labels}; without it that is the
        segmentation model with 150 classes.
        """
        return yaml.safe_load(self.variants.read_text(encoding="utf-8")) or {}

    def variant_config(self, variant: str, **fields: Any) -> PreTrainedConfig:
        """The config of a published size (its name's case aside), with other `fields` such as `num_labels` on top."""
        rows = {name.lower(): row for name, row in self.variant_rows().items()}
        if variant.lower() not in rows:
            raise HfVitSegError(f"{self.name} has no variant '{variant}'; it has {', '.join(self.variant_rows())}")
        row = {field: value for field, value in rows[variant.lower()].items() if field not in NOT_FIELDS}
        return self.config(**(row | fields))


@cache
def plugins() -> tuple[Plugin, ...]:
    """Every installed architecture, loaded and registered once per process, or why it is not."""
    known: list[Architecture] = []

    def accept(value: Any) -> None:
        if not isinstance(value, Architecture):
            raise TypeError(f"expected a hf_vit_seg.plugins.Architecture, found {type(value).__name__}")
        check_architecture(value, known)
        register(value)
        known.append(value)

    return reported(load_all(GROUP, accept))


def check_architecture(architecture: Architecture, known: Sequence[Architecture]) -> None:
    """Refuse, with ValueError, what could not be registered, or would take the place of something known."""
    if architecture.name in [other.name for other in known]:
        raise HfVitSegError(f"there is an architecture called '{architecture.name}' already")
    model_type = architecture.config.model_type
    if model_type in [other.config.model_type for other in known]:
        raise HfVitSegError(f"there is an architecture with the model_type '{model_type}' already")
    if unknown := [auto for auto in architecture.models if not isinstance(getattr(transformers, auto, None), type)]:
        raise HfVitSegError(f"`models` has {', '.join(unknown)}, and transformers no Auto class of that name")
    if set(architecture.image_processor) != BACKENDS:
        found = ", ".join(architecture.image_processor) or "nothing"
        raise HfVitSegError(
            f"`image_processor` has {found} where classes for {' and '.join(sorted(BACKENDS))} are expected"
        )


@cache
def heads() -> tuple[Plugin, ...]:
    """Every installed segmentation head, loaded and put where models find it by name, or why it is not."""
    found = reported(load_all(HEADS_GROUP, accept_head, HEADS.keys()))
    REGISTERED_HEADS.update({plugin.name: plugin.value for plugin in found if plugin.value is not None})
    return found


def accept_head(value: Any) -> None:
    """Refuse what is no module, with TypeError, and with ValueError a head that models could not be saved with."""
    subclass_of(nn.Module)(value)
    if reason := obstacle(file_of(value)) or name_conflict(value):
        raise HfVitSegError(f"its code cannot be saved beside a model: {reason}")


def reported(found: tuple[Plugin, ...]) -> tuple[Plugin, ...]:
    """Plugins as they are, a warning given for each that failed."""
    for plugin in found:
        if plugin.error:
            where = f"{plugin.target}, {plugin.origin}"
            logger.warning("hf_vit_seg plugin '%s' (%s) is skipped: %s", plugin.name, where, plugin.error)
    return found


def architectures() -> dict[str, Architecture]:
    """The architectures that loaded, by name."""
    return {plugin.value.name: plugin.value for plugin in plugins() if plugin.value is not None}


def register(architecture: Architecture) -> None:
    """Make transformers' Auto classes and pipelines know an architecture."""
    model_type = architecture.config.model_type
    AutoConfig.register(model_type, architecture.config)
    for auto_class, model in architecture.models.items():
        getattr(transformers, auto_class).register(architecture.config, model)
        if auto_class in PIPELINE_NAMES:
            PIPELINE_NAMES[auto_class][model_type] = model.__name__
    AutoImageProcessor.register(
        architecture.config, image_processor_classes=dict(architecture.image_processor), exist_ok=True
    )
    register_code(architecture.config, architecture.models, architecture.image_processor.values())
