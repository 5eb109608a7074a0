"""Calibration error of classification as a module of evaluate."""

from typing import Any

import datasets
import torch

from hf_vit_seg.metrics import calibration, evaluation_module

_INPUTS = """
Args of evaluate.load:
    bins (`int`, defaults to 15): number of bins of confidence, of equal width.
    adaptive (`bool`, defaults to False): also over bins of equally many samples, which keeps all confidences.
    ignore_index (`int`, optional): references that do not count.
Args:
    predictions: probabilities of the classes, (K,) for each sample, which sum to 1.
    references: class indexes.
Returns:
    calibration_error (expected), maximum_calibration_error, with adaptive also adaptive_calibration_error: `float`,
    0 .. 1.
Across processes:
    metric.counts = accelerator.reduce(metric.counts, "sum"), then compute. The adaptive error is no sum.
"""
_CITATION = """
@inproceedings{guo2017calibration, title={On Calibration of Modern Neural Networks},
author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.}, booktitle={ICML}, year={2017}}
"""


class CalibrationError(evaluation_module.StreamedMetric):
    """The distance between confidence and accuracy."""

    SENTENCE = "How far the probability of the predicted class is from how often that class is right."
    INPUTS = _INPUTS
    CITATION = _CITATION
    FEATURES = {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}

    def __init__(
        self, *args: Any, bins: int = 15, adaptive: bool = False, ignore_index: int | None = None, **kwargs: Any
    ):
        self.bins, self.adaptive, self.ignored = bins, adaptive, ignore_index
        super().__init__(*args, **kwargs)

    def restart(self) -> None:
        """Forget what was counted."""
        self.measure = calibration.CalibrationError(self.bins, self.ignored)
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

    def count(self, predictions: Any, references: Any) -> None:
        """Count samples."""
        probabilities, classes = evaluation_module.tensor(predictions), evaluation_module.tensor(references)
        self.measure.update(probabilities, classes)
        if self.adaptive:
            self.kept.append(calibration.confidences(probabilities, classes, self.ignored))

    def score(self) -> dict[str, Any]:
        """The errors."""
        scores = self.measure.scores()
        if self.adaptive:
            confidence, hits = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
            scores["adaptive_calibration_error"] = calibration.adaptive_calibration_error(confidence, hits, self.bins)
        return scores
