"""Accelerate's trackers (tensorboard, trackio, wandb ...): which there are, and how a run is told to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_vit_seg.records import RecordError, nearest
from hf_vit_seg.training.recipe.files import publishable_recipe


def check_trackers(names: Sequence[str]) -> None:
    """RecordError for a tracker that accelerate does not know, or whose package is not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    known = sorted(map(str, LOGGER_TYPE_TO_CLASS))
    own = {str(kind) for kind in LoggerType} - {"all"}
    missing = own - {str(kind) for kind in get_available_trackers()}  # a registered class is installed as it is
    for name in names:
        if name not in known:
            raise RecordError(f"trackers: accelerate has no tracker called '{name}'; {nearest(name, known)}")
        if name in missing:
            raise RecordError(f"trackers: '{name}' is not installed: pip install {name}, or take it out of trackers")


def start_trackers(
    accelerator: Any,
    names: Sequence[str],
    directory: Path,
    project: str,
    settings: Mapping[str, Any] | None,
    after: int | None,
) -> None:
    """Open the trackers on the main process, `after` the step that a resumed run has done already.

    What they write themselves goes to `directory`. `settings` may be nested; they are shown by dotted names,
    without paths of this machine, as some trackers send them elsewhere.
    """
    from accelerate.tracking import filter_trackers

    accelerator.project_configuration.logging_dir = str(directory)
    accelerator.log_with = filter_trackers(list(names), str(directory))
    # TensorBoard draws the steps between a checkpoint and a kill twice unless it is told to forget the first time.
    options = {} if after is None else {"tensorboard": {"purge_step": after + 1}}
    accelerator.init_trackers(project, config=dotted(publishable_recipe(settings or {})) or None, init_kwargs=options)


def dotted(settings: Mapping[str, Any], place: str = "") -> dict[str, str | float | int | bool]:
    """Nested settings on one level, as trackers take them; what is no number or word becomes text."""
    flat: dict[str, str | float | int | bool] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= dotted(value, f"{place}{name}.")
        else:
            flat[f"{place}{name}"] = value if isinstance(value, str | float | int | bool) else str(value)
    return flat
