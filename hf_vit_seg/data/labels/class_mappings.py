"""Classes of a recipe as a mapping, or as a JSON file such as id2label.json, converted to a list of classes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.text_files import read_json

from .raw_values import ClassTableError
from .unicode_names import normalize_name

INTEGER = re.compile("0|[1-9][0-9]*")
FORMS = "{0: background, 1: nucleus} (value: name) or {background: 0, nucleus: [1, 2]} (name: values)"


def expand_classes(classes: Any) -> Any:
    """Convert a mapping, or the path of a .json file, to a list of classes; other values are unchanged.

    A file holds a list of names, a mapping, or a model's config.json with `id2label`. Raises ClassTableError.
    """
    if is_class_file(classes):
        classes = read_classes(Path(classes).expanduser())
    return expand_mapping(classes) if isinstance(classes, Mapping) else classes


def is_class_file(classes: Any) -> bool:
    """Return whether this is the path of a JSON file, and not the name of a label set."""
    return isinstance(classes, str) and classes.lower().endswith(".json")


def read_classes(path: Path) -> Any:
    """Read the classes of a JSON file."""
    try:
        content = read_json(path, unique_keys=True)
    except HfVitSegError as error:
        raise ClassTableError(str(error)) from None
    if isinstance(content, Mapping):
        content = content.get("id2label", content.get("names", content))
    if not isinstance(content, list | Mapping) or not content:
        raise ClassTableError(f"{path} has no classes: expected a list of names, or {FORMS}")
    return content


def expand_mapping(mapping: Mapping[Any, Any]) -> list[Any]:
    """Convert a mapping from values to names, or from names to values, to a list of classes.

    Keys from 0 without gaps are a list of names; a class with another key has the key as its value.
    """
    if all(isinstance(name, str) for name in mapping.values()):
        names = {integer_key(key): normalize_name(name) for key, name in mapping.items()}
        if len(names) < len(mapping):
            raise ClassTableError("found a value twice, as integer and as text: write each value once")
        if sorted(names) == list(range(len(names))):
            return [names[value] for value in range(len(names))]
        return [{"name": names[value], "values": [value]} for value in sorted(names)]
    if all(
        isinstance(name, str) and (is_value(values) or isinstance(values, list)) for name, values in mapping.items()
    ):
        return [{"name": name, "values": [found] if is_value(found) else found} for name, found in mapping.items()]
    raise ClassTableError(f"found a mapping of other kinds, expected {FORMS}")


def integer_key(key: Any) -> int:
    """Return the raw value of a key."""
    if isinstance(key, str) and INTEGER.fullmatch(key.strip()):
        return int(key)
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    raise ClassTableError(f"found the key {key!r}, expected an integer: {FORMS}")


def is_value(value: Any) -> bool:
    """Return whether this is one raw value of an integer mask; colors are lists in a list."""
    return isinstance(value, int) and not isinstance(value, bool)


__all__ = ["expand_classes", "is_class_file"]
