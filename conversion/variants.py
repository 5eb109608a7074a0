"""Variants: which row of an architecture's table of published sizes a config is."""

from collections.abc import Mapping
from typing import Any

import yaml
from transformers import PreTrainedConfig

from hf_vit_seg.plugins import NOT_FIELDS, Architecture

CUSTOM = "custom"
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")


def rows(architecture: Architecture) -> dict[str, dict[str, Any]]:
    """The published sizes, by name."""
    content = yaml.safe_load(architecture.variants.read_text(encoding="utf-8")) or {}
    return {
        name: {field: value for field, value in row.items() if field not in NOT_FIELDS} for name, row in content.items()
    }


def plain(value: Any) -> Any:
    """Lists and tuples compare alike."""
    return list(value) if isinstance(value, list | tuple) else value


def find(
    architecture: Architecture, config: PreTrainedConfig, inferred: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The variant's name, or "custom", and the single-valued fields that differ from its row.

    The fields with a value per stage and the sizes of every transformer must agree. Another value may differ (a
    decoder width, which references choose freely); one that the checkpoint says nothing of, because it has no
    such part, is not compared. Of several rows the one that agrees best, and in most, is meant.
    """
    fitting = []
    for name, row in rows(architecture).items():
        differing = {field: value for field, value in row.items() if plain(getattr(config, field)) != plain(value)}
        if not any(isinstance(value, list) or field in SIZES for field, value in differing.items()):
            told = {field: value for field, value in differing.items() if field in inferred}
            agreeing = [field for field in row if field not in differing and (field in inferred or not inferred)]
            fitting.append(((len(told), -len(agreeing), len(differing)), name, told))
    _, name, told = min(fitting, key=lambda entry: entry[0], default=((), CUSTOM, {}))
    return name, told
