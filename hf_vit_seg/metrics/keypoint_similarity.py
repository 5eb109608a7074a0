"""Object keypoint similarity (OKS) and its average precision, as COCO's evaluation computes them (`pycocotools`).

OKS is the mean over a person's labeled keypoints of exp(-d^2 / (2 area (2 sigma)^2)): d is the distance in pixels and
sigma the standard deviation of the annotations of that keypoint. Average precision is not a sum over images, so
processes gather the persons: K * 2 + 2 numbers for each predicted person.

Shapes: P predicted persons, G labeled persons, K keypoints, T thresholds of similarity, A ranges of area.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import MetricError

# COCO's 17 keypoints: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
COCO_SIGMAS = tuple(s / 1000 for s in (26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89))
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = {"": (0.0, 1e5**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}  # in square pixels
MAX_DETECTIONS = 20  # persons with the highest scores that are evaluated in each image


@dataclass(frozen=True, eq=False)
class PredictedPersons:
    """`images` (P,) ids, `keypoints` (P, K, 2) as x, y in pixels of the original image, `scores` (P,)."""

    images: np.ndarray
    keypoints: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class LabeledPersons:
    """All persons of the images. Crowds and persons without keypoints are ignored, as are predictions matched to them.

    `images` (G,) ids, `keypoints` (G, K, 3) as x, y, visibility (0: unlabeled), `areas` (G,) of the outlines,
    `boxes` (G, 4) as x, y, width, height, `crowds` (G,) bool.
    """

    images: np.ndarray
    keypoints: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    crowds: np.ndarray


class Matches(NamedTuple):
    """The matches of one image, with predicted persons sorted by score."""

    scores: np.ndarray  # (P,)
    hit: np.ndarray  # (A, T, P) true positives
    ignored: np.ndarray  # (A, T, P) neither true nor false positives
    num_labeled: np.ndarray  # (A,) labeled persons that are not ignored


def keypoint_similarity(
    predicted: np.ndarray, labeled: np.ndarray, areas: np.ndarray, boxes: np.ndarray, sigmas: Sequence[float]
) -> np.ndarray:
    """Compute the OKS (P, G) of `predicted` (P, K, 2) with `labeled` (G, K, 3), `areas` (G,) and `boxes` (G, 4).

    If a labeled person has no keypoints, distances are measured to its box, enlarged by its size on every side.
    """
    visible = labeled[..., 2] > 0
    offsets = predicted[:, None] - labeled[None, ..., :2]
    start, size = boxes[:, None, :2], boxes[:, None, 2:]
    outside = np.maximum(start - size - predicted[:, None], 0) + np.maximum(predicted[:, None] - start - 2 * size, 0)
    unlabeled = np.asarray(visible.sum(axis=1) == 0)
    offsets = np.where(unlabeled[None, :, None, None], outside, offsets)
    counted = visible | unlabeled[:, None]
    variances = (2 * np.asarray(sigmas)) ** 2
    exponents = (offsets**2).sum(axis=-1) / variances / (areas[None, :, None] + np.spacing(1)) / 2
    return np.where(counted, np.exp(-exponents), 0).sum(axis=-1) / counted.sum(axis=-1)


def oks_average_precision(
    predicted: PredictedPersons,
    labeled: LabeledPersons,
    sigmas: Sequence[float] = COCO_SIGMAS,
    max_detections: int = MAX_DETECTIONS,
) -> dict[str, float]:
    """Return `oks_ap` and `oks_ar` (recall), the means over thresholds 0.50 .. 0.95, and of each `_50`, `_75`,
    `_medium`, `_large` (by area): 0 .. 1, NaN if all labeled persons are ignored.

    Only the `max_detections` persons with the highest scores are evaluated in each image. Raises MetricError for
    invalid shapes.
    """
    check_persons(predicted, labeled, len(sigmas))
    images = np.unique(np.concatenate([predicted.images, labeled.images]))
    matches = [match_persons(predicted, labeled, image, sigmas, max_detections) for image in images]
    precision, recall = curves(matches)
    scores = {}
    for name, values in (("oks_ap", precision), ("oks_ar", recall)):
        for i, area in enumerate(AREAS):
            scores[f"{name}_{area}".rstrip("_")] = float(values[i].mean())
        scores |= {f"{name}_50": float(values[0, 0].mean()), f"{name}_75": float(values[0, 5].mean())}
    return scores


def check_persons(predicted: PredictedPersons, labeled: LabeledPersons, keypoints: int) -> None:
    """Raise MetricError for arrays of inconsistent shapes."""
    persons, truths = len(predicted.images), len(labeled.images)
    expected = (
        ("predicted keypoints", predicted.keypoints, (persons, keypoints, 2)),
        ("scores", predicted.scores, (persons,)),
        ("labeled keypoints", labeled.keypoints, (truths, keypoints, 3)),
        ("areas", labeled.areas, (truths,)),
        ("boxes", labeled.boxes, (truths, 4)),
        ("crowds", labeled.crowds, (truths,)),
    )
    for name, array, shape in expected:
        if np.shape(array) != shape:
            raise MetricError(f"{name} should have the shape {shape}, found {np.shape(array)}")


def match_persons(
    predicted: PredictedPersons, labeled: LabeledPersons, image: int, sigmas: Sequence[float], max_detections: int
) -> Matches:
    """Match the persons of one image, for each range of areas and each threshold."""
    own = np.flatnonzero(predicted.images == image)
    own = own[np.argsort(-predicted.scores[own], kind="stable")][:max_detections]
    truths = np.flatnonzero(labeled.images == image)
    keypoints, crowds = predicted.keypoints[own].astype(float), labeled.crowds[truths].astype(bool)
    truth = labeled.keypoints[truths].astype(float)
    areas = labeled.areas[truths]
    similarity = keypoint_similarity(keypoints, truth, areas, labeled.boxes[truths], sigmas)
    extent = np.ptp(keypoints, axis=1).prod(axis=-1)  # COCO's area of a predicted person
    lows, highs = np.array(list(AREAS.values())).T[..., None]
    ignored = crowds | ~(truth[..., 2] > 0).any(axis=1) | (areas < lows) | (areas > highs)
    pairs = pair_persons(similarity, ignored, crowds)
    padded = np.concatenate([ignored, np.zeros_like(ignored, shape=(len(AREAS), 1))], axis=1)
    matched_ignored = np.take_along_axis(padded[:, None], pairs, axis=2)
    outside = (extent < lows) | (extent > highs)  # outside the range of areas: ignored if unmatched
    return Matches(
        scores=predicted.scores[own],
        hit=(pairs >= 0) & ~matched_ignored,
        ignored=np.where(pairs >= 0, matched_ignored, outside[:, None]),
        num_labeled=np.count_nonzero(~ignored, axis=1),
    )


def pair_persons(similarity: np.ndarray, ignored: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """Assign each predicted person, in order of scores, the most similar unmatched labeled person: (A, T, P), or -1.

    `similarity` is (P, G), `ignored` (A, G), `crowds` (G,). Ignored persons are only matched if no other is similar
    enough; crowds can be matched repeatedly. Of equally similar persons the last is matched, as in COCO.
    """
    persons, truths = similarity.shape
    pairs = np.full((len(ignored), len(THRESHOLDS), persons), -1)
    free = np.ones((len(ignored), len(THRESHOLDS), truths), dtype=bool)
    limits = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    for person, row in enumerate(similarity if truths else ()):
        able = (free | crowds) & (row >= limits)
        counting = able & ~ignored[:, None]
        able = np.where(counting.any(axis=-1, keepdims=True), counting, able)
        best = truths - 1 - np.where(able, row, -1)[..., ::-1].argmax(axis=-1)
        best = np.where(able.any(axis=-1), best, -1)
        pairs[..., person] = best
        free &= best[..., None] != np.arange(truths)
    return pairs


def curves(matches: Sequence[Matches]) -> tuple[np.ndarray, np.ndarray]:
    """Return the precision at 101 recalls (A, T, 101) and the highest recall (A, T); NaN if all labeled persons are
    ignored.
    """
    shape = (len(AREAS), len(THRESHOLDS))
    precision, recall = np.full((*shape, len(RECALLS)), np.nan), np.full(shape, np.nan)
    if not matches:
        return precision, recall
    order = np.argsort(-np.concatenate([m.scores for m in matches]), kind="stable")
    hit = np.concatenate([m.hit for m in matches], axis=2)[..., order]
    ignored = np.concatenate([m.ignored for m in matches], axis=2)[..., order]
    for i, num_labeled in enumerate(np.sum([m.num_labeled for m in matches], axis=0)):
        if not num_labeled:
            continue
        for j in range(len(THRESHOLDS)):
            right, wrong = hit[i, j].cumsum(), (~hit[i, j] & ~ignored[i, j]).cumsum()
            precision[i, j], recall[i, j] = interpolate_precision(
                right / num_labeled, right / (right + wrong + np.spacing(1))
            )
    return precision, recall


def interpolate_precision(recall: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the highest precision at or beyond each of 101 recalls, 0 for unreached recalls; and the last recall."""
    if not len(recall):
        return np.zeros(len(RECALLS)), 0.0
    best = np.maximum.accumulate(precision[::-1])[::-1]
    indices = np.searchsorted(recall, RECALLS, side="left")
    return np.append(best, 0.0)[indices], float(recall[-1])
