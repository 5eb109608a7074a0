"""Write recipes as YAML."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_vit_seg.local_paths import common_folder, publishable
from hf_vit_seg.records import Record
from hf_vit_seg.text_files import dump, parse

from .paths import SAVED, relative_paths
from .schema import Recipe


def record_settings(record: Record) -> dict[str, Any]:
    """Convert a record to plain types for YAML."""
    return record.model_dump(mode="json")


def recipe_text(recipe: Recipe, folder: Path) -> str:
    """Format a recipe as the text of a file in `folder`, which `load_recipe` reads back to the same recipe."""
    settings = record_settings(recipe)
    settings[SAVED] = relative_paths(settings, folder)
    return f"# Every default is written out, as of hf_vit_seg {version('hf_vit_seg')}.\n{dump(settings)}"


def publishable_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Remove local paths from a recipe's settings; data paths become relative to their common folder."""
    base = common_folder(settings.get("data"))
    kept = {name: value for name, value in settings.items() if name != SAVED}
    saved = {SAVED: {}} if SAVED in settings else {}
    return {name: publishable(value, base if name == "data" else None) for name, value in kept.items()} | saved


def publishable_recipe_text(text: str) -> str:
    """Remove local paths from the text of a recipe file; text without such paths is returned unchanged."""
    settings = parse(text)
    published = publishable_recipe(settings)
    if published == settings:
        return text
    comments = [line for line in text.splitlines()[:1] if line.startswith("#")]
    return "\n".join([*comments, dump(published)])
