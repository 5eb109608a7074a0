"""Compare two recipes."""

from typing import Any

from .files import plain
from .schema import Recipe

# Settings that may change when a run is resumed: outputs, evaluations, length, and how a step is computed.
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
    """Return the settings that differ, by dotted name, except those that a resumed run may change."""
    ours, theirs = fixed_settings(recipe), fixed_settings(other)
    return {
        name: (ours.get(name), theirs.get(name)) for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)
    }


def fixed_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that a resumed run must not change; of batch size and accumulation only the product."""
    settings = {name: value for name, value in flatten(plain(recipe)).items() if not name.startswith(FREE_TO_CHANGE)}
    size, passes = settings.pop("loop.batch_size"), settings.pop("loop.accumulation")
    return settings | {"loop.batch_size * loop.accumulation": size if size == "auto" else size * passes}


def flatten(settings: Any, place: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    entries = settings.items() if isinstance(settings, dict) else enumerate(settings)
    found: dict[str, Any] = {}
    for name, value in entries:
        here = f"{place}.{name}" if place else str(name)
        found |= flatten(value, here) if isinstance(value, dict | list) and value else {here: value}
    return found


__all__ = ["differences", "flatten"]
