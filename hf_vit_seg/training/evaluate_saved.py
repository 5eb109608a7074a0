"""Measuring a saved model: a directory or Hub id, on a split of a recipe."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_vit_seg.data.datasets import RawDataset, open_split
from hf_vit_seg.inference.loading import load_model, load_processor
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.checkpoints.main_process import locked_by_main_process, on_main_process
from hf_vit_seg.training.checkpoints.run_directory import RECIPE, SAMPLES
from hf_vit_seg.training.evaluation.evaluate import EvaluationContext, report_of
from hf_vit_seg.training.evaluation.tasks import evaluate
from hf_vit_seg.training.figures.evaluation_samples import write_sample_images
from hf_vit_seg.training.figures.plots import draw_plots
from hf_vit_seg.training.recipe.metric_names import refuse_unmeasurable
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.reports.metrics_report import FILE, MetricsReport, write_report


def evaluate_model(model: str, recipe: Recipe, split: str, out: Path) -> MetricsReport:
    """Measure `model` and write metrics.json, plots and samples to `out`; called by all processes.

    ModelError for a model that cannot be used, RecordError for a recipe that does not fit it, InUseError when another
    process writes `out` or the run that it lies in.
    """
    with locked_by_main_process(accelerator_for(recipe), out):
        return write_evaluation(model, recipe, split, out)


def accelerator_for(recipe: Recipe) -> Accelerator:
    """accelerate in the precision of a recipe."""
    precision = recipe.loop.precision
    return Accelerator(mixed_precision=None if precision == "default" else precision)


def write_evaluation(model: str, recipe: Recipe, split: str, out: Path) -> MetricsReport:
    """`evaluate_model` for a caller that holds the lock of `out`."""
    accelerator = accelerator_for(recipe)
    dataset = open_split(recipe, split)  # pyright: ignore[reportArgumentType]
    if dataset is None:
        raise RecordError(f"data.{split} is not in the recipe: there is nothing to measure on")
    refuse_unmeasurable(recipe, dataset.class_table.names)
    loaded, processor = load_model(model, task=recipe.task), load_processor(model)
    check_classes(loaded, dataset, model)
    # Of itself accelerate leaves a model where it is if weights are scattered, which this one's are not.
    prepared = accelerator.prepare_model(loaded, device_placement=True, evaluation_mode=True)
    context = EvaluationContext(prepared, processor, recipe, accelerator)
    report = report_of(evaluate(context, dataset), recipe, dataset.class_table.names, split)

    def write() -> None:
        write_report(report, out / FILE)
        write_sample_images(context, dataset, out / SAMPLES)
        draw_plots(out, report)

    on_main_process(accelerator, write)
    return report


def check_classes(model: Any, dataset: RawDataset, name: str) -> None:
    """RecordError unless the model's classes are those of the data."""
    labels = [model.config.id2label.get(index) for index in range(model.config.num_labels)]
    wanted = list(dataset.class_table.names)
    if len(labels) == 1 and len(wanted) == 2:  # a single output is the second class
        wanted = wanted[1:]
    if labels != wanted:
        differing = [f"{i} {a} / {b}" for i, (a, b) in enumerate(zip(labels, wanted, strict=False)) if a != b]
        first = f", the first that differ are {', '.join(differing[:3])}" if differing else ""
        raise RecordError(
            f"{name} has {len(labels)} classes and the recipe's data {len(wanted)}{first}: measure with a recipe whose "
            "data.classes are the model's, in their order"
        )


def recipe_beside(model: str) -> Path:
    """The recipe.yaml of a model directory that a run has written. RecordError where there is none."""
    path = Path(model) / RECIPE
    if not path.is_file():
        raise RecordError(f"{model} has no {RECIPE} in it: name a recipe with --recipe, which says what to measure on")
    return path
