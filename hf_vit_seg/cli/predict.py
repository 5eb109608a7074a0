"""The command `predict`."""

import os
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hf_vit_seg.error_reporting import print_json
from hf_vit_seg.errors import HfVitSegError

from .app import FILES, ConvertOption, FloatType, command

if TYPE_CHECKING:
    from hf_vit_seg.inference.batch.run import BatchRun
    from hf_vit_seg.inference.files.prediction import Job

# Panels that group the options in --help.
INFERENCE, OUTPUTS, LARGE = "Inference settings", "Outputs", "Large images and videos"
BATCH = "Many images, processes and machines"


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
    from hf_vit_seg.directory_lock import lock_directory
    from hf_vit_seg.inference.batch.batch_console import requires_shards, share_of_processes
    from hf_vit_seg.inference.batch.run import BatchRun
    from hf_vit_seg.inference.files.map_coordinates import PolygonCoordinates
    from hf_vit_seg.inference.files.prediction import PredictOptions, check_task_options
    from hf_vit_seg.inference.files.tables import table_paths
    from hf_vit_seg.inference.predict_command import PredictRun, predict_jobs, protocol_from_text
    from hf_vit_seg.inference.runtimes import find_task

    if os.path.exists(out) and not os.path.isdir(out):
        raise HfVitSegError(f"--out {out} is a file, not a folder")
    formats = set(polygons or ())
    options = PredictOptions(
        model=model,
        device=device,
        dtype=dtype.value,
        convert=convert_model,
        protocol=protocol_from_text(
            preset=protocol,
            size=size,
            divisor=divisor,
            window=window,
            stride=stride,
            blend=blend,
            window_batch=window_batch,
            scales=scales,
            flip=flip or None,
        ),
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
    task = find_task(model)
    check_task_options(task, options)
    batch_options = (result_format, workers, batch_size, shards, engine, address, image_column, not reports)
    if requires_shards(images, out, (*batch_options, push_dataset)):
        if skip_existing:
            raise HfVitSegError("a run by shards is resumed by the same command: remove --skip-existing")
        rank, world = share_of_processes()
        batch = BatchRun(
            options=options,
            inputs=tuple(images),
            out=out,
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
        jobs = plan_jobs(images, folder, overwrite, skip_existing, videos=frame_rate is not None, tables=tables)
        code = predict_jobs(PredictRun(task, jobs, options, folder, skip_existing))
    raise typer.Exit(code)


def predict_shards(task: str, batch: "BatchRun", repo: str | None, private: bool | None) -> int:
    """Run `predict` by shards, push the results if a repository is given, and return the exit code."""
    from hf_vit_seg.hub.dataset import push_dataset
    from hf_vit_seg.hub.repository import Target
    from hf_vit_seg.inference.batch.batch_console import run_batch

    if task != "segmentation":
        raise HfVitSegError(f"{batch.options.model} is a model for {task}: batch inference is for segmentation models")
    if repo is not None and (batch.format != ResultFormat.parquet or batch.world > 1):
        raise HfVitSegError("--push-dataset requires --format parquet, and a single process without accelerate launch")
    target = None if repo is None else Target(repo, private=private)
    code, summary = run_batch(batch)
    url = push_dataset(batch.out, target) if target is not None and summary.finished == summary.images else None
    if url is not None:
        typer.echo(f"pushed {summary.images - len(summary.failures)} images: {url}", err=True)
    counts = {"images": summary.images, "done": summary.finished - len(summary.failures)}
    errors = [f"{failure.image}: {failure.reason}" for failure in summary.failures]
    print_json(lambda: {"task": task, "out": batch.out, **counts, "errors": errors, "url": url})
    return code


def plan_jobs(
    images: list[str],
    out: Path,
    overwrite: bool,
    skip_existing: bool,
    videos: bool = False,
    tables: Sequence[Path] = (),
) -> "list[Job]":
    """Plan the jobs of `predict`: one for each image or video; with `videos`, also one for each folder.

    HfVitSegError if results or `tables` exist and neither of the options for existing results is given.
    """
    from hf_vit_seg.data.images.files import ImageFile, find_images
    from hf_vit_seg.inference.files.prediction import create_jobs

    if overwrite and skip_existing:
        raise HfVitSegError("--overwrite and --skip-existing exclude each other")
    folders = [Path(name) for name in images if videos and os.path.isdir(name)]
    images_found = find_images([name for name in images if Path(name) not in folders], skip=out)
    jobs = create_jobs(
        [*(ImageFile(folder, Path(folder.resolve().name)) for folder in folders), *images_found], out, tables
    )
    existing = [path for job in jobs if (path := job.existing_result)]
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
