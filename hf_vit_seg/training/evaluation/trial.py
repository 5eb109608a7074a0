"""A trial evaluation before the training, on the samples that are most likely to fail: the smallest and largest images.

It covers all that evaluations do: sizes, channels, the protocol, metrics, memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from transformers.image_processing_utils import BaseImageProcessor

from hf_vit_seg.data.checks.check import BadDataError
from hf_vit_seg.data.checks.sample_facts import SampleFacts
from hf_vit_seg.data.datasets import RawDataset
from hf_vit_seg.errors import HfVitSegError, OutOfMemory
from hf_vit_seg.training.recipe.schema import Recipe

from .evaluate import EvaluationContext
from .tasks import evaluate


@dataclass(frozen=True)
class SingleProcess:
    """The part of accelerate's interface that an evaluation in a single process requires."""

    device: torch.device
    process_index: int = 0
    num_processes: int = 1

    def reduce(self, counts: torch.Tensor, reduction: str) -> torch.Tensor:
        """Return the sum over the only process."""
        return counts


def extreme_samples(facts: Sequence[SampleFacts]) -> list[int]:
    """Return the indices of the lowest, the narrowest and the largest image."""
    sizes = {index: each.shape[-2:] for index, each in enumerate(facts) if each.shape}
    if not sizes:
        return []
    candidates = (
        min(sizes, key=lambda index: sizes[index][0]),
        min(sizes, key=lambda index: sizes[index][1]),
        max(sizes, key=lambda index: sizes[index][0] * sizes[index][1]),
    )
    return list(dict.fromkeys(candidates))


def try_evaluation(
    recipe: Recipe,
    model: Any,
    processor: BaseImageProcessor,
    accelerator: Accelerator,
    samples: Mapping[Any, Sequence[int]],
    datasets: Mapping[Any, RawDataset | None],
) -> None:
    """Evaluate single samples, given by split and index; called by the main process alone.

    BadDataError or OutOfMemory names the file of a sample that cannot be evaluated.
    """
    device = next(model.parameters()).device
    single: Any = SingleProcess(accelerator.device)
    context = EvaluationContext(model.to(accelerator.device), processor, recipe, single)
    try:
        for split, indices in samples.items():
            if (dataset := datasets[split]) is not None:
                for index in indices:
                    try_sample(context, dataset.select([index]), split, accelerator)
    finally:
        model.to(device)


def try_sample(context: EvaluationContext, dataset: RawDataset, split: str, accelerator: Accelerator) -> None:
    """Evaluate a dataset of one sample."""
    location = f"data.{split}: {(dataset.files(0) or [dataset.name(0)])[0]}"
    autocast: Any = accelerator.autocast
    try:
        with autocast():
            evaluate(context, dataset)
    except OutOfMemory as error:
        raise OutOfMemory(f"{location}: {error}") from error
    except HfVitSegError as error:
        raise BadDataError(f"{location} cannot be evaluated: {error}") from error
    except Exception as error:
        error.add_note(f"in the evaluation of {location}")
        raise


__all__ = ["extreme_samples", "try_evaluation"]
