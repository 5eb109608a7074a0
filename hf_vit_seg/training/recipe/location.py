"""Find recipe files; torch is not imported, so that a misspelled name is reported at once."""

from importlib.resources import files
from pathlib import Path

from hf_vit_seg.records import RecordError, nearest


class RecipeFileError(RecordError):
    """A recipe that cannot be read; the message names the file, the setting, and what was expected."""


def recipe_path(source: str | Path) -> Path:
    """Return the path of a recipe, given a path or the name of a shipped recipe."""
    path = Path(source)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(source) in shipped:
        return shipped[str(source)]
    if path.is_dir():
        raise RecipeFileError(f"{source} is a folder, expected a recipe file such as {path / 'recipe.yaml'}")
    hint = nearest(str(source), shipped, "shipped recipes")
    raise RecipeFileError(f"found no recipe {source}, neither a file nor a shipped recipe; {hint}")


def shipped_recipes() -> dict[str, Path]:
    """Return the paths of the recipes in the package, by name."""
    folder = Path(str(files("hf_vit_seg.configs"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


__all__ = ["RecipeFileError", "recipe_path", "shipped_recipes"]
