"""The learning rate over a run, as a table of pure functions of the step: a share of the peak, the same for all groups.

All shapes begin with a linear warm-up of w steps from `warmup_start` to 1; the first three end, at step n, at `final`.
With p = (step - w) / (n - w), from 0 to 1:

poly      final + (1 - final) * (1 - p) ** power
cosine    final + (1 - final) * (1 + cos(pi * p)) / 2
wsd       1, and over the last `decay_share` of all n steps down to `final` on a line (arXiv 2405.18392)
multistep factor ** (number of `milestones` that lie behind the step), as in ViTPose (arXiv 2204.12484)
constant  1

Where transformers' `get_*_schedule_with_warmup` has the same options, these are its numbers. mmsegmentation's poly
counts p from step 0, so that its rate is smaller by the factor ((n - w) / n) ** power: by 1 % for SegFormer on ADE20K.
"""

from collections.abc import Callable
from math import cos, pi

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hf_vit_seg.records import RecordError
from hf_vit_seg.training.recipe.schema import ScheduleRecipe

Share = Callable[[int], float]
Shape = Callable[[ScheduleRecipe, float, float], float]


def poly(recipe: ScheduleRecipe, progress: float, past: float) -> float:
    """A power of what is left."""
    return recipe.final + (1 - recipe.final) * (1 - progress) ** recipe.power


def cosine(recipe: ScheduleRecipe, progress: float, past: float) -> float:
    """Half a wave."""
    return recipe.final + (1 - recipe.final) * (1 + cos(pi * progress)) / 2


def wsd(recipe: ScheduleRecipe, progress: float, past: float) -> float:
    """Level, and a straight line down at the end."""
    return recipe.final + (1 - recipe.final) * min((1 - past) / recipe.decay_share, 1)


def multistep(recipe: ScheduleRecipe, progress: float, past: float) -> float:
    """Stairs down."""
    return recipe.factor ** sum(past >= milestone for milestone in recipe.milestones)


def constant(recipe: ScheduleRecipe, progress: float, past: float) -> float:
    """The peak."""
    return 1.0


SHAPES: dict[str, Shape] = {"poly": poly, "cosine": cosine, "wsd": wsd, "multistep": multistep, "constant": constant}


def warmup_steps(recipe: ScheduleRecipe, steps: int) -> int:
    """The length of the warm-up; a number below 1 is a share of all steps, rounded."""
    asked = recipe.warmup_steps
    count = round(asked * steps) if asked < 1 else int(asked)
    if asked >= 1 and count != asked:
        raise RecordError(f"schedule.warmup_steps is a whole number, or a share below 1; found {asked}")
    if count >= steps and count:
        raise RecordError(f"schedule.warmup_steps: a warm-up of {count} steps leaves nothing of a run of {steps}")
    decay = recipe.decay_share * steps if recipe.name == "wsd" else 0
    if count + decay > steps:
        raise RecordError(
            f"schedule: a warm-up of {count} steps and a decay over {recipe.decay_share:g} of all steps are more than "
            f"the run's {steps}"
        )
    return count


def share_of_peak(recipe: ScheduleRecipe, steps: int) -> Share:
    """The share of the peak that step 0, 1, ... of a run of `steps` steps has; RecordError for a warm-up too long."""
    warmup, shape = warmup_steps(recipe, steps), SHAPES[recipe.name]

    def share(step: int) -> float:
        if step < warmup:
            return recipe.warmup_start + (1 - recipe.warmup_start) * step / warmup
        past = min(step / steps, 1.0)
        return shape(recipe, min((step - warmup) / (steps - warmup), 1.0), past)

    return share


def build_schedule(optimizer: Optimizer, recipe: ScheduleRecipe, steps: int) -> LambdaLR:
    """The schedule of a run of `steps` steps of the optimizer, each followed by one `step()` of the schedule.

    Its `state_dict` is all that a resumed run needs. accelerate must be told `step_scheduler_with_optimizer=False`,
    else it makes the schedule step once for every process.
    """
    return LambdaLR(optimizer, share_of_peak(recipe, steps))


def set_rates(schedule: LambdaLR) -> None:
    """Give every group the rate of the schedule's step: a checkpoint's is that of a run of the checkpoint's length."""
    groups = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, peak, share in groups:
        group["lr"] = peak * share(schedule.last_epoch)
