"""The commands `train` and `evaluate`: their output and exit codes.

Exit codes: 0 success, 2 user error with a message, 70 bug with a traceback (also in the run's error.log), 130 stopped
by a signal.
"""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from shlex import quote

from transformers.utils import logging as transformers_logging

from hf_vit_seg.data.images.files import ImageFileError
from hf_vit_seg.error_reporting import REFUSED, STOPPED, print_result, report_error
from hf_vit_seg.errors import OutOfMemory, WriteError
from hf_vit_seg.training.checkpoints.main_process import PreparationError
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory, RunDirectoryError, run_directory
from hf_vit_seg.training.checkpoints.state import CheckpointError, checkpoints
from hf_vit_seg.training.loop.process_errors import KilledProcessError
from hf_vit_seg.training.loop.trainer import RunStatus, train
from hf_vit_seg.training.recipe.location import RecipeFileError
from hf_vit_seg.training.recipe.paths import describe_data
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.reports.metrics_report import describe_unlabeled, report_content, report_view

from .evaluate_saved import evaluate_model, recipe_of_model
from .recipe_loading import load_recipe
from .runs import evaluation_folder, final_report

logger = logging.getLogger(__name__)

# Raised on all processes; only the main one prints them.
SAME_ON_ALL = (RecipeFileError, RunDirectoryError, CheckpointError, PreparationError)

# Raised in the middle of a run, which can be resumed.
INTERRUPTING = (WriteError, KilledProcessError, OutOfMemory, ImageFileError)


def train_command(recipe: str, settings: Sequence[str], out: Path | None, resume: bool, overwrite: bool) -> int:
    """Train, print the paths of the results, and return the exit code."""

    def work() -> int:
        loaded = load_recipe(recipe, settings)
        directory = run_directory(loaded, out)
        try:
            ending = train(loaded, directory, resume=resume, overwrite=overwrite)
        except KeyboardInterrupt:
            print_on_main(f"stopped immediately; {describe_progress(directory)}")
            return STOPPED
        except INTERRUPTING as error:
            if isinstance(error, WriteError) or checkpoints(directory.checkpoints):
                print_on_main(describe_progress(directory))
            raise
        if ending is RunStatus.interrupted:
            print_on_main(f"stopped after a step and saved a checkpoint; resume with\n  {resume_command(directory)}")
            return STOPPED
        print_results(directory, ending, loaded)
        return 0

    return run_command(work)


def evaluate_command(
    model: str,
    settings: Sequence[str],
    recipe: str | None,
    split: str,
    out: Path | None,
    *,
    convert: bool = True,
) -> int:
    """Evaluate a model, print the scores, and return the exit code."""

    def work() -> int:
        loaded = load_recipe(recipe or recipe_of_model(model), settings)
        folder = out or evaluation_folder(model, split)
        report = evaluate_model(model, loaded, split, folder, convert=convert)
        data = loaded.data.model_dump()
        source = "train" if split == "validation" and not data["validation"] else split  # a share of it
        for line in describe_data({source: data.get(source)}):
            print_on_main(line)
        if is_main():
            print_result(report_view(report), partial(report_content, report))
            if (warning := describe_unlabeled(report)) is not None:
                logger.warning(warning)
        print_on_main(f"written to {folder}")
        return 0

    return run_command(work)


def run_command(work: Callable[[], int]) -> int:
    """Run a command, report its errors, and return the exit code."""
    transformers_logging.disable_progress_bar()
    try:
        return work()
    except SAME_ON_ALL as error:
        return report_error(error) if is_main() else REFUSED
    except Exception as error:
        return report_error(error)


def print_results(directory: RunDirectory, ending: RunStatus, recipe: Recipe) -> None:
    """Print the scores on the test split, or else the validation split, and the paths of the results."""
    if not is_main():
        return
    report = final_report(directory)
    if report is not None:
        print_result(report_view(report), partial(report_content, report))
    plots = f", plots are in {directory.plots}" if any(directory.plots.glob("*.png")) else ""
    name = "best" if directory.model == directory.best else "last"
    print_on_main(f"{ending.value}: the {name} model is in {directory.model}{plots}")
    if recipe.task == "segmentation":
        print_on_main(f"next: hf-vit-seg predict {quote(str(directory.model))} IMAGES --out FOLDER")


def resume_command(directory: RunDirectory) -> str:
    """Return the command that resumes a run."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    launcher = "hf-vit-seg train" if processes == 1 else "accelerate launch ... -m hf_vit_seg.training"
    recipe, out = quote(str(directory.recipe)), quote(str(directory.path))
    return f"{launcher} {recipe} --out {out} --resume"


def describe_progress(directory: RunDirectory) -> str:
    """Describe the newest checkpoint of a run that ended early, and how to resume."""
    complete = checkpoints(directory.checkpoints)
    if not complete:
        again = f"; start again with\n  {resume_command(directory)}" if directory.recipe.exists() else ""
        return f"no checkpoint has been saved yet{again}"
    return f"the last checkpoint is {complete[-1]}; resume with\n  {resume_command(directory)}"


def print_on_main(text: str) -> None:
    """Print on the main process."""
    if is_main():
        print(text)


def is_main() -> bool:
    """Return whether this is the main process of all machines."""
    return os.environ.get("RANK", "0") == "0"
