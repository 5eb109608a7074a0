"""What was measured, in the two forms that the Hub reads.

`model-index` in the card takes any data. `.eval_results/*.yaml`, which leaderboards read, is for datasets of the Hub:
https://huggingface.co/docs/hub/eval-results.
"""

import math

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from hf_vit_seg.training.metrics_report import MetricsReport, title_of

from .heads import HEADS
from .model_directory import ModelDirectory

FOLDER = ".eval_results"
TASK = "default"  # of a dataset that names none


def eval_results(model: ModelDirectory) -> list[EvalResult]:
    """The scores of all splits, for the card's `model-index`."""
    name = "local data" if model.recipe is None else model.recipe.name
    dataset = (*model.provenance.datasets, name)[0]
    return [
        EvalResult(
            task_type=HEADS[model.auto_class].tag,
            dataset_type=dataset,
            dataset_name=name,
            dataset_split=report.split,
            metric_type=metric,
            metric_name=title_of(metric),
            metric_value=value,
            metric_args={"protocol": report.protocol} if report.protocol else None,
        )
        for report in model.reports
        for metric, value in report.numbers().items()
        if math.isfinite(value)
    ]


def eval_results_files(model: ModelDirectory) -> dict[str, bytes]:
    """A file for each dataset of the Hub with the chief score of the last report; none for local data."""
    if not model.reports:
        return {}
    report = model.reports[-1]
    numbers = {name: value for name, value in report.numbers().items() if math.isfinite(value)}
    chief = report.measure if report.measure in numbers else next(iter(numbers), None)
    if chief is None:
        return {}
    return {
        f"{FOLDER}/{dataset.replace('/', '__')}.yaml": entry_text(dataset, report, chief, numbers[chief])
        for dataset in model.provenance.datasets
    }


def entry_text(dataset: str, report: MetricsReport, measure: str, value: float) -> bytes:
    """The YAML of one score."""
    notes = "; ".join(filter(None, [measure, f"{report.split} split, {report.images} images", report.protocol]))
    entry = EvalResultEntry(dataset_id=dataset, task_id=TASK, value=value, notes=notes)
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True).encode()


__all__ = ["eval_results", "eval_results_files"]
