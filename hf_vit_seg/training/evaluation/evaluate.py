"""Measuring a model on a split: samples are dealt out to the processes, and only sums come together.

No mask and no prediction is gathered (for pose, a few numbers per person), and every sample counts once however many
processes there are. The model is a whole one on each process, never one that must be run in step with the others:
images differ in size, so processes differ in how often they run it.

Shapes: B images, K classes, C bands, H W pixels.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.data.sources.registry import SOURCES
from hf_vit_seg.training.recipe.metric_names import measure_name
from hf_vit_seg.training.recipe.schema import Recipe
from hf_vit_seg.training.reports.metrics_report import MetricsReport

AHEAD = 4  # samples that are read beside the model's work

Item = TypeVar("Item")
Result = TypeVar("Result")


def ignored(done: int) -> None:
    """Nobody wants to know how far it is."""


@dataclass(frozen=True, eq=False)
class EvaluationContext:
    """What is measured: a model that is whole on this process, its processor, and how the recipe measures it.

    `advance` is told how many samples all processes have done since it was last told.
    """

    model: Any
    processor: BaseImageProcessor
    recipe: Recipe
    accelerator: Accelerator
    advance: Callable[[int], None] = ignored

    @property
    def device(self) -> torch.device:
        """Where the model is; not accelerate's name for it, as moving from `cpu` to `cpu:0` replaces every buffer."""
        return next(self.model.parameters()).device


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scores by name (numbers, and arrays per class), of how many samples, and how they came about.

    `confusion` are counts (K, K) as [reference, prediction], and `calibration` those of `CalibrationError`, for tasks
    that have them.
    """

    scores: dict[str, Any]
    samples: int
    protocol: str
    seconds: float = math.nan
    confusion: torch.Tensor | None = None
    calibration: torch.Tensor | None = None

    def measure(self, recipe: Recipe) -> tuple[str, float]:
        """The measure by which models are compared, and its value."""
        name = measure_name(recipe)
        return name, self.scores[name]


def report_of(
    found: Evaluation, recipe: Recipe, names: tuple[str, ...], split: str, step: int | None = None
) -> MetricsReport:
    """An evaluation as it is written and shown."""
    return MetricsReport(
        task=recipe.task,
        scores=found.scores,
        names=names,
        protocol=found.protocol,
        images=found.samples,
        seconds_per_image=found.seconds / max(found.samples, 1),
        split=split,
        **hub_data(recipe, split),
        step=step,
        metric=measure_name(recipe),
        confusion=found.confusion,
        reliability=found.calibration,
    )


def hub_data(recipe: Recipe, split: str) -> dict[str, Any]:
    """Fields of a report: the dataset of the Hub that a split of the recipe is; none where it is cut from another."""
    settings = getattr(recipe.data, split)
    if settings is None:
        return {}
    source = SOURCES.read_kind(settings, f"data.{split}")
    return {"dataset": source.hub_id(), "dataset_split": source.hub_split()}


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item], threads: int = AHEAD) -> Iterator[Result]:
    """Results in the order of the items, some of them made beside what is done with the ones before."""
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


def own_batches(
    context: EvaluationContext, length: int, read: Callable[[int], Result], shape: Callable[[Result], Any]
) -> Iterator[list[Result]]:
    """This process's samples as `read` gives them; neighbors of the same shape together, as many as the recipe says.

    The samples of all processes are all `length` samples, each once.
    """
    accelerator, size = context.accelerator, context.recipe.evaluation.batch_size
    batch: list[Result] = []
    for item in read_ahead(read, range(accelerator.process_index, length, accelerator.num_processes)):
        if batch and (len(batch) == size or shape(item) != shape(batch[0])):
            yield batch
            context.advance(len(batch) * accelerator.num_processes)
            batch = []
        batch.append(item)
    if batch:
        yield batch


def sum_over_processes(measures: Sequence[Any], accelerator: Accelerator) -> None:
    """Make the counts of every measure those of all processes together."""
    for measure in measures:
        measure.counts = accelerator.reduce(measure.counts.to(accelerator.device), "sum")


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Random numbers afterwards as if nothing had been drawn: an evaluation does not change the training around it."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=device.type):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


@contextmanager
def in_evaluation(context: EvaluationContext) -> Iterator[None]:
    """The model in its mode for evaluation, without gradients and without a trace in the random numbers."""
    was_training = context.model.training
    context.model.eval()
    try:
        # no_grad, as what inference_mode makes may not be trained: a buffer that is moved would be such a tensor
        with random_state_kept(context.device), torch.no_grad():
            yield
    finally:
        context.model.train(was_training)
