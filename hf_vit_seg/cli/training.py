"""The commands `train`, `evaluate` and `check-data`."""

from pathlib import Path
from typing import Annotated

import typer

from hf_vit_seg.error_reporting import DONE, FAILED
from hf_vit_seg.training.__main__ import train

from .app import DATA, FILES, ConvertOption, Split, command

command(example="hf-vit-seg train nuclei loop.steps=100 -o out", prints_result=True)(train)


@command(example="hf-vit-seg evaluate out/best --split test", prints_result=True)
def evaluate(
    model: Annotated[str, typer.Argument(help="Directory or Hub ID of a model.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Overrides of the recipe, such as evaluation.protocol.flip=true.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe that defines the data. Default: MODEL/recipe.yaml.", rich_help_panel=DATA),
    ] = None,
    split: Annotated[Split, typer.Option(help="Split of the recipe's data.", rich_help_panel=DATA)] = Split.validation,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Output folder for metrics.json, plots and samples. Default: in MODEL.",
            rich_help_panel=FILES,
        ),
    ] = None,
    convert_model: ConvertOption = True,
) -> None:
    """Evaluate a model on a split of a recipe's data, and print the metrics of each class.

    To use several processes: accelerate launch -m hf_vit_seg.cli evaluate MODEL ...
    """
    from hf_vit_seg.training.train_commands import evaluate_command

    raise typer.Exit(evaluate_command(model, settings or [], recipe, split.value, out, convert=convert_model))


@command("check-data", example="hf-vit-seg check-data nuclei", prints_result=True)
def check_data(
    recipe: Annotated[str, typer.Argument(help="Recipe file, or the name of a shipped recipe.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Overrides of the recipe, such as data.train.images=photos.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Output folder. Default: data-check/NAME.", rich_help_panel=FILES),
    ] = None,
    splits: Annotated[
        str, typer.Option(help="Comma-separated splits to check.", rich_help_panel=DATA)
    ] = "train,validation,test",
) -> None:
    """Check every file of a recipe's data: unusable files, raw values, class frequencies.

    Writes report.json, and a contact sheet for each split, such as train.png. Exit code 1 if there are
    problems. `train` also tries the model on the smallest and largest images before the first step.
    """
    from hf_vit_seg.training.recipe.location import recipe_path

    recipe_path(recipe)  # before imports that take seconds
    from hf_vit_seg.training.data_check import check_data as run_check

    valid = run_check(recipe, settings or (), out, splits.split(","))
    raise typer.Exit(DONE if valid else FAILED)
