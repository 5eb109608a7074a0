"""Segments in transformers' format, as the `evaluate` modules of segments take them."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import datasets
import torch

from . import MetricError
from .evaluation_module import StreamedMetric, tensor
from .segment_overlaps import Overlaps, SegmentMap, find_overlaps

INPUTS = """
    predictions: results of post_process_panoptic_segmentation or post_process_instance_segmentation: dicts of
        segmentation (H, W), and segments_info, a list of dicts of id, label_id, and score (optional). Pixels of other
        numbers belong to no segment.
    references: the same for the labels; a segment with iscrowd, which predictions of its class may cover, and pixels
        of -1 are ignored.
"""


def read_segments(result: Mapping[str, Any]) -> SegmentMap:
    """Convert segments in transformers' format; ids may be any numbers. Raises MetricError for other values."""
    try:
        values, rows = tensor(result["segmentation"]), list(result["segments_info"])
        objects = [row for row in rows if not row.get("iscrowd")]
        ids = torch.zeros(values.shape, dtype=torch.int64)
        ids[values == -1] = -1
        crowds = torch.full(values.shape, -1)
        for row in rows:
            own, is_crowd = values == row["id"], bool(row.get("iscrowd"))
            ids[own] = -1 if is_crowd else objects.index(row) + 1
            crowds[own] = int(row["label_id"]) if is_crowd else -1
        scores = [float(row.get("score", 1)) for row in objects]
        return SegmentMap(ids, [int(row["label_id"]) for row in objects], scores, crowds)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise MetricError(
            f"segments must be dicts of segmentation and segments_info, a list of dicts of id and label_id ({error})"
        ) from None


def overlaps_of_results(predictions: Sequence[Any], references: Sequence[Any]) -> list[Overlaps]:
    """Return the overlaps of each pair of results. Raises MetricError for different numbers of them."""
    if len(predictions) != len(references):
        raise MetricError(
            f"found {len(predictions)} predictions and {len(references)} references, expected equal numbers"
        )
    overlaps = []
    for prediction, reference in zip(predictions, references, strict=True):
        own = read_segments(prediction)
        overlaps.append(
            find_overlaps(SegmentMap(own.ids.clamp(min=0), own.classes, own.scores), read_segments(reference))
        )
    return overlaps


class SegmentMetric(StreamedMetric):
    """The base class of `evaluate` modules for segments; `metric` is updated with the overlaps of each image."""

    FEATURES: ClassVar[dict[str, Any]] = {"predictions": datasets.Value("null"), "references": datasets.Value("null")}

    def count(self, predictions: Any, references: Any) -> None:
        """Add images."""
        for overlaps in overlaps_of_results(predictions, references):
            self.metric.update(overlaps)

    def score(self) -> dict[str, Any]:
        """Return the scores; see `INPUTS`."""
        return self.metric.scores()


__all__ = ["INPUTS", "SegmentMetric", "overlaps_of_results", "read_segments"]
