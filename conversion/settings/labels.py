"""Label sets: class names and colors, and where they come from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from hf_vit_seg.conversion.errors import ConversionError, first_few

from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.text_files import parse, read_json, read_text

MAX_NAME = 1000  # characters
MAX_CLASSES = 100_000  # every class gets a name; ImageNet-21k has 21,843
Palette = tuple[tuple[int, int, int], ...]
FOLDER = files("hf_vit_seg.configs") / "labels"
USUAL = ("ade20k", "cityscapes", "imagenet-1k")


@dataclass(frozen=True)
class LabelSet:
    """Class names, colors (none for classification), and properties of the dataset.

    With `reduce_zero_label`, 0 in masks means "no class" and class k is stored as k + 1; None if unknown. `image_size`
    is the (height, width) of the usual checkpoints. `origin` describes where the set comes from.
    """

    names: tuple[str, ...]
    palette: Palette = ()
    reduce_zero_label: bool | None = None
    image_size: tuple[int, int] | None = None
    origin: str = ""


@cache
def label_sets() -> dict[str, LabelSet]:
    """Read the label sets of the package, by name."""
    entries = sorted(FOLDER.iterdir(), key=lambda entry: entry.name)
    return {
        entry.name.removesuffix(".json"): from_json(json.loads(entry.read_text(encoding="utf-8")), entry.name)
        for entry in entries
        if entry.name.endswith(".json")
    }


def from_json(content: Any, origin: str) -> LabelSet:
    """Create a label set from the content of its file."""
    try:
        return LabelSet(
            names=tuple(class_name(name) for name in content["names"]),
            palette=colors(content.get("palette", ())),
            reduce_zero_label=content.get("reduce_zero_label"),
            image_size=(content["image_size"][0], content["image_size"][1]) if "image_size" in content else None,
            origin=origin,
        )
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        reason = error_sentence(error)
        raise ConversionError(
            f"label set '{origin}' cannot be read ({type(error).__name__}: {reason}), expected an object with 'names', "
            "'palette' ([[red, green, blue], ...]) and 'reduce_zero_label'"
        ) from error


def class_name(name: Any) -> str:
    """Return the name of a class; ConversionError if it is too long, UnicodeEncodeError if it cannot be written."""
    text = str(name)
    if len(text) > MAX_NAME:
        raise ConversionError(f"a class name has {len(text):,} characters, expected at most {MAX_NAME}")
    text.encode()
    return text


def colors(palette: Sequence[Sequence[int]]) -> Palette:
    """Convert colors to tuples of integers."""
    return tuple((int(red), int(green), int(blue)) for red, green, blue in palette)


def generate_palette(count: int) -> Palette:
    """Generate the color map of PASCAL VOC: the bits of a class index, distributed over the channels."""

    def channel(number: int, first: int) -> int:
        return sum((number >> (3 * bit + first) & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(k, 0), channel(k, 1), channel(k, 2)) for k in range(count))


def find_label_set(labels: str | Path) -> LabelSet:
    """Find a label set by name, or read it from a JSON or YAML file."""
    if str(labels) in label_sets():
        return replace(label_sets()[str(labels)], origin=f"{labels}, as requested")
    path = Path(labels)
    if not path.is_file():
        raise ConversionError(
            f"label set '{labels}' is neither one of {', '.join(label_sets())} nor a JSON or YAML file"
        )
    try:
        content = parse(read_text(path)) if path.suffix in (".yaml", ".yml") else read_json(path)
    except HfVitSegError as error:
        raise ConversionError(f"the label file '{path}' cannot be read: {error}") from None
    return replace(from_json(content, str(path)), origin=f"from {path}, as requested")


def similar_set(names: Sequence[str]) -> LabelSet | None:
    """Find the known set of equal length that shares more than half of the names."""

    def plain(name: str) -> str:
        return name.strip().casefold()

    for candidate in label_sets().values():
        pairs = zip(candidate.names, names, strict=False)
        agreeing = sum(plain(a) == plain(b) for a, b in pairs)
        if len(candidate.names) == len(names) and 2 * agreeing > len(names):
            return candidate
    return None


def complete_labels(labels: LabelSet) -> LabelSet:
    """Fill in missing properties from the most similar known set."""
    similar = similar_set(labels.names) or LabelSet(())
    reduce = similar.reduce_zero_label if labels.reduce_zero_label is None else labels.reduce_zero_label
    return replace(
        labels,
        palette=labels.palette or similar.palette,
        reduce_zero_label=reduce,
        image_size=labels.image_size or similar.image_size,
    )


def from_meta(meta: Mapping[str, Any]) -> LabelSet | None:
    """Read names and colors from OpenMMLab's `meta`: CLASSES, or dataset_meta since 1.0."""
    dataset = meta.get("dataset_meta")
    entries = {str(k).casefold(): v for k, v in (dataset if isinstance(dataset, Mapping) else meta).items()}
    names = entries.get("classes")
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        return None
    content = {"names": [str(name).strip() for name in names], "palette": entries.get("palette") or ()}
    return replace(from_json(content, "the checkpoint's meta"), origin="from the checkpoint's meta")


def from_config(config: Mapping[str, Any], processor: Mapping[str, Any]) -> LabelSet | None:
    """Read names from `id2label` of a config.json, except for LABEL_0 ..., and colors from the processor."""
    entries: Any = config.get("id2label")
    if isinstance(names := config.get("label_names"), list) and entries is None:  # a timm checkpoint
        entries = dict(enumerate(names))
    if not isinstance(entries, Mapping) or not entries:
        return None
    names = [entries.get(str(k), entries.get(k)) for k in range(len(entries))]
    if any(name is None for name in names):
        raise ConversionError(
            f"id2label in config.json must number its classes 0 .. {len(names) - 1}, found the keys "
            f"{first_few(map(str, entries))}; fix it, or pass labels"
        )
    if names == [f"LABEL_{k}" for k in range(len(names))]:
        return None
    content = {"names": names, "palette": processor.get("palette") or ()}
    return replace(from_json(content, "config.json"), origin="from id2label in config.json")


def from_count(count: int, usual: Sequence[str] = USUAL) -> LabelSet:
    """Guess the label set from the number of classes."""
    for name in usual:
        if len(label_sets()[name].names) == count:
            return replace(label_sets()[name], origin=f"{name}, assumed because there are {count} classes")
    names = tuple(f"LABEL_{k}" for k in range(count))
    return LabelSet(names, origin=f"no names found, using LABEL_0 .. LABEL_{count - 1}")


def resolve_labels(
    count: int,
    *,
    requested: str | Path | None,
    meta: Mapping[str, Any],
    config: Mapping[str, Any],
    processor: Mapping[str, Any],
    usual: Sequence[str] = USUAL,
) -> LabelSet:
    """Find the label set of a model with `count` classes: requested, from the checkpoint, its config, or a guess."""
    if not 0 < count <= MAX_CLASSES:
        raise ConversionError(f"the checkpoint's classifier has {count:,} classes, expected 1 to {MAX_CLASSES:,}")
    labels = (
        find_label_set(requested)
        if requested
        else from_meta(meta) or from_config(config, processor) or from_count(count, usual)
    )
    labels = complete_labels(labels)
    if len(labels.names) != count:
        raise ConversionError(
            f"the label set ({labels.origin}) has {len(labels.names)} names, but the checkpoint's classifier has "
            f"{count} classes; pass the labels of its training"
        )
    if labels.palette and len(labels.palette) != count:
        raise ConversionError(f"the label set ({labels.origin}) has {len(labels.palette)} colors for {count} classes")
    return labels


def describe_labels(labels: LabelSet | None) -> str:
    """Describe a label set for the report."""
    return "none" if labels is None else f"{len(labels.names)} classes, {labels.origin}"
