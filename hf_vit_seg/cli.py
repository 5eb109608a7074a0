"""The command `hf-vit-seg`: every verb is a thin function over the library.

Exit codes: 0 all went well, 1 some of the work failed, 2 the command cannot be carried out as given.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False, rich_markup_mode=None)


class FloatType(StrEnum):
    """Number formats a model can compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.callback()
def main() -> None:
    """Vision transformers for segmentation, end to end inside the Hugging Face ecosystem."""


def refuse(message: object) -> NoReturn:
    """End with one sentence and exit code 2."""
    typer.echo(f"hf-vit-seg: {message}", err=True)
    raise typer.Exit(2)


@app.command()
def predict(
    model: Annotated[str, typer.Argument(help="Local directory or Hub id of a segmentation model.")],
    images: Annotated[list[str], typer.Argument(help="Image files, folders (recursive) or quoted patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; sub-folders are kept.")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: a GPU if any.")] = None,
    dtype: Annotated[FloatType, typer.Option(help="What the model computes in.")] = FloatType.float32,
    overlay: Annotated[bool, typer.Option(help="Write NAME.overlay.png, the photo under colours.")] = True,
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Of the overlay's colours.")] = 0.5,
    scores: Annotated[bool, typer.Option("--scores", help="Write NAME.scores.png, 255 is certainty.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave done images out.")] = False,
    max_pixels: Annotated[int, typer.Option(min=1, help="Larger images are refused.")] = 200_000_000,
) -> None:
    """Segment images: NAME.png (label map), NAME.overlay.png and NAME.json (pixels per class) for each.

    Transparent images are laid on white, animated ones give their first frame, EXIF rotation is honoured.
    """
    from hf_vit_seg.inference.console import run
    from hf_vit_seg.inference.image_files import find_images
    from hf_vit_seg.inference.prediction import Wishes, plan

    if out.exists() and not out.is_dir():
        refuse(f"--out {out} is a file, not a folder")
    if overwrite and skip_existing:
        refuse("--overwrite and --skip-existing exclude each other")
    try:
        jobs = plan(find_images(images, skip=out), out)
    except FileNotFoundError as error:
        refuse(error)
    existing = [path for job in jobs if (path := job.existing)]
    if existing and not overwrite and not skip_existing:
        refuse(
            f"{len(existing)} of {len(jobs)} images have results already, such as {existing[0]}: pass --overwrite or "
            "--skip-existing"
        )
    jobs = [job for job in jobs if not (skip_existing and job.done)]
    wishes = Wishes(model=model, overlay=overlay, opacity=opacity, scores=scores, max_pixels=max_pixels)
    try:
        failed = run(model, device, dtype.value, jobs, wishes, out)
    except ValueError as error:
        refuse(error)
    raise typer.Exit(1 if failed else 0)
