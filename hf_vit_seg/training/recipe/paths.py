"""Relative paths in recipes: the folders they are relative to, and how runs save them.

A recipe's paths belong to the recipe: they start from its folder, and from the current directory only where its folder
has no such file. Paths of a shipped recipe and of overrides start from the current directory. A recipe that a run saved
has absolute paths; `saved_paths` lists them relative to the saved file as well, for a project that was moved as a
whole.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_vit_seg.data.labels.class_mappings import is_class_file

SPLITS = ("train", "validation", "test")
# Settings of sources that may be paths, or lists of paths; `name` may also be a Hub id.
SOURCE_PATHS = ("images", "masks", "instances", "file", "root", "annotations", "name", "stems", "urls", "data_files")
DATA_PATH = re.compile(rf"data\.(?:sampling\.file|(?:{'|'.join(SPLITS)})\.(?:{'|'.join(SOURCE_PATHS)})(?:\.\d+)?)")
PATTERN = re.compile(r"[{*?[]")  # how templates and glob patterns begin
SAVED = "saved_paths"


def map_paths(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return a recipe's settings with `change` applied to every path."""
    result = dict(settings)
    if isinstance(model := settings.get("model"), Mapping):
        result["model"] = change_settings(model, ["from_pretrained"], change)
    if isinstance(data := settings.get("data"), Mapping):
        splits = {
            split: change_settings(data[split], SOURCE_PATHS, change)
            for split in SPLITS
            if isinstance(data.get(split), Mapping)
        }
        classes = ["classes"] if is_class_file(data.get("classes")) else []
        if isinstance(data.get("sampling"), Mapping):
            splits["sampling"] = change_settings(data["sampling"], ["file"], change)
        result["data"] = change_settings(data, classes, change) | splits
    return result


def change_settings(settings: Mapping[str, Any], names: Iterable[str], change: Callable[[str], str]) -> dict[str, Any]:
    """Apply `change` to the settings with these names that are text or lists of text."""

    def apply(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [apply(entry) for entry in value]
        return change(value) if isinstance(value, str) and value else value

    return {**settings, **{name: apply(settings[name]) for name in names if name in settings}}


def describe_source(settings: Mapping[str, Any]) -> str:
    """Format the paths of a source: `images /data/images, masks /data/masks`."""
    found = {name: settings[name] for name in SOURCE_PATHS if settings.get(name)}
    return ", ".join(
        f"{name} {' and '.join(map(str, value)) if isinstance(value, list | tuple) else value}"
        for name, value in found.items()
    )


def describe_data(data: Mapping[str, Any]) -> list[str]:
    """Describe which files or dataset each split of a recipe's data is read from."""
    sources = {split: settings for split in SPLITS if (settings := data.get(split))}
    return [f"data.{split}: {describe_source(settings)}" for split, settings in sources.items()]


def fixed_path(path: Path) -> Path:
    """Return the path; of a template such as `images/{stem}.png` or a pattern, the folder before the first of these."""
    text = os.fspath(path)
    if os.path.lexists(text) or not (match := PATTERN.search(text)):
        return path
    return Path(os.path.dirname(text[: match.start()]))


def exists(path: Path) -> bool:
    """Return whether a file, a folder, or the folder of a template exists."""
    try:
        return fixed_path(path.expanduser()).exists()
    except (OSError, ValueError, RuntimeError):  # too long, a null character, or an unknown home directory
        return False


def resolve_path(path: str, folders: Sequence[Path]) -> str:
    """Return the absolute path in the first of the folders that has it; unchanged if there is none."""
    if os.path.isabs(path) or path.startswith("~"):
        return path
    existing = next((folder / path for folder in folders if exists(folder / path)), None)
    return path if existing is None else os.path.abspath(existing)


def resolve_saved_path(path: str, folder: Path, relative: Mapping[str, str]) -> str:
    """Resolve a path of a recipe that a run saved in `folder`, without the current directory."""
    if os.path.isabs(path):
        moved = folder / relative[path] if path in relative else None
        return os.path.abspath(moved) if moved is not None and not exists(Path(path)) and exists(moved) else path
    resolved = resolve_path(path, [folder])
    # A relative path, in contrast to a Hub id, must not be read from the current directory.
    return os.path.abspath(folder / path) if resolved == path and path.startswith("./") else resolved


def relative_paths(settings: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Return the absolute paths of a recipe, relative to `folder`."""
    relative: dict[str, str] = {}

    def add(path: str) -> str:
        if os.path.isabs(path):
            relative[path] = os.path.relpath(path, folder)
        return path

    map_paths(settings, add)
    return relative
