"""The training loop: steps, evaluations and checkpoints, from the first or the resumed step to the last.

accelerate does all distributed work, so the same code runs on a CPU, a GPU, several processes or several machines
(`accelerate launch -m hf_vit_seg.training RECIPE`). All processes call these functions together.
"""

import math
import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from accelerate import Accelerator

from hf_vit_seg.error_reporting import log_bugs
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.training.checkpoints.best_score import BestTracker
from hf_vit_seg.training.checkpoints.main_process import lock_on_main_process, on_main_process
from hf_vit_seg.training.checkpoints.resume import refuse_other_run, restore_best_tracker
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory, lineage, write_model_directory
from hf_vit_seg.training.checkpoints.state import (
    Manifest,
    checkpoints,
    load_checkpoint,
    package_versions,
    read_manifest,
    read_stored_report,
    save_checkpoint,
    write_manifest,
)
from hf_vit_seg.training.evaluate_saved import write_evaluation
from hf_vit_seg.training.evaluation.evaluate import EvaluationContext, preserve_random_state, report_of
from hf_vit_seg.training.evaluation.tasks import evaluate
from hf_vit_seg.training.figures.evaluation_samples import write_sample_images
from hf_vit_seg.training.figures.plots import draw_plots
from hf_vit_seg.training.losses.objectives import Batch
from hf_vit_seg.training.optimization.gathered_weights import share_buffers, whole_model
from hf_vit_seg.training.optimization.schedules import set_rates
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.reports.memory_advice import memory_advice
from hf_vit_seg.training.reports.metrics_report import MetricsReport
from hf_vit_seg.training.reports.progress import Progress
from hf_vit_seg.training.reports.run_log import RunLog

from .best_model import complete_best_model
from .gradient_accumulation import accumulate, windows
from .setup import TrainingComponents, build_accelerator, prepare, resolve_recipe
from .signals import GracefulStop, release_workers

MAX_NOT_FINITE = 5  # steps in a row
SHOWN_SAMPLES = 8  # of a step whose loss is not finite


class TrainingError(HfVitSegError):
    """A run that cannot continue."""


class RunStatus(StrEnum):
    """How a run ended."""

    finished = "finished"
    early_stop = "stopped early"
    interrupted = "interrupted"


class Run:
    """A training run in its directory."""

    def __init__(
        self,
        parts: TrainingComponents,
        directory: RunDirectory,
        start: Manifest | None = None,
        report: MetricsReport | None = None,
    ):
        """`start` and `report` belong to the checkpoint of a resumed run; the components are loaded from it later."""
        self.parts, self.directory = parts, directory
        self.recipe, self.accelerator = parts.recipe, parts.accelerator
        self.step = self.saved_step = start.step if start else 0
        self.completed = start.completed if start else False
        self.best_tracker = restore_best_tracker(start, self.recipe) if start else BestTracker()
        self.recent = list(start.recent) if start else []
        self.evaluation_done = start.evaluation_done if start else True
        self.seconds = start.seconds if start else 0.0
        self.mark, self.timed, self.not_finite = time.perf_counter(), (0, 0.0), 0
        self.report = report
        self.provenance = lineage(self.recipe)  # fails before the training, not after it
        self.log = RunLog(
            directory.path,
            parts.accelerator,
            self.recipe.trackers,
            name=self.recipe.name,
            settings=self.recipe.model_dump(mode="json"),
        )
        self.log.truncate(self.step, self.evaluation_done)
        self.progress = Progress(
            parts.steps, self.step, log_every=self.recipe.loop.log_every, enabled=self.accelerator.is_main_process
        )

    def train(self) -> RunStatus:
        """Run the remaining steps; at the end write a checkpoint, and the last model unless interrupted."""
        with GracefulStop() as request, self.progress, release_workers():
            for note in self.parts.notes:
                self.progress.log(note)
            first = self.step
            ending = self.train_loop(request)
            if ending is not RunStatus.interrupted:
                self.complete(had_ended=self.step == first)
        return ending

    def train_loop(self, request: GracefulStop) -> RunStatus:
        """For each window of batches: step, log, and save and evaluate when due."""
        if not self.evaluation_done:
            self.evaluate_and_checkpoint(saved=True)
        self.mark = time.perf_counter()
        for window in windows(self.parts.loader, self.recipe.loop.accumulation):
            if self.best_tracker.has_ended(self.recipe.loop.early_stop):
                if self.saved_step != self.step:
                    self.checkpoint(evaluation_done=True)
                return RunStatus.early_stop
            if self.take_step(window, request):
                self.checkpoint(evaluation_done=False)
                return RunStatus.interrupted
            self.evaluate_and_checkpoint()
            self.mark = time.perf_counter()
        return RunStatus.finished

    def take_step(self, window: list[Batch], request: GracefulStop) -> bool:
        """Do one optimizer step on all processes; return whether any of them has received a stop signal."""
        self.step += 1
        self.completed = False
        parts = self.parts
        with memory_advice(self.recipe):
            part = accumulate(self.accelerator, parts.model, parts.objective, window)
            asked = torch.full_like(part, request.signal is not None)
            sums: Any = self.accelerator.reduce(torch.stack([part, asked]), "sum")
            loss, stops = sums.tolist()
            norm = self.clip_gradient()
            if self.is_sound(loss, norm):
                parts.optimizer.step()
                if parts.average is not None and not self.accelerator.optimizer_step_was_skipped:
                    parts.average.update(self.step)
            parts.optimizer.zero_grad()
        rate = max(group["lr"] for group in parts.optimizer.param_groups)
        parts.schedule.step()
        self.note(loss, norm, rate)
        return stops > 0

    def clip_gradient(self) -> float | None:
        """Clip the gradient if the recipe has `clip_norm`; return the norm before clipping."""
        if self.recipe.loop.clip_norm is None:
            return None
        norm: Any = self.accelerator.clip_grad_norm_(self.parts.model.parameters(), self.recipe.loop.clip_norm)
        if norm is None:  # DeepSpeed clips by itself
            return None
        return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # FSDP's is sharded

    def is_sound(self, loss: float, norm: float | None) -> bool:
        """Whether loss and gradient are finite, so that the step is done. TrainingError after too many that are not.

        With a loss scaler (fp16) gradients overflow occasionally; the scaler then skips the step.
        """
        scaled = self.accelerator.scaler is not None
        if math.isfinite(loss) and (scaled or norm is None or math.isfinite(norm)):
            self.not_finite = 0
            return True
        self.not_finite += 1
        if self.not_finite >= MAX_NOT_FINITE:
            raise TrainingError(self.not_finite_sentence(loss))
        return scaled

    def not_finite_sentence(self, loss: float) -> str:
        """Report the step and samples with a loss or gradient that is not finite, and what to try."""
        names = [self.parts.data.train.name(draw.index) for draw in self.parts.draws(self.step)]
        shown = ", ".join(names[:SHOWN_SAMPLES]) + (", ..." if len(names) > SHOWN_SAMPLES else "")
        what = "the gradient was not finite" if math.isfinite(loss) else f"the loss was {loss}"
        return (
            f"{what} in {self.not_finite} consecutive steps, last in step {self.step} (with {shown}); these steps were "
            f"skipped. Lower optimizer.learning_rate (now {self.recipe.optimizer.learning_rate:g}), use a longer "
            f"warmup, set loop.clip_norm, or set loop.precision=no (now {self.recipe.loop.precision})"
        )

    def note(self, loss: float, norm: float | None, rate: float) -> None:
        """Update the progress bar, and log the step when due."""
        elapsed = time.perf_counter() - self.mark
        self.seconds += elapsed
        self.timed = self.timed[0] + 1, self.timed[1] + elapsed  # steps and seconds since the last log line
        if math.isfinite(loss):
            self.recent.append(loss)
        each = self.parts.samples_per_step
        values = {"epoch": self.step * each / len(self.parts.data.train), "learning_rate": rate}
        self.progress.update(self.step, loss=loss, images_per_second=each / max(elapsed, 1e-9), **values)
        if self.is_due(self.recipe.loop.log_every):
            mean = sum(self.recent) / len(self.recent) if self.recent else math.nan
            norms = {} if norm is None else {"grad_norm": norm}
            speed = self.timed[0] * each / max(self.timed[1], 1e-9)
            self.log.step({"step": self.step, "loss": mean, **values, **norms, "images_per_second": speed})
            self.recent, self.timed = [], (0, 0.0)

    def is_due(self, every: int | None) -> bool:
        """Whether something that happens every `every` steps, and at the end, is due."""
        return self.step == self.parts.steps or (every is not None and self.step % every == 0)

    def evaluate_and_checkpoint(self, saved: bool = False) -> None:
        """Save a checkpoint, unless `saved`, and then evaluate, if due: a failed evaluation loses no step."""
        loop = self.recipe.loop
        evaluates = self.parts.data.validation is not None and self.is_due(loop.evaluate_every)
        saves = self.is_due(loop.checkpoint_every or loop.evaluate_every)
        if saves and not saved:
            self.checkpoint(evaluation_done=not evaluates)
        if evaluates:
            self.evaluate()
        if saved or (saves and evaluates):
            self.note_in_checkpoint()

    def evaluate(self) -> None:
        """Evaluate on the validation split, and save the model if it is the best so far."""
        validation = self.parts.data.validation
        assert validation is not None
        with self.whole() as model, self.progress.evaluating(len(validation)) as advance:
            context = EvaluationContext(model, self.parts.processor, self.recipe, self.accelerator, advance)
            found = evaluate(context, validation)
            name, value = found.metric(self.recipe)
            self.best_tracker = self.best_tracker.after(name, value, self.step, self.recipe.loop.early_stop)
            best = self.best_tracker.best_step == self.step
            report = report_of(found, self.recipe, self.parts.data.names, "validation", self.step)
            self.report = replace(report, details={"training_seconds": round(self.seconds, 1)})
            self.log.evaluation(self.step, found.scores)

            def write() -> None:
                if best:
                    self.write_model(self.directory.best, model)
                    write_sample_images(context, validation, self.directory.samples)

            on_main_process(self.accelerator, write)
        self.progress.show_score(name, value, best)

    def write_model(self, target: Path, model: Any, only_missing: bool = False) -> None:
        """Write a model directory, or only its missing files."""
        processor, report = self.parts.processor, self.report
        write_model_directory(target, model, processor, self.recipe, self.provenance, report, only_missing=only_missing)

    def whole(self):
        """Return a context manager for the complete model that is evaluated and saved."""
        return whole_model(self.accelerator, self.parts.model, self.parts.average, self.parts.scattered)

    def checkpoint(self, evaluation_done: bool) -> None:
        """Save a checkpoint of this step."""
        keep = self.recipe.loop.keep_checkpoints
        share_buffers(self.parts.model)  # sharded weights are saved with the buffers of any process
        manifest, folder = self.manifest(evaluation_done), self.directory.checkpoints
        save_checkpoint(self.accelerator, folder, manifest, self.parts.average, keep, self.report)
        self.saved_step = self.step

    def note_in_checkpoint(self) -> None:
        """Update the manifest of this step's checkpoint."""
        write_manifest(self.accelerator, self.directory.checkpoints, self.manifest(), self.report)

    def manifest(self, evaluation_done: bool = True) -> Manifest:
        """Return the manifest of the current step."""
        return Manifest(
            step=self.step,
            samples=self.step * self.parts.samples_per_step,
            processes=self.accelerator.num_processes,
            evaluation_done=evaluation_done,
            completed=self.completed,
            best_tracker=self.best_tracker,
            recent=tuple(self.recent),
            seconds=self.seconds,
            recipe=self.recipe.model_dump(mode="json"),
            data=self.parts.data.fingerprint,
            versions=package_versions(),
        )

    def complete(self, had_ended: bool) -> None:
        """Write the model of the last step and the plots.

        `had_ended` says that an earlier process made the last step. What it did not write, or was removed since, is
        added; what is there stays.
        """
        best_is_last = had_ended and self.best_tracker.best_step == self.step
        with preserve_random_state(self.accelerator.device), self.whole() as model:

            def write() -> None:
                self.write_model(self.directory.last, model, only_missing=self.completed)
                if best_is_last:
                    self.write_model(self.directory.best, model, only_missing=True)

            on_main_process(self.accelerator, write)
            if had_ended:
                self.restore_best()
            on_main_process(self.accelerator, lambda: draw_plots(self.directory.path))
        if not self.completed:
            self.completed = True
            self.note_in_checkpoint()

    def restore_best(self) -> None:
        """Add what is missing of the best model and of its sample images."""
        step = self.best_tracker.best_step
        if self.parts.data.validation is not None and step is not None:
            complete_best_model(self.parts, self.directory, step, self.provenance, self.seconds, self.progress.log)


def train(recipe: Recipe, directory: RunDirectory, *, resume: bool = False, overwrite: bool = False) -> RunStatus:
    """Train a recipe's model in a directory, which is locked during the run.

    At the end the best model is evaluated on the test split, if the recipe has one.

    `resume` continues from the newest checkpoint, or starts a new run if there is none; for a finished run it writes
    missing files. `overwrite` replaces a run. Raises RecordError, RunDirectoryError, InUseError, CheckpointError,
    OutOfMemory, TrainingError, and the errors of the data modules.
    """
    directory.check(resume, overwrite)
    accelerator = build_accelerator(recipe, directory.path)
    with lock_on_main_process(accelerator, directory.path):
        on_main_process(accelerator, lambda: directory.check(resume, overwrite))  # another run may have written it
        with log_bugs(directory.errors):
            return train_locked(recipe, directory, accelerator, resume)


def train_locked(recipe: Recipe, directory: RunDirectory, accelerator: Accelerator, resume: bool) -> RunStatus:
    """Train in a locked directory."""
    checkpoint = next(iter(reversed(checkpoints(directory.checkpoints))), None) if resume else None
    start = None if checkpoint is None else read_manifest(checkpoint)
    report = None if checkpoint is None else read_stored_report(checkpoint)
    if checkpoint is not None and start is not None:
        size = start.batch_size if recipe.loop.batch_size == "auto" else recipe.loop.batch_size
        recipe = resolve_recipe(recipe, accelerator, size)
        refuse_other_run(checkpoint, start, recipe, accelerator.num_processes)
    parts = prepare(recipe, accelerator, directory.facts, start)
    on_main_process(accelerator, lambda: directory.make_ready(parts.recipe, resume))
    run = Run(parts, directory, start, report)
    if checkpoint is not None:
        load_checkpoint(accelerator, checkpoint, parts.average)
        set_rates(parts.schedule.scheduler)
    try:
        ending = run.train()
        if ending is not RunStatus.interrupted and recipe.data.test is not None:
            evaluate_on_test(directory, parts.recipe)
        return ending
    finally:
        accelerator.end_training()


def evaluate_on_test(directory: RunDirectory, recipe: Recipe) -> None:
    """Evaluate the best model on the test split. A TrainingError names the trained model's directory."""
    try:
        write_evaluation(str(directory.model), recipe, "test", directory.test)
    except HfVitSegError as error:
        raise TrainingError(
            f"the trained model is in {directory.model}, but its evaluation on the test split failed: {error}; repeat "
            f"it with hf-vit-seg evaluate {quote(str(directory.model))} --split test"
        ) from error
