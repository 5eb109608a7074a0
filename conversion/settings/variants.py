"""Find the variant of a config: its row in an architecture's table of published sizes."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

from hf_vit_seg.plugins import NOT_FIELDS, Architecture
from hf_vit_seg.text_files import parse

CUSTOM = "custom"
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")


def rows(architecture: Architecture) -> dict[str, dict[str, Any]]:
    """Read the published sizes, by name."""
    content = parse(architecture.variants.read_text(encoding="utf-8")) or {}
    return {
        name: {field: value for field, value in row.items() if field not in NOT_FIELDS} for name, row in content.items()
    }


def builtin_value(value: Any) -> Any:
    """Convert tuples to lists, so that they compare equal."""
    return list(value) if isinstance(value, list | tuple) else value


def find_variant(
    architecture: Architecture, config: PreTrainedConfig, inferred: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Return the variant's name, or "custom", and its scalar fields with other values in the config.

    Fields with a value per stage, and the sizes of the transformer, must be equal. Other fields may differ (such as
    the decoder width); fields of parts that the checkpoint does not have are not compared. Of several rows, the one
    with the fewest differences and most equal fields is returned.
    """
    fitting = []
    for name, row in rows(architecture).items():
        differing = {
            field: value
            for field, value in row.items()
            if builtin_value(getattr(config, field)) != builtin_value(value)
        }
        if not any(isinstance(value, list) or field in SIZES for field, value in differing.items()):
            relevant = {field: value for field, value in differing.items() if field in inferred}
            agreeing = [field for field in row if field not in differing and (field in inferred or not inferred)]
            fitting.append(((len(relevant), -len(agreeing), len(differing)), name, relevant))
    _, name, relevant = min(fitting, key=lambda entry: entry[0], default=((), CUSTOM, {}))
    return name, relevant
