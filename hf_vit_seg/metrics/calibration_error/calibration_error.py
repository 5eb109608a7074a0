"""Calibration error of classification as an `evaluate` module."""

from typing import Any

import datasets
import torch

from hf_vit_seg.metrics import calibration, evaluation_module

_INPUTS = """
Args of evaluate.load:
    bins (`int`, defaults to 15): number of confidence bins of equal width.
    adaptive (`bool`, defaults to False): also compute the error over equal-mass bins, which stores all confidences.
    ignore_index (`int`, optional): value of ignored references.
Args:
    predictions: probabilities of the classes, (K,) for each sample, which sum to 1.
    references: class indices.
Returns:
    calibration_error (expected), maximum_calibration_error, with adaptive also adaptive_calibration_error: `float`,
    0 .. 1.
Across processes:
    metric.counts = accelerator.reduce(metric.counts, "sum"), then compute. The adaptive error is not a sum.
"""
_CITATION = """
@inproceedings{guo2017calibration, title={On Calibration of Modern Neural Networks},
author={Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.}, booktitle={ICML}, year={2017}}
"""


class CalibrationError(evaluation_module.StreamedMetric):
    """The distance between confidence and accuracy."""

    DESCRIPTION = "How far the probability of the predicted class is from how often that class is right."
    INPUTS = _INPUTS
    CITATION = _CITATION
    FEATURES = {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")}

    def __init__(
        self, *args: Any, bins: int = 15, adaptive: bool = False, ignore_index: int | None = None, **kwargs: Any
    ):
        self.bins, self.adaptive, self.ignored = bins, adaptive, ignore_index
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Clear the counts."""
        self.metric = calibration.CalibrationError(self.bins, self.ignored)
        self.confidences: list[tuple[torch.Tensor, torch.Tensor]] = []

    def count(self, predictions: Any, references: Any) -> None:
        """Add samples."""
        probabilities, classes = evaluation_module.tensor(predictions), evaluation_module.tensor(references)
        self.metric.update(probabilities, classes)
        if self.adaptive:
            self.confidences.append(calibration.confidences(probabilities, classes, self.ignored))

    def score(self) -> dict[str, Any]:
        """Return the calibration errors."""
        scores = self.metric.scores()
        if self.adaptive:
            confidence, hits = (torch.cat(parts) for parts in zip(*self.confidences, strict=True))
            scores["adaptive_calibration_error"] = calibration.adaptive_calibration_error(confidence, hits, self.bins)
        return scores
