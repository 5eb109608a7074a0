"""What our modules of `evaluate` share: they count data as it is added, and write none of it to Arrow files.

evaluate's own `add_batch` encodes every map into a file and reads all of them back in `compute`. Here it updates a
measure, so that memory and the time of `compute` do not grow with the data.

evaluate imports a copy of a module's file, and takes the first metric class that it finds in there. So such a file
imports this one whole (`from hf_vit_seg.metrics import evaluation_module`), never the class alone.
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
    """A metric that is updated as data is added. Sub-classes say what is counted and what follows from it."""

    SENTENCE: ClassVar[str]  # what is measured
    INPUTS: ClassVar[str]  # what predictions, references and the settings of `compute` are
    CITATION: ClassVar[str]
    FEATURES: ClassVar[dict[str, Any]]  # of one sample, for evaluate's info alone
    measure: Any  # what counts, made by `restart`; persons, which have to be gathered, have none

    def __init__(self, *args: Any, num_process: int = 1, **kwargs: Any):
        if num_process != 1:
            raise MetricError("load the metric without num_process, and sum its `counts` over the processes")
        super().__init__(*args, **kwargs)
        self.samples = 0
        self.restart()

    @property
    def counts(self) -> torch.Tensor:
        """What the measure has counted; to be summed over processes and set again."""
        return self.measure.counts

    @counts.setter
    def counts(self, counts: torch.Tensor) -> None:
        self.measure.counts = counts

    def restart(self) -> None:
        """Forget what was counted."""
        raise NotImplementedError

    def count(self, predictions: Any, references: Any) -> None:
        """Count some samples."""
        raise NotImplementedError

    def score(self, **settings: Any) -> dict[str, Any]:
        """The scores of all that was counted."""
        raise NotImplementedError

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.SENTENCE,
            citation=self.CITATION,
            inputs_description=self.INPUTS,
            features=datasets.Features(self.FEATURES),
        )

    def __len__(self) -> int:
        return self.samples

    def add(self, *, prediction: Any = None, reference: Any = None, **named: Any) -> None:
        """Count one sample."""
        sample = {"predictions": prediction, "references": reference, **named}  # the names that evaluate.combine uses
        self.add_batch(**{name: [value] for name, value in sample.items()})

    def add_batch(self, *, predictions: Any = None, references: Any = None) -> None:
        """Count some samples; of samples among which one is refused none."""
        for title, given in (("predictions", predictions), ("references", references)):
            if given is None:
                raise MetricError(f"{title} are missing")
        self.count(predictions, references)
        self.samples += max(len(predictions), len(references))

    def compute(self, *, predictions: Any = None, references: Any = None, **settings: Any) -> dict[str, Any]:
        """Scores of all that was added, and of what is given here. Afterwards, also after an error, it is empty."""
        try:
            if predictions is not None or references is not None:
                self.add_batch(predictions=predictions, references=references)
            if not self.samples:
                raise MetricError("there is nothing to measure: add predictions and references first")
            return self.score(**settings)
        finally:
            self.samples = 0
            self.restart()


def pairs(predictions: Any, references: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Predictions with their references; MetricError when they are not equally many."""
    for prediction, reference in zip_longest(predictions, references, fillvalue=NOTHING):
        if prediction is NOTHING or reference is NOTHING:
            raise MetricError(f"there are {len(predictions)} predictions for {len(references)} references")
        yield tensor(prediction), tensor(reference)


def tensor(values: Any) -> torch.Tensor:
    """A tensor of a tensor, an array, an image of PIL, a number, or of a list of those."""
    if isinstance(values, torch.Tensor):
        return values.detach()
    if isinstance(values, list | tuple) and any(isinstance(value, torch.Tensor) for value in values):
        return torch.stack([tensor(value) for value in values])
    return torch.as_tensor(np.asarray(values))
