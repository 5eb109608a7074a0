"""Metrics of segments against transcriptions of their definitions, and pycocotools."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_vit_seg.metrics import MetricError
from hf_vit_seg.metrics.mask_ap import MaskAveragePrecision
from hf_vit_seg.metrics.object_scores import ObjectScores
from hf_vit_seg.metrics.panoptic_quality import PanopticQuality
from hf_vit_seg.metrics.segment_overlaps import SegmentMap, find_overlaps

CLASSES = 4


def random_map(generator: np.random.Generator, size: tuple[int, int], most: int) -> torch.Tensor:
    """Rectangles of random places, the later on top; numbered without gaps."""
    ids = np.zeros(size, np.int64)
    for number in range(1, int(generator.integers(0, most + 1)) + 1):
        top, left = (int(generator.integers(0, side)) for side in size)
        height, width = generator.integers(1, 14, 2)
        ids[top : top + height, left : left + width] = number
    return torch.from_numpy(np.unique(ids, return_inverse=True)[1].reshape(size))


def random_pair(seed: int, most: int = 12, both: bool = True) -> tuple[SegmentMap, SegmentMap]:
    """Labels, and predictions that are shifted and partly of another class; with `both` void pixels and crowds in one
    image.
    """
    generator = np.random.default_rng(seed)
    truth = random_map(generator, (40, 50), most)
    found = torch.roll(truth, tuple(generator.integers(-1, 2, 2).tolist()), (0, 1))
    extra = random_map(generator, (40, 50), 3)
    found = torch.where(extra > 0, extra + int(found.max()), found)
    found = torch.unique(found, return_inverse=True)[1].view(40, 50)
    classes = generator.integers(0, CLASSES, int(truth.max()) + 1).tolist()
    kinds = [classes[n % len(classes)] if generator.random() < 0.9 else 1 for n in range(1, int(found.max()) + 1)]
    labels = truth.clone()
    with_crowds, crowds = generator.random() < 0.5, torch.full_like(labels, -1)
    if generator.random() < 0.7 and (both or not with_crowds):
        labels[3:12, 5:20] = -1
    if with_crowds:
        for top, left, kind in ((10, 10, 1), (16, 2, int(generator.integers(0, CLASSES)))):
            place = slice(top, top + 12), slice(left, left + 18)
            labels[place], crowds[place] = -1, kind
    scores = np.round(generator.random(len(kinds)), 1).tolist()  # with ties
    return SegmentMap(found, kinds, scores), SegmentMap(labels, classes[1:], crowds=crowds)


def void_pixels(truth: SegmentMap) -> np.ndarray:
    """Pixels of no segment and no crowd."""
    return ((truth.ids < 0) & (truth.crowds < 0)).numpy()


def crowd_pixels(truth: SegmentMap, kind: int) -> np.ndarray:
    """Pixels of the crowds of a class."""
    return (truth.crowds == kind).numpy()


def segments(found: SegmentMap) -> list[tuple[np.ndarray, int, float]]:
    """Each segment as mask, class and score."""
    scores = found.scores or [1.0] * len(found.classes)
    masks = [(found.ids == number).numpy() for number in range(1, len(found.classes) + 1)]
    return [(m, c, s) for m, c, s in zip(masks, found.classes, scores, strict=True) if m.any()]


def paper_matches(found: SegmentMap, truth: SegmentMap) -> dict[tuple[int, int], float]:
    """The IoU of the matches of an image by their places, without void pixels."""
    void = void_pixels(truth)
    matches = {}
    for i, (p, kind, _) in enumerate(segments(found)):
        for j, (g, label, _) in enumerate(segments(truth)):
            iou = (p & g).sum() / ((p & ~void) | g).sum()
            if kind == label and iou > 0.5:
                matches[i, j] = iou
    return matches


def paper_quality(pairs) -> dict[int, tuple[float, float, float]]:
    """PQ, SQ and RQ of each class from the paper's definition, with void pixels and crowds as in its section 4.2."""
    sums = {index: [0.0, 0, 0, 0] for index in range(CLASSES)}
    for found, truth in pairs:
        void, matches = void_pixels(truth), paper_matches(found, truth)
        for i, (p, kind, _) in enumerate(segments(found)):
            own = [iou for (place, _), iou in matches.items() if place == i]
            sums[kind][0] += sum(own)
            sums[kind][1] += len(own)
            sums[kind][2] += not own and (p & (void | crowd_pixels(truth, kind))).sum() <= 0.5 * p.sum()
        for j, (_, label, _) in enumerate(segments(truth)):
            sums[label][3] += all(place != j for _, place in matches)
    scores = {}
    for index, (overlap, tp, fp, fn) in sums.items():
        if tp + fp + fn:
            whole = tp + fp / 2 + fn / 2
            scores[index] = (overlap / whole, overlap / tp if tp else 0.0, tp / whole)
    return scores


@given(seed=st.integers(0, 100_000))
def test_panoptic_quality_equals_the_paper(seed):
    pairs = [random_pair(seed + place) for place in range(3)]
    metric = PanopticQuality(CLASSES, stuff=(0, 2))
    for found, truth in pairs:
        metric.update(find_overlaps(found, truth))
    expected, scores = paper_quality(pairs), metric.scores()
    for place, name in enumerate(("pq", "sq", "rq")):
        for index in range(CLASSES):
            value = scores[f"per_category_{name}"][index]
            assert value == pytest.approx(expected.get(index, (np.nan,) * 3)[place], abs=1e-9, nan_ok=True)
        for title, chosen in (("", range(CLASSES)), ("_things", (1, 3)), ("_stuff", (0, 2))):
            values = [expected[index][place] for index in chosen if index in expected]
            mean = np.mean(values) if values else np.nan
            assert scores[f"{name}{title}"] == pytest.approx(mean, abs=1e-9, nan_ok=True)


def test_number_0_is_background():
    """A prediction on the background is a false positive, not void."""
    truth = SegmentMap(torch.tensor([[1, 1, 0, 0]]), (0,))
    found = SegmentMap(torch.tensor([[1, 1, 2, 2]]), (0, 0))
    metric = PanopticQuality(1)
    metric.update(find_overlaps(found, truth))
    assert metric.counts[1:, 0].tolist() == [1, 1, 0]
    assert metric.scores()["pq"] == pytest.approx(2 / 3, abs=1e-9)
    ignoring = PanopticQuality(1)
    ignoring.update(find_overlaps(found, SegmentMap(torch.tensor([[1, 1, -1, -1]]), (0,))))
    assert ignoring.scores()["pq"] == 1


def coco_scores(pairs, most: int) -> dict[str, float]:
    """The scores of pycocotools; void pixels are a crowd of every class."""
    mask = pytest.importorskip("pycocotools.mask")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def encode(pixels):
        return mask.encode(np.asfortranarray(pixels.astype(np.uint8)))

    images, labels, results = [], [], []
    for image, (found, truth) in enumerate(pairs, 1):
        images.append({"id": image, "height": 40, "width": 50})
        rows = [(pixels, kind, 0) for pixels, kind, _ in segments(truth)]
        crowds = [(void_pixels(truth) | crowd_pixels(truth, kind), kind, 1) for kind in range(CLASSES)]
        rows += [row for row in crowds if row[0].any()]
        for pixels, kind, group in rows:
            own = {"id": len(labels) + 1, "image_id": image, "category_id": kind, "iscrowd": group}
            labels.append({**own, "segmentation": encode(pixels), "area": int(pixels.sum())})
        results += [
            {"image_id": image, "category_id": kind, "segmentation": encode(pixels), "score": score}
            for pixels, kind, score in segments(found)
        ]
    coco = COCO()
    coco.dataset = {
        "images": images,
        "annotations": labels,
        "categories": [{"id": index} for index in range(CLASSES)],
    }
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(results), "segm")
    evaluation.params.maxDets = [most]
    evaluation.evaluate()
    evaluation.accumulate()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]

    def mean(values):
        return values[values > -1].mean() if (values > -1).any() else np.nan

    scores = {
        f"mask_ap{name}": mean(precision[:, :, :, area, 0])
        for area, name in enumerate(("", "_small", "_medium", "_large"))
    }
    return scores | {
        "mask_ap_50": mean(precision[0, :, :, 0, 0]),
        "mask_ap_75": mean(precision[5, :, :, 0, 0]),
        "mask_ar": mean(recall[:, :, 0, 0]),
    }


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("most", [100, 2])
def test_mask_ap_equals_pycocotools(seed, most, capsys):
    pairs = [random_pair(100 * seed + place, most=20, both=False) for place in range(5)]
    metric = MaskAveragePrecision(CLASSES, most)
    for found, truth in pairs:
        metric.update(find_overlaps(found, truth))
    scores = metric.scores()
    for name, value in coco_scores(pairs, most).items():
        assert scores[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


def test_mask_ap_of_two_processes():
    pairs = [random_pair(place) for place in range(6)]
    whole, halves = MaskAveragePrecision(CLASSES), [MaskAveragePrecision(CLASSES) for _ in range(2)]
    for place, (found, truth) in enumerate(pairs):
        whole.update(find_overlaps(found, truth))
        halves[place // 3].update(find_overlaps(found, truth))
    halves[0].rows += halves[1].rows
    np.testing.assert_equal(halves[0].scores(), whole.scores())


def jaccard_index(found: SegmentMap, truth: SegmentMap) -> float:
    """AJI as in its paper, over pixels whose label is not ignored."""
    void, theirs = void_pixels(truth), segments(truth)
    kept = [(p & ~void, kind) for p, kind, _ in segments(found) if counts(p, kind, truth)]
    both = whole = 0
    used = set()
    for g, label, _ in theirs:
        overlaps = [((p & g).sum() / (p | g).sum() if kind == label else 0, i) for i, (p, kind) in enumerate(kept)]
        iou, i = max(overlaps, key=lambda pair: (pair[0], -pair[1]), default=(0, -1))
        if iou == 0:
            whole += g.sum()
            continue
        both += (kept[i][0] & g).sum()
        whole += (kept[i][0] | g).sum()
        used.add(i)
    whole += sum(p.sum() for i, (p, _) in enumerate(kept) if i not in used)
    return both / whole if whole else np.nan


def counts(p: np.ndarray, kind: int, truth: SegmentMap) -> bool:
    """Whether a prediction matches an object, or is mostly on pixels that are not ignored."""
    ignored = void_pixels(truth) | crowd_pixels(truth, kind)
    return best(p, kind, truth) or (p & ignored).sum() <= 0.5 * p.sum()


def best(p: np.ndarray, kind: int, truth: SegmentMap) -> bool:
    """Whether a prediction matches an object at an IoU above one half."""
    void = void_pixels(truth)
    return any(kind == label and (p & g).sum() / ((p & ~void) | g).sum() > 0.5 for g, label, _ in segments(truth))


@given(seed=st.integers(0, 100_000))
def test_object_scores(seed):
    found, truth = random_pair(seed)
    metric = ObjectScores()
    metric.update(find_overlaps(found, truth))
    scores = metric.scores()
    assert scores["aji"] == pytest.approx(jaccard_index(found, truth), abs=1e-12, nan_ok=True)
    kept = [each for each in segments(found) if counts(each[0], each[1], truth)]
    hits, labeled = sum(best(p, kind, truth) for p, kind, _ in kept), len(segments(truth))
    if kept or labeled:
        assert scores["f1_50"] == pytest.approx(2 * hits / (len(kept) + labeled))
    if labeled:
        assert scores["count_error"] == pytest.approx(abs(len(kept) - labeled) / labeled, abs=1e-9)


def test_count_error_is_a_mean_over_images_with_objects():
    metric = ObjectScores()
    for found, truth in ((3, 4), (2, 1), (5, 0), (0, 2)):
        rows = [
            SegmentMap(torch.arange(8).clamp(max=count).where(torch.arange(8) <= count, 0)[None], (0,) * count)
            for count in (found, truth)
        ]
        metric.update(find_overlaps(*rows))
    scores = metric.scores()
    assert scores["count_error"] == pytest.approx((1 / 4 + 1 + 1) / 3, abs=1e-9)
    assert (scores["objects"], scores["objects_found"], scores["count_difference"]) == (7, 10, 1 + 1 + 5 + 2)


def test_counts_add_up_over_processes():
    pairs = [random_pair(place) for place in range(8)]
    for kind in (ObjectScores, lambda: PanopticQuality(CLASSES)):
        whole, halves = kind(), [kind(), kind()]
        for place, pair in enumerate(pairs):
            whole.update(find_overlaps(*pair))
            halves[place % 2].update(find_overlaps(*pair))
        assert torch.equal(halves[0].counts + halves[1].counts, whole.counts)


def test_images_without_objects():
    nothing = SegmentMap(torch.zeros(4, 5, dtype=torch.int64), ())
    quality, ap, objects = PanopticQuality(2), MaskAveragePrecision(2), ObjectScores()
    for metric in (quality, ap, objects):
        metric.update(find_overlaps(nothing, nothing))
    assert np.isnan(quality.scores()["pq"]) and np.isnan(ap.scores()["mask_ap"])
    assert np.isnan(objects.scores()["f1_50"]) and np.isnan(objects.scores()["count_error"])
    one = SegmentMap(torch.ones(4, 5, dtype=torch.int64), (1,), (0.5,))
    ap.update(find_overlaps(nothing, SegmentMap(one.ids, one.classes)))
    assert ap.scores()["mask_ap"] == 0
    ap.update(find_overlaps(one, SegmentMap(one.ids, one.classes)))
    assert 0 < ap.scores()["mask_ap"] < 1


@pytest.mark.parametrize(
    ("found", "truth"),
    [
        (SegmentMap(torch.ones(2, 2), (0,)), SegmentMap(torch.ones(2, 2, dtype=torch.int64), (0,))),
        (SegmentMap(torch.full((2, 2), 2), (0,)), SegmentMap(torch.ones(2, 2, dtype=torch.int64), (0,))),
        (SegmentMap(torch.full((2, 2), -1), (0,)), SegmentMap(torch.ones(2, 2, dtype=torch.int64), (0,))),
        (SegmentMap(torch.full((2, 3), 1), (0,)), SegmentMap(torch.ones(2, 2, dtype=torch.int64), (0,))),
        (SegmentMap(torch.full((2, 2), 1), (0,), ()), SegmentMap(torch.ones(2, 2, dtype=torch.int64), (0,))),
    ],
)
def test_invalid_maps_raise(found, truth):
    with pytest.raises(MetricError):
        find_overlaps(found, truth)


def test_unknown_class_raises():
    ids = torch.ones(2, 2, dtype=torch.int64)
    with pytest.raises(MetricError):
        PanopticQuality(2).update(find_overlaps(SegmentMap(ids, (2,)), SegmentMap(ids, (1,))))
