"""The base class of our `evaluate` modules, which accumulate counts instead of writing samples to Arrow files.

evaluate's `add_batch` encodes every map into a file, and `compute` reads all of them back. Here `add_batch` updates a
streaming metric, so that memory and the time of `compute` are constant.

evaluate imports a copy of a module's file and uses the first metric class in its namespace. These files must therefore
import this module (`from hf_vit_seg.metrics import evaluation_module`), not the class.
"""

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np
import torch

from . import MetricError

NOTHING = object()


class StreamedMetric(evaluate.Metric):
    """An `evaluate.Metric` that is updated as data is added. Subclasses define `reset`, `count` and `score`."""

    DESCRIPTION: ClassVar[str]
    INPUTS: ClassVar[str]  # documents predictions, references and the settings of `compute`
    CITATION: ClassVar[str]
    FEATURES: ClassVar[dict[str, Any]]  # features of one sample, only for evaluate's info
    metric: Any  # the streaming metric, set by `reset`; OksAp has none, as it stores persons

    def __init__(self, *args: Any, num_process: int = 1, **kwargs: Any):
        if num_process != 1:
            raise MetricError(
                "num_process is not supported: load the metric without it, and sum its `counts` over the processes"
            )
        super().__init__(*args, **kwargs)
        self.samples = 0
        self.reset()

    @property
    def counts(self) -> torch.Tensor:
        """The counts of the metric; sum them over processes and assign the result."""
        return self.metric.counts

    @counts.setter
    def counts(self, counts: torch.Tensor) -> None:
        self.metric.counts = counts

    def reset(self) -> None:
        """Clear the state."""
        raise NotImplementedError

    def count(self, predictions: Any, references: Any) -> None:
        """Add samples."""
        raise NotImplementedError

    def score(self, **settings: Any) -> dict[str, Any]:
        """Return the scores of all added samples."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.DESCRIPTION,
            citation=self.CITATION,
            inputs_description=self.INPUTS,
            features=datasets.Features(self.FEATURES),
        )

    def __len__(self) -> int:
        return self.samples

    def add(self, *, prediction: Any = None, reference: Any = None, **named: Any) -> None:
        """Add one sample."""
        sample = {"predictions": prediction, "references": reference, **named}  # the names that evaluate.combine uses
        self.add_batch(**{name: [value] for name, value in sample.items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Add samples; if one is invalid, none is added."""
        for title, given in (("predictions", predictions), ("references", references)):
            if given is None:
                raise MetricError(f"{title} are missing")
        self.count(predictions, references)
        self.samples += max(len(predictions), len(references))

    def compute(self, *, predictions: Any = None, references: Any = None, **settings: Any) -> dict[str, Any]:
        """Return the scores of all samples, including those passed here. Clears the state, also after an error."""
        try:
            if predictions is not None or references is not None:
                self.add_batch(predictions=predictions, references=references)
            if not self.samples:
                raise MetricError("found no samples: add predictions and references first")
            return self.score(**settings)
        finally:
            self.samples = 0
            self.reset()


def pairs(predictions: Any, references: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pair predictions with references. Raises MetricError if their numbers differ."""
    for prediction, reference in zip_longest(predictions, references, fillvalue=NOTHING):
        if prediction is NOTHING or reference is NOTHING:
            raise MetricError(
                f"found {len(predictions)} predictions and {len(references)} references, expected equal numbers"
            )
        yield tensor(prediction), tensor(reference)


def tensor(values: Any) -> torch.Tensor:
    """Convert a tensor, array, PIL image, number, or a list of these to a tensor."""
    if isinstance(values, torch.Tensor):
        return values.detach()
    if isinstance(values, list | tuple) and any(isinstance(value, torch.Tensor) for value in values):
        return torch.stack([tensor(value) for value in values])
    return torch.as_tensor(np.asarray(values))
