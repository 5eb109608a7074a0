"""Average precision of keypoints by object keypoint similarity (OKS), as an `evaluate` module."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from hf_vit_seg.metrics import MetricError, evaluation_module
from hf_vit_seg.metrics.keypoint_similarity import COCO_SIGMAS, LabeledPersons, PredictedPersons, oks_average_precision

_INPUTS = """
Args:
    predictions: COCO results: dicts of image_id, keypoints (x, y, score for each, flat or (K, 3), or (K, 2)), score.
    references: COCO annotations of all persons of these images: dicts of image_id, keypoints (x, y, visibility), area,
        bbox (x, y, width, height), iscrowd (optional). Their number may differ from that of the predictions.
    sigmas (`Sequence[float]`, optional): standard deviation of the annotations of each keypoint; default: COCO's 17.
Returns:
    oks_ap, oks_ap_50, oks_ap_75, oks_ap_medium, oks_ap_large, and the same of oks_ar (recall): `float`, 0 .. 1, as
    pycocotools computes them; NaN where no labeled person counts.
Across processes:
    gather the persons (accelerate.utils.gather_object), as average precision is not a sum.
"""
_CITATION = """
@inproceedings{lin2014microsoft, title={Microsoft COCO: Common Objects in Context},
author={Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and others}, booktitle={ECCV}, year={2014}}
"""
_KEYPOINTS = datasets.List(datasets.Value("float64"))


class OksAp(evaluation_module.StreamedMetric):
    """Average precision as in COCO's keypoint challenge."""

    DESCRIPTION = "Average precision and recall of persons' keypoints by object keypoint similarity."
    INPUTS = _INPUTS
    CITATION = _CITATION
    FEATURES = {
        "predictions": {
            "image_id": datasets.Value("int64"),
            "keypoints": _KEYPOINTS,
            "score": datasets.Value("float64"),
        },
        "references": {
            "image_id": datasets.Value("int64"),
            "keypoints": _KEYPOINTS,
            "area": datasets.Value("float64"),
            "bbox": datasets.List(datasets.Value("float64"), length=4),
            "iscrowd": datasets.Value("int64"),
        },
    }

    def reset(self) -> None:
        """Remove all persons."""
        self.predicted: list[Mapping[str, Any]] = []
        self.labeled: list[Mapping[str, Any]] = []

    def count(self, predictions: Any, references: Any) -> None:
        """Add persons."""
        self.predicted += predictions
        self.labeled += references

    def score(self, sigmas: Sequence[float] = COCO_SIGMAS) -> dict[str, Any]:
        """Average precision and recall; see `oks_average_precision`."""
        count = len(sigmas)
        predicted = PredictedPersons(
            images=column(self.predicted, "image_id", np.int64),
            keypoints=keypoints(self.predicted, count)[..., :2],
            scores=column(self.predicted, "score", np.float64),
        )
        labeled = LabeledPersons(
            images=column(self.labeled, "image_id", np.int64),
            keypoints=keypoints(self.labeled, count),
            areas=column(self.labeled, "area", np.float64),
            boxes=column(self.labeled, "bbox", np.float64).reshape(-1, 4),
            crowds=np.array([bool(person.get("iscrowd", False)) for person in self.labeled], dtype=bool),
        )
        return oks_average_precision(predicted, labeled, sigmas)


def column(persons: Sequence[Mapping[str, Any]], key: str, dtype: type) -> np.ndarray:
    """Collect one entry of all persons to an array."""
    try:
        return np.array([person[key] for person in persons], dtype=dtype)
    except KeyError:
        raise MetricError(f"expected persons in COCO format, found one without '{key}'") from None


def keypoints(persons: Sequence[Mapping[str, Any]], count: int) -> np.ndarray:
    """Collect flat or nested keypoint lists to an array (persons, K, 2 or 3)."""
    rows = [np.asarray(person["keypoints"], dtype=np.float64).reshape(-1) for person in persons]
    for row in rows:
        if row.size not in (2 * count, 3 * count):
            raise MetricError(f"expected {count} keypoints of 2 or 3 numbers, found {row.size} numbers")
    return np.array([row.reshape(count, -1) for row in rows]).reshape(len(rows), count, -1 if rows else 3)
