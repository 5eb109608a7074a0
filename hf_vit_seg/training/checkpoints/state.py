"""Checkpoints: the complete state of a run, written to atomic directories, for a bit-identical resume.

accelerate writes weights, optimizer, schedule, loss scale and each process's random state; the average of the weights
and a manifest are added. No pickled code is executed: accelerate loads these files with `weights_only`. It does not
do so for registered objects, so the average has a separate file.
"""

import hashlib
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import load, set_seed
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hf_vit_seg.atomic_io import commit, directory_errors, new_directory, partial_path, remove_directory, write_text
from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.data.stream import mix_seed
from hf_vit_seg.errors import HfVitSegError, error_sentence
from hf_vit_seg.records import Record, read_record
from hf_vit_seg.text_files import read_json
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS
from hf_vit_seg.training.reports.metrics_report import MetricsReport, ReportError, read_report, report_text

from .best_score import BestTracker

MANIFEST, AVERAGE = "manifest.json", "average.safetensors"
# Exceptions of torch, safetensors and accelerate for files that are damaged, of another kind, or would run code.
UNREADABLE = (OSError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError, SafetensorError)
PACKAGES = ("hf_vit_seg", "torch", "transformers", "accelerate")  # packages that affect the numbers of a run


class CheckpointError(HfVitSegError):
    """A checkpoint that cannot be resumed."""


class DataFingerprint(Record):
    """Identifies training data: the number of samples, and hashes of their names in order and of their weights."""

    samples: int
    names: str
    weights: str = ""


def data_fingerprint(dataset: RawDataset, weights: Sequence[float] | None = None) -> DataFingerprint:
    """Compute the fingerprint of a split; `weights` are those of sampling."""
    names = hashlib.blake2b(digest_size=8)
    for index in range(len(dataset)):
        names.update(dataset.name(index).encode() + b"\0")
    numbers = "" if weights is None else hashlib.blake2b(np.asarray(weights).tobytes(), digest_size=8).hexdigest()
    return DataFingerprint(samples=len(dataset), names=names.hexdigest(), weights=numbers)


class Manifest(Record):
    """The progress of a run. `samples` is the number that all processes together have drawn from the stream.

    `evaluation_done` is false if an evaluation was due at the step; a resumed run then begins with it. `completed` is
    true once the last model, plots and samples of this step are written. `recent` are the losses since the last line
    of the log.
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
    skipped_steps: int = 0  # because they were not finite
    loss_scale_overflows: int = 0  # steps that the loss scaler of fp16 skipped
    recipe: dict[str, Any]
    data: DataFingerprint
    versions: dict[str, str] = {}

    @property
    def batch_size(self) -> int:
        """The batch size per process and forward pass."""
        return self.recipe["loop"]["batch_size"]


def save_checkpoint(
    accelerator: Accelerator, folder: Path, manifest: Manifest, average: Any, keep: int, report: MetricsReport | None
) -> Path:
    """Write `folder`/step-000100 and remove all but the `keep` newest; called by all processes. Raises WriteError.

    `report` is from the newest evaluation, for models that are saved after a restart.
    """
    target = checkpoint_path(folder, manifest)
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


def checkpoint_path(folder: Path, manifest: Manifest) -> Path:
    """Return the directory of a checkpoint; zero-padded steps sort by name."""
    return folder / f"step-{manifest.step:06d}"


def write_manifest(accelerator: Accelerator, folder: Path, manifest: Manifest, report: MetricsReport | None) -> None:
    """Replace the manifest and report of this step's checkpoint; called by all processes."""
    if accelerator.is_main_process:
        if report is not None:
            write_text(checkpoint_path(folder, manifest) / METRICS, report_text(report))
        write_text(checkpoint_path(folder, manifest) / MANIFEST, manifest_text(manifest))
    accelerator.wait_for_everyone()


def manifest_text(manifest: Manifest) -> str:
    """Format a manifest as JSON."""
    return manifest.model_dump_json(indent=2) + "\n"


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted(
        (path for path in folder.glob("step-*") if (path / MANIFEST).is_file()),
        key=lambda path: int(path.name.removeprefix("step-")),
    )


def read_manifest(checkpoint: Path) -> Manifest:
    """Read a checkpoint's manifest; CheckpointError if it is invalid."""
    try:
        return read_record(Manifest, read_json(checkpoint / MANIFEST))
    except HfVitSegError as error:
        raise CheckpointError(f"{checkpoint} is not a checkpoint of this version: {error}") from None


def read_stored_report(checkpoint: Path) -> MetricsReport | None:
    """Read the report of the newest evaluation before a checkpoint; None if there was none."""
    path = checkpoint / METRICS
    try:
        return read_report(path) if path.exists() else None
    except (OSError, ReportError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, manifest: Manifest, average: Any) -> None:
    """Restore the state of the prepared objects and of the average; called by all processes.

    Processes without a state in the checkpoint are seeded by step and index.
    """
    try:
        accelerator.load_state(str(checkpoint))
        if average is not None:
            average.load_state_dict(load_file(checkpoint / AVERAGE))
    except UNREADABLE as error:
        reason = error_sentence(error)
        raise CheckpointError(f"{checkpoint} cannot be loaded: {reason}") from error
    if accelerator.process_index >= manifest.processes:
        set_seed(mix_seed(manifest.recipe["seed"], manifest.step, accelerator.process_index) % 2**32)
        return
    if not has_random_state(checkpoint / f"random_states_{accelerator.process_index}.pkl"):
        raise CheckpointError(f"{checkpoint} has no random state for process {accelerator.process_index}")


def has_random_state(path: Path) -> bool:
    """Return whether the random state of a file was restored: accelerate ignores files that it cannot read."""
    try:
        states = load(path)
    except UNREADABLE:
        return False
    return random.getstate() == states["random_state"] and torch.equal(
        torch.get_rng_state(), states["torch_manual_seed"]
    )
