"""Complete the best model of a run that has ended: files that were removed, or that a killed process did not write."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hf_vit_seg.loading.errors import ModelError
from hf_vit_seg.loading.models import load_model
from hf_vit_seg.provenance import CARD, Provenance
from hf_vit_seg.training.checkpoints.main_process import on_main_process
from hf_vit_seg.training.checkpoints.run_directory import RECIPE, RunDirectory, write_model_directory
from hf_vit_seg.training.evaluation.evaluate import EvaluationContext, build_report
from hf_vit_seg.training.evaluation.tasks import evaluate
from hf_vit_seg.training.figures.evaluation_samples import (
    have_sample_images,
    write_extreme_samples,
    write_sample_images,
)
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS
from hf_vit_seg.training.reports.metrics_report import write_report

from .setup import TrainingComponents

BESIDE_WEIGHTS = ("preprocessor_config.json", CARD, RECIPE, METRICS)  # written from the recipe and by an evaluation


def complete_best_model(
    parts: TrainingComponents,
    directory: RunDirectory,
    best_step: int,
    provenance: Provenance,
    details: dict[str, Any],
    log: Callable[[str], None],
) -> None:
    """Write missing files next to the weights in `best/`, and missing sample images; called by all processes.

    Metrics and the scores of samples are recomputed. If the weights cannot be loaded, the reason is passed to `log`.
    """
    accelerator, recipe, best, validation = parts.accelerator, parts.recipe, directory.best, parts.data.validation
    assert validation is not None
    missing, has_samples = on_main_process(
        accelerator,
        lambda: (
            [name for name in BESIDE_WEIGHTS if not (best / name).exists()],
            have_sample_images(recipe, validation, directory.samples),
        ),
    )
    if not missing and has_samples:
        return
    try:
        loaded = load_model(str(best), task=recipe.task).to(accelerator.device)
    except ModelError as error:
        log(f"the best model, that of step {best_step}, cannot be restored: {error}")
        return
    context = EvaluationContext(loaded, parts.processor, recipe, accelerator, objective=parts.objective)
    evaluation = evaluate(context, validation) if METRICS in missing or not has_samples else None
    report = None
    if evaluation is not None and METRICS in missing:
        report = replace(build_report(evaluation, recipe, parts.data.names, "validation", best_step), details=details)

    def write() -> None:
        if recipe.model.lora is None or recipe.model.lora.merge:
            write_model_directory(best, loaded, parts.processor, recipe, provenance, report, only_missing=True)
        elif report is not None:
            write_report(report, best / METRICS)
        if evaluation is not None and not has_samples:
            write_sample_images(context, validation, directory.samples)
            write_extreme_samples(context, validation, evaluation.sample_scores, directory.samples)

    on_main_process(accelerator, write)


__all__ = ["complete_best_model"]
