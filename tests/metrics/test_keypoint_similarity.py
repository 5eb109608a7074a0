"""OKS and its average precision, compared with pycocotools."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hf_vit_seg.metrics import MetricError
from hf_vit_seg.metrics.keypoint_similarity import (
    COCO_SIGMAS,
    LabeledPersons,
    PredictedPersons,
    keypoint_similarity,
    oks_average_precision,
)

KEYPOINTS = len(COCO_SIGMAS)
COCO_ORDER = ("", "_50", "_75", "_medium", "_large")


def random_persons(seed, images=6, exact=False):
    """Labeled persons of all kinds (crowds, without keypoints, small to large), and predictions near and far."""
    rng = np.random.default_rng(seed)
    truths, persons = [], []
    for image in rng.permutation(images) + 7:
        labeled = []
        for _ in range(rng.integers(0, 5)):
            side = rng.choice([20, 50, 80, 130, 200]) * rng.uniform(0.8, 1.2)
            box = np.array([*rng.uniform(0, 400, 2), side, side * rng.uniform(0.8, 2)])
            keypoints = np.concatenate(
                [box[:2] + rng.random((KEYPOINTS, 2)) * box[2:], rng.integers(0, 3, (KEYPOINTS, 1))], axis=1
            )
            if rng.random() < 0.2:
                keypoints[:, 2] = 0
            labeled.append((image, np.round(keypoints, 1), box[2] * box[3] * 0.6, box, rng.random() < 0.15))
        truths += labeled
        for _ in range(rng.integers(0, 30)):
            center = labeled[rng.integers(len(labeled))] if labeled and rng.random() < 0.8 else None
            if center is None:
                keypoints = rng.uniform(0, 500, (KEYPOINTS, 2))
            else:
                noise = 0 if exact else rng.choice([0.02, 0.05, 0.1, 0.3]) * center[3][2]
                keypoints = center[1][:, :2] + rng.normal(size=(KEYPOINTS, 2)) * noise
            persons.append((image, keypoints, rng.integers(0, 12) / 12))  # scores with ties
    images_, keypoints, areas, boxes, crowds = zip(*truths, strict=True)
    labeled = LabeledPersons(*map(np.array, (images_, keypoints, areas, boxes, crowds)))
    return PredictedPersons(*map(np.array, zip(*persons, strict=True))), labeled


def coco_scores(predicted, labeled):
    """The ten metrics of pycocotools under our names."""
    ids = sorted({*labeled.images.tolist(), *predicted.images.tolist()})
    annotations = [
        {
            "id": i + 1,
            "image_id": int(labeled.images[i]),
            "category_id": 1,
            "keypoints": labeled.keypoints[i].flatten().tolist(),
            "num_keypoints": int((labeled.keypoints[i, :, 2] > 0).sum()),
            "area": float(labeled.areas[i]),
            "bbox": labeled.boxes[i].tolist(),
            "iscrowd": int(labeled.crowds[i]),
        }
        for i in range(len(labeled.images))
    ]
    results = [
        {
            "image_id": int(image),
            "category_id": 1,
            "keypoints": np.concatenate([points, np.ones((KEYPOINTS, 1))], axis=1).flatten().tolist(),
            "score": float(score),
        }
        for image, points, score in zip(predicted.images, predicted.keypoints, predicted.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": [{"id": i} for i in ids], "annotations": annotations, "categories": [{"id": 1}]}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = [f"{name}{part}" for name in ("oks_ap", "oks_ar") for part in COCO_ORDER]
    return {name: np.nan if stat == -1 else stat for name, stat in zip(names, evaluation.stats.tolist(), strict=True)}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_average_precision_matches_pycocotools(seed, exact):
    persons = random_persons(seed, exact=exact)
    ours, theirs = oks_average_precision(*persons), coco_scores(*persons)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-12, err_msg=name)
    assert 0 < ours["oks_ap"] < 1  # the data exercises the metric


def test_at_most_twenty_persons_are_counted():
    predicted, labeled = random_persons(3)
    own = predicted.images == labeled.images[0]
    crowd = PredictedPersons(
        *(np.concatenate([a, np.repeat(a[own][:1], 40, axis=0)]) for a in (predicted.images, predicted.keypoints)),
        np.concatenate([predicted.scores * 0.1, np.ones(40)]),
    )
    np.testing.assert_allclose(oks_average_precision(crowd, labeled)["oks_ar"], coco_scores(crowd, labeled)["oks_ar"])
    assert oks_average_precision(crowd, labeled)["oks_ar"] < oks_average_precision(predicted, labeled)["oks_ar"]


def test_order_of_persons_does_not_matter():
    predicted, labeled = random_persons(5)
    predicted = PredictedPersons(
        predicted.images, predicted.keypoints, np.random.default_rng(0).random(len(predicted.images))
    )
    order = np.random.default_rng(1).permutation(len(predicted.images))
    moved = PredictedPersons(*(a[order] for a in (predicted.images, predicted.keypoints, predicted.scores)))
    assert oks_average_precision(moved, labeled) == pytest.approx(
        oks_average_precision(predicted, labeled), nan_ok=True
    )


def test_similarity_is_one_for_itself_and_falls_with_distance():
    _, labeled = random_persons(1)
    kept = (labeled.keypoints[..., 2] > 0).any(axis=1)
    rest = (labeled.keypoints[kept], labeled.areas[kept], labeled.boxes[kept], COCO_SIGMAS)
    points = labeled.keypoints[kept][..., :2]
    similarity = [np.diag(keypoint_similarity(points + shift, *rest)) for shift in (0, 2, 5)]
    np.testing.assert_allclose(similarity[0], 1)
    assert (similarity[1] < similarity[0]).all() and (similarity[2] < similarity[1]).all()


def test_no_labeled_persons_gives_nan():
    predicted, labeled = random_persons(2)
    no_persons = LabeledPersons(
        *(a[:0] for a in (labeled.images, labeled.keypoints, labeled.areas, labeled.boxes, labeled.crowds))
    )
    assert all(np.isnan(value) for value in oks_average_precision(predicted, no_persons).values())
    empty = PredictedPersons(predicted.images[:0], predicted.keypoints[:0], predicted.scores[:0])
    assert oks_average_precision(empty, labeled)["oks_ap"] == 0


def test_mismatched_arrays_raise():
    predicted, labeled = random_persons(2)
    with pytest.raises(MetricError, match="predicted keypoints should have the shape"):
        oks_average_precision(predicted, labeled, sigmas=COCO_SIGMAS[:5])
    short = PredictedPersons(predicted.images, predicted.keypoints, predicted.scores[:-1])
    with pytest.raises(MetricError, match="scores should have"):
        oks_average_precision(short, labeled)
