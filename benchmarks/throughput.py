"""Throughput of batch inference against the rate of the model alone, and against transformers' pipeline.

    python -m benchmarks.throughput [--model DIRECTORY] [--photos FOLDER] [--images 120]

The default model is a SegFormer-B0 with 150 classes and random weights, whose label maps have more boundaries than
those of a trained model.

The rate of the model alone is that of the model and its exact label map on tensors in memory, at its best over
processes, threads and batch sizes. Everything else reads JPEG files and writes its results: `predict` by shards with
label maps only, and with overlays and reports, also on a single core; `predict` of one process as without options of
batch inference; one actor of Ray if it is installed; and transformers' pipeline with its own model and post-
processing, of which each mask is written as PNG. Starting the processes and loading the model are not counted. The
time of the cores is also shown: unlike the rate, it hardly depends on other work of the machine.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from transformers import logging

from hf_vit_seg.inference import Segmenter
from hf_vit_seg.inference.batch.manifest import RunSettings, plan_manifest
from hf_vit_seg.inference.batch.shard import ShardSegmenter, WorkSettings
from hf_vit_seg.inference.batch.storage import Storage
from hf_vit_seg.inference.files.prediction import PredictOptions

from .measuring import print_table

WIDTH, HEIGHT = 640, 480


@dataclass(frozen=True)
class Setup:
    """The model directory, the folder of photos, their number, and the device."""

    model: str
    photos: str
    images: int
    device: str


@dataclass(frozen=True)
class Cost:
    """What some images took: seconds, and seconds of all cores together."""

    images: int
    seconds: float
    core_seconds: float


@dataclass(frozen=True)
class Start:
    """The clocks when the work began."""

    seconds: float
    core_seconds: float

    def cost(self, images: int) -> Cost:
        return Cost(images, time.perf_counter() - self.seconds, time.process_time() - self.core_seconds)


@dataclass(frozen=True)
class Work:
    """What each of some processes does: `run` gets the setup, its process and the number of processes.

    With `one_core`, the process and its threads use a single core.
    """

    run: Callable[[Setup, int, int, Any], Cost]
    processes: int
    threads: int
    option: Any = None
    one_core: bool = False


def write_photos(folder: Path, images: int, found: Sequence[Path]) -> None:
    """JPEG files of 640x480: photos that were found, resized, or smooth noise."""
    random = np.random.default_rng(0)
    for number in range(images):
        if found:
            with Image.open(found[number % len(found)]) as image:
                picture = image.convert("RGB").resize((WIDTH, HEIGHT))
        else:
            small = Image.fromarray(random.integers(0, 255, (24, 32, 3), np.uint8))
            picture = small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:05d}.jpg", quality=90)


def write_model(folder: Path) -> str:
    """Save a SegFormer-B0 with 150 classes and random weights in transformers' format."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    names = {index: f"class {index}" for index in range(150)}
    SegformerForSemanticSegmentation(SegformerConfig(id2label=names)).save_pretrained(folder)
    SegformerImageProcessor().save_pretrained(folder)
    return str(folder)


def share(setup: Setup, process: int, processes: int) -> list[Path]:
    """Return the photos of one process."""
    return sorted(Path(setup.photos).glob("*.jpg"))[process::processes]


def run_model(setup: Setup, process: int, processes: int, batch: int) -> Cost:
    """Build the function of the model and its label maps on tensors in memory."""
    segmenter = Segmenter.from_pretrained(setup.model, setup.device)
    prepared = [segmenter.prepare(path) for path in share(setup, process, processes)]
    segmenter.label_maps(prepared[:batch])
    start = begin_together()
    for first in range(0, len(prepared), batch):
        segmenter.label_maps(prepared[first : first + batch])
    return start.cost(len(prepared))


def run_shards(setup: Setup, process: int, processes: int, options: PredictOptions) -> Cost:
    """Batch inference from JPEG files to results, of a process's shards."""
    segmenter = Segmenter.from_pretrained(setup.model, setup.device)
    with tempfile.TemporaryDirectory() as out, ExitStack() as stack:
        reports = options.overlay
        settings = RunSettings(setup.model, "", (setup.photos,), shards=4 * processes, reports=reports)
        manifest = plan_manifest(settings, Storage(out))
        segment = stack.enter_context(ShardSegmenter(segmenter, options, WorkSettings()))
        segmenter(share(setup, process, processes)[0])
        start = begin_together()
        for index in range(process, manifest.shards, processes):
            segment(manifest, index)
        return start.cost(manifest.images // processes)


def run_predict(setup: Setup, process: int, processes: int, options: PredictOptions) -> Cost:
    """`predict` without shards."""
    from hf_vit_seg.data.images.files import find_images
    from hf_vit_seg.inference.files.prediction import create_jobs as plan_jobs
    from hf_vit_seg.inference.files.prediction import predict

    segmenter = Segmenter.from_pretrained(setup.model, setup.device)
    with tempfile.TemporaryDirectory() as out:
        jobs = plan_jobs(find_images([setup.photos]), Path(out))
        segmenter(jobs[0].image.path)
        start = begin_together()
        failed = [outcome for outcome in predict(segmenter, jobs, options) if outcome.error]
        assert not failed
        return start.cost(len(jobs))


def run_transformers(setup: Setup, process: int, processes: int, images: int) -> Cost:
    """transformers' pipeline on the first images."""
    from transformers import pipeline

    segment: Any = pipeline("image-segmentation", model=setup.model, device=setup.device)
    photos = share(setup, 0, 1)
    segment(str(photos[0]))
    with tempfile.TemporaryDirectory() as out:
        start = begin_together()
        for path in photos[:images]:
            for number, found in enumerate(segment(str(path))):
                found["mask"].save(Path(out, f"{path.stem}_{number}.png"))
        return start.cost(images)


# Processes that start together

_barrier: Any = None


def begin_together() -> "Start":
    """Wait until all processes have loaded their models, and start to measure."""
    if _barrier is not None:
        _barrier.wait()
    return Start(time.perf_counter(), time.process_time())


def begin(barrier: Any, results: Any, work: Work, setup: Setup, process: int) -> None:
    """Run the part of one process, and send its seconds."""
    global _barrier
    _barrier = barrier
    if work.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(work.threads)
    results.send(work.run(setup, process, work.processes, work.option))
    results.close()


def measure(work: Work, setup: Setup) -> Cost:
    """Return the cost of some processes that begin together, until the last one has finished."""
    context = get_context("spawn")
    barrier, started = context.Barrier(work.processes), []
    for process in range(work.processes):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=begin, args=(barrier, sender, work, setup, process))
        child.start()
        sender.close()
        started.append((child, receiver))
    costs: list[Cost] = [receiver.recv() for _, receiver in started]
    for child, _ in started:
        child.join()
    return Cost(
        sum(cost.images for cost in costs),
        max(cost.seconds for cost in costs),
        sum(cost.core_seconds for cost in costs),
    )


def ray_rate(setup: Setup, threads: int) -> float | None:
    """Images per second of one actor of Ray, by the times of its shards; None if it is not installed."""
    from hf_vit_seg.inference.batch.processes import Work as ShardWork
    from hf_vit_seg.inference.batch.ray_engine import RayError, run_ray
    from hf_vit_seg.inference.batch.shard import ShardStatus

    found: list[tuple[float, ShardStatus]] = []

    def note(event: Any) -> None:
        if isinstance(event, ShardStatus):
            found.append((time.perf_counter(), event))

    with tempfile.TemporaryDirectory() as out:
        settings = RunSettings(setup.model, "", (setup.photos,), shards=8, reports=False)
        options = PredictOptions(model=setup.model, device=setup.device, overlay=False)
        work = ShardWork(plan_manifest(settings, Storage(out)), options, WorkSettings(threads=threads))
        try:
            run_ray(work, range(8), note, actors=1)
        except RayError:
            return None
    first, last = found[0][0], found[-1][0]  # without the start of the actor and its first shard
    return sum(status.images for _, status in found[1:]) / (last - first)


def main(
    model: Annotated[
        str | None, typer.Option(help="directory of a segmentation model; default: SegFormer-B0 with random weights")
    ] = None,
    photos: Annotated[Path | None, typer.Option(help="folder of photos; noise if not given")] = None,
    images: Annotated[int, typer.Option(help="number of images")] = 120,
    peer_images: Annotated[int, typer.Option(help="images that transformers' pipeline segments")] = 10,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    cores: Annotated[int, typer.Option(help="cores to use")] = 2,
    ray: Annotated[bool, typer.Option(help="measure an actor of Ray, if it is installed")] = True,
    rounds: Annotated[int, typer.Option(help="turns of each; the best counts")] = 1,
    out: Annotated[Path | None, typer.Option(help="Markdown file to append the table to")] = None,
) -> None:
    """Print the table."""
    logging.set_verbosity_error()
    labels, every = PredictOptions(overlay=False), PredictOptions()
    counts = sorted({(1, cores), (cores, 1)})
    model_works = {
        f"model alone: {processes} processes, {threads} threads, batch {batch}": Work(
            run_model, processes, threads, batch
        )
        for processes, threads in counts
        for batch in (1, 4)
    }
    works = model_works | {
        f"by shards, label maps only: {cores} processes": Work(run_shards, cores, 1, labels),
        f"by shards, overlays and reports: {cores} processes": Work(run_shards, cores, 1, every),
        "by shards, label maps only: 1 process, 1 thread": Work(run_shards, 1, 1, labels),
        "by shards, label maps only: 1 process on 1 core": Work(run_shards, 1, 1, labels, one_core=True),
        "predict without shards, overlays and reports": Work(run_predict, 1, cores, every),
        "transformers' pipeline, masks": Work(run_transformers, 1, cores, peer_images),
    }
    with tempfile.TemporaryDirectory() as folder:
        found = [] if photos is None else sorted(path for path in photos.rglob("*") if path.suffix in (".jpg", ".png"))
        write_photos(Path(folder), images, found)
        setup = Setup(model or write_model(Path(folder, "model")), folder, images, device)
        rates, cores_used = dict.fromkeys(works, 0.0), dict.fromkeys(works, float("inf"))
        for _ in range(rounds):
            for name, work in works.items():
                cost = measure(work, setup)
                rates[name] = max(rates[name], cost.images / cost.seconds)
                cores_used[name] = min(cores_used[name], 1e3 * cost.core_seconds / cost.images)
                typer.echo(
                    f"{name}: {cost.images / cost.seconds:.2f} images/s, {cores_used[name]:.0f} core ms", err=True
                )
        actor = ray_rate(setup, 1) if ray else None
    best = max(rates[name] for name in model_works)
    least = min(cores_used[name] for name in model_works)
    rows = [
        [
            name,
            f"{rates[name]:.2f}",
            f"{rates[name] / best:.2f}",
            f"{cores_used[name]:.0f}",
            f"{least / cores_used[name]:.2f}",
        ]
        for name in works
    ]
    if actor is not None:
        rows.append(
            ["by shards, label maps only: 1 actor of Ray, 1 thread", f"{actor:.2f}", f"{actor / best:.2f}", "", ""]
        )
    columns = ["", "images/s", "of the model alone", "core ms per image", "of the model alone"]
    print_table(f"{images} JPEG files of {WIDTH}x{HEIGHT}, {device}", columns, rows, out)


if __name__ == "__main__":
    typer.run(main)
