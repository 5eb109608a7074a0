"""Settings from the command line, laid over a recipe: `loop.steps=100 transforms.0.random_crop.size=[256,256]`."""

from collections.abc import Mapping, Sequence
from typing import Any

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import RecordError, shortened
from hf_vit_seg.yaml_reader import parse


def split_override(override: str) -> tuple[list[str], Any]:
    """`optimizer.learning_rate=1e-4` as the names on the way and a value in YAML."""
    place, equals, text = override.partition("=")
    names = place.strip().split(".")
    if not equals or not all(names):
        raise RecordError(f"'{override}' is no setting: write NAME=VALUE, such as optimizer.learning_rate=1e-4")
    try:
        return names, parse(text)
    except HfVitSegError as error:
        raise RecordError(f"'{override}' has no value in YAML: {error}") from None


def overridden(settings: Any, names: Sequence[str], value: Any, place: str = "") -> Any:
    """Settings with `value` at the place that `names` lead to; mappings on the way are made where there are none.

    `loss.NAME=null` takes a term out of the loss.
    """
    if not names:
        return value
    name, *rest = names
    here = f"{place}.{name}" if place else name
    if isinstance(settings, list):
        index = list_index(settings, name, here)
        return [overridden(entry, rest, value, here) if i == index else entry for i, entry in enumerate(settings)]
    if isinstance(settings, str):  # a row by its name alone, such as `random_flip`
        settings = {settings: {}}
        if name not in settings:
            raise RecordError(f"{here} cannot be set: {place} is '{next(iter(settings))}'")
    if settings is not None and not isinstance(settings, Mapping):
        raise RecordError(f"{here} cannot be set: {place} is {shortened(settings)}")
    known = settings or {}
    if place == "loss" and not rest and value is None:
        return without(known, name)
    return {**known, name: overridden(known.get(name), rest, value, here)}


def without(losses: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The terms of a loss but one; there is no loss without terms."""
    left = {term: row for term, row in losses.items() if term != name}
    if len(left) == len(losses) or not left:
        terms = ", ".join(losses)
        raise RecordError(f"loss.{name} cannot be taken away: the terms are {terms}, and one stays; add another before")
    return left


def list_index(entries: list[Any], name: str, place: str) -> int:
    """An entry's index from its number in an override."""
    if not name.isdecimal() or int(name) >= len(entries):
        raise RecordError(f"{place} cannot be set: this is a list, whose entries are 0 to {len(entries) - 1}")
    return int(name)
