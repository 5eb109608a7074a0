"""The commands `train` and `evaluate` in a console: what they print, and how they exit.

Exit codes: 0 done, 2 it cannot be carried out as given (one sentence says why), 70 a bug (with its traceback, which is
in the run's error.log too), 130 stopped by a signal.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from transformers.utils import logging as transformers_logging

from hf_vit_seg.error_reporting import REFUSED, STOPPED, report
from hf_vit_seg.errors import WriteError
from hf_vit_seg.training.checkpoints.main_process import PreparationError
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory, RunDirectoryError, run_directory
from hf_vit_seg.training.checkpoints.state import CheckpointError, checkpoints
from hf_vit_seg.training.loop.trainer import RunStatus, train
from hf_vit_seg.training.recipe.files import RecipeFileError
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.reports.metrics_report import EVALUATION, FILE, read_report, report_view

from .evaluate_saved import evaluate_model, recipe_beside
from .recipe_loading import load_recipe

# Of several processes the main one tells them.
SAME_ON_ALL = (RecipeFileError, RunDirectoryError, CheckpointError, PreparationError)


def train_command(recipe: str, settings: Sequence[str], out: Path | None, resume: bool, overwrite: bool) -> int:
    """Train, and tell where everything is."""

    def work() -> int:
        loaded = load_recipe(recipe, settings)
        directory = run_directory(loaded, out)
        try:
            ending = train(loaded, directory, resume=resume, overwrite=overwrite)
        except KeyboardInterrupt:
            tell(f"ended at once; {what_is_left(directory)}")
            return STOPPED
        except WriteError:
            tell(what_is_left(directory))
            raise
        if ending is RunStatus.interrupted:
            tell(f"stopped after a whole step and saved it; go on with\n  {resume_command(directory)}")
            return STOPPED
        tell_results(directory, ending, loaded)
        return 0

    return exit_code_of(work)


def evaluate_command(model: str, settings: Sequence[str], recipe: str | None, split: str, out: Path | None) -> int:
    """Measure, and print the scores."""

    def work() -> int:
        loaded = load_recipe(recipe or recipe_beside(model), settings)
        name = f"{EVALUATION}{split}"
        folder = out or (Path(model) / name if Path(model).is_dir() else Path(name))
        report = evaluate_model(model, loaded, split, folder)
        if is_main():
            Console().print(report_view(report))
        tell(f"written to {folder}")
        return 0

    return exit_code_of(work)


def exit_code_of(work: Callable[[], int]) -> int:
    """Do the work, report its error, and return the exit code."""
    transformers_logging.disable_progress_bar()
    try:
        return work()
    except SAME_ON_ALL as error:
        return report(error) if is_main() else REFUSED
    except Exception as error:
        return report(error)


def tell_results(directory: RunDirectory, ending: RunStatus, recipe: Recipe) -> None:
    """The scores of the model on the test split, or else the validation split, and where everything is."""
    if not is_main():
        return
    reports = [path / FILE for path in (directory.test, directory.model) if (path / FILE).exists()]
    if reports:
        Console().print(report_view(read_report(reports[0])))
    plots = f", plots are in {directory.plots}" if any(directory.plots.glob("*.png")) else ""
    name = "best" if directory.model == directory.best else "last"
    tell(f"{ending.value}: the {name} model is in {directory.model}{plots}")
    if recipe.task == "segmentation":
        tell(f"next: hf-vit-seg predict {directory.model} IMAGES --out FOLDER")


def resume_command(directory: RunDirectory) -> str:
    """The command that resumes a run."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    launcher = "hf-vit-seg train" if processes == 1 else "accelerate launch ... -m hf_vit_seg.training"
    return f"{launcher} {directory.recipe} --out {directory.path} --resume"


def what_is_left(directory: RunDirectory) -> str:
    """From where a run can go on that could not write."""
    whole = checkpoints(directory.checkpoints)
    if not whole:
        again = f"; begin again with\n  {resume_command(directory)}" if directory.recipe.exists() else ""
        return f"there is no whole checkpoint yet{again}"
    return f"the last whole checkpoint is {whole[-1]}; go on with\n  {resume_command(directory)}"


def tell(text: str) -> None:
    """Print on the main process."""
    if is_main():
        print(text)


def is_main() -> bool:
    """Whether this is the first process of all machines."""
    return os.environ.get("RANK", "0") == "0"
