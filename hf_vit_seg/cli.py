"""The command `hf-vit-seg`: each subcommand parses its options and makes one call of the library.

Only the commands themselves import torch and transformers: help, completion and errors of usage are immediate.

Exit codes: 0 success, 1 some of the work failed, 2 the command cannot be executed as given, 70 a bug (its traceback is
shown), 130 stopped by a signal.
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from hf_vit_seg import __version__
from hf_vit_seg.training.__main__ import train

from .error_reporting import DONE, FAILED, GENERAL, is_json, print_json, print_result, report_errors
from .errors import HfVitSegError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hf_vit_seg.inference.batch.run import BatchRun
    from hf_vit_seg.inference.files.prediction import Job

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# Panels that group the options in --help.
INFERENCE, OUTPUTS, FILES, LARGE = "Inference settings", "Outputs", "Files", "Large images and videos"
BATCH = "Many images, processes and machines"
FORMAT, INPUTS, QUANTIZATION = "Format", "Inputs of the exported model", "8-bit quantization"
DATA, MODEL, REPOSITORY, SERVER = "Data", "Model", "Repository", "Server"


class Command(TyperCommand):
    """A command whose --help is listed with the options that every command has."""

    def get_help_option(self, ctx: Any) -> Any:
        """Return the option, in the panel of the general options."""
        option: Any = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel = GENERAL
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; the error for an unknown choice suggests the nearest one."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = usage_message(error.message)
            raise


def usage_message(message: str) -> str:
    """Return the message of an invalid option without pydantic's prefix, and with the nearest choice."""
    from .records import QUOTED, suggestion

    message = message.removeprefix("Value error, ")
    found, is_choice, known = message.partition(" is not one of ")
    if not is_choice:
        return message
    return message.rstrip(".") + (suggestion(found.strip("'"), QUOTED.findall(known)) or ".")


def command(
    name: str | None = None, *, example: str, prints_result: bool = False
) -> "Callable[[Callable[..., None]], Callable[..., None]]":
    """Register a function as a command that reports its errors; `example` is shown at the end of its help."""

    def register(function: "Callable[..., None]") -> "Callable[..., None]":
        known = app.command(name, cls=Command, epilog=f"Example: `{example}`")
        return known(report_errors(function, prints_result=prints_result))

    return register


ConvertOption = Annotated[
    bool,
    typer.Option(
        "--convert/--no-convert",
        help="Convert checkpoints in other formats in memory, or load them with transformers' classes.",
        rich_help_panel=MODEL,
    ),
]
CreatePrOption = Annotated[
    bool,
    typer.Option("--create-pr", help="Open a pull request instead of committing.", rich_help_panel=REPOSITORY),
]
MessageOption = Annotated[str | None, typer.Option(help="Commit message.", rich_help_panel=REPOSITORY)]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="Only list the files and their sizes; nothing is uploaded.", rich_help_panel=FILES),
]


class FloatType(StrEnum):
    """Number formats for computation."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Split(StrEnum):
    """Splits of a recipe's data."""

    train = "train"
    validation = "validation"
    test = "test"


class PolygonFormat(StrEnum):
    """Formats for polygons."""

    geojson = "geojson"
    coco = "coco"


class Coordinates(StrEnum):
    """Coordinates of GeoJSON polygons of georeferenced images."""

    wgs84 = "wgs84"
    image = "image"
    pixels = "pixels"


class ResultFormat(StrEnum):
    """Formats of the results of batch inference."""

    folder = "folder"
    webdataset = "webdataset"
    parquet = "parquet"


class Engine(StrEnum):
    """Engines of batch inference."""

    processes = "processes"
    ray = "ray"


class ModelFormat(StrEnum):
    """Formats of published models."""

    own = "own"
    transformers = "transformers"


def show_version(shown: bool) -> None:
    """Print the version of the package, and exit."""
    if shown:
        typer.echo(f"hf-vit-seg {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Vision transformers for segmentation in the Hugging Face ecosystem."""


@command(example="hf-vit-seg predict out/best photos/ -o masks", prints_result=True)
def predict(
    model: Annotated[
        str, typer.Argument(help="Directory, Hub ID, checkpoint file or its address, or exported segmentation model.")
    ],
    images: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders (recursive), or quoted glob patterns. Batch inference: also their addresses "
            "(hf://, s3://, https://), tar and Parquet files, datasets://NAME?split=test."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="Output folder. Subfolders are preserved. Batch inference: also an address.",
            rich_help_panel=FILES,
        ),
    ],
    device: Annotated[
        str | None,
        typer.Option(help="Device: cpu, cuda, cuda:1, mps. Default: a GPU if available.", rich_help_panel=INFERENCE),
    ] = None,
    dtype: Annotated[
        FloatType, typer.Option(help="Number format of the computation.", rich_help_panel=INFERENCE)
    ] = FloatType.float32,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Preset of the settings below: ade20k, cityscapes, each also _multi_scale.", rich_help_panel=INFERENCE
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Image size: processor, own, 512 (shortest edge), 512,2048 (both edges), 512x1024 (h x w).",
            rich_help_panel=INFERENCE,
        ),
    ] = None,
    divisor: Annotated[
        int | None, typer.Option(help="Round both sides up to a multiple of this number.", rich_help_panel=INFERENCE)
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            help="Sliding-window inference with windows of 512 or 512x1024 (height x width) pixels.",
            rich_help_panel=INFERENCE,
        ),
    ] = None,
    stride: Annotated[
        str | None,
        typer.Option(help="Stride of the windows. Default: two thirds of a window.", rich_help_panel=INFERENCE),
    ] = None,
    blend: Annotated[
        str | None, typer.Option(help="Weights of overlapping windows: flat or gaussian.", rich_help_panel=INFERENCE)
    ] = None,
    window_batch: Annotated[
        int | None, typer.Option(help="Maximum number of windows per forward pass.", rich_help_panel=INFERENCE)
    ] = None,
    scales: Annotated[
        str | None, typer.Option(help="Average over these scales, such as 0.5,1,2.", rich_help_panel=INFERENCE)
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average with the horizontally flipped image.", rich_help_panel=INFERENCE)
    ] = False,
    overlay: Annotated[
        bool,
        typer.Option(help="Write NAME.overlay.png, the image overlaid with class colors.", rich_help_panel=OUTPUTS),
    ] = True,
    opacity: Annotated[
        float, typer.Option(min=0, max=1, help="Opacity of the overlay.", rich_help_panel=OUTPUTS)
    ] = 0.5,
    scores: Annotated[
        bool,
        typer.Option(
            "--scores",
            help="Write NAME.scores.png, the probability of each pixel's class; 255 means 1.",
            rich_help_panel=OUTPUTS,
        ),
    ] = False,
    entropy: Annotated[
        bool,
        typer.Option(
            "--entropy", help="Write NAME.entropy.png; 255 means maximum uncertainty.", rich_help_panel=OUTPUTS
        ),
    ] = False,
    top_k: Annotated[
        int,
        typer.Option(
            min=0,
            help="Write NAME.top.npz, the k most likely classes of each pixel and their probabilities. For "
            "classification models: the number of classes in the table, 5 by default.",
            rich_help_panel=OUTPUTS,
        ),
    ] = 0,
    polygons: Annotated[
        list[PolygonFormat] | None,
        typer.Option(help="Write polygons as NAME.geojson or NAME.coco.json.", rich_help_panel=OUTPUTS),
    ] = None,
    boxes: Annotated[
        Path | None,
        typer.Option(
            help="Pose models: boxes of persons, annotations or results in COCO format. Default: the whole image.",
            rich_help_panel=INFERENCE,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Models that find objects: the lowest score of an object. Default: 0.5.",
            rich_help_panel=INFERENCE,
        ),
    ] = None,
    coordinates: Annotated[
        Coordinates,
        typer.Option(
            help="Coordinates in NAME.geojson: wgs84 (longitude and latitude), image (the image's coordinate reference "
            "system), pixels. Images without one: pixels.",
            rich_help_panel=OUTPUTS,
        ),
    ] = Coordinates.wgs84,
    convert_model: ConvertOption = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing results.", rich_help_panel=FILES)
    ] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Skip images that already have results.", rich_help_panel=FILES)
    ] = False,
    max_pixels: Annotated[
        int,
        typer.Option(
            min=1,
            help="TIFF and .npy images with more pixels are read in tiles; others are refused.",
            rich_help_panel=LARGE,
        ),
    ] = 100_000_000,
    tile: Annotated[
        int | None,
        typer.Option(
            min=64,
            help="Read every image in tiles of this side. Default for images above --max-pixels: 2048.",
            rich_help_panel=LARGE,
        ),
    ] = None,
    frames: Annotated[
        bool,
        typer.Option(
            "--frames",
            help="Write NAME.frames/ with a label map or instance map for each video frame.",
            rich_help_panel=LARGE,
        ),
    ] = False,
    frame_rate: Annotated[
        float | None,
        typer.Option(
            min=0.01, help="Treat each folder as the frames of a video with this frame rate.", rich_help_panel=LARGE
        ),
    ] = None,
    result_format: Annotated[
        ResultFormat | None,
        typer.Option(
            "--format",
            help="Files of each image, or of each shard. Default: folder.",
            rich_help_panel=BATCH,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes or actors. Default: one per CPU core, one on a GPU.",
            rich_help_panel=BATCH,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images per forward pass. Default: 1 on a CPU, 32 on a GPU.",
            rich_help_panel=BATCH,
        ),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(min=1, help="Number of shards. Default: 16 to 1024 images per shard.", rich_help_panel=BATCH),
    ] = None,
    engine: Annotated[
        Engine | None,
        typer.Option(help="Launcher of the workers. Default: processes on this machine.", rich_help_panel=BATCH),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Cluster of Ray, such as auto. Default: this machine alone.", rich_help_panel=BATCH),
    ] = None,
    image_column: Annotated[
        str,
        typer.Option(
            help="Column of the images in Parquet files and datasets. Default: the only one, or image.",
            rich_help_panel=BATCH,
        ),
    ] = "",
    reports: Annotated[
        bool, typer.Option("--reports/--no-reports", help="Write NAME.json for each image.", rich_help_panel=BATCH)
    ] = True,
    push_dataset: Annotated[
        str | None,
        typer.Option(
            metavar="REPO", help="Push the results to this dataset of the Hub, in one commit.", rich_help_panel=BATCH
        ),
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Visibility of the dataset; an existing one must match.",
            rich_help_panel=BATCH,
        ),
    ] = None,
) -> None:
    """Segment or classify images, or find objects or keypoints, depending on the model.

    Segmentation models: writes NAME.png (label map), NAME.overlay.png and NAME.json (pixels per class) for each image.
    Models that find objects: NAME.png (instance map of 16 bits), NAME.overlay.png, NAME.objects.csv (a row for each
    object: class, score, area, centroid) and NAME.json (number of objects per class).
    Classification models: NAME.json, and classes.csv and classes.json with the most likely classes of all images. Pose
    models: NAME.overlay.png, NAME.json, and keypoints.json with all persons in COCO's results format.

    Transparent images are composited on white, animations are represented by their first frame, and EXIF orientation
    is applied. By default, the model processes the whole image, resized as configured in its image processor. NAME.json
    records the inference settings.

    TIFF and .npy images above --max-pixels are read, segmented and written in tiles, with sliding windows at the
    original resolution, and NAME.labels.tif is written in addition to NAME.png. An interrupted run is resumed by the
    same command. Videos (MP4 and others) result in NAME.overlay.mp4 and NAME.json.

    For georeferenced TIFFs of any size, the maps are also written as TIFFs with the georeference (NAME.labels.tif).

    With the options for many images, the images are divided into shards that processes or machines share, the same
    command resumes an interrupted run, and errors.csv lists the images that cannot be segmented. Several GPUs or
    machines: accelerate launch -m hf_vit_seg.cli predict MODEL ...
    """
    from hf_vit_seg.inference.batch.console import requires_shards, share_of_processes
    from hf_vit_seg.inference.batch.run import BatchRun
    from hf_vit_seg.inference.console import protocol_from_text, run, run_task
    from hf_vit_seg.inference.dense.protocols import Protocol
    from hf_vit_seg.inference.files.heads import refuse_options
    from hf_vit_seg.inference.files.map_coordinates import PolygonCoordinates
    from hf_vit_seg.inference.files.prediction import PredictOptions
    from hf_vit_seg.inference.files.tables import table_paths
    from hf_vit_seg.inference.runtimes import find_task

    from .directory_lock import lock_directory

    if os.path.exists(out) and not os.path.isdir(out):
        raise HfVitSegError(f"--out {out} is a file, not a folder")
    formats = set(polygons or ())
    predict_options = PredictOptions(
        model=model,
        overlay=overlay,
        opacity=opacity,
        scores=scores,
        entropy=entropy,
        top_k=top_k,
        geojson=PolygonFormat.geojson in formats,
        coco=PolygonFormat.coco in formats,
        coordinates=PolygonCoordinates(coordinates.value),
        max_pixels=max_pixels,
        tile=tile,
        frames=frames,
        frame_rate=frame_rate,
        boxes=boxes,
        threshold=threshold,
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
    task = find_task(model)
    refuse_options(task, predict_options, chosen != Protocol())
    options_of_shards = {
        "--format": result_format,
        "--workers": workers,
        "--batch-size": batch_size,
        "--shards": shards,
        "--engine": engine,
        "--address": address,
        "--image-column": image_column,
        "--no-reports": not reports,
        "--push-dataset": push_dataset,
    }
    if requires_shards(images, out, options_of_shards):
        rank, world = share_of_processes()
        batch = BatchRun(
            model=model,
            inputs=tuple(images),
            out=out,
            options=predict_options,
            protocol=chosen,
            device=device,
            dtype=dtype.value,
            convert=convert_model,
            format=(result_format or ResultFormat.folder).value,
            column=image_column,
            reports=reports,
            shards=shards,
            workers=workers,
            batch_size=batch_size,
            engine=(engine or Engine.processes).value,
            address=address,
            rank=rank,
            world=world,
            overwrite=overwrite,
        )
        raise typer.Exit(predict_shards(task, batch, push_dataset, private))
    folder = Path(out)
    with lock_directory(folder):
        tables = table_paths(task, folder)
        planned = plan_jobs(images, folder, overwrite, skip_existing, videos=frame_rate is not None, tables=tables)
        if task in ("segmentation", "instance"):
            jobs = [job for job in planned if not (skip_existing and job.done)]
            code = run(
                model, device, dtype.value, jobs, predict_options, folder, chosen, convert=convert_model, task=task
            )
        else:
            code = run_task(
                task, model, device, dtype.value, planned, skip_existing, predict_options, folder, convert=convert_model
            )
    raise typer.Exit(code)


def predict_shards(task: str, batch: "BatchRun", repo: str | None, private: bool | None) -> int:
    """Run `predict` by shards, push the results if a repository is given, and return the exit code."""
    from hf_vit_seg.hub.dataset import push_dataset
    from hf_vit_seg.hub.repository import Target
    from hf_vit_seg.inference.batch.console import run_batch

    if task != "segmentation":
        raise HfVitSegError(f"{batch.model} is a model for {task}: batch inference is for segmentation models")
    if repo is not None and (batch.format != ResultFormat.parquet or batch.world > 1):
        raise HfVitSegError("--push-dataset requires --format parquet, and a single process without accelerate launch")
    target = None if repo is None else Target(repo, private=private)
    code, summary = run_batch(batch)
    url = push_dataset(batch.out, target) if target is not None and summary.finished == summary.images else None
    if url is not None:
        typer.echo(f"pushed {summary.images - len(summary.failures)} images: {url}", err=True)
    counts = {"images": summary.images, "done": summary.finished - len(summary.failures)}
    errors = [f"{each.image}: {each.reason}" for each in summary.failures]
    print_json(lambda: {"task": task, "out": batch.out, **counts, "errors": errors, "url": url})
    return code


def plan_jobs(
    images: list[str],
    out: Path,
    overwrite: bool,
    skip_existing: bool,
    videos: bool = False,
    tables: "Sequence[Path]" = (),
) -> "list[Job]":
    """Plan the jobs of `predict`: one for each image or video; with `videos`, also one for each folder.

    HfVitSegError if results or `tables` exist and neither of the options for existing results is given.
    """
    from hf_vit_seg.data.images.files import ImageFile, find_images
    from hf_vit_seg.inference.files.prediction import plan

    if overwrite and skip_existing:
        raise HfVitSegError("--overwrite and --skip-existing exclude each other")
    folders = [Path(name) for name in images if videos and os.path.isdir(name)]
    found = find_images([name for name in images if Path(name) not in folders], skip=out)
    jobs = plan([*(ImageFile(folder, Path(folder.resolve().name)) for folder in folders), *found], out, tables)
    existing = [path for job in jobs if (path := job.existing)]
    if existing and not overwrite and not skip_existing:
        raise HfVitSegError(
            f"{len(existing)} of {len(jobs)} images already have results, such as {existing[0]}; pass --overwrite or "
            "--skip-existing"
        )
    if not overwrite and not skip_existing and (table := next((path for path in tables if path.exists()), None)):
        raise HfVitSegError(
            f"{table} exists already; pass --overwrite to replace it, or --skip-existing to add the images to it"
        )
    return jobs


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
    from hf_vit_seg.training.console import evaluate_command

    raise typer.Exit(evaluate_command(model, settings or [], recipe, split.value, out, convert=convert_model))


@command(example="hf-vit-seg export out/best program --to onnx", prints_result=True)
def export(
    model: Annotated[str, typer.Argument(help="Directory, exported model, or Hub ID of a segmentation model.")],
    out: Annotated[Path, typer.Argument(help="Output directory for the exported model and its configuration.")],
    to: Annotated[
        str,
        typer.Option(
            help="Format: onnx, openvino, torchscript, executorch, or that of a plugin.", rich_help_panel=FORMAT
        ),
    ],
    size: Annotated[
        str | None,
        typer.Option(
            help="Fixed input size: 512 or 512x1024 (height x width). Default: any. --to executorch, and --to openvino "
            "with --int8, require it.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Fixed batch size. Default: any.", rich_help_panel=INPUTS)
    ] = None,
    label_map: Annotated[
        str | None,
        typer.Option(
            help="Output a uint8 label map instead of logits, at the size of the input (input) or at 1024x2048.",
            rich_help_panel=FORMAT,
        ),
    ] = None,
    dtype: Annotated[
        FloatType,
        typer.Option(help="Number format: float32, or float16 if the format supports it.", rich_help_panel=FORMAT),
    ] = FloatType.float32,
    int8: Annotated[
        Path | None,
        typer.Option(
            help="Quantize to 8 bits, calibrated on the images in this folder (onnx; openvino with --size).",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    int8_images: Annotated[
        int, typer.Option(min=1, help="Maximum number of calibration images.", rich_help_panel=QUANTIZATION)
    ] = 100,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Print the mean IoU before and after quantization on the data of this recipe.",
            rich_help_panel=QUANTIZATION,
        ),
    ] = None,
    split: Annotated[
        Split, typer.Option(help="Split of the recipe's data.", rich_help_panel=QUANTIZATION)
    ] = Split.validation,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Option of the format as NAME=VALUE, such as opset=18. Repeatable.", rich_help_panel=FORMAT
        ),
    ] = None,
    convert_model: ConvertOption = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing exported model.", rich_help_panel=FILES)
    ] = False,
) -> None:
    """Export a model for another runtime, and compare its outputs with those of the model.

    If they differ, nothing is written and the exit code is 1.

    By default, the exported model accepts any image size and batch size. Preprocessing, labels and the result of the
    comparison (parity.json) are saved in the same directory, so that hf-vit-seg predict OUT/model.onnx works as with
    the model itself.
    """
    from hf_vit_seg.data.images.files import find_images
    from hf_vit_seg.export.console import label_size, run, sides
    from hf_vit_seg.export.exported_model import ExportOptions
    from hf_vit_seg.training.evaluation.evaluate import mean_iou_on
    from hf_vit_seg.training.recipe_loading import load_recipe

    if recipe is not None and int8 is None:
        raise HfVitSegError("--recipe evaluates the quantized model: also pass --int8 FOLDER")
    export_options = ExportOptions(
        size=None if size is None else sides(size, "--size"),
        batch=batch,
        labels=label_size(label_map),
        dtype=dtype.value,
        calibration=[] if int8 is None else [image.path for image in find_images([str(int8)])],
        calibration_images=int8_images,
    )
    score = None if recipe is None else mean_iou_on(load_recipe(recipe, []), split.value)
    code = run(
        model,
        out,
        to,
        export_options,
        fields_of(settings or []),
        overwrite=overwrite,
        score=score,
        convert=convert_model,
    )
    raise typer.Exit(code)


@command(example="hf-vit-seg convert nvidia/segformer-b0-finetuned-ade-512-512 b0", prints_result=True)
def convert(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="Checkpoint: a file, a directory, a Hub ID, or the https address of a file; with --to, a model "
            "directory."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Model directory to create; with --to, the file or directory to create.")],
    source: Annotated[str | None, typer.Option(help="Override format detection.", rich_help_panel=FORMAT)] = None,
    to: Annotated[
        str | None, typer.Option(help="Export a model directory back to this format.", rich_help_panel=FORMAT)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Weights to convert if the file has several, such as state_dict_ema or teacher.",
            rich_help_panel=FORMAT,
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a Hub ID.", rich_help_panel=FORMAT)
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Class names: ade20k, cityscapes, imagenet-1k, or a JSON or YAML file.", rich_help_panel=MODEL
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a field of the config, as NAME=VALUE. Repeatable.", rich_help_panel=MODEL),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing OUT.", rich_help_panel=FILES)
    ] = False,
) -> None:
    """Convert a reference checkpoint to a model directory that AutoModel loads, or back.

    The source's epsilons, labels, palette and preprocessing are preserved. Pickled code is never executed. Nothing is
    written unless all tensors match.
    """
    from dataclasses import asdict

    from hf_vit_seg.conversion.convert import convert as convert_checkpoint

    if to is not None and (source or labels or settings or weights or revision):
        raise HfVitSegError(
            "--to exports the model unchanged: omit --source, --labels, --set, --weights and --revision"
        )
    if to is not None:
        report = convert_checkpoint(checkpoint, out, to=to, overwrite=overwrite)
    else:
        report = convert_checkpoint(
            checkpoint,
            out,
            source=source,
            labels=labels,
            settings=fields_of(settings or []),
            overwrite=overwrite,
            weights=weights,
            revision=revision,
        )
    print_result(report, lambda: asdict(report) | {"path": str(report.path)})


def fields_of(settings: list[str]) -> dict[str, object]:
    """Parse options NAME=VALUE whose values are YAML, such as `--set sr_ratios=[8,4,2,1]`."""
    from hf_vit_seg.records import shorten
    from hf_vit_seg.text_files import parse

    fields = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.isidentifier():
            raise HfVitSegError(f"--set: found '{setting}', expected NAME=VALUE, such as decode_head_hidden_size=768")
        try:
            fields[name] = parse(value)
        except HfVitSegError as error:
            raise HfVitSegError(f"--set {name}: {shorten(value)} is not valid YAML ({error})") from None
    return fields


@command(example="hf-vit-seg push out me/nuclei --dry-run", prints_result=True)
def push(
    directory: Annotated[
        str,
        typer.Argument(help="Model directory, a run directory to push its best model, or a checkpoint to convert."),
    ],
    repo: Annotated[str, typer.Argument(help="Hub repository, such as me/my-model. Created if it does not exist.")],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Visibility of the repository; an existing one must match.",
            rich_help_panel=REPOSITORY,
        ),
    ] = None,
    branch: Annotated[
        str | None,
        typer.Option(help="Commit to this branch. Created if it does not exist.", rich_help_panel=REPOSITORY),
    ] = None,
    create_pr: CreatePrOption = False,
    message: MessageOption = None,
    sample_image: Annotated[
        bool,
        typer.Option(
            "--sample-image",
            help="Also publish one evaluated image with its prediction and label.",
            rich_help_panel=FILES,
        ),
    ] = False,
    model_format: Annotated[
        ModelFormat,
        typer.Option(
            "--format",
            help="own, or transformers: loads without this package and without remote code.",
            rich_help_panel=FILES,
        ),
    ] = ModelFormat.own,
    handler: Annotated[
        bool,
        typer.Option(
            "--handler/--no-handler", help="Also publish handler.py for Inference Endpoints.", rich_help_panel=FILES
        ),
    ] = True,
    dry_run: DryRunOption = False,
) -> None:
    """Publish a model on the Hub: weights, image processor, model code, model card and metrics.

    The files are listed before the upload. They contain no absolute paths of this machine, and images only with
    --sample-image. Everything is uploaded in one commit; run the same command again to resume an interrupted upload.
    Log in with hf auth login.
    """
    from hf_vit_seg.hub.console import push_command
    from hf_vit_seg.hub.repository import Target

    target = Target(repo, private=private, branch=branch, create_pr=create_pr, message=message)
    push_command(
        directory,
        target,
        sample_image=sample_image,
        dry_run=dry_run,
        model_format=model_format.value,
        handler=handler,
    )


@command("push-space", example="hf-vit-seg push-space out me/nuclei-demo --dry-run", prints_result=True)
def push_space(
    model: Annotated[str, typer.Argument(help="Model directory, run directory, Hub ID, or nuclei (built in).")],
    repo: Annotated[str, typer.Argument(help="Space on the Hub, such as me/my-demo. Created if it does not exist.")],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Visibility of the Space; an existing one must match.",
            rich_help_panel=REPOSITORY,
        ),
    ] = None,
    create_pr: CreatePrOption = False,
    message: MessageOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Publish a demo of a model as a Space. It contains this package and pins the installed versions."""
    from hf_vit_seg.hub.console import push_space_command
    from hf_vit_seg.hub.repository import Target

    target = Target(repo, private=private, create_pr=create_pr, message=message)
    push_space_command(model, target, dry_run=dry_run)


@command(example="hf-vit-seg demo out/best", prints_result=True)
def demo(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Directories, exported models or Hub IDs. Default: the built-in nuclei model."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port. Default: the first free port from 7860.", rich_help_panel=SERVER),
    ] = None,
    share: Annotated[
        bool,
        typer.Option("--share", help="Create a public gradio link, valid for one week.", rich_help_panel=SERVER),
    ] = False,
) -> None:
    """Start a web demo of models for segmentation, classification and pose estimation.

    Without MODELS, the models in the environment variable HF_VIT_SEG_MODELS are added. With --json, the address is
    printed when the demo has started.
    """
    from .demo import launch

    if not is_json():
        launch(*(models or ()), port=port, share=share)
        return
    server, url, share_url = launch(*(models or ()), port=port, share=share, prevent_thread_lock=True)
    print_json(lambda: {"url": url, "share_url": share_url})
    server.get_blocks().block_thread()


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
    from hf_vit_seg.training.data_check import check_data as run_check

    valid = run_check(recipe, settings or (), out, splits.split(","))
    raise typer.Exit(DONE if valid else FAILED)


@command(example="hf-vit-seg models --json", prints_result=True)
def models() -> None:
    """List the architectures and their variants. Exit code 1 if one cannot be loaded."""
    from .plugin_listing import list_variants, models_view

    rows, sentences = list_variants()
    print_result(models_view(rows), lambda: rows)
    for sentence in sentences:
        typer.echo(f"hf-vit-seg: {sentence}", err=True)
    raise typer.Exit(FAILED if sentences else DONE)


@command(example="hf-vit-seg plugins", prints_result=True)
def plugins() -> None:
    """List the installed plugins with their status. Exit code 1 if one cannot be loaded."""
    from .plugin_listing import list_plugins, plugin_rows, plugins_view

    found = list_plugins()
    print_result(plugins_view(found), lambda: plugin_rows(found))
    failed = [plugin for plugin in found if plugin.error]
    for plugin in failed:
        typer.echo(f"hf-vit-seg: {plugin.name} of {plugin.origin} cannot be loaded: {plugin.error}", err=True)
    raise typer.Exit(FAILED if failed else DONE)


@command(example="hf-vit-seg env --json", prints_result=True)
def env() -> None:
    """Print the environment for bug reports: versions, processor, devices, options; no user names or paths."""
    from .hub.environment import describe_environment, environment_view

    found = describe_environment()
    print_result(environment_view(found), lambda: found)


if __name__ == "__main__":
    app()
