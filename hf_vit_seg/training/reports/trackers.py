"""Check and start accelerate's trackers (tensorboard, trackio, wandb ...)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_vit_seg.records import RecordError, nearest
from hf_vit_seg.training.recipe.files import publishable_recipe


def check_trackers(names: Sequence[str]) -> None:
    """Raise RecordError for an unknown tracker, or one whose package is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    known = sorted(map(str, LOGGER_TYPE_TO_CLASS))
    own = {str(kind) for kind in LoggerType} - {"all"}
    missing = own - {str(kind) for kind in get_available_trackers()}  # a registered class needs no package
    for name in names:
        if name not in known:
            raise RecordError(f"trackers: unknown tracker '{name}'; {nearest(name, known)}")
        if name in missing:
            raise RecordError(f"trackers: '{name}' is not installed: pip install {name}, or remove it from trackers")


def start_trackers(
    accelerator: Any,
    names: Sequence[str],
    directory: Path,
    project: str,
    settings: Mapping[str, Any] | None,
    after: int | None,
) -> None:
    """Start the trackers on the main process; `after` is the last step before a resumed run.

    Their files are written to `directory`. Nested `settings` are flattened to dotted names, without local paths,
    because some trackers upload them.
    """
    from accelerate.tracking import filter_trackers

    accelerator.project_configuration.logging_dir = str(directory)
    accelerator.log_with = filter_trackers(list(names), str(directory))
    # Otherwise TensorBoard shows the steps between a checkpoint and an interruption twice.
    options = {} if after is None else {"tensorboard": {"purge_step": after + 1}}
    accelerator.init_trackers(
        project, config=flatten_settings(publishable_recipe(settings or {})) or None, init_kwargs=options
    )


def flatten_settings(settings: Mapping[str, Any], location: str = "") -> dict[str, str | float | int | bool]:
    """Flatten nested settings to dotted names; values that trackers do not support become strings."""
    flat: dict[str, str | float | int | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten_settings(value, f"{location}{name}.")
        else:
            flat[f"{location}{name}"] = value if isinstance(value, str | float | int | bool) else str(value)
    return flat
