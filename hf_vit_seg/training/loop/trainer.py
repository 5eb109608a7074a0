"""The training loop: steps, evaluations and checkpoints, from the first or the resumed step to the last.

accelerate does all distributed work, so the same code runs on a CPU, a GPU, several processes or several machines
(`accelerate launch -m hf_vit_seg.training RECIPE`). All processes call these functions together.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from shlex import quote
from typing import Any

from accelerate import Accelerator

from hf_vit_seg.error_reporting import log_bugs
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.provenance import package_versions
from hf_vit_seg.training.checkpoints.best_score import BestTracker
from hf_vit_seg.training.checkpoints.main_process import lock_on_main_process, on_main_process
from hf_vit_seg.training.checkpoints.resume import check_same_run, restore_best_tracker
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory, lineage, write_model_directory
from hf_vit_seg.training.checkpoints.state import (
    PACKAGES,
    Manifest,
    checkpoints,
    load_checkpoint,
    read_manifest,
    read_stored_report,
    save_checkpoint,
    write_manifest,
)
from hf_vit_seg.training.evaluate_saved import write_evaluation
from hf_vit_seg.training.evaluation.evaluate import EvaluationContext, build_report, preserve_random_state
from hf_vit_seg.training.evaluation.tasks import evaluate
from hf_vit_seg.training.figures.evaluation_samples import write_extreme_samples, write_sample_images
from hf_vit_seg.training.optimization.gathered_weights import SHARDING, gathered_model, share_buffers
from hf_vit_seg.training.optimization.schedules import set_rates
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.reports.metrics_report import MetricsReport, describe_never_predicted
from hf_vit_seg.training.reports.progress import Progress
from hf_vit_seg.training.reports.run_log import RunLog

from .best_model import complete_best_model
from .gradient_accumulation import windows
from .optimizer_step import OptimizerStep, TrainingError
from .process_errors import report_killed_processes
from .run_outputs import RunOutputs
from .setup import TrainingComponents, build_accelerator, prepare_training, resolve_recipe
from .signals import GracefulStop, release_workers
from .step_log import StepLog, is_due

CARDS = "hf_vit_seg.hub.card:write_run_cards"  # a name, because `hub` imports `training`
DRAWN_BATCHES = 2  # training batches with a figure


class RunStatus(StrEnum):
    """The status of a finished run."""

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
        self.evaluation_done = start.evaluation_done if start else True
        self.report = report
        self.provenance = lineage(self.recipe)  # fails before the training, not after it
        settings = self.recipe.model_dump(mode="json")
        self.log = RunLog(
            directory.path, parts.accelerator, self.recipe.trackers, name=self.recipe.name, settings=settings
        )
        self.log.truncate(self.step, self.evaluation_done)
        self.progress = Progress(
            parts.steps, self.step, log_every=self.recipe.loop.log_every, enabled=self.accelerator.is_main_process
        )
        self.optimizer_step = OptimizerStep(parts, start)
        self.outputs = RunOutputs(parts, directory)
        self.step_log = StepLog(parts, self.log, self.progress, start)

    def train(self) -> RunStatus:
        """Run the remaining steps, write a checkpoint, and write the last model unless the run was interrupted."""
        with GracefulStop() as request, self.progress, report_killed_processes(self.recipe), release_workers():
            for note in self.parts.notes:
                self.progress.log(note)
            first = self.step
            ending = self.train_loop(request)
            if skipped := self.optimizer_step.skipped:
                self.progress.log(f"{skipped} of {self.step} steps were skipped, because they were not finite")
            if ending is RunStatus.interrupted:
                on_main_process(self.accelerator, self.outputs.finish)
            else:
                self.complete(had_ended=self.step == first)
        return ending

    def train_loop(self, request: GracefulStop) -> RunStatus:
        """Run all steps: for each window of batches, step, log, and evaluate and save when due."""
        if not self.evaluation_done:
            self.evaluate_and_checkpoint(saved=True)
        self.step_log.restart_clock()
        for window in windows(self.parts.loader, self.recipe.loop.accumulation):
            if self.best_tracker.should_stop(self.recipe.loop.early_stop):
                if self.saved_step != self.step:
                    self.checkpoint(evaluation_done=True)
                return RunStatus.early_stop
            self.step, self.completed = self.step + 1, False
            if self.step <= DRAWN_BATCHES:
                on_main_process(self.accelerator, partial(self.outputs.draw_batch, self.step, window[0]))
            result = self.optimizer_step.take(self.step, window, request)
            self.step_log.add(self.step, result)
            if result.stop:
                self.checkpoint(evaluation_done=False)
                return RunStatus.interrupted
            self.evaluate_and_checkpoint()
            self.step_log.restart_clock()
        return RunStatus.finished

    def evaluate_and_checkpoint(self, saved: bool = False) -> None:
        """Save a checkpoint, unless `saved`, and then evaluate if due, so that a failed evaluation loses no step."""
        loop, steps = self.recipe.loop, self.parts.steps
        evaluates = self.parts.data.validation is not None and is_due(self.step, steps, loop.evaluate_every)
        saves = is_due(self.step, steps, loop.checkpoint_every or loop.evaluate_every)
        if saves and not saved:
            self.checkpoint(evaluation_done=not evaluates)
        if evaluates:
            self.evaluate()
        if saved or (saves and evaluates):
            write_manifest(self.accelerator, self.directory.checkpoints, self.manifest(), self.report)

    def evaluate(self) -> None:
        """Evaluate on the validation split, and save the model if it is the best so far."""
        validation = self.parts.data.validation
        assert validation is not None
        with self.complete_model() as model, self.progress.evaluation_progress(len(validation)) as advance:
            context = EvaluationContext(
                model, self.parts.processor, self.recipe, self.accelerator, advance, self.parts.objective
            )
            evaluation = evaluate(context, validation)
            name, value = evaluation.metric(self.recipe)
            self.best_tracker = self.best_tracker.after(name, value, self.step, self.recipe.loop.early_stop)
            best = self.best_tracker.best_step == self.step
            report = build_report(evaluation, self.recipe, self.parts.data.names, "validation", self.step)
            self.report = replace(report, details={**report.details, **run_details(self.manifest(), self.parts)})
            self.log.evaluation(self.step, evaluation.scores)

            def write() -> None:
                if best:
                    self.write_model(self.directory.best, model)
                    write_sample_images(context, validation, self.directory.samples)
                    write_extreme_samples(context, validation, evaluation.sample_scores, self.directory.samples)
                self.outputs.update(self.report)

            on_main_process(self.accelerator, write)
        self.progress.show_score(name, value, best)

    def write_model(self, target: Path, model: Any, only_missing: bool = False) -> None:
        """Write a model directory, or only its missing files."""
        processor, report = self.parts.processor, self.report
        write_model_directory(target, model, processor, self.recipe, self.provenance, report, only_missing=only_missing)

    def complete_model(self):
        """Return a context manager for the complete model that is evaluated and saved."""
        return gathered_model(self.accelerator, self.parts.model, self.parts.average, self.parts.scattered)

    def checkpoint(self, evaluation_done: bool) -> None:
        """Save a checkpoint of this step."""
        keep = self.recipe.loop.keep_checkpoints
        share_buffers(self.parts.model)  # sharded weights are saved with the buffers of any process
        manifest, folder = self.manifest(evaluation_done), self.directory.checkpoints
        save_checkpoint(self.accelerator, folder, manifest, self.parts.average, keep, self.report)
        self.saved_step = self.step

    def manifest(self, evaluation_done: bool = True) -> Manifest:
        """Return the manifest of the current step."""
        counts: dict[str, Any] = self.optimizer_step.counts()
        return Manifest(
            **counts,
            step=self.step,
            samples=self.step * self.parts.samples_per_step,
            processes=self.accelerator.num_processes,
            evaluation_done=evaluation_done,
            completed=self.completed,
            best_tracker=self.best_tracker,
            recent=tuple(self.step_log.recent),
            seconds=self.step_log.seconds,
            recipe=self.recipe.model_dump(mode="json"),
            data=self.parts.data.fingerprint,
            versions=package_versions(PACKAGES),
        )

    def complete(self, had_ended: bool) -> None:
        """Write the model of the last step and the plots.

        With `had_ended`, an earlier process made the last step: only missing files are added.
        """
        best_step = self.best_tracker.best_step
        with preserve_random_state(self.accelerator.device), self.complete_model() as model:

            def write() -> None:
                self.write_model(self.directory.last, model, only_missing=self.completed)
                if had_ended and best_step == self.step:
                    self.write_model(self.directory.best, model, only_missing=True)

            on_main_process(self.accelerator, write)
            if had_ended and self.parts.data.validation is not None and best_step is not None:
                details = run_details(self.manifest(), self.parts)
                complete_best_model(self.parts, self.directory, best_step, self.provenance, details, self.progress.log)
            on_main_process(self.accelerator, self.outputs.finish)
            if self.report is not None and (sentence := describe_never_predicted(self.report)) is not None:
                self.progress.log(sentence)
        if not self.completed:
            self.completed = True
            write_manifest(self.accelerator, self.directory.checkpoints, self.manifest(), self.report)


def run_details(manifest: Manifest, parts: TrainingComponents) -> dict[str, Any]:
    """Return the details of the training for a report: data, time, parameters, and versions of packages."""
    return {
        "training_samples": len(parts.data.train),
        "training_seconds": round(manifest.seconds, 1),
        "skipped_steps": manifest.skipped_steps,
        "loss_scale_overflows": manifest.loss_scale_overflows,
        "parameters": parts.parameters.details(),
        "versions": manifest.versions,
    }


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
        with log_bugs(directory.errors), end_training(accelerator):
            return train_locked(recipe, directory, accelerator, resume)


@contextmanager
def end_training(accelerator: Accelerator) -> Iterator[None]:
    """Free the model, and then destroy the process group.

    In the other order, the last reference to the group is that of DistributedDataParallel, whose destructor holds the
    GIL while it joins a thread that may be waiting for it: a deadlock at the end of training, seen with torch 2.8.
    """
    try:
        yield
    finally:
        accelerator.free_memory()
        gc.collect()
        accelerator.end_training()


def train_locked(recipe: Recipe, directory: RunDirectory, accelerator: Accelerator, resume: bool) -> RunStatus:
    """Train in a locked directory."""
    checkpoint = next(iter(reversed(checkpoints(directory.checkpoints))), None) if resume else None
    start = None if checkpoint is None else read_manifest(checkpoint)
    report = None if checkpoint is None else read_stored_report(checkpoint)
    if checkpoint is not None and start is not None:
        size = start.batch_size if recipe.loop.batch_size == "auto" else recipe.loop.batch_size
        recipe = resolve_recipe(recipe, accelerator, size)
        sharded = accelerator.distributed_type in SHARDING
        check_same_run(checkpoint, start, recipe, accelerator.num_processes, sharded)
    with discard_on_error(directory, accelerator):
        parts = prepare_training(recipe, accelerator, directory.facts, start)
        on_main_process(accelerator, lambda: directory.prepare(parts.recipe, resume, parts.skipped))
        run = Run(parts, directory, start, report)
    if checkpoint is not None and start is not None:
        load_checkpoint(accelerator, checkpoint, start, parts.average)
        set_rates(parts.schedule.scheduler)
    status = run.train()
    if status is not RunStatus.interrupted:
        if recipe.data.test is not None:
            evaluate_on_test(directory, parts.recipe)
            on_main_process(accelerator, run.outputs.write_report)
        on_main_process(accelerator, lambda: resolve_name(CARDS)(directory))
    return status


@contextmanager
def discard_on_error(directory: RunDirectory, accelerator: Accelerator) -> Iterator[None]:
    """Remove what a new run has written to its directory if it cannot start, as after a wrong setting."""
    is_new = not directory.facts.exists() and not directory.outputs
    try:
        yield
    except HfVitSegError:
        if is_new and accelerator.is_main_process:
            directory.discard()
        raise


def evaluate_on_test(directory: RunDirectory, recipe: Recipe) -> None:
    """Evaluate the best model on the test split. A TrainingError names the trained model's directory."""
    try:
        write_evaluation(str(directory.model), recipe, "test", directory.test)
    except HfVitSegError as error:
        raise TrainingError(
            f"the trained model is in {directory.model}, but its evaluation on the test split failed: {error}; repeat "
            f"it with hf-vit-seg evaluate {quote(str(directory.model))} --split test"
        ) from error
