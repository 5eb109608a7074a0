"""Train and evaluate from Python, with the arguments of the commands `train` and `evaluate`.

    result = hf_vit_seg.train("nuclei", ["loop.steps=100"], out="out")
    report = hf_vit_seg.evaluate(result.model, split="test")

In a notebook, both are displayed as tables.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.records import nearest
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory, run_directory
from hf_vit_seg.training.loop.trainer import RunStatus
from hf_vit_seg.training.loop.trainer import train as train_recipe
from hf_vit_seg.training.recipe.paths import SPLITS
from hf_vit_seg.training.reports.metrics_report import EVALUATION, FILE, MetricsReport, read_report

from .evaluate_saved import evaluate_model, recipe_of_model
from .recipe_loading import load_recipe


@dataclass(frozen=True)
class TrainingResult:
    """A run: how it ended, its directory, the directory of the best model, and its scores.

    `report` has the scores on the test split, or else the validation split; None if the run was interrupted before the
    first evaluation.
    """

    status: RunStatus
    directory: Path
    model: Path
    report: MetricsReport | None

    def _repr_html_(self) -> str:
        from hf_vit_seg.training.reports.html_tables import paragraph

        scores = "" if self.report is None else self.report._repr_html_()
        return paragraph(f"{self.status.value}: the model is in {self.model}") + scores


def train(
    recipe: str | Path,
    settings: Sequence[str] | Mapping[str, Any] = (),
    out: str | Path | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> TrainingResult:
    """Train and evaluate a model from a recipe, as `hf-vit-seg train` does.

    `recipe` is a YAML file or the name of a shipped recipe, `settings` are overrides such as "loop.steps=100", or a
    mapping such as {"loop.steps": 100}, and `out` is the run directory (default: that of the recipe, or runs/NAME).
    `resume` continues the run in this directory, `overwrite` replaces it.

    Raises RecipeFileError for an invalid recipe, and RunDirectoryError if `out` contains a run and neither `resume` nor
    `overwrite` is set.
    """
    loaded = load_recipe(recipe, override_list(settings))
    reset_precision()
    directory = run_directory(loaded, None if out is None else Path(out))
    status = train_recipe(loaded, directory, resume=resume, overwrite=overwrite)
    return TrainingResult(status, directory.path, directory.model, final_report(directory))


def evaluate(
    model: str | Path,
    settings: Sequence[str] | Mapping[str, Any] = (),
    *,
    recipe: str | Path | None = None,
    split: str = "validation",
    out: str | Path | None = None,
    convert: bool = True,
) -> MetricsReport:
    """Evaluate a model on a split of a recipe's data, as `hf-vit-seg evaluate` does.

    `model` is a directory or a Hub id, `recipe` defaults to recipe.yaml in this directory, and `settings` are overrides
    of the recipe. metrics.json, plots and samples are written to `out` (default: evaluation_SPLIT in the directory of
    the model). Checkpoints in other formats are converted in memory unless `convert` is false.

    Raises ModelError for a model that cannot be loaded, and RecordError for a recipe that does not fit it.
    """
    if split not in SPLITS:
        raise HfVitSegError(f"unknown split '{split}'; {nearest(split, SPLITS, 'splits')}")
    loaded = load_recipe(recipe or recipe_of_model(str(model)), override_list(settings))
    reset_precision()
    folder = evaluation_folder(str(model), split) if out is None else Path(out)
    return evaluate_model(str(model), loaded, split, folder, convert=convert)


def override_list(settings: Sequence[str] | Mapping[str, Any]) -> Sequence[str]:
    """Return overrides as NAME=VALUE. HfVitSegError for a single text."""
    if isinstance(settings, str):
        raise HfVitSegError(f"settings is the text '{settings}', expected a list of NAME=VALUE or a mapping")
    if isinstance(settings, Mapping):
        return [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    return settings


def reset_precision() -> None:
    """Let the next Accelerator choose its precision: accelerate keeps that of the first one in a process.

    Its processes and devices are kept.
    """
    AcceleratorState._reset_state()
    GradientState._reset_state()


def final_report(directory: RunDirectory) -> MetricsReport | None:
    """Read the scores of a run on the test split, or else the validation split; None before the first evaluation."""
    reports = [path / FILE for path in (directory.test, directory.model) if (path / FILE).exists()]
    return read_report(reports[0]) if reports else None


def evaluation_folder(model: str, split: str) -> Path:
    """Return the default output folder of an evaluation: in the directory of the model, or here for a Hub id."""
    name = f"{EVALUATION}{split}"
    return Path(model) / name if Path(model).is_dir() else Path(name)


__all__ = ["TrainingResult", "evaluate", "train"]
