"""Evaluate a model on a split: samples are distributed over processes, and only counts are reduced.

No masks or predictions are gathered (for pose, a few numbers per person), and every sample counts once for any number
of processes. Each process needs a complete model that runs independently: images differ in size, so processes run it
a different number of times.

Shapes: B images, K classes, C channels, H W pixels.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.data.datasets import open_split
from hf_vit_seg.data.sources.source_registry import SOURCES
from hf_vit_seg.inference.dense.protocols import Protocol
from hf_vit_seg.inference.output_checks import invalid_outputs
from hf_vit_seg.inference.segmenter import Segmenter
from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix
from hf_vit_seg.records import RecordError, read_record
from hf_vit_seg.training.losses.objectives import Objective
from hf_vit_seg.training.recipe.metric_names import metric_name
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.reports.metrics_report import MetricsReport

from .sample_scores import SampleScores

AHEAD = 4  # samples to read ahead while the model runs

Item = TypeVar("Item")
Result = TypeVar("Result")


def no_progress(done: int) -> None:
    """The default progress callback, which does nothing."""


class InvalidOutputs:
    """Finds the samples for which the outputs of a model contain NaN or infinity.

    In a batch whose rows are not samples (windows and other views), all samples are found if one output is invalid.
    """

    def __init__(self):
        self.last: list[torch.Tensor] = []  # invalid rows (rows,) of each output since the last batch
        self.batches: list[tuple[list[int], torch.Tensor]] = []

    def check(self, module: Any, inputs: Any, outputs: Any) -> None:
        """Check the outputs of a forward pass, as a forward hook."""
        values = outputs.values() if isinstance(outputs, Mapping) else ()
        tensors = [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]
        self.last += [invalid_outputs(tensor).flatten(1).any(1) for tensor in tensors if tensor.ndim > 1]

    def end_batch(self, indices: list[int], rows_are_samples: bool) -> None:
        """Note that the forward passes since the last batch were for these samples."""
        if self.last:
            if rows_are_samples and all(len(rows) == len(indices) for rows in self.last):
                invalid = torch.stack(self.last).any(0)
            else:
                invalid = torch.cat(self.last).any().expand(len(indices))
            self.batches.append((indices, invalid))
            self.last = []

    def indices(self) -> list[int]:
        """Return the samples with invalid outputs."""
        rows = (
            (index, invalid)
            for batch, found in self.batches
            for index, invalid in zip(batch, found.tolist(), strict=True)
        )
        return [index for index, invalid in rows if invalid]


@dataclass(frozen=True, eq=False)
class EvaluationContext:
    """A complete model on this process with its processor and evaluation settings.

    `advance` is called with the number of samples that all processes have done since the last call. With the training
    `objective`, the loss is computed as well, where the model sees each image once.
    """

    model: Any
    processor: BaseImageProcessor
    recipe: Recipe
    accelerator: Accelerator
    advance: Callable[[int], None] = no_progress
    objective: Objective | None = None
    invalid_outputs: InvalidOutputs = field(default_factory=InvalidOutputs)

    @property
    def device(self) -> torch.device:
        """The model's device; accelerate's name may differ, and moving from `cpu` to `cpu:0` replaces every buffer."""
        return next(self.model.parameters()).device


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores by name (numbers, and arrays per class), with the number of samples and a description of the protocol.

    `confusion` has counts (K, K) as [reference, prediction], and `calibration` those of `CalibrationError`, or None.
    `sample_scores` are the indices and scores of single samples, the lowest first, where a task has them.
    `nan_samples` are the names of the samples for which the model's outputs contain NaN or infinity.
    """

    scores: dict[str, Any]
    samples: int
    protocol: str
    seconds: float = math.nan
    confusion: torch.Tensor | None = None
    calibration: torch.Tensor | None = None
    sample_scores: SampleScores = ()
    nan_samples: tuple[str, ...] = ()

    def metric(self, recipe: Recipe) -> tuple[str, float]:
        """Return the metric that compares models, and its value."""
        name = metric_name(recipe)
        return name, self.scores[name]


def build_report(
    evaluation: Evaluation, recipe: Recipe, names: tuple[str, ...], split: str, step: int | None = None
) -> MetricsReport:
    """Convert an evaluation to a report."""
    return MetricsReport(
        task=recipe.task,
        scores=evaluation.scores,
        names=names,
        protocol=evaluation.protocol,
        images=evaluation.samples,
        seconds_per_image=evaluation.seconds / max(evaluation.samples, 1),
        split=split,
        **hub_data(recipe, split),
        step=step,
        metric=metric_name(recipe),
        confusion=evaluation.confusion,
        reliability=evaluation.calibration,
        details={"nan_samples": list(evaluation.nan_samples)} if evaluation.nan_samples else {},
    )


def hub_data(recipe: Recipe, split: str) -> dict[str, Any]:
    """Return the report fields for a split from a Hub dataset; empty if it is a share of another split."""
    settings = getattr(recipe.data, split)
    if settings is None:
        return {}
    source = SOURCES.read_kind(settings, f"data.{split}")
    return {"dataset": source.hub_id(), "dataset_split": source.hub_split()}


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item], threads: int = AHEAD) -> Iterator[Result]:
    """Yield results in the order of the items; the next ones are computed in threads."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def local_batches(
    context: EvaluationContext, length: int, read: Callable[[int], Result], shape: Callable[[Result], Any]
) -> Iterator[list[Result]]:
    """Yield this process's samples from `read` in batches; consecutive samples of equal shape share a batch.

    The processes together read each of the `length` samples once.
    """
    accelerator, size = context.accelerator, context.recipe.evaluation.batch_size
    own = range(accelerator.process_index, length, accelerator.num_processes)
    rows_are_samples = (
        context.recipe.task != "segmentation"
        or read_record(Protocol, context.recipe.evaluation.protocol, "evaluation.protocol").is_single_pass
    )
    done = 0
    for batch in equal_batches(read_ahead(read, own), size, shape):
        yield batch
        context.invalid_outputs.end_batch(list(own[done : done + len(batch)]), rows_are_samples)
        done += len(batch)
        context.advance(len(batch) * accelerator.num_processes)


def equal_batches(items: Iterable[Result], size: int, shape: Callable[[Result], Any]) -> Iterator[list[Result]]:
    """Yield consecutive items of equal shape in batches of at most `size`."""
    batch: list[Result] = []
    for item in items:
        if batch and (len(batch) == size or shape(item) != shape(batch[0])):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def sum_over_processes(metrics: Sequence[Any], accelerator: Accelerator) -> None:
    """Sum the counts of every metric over all processes, in place."""
    for metric in metrics:
        metric.counts = accelerator.reduce(metric.counts.to(accelerator.device), "sum")


@contextmanager
def preserve_random_state(device: torch.device) -> Iterator[None]:
    """Restore the random state afterwards, so that an evaluation does not change the training."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextmanager
def in_evaluation(context: EvaluationContext) -> Iterator[None]:
    """Set the model to evaluation mode, disable gradients, and preserve the random state."""
    was_training = context.model.training
    context.model.eval()
    try:
        # no_grad: a buffer that is moved in inference_mode could not be trained later
        with preserve_random_state(context.device), torch.no_grad():
            yield
    finally:
        context.model.train(was_training)


def mean_iou_on(recipe: Recipe, split: str) -> Callable[[Segmenter], float]:
    """Return a function that computes the mean IoU on a split, at the resolution of the labels.

    RecordError if the recipe has no masks for the split.
    """
    dataset = open_split(recipe, split)  # pyright: ignore[reportArgumentType]
    if dataset is None or recipe.task != "segmentation":
        raise RecordError(f"the mean IoU requires masks, and data.{split} of the recipe has none")

    def mean_iou(segmenter: Segmenter) -> float:
        classes = len(dataset.class_table.names)
        if len(segmenter.names) != max(classes, 2):
            raise RecordError(f"the model has {len(segmenter.names)} classes and the recipe's data {classes}")
        matrix = ConfusionMatrix(max(classes, 2), dataset.class_table.ignore_index)
        for index in range(len(dataset)):
            sample = dataset.read(index)
            assert isinstance(sample.target, torch.Tensor)
            height, width = sample.target.shape
            matrix.update(segmenter.label_map(sample.image, (height, width)).cpu()[None], sample.target[None])
        return float(matrix.scores()["mean_iou"])

    return mean_iou
