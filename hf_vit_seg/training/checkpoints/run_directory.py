"""The directory of a run: what lies where, and whose it is.

recipe.yaml     the resolved recipe
log.jsonl       see `run_log`
error.log       tracebacks of bugs that ended the run, if any
best/, last/    complete model directories: weights, image processor, recipe.yaml, metrics.json
checkpoints/    step-000100/ ...: what a resumed run needs
plots/, samples/, trackers/
test/           metrics.json, plots and samples of the best model on the test split, where there is one

One process writes it at a time, see `directory_lock`.
"""

import shutil
from pathlib import Path
from typing import Any

from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.atomic_io import PARTIAL, atomic_directory, clean_up, write_text
from hf_vit_seg.data.sources.registry import SOURCES
from hf_vit_seg.directory_lock import LOCK, RECIPE, RUN_FOLDERS
from hf_vit_seg.errors import HfVitSegError, write_errors
from hf_vit_seg.provenance import Provenance, provenance_of, write_card
from hf_vit_seg.training.model.adapters import save_model
from hf_vit_seg.training.model.building import transformers_silent
from hf_vit_seg.training.recipe.files import recipe_text
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS
from hf_vit_seg.training.reports.metrics_report import MetricsReport, write_report
from hf_vit_seg.training.reports.run_log import FILE as LOG

PLOTS, SAMPLES = "plots", "samples"
ERRORS = "error.log"
FACTS = "data_facts.json"  # what was found in the data, so that a resumed run need not look again
OURS = (RECIPE, LOG, *RUN_FOLDERS)


class RunDirectoryError(HfVitSegError):
    """A directory that a run cannot have."""


class RunDirectory:
    """The directory at `path`."""

    def __init__(self, path: Path):
        self.path = path
        self.best, self.last, self.checkpoints = path / "best", path / "last", path / "checkpoints"
        self.samples, self.recipe, self.facts = path / SAMPLES, path / RECIPE, path / FACTS
        self.test, self.plots, self.errors = path / "test", path / PLOTS, path / ERRORS

    @property
    def model(self) -> Path:
        """The model that a run is for: the best one, or the last where nothing was measured on the way."""
        return self.best if self.best.exists() else self.last

    @property
    def traces(self) -> list[Path]:
        """What a run has left here."""
        return [self.path / name for name in OURS if (self.path / name).exists()]

    def check(self, resume: bool, overwrite: bool) -> None:
        """RunDirectoryError when something is here that must not be replaced; changes nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"{self.path} is a file: a run writes a directory, see --out")
        if resume and overwrite:
            raise RunDirectoryError("--resume and --overwrite exclude each other")
        if self.traces and not resume and not overwrite:
            raise RunDirectoryError(
                f"{self.path} has a run in it already: go on with --resume, replace it with --overwrite, or choose "
                "another --out"
            )
        if not self.traces and self.path.exists() and any(map(self.is_foreign, self.path.iterdir())):
            raise RunDirectoryError(f"{self.path} is not empty and holds no run: choose another --out")

    def is_foreign(self, path: Path) -> bool:
        """Whether what lies here is no run's, not even of one that ended before its first step."""
        return path.name not in (FACTS, LOCK, ERRORS) and not path.name.startswith(PARTIAL)

    def make_ready(self, recipe: Recipe, resume: bool) -> None:
        """Clean up for a resumed run, or clear for a new one, and write the resolved recipe.

        Only what runs write is removed.
        """
        for path in [] if resume else self.traces:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not resume:
            self.errors.unlink(missing_ok=True)
        with write_errors(self.path):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        outputs = (self.plots, self.samples, self.test, self.test / PLOTS, self.test / SAMPLES)
        for folder in (self.path, self.checkpoints, *outputs):
            clean_up(folder)
        write_text(self.recipe, recipe_text(recipe))


def run_directory(recipe: Recipe, out: Path | None = None) -> RunDirectory:
    """Where a run writes: `out`, or what the recipe says, or runs/NAME."""
    return RunDirectory(out or Path(recipe.output or Path("runs") / recipe.name))


def lineage(recipe: Recipe) -> Provenance:
    """Where the weights of a run come from: the licence and base of what it began with, and its own data."""
    start = recipe.model.from_pretrained
    train = SOURCES.read_kind(recipe.data.train, "data.train")
    known = Provenance() if start is None else provenance_of(start)
    return known.model_copy(update={"datasets": tuple(filter(None, [train.hub_id()]))})


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
    """Write a directory that `from_pretrained` loads; it replaces an existing one atomically. Raises WriteError.

    With `only_missing`, files that are there stay as they are, and those that are missing are added.
    """
    with atomic_directory(target, only_missing) as temporary:
        with transformers_silent():
            save_model(model, temporary, merge=recipe.model.lora is None or recipe.model.lora.merge)
        processor.save_pretrained(temporary)
        (temporary / RECIPE).write_text(recipe_text(recipe), encoding="utf-8")
        write_card(temporary, provenance, recipe.name)
        if report is not None:
            write_report(report, temporary / METRICS)


__all__ = ["RunDirectory", "RunDirectoryError", "lineage", "run_directory", "write_model_directory"]
