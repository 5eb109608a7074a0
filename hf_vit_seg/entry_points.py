"""What other packages bring: entry points, loaded one by one, so that a broken one takes no other down.

A name belongs to the first that has it: this package's own, then by the names and targets of the entry points.
"""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

PACKAGE = "hf_vit_seg"
PREFIX = PACKAGE + "."  # of every group

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plugin:
    """An entry point found in the environment: what it gave, or why it gave nothing."""

    group: str
    name: str
    target: str
    origin: str
    value: Any = None
    error: str | None = None


def origin(entry: EntryPoint) -> str:
    """The package that brings an entry point, and its version."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"


def entries(group: str) -> list[EntryPoint]:
    """The entry points of a group, this package's own first."""
    # An editable install can be listed twice.
    unique = {(origin(entry), entry.name, entry.value): entry for entry in entry_points(group=group)}
    return sorted(unique.values(), key=lambda e: (e.dist is None or e.dist.name != PACKAGE, e.name, e.value))


def load(entry: EntryPoint, accept: Callable[[Any], None]) -> Plugin:
    """Load one entry point and let `accept` judge what it gave; whatever either raises is kept as the error."""
    try:
        value = entry.load()
        accept(value)
    except (Exception, SystemExit) as error:  # a stranger's import may do anything, and must not take the others down
        return Plugin(entry.group, entry.name, entry.value, origin(entry), error=f"{type(error).__name__}: {error}")
    return Plugin(entry.group, entry.name, entry.value, origin(entry), value)


def load_all(group: str, accept: Callable[[Any], None], built_in: Collection[str] = ()) -> tuple[Plugin, ...]:
    """Every entry point of a group; of those of one name the first is loaded, and none with a `built_in` name."""
    owners = dict.fromkeys(built_in, PACKAGE)
    found = []
    for entry in entries(group):
        if entry.name in owners:
            reason = f"the name is taken by {owners[entry.name]}: it must be another"
            found.append(Plugin(group, entry.name, entry.value, origin(entry), error=reason))
            continue
        owners[entry.name] = origin(entry)
        found.append(load(entry, accept))
    return tuple(found)


def first_of_each_name(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, not loaded."""
    return {entry.name: entry for entry in reversed(entries(group))}


def subclass_of(kind: type) -> Callable[[Any], None]:
    """Accepts subclasses of `kind`; TypeError for anything else."""

    def accept(value: Any) -> None:
        if not (isinstance(value, type) and issubclass(value, kind)):
            found = f"class {value.__name__}" if isinstance(value, type) else type(value).__name__
            raise TypeError(f"expected a subclass of {kind.__module__}.{kind.__name__}, found {found}")

    return accept


__all__ = ["PREFIX", "Plugin", "entries", "first_of_each_name", "load", "load_all", "origin", "subclass_of"]
