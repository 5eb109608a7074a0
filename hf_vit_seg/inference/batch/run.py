"""A run of batch inference: plan it or resume it, segment its shards with one of three engines, and finish it."""

import csv
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_vit_seg.conversion.errors import ConversionError
from hf_vit_seg.conversion.in_memory import find_commit
from hf_vit_seg.data.storage.addresses import is_address, local_path
from hf_vit_seg.directory_lock import lock_directory
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.inference.files.prediction import PredictOptions
from hf_vit_seg.provenance import package_versions

from .manifest import (
    FOLDER,
    HEADER,
    Manifest,
    ManifestError,
    RunSettings,
    check_inputs,
    check_settings,
    plan_manifest,
    read_manifest,
)
from .outputs import FORMATS, TEMPORARY, remove_results
from .preparation import Failure
from .processes import Event, Note, Work, run_processes
from .ray_engine import run_ray
from .shard import ShardStatus, WorkSettings, read_status
from .storage import Storage

logger = logging.getLogger(__name__)

ERRORS = "errors.csv"
ENGINES = ("processes", "ray")
MAX_PROCESSES = 16  # by default; each has a model in memory
ACCELERATOR_BATCH = 32
WAIT = timedelta(days=1)  # for the process that plans


class RunError(HfVitSegError):
    """A run that cannot be started with its settings."""


@dataclass(frozen=True)
class BatchRun:
    """A command of batch inference: the options of `predict`, and how the images are divided.

    `out` is a folder or an fsspec address, `format` one of `FORMATS`. `workers` are processes of this machine (with
    Ray: actors); by default one for each CPU core, or one on a GPU. `batch_size` is 1 on a CPU and 32 on a GPU by
    default. `rank` and `world` divide the shards among commands that run at the same time.
    """

    options: PredictOptions
    inputs: tuple[str, ...]
    out: str
    format: str = "folder"
    column: str = ""
    reports: bool = True
    shards: int | None = None
    workers: int | None = None
    batch_size: int | None = None
    engine: str = "processes"
    address: str | None = None
    rank: int = 0
    world: int = 1
    overwrite: bool = False


class RunObserver:
    """Callbacks for the progress of a run."""

    def on_plan(self, images: int) -> None:
        """While the run is planned: the images found so far."""

    def on_start(self, images: int, done: int) -> None:
        """The images of the shards of this command, and those of its shards that were finished before."""

    def on_event(self, event: Event) -> None:
        """The progress of a shard, or its status record."""


@dataclass(frozen=True)
class RunSummary:
    """The result of a run: the images of the whole run and of its finished shards, and all failures.

    `seconds` is the time of all processes for the `segmented` images, and `model_seconds` the model's part of it.
    """

    images: int
    finished: int
    failures: tuple[Failure, ...]
    segmented: int
    seconds: float
    model_seconds: float

    @property
    def complete(self) -> bool:
        """Whether no image is left."""
        return self.finished == self.images


def segment_images(run: BatchRun, observer: RunObserver | None = None) -> RunSummary:
    """Segment all images of a run, or resume one that was interrupted; the errors are in `errors.csv` at the end.

    Raises RunError, ManifestError, InputError, ModelError, InUseError or WriteError.
    """
    check_run(run)
    observer = observer or RunObserver()
    storage = Storage(run.out if is_address(run.out) else os.path.abspath(local_path(run.out)))
    with lock_output(run, storage):
        manifest = open_manifest(run, storage, observer.on_plan)
        shards = [index for index in range(manifest.shards) if index % run.world == run.rank]
        finished = {index: status for index in shards if (status := read_status(manifest, index))}
        images = sum(manifest.shard_size(index) for index in shards)
        observer.on_start(images, sum(status.images for status in finished.values()))
        statuses: list[ShardStatus] = []

        def collect(event: Event) -> None:
            if isinstance(event, ShardStatus):
                statuses.append(event)
            observer.on_event(event)

        pending = [index for index in shards if index not in finished]
        try:
            run_engine(run, manifest, pending, collect)
        finally:
            clean_up(manifest, run)
        return summarize_run(manifest, statuses)


def check_run(run: BatchRun) -> None:
    """RunError for settings that exclude each other."""
    options = run.options
    if run.format not in FORMATS:
        raise RunError(f"found the format '{run.format}', expected {', '.join(FORMATS)}")
    if run.engine not in ENGINES:
        raise RunError(f"found the engine '{run.engine}', expected {' or '.join(ENGINES)}")
    if not run.inputs:
        raise RunError("there are no inputs")
    if options.tile or options.frames or options.frame_rate:
        raise RunError("tiles and videos are not divided into shards: remove --tile, --frames and --frame-rate")
    if run.format == "parquet" and (options.geojson or options.coco or options.top_k):
        raise RunError("the format parquet has no polygons and top classes: use folder or webdataset")
    if run.overwrite and run.world > 1 and not is_launched():
        raise RunError("jobs that start at different times cannot replace results: choose another --out")
    if run.engine == "ray" and run.world > 1:
        raise RunError("--engine ray divides the shards itself: start one process, without accelerate launch")


@contextmanager
def lock_output(run: BatchRun, storage: Storage) -> Iterator[None]:
    """Lock a local output; of several processes with one output, only rank 0 locks."""
    with nullcontext() if storage.folder is None or run.rank else lock_directory(storage.folder):
        yield


# Planning


def open_manifest(run: BatchRun, storage: Storage, planned: Callable[[int], Any]) -> Manifest:
    """Read the manifest of a run, or plan the run; rank 0 writes it."""
    with first_process(run):
        manifest = None if run.overwrite and not run.rank else read_manifest(storage)
        if manifest is not None:
            check_settings(manifest, run_settings(run, manifest))
            if not run.rank:
                check_inputs(manifest)
                warn_if_versions_changed(manifest)
            return manifest
        if run.overwrite and not run.rank:
            check_format(run, storage)
            remove_status(storage)
        elif any(name != ERRORS for name in storage.names()):
            raise RunError(f"{run.out} is not empty and has no manifest: choose an empty folder, or pass --overwrite")
        settings = run_settings(run)
        return plan_manifest(
            settings, storage, planned, partial(remove_results, storage, settings) if run.overwrite else None
        )


def warn_if_versions_changed(manifest: Manifest) -> None:
    """Warn if the packages that determine the results have other versions than when the run was planned."""
    installed = package_versions(manifest.packages)
    changed = [
        f"{name} {old} (now {installed[name]})" for name, old in manifest.packages.items() if old != installed[name]
    ]
    if changed:
        logger.warning("the run was planned with %s; the remaining images may differ slightly", ", ".join(changed))


def check_format(run: BatchRun, storage: Storage) -> None:
    """Raise RunError if the results to replace have another format, whose files would be left."""
    try:
        manifest = read_manifest(storage)
    except ManifestError:
        return
    if manifest is not None and manifest.settings.format != run.format:
        raise RunError(
            f"{run.out} has results in the format {manifest.settings.format}, not {run.format}: choose another --out, "
            "or remove the folder"
        )


@contextmanager
def first_process(run: BatchRun) -> Iterator[None]:
    """Let the main process of `accelerate launch` enter first; without it, enter at once."""
    if not is_launched() or run.world == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT).main_process_first():
        yield


def is_launched() -> bool:
    """Return whether accelerate or torchrun started this process as one of several."""
    return "MASTER_ADDR" in os.environ


def is_local(model: str) -> bool:
    """Return whether a model is a local file or folder."""
    return Path(model).expanduser().exists()


def run_settings(run: BatchRun, manifest: Manifest | None = None) -> RunSettings:
    """Return the settings that affect results; a model of the Hub keeps the revision of a manifest that was `found`."""
    model, options = run.options.model, asdict(run.options)
    del options["model"], options["device"]
    options |= {"coordinates": run.options.coordinates.value, "boxes": None}
    options |= {"protocol": run.options.protocol.model_dump(mode="json")}
    digest = model_digest(model) if manifest is None or is_local(model) else manifest.settings.model_digest
    return RunSettings(model, digest, run.inputs, options, run.format, run.column, run.shards, run.reports)


def model_digest(name: str) -> str:
    """Return the commit of a model on the Hub, or a digest of the files of a local one; empty if it is not known."""
    if is_local(name):
        return digest_files(Path(name).expanduser())
    try:
        return find_commit(name) or ""
    except ConversionError:  # loading the model reports the reason
        return ""


def digest_files(path: Path) -> str:
    """Return a digest of a file, or of the files of a folder with their names."""
    digest = hashlib.sha256()
    files = sorted(path_below for path_below in path.iterdir() if path_below.is_file()) if path.is_dir() else [path]
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def remove_status(storage: Storage) -> None:
    """Remove the manifest and the status records of an earlier run."""
    storage.remove(HEADER)
    for name in storage.names(f"{FOLDER}/shards"):
        storage.remove(f"{FOLDER}/shards/{name}")


# Work


def run_engine(run: BatchRun, manifest: Manifest, shards: Sequence[int], note: Note) -> None:
    """Segment shards with the engine of a run."""
    workers, device, settings = resources(run)
    if not shards:
        return
    revision = None if is_local(run.options.model) else manifest.settings.model_digest or None
    work = Work(manifest, replace(run.options, device=device), settings, revision)
    if run.engine == "ray":
        run_ray(work, shards, note, run.address, run.workers)
    else:
        run_processes(work, shards, note, workers)


def resources(run: BatchRun, environment: Mapping[str, str] = os.environ) -> tuple[int, str | None, WorkSettings]:
    """Return the number of processes, their device and their settings: on a CPU, one process of one thread per core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = max(1, cores // int(environment.get("LOCAL_WORLD_SIZE", "1")))
    device = run.options.device
    gpu = torch.cuda.is_available() if device is None else not device.startswith("cpu")
    if gpu and device is None and "LOCAL_RANK" in environment:
        device = f"cuda:{environment['LOCAL_RANK']}"
    workers = run.workers or (1 if gpu else min(cores, MAX_PROCESSES))
    threads = 0 if gpu else max(1, cores // workers)
    if run.engine == "ray":
        threads = 1
    share = max(1, cores // workers)
    settings = WorkSettings(
        batch_size=run.batch_size or (ACCELERATOR_BATCH if gpu else 1),
        readers=max(2, min(share, 8)),
        writers=max(1, share // 2),
        decoders=share if gpu else 0,
        threads=threads,
    )
    return workers, device, settings


# Results


def clean_up(manifest: Manifest, run: BatchRun) -> None:
    """Remove the temporary files of processes that were killed, if no other command writes to the same output."""
    folder = manifest.storage.folder
    shared = run.world > 1 and any(read_status(manifest, index) is None for index in range(manifest.shards))
    if folder is None or shared or not (folder / TEMPORARY).is_dir():
        return
    for path in (folder / TEMPORARY).iterdir():
        path.unlink(missing_ok=True)
    (folder / TEMPORARY).rmdir()


def summarize_run(manifest: Manifest, statuses: Sequence[ShardStatus]) -> RunSummary:
    """Summarize a run, and write the table of errors of all shards that are finished, and of `statuses`."""
    statuses_by_index = {index: status for index in range(manifest.shards) if (status := read_status(manifest, index))}
    every = statuses_by_index | {status.index: status for status in statuses}
    failures = tuple(failure for index in sorted(every) for failure in every[index].failures)
    write_errors(manifest.storage, failures)
    finished = sum(status.images for status in statuses_by_index.values())
    return RunSummary(
        manifest.images,
        finished,
        failures,
        sum(status.segmented for status in statuses),
        sum(status.seconds for status in statuses),
        sum(status.model_seconds for status in statuses),
    )


def write_errors(storage: Storage, failures: Sequence[Failure]) -> None:
    """Write the table of the images that could not be segmented, or remove it if there are none."""
    if not failures:
        storage.remove(ERRORS)
        return
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("image", "kind", "reason"))
    rows.writerows((failure.image, failure.kind, failure.reason) for failure in failures)
    storage.write_text(ERRORS, text.getvalue())


__all__ = ["ENGINES", "ERRORS", "BatchRun", "RunObserver", "RunSummary", "segment_images"]
