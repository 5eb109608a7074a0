"""Object keypoint similarity (OKS) and its average precision, as COCO's evaluation computes them (`pycocotools`).

OKS is the mean over a person's labelled keypoints of exp(-d^2 / (2 area (2 sigma)^2)): d is the distance in pixels and
sigma says how exactly people agree on such a keypoint. Average precision is no sum over images, so what processes
gather are the persons themselves: K * 2 + 2 numbers for each predicted one.

Shapes: P predicted persons, G labelled persons, K keypoints, T thresholds of similarity, A ranges of area.
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
MOST = 20  # best scored persons of an image that count


@dataclass(frozen=True, eq=False)
class PredictedPersons:
    """`images` (P,) ids, `keypoints` (P, K, 2) as x, y in pixels of the original image, `scores` (P,)."""

    images: np.ndarray
    keypoints: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True, eq=False)
class LabelledPersons:
    """All persons of the images, also those without keypoints and crowds: they excuse predictions, and miss none.

    `images` (G,) ids, `keypoints` (G, K, 3) as x, y, visibility (0 is unlabelled), `areas` (G,) of the outlines,
    `boxes` (G, 4) as x, y, width, height, `crowds` (G,) bool.
    """

    images: np.ndarray
    keypoints: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    crowds: np.ndarray


class Matches(NamedTuple):
    """What matching found in one image, for persons in order of their score."""

    scores: np.ndarray  # (P,)
    hit: np.ndarray  # (A, T, P) matched to a person that counts
    excused: np.ndarray  # (A, T, P) neither right nor wrong
    wanted: np.ndarray  # (A,) labelled persons that count


def keypoint_similarity(
    predicted: np.ndarray, labelled: np.ndarray, areas: np.ndarray, boxes: np.ndarray, sigmas: Sequence[float]
) -> np.ndarray:
    """OKS (P, G) of `predicted` (P, K, 2) with `labelled` (G, K, 3), `areas` (G,) and `boxes` (G, 4).

    Where a labelled person has no keypoint, distances are those to its box, enlarged by its own size on every side.
    """
    visible = labelled[..., 2] > 0
    offsets = predicted[:, None] - labelled[None, ..., :2]
    start, size = boxes[:, None, :2], boxes[:, None, 2:]
    outside = np.maximum(start - size - predicted[:, None], 0) + np.maximum(predicted[:, None] - start - 2 * size, 0)
    unlabelled = np.asarray(visible.sum(axis=1) == 0)
    offsets = np.where(unlabelled[None, :, None, None], outside, offsets)
    counted = visible | unlabelled[:, None]
    variances = (2 * np.asarray(sigmas)) ** 2
    exponents = (offsets**2).sum(axis=-1) / variances / (areas[None, :, None] + np.spacing(1)) / 2
    return np.where(counted, np.exp(-exponents), 0).sum(axis=-1) / counted.sum(axis=-1)


def oks_average_precision(
    predicted: PredictedPersons, labelled: LabelledPersons, sigmas: Sequence[float] = COCO_SIGMAS, most: int = MOST
) -> dict[str, float]:
    """`oks_ap` and `oks_ar` (recall), the means over thresholds 0.50 .. 0.95, and of each `_50`, `_75`, `_medium`,
    `_large` (by area): 0 .. 1, NaN where no labelled person counts.

    Of each image the `most` best scored persons count. MetricError for shapes that do not fit each other.
    """
    check_persons(predicted, labelled, len(sigmas))
    images = np.unique(np.concatenate([predicted.images, labelled.images]))
    matches = [matched(predicted, labelled, image, sigmas, most) for image in images]
    precision, recall = curves(matches)
    scores = {}
    for name, values in (("oks_ap", precision), ("oks_ar", recall)):
        for i, area in enumerate(AREAS):
            scores[f"{name}_{area}".rstrip("_")] = float(values[i].mean())
        scores |= {f"{name}_50": float(values[0, 0].mean()), f"{name}_75": float(values[0, 5].mean())}
    return scores


def check_persons(predicted: PredictedPersons, labelled: LabelledPersons, keypoints: int) -> None:
    """Refuse arrays that do not belong together."""
    persons, truths = len(predicted.images), len(labelled.images)
    expected = (
        ("predicted keypoints", predicted.keypoints, (persons, keypoints, 2)),
        ("scores", predicted.scores, (persons,)),
        ("labelled keypoints", labelled.keypoints, (truths, keypoints, 3)),
        ("areas", labelled.areas, (truths,)),
        ("boxes", labelled.boxes, (truths, 4)),
        ("crowds", labelled.crowds, (truths,)),
    )
    for name, array, shape in expected:
        if np.shape(array) != shape:
            raise MetricError(f"{name} should have the shape {shape}, found {np.shape(array)}")


def matched(
    predicted: PredictedPersons, labelled: LabelledPersons, image: int, sigmas: Sequence[float], most: int
) -> Matches:
    """Match the persons of one image, for every range of area and every threshold."""
    own = np.flatnonzero(predicted.images == image)
    own = own[np.argsort(-predicted.scores[own], kind="stable")][:most]
    truths = np.flatnonzero(labelled.images == image)
    keypoints, crowds = predicted.keypoints[own].astype(float), labelled.crowds[truths].astype(bool)
    truth = labelled.keypoints[truths].astype(float)
    areas = labelled.areas[truths]
    similarity = keypoint_similarity(keypoints, truth, areas, labelled.boxes[truths], sigmas)
    extent = np.ptp(keypoints, axis=1).prod(axis=-1)  # COCO's area of a predicted person
    lows, highs = np.array(list(AREAS.values())).T[..., None]
    ignored = crowds | ~(truth[..., 2] > 0).any(axis=1) | (areas < lows) | (areas > highs)
    pairs = paired(similarity, ignored, crowds)
    excuses = np.concatenate([ignored, np.zeros_like(ignored, shape=(len(AREAS), 1))], axis=1)
    excused = np.take_along_axis(excuses[:, None], pairs, axis=2)
    outside = (extent < lows) | (extent > highs)  # of the range of area: excused if unmatched
    return Matches(
        scores=predicted.scores[own],
        hit=(pairs >= 0) & ~excused,
        excused=np.where(pairs >= 0, excused, outside[:, None]),
        wanted=np.count_nonzero(~ignored, axis=1),
    )


def paired(similarity: np.ndarray, ignored: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """The labelled person (A, T, P) of each predicted one, or -1: the most similar that is free, best scores first.

    `similarity` is (P, G), `ignored` (A, G), `crowds` (G,). Ignored persons are matched only where none that counts is
    similar enough, and crowds as often as there are persons in them. Of equally similar ones the last is taken, as
    COCO does.
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
    """Precision at 101 recalls (A, T, 101) and the highest recall (A, T); NaN where no labelled person counts."""
    shape = (len(AREAS), len(THRESHOLDS))
    precision, recall = np.full((*shape, len(RECALLS)), np.nan), np.full(shape, np.nan)
    if not matches:
        return precision, recall
    order = np.argsort(-np.concatenate([m.scores for m in matches]), kind="stable")
    hit = np.concatenate([m.hit for m in matches], axis=2)[..., order]
    excused = np.concatenate([m.excused for m in matches], axis=2)[..., order]
    for i, wanted in enumerate(np.sum([m.wanted for m in matches], axis=0)):
        if not wanted:
            continue
        for j in range(len(THRESHOLDS)):
            right, wrong = hit[i, j].cumsum(), (~hit[i, j] & ~excused[i, j]).cumsum()
            precision[i, j], recall[i, j] = interpolated(right / wanted, right / (right + wrong + np.spacing(1)))
    return precision, recall


def interpolated(recall: np.ndarray, precision: np.ndarray) -> tuple[np.ndarray, float]:
    """The best precision (101,) at each recall or beyond it, 0 where that is never reached; and the last recall."""
    if not len(recall):
        return np.zeros(len(RECALLS)), 0.0
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return np.append(best, 0.0)[places], float(recall[-1])
