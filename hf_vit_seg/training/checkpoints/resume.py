"""Check whether a run can resume from a checkpoint, and report changed settings."""

from pathlib import Path

from hf_vit_seg.records import shorten
from hf_vit_seg.training.recipe.differences import differences, flatten_settings
from hf_vit_seg.training.recipe.files import record_settings
from hf_vit_seg.training.recipe.paths import DATA_PATH
from hf_vit_seg.training.recipe.schema import Recipe

from .best_score import BestTracker
from .state import CheckpointError, DataFingerprint, Manifest

SAME_SCORES = ("evaluation.batch_size", "evaluation.samples")  # these do not change scores
LENGTH = ("loop.steps", "loop.epochs")
SAME_STEPS = ("loop.batch_size", "loop.accumulation", "model.gradient_checkpointing")  # except for rounding


def check_same_run(checkpoint: Path, manifest: Manifest, recipe: Recipe, processes: int, sharded: bool) -> None:
    """Raise CheckpointError unless the checkpoint belongs to this resolved recipe.

    The number of processes may differ if their samples per step are the same, and weights are not sharded.
    """
    if manifest.processes != processes and sharded:
        raise CheckpointError(
            f"{checkpoint} was written by {manifest.processes} processes, but this run has {processes}, which is not "
            f"supported with sharded weights; start {manifest.processes}, or start over with --overwrite"
        )
    if differing := differences(recipe, Recipe.model_validate(manifest.recipe), processes, manifest.processes):
        name, (now, then) = next(iter(differing.items()))
        others = f" (and {len(differing) - 1} more settings differ)" if len(differing) > 1 else ""
        raise CheckpointError(
            f"{checkpoint} was written with {name} = {shorten(then)}, but the recipe has {shorten(now)}{others}; "
            "restore the setting, or start over with --overwrite"
        )


def check_same_data(manifest: Manifest, fingerprint: DataFingerprint) -> None:
    """Raise CheckpointError if the training data have changed: the checkpoint is a position in their order."""
    then = manifest.data
    if then == fingerprint:
        return
    if then.model_copy(update={"weights": fingerprint.weights}) == fingerprint:
        raise CheckpointError(
            f"the checkpoint of step {manifest.step} was written with other sample weights (data.sampling): the "
            "frequencies of the classes or the file of weights changed; restore them, or start over with --overwrite"
        )
    difference = (
        "the same number with other names or in another order"
        if then.samples == fingerprint.samples
        else str(fingerprint.samples)
    )
    raise CheckpointError(
        f"the checkpoint of step {manifest.step} was written with {then.samples} samples in data.train, "
        f"found {difference}; restore the data, or start over with --overwrite"
    )


def changes(manifest: Manifest, recipe: Recipe) -> dict[str, str]:
    """Describe the settings that differ between the checkpoint and a resolved recipe, by dotted name."""
    then, now = flatten_settings(manifest.recipe), flatten_settings(record_settings(recipe))
    changed = {}
    for name in {**then, **now}:
        value, before = now.get(name), then.get(name)
        if value != before:
            show = str if DATA_PATH.fullmatch(name) else shorten  # only the end of two long paths may differ
            changed[name] = f"{name} = {show(value)} (was {show(before)})"
    return changed


def affects_scores(name: str) -> bool:
    """Return whether a setting changes the scores of evaluations."""
    return name.startswith("evaluation.") and name not in SAME_SCORES


def resume_notes(manifest: Manifest, recipe: Recipe, processes: int) -> list[str]:
    """Describe the effect of every changed setting and of another number of processes, for the log."""
    notes = []
    if manifest.processes != processes:
        notes.append(
            f"{processes} processes (was {manifest.processes}): samples, their transforms and the learning rate are as "
            "before; dropout, BatchNorm statistics and the order of sums are not bit-identical from here on"
        )
    for name, change in changes(manifest, recipe).items():
        if name in SAME_STEPS:
            notes.append(f"{change}: the run is not bit-identical from here on")
        elif name in LENGTH:
            notes.append(f"{change}: the learning rate follows the new length from here on")
        elif affects_scores(name):
            notes.append(f"{change}: the best model so far is not compared with later ones")
        elif DATA_PATH.fullmatch(name):
            notes.append(f"{change}: the data were moved; their names and number are the same")
    return notes


def restore_best_tracker(manifest: Manifest, recipe: Recipe) -> BestTracker:
    """Return the checkpoint's best_tracker; a new one if evaluation settings have changed."""
    return BestTracker() if any(map(affects_scores, changes(manifest, recipe))) else manifest.best_tracker
