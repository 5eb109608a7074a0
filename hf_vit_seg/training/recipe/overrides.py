"""Overrides of a recipe from the command line: `loop.steps=100 transforms.0.random_crop.size=[256,256]`."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import RecordError, shorten
from hf_vit_seg.text_files import parse


def split_override(override: str) -> tuple[list[str], Any]:
    """Split an override such as `optimizer.learning_rate=1e-4` into names and a YAML value."""
    location, equals, text = override.partition("=")
    names = location.strip().split(".")
    if not equals or not all(names):
        raise RecordError("expected NAME=VALUE, such as optimizer.learning_rate=1e-4")
    try:
        return names, parse(text)
    except HfVitSegError as error:
        raise RecordError(f"the value is not valid YAML: {error}") from None


def override_setting(settings: Any, names: Sequence[str], value: Any, location: str = "") -> Any:
    """Return settings with `value` at the path `names`, creating missing mappings.

    `loss.NAME=null` removes a term of the loss.
    """
    if not names:
        return value
    name, *rest = names
    here = f"{location}.{name}" if location else name
    if isinstance(settings, list):
        index = list_index(settings, name, here)
        return [override_setting(entry, rest, value, here) if i == index else entry for i, entry in enumerate(settings)]
    if isinstance(settings, str):  # a row without settings, such as `random_flip`
        settings = {settings: {}}
        if name not in settings:
            raise RecordError(f"{here} cannot be set: {location} is '{next(iter(settings))}'")
    if settings is not None and not isinstance(settings, Mapping):
        raise RecordError(f"{here} cannot be set: {location} is {shorten(settings)}")
    parents = settings or {}
    if location == "loss" and not rest and value is None:
        return remove_term(parents, name)
    return {**parents, name: override_setting(parents.get(name), rest, value, here)}


def remove_term(losses: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Remove a term of the loss; RecordError if it does not exist or is the last one."""
    left = {term: row for term, row in losses.items() if term != name}
    if len(left) == len(losses) or not left:
        terms = ", ".join(losses)
        raise RecordError(f"loss.{name} cannot be removed: the terms are {terms}, and at least one must remain")
    return left


def list_index(entries: list[Any], name: str, location: str) -> int:
    """Parse the index of a list entry in an override."""
    if not name.isdecimal() or int(name) >= len(entries):
        raise RecordError(f"{location} cannot be set: expected an index from 0 to {len(entries) - 1}")
    return int(name)
