"""Evaluation results in the two formats of the Hub.

`model-index` in the card supports any data. `.eval_results/*.yaml`, which leaderboards read, is for datasets on the
Hub: https://huggingface.co/docs/hub/eval-results. Every report contains its dataset.
"""

import math
import re

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from hf_vit_seg.data.sources.source_registry import SOURCES
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.reports.metrics_report import MetricsReport, score_title

from .heads import HEADS
from .model_directory import ModelDirectory

FOLDER = ".eval_results"
TASK = "default"  # for datasets without task names


def eval_results(model: ModelDirectory) -> list[EvalResult]:
    """Return the scores of all splits, for the card's `model-index`."""
    name = "local data" if model.recipe is None else model.recipe.name
    return [
        EvalResult(
            task_type=HEADS[model.auto_class].tag,
            dataset_type=report.dataset or name,
            dataset_name=report.dataset or name,
            dataset_split=report.dataset_split or report.split,
            metric_type=metric,
            metric_name=score_title(metric),
            metric_value=value,
            metric_args={"protocol": report.protocol} if report.protocol else None,
        )
        for report in model.reports
        for metric, value in report.numbers().items()
        if math.isfinite(value)
    ]


def eval_results_files(model: ModelDirectory) -> dict[str, bytes]:
    """Return a file for each Hub dataset, with the main metric on its test split, or else another one."""
    files = {}
    for report in reversed(model.reports):  # that of the test split replaces others
        numbers = {name: value for name, value in report.numbers().items() if math.isfinite(value)}
        chief = report.metric if report.metric in numbers else next(iter(numbers), None)
        if chief is not None and report.dataset is not None and is_held_out(report, model.recipe):
            path = f"{FOLDER}/{report.dataset.replace('/', '__')}.yaml"
            files[path] = entry_text(report.dataset, report, chief, numbers[chief])
    return files


def is_held_out(report: MetricsReport, recipe: Recipe | None) -> bool:
    """Return whether a report is on a complete split of its dataset that was not used for training."""
    split = report.dataset_split or ""
    if report.split == "train" or not re.fullmatch(r"\w+", split):  # `train[80%:]` is a part
        return False
    seen = None if recipe is None else SOURCES.read_kind(recipe.data.train, "data.train")
    return seen is None or seen.hub_id() != report.dataset or split not in re.findall(r"\w+", seen.hub_split() or "")


def entry_text(dataset: str, report: MetricsReport, measure: str, value: float) -> bytes:
    """Format the YAML of one score."""
    split = f"{report.dataset_split} split, {report.images} images"
    notes = "; ".join(filter(None, [measure, split, report.protocol]))
    entry = EvalResultEntry(dataset_id=dataset, task_id=TASK, value=value, notes=notes)
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True).encode()


__all__ = ["eval_results", "eval_results_files"]
