"""Recipes as YAML files: reading them strictly, with settings from the command line on top, and writing them.

What is read is complete: every row of a table (sources, transforms, losses, protocol) is checked against its record and
filled with the record's defaults, so that a saved recipe means the same when a default has changed.
"""

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_vit_seg.data.sources.registry import SOURCES
from hf_vit_seg.data.transforms.batch_mixing import BATCH_TRANSFORMS
from hf_vit_seg.data.transforms.pipeline import TRANSFORMS
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.local_paths import common_folder, publishable
from hf_vit_seg.records import Record, RecordError, Table, nearest, read_record, shortened
from hf_vit_seg.training.losses.registry import DEFAULT, LOSSES
from hf_vit_seg.training.optimization.parameter_groups import GroupRow
from hf_vit_seg.yaml_reader import parse, text_of

from .overrides import overridden, split_override
from .schema import DataRecipe, OptimizerRecipe, Recipe

SPLITS = ("train", "validation", "test")
PATHS = ("images", "masks", "file", "root", "annotations", "name")  # settings of sources that may be paths
# What may differ between a run and its continuation: where and how often things are written and measured, how long it
# lasts, and how a step is gone through.
FREE_TO_CHANGE = (
    "name",
    "output",
    "trackers",
    "loop.steps",
    "loop.epochs",
    "loop.log_every",
    "loop.evaluate_every",
    "loop.checkpoint_every",
    "loop.keep_checkpoints",
    "evaluation",
    "model.gradient_checkpointing",
    "data.workers",
    "data.cache",
)


class RecipeFileError(RecordError):
    """A recipe that cannot be read: the file, the place in it, and what was expected."""


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
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise RecipeFileError(f"{path}: {error}") from None


def with_default_loss(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings that say the loss by which a recipe without one is trained: settings on top add to it, or take it away.

    For pose the model computes its own.
    """
    if settings.get("loss", {}) != {} or settings.get("task") == "pose":
        return settings
    return {**settings, "loss": DEFAULT}


def recipe_path(source: str | Path) -> Path:
    """A recipe's file: a path, or the name of a shipped recipe."""
    path = Path(source)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(source) in shipped:
        return shipped[str(source)]
    if path.is_dir():
        raise RecipeFileError(f"{source} is a folder: give the recipe's file, such as {path / 'recipe.yaml'}")
    hint = nearest(str(source), shipped, "shipped recipes")
    raise RecipeFileError(f"there is no recipe {source}, neither as a file nor as a shipped recipe; {hint}")


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(files("hf_vit_seg.configs"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


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


def plain(record: Record) -> dict[str, Any]:
    """A record's settings as YAML has them."""
    return record.model_dump(mode="json")


def anchored(path: str, folder: Path) -> str:
    """A relative path that leads nowhere from the current directory, but somewhere from `folder`, as one from there.

    Of a template such as `images/{stem}.png` the folder in front of the first brace is looked at.
    """
    fixed = path if "{" not in path else os.path.dirname(path.partition("{")[0])
    if os.path.isabs(path) or os.path.exists(fixed) or not (folder / fixed).exists():
        return path
    return str(folder / path)


def recipe_text(recipe: Recipe) -> str:
    """A recipe as the text of a file, which `load_recipe` reads back to the same."""
    return f"# Every default is written out, as of hf_vit_seg {version('hf_vit_seg')}.\n{text_of(plain(recipe))}"


def publishable_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings without the paths of this machine: those of data start from the folder they share."""
    base = common_folder(settings.get("data"))
    return {name: publishable(value, base if name == "data" else None) for name, value in settings.items()}


def publishable_recipe_text(text: str) -> str:
    """The same for the text of a recipe's file, which is kept as it is where it names no such path."""
    settings = parse(text)
    published = publishable_recipe(settings)
    if published == settings:
        return text
    comments = [line for line in text.splitlines()[:1] if line.startswith("#")]
    return "\n".join([*comments, text_of(published)])


def differences(recipe: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """Settings in which two recipes differ, by dotted name, except those that a continued run is free to change."""
    ours, theirs = deciding(recipe), deciding(other)
    return {
        name: (ours.get(name), theirs.get(name)) for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)
    }


def deciding(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide what becomes of a run: of batch size and accumulation their product alone."""
    settings = {name: value for name, value in flat(plain(recipe)).items() if not name.startswith(FREE_TO_CHANGE)}
    size, passes = settings.pop("loop.batch_size"), settings.pop("loop.accumulation")
    return settings | {"loop.batch_size * loop.accumulation": size if size == "auto" else size * passes}


def flat(settings: Any, place: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    entries = settings.items() if isinstance(settings, dict) else enumerate(settings)
    found: dict[str, Any] = {}
    for name, value in entries:
        here = f"{place}.{name}" if place else str(name)
        found |= flat(value, here) if isinstance(value, dict | list) and value else {here: value}
    return found
