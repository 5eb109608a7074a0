"""The progress bar, the log and the clock of a run's steps."""

import math
import time
from typing import Any

from hf_vit_seg.training.checkpoints.state import Manifest
from hf_vit_seg.training.reports.progress import Progress, is_logged
from hf_vit_seg.training.reports.run_log import RunLog

from .optimizer_step import StepResult
from .setup import TrainingComponents


def is_due(step: int, steps: int, every: int | None) -> bool:
    """Return whether something that happens every `every` steps, and after the last one of `steps`, is due."""
    return step == steps or (every is not None and step % every == 0)


class StepLog:
    """Shows every step, and logs the first, and then the mean of the steps since the last line.

    `recent` are the losses since the last line, `seconds` is the time of all steps.
    """

    def __init__(self, parts: TrainingComponents, log: RunLog, progress: Progress, start: Manifest | None = None):
        """`start` belongs to the checkpoint of a resumed run."""
        self.parts, self.log, self.progress = parts, log, progress
        self.recent = list(start.recent) if start else []
        self.seconds = start.seconds if start else 0.0
        self.steps, self.elapsed, self.skipped = 0, 0.0, 0  # since the last line
        self.mark = time.perf_counter()

    def restart_clock(self) -> None:
        """Exclude the time since the last step, such as that of an evaluation."""
        self.mark = time.perf_counter()

    def add(self, step: int, result: StepResult) -> None:
        """Show a step that has ended, and log it when due."""
        elapsed = time.perf_counter() - self.mark
        self.seconds += elapsed
        self.steps, self.elapsed = self.steps + 1, self.elapsed + elapsed
        if math.isfinite(result.loss):
            self.recent.append(result.loss)
        if result.problem is not None:
            self.skipped += 1
            self.progress.log(f"step {step} was skipped: {result.problem}")
        each = self.parts.samples_per_step
        values: dict[str, Any] = {
            "epoch": step * each / len(self.parts.data.train),
            "learning_rate": result.learning_rate,
        }
        self.progress.update(step, loss=result.loss, images_per_second=each / max(elapsed, 1e-9), **values)
        if is_logged(step, self.parts.steps, self.parts.recipe.loop.log_every):
            mean = sum(self.recent) / len(self.recent) if self.recent else math.nan
            if result.gradient_norm is not None:
                values["grad_norm"] = result.gradient_norm
            if len(set(result.group_rates.values())) > 1:
                values["learning_rates"] = result.group_rates
            if self.skipped:
                values["skipped_steps"] = self.skipped
            speed = self.steps * each / max(self.elapsed, 1e-9)
            self.log.step({"step": step, "loss": mean, **values, "images_per_second": speed})
            self.recent, self.steps, self.elapsed, self.skipped = [], 0, 0.0, 0
