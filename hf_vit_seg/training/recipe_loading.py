"""Load recipes: read the YAML file, apply overrides, and check every table's row against its record.

A loaded recipe is complete: each row (sources, transforms, losses, protocol) has the defaults of its record, so that a
saved recipe means the same when a default changes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_vit_seg.data.sources.source_registry import SOURCES
from hf_vit_seg.data.transforms.batch_mixing import BATCH_TRANSFORMS, read_mixer
from hf_vit_seg.data.transforms.pipeline import TRANSFORMS
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.local_paths import installed_path
from hf_vit_seg.records import RecordError, Table, read_record, shorten
from hf_vit_seg.text_files import parse, read_text

from .losses.loss_registry import DEFAULT, LOSSES, MODEL_LOSS, MULTI_LABEL_DEFAULT, check_losses
from .optimization.parameter_groups import GroupRow
from .recipe.files import record_settings
from .recipe.location import RecipeFileError, recipe_path, shipped_recipes
from .recipe.overrides import override_setting, split_override
from .recipe.paths import SAVED, SPLITS, map_paths, resolve_path, resolve_saved_path
from .recipe.schema import DataRecipe, OptimizerRecipe, Recipe


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe from a file, or a shipped recipe by name, and apply `overrides` such as `loop.steps=100`.

    Relative paths become absolute, see `recipe.paths`. RecipeFileError for unknown or invalid settings;
    it names the override or the file that has them.
    """
    path = recipe_path(source)
    try:
        return read_recipe(path, overrides)
    except (OSError, UnicodeDecodeError, HfVitSegError) as error:
        raise RecipeFileError(f"{error_place(path, overrides)}: {error}") from None


def error_place(path: Path, overrides: Sequence[str]) -> str:
    """Return what makes a recipe invalid: one of the overrides, all of them, or the file."""
    if not is_valid(path, ()):
        return str(path)
    for index, override in enumerate(overrides):
        if is_valid(path, [*overrides[:index], *overrides[index + 1 :]]):
            return f"override '{override}'"
    return f"overrides {' '.join(overrides)}"


def is_valid(path: Path, overrides: Sequence[str]) -> bool:
    """Return whether a recipe can be loaded with these overrides."""
    try:
        read_recipe(path, overrides)
    except (OSError, UnicodeDecodeError, HfVitSegError):
        return False
    return True


def read_recipe(path: Path, overrides: Sequence[str]) -> Recipe:
    """Read a recipe file and apply overrides."""
    settings = parse(read_text(path))
    if not isinstance(settings, Mapping):
        raise RecordError(f"found {shorten(settings)}, expected a mapping of settings (task, model, data, ...)")
    settings = resolve_file_paths(settings, path)
    changes = [split_override(override) for override in overrides]
    for names, value in changes:
        if names[0] != "loss":  # the default loss depends on other settings
            settings = override_setting(settings, names, value)
    settings = with_default_loss(settings)
    for names, value in changes:
        if names[0] == "loss":
            settings = override_setting(settings, names, value)
    folders = [Path.cwd(), path.resolve().parent]
    settings = map_paths(with_default_loss(settings), lambda place: resolve_path(place, folders))
    return complete_recipe(read_record(Recipe, settings))


def resolve_file_paths(settings: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Resolve the paths in the settings of a recipe file."""
    folder = path.resolve().parent
    if path in shipped_recipes().values():
        return map_paths(settings, installed_path)
    if SAVED not in settings:
        return map_paths(settings, lambda place: resolve_path(place, [folder, Path.cwd()]))
    relative = settings[SAVED] if isinstance(settings[SAVED], Mapping) else {}
    kept = {name: value for name, value in settings.items() if name != SAVED}
    return map_paths(kept, lambda place: resolve_saved_path(place, folder, relative))


def with_default_loss(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the default loss to settings without one, so that overrides can add to it or remove it.

    For the tasks `MODEL_LOSS` the model computes the loss.
    """
    if settings.get("loss", {}) != {} or settings.get("task") in MODEL_LOSS:
        return settings
    data = settings.get("data")
    multi_label = isinstance(data, Mapping) and data.get("multi_label") is True
    return {**settings, "loss": MULTI_LABEL_DEFAULT if multi_label else DEFAULT}


def complete_recipe(recipe: Recipe) -> Recipe:
    """Check every table's row and fill in its defaults. RecordError names the first invalid row."""
    if recipe.data.multi_label and recipe.task != "classification":
        raise RecordError(f"data.multi_label requires the task classification, found {recipe.task}")
    check_losses(recipe.loss, recipe.task, bool(recipe.batch_transforms), recipe.data.multi_label)
    read_mixer(recipe.batch_transforms, recipe.task, 2)
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=complete_sources(recipe.data)),
            "transforms": complete_entries(TRANSFORMS, recipe.transforms, "transforms"),
            "batch_transforms": complete_entries(BATCH_TRANSFORMS, recipe.batch_transforms, "batch_transforms"),
            "loss": {
                name: record_settings(LOSSES.read(name, row, f"loss.{name}")) for name, row in recipe.loss.items()
            },
            "optimizer": recipe.optimizer.model_copy(update={"groups": complete_groups(recipe.optimizer)}),
            "evaluation": recipe.evaluation.model_copy(
                update={
                    "protocol": record_settings(
                        read_record(Protocol, recipe.evaluation.protocol, "evaluation.protocol")
                    )
                }
            ),
        }
    )


def complete_sources(data: DataRecipe) -> dict[str, dict[str, Any]]:
    """Complete the data sources of all splits."""
    sources = {}
    for split in SPLITS:
        if (settings := getattr(data, split)) is not None:
            row = record_settings(SOURCES.read_kind(settings, f"data.{split}"))
            sources[split] = {"kind": settings["kind"], **row}
    return sources


def complete_entries(table: Table, entries: Sequence[Any], location: str) -> tuple[dict[str, Any], ...]:
    """Complete the rows of a list, each a name with all its settings."""
    rows = []
    for index, entry in enumerate(entries):
        name = entry if isinstance(entry, str) else next(iter(entry), None)
        rows.append({name: record_settings(table.read_entry(entry, f"{location}.{index}"))})
    return tuple(rows)


def complete_groups(optimizer: OptimizerRecipe) -> tuple[dict[str, Any], ...]:
    """Complete the rows of parameter groups."""
    rows = enumerate(optimizer.groups)
    return tuple(record_settings(read_record(GroupRow, row, f"optimizer.groups.{index}")) for index, row in rows)


__all__ = ["RecipeFileError", "load_recipe"]
