"""One optimizer step on all processes. A step with a loss, gradient or buffers that are not finite is undone.

Shapes: B images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.training.checkpoints.state import Manifest
from hf_vit_seg.training.losses.objectives import Batch
from hf_vit_seg.training.model.normalization import batchnorm_advice
from hf_vit_seg.training.optimization.parameter_groups import NO_DECAY_SUFFIX
from hf_vit_seg.training.optimization.schedules import schedule_factor
from hf_vit_seg.training.reports.memory_advice import memory_advice

from .gradient_accumulation import accumulate
from .setup import TrainingComponents
from .signals import GracefulStop

MAX_NOT_FINITE = 5  # steps in a row
SHOWN_SAMPLES = 8  # samples named for a skipped step


class TrainingError(HfVitSegError):
    """A run that cannot continue."""


@dataclass(frozen=True)
class StepResult:
    """The result of a step: `problem` is the reason if it was skipped, `stop` whether a process received a stop signal.

    `gradient_norm`, before clipping, is None with DeepSpeed, which clips by itself. `learning_rate` is the
    recipe's times the factor of the schedule, and `group_rates` are those of the groups of parameters.
    """

    loss: float
    gradient_norm: float | None
    learning_rate: float
    group_rates: dict[str, float]
    problem: str | None
    stop: bool


class OptimizerStep:
    """Takes optimizer steps, and counts those that were skipped.

    `skipped` counts steps whose loss, gradient or buffers were not finite, `overflows` those that the loss scaler of
    fp16 skipped to find its scale.
    """

    def __init__(self, parts: TrainingComponents, start: Manifest | None = None):
        """`start` belongs to the checkpoint of a resumed run."""
        self.parts = parts
        self.skipped = start.skipped_steps if start else 0
        self.overflows = start.loss_scale_overflows if start else 0
        self.consecutive = 0

    def take(self, step: int, window: list[Batch], request: GracefulStop) -> StepResult:
        """Run step `step` (from 1) with a window of batches. Raises TrainingError after too many steps that are not
        finite.
        """
        parts = self.parts
        before = BufferSnapshot(parts.model)
        if parts.annealing is not None:
            parts.annealing.set(step, parts.steps)
        with memory_advice(parts.recipe), batchnorm_advice():
            part = accumulate(parts.accelerator, parts.model, parts.objective, window)
            stop = torch.full_like(part, request.signal is not None)
            sums: Any = torch.stack([part, stop, before.not_finite().to(part)])
            loss, stops, not_finite = parts.accelerator.reduce(sums, "sum").tolist()  # pyright: ignore
            norm = self.clip_gradient()
            problem = self.find_problem(loss, not_finite > 0, norm)
            if not self.update(step, problem):
                before.restore()
            parts.optimizer.zero_grad()
        rate = parts.recipe.optimizer.learning_rate * schedule_factor(parts.schedule.scheduler)
        group_rates = rates_by_part(parts.optimizer.param_groups)
        parts.schedule.step()
        if problem is not None:
            problem = f"{problem} (with {self.sample_names(step)})"
        self.count(step, problem)
        return StepResult(loss, norm, rate, group_rates, problem, stops > 0)

    def clip_gradient(self) -> float | None:
        """Clip the gradient if the recipe has `clip_norm`; return the norm before clipping."""
        limit = self.parts.recipe.loop.clip_norm or math.inf
        norm: Any = self.parts.accelerator.clip_grad_norm_(self.parts.model.parameters(), limit)
        if norm is None:
            return None
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # FSDP's is sharded

    def find_problem(self, loss: float, buffers_not_finite: bool, norm: float | None) -> str | None:
        """Describe values that are not finite; None if all are, or if the loss scaler of fp16 reduces its scale."""
        if not math.isfinite(loss):
            return f"the loss was {loss}"
        if buffers_not_finite:
            return "the statistics of normalization layers were not finite"
        scaler: Any = self.parts.accelerator.scaler
        if norm is None or math.isfinite(norm) or (scaler is not None and scaler.get_scale() > 1):
            return None
        return "the gradient was not finite"

    def update(self, step: int, problem: str | None) -> bool:
        """Update the weights and their average, unless there is a problem; return whether weights have changed."""
        parts = self.parts
        if problem is not None:
            if parts.accelerator.scaler is not None:
                parts.accelerator.scaler.update()
            return False
        parts.optimizer.step()
        if parts.accelerator.optimizer_step_was_skipped:
            self.overflows += 1
            return False
        if parts.average is not None:
            parts.average.update(step)
        return True

    def count(self, step: int, problem: str | None) -> None:
        """Count a skipped step; TrainingError after too many in a row."""
        if problem is None:
            self.consecutive = 0
            return
        self.skipped += 1
        self.consecutive += 1
        if self.consecutive >= MAX_NOT_FINITE:
            recipe = self.parts.recipe
            raise TrainingError(
                f"{problem} in {self.consecutive} consecutive steps, last in step {step}; these steps were "
                f"skipped. Lower optimizer.learning_rate (now {recipe.optimizer.learning_rate:g}), use a longer "
                f"warmup, set loop.clip_norm, or set loop.precision=no (now {recipe.loop.precision})"
            )

    def sample_names(self, step: int) -> str:
        """List the samples of a step on all processes."""
        names = [self.parts.data.train.name(draw.index) for draw in self.parts.draws(step)]
        return ", ".join(names[:SHOWN_SAMPLES]) + (", ..." if len(names) > SHOWN_SAMPLES else "")

    def counts(self) -> dict[str, int]:
        """Return the counts of skipped steps for reports and checkpoints."""
        return {"skipped_steps": self.skipped, "loss_scale_overflows": self.overflows}


def rates_by_part(groups: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the learning rates of an optimizer's groups by the part of the model, such as "encoder" and "head"."""
    rates: dict[str, float] = {}
    for group in groups:
        full = group.get("name", "all")
        part = full.removesuffix(NO_DECAY_SUFFIX)
        rates[full if rates.get(part, group["lr"]) != group["lr"] else part] = group["lr"]
    return rates


class BufferSnapshot:
    """A copy of a model's buffers, such as BatchNorm's running statistics, which a forward pass changes."""

    def __init__(self, model: nn.Module):
        self.buffers = list(model.buffers())
        self.copies = [buffer.detach().clone() for buffer in self.buffers]

    def not_finite(self) -> torch.Tensor:
        """Return whether a forward pass has made a buffer infinite or NaN, a scalar bool tensor."""
        floats = [i for i, buffer in enumerate(self.buffers) if buffer.is_floating_point() and buffer.numel()]
        if not floats:
            return torch.tensor(False)
        now = finite_tensors([self.buffers[i] for i in floats])
        before = finite_tensors([self.copies[i] for i in floats])
        return (before & ~now).any()

    def restore(self) -> None:
        """Undo the changes of a skipped step to the buffers."""
        for buffer, copy in zip(self.buffers, self.copies, strict=True):
            buffer.detach().copy_(copy)


def finite_tensors(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return whether each of N tensors has only finite values (N,)."""
    largest = torch._foreach_norm([tensor.detach() for tensor in tensors], math.inf)
    return torch.stack([value.float() for value in largest]).isfinite()
