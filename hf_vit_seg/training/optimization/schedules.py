"""Learning rate schedules: pure functions of the step that return a factor of the peak, the same for all groups.

All begin with a linear warmup of w steps from `warmup_start` to 1; the first three reach `final` at step n.
With p = (step - w) / (n - w), from 0 to 1:

poly      final + (1 - final) * (1 - p) ** power
cosine    final + (1 - final) * (1 + cos(pi * p)) / 2
wsd       1, then linear to `final` over the last `decay_share` of all n steps (arXiv 2405.18392)
multistep factor ** (number of passed `milestones`), as in ViTPose (arXiv 2204.12484)
constant  1

With equal options, the rates equal those of transformers' `get_*_schedule_with_warmup`. mmsegmentation's poly counts p
from step 0, so its rate is smaller by the factor ((n - w) / n) ** power: by 1 % for SegFormer on ADE20K.
"""

from collections.abc import Callable
from math import cos, pi

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hf_vit_seg.records import RecordError
from hf_vit_seg.training.recipe.schema import ScheduleRecipe

Factor = Callable[[int], float]
Shape = Callable[[ScheduleRecipe, float, float], float]


def poly(recipe: ScheduleRecipe, progress: float, past: float) -> float:
    """Return the rate of a polynomial decay."""
    return recipe.final + (1 - recipe.final) * (1 - progress) ** recipe.power


def cosine(recipe: ScheduleRecipe, progress: float, past: float) -> float:
    """Return the rate of a cosine decay."""
    return recipe.final + (1 - recipe.final) * (1 + cos(pi * progress)) / 2


def wsd(recipe: ScheduleRecipe, progress: float, past: float) -> float:
    """Return a constant rate with a linear decay at the end (warmup, stable, decay)."""
    return recipe.final + (1 - recipe.final) * min((1 - past) / recipe.decay_share, 1)


def multistep(recipe: ScheduleRecipe, progress: float, past: float) -> float:
    """Return the rate of a step decay at milestones."""
    return recipe.factor ** sum(past >= milestone for milestone in recipe.milestones)


def constant(recipe: ScheduleRecipe, progress: float, past: float) -> float:
    """Return a constant rate."""
    return 1.0


SHAPES: dict[str, Shape] = {"poly": poly, "cosine": cosine, "wsd": wsd, "multistep": multistep, "constant": constant}


def warmup_steps(recipe: ScheduleRecipe, steps: int) -> int:
    """Return the number of warmup steps; a number below 1 is a share of all steps, rounded."""
    asked = recipe.warmup_steps
    count = round(asked * steps) if asked < 1 else int(asked)
    if asked >= 1 and count != asked:
        raise RecordError(f"schedule.warmup_steps: found {asked}, expected an integer, or a share below 1")
    if count >= steps and count:
        raise RecordError(f"schedule.warmup_steps: found {count}, expected less than the run's {steps} steps")
    decay = recipe.decay_share * steps if recipe.name == "wsd" else 0
    if count + decay > steps:
        raise RecordError(
            f"schedule: {count} warmup steps and a decay over {recipe.decay_share:g} of all steps exceed the run's "
            f"{steps} steps"
        )
    return count


def peak_factor(recipe: ScheduleRecipe, steps: int) -> Factor:
    """Return a function from the step (from 0) to the factor of the peak; RecordError if the warmup is too long."""
    warmup, shape = warmup_steps(recipe, steps), SHAPES[recipe.name]

    def factor(step: int) -> float:
        if step < warmup:
            return recipe.warmup_start + (1 - recipe.warmup_start) * step / warmup
        past = min(step / steps, 1.0)
        return shape(recipe, min((step - warmup) / (steps - warmup), 1.0), past)

    return factor


def build_schedule(optimizer: Optimizer, recipe: ScheduleRecipe, steps: int) -> LambdaLR:
    """Build the schedule for `steps` optimizer steps, with one `step()` after each.

    Its `state_dict` is enough to resume. accelerate needs `step_scheduler_with_optimizer=False`; otherwise it steps
    the schedule once per process.
    """
    return LambdaLR(optimizer, peak_factor(recipe, steps))


def schedule_factor(schedule: LambdaLR) -> float:
    """Return the factor of the learning rates in the current step."""
    return schedule.lr_lambdas[0](schedule.last_epoch)


def set_rates(schedule: LambdaLR) -> None:
    """Set every group's rate from the schedule, because a checkpoint's rates belong to the length of its run."""
    groups = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
    for group, peak, factor in groups:
        group["lr"] = peak * factor(schedule.last_epoch)
