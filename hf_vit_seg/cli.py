"""The command `hf-vit-seg`: every verb is a thin function over the library.

Exit codes: 0 all went well, 1 some of the work failed, 2 the command cannot be carried out as given, 70 a bug (its
traceback is shown), 130 stopped by a signal.
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_vit_seg.training.__main__ import train

from .error_reporting import DONE, FAILED, reported
from .errors import HfVitSegError

if TYPE_CHECKING:
    from hf_vit_seg.inference.files.prediction import Job

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False, rich_markup_mode=None)


class FloatType(StrEnum):
    """Number formats a model can compute in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Split(StrEnum):
    """Parts of a recipe's data."""

    train = "train"
    validation = "validation"
    test = "test"


class PolygonFormat(StrEnum):
    """Formats of annotation tools."""

    geojson = "geojson"
    coco = "coco"


@app.callback()
def main() -> None:
    """Vision transformers for segmentation, end to end inside the Hugging Face ecosystem."""
    from transformers import logging

    logging.disable_progress_bar()  # those of loading and saving weights; commands show their own


@app.command()
@reported
def predict(
    model: Annotated[str, typer.Argument(help="Local directory or Hub id of a segmentation model.")],
    images: Annotated[list[str], typer.Argument(help="Image files, folders (recursive) or quoted patterns.")],
    out: Annotated[Path, typer.Option(help="Folder for the results; sub-folders are kept.")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; default: a GPU if any.")] = None,
    dtype: Annotated[FloatType, typer.Option(help="What the model computes in.")] = FloatType.float32,
    protocol: Annotated[str | None, typer.Option(help="A preset, such as ade20k or cityscapes_multi_scale.")] = None,
    size: Annotated[
        str | None, typer.Option(help="processor, own, or as 512 (shortest edge), 512,2048 (both), 512x1024 (h x w).")
    ] = None,
    divisor: Annotated[int | None, typer.Option(help="Round sides up to a multiple of it, such as 32.")] = None,
    window: Annotated[str | None, typer.Option(help="Slide windows of 512 or 512x1024 pixels (h x w).")] = None,
    stride: Annotated[str | None, typer.Option(help="Of the windows; default: two thirds of one.")] = None,
    blend: Annotated[str | None, typer.Option(help="Of the windows: flat or gaussian.")] = None,
    window_batch: Annotated[int | None, typer.Option(help="Windows that the model sees at a time, at most.")] = None,
    scales: Annotated[str | None, typer.Option(help="Average over these, such as 0.5,1,2.")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirror image.")] = False,
    overlay: Annotated[bool, typer.Option(help="Write NAME.overlay.png, the photo under colours.")] = True,
    opacity: Annotated[float, typer.Option(min=0, max=1, help="Of the overlay's colours.")] = 0.5,
    scores: Annotated[bool, typer.Option("--scores", help="Write NAME.scores.png, 255 is certainty.")] = False,
    entropy: Annotated[bool, typer.Option("--entropy", help="Write NAME.entropy.png, 255 is doubt.")] = False,
    top_k: Annotated[int, typer.Option(min=0, help="Write NAME.top.npz: so many classes and their scores.")] = 0,
    polygons: Annotated[list[PolygonFormat] | None, typer.Option(help="Write NAME.geojson, NAME.coco.json.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")] = False,
    skip_existing: Annotated[bool, typer.Option("--skip-existing", help="Leave done images out.")] = False,
    max_pixels: Annotated[int, typer.Option(min=1, help="Larger images are read in tiles.")] = 200_000_000,
    tile: Annotated[int | None, typer.Option(min=64, help="Side of the tiles (2048); reads all in tiles.")] = None,
    frames: Annotated[bool, typer.Option("--frames", help="Write NAME.frames/, a label map per frame.")] = False,
    frame_rate: Annotated[float | None, typer.Option(min=0.01, help="Make a film of each folder of frames.")] = None,
) -> None:
    """Segment images: NAME.png (label map), NAME.overlay.png and NAME.json (pixels per class) for each.

    Transparent images are laid on white, animated ones give their first frame, EXIF rotation is honoured. Images are
    shown to the model whole, resized as its image processor says, unless --protocol and the options after it say
    otherwise; what was done stands in NAME.json.

    TIFF and .npy images above --max-pixels are read, segmented and written in tiles, in windows at their own size, with
    NAME.labels.tif beside NAME.png; a run that was ended goes on when it is started again. Films (MP4 and others) give
    NAME.overlay.mp4 and NAME.json.
    """
    from hf_vit_seg.inference.console import protocol_from_text, run
    from hf_vit_seg.inference.files.prediction import Wishes

    from .directory_lock import locked_directory

    if out.exists() and not out.is_dir():
        raise HfVitSegError(f"--out {out} is a file, not a folder")
    formats = set(polygons or ())
    wishes = Wishes(
        model=model,
        overlay=overlay,
        opacity=opacity,
        scores=scores,
        entropy=entropy,
        top_k=top_k,
        geojson=PolygonFormat.geojson in formats,
        coco=PolygonFormat.coco in formats,
        max_pixels=max_pixels,
        tile=tile,
        frames=frames,
        frame_rate=frame_rate,
    )
    chosen = protocol_from_text(
        preset=protocol,
        size=size,
        divisor=divisor,
        window=window,
        stride=stride,
        blend=blend,
        window_batch=window_batch,
        scales=scales,
        flip=flip or None,
    )
    with locked_directory(out):
        jobs = planned_jobs(images, out, overwrite, skip_existing, films=frame_rate is not None)
        code = run(model, device, dtype.value, jobs, wishes, out, chosen)
    raise typer.Exit(code)


def planned_jobs(
    images: list[str], out: Path, overwrite: bool, skip_existing: bool, films: bool = False
) -> "list[Job]":
    """What `predict` has to do: one job for each image or film; with `films` a folder is one."""
    from hf_vit_seg.data.images.files import ImageFile, find_images
    from hf_vit_seg.inference.files.prediction import plan

    if overwrite and skip_existing:
        raise HfVitSegError("--overwrite and --skip-existing exclude each other")
    folders = [Path(name) for name in images if films and os.path.isdir(name)]
    found = find_images([name for name in images if Path(name) not in folders], skip=out)
    jobs = plan([*(ImageFile(folder, Path(folder.resolve().name)) for folder in folders), *found], out)
    existing = [path for job in jobs if (path := job.existing)]
    if existing and not overwrite and not skip_existing:
        raise HfVitSegError(
            f"{len(existing)} of {len(jobs)} images have results already, such as {existing[0]}: pass --overwrite or "
            "--skip-existing"
        )
    return [job for job in jobs if not (skip_existing and job.done)]


app.command()(train)


@app.command()
@reported
def evaluate(
    model: Annotated[str, typer.Argument(help="Local directory or Hub id of a model.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="NAME=VALUE over the recipe's, such as evaluation.protocol.flip=true.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="What to measure on; default: MODEL/recipe.yaml.")] = None,
    split: Annotated[Split, typer.Option(help="Of the recipe's data.")] = Split.validation,
    out: Annotated[Path | None, typer.Option(help="For metrics.json, plots and samples; default: in MODEL.")] = None,
) -> None:
    """Measure a model on a split of a recipe's data, and print the scores of each class.

    The same on several processes: accelerate launch -m hf_vit_seg.cli evaluate MODEL ...
    """
    from hf_vit_seg.training.console import evaluate_command

    raise typer.Exit(evaluate_command(model, settings or [], recipe, split.value, out))


@app.command()
@reported
def export(
    model: Annotated[str, typer.Argument(help="Local directory or Hub id of a segmentation model.")],
    out: Annotated[Path, typer.Argument(help="Directory for the program and what belongs to it.")],
    to: Annotated[str, typer.Option(help="onnx, openvino, torchscript, executorch, or a plugin's format.")],
    size: Annotated[str | None, typer.Option(help="Fix the input: 512 or 512x1024 (h x w); default: any.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Fix the number of images; default: any.")] = None,
    label_map: Annotated[
        str | None, typer.Option(help="End in bytes of labels, at the size of the input ('input') or at 1024x2048.")
    ] = None,
    dtype: Annotated[FloatType, typer.Option(help="float32, or float16 where the format has it.")] = FloatType.float32,
    int8: Annotated[Path | None, typer.Option(help="Compute in 8 bits; a folder of images to calibrate on.")] = None,
    int8_images: Annotated[int, typer.Option(min=1, help="Of the folder, at most.")] = 100,
    recipe: Annotated[str | None, typer.Option(help="Print the mean IoU before and after 8 bits on its data.")] = None,
    split: Annotated[Split, typer.Option(help="Of the recipe's data.")] = Split.validation,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="OPTION=VALUE of the format, such as opset=18; repeatable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a program that exists.")] = False,
) -> None:
    """Export a model for another runtime, and prove that it computes the same (exit code 1, and no file, if not).

    By default images of any size and number. Preprocessing, labels and the proof (parity.json) lie beside the program,
    and `hf-vit-seg predict OUT/model.onnx ...` works as with the model itself.
    """
    from hf_vit_seg.data.images.files import find_images
    from hf_vit_seg.export.console import label_size, run, sides
    from hf_vit_seg.export.exported_model import Wish
    from hf_vit_seg.training.evaluation.segmenter_score import mean_iou_on
    from hf_vit_seg.training.recipe_loading import load_recipe

    if recipe is not None and int8 is None:
        raise HfVitSegError("--recipe measures what 8 bits cost: give --int8 FOLDER as well")
    wish = Wish(
        size=None if size is None else sides(size, "--size"),
        batch=batch,
        labels=label_size(label_map),
        dtype=dtype.value,
        calibration=[] if int8 is None else [image.path for image in find_images([str(int8)])],
        calibration_images=int8_images,
    )
    score = None if recipe is None else mean_iou_on(load_recipe(recipe, []), split.value)
    raise typer.Exit(run(model, out, to, wish, fields_of(settings or []), overwrite=overwrite, score=score))


@app.command()
@reported
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

    from hf_vit_seg.conversion.convert import convert as convert_checkpoint
    from hf_vit_seg.conversion.convert import export as export_checkpoint

    if to is not None and (source or labels or settings):
        raise HfVitSegError("--to writes a model as it is: --source, --labels and --set belong to the other direction")
    if to is not None:
        report = export_checkpoint(source_file, out, to=to, force=force)
    else:
        overrides = fields_of(settings or [])
        report = convert_checkpoint(source_file, out, source=source, labels=labels, overrides=overrides, force=force)
    Console().print(report)


def fields_of(settings: list[str]) -> dict[str, object]:
    """FIELD=VALUE, the value in YAML: `--set sr_ratios=[8,4,2,1]`."""
    import yaml

    fields = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.isidentifier():
            raise HfVitSegError(f"--set takes FIELD=VALUE, such as --set decoder_hidden_size=768; got '{setting}'")
        try:
            fields[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise HfVitSegError(f"--set {name}: '{value}' is no YAML value") from None
    return fields


@app.command()
@reported
def push(
    directory: Annotated[Path, typer.Argument(help="A model's directory, or a run's for its best model.")],
    repo: Annotated[str, typer.Argument(help="Repository on the Hub, such as me/my-model; made if it is not there.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="What a new repository becomes, and one that is there must be."),
    ] = None,
    branch: Annotated[str | None, typer.Option(help="Commit to this branch; made if it is not there.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    sample_image: Annotated[
        bool,
        typer.Option("--sample-image", help="Publish one evaluated image with its prediction and label, in the card."),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and their sizes; send nothing.")] = False,
) -> None:
    """Publish a model on the Hub: weights, image processor, code for readers without this package, card and scores.

    The files are listed before they are sent. They contain no absolute paths of this machine, and images only with
    --sample-image.

    One commit: what was there before stays as it is until all is uploaded, and the same command goes on where it was
    cut. Log in with hf auth login.
    """
    from hf_vit_seg.hub.console import push_command
    from hf_vit_seg.hub.repository import Target

    target = Target(repo, private=private, branch=branch, create_pr=create_pr, message=message)
    push_command(directory, target, sample_image=sample_image, dry_run=dry_run)


@app.command("push-space")
@reported
def push_space(
    model: Annotated[
        str, typer.Argument(help="What it shows: a model's or run's directory, a Hub id, or nuclei (built in).")
    ],
    repo: Annotated[str, typer.Argument(help="The Space, such as me/my-demo; made if it is not there.")],
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="What a new Space becomes, and one that is there must be.")
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and their sizes; send nothing.")] = False,
) -> None:
    """Publish the demo of a model as a Space, with this package in it and the versions that are installed here."""
    from hf_vit_seg.hub.console import push_space_command
    from hf_vit_seg.hub.repository import Target

    target = Target(repo, private=private, create_pr=create_pr, message=message)
    push_space_command(model, target, dry_run=dry_run)


@app.command()
@reported
def demo(
    models: Annotated[
        list[str] | None, typer.Argument(help="Directories, exported files or Hub ids; default: the built-in nuclei.")
    ] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: the first free from 7860 on.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Also give a public address for a week, by gradio.")] = False,
) -> None:
    """Show models in a browser: segmentation, classification and pose, each in a tab of its own.

    Without MODELS also those that the environment variable HF_VIT_SEG_MODELS names.
    """
    from .demo import launch

    launch(*(models or ()), port=port, share=share)


@app.command("check-data")
@reported
def check_data(
    recipe: Annotated[str, typer.Argument(help="A recipe's file, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings over the recipe's: NAME=VALUE.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; default: data-check/NAME.")] = None,
    splits: Annotated[str, typer.Option(help="Which to look at, by commas.")] = "train,validation,test",
) -> None:
    """Look at every file of a recipe's data: what cannot be used, which values and classes there are, and pictures.

    Writes report.json and, for each split, a contact sheet such as train.png. Exit code 1 if training would refuse the
    data.
    """
    from hf_vit_seg.training.data_check import check_data as look

    well = look(recipe, overrides or (), out, splits.split(","))
    raise typer.Exit(DONE if well else FAILED)


@app.command()
@reported
def models() -> None:
    """List the architectures and their variants. Exit code 1 if those of any cannot be read."""
    from rich.console import Console

    from .plugin_listing import models_view

    view, sentences = models_view()
    Console().print(view)
    for sentence in sentences:
        typer.echo(f"hf-vit-seg: {sentence}", err=True)
    raise typer.Exit(FAILED if sentences else DONE)


@app.command()
@reported
def plugins() -> None:
    """List the installed plugins: what each brings, where it comes from, and which failed. Exit code 1 if any did."""
    from rich.console import Console

    from .plugin_listing import every_plugin, plugins_view

    found = every_plugin()
    Console().print(plugins_view(found))
    failed = [plugin for plugin in found if plugin.error]
    for plugin in failed:
        typer.echo(f"hf-vit-seg: {plugin.name} of {plugin.origin} cannot be used: {plugin.error}", err=True)
    raise typer.Exit(FAILED if failed else DONE)


if __name__ == "__main__":
    app()
