"""Settings in which two recipes differ."""

from typing import Any

from .files import plain
from .schema import Recipe

# What may differ between a run and its continuation: where and how often things are written and measured, how long it
# lasts, and how a step is gone through.
FREE_TO_CHANGE = (
    "name",
    "output",
    "trackers",
    "loop.steps",
    "loop.epochs",
    "loop.log_every",
    "loop.evaluate_every",
    "loop.checkpoint_every",
    "loop.keep_checkpoints",
    "evaluation",
    "model.gradient_checkpointing",
    "data.workers",
    "data.cache",
)


def differences(recipe: Recipe, other: Recipe) -> dict[str, tuple[Any, Any]]:
    """Settings in which two recipes differ, by dotted name, except those that a continued run is free to change."""
    ours, theirs = deciding(recipe), deciding(other)
    return {
        name: (ours.get(name), theirs.get(name)) for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)
    }


def deciding(recipe: Recipe) -> dict[str, Any]:
    """The settings that decide what becomes of a run: of batch size and accumulation their product alone."""
    settings = {name: value for name, value in flat(plain(recipe)).items() if not name.startswith(FREE_TO_CHANGE)}
    size, passes = settings.pop("loop.batch_size"), settings.pop("loop.accumulation")
    return settings | {"loop.batch_size * loop.accumulation": size if size == "auto" else size * passes}


def flat(settings: Any, place: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    entries = settings.items() if isinstance(settings, dict) else enumerate(settings)
    found: dict[str, Any] = {}
    for name, value in entries:
        here = f"{place}.{name}" if place else str(name)
        found |= flat(value, here) if isinstance(value, dict | list) and value else {here: value}
    return found


__all__ = ["differences", "flat"]
