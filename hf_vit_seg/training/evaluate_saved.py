"""Evaluate a saved model (a directory or Hub id) on a split of a recipe."""

import logging
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hf_vit_seg.data.checks.check import check_datasets
from hf_vit_seg.data.datasets import RawDataset, open_split
from hf_vit_seg.error_reporting import log_bugs
from hf_vit_seg.loading.models import label_names, load_for_inference
from hf_vit_seg.local_paths import installed_path
from hf_vit_seg.records import RecordError
from hf_vit_seg.training.checkpoints.main_process import lock_on_main_process, on_main_process
from hf_vit_seg.training.checkpoints.run_directory import ERRORS, RECIPE, SAMPLES, write_skipped
from hf_vit_seg.training.evaluation.evaluate import EvaluationContext, build_report
from hf_vit_seg.training.evaluation.tasks import evaluate
from hf_vit_seg.training.figures.evaluation_samples import write_sample_images
from hf_vit_seg.training.figures.plots import draw_plots
from hf_vit_seg.training.recipe.metric_names import check_metrics
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.reports.metrics_report import FILE, MetricsReport, write_report

logger = logging.getLogger(__name__)


def evaluate_model(model: str, recipe: Recipe, split: str, out: Path, *, convert: bool = True) -> MetricsReport:
    """Evaluate `model` and write metrics.json, plots and samples to `out`; called by all processes.

    The traceback of a bug is appended to error.log.

    ModelError for a model that cannot be loaded, RecordError for a recipe that does not fit it, InUseError if another
    process writes to `out` or its run directory.
    """
    with lock_on_main_process(accelerator_for(recipe), out), log_bugs(out / ERRORS):
        return write_evaluation(model, recipe, split, out, convert)


def accelerator_for(recipe: Recipe) -> Accelerator:
    """Create an Accelerator with the precision of a recipe; a CPU, which has no fp16, evaluates in float32."""
    precision = recipe.loop.precision
    accelerator = Accelerator(mixed_precision=None if precision == "default" else precision)
    if accelerator.device.type == "cpu" and accelerator.mixed_precision == "fp16":
        logger.warning("fp16 is not supported on a CPU: the model is evaluated in float32")
    return accelerator


def write_evaluation(model: str, recipe: Recipe, split: str, out: Path, convert: bool = True) -> MetricsReport:
    """Evaluate a model; the caller holds the lock of `out`."""
    accelerator = accelerator_for(recipe)
    dataset = open_split(recipe, split)  # pyright: ignore[reportArgumentType]
    if dataset is None:
        raise RecordError(f"data.{split} is missing in the recipe; add it, or choose another split")
    check_metrics(recipe, dataset.class_table.names)
    skipped: list[dict[str, str]] = []
    if recipe.data.on_error == "skip":
        whole = dataset
        indices, skipped = on_main_process(accelerator, lambda: find_usable(recipe, split, whole))
        dataset = whole.with_indices(indices)
    loaded, processor = load_for_inference(model, recipe.task, convert=convert)
    check_classes(loaded, dataset, model)
    # With sharded training, accelerate would not move the model by default, but this one is not sharded.
    prepared = accelerator.prepare_model(loaded, device_placement=True, evaluation_mode=True)
    context = EvaluationContext(prepared, processor, recipe, accelerator)
    report = build_report(evaluate(context, dataset), recipe, dataset.class_table.names, split)

    def write() -> None:
        write_report(report, out / FILE)
        write_skipped(out, skipped)
        write_sample_images(context, dataset, out / SAMPLES)
        draw_plots(out, report)

    on_main_process(accelerator, write)
    return report


def find_usable(recipe: Recipe, split: Any, dataset: RawDataset) -> tuple[list[int], list[dict[str, str]]]:
    """Return the source's indices of the usable samples, and the others. BadDataError if these are too many."""
    part = check_datasets(recipe, {split: dataset}, progress=True).splits[split]
    for warning in part.warnings() if part.skipped else ():
        logger.warning(warning)
    return list(part.dataset.indices), part.skipped_samples


def check_classes(model: Any, dataset: RawDataset, name: str) -> None:
    """Raise RecordError unless the classes of the model and of the data are equal; a warning if a few names differ."""
    labels = label_names(model.config)
    expected = list(dataset.class_table.names)
    if len(labels) == 1 and len(expected) == 2:  # a single output is the second class
        expected = expected[1:]
    if labels == expected:
        return
    pairs = enumerate(zip(labels, expected, strict=False))
    differing = [f"{i} {own} / {other}" for i, (own, other) in pairs if own != other]
    if are_same_classes(labels, expected):
        logger.warning(
            "%s: %d of %d classes have other names in the recipe's data and are taken as the same: %s",
            *(name, len(differing), len(labels), ", ".join(differing)),
        )
        return
    first = f", the first differences are {', '.join(differing[:3])}" if differing else ""
    raise RecordError(
        f"{name} has {len(labels)} classes and the recipe's data {len(expected)}{first}; use a recipe whose "
        "data.classes are the model's classes, in the same order"
    )


def are_same_classes(labels: list[str], expected: list[str]) -> bool:
    """Return whether at most a tenth of the names differ, and none of these is a name of another class.

    Published models have class names that differ slightly from the data set's ("screen" for "screen door").
    """
    if len(labels) != len(expected):
        return False
    pairs = list(zip(labels, expected, strict=True))
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    equal = {own for own, other in pairs if own == other}
    moved = ({own for own, _ in differing} & {other for _, other in differing}) - equal
    return len(differing) * 10 <= len(labels) and not moved


def recipe_of_model(model: str) -> Path:
    """Return the path of recipe.yaml in a model directory. RecordError if there is none."""
    path = Path(installed_path(model)) / RECIPE
    if not path.parent.exists():
        raise RecordError(f"{model} does not exist here; set the evaluation data of a model on the Hub with --recipe")
    if not path.is_file():
        raise RecordError(f"{model} contains no {RECIPE}; set the evaluation data with --recipe")
    return path
