"""`accelerate launch -m hf_vit_seg.training RECIPE` is `hf-vit-seg train RECIPE` on several processes."""

from pathlib import Path
from typing import Annotated

import typer

from hf_vit_seg.error_reporting import reported


@reported
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's YAML file, or the name of a shipped one such as nuclei.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="NAME=VALUE over the recipe's, such as optimizer.learning_rate=1e-4.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the run; default: the recipe's, or runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the directory's newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the directory.")] = False,
) -> None:
    """Train a model as a recipe says: from images in folders to a measured model directory.

    Ctrl-C stops after a whole step with a checkpoint; a second one at once. The same on several processes or machines:
    accelerate launch -m hf_vit_seg.training RECIPE ...
    """
    from .console import train_command

    raise typer.Exit(train_command(recipe, settings or [], out, resume, overwrite))


if __name__ == "__main__":
    typer.run(train)
