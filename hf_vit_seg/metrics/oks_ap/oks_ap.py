"""Average precision of keypoints by their similarity (OKS), as a module of evaluate."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np

from hf_vit_seg.metrics import MetricError, evaluation_module
from hf_vit_seg.metrics.keypoint_similarity import COCO_SIGMAS, LabelledPersons, PredictedPersons, oks_average_precision

_INPUTS = """
Args:
    predictions: COCO results: dicts of image_id, keypoints (x, y, score for each, flat or (K, 3), or (K, 2)), score.
    references: COCO annotations of all persons of these images: dicts of image_id, keypoints (x, y, visibility), area,
        bbox (x, y, width, height), iscrowd (optional). They need not be as many as the predictions.
    sigmas (`Sequence[float]`, optional): how exactly people agree on each keypoint; those of COCO's 17 if not given.
Returns:
    oks_ap, oks_ap_50, oks_ap_75, oks_ap_medium, oks_ap_large, and the same of oks_ar (recall): `float`, 0 .. 1, as
    pycocotools computes them; NaN where no labelled person counts.
Across processes:
    gather the persons (accelerate.utils.gather_object): average precision is no sum.
"""
_CITATION = """
@inproceedings{lin2014microsoft, title={Microsoft COCO: Common Objects in Context},
author={Lin, Tsung-Yi and Maire, Michael and Belongie, Serge and others}, booktitle={ECCV}, year={2014}}
"""
_KEYPOINTS = datasets.List(datasets.Value("float32"))


class OksAp(evaluation_module.StreamedMetric):
    """Average precision as of COCO's keypoint challenge."""

    SENTENCE = "Average precision and recall of persons' keypoints by object keypoint similarity."
    INPUTS = _INPUTS
    CITATION = _CITATION
    FEATURES = {
        "predictions": {
            "image_id": datasets.Value("int64"),
            "keypoints": _KEYPOINTS,
            "score": datasets.Value("float32"),
        },
        "references": {
            "image_id": datasets.Value("int64"),
            "keypoints": _KEYPOINTS,
            "area": datasets.Value("float32"),
            "bbox": datasets.List(datasets.Value("float32"), length=4),
            "iscrowd": datasets.Value("int64"),
        },
    }

    def restart(self) -> None:
        """Forget all persons."""
        self.predicted: list[Mapping[str, Any]] = []
        self.labelled: list[Mapping[str, Any]] = []

    def count(self, predictions: Any, references: Any) -> None:
        """Keep persons."""
        self.predicted += predictions
        self.labelled += references

    def score(self, sigmas: Sequence[float] = COCO_SIGMAS) -> dict[str, Any]:
        """The precisions and recalls."""
        count = len(sigmas)
        predicted = PredictedPersons(
            images=column(self.predicted, "image_id", np.int64),
            keypoints=keypoints(self.predicted, count)[..., :2],
            scores=column(self.predicted, "score", np.float64),
        )
        labelled = LabelledPersons(
            images=column(self.labelled, "image_id", np.int64),
            keypoints=keypoints(self.labelled, count),
            areas=column(self.labelled, "area", np.float64),
            boxes=column(self.labelled, "bbox", np.float64).reshape(-1, 4),
            crowds=np.array([bool(person.get("iscrowd", False)) for person in self.labelled], dtype=bool),
        )
        return oks_average_precision(predicted, labelled, sigmas)


def column(persons: Sequence[Mapping[str, Any]], key: str, dtype: type) -> np.ndarray:
    """One entry of every person."""
    try:
        return np.array([person[key] for person in persons], dtype=dtype)
    except KeyError:
        raise MetricError(f"a person is a dict in COCO's format; one lacks '{key}'") from None


def keypoints(persons: Sequence[Mapping[str, Any]], count: int) -> np.ndarray:
    """(persons, K, 2 or 3) of flat or nested lists."""
    rows = [np.asarray(person["keypoints"], dtype=np.float64).reshape(-1) for person in persons]
    for row in rows:
        if row.size not in (2 * count, 3 * count):
            raise MetricError(f"a person has {count} keypoints of 2 or 3 numbers, found {row.size} numbers")
    return np.array([row.reshape(count, -1) for row in rows]).reshape(len(rows), count, -1 if rows else 3)
