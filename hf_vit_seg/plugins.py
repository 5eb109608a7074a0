"""Architectures are plugins: frozen records behind the entry point group `hf_vit_seg.architectures`.

The built-in ones are declared in this package's own pyproject.toml exactly as a stranger's would be; there is no
second way in. A plugin that fails to load is reported by name and never takes the others down.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources.abc import Traversable
from typing import Any

import transformers
import yaml
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

GROUP = "hf_vit_seg.architectures"
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
    row per published size. `conversions` name the sources of `hf-vit-seg convert` as "module:attribute", so that
    they are imported only when somebody converts.
    """

    name: str
    config: type[PreTrainedConfig]
    models: Mapping[str, type[PreTrainedModel]]
    image_processor: Mapping[str, type]
    variants: Traversable
    conversions: tuple[str, ...] = ()

    def variant_rows(self) -> dict[str, dict[str, Any]]:
        """The published sizes by name: config fields, and `parameters`, a golden count.

        `counted` names the model that it counts, {model: auto class, num_labels}; without it that is the
        segmentation model with 150 classes.
        """
        return yaml.safe_load(self.variants.read_text(encoding="utf-8")) or {}

    def variant_config(self, variant: str, **fields: Any) -> PreTrainedConfig:
        """The config of a published size, with other `fields` (such as `num_labels`) set on top."""
        rows = self.variant_rows()
        if variant not in rows:
            raise ValueError(f"{self.name} has no variant '{variant}'; it has {', '.join(rows)}")
        row = {field: value for field, value in rows[variant].items() if field not in NOT_FIELDS}
        return self.config(**(row | fields))


@dataclass(frozen=True)
class Plugin:
    """An entry point found in the environment: what it gave, or why it gave nothing."""

    name: str
    target: str
    origin: str
    architecture: Architecture | None
    error: str | None = None


def load(entry: EntryPoint) -> Plugin:
    """Load one entry point; whatever it raises is kept as the plugin's error."""
    origin = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"
    try:
        architecture = entry.load()
        if not isinstance(architecture, Architecture):
            raise TypeError(f"expected a hf_vit_seg.plugins.Architecture, found {type(architecture).__name__}")
        register(architecture)
    except Exception as error:  # a stranger's import may raise anything, and must not take the others down
        reason = f"{type(error).__name__}: {error}"
        logger.warning("hf_vit_seg plugin '%s' (%s, %s) is skipped: %s", entry.name, entry.value, origin, reason)
        return Plugin(entry.name, entry.value, origin, None, reason)
    return Plugin(entry.name, entry.value, origin, architecture)


@cache
def plugins() -> tuple[Plugin, ...]:
    """Every installed plugin, loaded and registered once per process, in the order of their names."""
    found = sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))
    unique = {(entry.name, entry.value): entry for entry in found}  # an editable install can be listed twice
    return tuple(load(entry) for entry in unique.values())


def architectures() -> dict[str, Architecture]:
    """The architectures that loaded, by name."""
    return {p.architecture.name: p.architecture for p in plugins() if p.architecture is not None}


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
