"""`hf-vit-seg train RECIPE` on several processes: `accelerate launch -m hf_vit_seg.training RECIPE`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from hf_vit_seg.error_reporting import report_errors

RUN = "Run directory"


def train(
    recipe: Annotated[str, typer.Argument(help="Recipe file (YAML), or the name of a shipped recipe, such as nuclei.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Overrides of the recipe, such as optimizer.learning_rate=1e-4.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Run directory. Default: that of the recipe, or runs/NAME.", rich_help_panel=RUN
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume from the newest checkpoint in the run directory.", rich_help_panel=RUN),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in the run directory.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Train and evaluate a model from a recipe.

    Ctrl-C stops after the current step and writes a checkpoint; a second Ctrl-C stops immediately. To use several
    processes or machines: accelerate launch -m hf_vit_seg.training RECIPE ...
    """
    from .recipe.location import recipe_path

    if os.environ.get("WORLD_SIZE", "1") == "1":  # with several processes, only the main one prints the error
        recipe_path(recipe)  # before imports that take seconds
    from .train_commands import train_command

    raise typer.Exit(train_command(recipe, settings or [], out, resume, overwrite))


if __name__ == "__main__":
    typer.run(report_errors(train, prints_result=True))
