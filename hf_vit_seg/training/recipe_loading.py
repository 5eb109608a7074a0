"""Load recipes: read the YAML file, apply overrides, and check every table's row against its record.

A loaded recipe is complete: each row (sources, transforms, losses, protocol) has the defaults of its record, so that a
saved recipe means the same when a default changes.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_vit_seg.data.labels.class_mappings import is_class_file
from hf_vit_seg.data.sources.registry import SOURCES
from hf_vit_seg.data.transforms.batch_mixing import BATCH_TRANSFORMS
from hf_vit_seg.data.transforms.pipeline import TRANSFORMS
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.records import RecordError, Table, read_record, shorten
from hf_vit_seg.text_files import read_text
from hf_vit_seg.yaml_reader import parse

from .losses.registry import DEFAULT, LOSSES
from .optimization.parameter_groups import GroupRow
from .recipe.files import RecipeFileError, plain, recipe_path
from .recipe.overrides import override_setting, split_override
from .recipe.schema import DataRecipe, OptimizerRecipe, Recipe

SPLITS = ("train", "validation", "test")
# Settings of sources that may be paths, or lists of paths.
PATHS = ("images", "masks", "file", "root", "annotations", "name", "stems")


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe from a file, or a shipped recipe by name, and apply `overrides` such as `loop.steps=100`.

    Relative paths that do not exist in the current directory are resolved in the recipe's folder. RecipeFileError for
    unknown or invalid settings.
    """
    path = recipe_path(source)
    try:
        settings = parse(read_text(path))
        if not isinstance(settings, Mapping):
            raise RecordError(f"found {shorten(settings)}, expected a mapping of settings (task, model, data, ...)")
        settings = with_default_loss(settings)
        for override in overrides:
            settings = override_setting(settings, *split_override(override))
        settings = resolve_class_file(with_default_loss(settings), path.resolve().parent)
        return complete_recipe(read_record(Recipe, settings), path.resolve().parent)
    except (OSError, UnicodeDecodeError, HfVitSegError) as error:
        raise RecipeFileError(f"{path}: {error}") from None


def with_default_loss(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the default loss to settings without one, so that overrides can add to it or remove it.

    For pose the model computes the loss.
    """
    if settings.get("loss", {}) != {} or settings.get("task") == "pose":
        return settings
    return {**settings, "loss": DEFAULT}


def complete_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """Check every table's row, fill in its defaults, and resolve relative paths.

    RecordError names the first invalid row.
    """
    start = recipe.model.from_pretrained
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"from_pretrained": start and resolve_path(start, folder)}),
            "data": recipe.data.model_copy(update=complete_sources(recipe.data, folder)),
            "transforms": complete_entries(TRANSFORMS, recipe.transforms, "transforms"),
            "batch_transforms": complete_entries(BATCH_TRANSFORMS, recipe.batch_transforms, "batch_transforms"),
            "loss": {name: plain(LOSSES.read(name, row, f"loss.{name}")) for name, row in recipe.loss.items()},
            "optimizer": recipe.optimizer.model_copy(update={"groups": complete_groups(recipe.optimizer)}),
            "evaluation": recipe.evaluation.model_copy(
                update={"protocol": plain(read_record(Protocol, recipe.evaluation.protocol, "evaluation.protocol"))}
            ),
        }
    )


def complete_sources(data: DataRecipe, folder: Path) -> dict[str, dict[str, Any]]:
    """Complete the data sources of all splits."""
    sources = {}
    for split in SPLITS:
        if (settings := getattr(data, split)) is not None:
            row = plain(SOURCES.read_kind(settings, f"data.{split}"))
            paths = {key: resolve_paths(row[key], folder) for key in PATHS if key in row}
            sources[split] = {"kind": settings["kind"], **row, **paths}
    return sources


def complete_entries(table: Table, entries: Sequence[Any], place: str) -> tuple[dict[str, Any], ...]:
    """Complete the rows of a list, each a name with all its settings."""
    rows = []
    for index, entry in enumerate(entries):
        name = entry if isinstance(entry, str) else next(iter(entry), None)
        rows.append({name: plain(table.read_entry(entry, f"{place}.{index}"))})
    return tuple(rows)


def complete_groups(optimizer: OptimizerRecipe) -> tuple[dict[str, Any], ...]:
    """Complete the rows of parameter groups."""
    rows = enumerate(optimizer.groups)
    return tuple(plain(read_record(GroupRow, row, f"optimizer.groups.{index}")) for index, row in rows)


def resolve_class_file(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Resolve the path of a JSON file in `data.classes`, which is read with the recipe."""
    data = settings.get("data")
    if not isinstance(data, Mapping) or not is_class_file(data.get("classes")):
        return settings
    return {**settings, "data": {**data, "classes": resolve_path(data["classes"], folder)}}


def resolve_paths(paths: Any, folder: Path) -> Any:
    """Resolve a path or each of a list; other values are unchanged."""
    if isinstance(paths, list | tuple):
        return [resolve_paths(path, folder) for path in paths]
    return resolve_path(paths, folder) if isinstance(paths, str) else paths


def resolve_path(path: str, folder: Path) -> str:
    """Resolve a relative path in `folder` if it exists there but not in the current directory.

    For a template such as `images/{stem}.png`, the folder before the first brace is checked.
    """
    fixed = path if "{" not in path else os.path.dirname(path.partition("{")[0])
    if os.path.isabs(path) or os.path.exists(fixed) or not (folder / fixed).exists():
        return path
    return str(folder / path)


__all__ = ["RecipeFileError", "load_recipe"]
