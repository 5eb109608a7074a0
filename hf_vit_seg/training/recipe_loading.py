"""Load recipes: read the YAML file, apply overrides, and check every table's row against its record.

A loaded recipe is complete: each row (sources, transforms, losses, protocol) has the defaults of its record, so that a
saved recipe means the same when a default changes.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_vit_seg.data.sources.registry import SOURCES
from hf_vit_seg.data.transforms.batch_mixing import BATCH_TRANSFORMS
from hf_vit_seg.data.transforms.pipeline import TRANSFORMS
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.records import RecordError, Table, read_record, shortened
from hf_vit_seg.yaml_reader import parse

from .losses.registry import DEFAULT, LOSSES
from .optimization.parameter_groups import GroupRow
from .recipe.files import RecipeFileError, plain, recipe_path
from .recipe.overrides import overridden, split_override
from .recipe.schema import DataRecipe, OptimizerRecipe, Recipe

SPLITS = ("train", "validation", "test")
PATHS = ("images", "masks", "file", "root", "annotations", "name")  # settings of sources that may be paths


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, or the shipped one of that name, with `overrides` such as `loop.steps=100` on top.

    Relative paths are kept where they lead somewhere from the current directory, and else taken from the recipe's
    folder. RecipeFileError for everything that is not known or does not fit.
    """
    path = recipe_path(source)
    try:
        settings = parse(path.read_text(encoding="utf-8"))
        if not isinstance(settings, Mapping):
            raise RecordError(f"a recipe has settings by name (task, model, data, ...), found {shortened(settings)}")
        settings = with_default_loss(settings)
        for override in overrides:
            settings = overridden(settings, *split_override(override))
        settings = with_default_loss(settings)
        return completed(read_record(Recipe, settings), path.resolve().parent)
    except (OSError, UnicodeDecodeError, HfVitSegError) as error:
        raise RecipeFileError(f"{path}: {error}") from None


def with_default_loss(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings that say the loss by which a recipe without one is trained: settings on top add to it, or take it away.

    For pose the model computes its own.
    """
    if settings.get("loss", {}) != {} or settings.get("task") == "pose":
        return settings
    return {**settings, "loss": DEFAULT}


def completed(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with every table's row checked and filled, and its relative paths made to lead somewhere.

    RecordError names the place of the first row that does not fit.
    """
    start = recipe.model.from_pretrained
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"from_pretrained": start and anchored(start, folder)}),
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
    """The sources of all splits that there are."""
    sources = {}
    for split in SPLITS:
        if (settings := getattr(data, split)) is not None:
            row = plain(SOURCES.read_kind(settings, f"data.{split}"))
            paths = {key: anchored(row[key], folder) for key in PATHS if isinstance(row.get(key), str)}
            sources[split] = {"kind": settings["kind"], **row, **paths}
    return sources


def complete_entries(table: Table, entries: Sequence[Any], place: str) -> tuple[dict[str, Any], ...]:
    """A list's rows, each a name with all its settings."""
    rows = []
    for index, entry in enumerate(entries):
        name = entry if isinstance(entry, str) else next(iter(entry), None)
        rows.append({name: plain(table.read_entry(entry, f"{place}.{index}"))})
    return tuple(rows)


def complete_groups(optimizer: OptimizerRecipe) -> tuple[dict[str, Any], ...]:
    """The rows of parameter groups."""
    rows = enumerate(optimizer.groups)
    return tuple(plain(read_record(GroupRow, row, f"optimizer.groups.{index}")) for index, row in rows)


def anchored(path: str, folder: Path) -> str:
    """A relative path that leads nowhere from the current directory, but somewhere from `folder`, as one from there.

    Of a template such as `images/{stem}.png` the folder in front of the first brace is looked at.
    """
    fixed = path if "{" not in path else os.path.dirname(path.partition("{")[0])
    if os.path.isabs(path) or os.path.exists(fixed) or not (folder / fixed).exists():
        return path
    return str(folder / path)


__all__ = ["RecipeFileError", "load_recipe"]
