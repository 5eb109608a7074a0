"""What a recipe says about classes: their names, the raw values that mean them, and those that do not count."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, Protocol

from .raw_values import UNCOUNTED, ClassTableError, Raw

REDUCE_ZERO_LABEL = "reduce_zero_label"
DEFAULT_IGNORED = (255,)  # not in the way of classes that have this value themselves


class ClassEntry(Protocol):
    """A class of a recipe: without `values` its place in the list is its raw value; with none it never occurs."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def values(self) -> Sequence[Raw] | None: ...  # noqa: D102
    @property
    def color(self) -> tuple[int, int, int] | None: ...  # noqa: D102


class ClassSettings(Protocol):
    """What a recipe's `data` says about classes."""

    @property
    def classes(self) -> Sequence[Any] | str | None: ...  # noqa: D102
    @property
    def ignore(self) -> Sequence[Raw]: ...  # noqa: D102
    @property
    def preset(self) -> str | None: ...  # noqa: D102
    @property
    def unknown(self) -> Literal["error", "ignore"]: ...  # noqa: D102


@dataclass(frozen=True)
class NamedClass:
    """A class of which only the name is known."""

    name: str
    values: tuple[Raw, ...] | None = None
    color: tuple[int, int, int] | None = None


def class_entries(data: ClassSettings, source_names: Sequence[str] | None) -> list[ClassEntry]:
    """The classes of a recipe, or of the source where the recipe has none."""
    given = data.classes if data.classes is not None else source_names
    given = label_set(given) if isinstance(given, str) else given
    if not given:
        raise ClassTableError(
            "data.classes is missing: the source does not tell which classes there are; give their names in the order "
            "of the masks' values, as in classes: [background, nucleus]"
        )
    if data.preset is not None and any(not isinstance(entry, str) and entry.values is not None for entry in given):
        raise ClassTableError(f"the preset {data.preset} says which values the classes have: leave out their own")
    return [NamedClass(entry) if isinstance(entry, str) else entry for entry in given]


def label_set(name: str) -> list[NamedClass]:
    """The classes of a label set that comes with the package (configs/labels), with its colors."""
    folder = files("hf_vit_seg.configs") / "labels"
    known = sorted(entry.name.removesuffix(".json") for entry in folder.iterdir())
    if name not in known:
        raise ClassTableError(
            f"data.classes: there is no label set '{name}'; there are {', '.join(known)}, or give names"
        )
    content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    colors = [(red, green, blue) for red, green, blue in content.get("palette", [])] or [None] * len(content["names"])
    return [NamedClass(text, color=color) for text, color in zip(content["names"], colors, strict=True)]


def class_targets(names: Sequence[str], values: Sequence[Sequence[Raw]]) -> dict[Raw, int]:
    """The class of each raw value."""
    targets: dict[Raw, int] = {}
    for index, raws in enumerate(values):
        for raw in raws:
            if targets.setdefault(raw, index) != index:
                raise ClassTableError(
                    f"the value {raw} is both '{names[targets[raw]]}' and '{names[index]}' (a class without values has "
                    "its place in the list, from 0): give each value to one class"
                )
    if len({isinstance(raw, tuple) for raw in targets}) > 1:
        raise ClassTableError(
            "some classes have colors as values and others whole numbers (or none, which is their place in the list): "
            "masks have one or the other"
        )
    return targets


def ignored_targets(data: ClassSettings, names: Sequence[str], values: Sequence[Sequence[Raw]]) -> list[Raw]:
    """The raw values that do not count: those of `data.ignore`, the preset's, and what sources write for it."""
    owners = {raw: names[index] for index, raws in enumerate(values) for raw in raws}
    colored = any(isinstance(raw, tuple) for raw in owners)
    asked = tuple(data.ignore) != DEFAULT_IGNORED
    ignored: list[Raw] = [] if colored else [UNCOUNTED, *([0] if data.preset == REDUCE_ZERO_LABEL else [])]
    for raw in data.ignore:
        fits = isinstance(raw, tuple) == colored
        if asked and not fits:
            kind = "colors" if colored else "whole numbers"
            raise ClassTableError(f"data.ignore has {raw}, but the classes' values are {kind}: so must ignored ones be")
        if asked and raw in owners:
            raise ClassTableError(f"the value {raw} is both '{owners[raw]}' and in data.ignore: take it out of one")
        if fits:
            ignored.append(raw)
    return [raw for raw in ignored if raw not in owners]


def class_colors(entries: Sequence[ClassEntry]) -> tuple[tuple[int, int, int], ...] | None:
    """The classes' colors, their own or those of their masks; None when none has one."""
    colors = [entry.color or next((v for v in entry.values or () if isinstance(v, tuple)), None) for entry in entries]
    if not any(colors):
        return None
    palette = tuple(color for color in colors if color is not None)
    if len(palette) < len(colors):
        name = entries[colors.index(None)].name
        raise ClassTableError(f"the class '{name}' has no color, but others have: give one to all classes or to none")
    if wrong := [color for color in palette if not all(0 <= part <= 255 for part in color)]:
        raise ClassTableError(f"{wrong[0]} is no color: red, green and blue are 0 .. 255 each")
    return palette


__all__ = ["ClassEntry", "ClassSettings", "class_colors", "class_entries", "class_targets", "ignored_targets"]
