"""Architectures are plugins: frozen records in the entry point group `hf_vit_seg.architectures`.

The built-in ones are declared in this package's pyproject.toml in the same way. A plugin that fails to load is logged
and skipped. Heads, losses, data sources, transforms and formats are plugins too: `plugin_listing` has all groups.

The package imports this module, so that it imports torch and transformers only within functions.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources.abc import Traversable
from typing import TYPE_CHECKING, Any

from hf_vit_seg.errors import HfVitSegError

from .entry_points import PREFIX, HeadClass, Plugin, implements, load_all, qualified_name
from .registration import lock_registration

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from hf_vit_seg.models.layers import ConvertedCheckpoint

GROUP = PREFIX + "architectures"
HEADS_GROUP = PREFIX + "heads"
BACKENDS = frozenset({"torchvision", "pil"})
UNIVERSAL_TASKS = frozenset({"instance", "panoptic"})  # tasks whose models find objects
# Keys of `variants` that are not config fields: the expected number of parameters, and the model it refers to.
NOT_FIELDS = ("parameters", "counted")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The complete description of an architecture.

    `models` maps the name of an Auto class ("AutoModelForSemanticSegmentation") to the class that it builds;
    `image_processor` maps both backends, "torchvision" and "pil", to a class, and `universal_image_processor` to that
    of models that find objects, whose post-processing differs. `variants` is a YAML file with a row per
    published size. `conversions` lists the sources of `hf-vit-seg convert`, and `forms` the tables of export forms
    (`hf_vit_seg.export.forms`), as "module:attribute"; these are imported only when needed.
    """

    name: str
    config: "type[PreTrainedConfig]"
    models: "Mapping[str, type[PreTrainedModel]]"
    image_processor: Mapping[str, type]
    variants: Traversable
    conversions: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    universal_image_processor: Mapping[str, type] = field(default_factory=dict)

    def processor_classes(self, task: str | None = None) -> Mapping[str, type]:
        """Return the classes of the image processor of a task by backend."""
        return self.universal_image_processor if task in UNIVERSAL_TASKS else self.image_processor

    def all_processors(self) -> "tuple[type, ...]":
        """Return the classes of all image processors."""
        return (*self.image_processor.values(), *self.universal_image_processor.values())

    def variant_rows(self) -> dict[str, dict[str, Any]]:
        """Read the published sizes by name: config fields, and `parameters`, the expected number of parameters.

        `counted` is the model it refers to, {model: auto class, num_labels}; by default the segmentation model with
        150 classes.
        """
        from .text_files import parse

        return parse(self.variants.read_text(encoding="utf-8")) or {}

    def variant_config(self, variant: str, **fields: Any) -> "PreTrainedConfig":
        """Build the config of a published size (ignoring case), with other `fields` such as `num_labels`."""
        from .records import nearest

        rows = {name.lower(): row for name, row in self.variant_rows().items()}
        if variant.lower() not in rows:
            hint = nearest(variant.lower(), self.variant_rows(), "its variants")
            raise HfVitSegError(f"unknown variant '{variant}' of {self.name}; {hint}")
        row = {field: value for field, value in rows[variant.lower()].items() if field not in NOT_FIELDS}
        return self.config(**(row | fields))


@cache
def plugins() -> tuple[Plugin, ...]:
    """Load and register every installed architecture, once per process; failed ones have an error."""
    architectures: list[Architecture] = []

    def accept(value: Any) -> None:
        if not isinstance(value, Architecture):
            raise TypeError(f"expected an hf_vit_seg.plugins.Architecture, found {type(value).__name__}")
        check_architecture(value, architectures)
        register_architecture(value)
        architectures.append(value)

    from hf_vit_seg.models.layers import CONVERTERS

    with lock_registration():
        CONVERTERS[:] = [convert_checkpoint]
        heads()
        return log_failures(load_all(GROUP, accept))


def convert_checkpoint(path: Any, **hub: Any) -> "ConvertedCheckpoint | None":
    """Convert a checkpoint in another format for a model's `from_pretrained`; None if it cannot be converted."""
    from hf_vit_seg.conversion.in_memory import convert_pretrained, describe_conversion
    from hf_vit_seg.models.layers import ConvertedCheckpoint

    converted = convert_pretrained(path, **hub)
    if converted is None:
        return None
    logger.warning(describe_conversion(path, converted))
    return ConvertedCheckpoint(converted.model.config, converted.model.state_dict())


def check_architecture(architecture: Architecture, architectures: Sequence[Architecture]) -> None:
    """Raise HfVitSegError for an architecture that cannot be registered, or conflicts with another."""
    import transformers

    if architecture.name in [other.name for other in architectures]:
        raise HfVitSegError(f"an architecture named '{architecture.name}' already exists")
    model_type = architecture.config.model_type
    if model_type in [other.config.model_type for other in architectures]:
        raise HfVitSegError(f"an architecture with model_type '{model_type}' already exists")
    if (owner := config_owner(model_type)) not in (None, qualified_name(architecture.config)):
        raise HfVitSegError(
            f"model_type '{model_type}' is already registered with AutoConfig by {owner}; uninstall one of the two "
            "packages, or do not import them in the same process"
        )
    if unknown := [auto for auto in architecture.models if not isinstance(getattr(transformers, auto, None), type)]:
        raise HfVitSegError(f"`models` has unknown Auto classes: {', '.join(unknown)}")
    if set(architecture.image_processor) != BACKENDS:
        found = ", ".join(architecture.image_processor) or "nothing"
        raise HfVitSegError(f"`image_processor` has {found}, expected classes for {' and '.join(sorted(BACKENDS))}")
    if set(architecture.universal_image_processor) not in (set(), BACKENDS):
        found = ", ".join(architecture.universal_image_processor)
        raise HfVitSegError(
            f"`universal_image_processor` has {found}, expected none or classes for {' and '.join(sorted(BACKENDS))}"
        )


def config_owner(model_type: str) -> str | None:
    """Return the class that AutoConfig builds for a model_type, as "module.Class"; None if it knows none."""
    from transformers import CONFIG_MAPPING

    return qualified_name(CONFIG_MAPPING[model_type]) if model_type in CONFIG_MAPPING else None


@cache
def heads() -> tuple[Plugin, ...]:
    """Load and register every installed segmentation head, once per process; failed ones have an error."""
    with lock_registration():
        from hf_vit_seg.models.external_heads import EXTERNAL_HEADS
        from hf_vit_seg.models.segmentation_heads import HEADS

        found = log_failures(load_all(HEADS_GROUP, accept_head, HEADS.keys()))
    EXTERNAL_HEADS.update({plugin.name: plugin.value for plugin in found if plugin.value is not None})
    return found


def accept_head(value: Any) -> None:
    """Raise TypeError unless the value is a module class, and ValueError if its code cannot be saved with models."""
    from torch import nn

    from hf_vit_seg.models.bundled_code import name_conflict

    from .remote_code import copy_obstacle, source_file

    implements(nn.Module, HeadClass)(value)
    if value.forward is nn.Module.forward:
        raise TypeError(f"{value.__name__} does not define `forward(feature_maps)`")
    if reason := copy_obstacle(source_file(value)) or name_conflict(value):
        raise HfVitSegError(f"its code cannot be saved with a model: {reason}")


def log_failures(loaded: tuple[Plugin, ...]) -> tuple[Plugin, ...]:
    """Log a warning for each failed plugin, and return all plugins."""
    for plugin in loaded:
        if plugin.error:
            where = f"{plugin.target}, {plugin.origin}"
            logger.warning("hf_vit_seg plugin '%s' (%s) is skipped: %s", plugin.name, where, plugin.error)
    return loaded


def architectures() -> dict[str, Architecture]:
    """Return the loaded architectures by name."""
    return {plugin.value.name: plugin.value for plugin in plugins() if plugin.value is not None}


def register_image_segmentation(architecture: Architecture) -> None:
    """Let the pipeline "image-segmentation" load the class that a checkpoint names: for objects, or for classes.

    The pipeline also checks class names in copies of tables that registration does not update, the last of which is
    that of universal models, and logs a false error for others (transformers 5.23, image_segmentation.py).
    """
    from transformers.models.auto import modeling_auto

    kinds = [architecture.models.get(f"AutoModelFor{kind}Segmentation") for kind in ("Semantic", "Universal")]
    if not (found := tuple(kind for kind in kinds if kind is not None)):
        return
    names: Any = modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES
    names[architecture.config.model_type] = tuple(model.__name__ for model in found)
    table: Any = modeling_auto.MODEL_FOR_IMAGE_SEGMENTATION_MAPPING
    table.register(architecture.config, found, exist_ok=True)


def register_architecture(architecture: Architecture) -> None:
    """Register an architecture with transformers' Auto classes and pipelines; repeated calls change nothing."""
    import transformers

    from .remote_code import register_code

    model_type = architecture.config.model_type
    transformers.AutoConfig.register(model_type, architecture.config)
    for auto_class, model in architecture.models.items():
        getattr(transformers, auto_class).register(architecture.config, model)
    if model := architecture.models.get("AutoModelForUniversalSegmentation"):
        transformers.AutoModelForInstanceSegmentation.register(architecture.config, model)
    register_image_segmentation(architecture)
    transformers.AutoImageProcessor.register(
        architecture.config, image_processor_classes=dict(architecture.image_processor), exist_ok=True
    )
    if universal := dict(architecture.universal_image_processor):
        # AutoImageProcessor finds the class of a saved processor by its name, under any key, and then takes its backend
        # from the same entry (transformers 5.24), so that each pair of classes needs its own.
        key: Any = universal["torchvision"]
        transformers.AutoImageProcessor.register(key, image_processor_classes=universal, exist_ok=True)
    register_code(architecture.config, architecture.models, architecture.all_processors())
