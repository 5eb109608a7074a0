"""Load entry points of other packages one by one, so that a broken one does not affect the others.

If several entry points have the same name, the first is used: this package's own, then in the order of their names and
targets.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any

PACKAGE = "hf_vit_seg"
PREFIX = PACKAGE + "."  # of every group

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plugin:
    """An entry point with its value, or the error of loading it."""

    group: str
    name: str
    target: str
    origin: str
    value: Any = None
    error: str | None = None


def origin(entry: EntryPoint) -> str:
    """Return the name and version of the package that defines an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"


def entries(*groups: str) -> list[EntryPoint]:
    """Return the entry points of some groups, this package's own first."""
    installed = entry_points()
    found = [entry for group in groups for entry in installed.select(group=group)]
    # An editable install can be listed twice.
    unique = {(origin(entry), entry.group, entry.name, entry.value): entry for entry in found}
    return sorted(unique.values(), key=lambda e: (e.dist is None or e.dist.name != PACKAGE, e.name, e.value))


def installed_versions() -> dict[str, Path]:
    """Return the installed versions of this package and where they are, the first of Python's path first."""
    found: dict[str, Path] = {}
    for distribution in distributions(name=PACKAGE):  # an editable install can be listed twice
        found.setdefault(distribution.version, Path(str(distribution.locate_file(""))))
    return found


def load(entry: EntryPoint, accept: Callable[[Any], None]) -> Plugin:
    """Load one entry point and check its value with `accept`; exceptions of both are stored as the error."""
    try:
        value = entry.load()
        accept(value)
    except (Exception, SystemExit) as error:  # third-party imports may raise anything
        return Plugin(entry.group, entry.name, entry.value, origin(entry), error=f"{type(error).__name__}: {error}")
    return Plugin(entry.group, entry.name, entry.value, origin(entry), value)


def load_all(group: str, accept: Callable[[Any], None], built_in: Collection[str] = ()) -> tuple[Plugin, ...]:
    """Load every entry point of a group; those with a duplicate or `built_in` name get an error instead."""
    owners = dict.fromkeys(built_in, PACKAGE)
    found = []
    for entry in entries(group):
        if entry.name in owners:
            reason = f"the name is already used by {owners[entry.name]}; choose another"
            found.append(Plugin(group, entry.name, entry.value, origin(entry), error=reason))
            continue
        owners[entry.name] = origin(entry)
        found.append(load(entry, accept))
    return tuple(found)


def first_of_each_name(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, not loaded."""
    return {entry.name: entry for entry in reversed(entries(group))}


def qualified_name(kind: type) -> str:
    """Return "module.Class", which a reload of the module does not change."""
    return f"{kind.__module__}.{kind.__qualname__}"


def subclass_of(kind: type) -> Callable[[Any], None]:
    """Return a check that accepts only subclasses of `kind`; TypeError for other values."""

    def accept(value: Any) -> None:
        if not (isinstance(value, type) and issubclass(value, kind)):
            found = f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
            raise TypeError(f"expected a subclass of {kind.__module__}.{kind.__name__}, found {found}")

    return accept


__all__ = [
    "PACKAGE",
    "PREFIX",
    "Plugin",
    "entries",
    "first_of_each_name",
    "installed_versions",
    "load",
    "load_all",
    "origin",
    "qualified_name",
    "subclass_of",
]
