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
    from transformers import logging

    logging.disable_progress_bar()  # those of loading and saving weights; commands show their own


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


@app.command()
def convert(
    source_file: Annotated[Path, typer.Argument(help="A reference checkpoint; with --to, a model directory.")],
    out: Annotated[Path, typer.Argument(help="Model directory to make; with --to, the file (or directory) to make.")],
    source: Annotated[str | None, typer.Option(help="Format of the checkpoint, if its keys shall not tell.")] = None,
    to: Annotated[str | None, typer.Option(help="The way back: write a model directory in this format.")] = None,
    labels: Annotated[str | None, typer.Option(help="ade20k, cityscapes, imagenet-1k, or a JSON file.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=VALUE of the config, over what was found; repeatable.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at OUT.")] = False,
) -> None:
    """Convert a reference checkpoint into a model directory that AutoModel loads, or back.

    Everything that decides the numbers comes along: epsilons, labels, palette, preprocessing. Pickled code is never
    run. Nothing is written unless all tensors found their place.
    """
    from rich.console import Console

    from hf_vit_seg.conversion.convert import ConversionError
    from hf_vit_seg.conversion.convert import convert as convert_checkpoint
    from hf_vit_seg.conversion.convert import export as export_checkpoint

    if to is not None and (source or labels or settings):
        refuse("--to writes a model as it is: --source, --labels and --set belong to the other direction")
    try:
        if to is not None:
            report = export_checkpoint(source_file, out, to=to, force=force)
        else:
            overrides = fields_of(settings or [])
            report = convert_checkpoint(
                source_file, out, source=source, labels=labels, overrides=overrides, force=force
            )
    except ConversionError as error:
        refuse(error)
    Console().print(report)


def fields_of(settings: list[str]) -> dict[str, object]:
    """FIELD=VALUE, the value in YAML: `--set sr_ratios=[8,4,2,1]`."""
    import yaml

    fields = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.isidentifier():
            refuse(f"--set takes FIELD=VALUE, such as --set decoder_hidden_size=768; got '{setting}'")
        try:
            fields[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            refuse(f"--set {name}: '{value}' is no YAML value")
    return fields


@app.command()
def models() -> None:
    """List the architectures and their variants."""
    from rich.console import Console
    from rich.table import Table

    from hf_vit_seg import architectures

    table = Table("architecture", "model_type", "variant", "parameters", box=None)
    for name, architecture in architectures().items():
        for variant, row in architecture.variant_rows().items():
            table.add_row(name, architecture.config.model_type, variant, f"{row.get('parameters', 0):,}")
    Console().print(table)


@app.command()
def plugins() -> None:
    """List the installed plugins: what each brings, where it comes from, and which failed. Exit code 1 if any did."""
    from rich.console import Console
    from rich.table import Table

    from hf_vit_seg import plugins as installed

    table = Table(box=None)
    for title in ("plugin", "from", "entry point", "state"):
        table.add_column(title, overflow="fold")
    for plugin in installed():
        table.add_row(plugin.name, plugin.origin, plugin.target, plugin.error or "ok")
    Console().print(table)
    raise typer.Exit(any(plugin.error for plugin in installed()))


if __name__ == "__main__":
    app()
