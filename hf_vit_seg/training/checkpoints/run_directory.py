"""The directory of a run: its files, and which of them a run may replace.

recipe.yaml     the resolved recipe
log.jsonl       see `run_log`
skipped.json    samples that could not be read, with data.on_error: skip
error.log       tracebacks of bugs that ended the run, if any
best/, last/    complete model directories: weights, image processor, recipe.yaml, metrics.json
checkpoints/    step-000100/ ...: checkpoints for --resume
results.csv     a row for each evaluation
report.html     scores, plots, samples, classes, data and recipe in one file
plots/, samples/, trackers/
test/           metrics.json, plots and samples of the best model on the test split, where there is one

Only one process writes it at a time, see `directory_lock`.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.atomic_io import PARTIAL, atomic_directory, clean_up, write_text
from hf_vit_seg.conversion.files.download import is_url
from hf_vit_seg.conversion.in_memory import pretrained_provenance
from hf_vit_seg.data.sources.source_registry import SOURCES
from hf_vit_seg.directory_lock import LOCK, RECIPE, RUN_FOLDERS
from hf_vit_seg.errors import HfVitSegError, write_errors
from hf_vit_seg.provenance import Provenance, find_provenance, write_card
from hf_vit_seg.training.model.adapters import save_model
from hf_vit_seg.training.model.building import silence_transformers
from hf_vit_seg.training.recipe.files import recipe_text
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS
from hf_vit_seg.training.reports.metrics_report import MetricsReport, write_report
from hf_vit_seg.training.reports.run_log import FILE as LOG

PLOTS, SAMPLES, TEST = "plots", "samples", "test"
ERRORS = "error.log"
FACTS = "data_facts.json"  # cached data checks, for resumed runs
SKIPPED = "skipped.json"  # split, name and reason of each
RESULTS, REPORT = "results.csv", "report.html"
OURS = (RECIPE, LOG, SKIPPED, RESULTS, REPORT, *RUN_FOLDERS)


class RunDirectoryError(HfVitSegError):
    """A directory that a run cannot write to."""


class RunDirectory:
    """The paths of a run's outputs in the directory `path`."""

    def __init__(self, path: Path):
        self.path = path
        self.best, self.last, self.checkpoints = path / "best", path / "last", path / "checkpoints"
        self.samples, self.recipe, self.facts = path / SAMPLES, path / RECIPE, path / FACTS
        self.test, self.plots, self.errors = path / TEST, path / PLOTS, path / ERRORS

    @property
    def model(self) -> Path:
        """The best model, or the last one if the run had no evaluations."""
        return self.best if self.best.exists() else self.last

    @property
    def outputs(self) -> list[Path]:
        """The existing outputs of a run."""
        return [self.path / name for name in OURS if (self.path / name).exists()]

    def check(self, resume: bool, overwrite: bool) -> None:
        """Raise RunDirectoryError if the directory contains files that must not be replaced; changes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"{self.path} is a file, expected a directory; choose another --out")
        if resume and overwrite:
            raise RunDirectoryError("--resume and --overwrite exclude each other")
        if self.outputs and not resume and not overwrite:
            raise RunDirectoryError(
                f"{self.path} already contains a run; continue it with --resume, replace it with --overwrite, or "
                "choose another --out"
            )
        if not self.outputs and self.path.exists() and any(map(self.is_foreign, self.path.iterdir())):
            raise RunDirectoryError(f"{self.path} is not empty and contains no run; choose another --out")

    def is_foreign(self, path: Path) -> bool:
        """Return whether a file was not written by a run, including runs that ended before the first step."""
        return path.name not in (FACTS, LOCK, ERRORS) and not path.name.startswith(PARTIAL)

    def remove_outputs(self) -> None:
        """Remove the outputs of a run."""
        for path in self.outputs:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def discard(self) -> None:
        """Remove the outputs of a run and the facts of its data."""
        self.remove_outputs()
        self.facts.unlink(missing_ok=True)

    def prepare(self, recipe: Recipe, resume: bool, skipped: Sequence[Mapping[str, str]] = ()) -> None:
        """Clean up for a resumed run, or remove the outputs of an earlier run, and write the resolved recipe.

        `skipped` are the samples that are left out.

        Only files that runs write are removed.
        """
        if not resume:
            self.remove_outputs()
            self.errors.unlink(missing_ok=True)
        with write_errors(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        outputs = (self.plots, self.samples, self.test, self.test / PLOTS, self.test / SAMPLES)
        for folder in (self.path, self.checkpoints, *outputs):
            clean_up(folder)
        write_text(self.recipe, recipe_text(recipe, self.path))
        write_skipped(self.path, skipped)


def write_skipped(directory: Path, skipped: Sequence[Mapping[str, str]]) -> None:
    """Write the list of skipped samples, or remove an earlier one if there are none."""
    if skipped:
        write_text(directory / SKIPPED, json.dumps(skipped, indent=2, ensure_ascii=False) + "\n")
    else:
        (directory / SKIPPED).unlink(missing_ok=True)


def run_directory(recipe: Recipe, out: Path | None = None) -> RunDirectory:
    """Return the directory of a run: `out`, the recipe's `output`, or runs/NAME."""
    return RunDirectory(out or Path(recipe.output or Path("runs") / recipe.name))


def lineage(recipe: Recipe) -> Provenance:
    """Return the provenance of a run's weights: license and base of the initial model, and the run's dataset."""
    start = recipe.model.from_pretrained
    train = SOURCES.read_kind(recipe.data.train, "data.train")
    provenance = Provenance() if start is None else initial_provenance(start)
    return provenance.model_copy(update={"datasets": tuple(filter(None, [train.hub_id()]))})


def initial_provenance(start: str) -> Provenance:
    """Return the provenance of an initial model; without a license in its card, that of its format's source."""
    if is_url(start) or Path(start).is_file():
        return pretrained_provenance(start)
    provenance = find_provenance(start)
    if provenance.license is not None:
        return provenance
    return pretrained_provenance(start).model_copy(update={"base_model": provenance.base_model})


def write_model_directory(
    target: Path,
    model: Any,
    processor: BaseImageProcessor,
    recipe: Recipe,
    provenance: Provenance,
    report: MetricsReport | None,
    *,
    only_missing: bool = False,
) -> None:
    """Write a model directory, atomically replacing an existing one. Raises WriteError.

    With `only_missing`, existing files are kept and only missing ones are added.
    """
    with atomic_directory(target, only_missing) as temporary:
        with silence_transformers():
            save_model(model, temporary, merge=recipe.model.lora is None or recipe.model.lora.merge)
        processor.save_pretrained(temporary)
        (temporary / RECIPE).write_text(recipe_text(recipe, target), encoding="utf-8")
        write_card(temporary, provenance, recipe.name)
        if report is not None:
            write_report(report, temporary / METRICS)


__all__ = ["RunDirectory", "RunDirectoryError", "lineage", "run_directory", "write_model_directory"]
