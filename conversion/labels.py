"""Label sets: the names of the classes and their colors, and where they were found."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from .errors import ConversionError, first_few

Palette = tuple[tuple[int, int, int], ...]
FOLDER = files("hf_vit_seg.configs") / "labels"
USUAL = ("ade20k", "cityscapes", "imagenet-1k")


@dataclass(frozen=True)
class LabelSet:
    """Class names, a color for each (none for classification), and what the data set asks of its masks.

    `reduce_zero_label` says that 0 in the masks means "no class" and class k is stored as k + 1; None where
    it is not known. `image_size` is the (height, width) that the usual checkpoints see. `found` says whence
    it came.
    """

    names: tuple[str, ...]
    palette: Palette = ()
    reduce_zero_label: bool | None = None
    image_size: tuple[int, int] | None = None
    found: str = ""


@cache
def known() -> dict[str, LabelSet]:
    """The sets that come with the package, by name."""
    entries = sorted(FOLDER.iterdir(), key=lambda entry: entry.name)
    return {
        entry.name.removesuffix(".json"): from_json(json.loads(entry.read_text(encoding="utf-8")), entry.name)
        for entry in entries
        if entry.name.endswith(".json")
    }


def from_json(content: Any, origin: str) -> LabelSet:
    """A label set from the content of its file."""
    try:
        return LabelSet(
            names=tuple(str(name) for name in content["names"]),
            palette=colors(content.get("palette", ())),
            reduce_zero_label=content.get("reduce_zero_label"),
            image_size=(content["image_size"][0], content["image_size"][1]) if "image_size" in content else None,
            found=origin,
        )
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise ConversionError(
            f"label set '{origin}' cannot be read ({type(error).__name__}: {error}); an object with "
            "'names', 'palette' ([[red, green, blue], ...]) and 'reduce_zero_label' is expected"
        ) from error


def colors(palette: Sequence[Sequence[int]]) -> Palette:
    """Colors as plain numbers."""
    return tuple((int(red), int(green), int(blue)) for red, green, blue in palette)


def generated_palette(count: int) -> Palette:
    """Colors for classes without any: their number's bits, dealt out to the channels as in PASCAL VOC."""

    def channel(number: int, first: int) -> int:
        return sum((number >> (3 * bit + first) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(k, 0), channel(k, 1), channel(k, 2)) for k in range(count))


def named(labels: str | Path) -> LabelSet:
    """The set of a name, or of a JSON file."""
    if str(labels) in known():
        return replace(known()[str(labels)], found=f"{labels}, as asked for")
    path = Path(labels)
    if not path.is_file():
        raise ConversionError(
            f"label set '{labels}' is neither one of {', '.join(known())} nor a JSON file; give one of them"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConversionError(f"label file '{path}' is not valid JSON: {error}") from error
    return replace(from_json(content, str(path)), found=f"from {path}, as asked for")


def resembling(names: Sequence[str]) -> LabelSet | None:
    """The known set of the same length that agrees in more than half of the names."""

    def plain(name: str) -> str:
        return name.strip().casefold()

    for candidate in known().values():
        pairs = zip(candidate.names, names, strict=False)
        agreeing = sum(plain(a) == plain(b) for a, b in pairs)
        if len(candidate.names) == len(names) and 2 * agreeing > len(names):
            return candidate
    return None


def completed(labels: LabelSet) -> LabelSet:
    """Fill in what a list of names leaves open, from the known set that it resembles."""
    alike = resembling(labels.names) or LabelSet(())
    reduce = alike.reduce_zero_label if labels.reduce_zero_label is None else labels.reduce_zero_label
    return replace(
        labels,
        palette=labels.palette or alike.palette,
        reduce_zero_label=reduce,
        image_size=labels.image_size or alike.image_size,
    )


def from_meta(meta: Mapping[str, Any]) -> LabelSet | None:
    """Names and colors that OpenMMLab keeps beside weights: CLASSES, or dataset_meta since 1.0."""
    dataset = meta.get("dataset_meta")
    entries = {str(k).casefold(): v for k, v in (dataset if isinstance(dataset, Mapping) else meta).items()}
    names = entries.get("classes")
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        return None
    content = {"names": [str(name).strip() for name in names], "palette": entries.get("palette") or ()}
    return replace(from_json(content, "the checkpoint's meta"), found="from the checkpoint's meta")


def from_config(config: Mapping[str, Any], processor: Mapping[str, Any]) -> LabelSet | None:
    """The id2label of a config.json, unless it only counts, with the processor's colors."""
    entries = config.get("id2label")
    if not isinstance(entries, Mapping) or not entries:
        return None
    names = [entries.get(str(k), entries.get(k)) for k in range(len(entries))]
    if any(name is None for name in names):
        raise ConversionError(
            f"id2label in config.json must number its classes 0 .. {len(names) - 1}, found the keys "
            f"{first_few(map(str, entries))}; mend it, or pass labels"
        )
    if names == [f"LABEL_{k}" for k in range(len(names))]:
        return None
    content = {"names": names, "palette": processor.get("palette") or ()}
    return replace(from_json(content, "config.json"), found="from id2label in config.json")


def from_count(count: int, usual: Sequence[str] = USUAL) -> LabelSet:
    """The best guess from the number of classes among the sets that come into question, marked as a guess."""
    for name in usual:
        if len(known()[name].names) == count:
            return replace(known()[name], found=f"{name}, assumed because there are {count} classes")
    names = tuple(f"LABEL_{k}" for k in range(count))
    return LabelSet(names, found=f"none found: {count} classes are called LABEL_0 .. LABEL_{count - 1}")


def resolve(
    count: int,
    *,
    asked: str | Path | None,
    meta: Mapping[str, Any],
    config: Mapping[str, Any],
    processor: Mapping[str, Any],
    usual: Sequence[str] = USUAL,
) -> LabelSet:
    """The label set of a model of `count` classes: asked for, in the file, beside the file, or assumed."""
    found = named(asked) if asked else from_meta(meta) or from_config(config, processor) or from_count(count, usual)
    found = completed(found)
    if len(found.names) != count:
        raise ConversionError(
            f"the label set ({found.found}) has {len(found.names)} names, the checkpoint's classifier "
            f"{count}; pass the labels that it was trained with"
        )
    if found.palette and len(found.palette) != count:
        raise ConversionError(f"the label set ({found.found}) has {len(found.palette)} colors for {count} classes")
    return found


def described(labels: LabelSet | None) -> str:
    """A label set in a report."""
    return "none" if labels is None else f"{len(labels.names)} classes, {labels.found}"
