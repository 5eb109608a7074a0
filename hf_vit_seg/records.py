"""Strict records: settings of YAML files, with a clear error message for invalid ones.

A record is a frozen pydantic model without extra keys. A table maps names to records, so that a file selects losses,
transforms or data formats by name; plugins add rows through entry points.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import EntryPoint
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from hf_vit_seg.errors import HfVitSegError

from .entry_points import Plugin, entries_by_name, implements, load_all, load_entry, subclass_check

MAX_COUNT = 10**9  # limit of steps, samples, side lengths and other counts
MAX_FACTOR = 1e9  # limit of learning rates, weights and similar factors: their products fit float32
MAX_EXPONENT = 100.0

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountFromZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Factor = Annotated[float, Field(gt=0, le=MAX_FACTOR)]
FactorFromZero = Annotated[float, Field(ge=0, le=MAX_FACTOR)]
Exponent = Annotated[float, Field(gt=0, le=MAX_EXPONENT)]
ExponentFromZero = Annotated[float, Field(ge=0, le=MAX_EXPONENT)]

# Replacements of pydantic's expressions for Python types by those of YAML.
MAPPING = "a mapping"
LITERALS = ("literal_error", "enum")  # errors of pydantic whose message quotes every choice
QUOTED = re.compile(r"'([^']*)'")
EXPECTED = {
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": MAPPING,
    "model_type": MAPPING,
    "path_type": "a path",
    "int_parsing_size": "a valid integer",
    "too_short": "a longer list",
}


class RecordError(HfVitSegError):
    """An invalid setting; the message has its dotted name, what was found, and what was expected."""


class Record(BaseModel):
    """Immutable settings without extra keys."""

    renamed: ClassVar[Mapping[str, str]] = {}  # former names of keys, for the error message

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


R = TypeVar("R", bound=Record)


def read_record(kind: type[R], settings: Any, location: str = "") -> R:
    """Read settings as a record; RecordError has the dotted name of the first invalid one."""
    if not isinstance(settings, Mapping):
        raise RecordError(f"{location or 'the file'} should be {MAPPING}, found {shorten(settings)}")
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        raise RecordError(error_message(kind, error.errors(), settings, location)) from None


def error_message(kind: type[BaseModel], errors: Sequence[ErrorDetails], settings: Any, location: str) -> str:
    """Format the first of pydantic's errors; a union type has an error for each of its members."""
    # Unknown keys come before missing ones: an unknown key is often a misspelled required one.
    error = most_specific(min(errors, key=lambda each: each["type"] != "extra_forbidden"), errors, settings)
    path = settings_path(error, settings)
    dotted = ".".join(filter(None, [location, *map(str, path)]))
    if error["type"] == "extra_forbidden":
        return unknown_setting(
            dotted, str(path[-1]), known_fields(kind, path), getattr(find_record(kind, path), "renamed", {})
        )
    if error["type"] == "missing":
        return f"{dotted} is missing, but {kind.__name__} requires it"
    if error["type"] == "value_error":
        reason = error["msg"].removeprefix("Value error, ")
        return f"{dotted}: {reason}" if dotted else reason
    expected = f"{dotted} should be {expectation(error, errors, settings)}, found {shorten(error['input'])}"
    return expected + suggestion(error["input"], choices(error, errors, settings))


def most_specific(error: ErrorDetails, errors: Sequence[ErrorDetails], settings: Any) -> ErrorDetails:
    """Return the error of the member of a union type that fits best: of an element, or by a rule beyond the type."""
    if error["type"] in ("extra_forbidden", "missing"):
        return error
    path = settings_path(error, settings)
    same = [problem for problem in errors if settings_path(problem, settings)[: len(path)] == path]
    return max(same, key=lambda problem: (len(settings_path(problem, settings)), problem["type"] == "value_error"))


def settings_path(error: ErrorDetails, settings: Any) -> tuple[int | str, ...]:
    """Return the keys and indices of an error's setting, without the type names that pydantic inserts."""
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
    """Join the expectations of all members of a setting's type, to follow "should be"."""
    path = settings_path(error, settings)
    same_path = [problem for problem in errors if settings_path(problem, settings) == path]
    expected = [
        EXPECTED.get(e["type"]) or e["msg"].removeprefix("Input should be ").partition(", unable")[0] for e in same_path
    ]
    return " or ".join(dict.fromkeys(expected))


def choices(error: ErrorDetails, errors: Sequence[ErrorDetails], settings: Any) -> list[str]:
    """Return the texts that a setting may be."""
    path = settings_path(error, settings)
    same_path = [problem for problem in errors if settings_path(problem, settings) == path]
    return [name for problem in same_path if problem["type"] in LITERALS for name in QUOTED.findall(problem["msg"])]


def known_fields(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the record that contains an unknown key."""
    return list(getattr(find_record(kind, location), "model_fields", {}))


def find_record(kind: type[BaseModel], location: tuple[int | str, ...]) -> Any:
    """Return the record that contains the key at `location`."""
    record: Any = kind
    for name in location[:-1]:
        field = getattr(record, "model_fields", {}).get(name)
        nested = [a for a in candidates(field.annotation) if hasattr(a, "model_fields")] if field else []
        record = nested[0] if nested else record
    return record


def candidates(annotation: Any) -> list[Any]:
    """Return a type and all of its nested type arguments."""
    return [annotation, *(found for part in getattr(annotation, "__args__", ()) for found in candidates(part))]


def unknown_setting(location: str, name: str, names: list[str], renamed: Mapping[str, str] | None = None) -> str:
    """Format the message for an unknown setting, with its new name or the nearest known one."""
    if renamed and name in renamed:
        return f"{location} was renamed to {renamed[name]}"
    return f"{location} is not a known setting; {nearest(name, sorted(names))}"


def nearest(name: str, names: Iterable[str], what: str = "known") -> str:
    """Format the end of a message about an unknown name: the nearest known one, or all of them."""
    names = list(names)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"{what} are {', '.join(names)}"


def suggestion(name: Any, names: Iterable[str]) -> str:
    """Format the end of a message that lists the known names: the nearest one, or nothing if none is near."""
    near = get_close_matches(name, list(names), n=1, cutoff=0.5) if isinstance(name, str) else []
    return f"; did you mean '{near[0]}'?" if near else ""


def shorten(value: Any, length: int = 80) -> str:
    """Format a value for a message, with at most `length` characters."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


class Table(Generic[R]):
    """Records by name: built-in rows, and those of an entry point group, which are loaded on first use."""

    def __init__(
        self, title: str, rows: Mapping[str, type[R]], kind: type[R], group: str = "", contract: type | None = None
    ):
        """`title` names a row in messages, such as "loss"; every row is a subclass of `kind`.

        `contract` is the Protocol of the methods that rows of plugins must define, see `entry_points`.
        """
        self.title, self.own, self.kind, self.group = title, dict(rows), kind, group
        self.accept = subclass_check(kind) if contract is None else implements(kind, contract)

    @cached_property
    def rows(self) -> dict[str, type[R] | EntryPoint]:
        """All rows; plugins cannot replace built-in ones, and a broken plugin is an error only when it is used."""
        return {**(entries_by_name(self.group) if self.group else {}), **self.own}

    def plugins(self) -> tuple[Plugin, ...]:
        """Load every plugin's row, or its error."""
        return load_all(self.group, self.accept, self.own)

    def row(self, name: str, location: str) -> type[R]:
        """Return the record type `name`; RecordError if it is unknown or a broken plugin."""
        if name not in self.rows:
            hint = nearest(str(name), sorted(self.rows))
            raise RecordError(f"{location}: unknown {self.title} '{name}'; {hint}")
        row = self.rows[name]
        if isinstance(row, type):
            return row
        plugin = load_entry(row, self.accept)
        if plugin.error:
            raise RecordError(f"{location}: {self.title} '{name}' of {plugin.origin} cannot be loaded: {plugin.error}")
        return plugin.value

    def read(self, name: str, settings: Any, location: str) -> R:
        """Read a row's record with these settings (None for its defaults)."""
        return read_record(self.row(name, location), settings or {}, location)

    def read_kind(self, settings: Any, location: str) -> R:
        """Read settings with a key `kind` that names the row: `{kind: folders, images: ...}`."""
        if not isinstance(settings, Mapping) or "kind" not in settings:
            raise RecordError(f"{location} needs a 'kind' ({', '.join(sorted(self.rows))}), found {shorten(settings)}")
        rest = {key: value for key, value in settings.items() if key != "kind"}
        return self.read(settings["kind"], rest, location)

    def read_entry(self, entry: Any, location: str) -> R:
        """Read a list's entry, a name with optional settings: `random_crop` or `{random_crop: {size: 512}}`."""
        if isinstance(entry, str):
            return self.read(entry, {}, location)
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise RecordError(f"{location} should be a name, or a name with settings, found {shorten(entry)}")
        ((name, settings),) = entry.items()
        return self.read(name, settings, f"{location}.{name}")
