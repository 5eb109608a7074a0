"""Compare two recipes."""

import os
from pathlib import Path
from typing import Any

from .files import record_settings
from .paths import DATA_PATH, exists
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
    "data.oks_sigmas",
)
SAMPLES_PER_STEP = "loop.batch_size * loop.accumulation * processes"


def differences(
    recipe: Recipe, other: Recipe, processes: int = 1, other_processes: int = 1
) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from those of an earlier recipe, except those that a resumed run may change.

    The names are dotted. Paths of data that no longer exist may change, too: the data were moved.
    """
    now, then = fixed_settings(recipe, processes), fixed_settings(other, other_processes)
    differing = {name: (now.get(name), then.get(name)) for name in {**now, **then} if now.get(name) != then.get(name)}
    return {name: values for name, values in differing.items() if not is_moved(name, values[1])}


def is_moved(name: str, path: Any) -> bool:
    """Return whether a setting is the path of data that no longer exists (relative names may be Hub datasets)."""
    return (
        DATA_PATH.fullmatch(name) is not None
        and isinstance(path, str)
        and os.path.isabs(path)
        and not exists(Path(path))
    )


def fixed_settings(recipe: Recipe, processes: int) -> dict[str, Any]:
    """Return the settings that a resumed run must not change; of those of the batch only the samples per step."""
    settings = {
        name: value
        for name, value in flatten_settings(record_settings(recipe)).items()
        if not name.startswith(FREE_TO_CHANGE)
    }
    size, passes = settings.pop("loop.batch_size"), settings.pop("loop.accumulation")
    return settings | {SAMPLES_PER_STEP: size if size == "auto" else size * passes * processes}


def flatten_settings(settings: Any, location: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    entries = settings.items() if isinstance(settings, dict) else enumerate(settings)
    flat: dict[str, Any] = {}
    for name, value in entries:
        here = f"{location}.{name}" if location else str(name)
        flat |= flatten_settings(value, here) if isinstance(value, dict | list) and value else {here: value}
    return flat


__all__ = ["differences", "flatten_settings"]
