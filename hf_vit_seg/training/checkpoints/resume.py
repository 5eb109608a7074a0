"""A run that goes on from a checkpoint: what has to be as it was, and what is said of the rest."""

from pathlib import Path

from hf_vit_seg.records import shortened
from hf_vit_seg.training.recipe.differences import differences, flat
from hf_vit_seg.training.recipe.files import plain
from hf_vit_seg.training.recipe.schema import Recipe

from .best_score import BestTracker
from .state import CheckpointError, DataMark, Manifest

SAME_SCORES = ("evaluation.batch_size", "evaluation.samples")  # however they are set
LENGTH = ("loop.steps", "loop.epochs")
WAYS = ("loop.batch_size", "loop.accumulation", "model.gradient_checkpointing")  # to the same step, but for rounding


def refuse_other_run(checkpoint: Path, manifest: Manifest, recipe: Recipe, processes: int) -> None:
    """CheckpointError unless the checkpoint belongs to this resolved recipe and to as many processes."""
    if manifest.processes != processes:
        raise CheckpointError(
            f"{checkpoint} was written by {manifest.processes} processes and this run has {processes}: start as many, "
            "or begin anew with --overwrite"
        )
    if differing := differences(recipe, Recipe.model_validate(manifest.recipe)):
        name, (now, then) = next(iter(differing.items()))
        others = f" (and {len(differing) - 1} more settings differ)" if len(differing) > 1 else ""
        raise CheckpointError(
            f"{checkpoint} was written with {name} = {shortened(then)}, and the recipe says {shortened(now)}{others}: "
            "set it back to go on, or begin anew with --overwrite"
        )


def refuse_other_data(manifest: Manifest, mark: DataMark) -> None:
    """CheckpointError unless the training data are those of the checkpoint, which is at a place in their order."""
    then = manifest.data
    if then == mark:
        return
    found = "as many with other names, or in another order" if then.samples == mark.samples else str(mark.samples)
    raise CheckpointError(
        f"the checkpoint of step {manifest.step} was written with {then.samples} samples in data.train, and there are "
        f"{found}: bring the data back as they were, or begin anew with --overwrite"
    )


def changes(manifest: Manifest, recipe: Recipe) -> dict[str, str]:
    """What a resolved recipe says in another way than the checkpoint's, by dotted name."""
    then, now = flat(manifest.recipe), flat(plain(recipe))
    return {
        name: f"{name} = {shortened(now.get(name))} (was {shortened(then.get(name))})"
        for name in {**then, **now}
        if then.get(name) != now.get(name)
    }


def measured_otherwise(name: str) -> bool:
    """Whether a setting changes what an evaluation finds."""
    return name.startswith("evaluation.") and name not in SAME_SCORES


def continuation_notes(manifest: Manifest, recipe: Recipe) -> list[str]:
    """A sentence on every change that a run does not go on as if nothing had happened with."""
    notes = []
    for name, change in changes(manifest, recipe).items():
        if name in WAYS:
            notes.append(f"{change}: from here on the run is not bit for bit what it would have been")
        elif name in LENGTH:
            notes.append(f"{change}: from here on the learning rate is that of a run of this length")
        elif measured_otherwise(name):
            notes.append(f"{change}: the best model so far is not compared with those to come")
    return notes


def resumed_best_tracker(manifest: Manifest, recipe: Recipe) -> BestTracker:
    """The checkpoint's best_tracker; a new one where evaluations measure otherwise than those before."""
    return BestTracker() if any(map(measured_otherwise, changes(manifest, recipe))) else manifest.best_tracker
