"""The classes of a recipe: names, raw values, colors, and ignored raw values."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, Protocol

from .raw_values import IGNORED_VALUE, ClassTableError, Raw

REDUCE_ZERO_LABEL = "reduce_zero_label"
ORDERS = {
    "segmentation": "the masks' values, as in classes: [background, nucleus]",
    "instance": "the class maps' values; for one class of objects classes: [nucleus]",
    "panoptic": "the class maps' values, as in classes: [{name: road, thing: false}, car]",
    "classification": "the integer labels, as in classes: [cat, dog]",
    "pose": "the keypoints, as in classes: [nose, left_eye]",
}
DEFAULT_IGNORED = (255,)  # a class may still use this value


class ClassEntry(Protocol):
    """A class of a recipe. If `values` is None, its raw value is its list index; if empty, it never occurs."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def values(self) -> Sequence[Raw] | None: ...  # noqa: D102
    @property
    def color(self) -> tuple[int, int, int] | None: ...  # noqa: D102
    @property
    def thing(self) -> bool | None: ...  # noqa: D102


class ClassSettings(Protocol):
    """The class settings of a recipe's `data`."""

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
    """A class given by its name, with an optional color, and whether it is a thing (None: not stated)."""

    name: str
    values: tuple[Raw, ...] | None = None
    color: tuple[int, int, int] | None = None
    thing: bool | None = None


def class_entries(
    data: ClassSettings, source_names: Sequence[str] | None, task: str = "segmentation"
) -> list[ClassEntry]:
    """Return the classes of a recipe; without `data.classes`, those of the source."""
    given = data.classes if data.classes is not None else source_names
    given = label_set(given, task) if isinstance(given, str) else given
    if not given:
        raise ClassTableError(
            f"data.classes is missing, and the source has no class names: list the names in the order of {ORDERS[task]}"
        )
    if data.preset is not None and any(not isinstance(entry, str) and entry.values is not None for entry in given):
        raise ClassTableError(
            f"the preset {data.preset} defines the values of the classes: remove `values` from data.classes"
        )
    return [NamedClass(entry) if isinstance(entry, str) else entry for entry in given]


def label_set(name: str, task: str = "segmentation") -> list[NamedClass]:
    """Return the classes and colors of a label set of the package (configs/labels); for instances, its things."""
    folder = files("hf_vit_seg.configs") / "labels"
    names = sorted(entry.name.removesuffix(".json") for entry in folder.iterdir())
    if name not in names:
        raise ClassTableError(
            f"data.classes: unknown label set '{name}': use one of {', '.join(names)}, or list the names"
        )
    content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    colors = [(red, green, blue) for red, green, blue in content.get("palette", [])] or [None] * len(content["names"])
    things = content.get("things")
    entries = [
        NamedClass(text, color=color, thing=None if things is None else text in things)
        for text, color in zip(content["names"], colors, strict=True)
    ]
    return [entry for entry in entries if task != "instance" or entry.thing is not False]


def thing_classes(
    entries: Sequence[ClassEntry], names: Sequence[str], source_things: Sequence[str] | None, task: str
) -> tuple[bool, ...]:
    """Return whether each class (K,) is a thing: as the recipe says, else as the source says, else true.

    Raises ClassTableError for stuff in the task `instance`, which has objects only.
    """
    stated = [source_things is None or name in source_things for name in names]
    things = tuple(own if entry.thing is None else entry.thing for entry, own in zip(entries, stated, strict=True))
    if task == "instance" and not all(things):
        raise ClassTableError(
            f"the class '{names[things.index(False)]}' is stuff, but the task instance has things only: remove the "
            "class, or use the task panoptic"
        )
    return things


def class_targets(names: Sequence[str], values: Sequence[Sequence[Raw]]) -> dict[Raw, int]:
    """Map each raw value to its class index."""
    targets: dict[Raw, int] = {}
    for index, raws in enumerate(values):
        for raw in raws:
            if targets.setdefault(raw, index) != index:
                raise ClassTableError(
                    f"the value {raw} belongs to both '{names[targets[raw]]}' and '{names[index]}' (the value of a "
                    "class without `values` is its position in the list, from 0): assign each value to one class"
                )
    if len({isinstance(raw, tuple) for raw in targets}) > 1:
        raise ClassTableError(
            "found colors as values of some classes and integers of others (the value of a class without `values` is "
            "its position in the list): use either colors or integers"
        )
    return targets


def find_ignored_values(data: ClassSettings, names: Sequence[str], values: Sequence[Sequence[Raw]]) -> list[Raw]:
    """Return the ignored raw values: those of `data.ignore` and of the preset, and `IGNORED_VALUE`, which sources
    write.
    """
    owners = {raw: names[index] for index, raws in enumerate(values) for raw in raws}
    colored = any(isinstance(raw, tuple) for raw in owners)
    explicit = tuple(data.ignore) != DEFAULT_IGNORED
    ignored: list[Raw] = [] if colored else [IGNORED_VALUE, *([0] if data.preset == REDUCE_ZERO_LABEL else [])]
    for raw in data.ignore:
        fits = isinstance(raw, tuple) == colored
        if explicit and not fits:
            kind = "colors" if colored else "integers"
            raise ClassTableError(f"data.ignore has {raw}, but the values of the classes are {kind}: use {kind}")
        if explicit and raw in owners:
            raise ClassTableError(f"the value {raw} belongs to '{owners[raw]}' and data.ignore: remove it from one")
        if fits:
            ignored.append(raw)
    return [raw for raw in ignored if raw not in owners]


def class_colors(entries: Sequence[ClassEntry]) -> tuple[tuple[int, int, int], ...] | None:
    """Return the palette: each class's `color`, or the first color in its `values`; None if no class has a color."""
    colors = [entry.color or next((v for v in entry.values or () if isinstance(v, tuple)), None) for entry in entries]
    if not any(colors):
        return None
    palette = tuple(color for color in colors if color is not None)
    if len(palette) < len(colors):
        name = entries[colors.index(None)].name
        raise ClassTableError(f"the class '{name}' has no color, but others do: set colors for all classes or for none")
    if wrong := [color for color in palette if not all(0 <= part <= 255 for part in color)]:
        raise ClassTableError(f"{wrong[0]} is not a color: red, green and blue must be 0 .. 255")
    return palette


__all__ = [
    "ClassEntry",
    "ClassSettings",
    "class_colors",
    "class_entries",
    "class_targets",
    "find_ignored_values",
    "thing_classes",
]
