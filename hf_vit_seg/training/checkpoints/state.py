"""Checkpoints: all that a run needs to go on as if it had never stopped, in directories that are whole or absent.

accelerate writes weights, optimizer, schedule, loss scale and each process's random state; beside them lie the average
of the weights and a manifest. Nothing is unpickled that could be code: accelerate loads these files as weights only,
but not objects registered with it, which is why the average has a file of its own.
"""

import hashlib
import json
import pickle
import platform
import random
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import load
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_vit_seg.atomic_io import commit, directory_errors, new_directory, partial_path, remove_directory, write_text
from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.records import Record, RecordError, read_record
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS
from hf_vit_seg.training.reports.metrics_report import MetricsReport, ReportError, read_report, report_text

from .best_score import BestTracker

MANIFEST, AVERAGE = "manifest.json", "average.safetensors"
# What torch, safetensors and accelerate raise for files that are damaged, of something else, or would run code.
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError, SafetensorError)
PACKAGES = ("hf_vit_seg", "torch", "transformers", "accelerate")


class CheckpointError(HfVitSegError):
    """A checkpoint that cannot be gone on from, and why."""


class DataMark(Record):
    """By what training data are known again: how many samples, and a hash of their names in their order."""

    samples: int
    names: str


def mark_of(dataset: RawDataset) -> DataMark:
    """The mark of a split."""
    names = hashlib.blake2b(digest_size=8)
    for index in range(len(dataset)):
        names.update(dataset.name(index).encode() + b"\0")
    return DataMark(samples=len(dataset), names=names.hexdigest())


class Manifest(Record):
    """Where a run stands. `samples` have been drawn from the stream by all processes together.

    `evaluation_done` is false if an evaluation was due at the step; a resumed run then begins with it.
    `completed` says that the last model, plots and samples of this step are written. `recent` are the losses since the
    last line of the log.
    """

    format: Literal[1] = 1
    step: int
    samples: int
    processes: int
    evaluation_done: bool = True
    completed: bool = False
    best_tracker: BestTracker = BestTracker()
    recent: tuple[float, ...] = ()
    seconds: float = 0.0
    recipe: dict[str, Any]
    data: DataMark
    versions: dict[str, str] = {}

    @property
    def batch_size(self) -> int:
        """Per process and forward pass."""
        return self.recipe["loop"]["batch_size"]


def installed_versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def save_checkpoint(
    accelerator: Accelerator, folder: Path, manifest: Manifest, average: Any, keep: int, report: MetricsReport | None
) -> Path:
    """Write `folder`/step-000100 and remove all but the `keep` newest; called by all processes. WriteError.

    `report` is that of the newest evaluation, for models that are saved after a restart.
    """
    target = place(folder, manifest)
    with directory_errors(target):
        if accelerator.is_main_process:
            new_directory(target)
        accelerator.wait_for_everyone()
        temporary = partial_path(target)
        accelerator.save_state(str(temporary))
        if average is not None and accelerator.is_main_process:
            save_file({name: tensor.contiguous() for name, tensor in average.state_dict().items()}, temporary / AVERAGE)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            if report is not None:
                (temporary / METRICS).write_text(report_text(report), encoding="utf-8")
            (temporary / MANIFEST).write_text(manifest_text(manifest), encoding="utf-8")
            commit(target)
            for old in checkpoints(folder)[:-keep]:
                remove_directory(old)
        accelerator.wait_for_everyone()
    return target


def place(folder: Path, manifest: Manifest) -> Path:
    """The directory of a checkpoint."""
    return folder / f"step-{manifest.step:06d}"


def write_manifest(accelerator: Accelerator, folder: Path, manifest: Manifest, report: MetricsReport | None) -> None:
    """Replace manifest and report of the same step's checkpoint; called by all processes."""
    if accelerator.is_main_process:
        if report is not None:
            write_text(place(folder, manifest) / METRICS, report_text(report))
        write_text(place(folder, manifest) / MANIFEST, manifest_text(manifest))
    accelerator.wait_for_everyone()


def manifest_text(manifest: Manifest) -> str:
    """A manifest as its file has it."""
    return manifest.model_dump_json(indent=2) + "\n"


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    return sorted(
        (path for path in folder.glob("step-*") if (path / MANIFEST).is_file()),
        key=lambda path: int(path.name.removeprefix("step-")),
    )


def read_manifest(checkpoint: Path) -> Manifest:
    """A checkpoint's manifest; CheckpointError if it is none."""
    try:
        return read_record(Manifest, json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, RecordError) as error:
        raise CheckpointError(f"{checkpoint} is no checkpoint of this version: {error}") from None


def stored_report(checkpoint: Path) -> MetricsReport | None:
    """The report of the newest evaluation before a checkpoint; None if there was none."""
    path = checkpoint / METRICS
    try:
        return read_report(path) if path.exists() else None
    except (OSError, ReportError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, average: Any) -> None:
    """Put everything back into what accelerate has prepared, and into the average; called by all processes."""
    try:
        accelerator.load_state(str(checkpoint))
        if average is not None:
            average.load_state_dict(load_file(checkpoint / AVERAGE))
    except UNREADABLE as error:
        reason = error_sentence(error)
        raise CheckpointError(f"{checkpoint} cannot be loaded: {reason}") from error
    if not has_random_state(checkpoint / f"random_states_{accelerator.process_index}.pkl"):
        raise CheckpointError(f"{checkpoint} lacks the random state of process {accelerator.process_index}")


def has_random_state(path: Path) -> bool:
    """Whether the random state of a file is in force: accelerate passes over a file that it cannot read."""
    try:
        states = load(path)
    except UNREADABLE:
        return False
    return random.getstate() == states["random_state"] and torch.equal(
        torch.get_rng_state(), states["torch_manual_seed"]
    )
