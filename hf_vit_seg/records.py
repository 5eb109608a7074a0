"""Strict records: what a YAML file may say, and one clear sentence about what it may not.

A record is a frozen pydantic model that knows all its keys. A table maps names to records, so that a file chooses
among losses, transforms or data formats by name, and a plugin adds a row by entry point.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from hf_vit_seg.errors import HfVitSegError

from .entry_points import Plugin, first_of_each_name, load, load_all, subclass_of

# What pydantic says in Python's words, in those of YAML.
MAPPING = "settings by name (a mapping)"
EXPECTED = {"list_type": "a list", "tuple_type": "a list", "dict_type": MAPPING, "model_type": MAPPING}


class RecordError(HfVitSegError):
    """A setting that cannot be used: where it stands, what was found, and what was expected."""


class Record(BaseModel):
    """Settings: every key is known, nothing changes after reading."""

    renamed: ClassVar[Mapping[str, str]] = {}  # former names of keys, for the error message

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


R = TypeVar("R", bound=Record)


def read_record(kind: type[R], settings: Any, place: str = "") -> R:
    """Settings as a record; RecordError names the first wrong one by its dotted place."""
    if not isinstance(settings, Mapping):
        raise RecordError(f"{place or 'the file'} has {MAPPING}, found {shortened(settings)}")
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        raise RecordError(sentence(kind, error.errors(), settings, place)) from None


def sentence(kind: type[BaseModel], errors: Sequence[ErrorDetails], settings: Any, place: str) -> str:
    """The first of pydantic's errors in words; those of one place are what its type's alternatives say of it."""
    # A key that is not known comes before one that is missing: the first is most often the second, misspelt.
    error = min(errors, key=lambda each: each["type"] != "extra_forbidden")
    path = settings_path(error, settings)
    dotted = ".".join(filter(None, [place, *map(str, path)]))
    if error["type"] == "extra_forbidden":
        return unknown(dotted, str(path[-1]), known_fields(kind, path), getattr(record_of(kind, path), "renamed", {}))
    if error["type"] == "missing":
        return f"{dotted} is missing: {kind.__name__} cannot do without it"
    if error["type"] == "value_error":
        reason = error["msg"].removeprefix("Value error, ")
        return f"{dotted}: {reason}" if dotted else reason
    return f"{dotted} should be {expectation(error, errors, settings)}, found {shortened(error['input'])}"


def settings_path(error: ErrorDetails, settings: Any) -> tuple[int | str, ...]:
    """Keys and indexes that lead to an error's setting, without the names of types that pydantic puts between them."""
    path: list[int | str] = []
    for name in error["loc"]:
        try:
            settings = settings[name]
        except (LookupError, TypeError):
            if error["type"] != "missing" or name is not error["loc"][-1]:
                continue
        path.append(name)
    return tuple(path)


def expectation(error: ErrorDetails, errors: Sequence[ErrorDetails], settings: Any) -> str:
    """What stands behind "should be" of a value that does not fit: all that the alternatives of its type say of it."""
    path = settings_path(error, settings)
    alike = [each for each in errors if settings_path(each, settings) == path]
    wanted = [
        EXPECTED.get(e["type"]) or e["msg"].removeprefix("Input should be ").partition(", unable")[0] for e in alike
    ]
    return " or ".join(dict.fromkeys(wanted))


def known_fields(kind: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys of the record in which a key was not known."""
    return list(getattr(record_of(kind, place), "model_fields", {}))


def record_of(kind: type[BaseModel], place: tuple[int | str, ...]) -> Any:
    """The record that contains the key at `place`."""
    record: Any = kind
    for name in place[:-1]:
        field = getattr(record, "model_fields", {}).get(name)
        nested = [a for a in candidates(field.annotation) if hasattr(a, "model_fields")] if field else []
        record = nested[0] if nested else record
    return record


def candidates(annotation: Any) -> list[Any]:
    """A type and all types that it is made of."""
    return [annotation, *(found for part in getattr(annotation, "__args__", ()) for found in candidates(part))]


def unknown(place: str, name: str, known: list[str], renamed: Mapping[str, str] | None = None) -> str:
    """A name that is not known, and the nearest that is."""
    if renamed and name in renamed:
        return f"{place} was renamed to {renamed[name]}"
    return f"{place} is no known setting; {nearest(name, sorted(known))}"


def nearest(name: str, known: Iterable[str], what: str = "known") -> str:
    """The end of a message about a name that is not known: the nearest one that is, or all of them."""
    known = list(known)
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"{what} are {', '.join(known)}"


def shortened(value: Any, length: int = 80) -> str:
    """A value as it is shown in a message."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


class Table(Generic[R]):
    """Records by name: built-in rows, and those of the entry point group, loaded when first needed."""

    def __init__(self, title: str, rows: Mapping[str, type[R]], kind: type[R], group: str = ""):
        """`title` is what a row is called in messages, such as "loss"; every row is a subclass of `kind`."""
        self.title, self.own, self.kind, self.group = title, dict(rows), kind, group

    @cached_property
    def rows(self) -> dict[str, type[R] | EntryPoint]:
        """All rows; a plugin never replaces a built-in one, and one that does not load is an error when asked for."""
        return {**(first_of_each_name(self.group) if self.group else {}), **self.own}

    def plugins(self) -> tuple[Plugin, ...]:
        """Every plugin's row, loaded: what it gave, or why it gave nothing."""
        return load_all(self.group, subclass_of(self.kind), self.own)

    def row(self, name: str, place: str) -> type[R]:
        """The record called `name`."""
        if name not in self.rows:
            hint = nearest(str(name), sorted(self.rows))
            raise RecordError(f"{place}: there is no {self.title} called '{name}'; {hint}")
        found = self.rows[name]
        if isinstance(found, type):
            return found
        plugin = load(found, subclass_of(self.kind))
        if plugin.error:
            raise RecordError(f"{place}: {self.title} '{name}' of {plugin.origin} cannot be used: {plugin.error}")
        return plugin.value

    def read(self, name: str, settings: Any, place: str) -> R:
        """A row's record with these settings (None for its defaults)."""
        return read_record(self.row(name, place), settings or {}, place)

    def read_kind(self, settings: Any, place: str) -> R:
        """Settings whose key `kind` names the row: `{kind: folders, images: ...}`."""
        if not isinstance(settings, Mapping) or "kind" not in settings:
            raise RecordError(
                f"{place} has a 'kind', one of {', '.join(sorted(self.rows))}; found {shortened(settings)}"
            )
        rest = {key: value for key, value in settings.items() if key != "kind"}
        return self.read(settings["kind"], rest, place)

    def read_entry(self, entry: Any, place: str) -> R:
        """A list's entry: a name alone, or a name with its settings: `random_crop` or `{random_crop: {size: 512}}`."""
        if isinstance(entry, str):
            return self.read(entry, {}, place)
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise RecordError(f"{place} is one name, or one name with settings; found {shortened(entry)}")
        ((name, settings),) = entry.items()
        return self.read(name, settings, f"{place}.{name}")
