"""The modules for evaluate: loaded by path without a network, equal to evaluate's results, and without Arrow files."""

import os
import subprocess
import sys

import evaluate
import numpy as np
import pytest
import torch
from test_confusion_matrix import evaluate_scores
from test_keypoint_similarity import random_persons
from test_segment_metrics import CLASSES, random_pair

from hf_vit_seg.metrics import MODULES, MetricError, module_path
from hf_vit_seg.metrics.keypoint_similarity import oks_average_precision
from hf_vit_seg.metrics.mask_ap import MaskAveragePrecision
from hf_vit_seg.metrics.object_scores import ObjectScores
from hf_vit_seg.metrics.panoptic_quality import PanopticQuality
from hf_vit_seg.metrics.segment_overlaps import find_overlaps


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """evaluate copies modules to a cache, from which Python imports them; no Arrow file may be written there."""
    cache = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(cache / "modules"))
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", cache / "metrics")
        yield
    assert not list(cache.rglob("*.arrow*"))


def load(name, **settings):
    return evaluate.load(module_path(name), **settings)


def random_maps(classes=9, count=4):
    generator = np.random.default_rng(0)
    references = [generator.integers(0, classes, generator.integers(5, 40, 2)) for _ in range(count)]
    predictions = [np.where(generator.random(m.shape) < 0.6, m, 1) for m in references]
    references[0][:3] = 255
    return predictions, references


def same_scores(found, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, err_msg=name)


def test_example_from_evaluate():
    """The arrays and the result in evaluate's documentation of mean_iou."""
    predictions = [
        np.array([[1, 2], [3, 4], [5, 255]]),
        np.array([[2, 7], [9, 2], [3, 6]]),
        np.array([[2, 2, 3], [8, 2, 4], [3, 255, 2]]),
    ]
    references = [
        np.array([[0, 3], [5, 4], [6, 255]]),
        np.array([[1, 7], [9, 2], [3, 6]]),
        np.array([[1, 2, 2], [8, 2, 1], [3, 255, 1]]),
    ]
    scores = load("mean_iou").compute(
        predictions=predictions, references=references, num_labels=10, ignore_index=255, reduce_labels=False
    )
    assert scores["mean_iou"] == pytest.approx(0.4775)
    assert scores["mean_accuracy"] == pytest.approx(0.5916666666666666)
    assert scores["overall_accuracy"] == pytest.approx(0.5263157894736842)
    np.testing.assert_allclose(scores["per_category_iou"], [0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])


def test_mean_iou_does_not_depend_on_batching():
    predictions, references = random_maps()
    expected = evaluate_scores(predictions, references, 9, 255)
    metric = load("mean_iou")
    metric.add(prediction=predictions[0], reference=references[0])
    metric.add_batch(predictions=predictions[1:3], references=[r.tolist() for r in references[1:3]])
    metric.add_batch(predictions=torch.tensor(predictions[3])[None], references=torch.tensor(references[3])[None])
    assert len(metric) == 4
    same_scores(metric.compute(num_labels=9, ignore_index=255), expected)
    assert len(metric) == 0 and not metric.counts.any()
    same_scores(metric.compute(predictions=predictions, references=references, num_labels=9), expected)


def test_reduced_and_mapped_labels():
    predictions, references = random_maps()
    reduced = [np.where((r == 0) | (r == 255), 255, r - 1) for r in references]
    predictions = [np.clip(p, 0, 7) for p in predictions]
    given = {"predictions": predictions, "references": references}
    scores = load("mean_iou").compute(**given, num_labels=8, ignore_index=255, reduce_labels=True)
    same_scores(scores, evaluate_scores(predictions, reduced, 8, 255))
    swapped = [np.select([r == 1, r == 2], [2, 1], r) for r in references]  # all at once, not sequentially
    scores = load("mean_iou").compute(**given, num_labels=9, ignore_index=255, label_map={1: 2, 2: 1})
    same_scores(scores, evaluate_scores(predictions, swapped, 9, 255))


def test_nan_to_num_replaces_absent_classes():
    scores = load("mean_iou").compute(
        predictions=[[[0, 1]]], references=[[[0, 1]]], num_labels=3, ignore_index=255, nan_to_num=0
    )
    assert scores["mean_iou"] == 1 and scores["per_category_iou"].tolist() == [1, 1, 0]


def test_counts_are_summed_over_two_processes():
    predictions, references = random_maps()
    metrics = [load("mean_iou"), load("mean_iou")]
    for metric, half in zip(metrics, (slice(0, 1), slice(1, 4)), strict=True):
        metric.add_batch(predictions=predictions[half], references=references[half])
    metrics[0].counts = metrics[0].counts + metrics[1].counts
    same_scores(metrics[0].compute(num_labels=9), evaluate_scores(predictions, references, 9, 255))
    with pytest.raises(MetricError, match="sum its `counts`"):
        load("mean_iou", num_process=2, process_id=0)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[[7]]], [[[0]]], "predictions contain 7"),
        ([[[0]]], [[[9]]], "references contain 9"),
        ([[[0]]], [[[300]]], "found references 300.*set values"),
        ([[[0]], [[0]]], [[[0]]], "found 2 predictions and 1 references"),
        (None, [[[0]]], "predictions are missing"),
    ],
)
def test_invalid_maps_raise(predictions, references, message):
    with pytest.raises(MetricError, match=message):
        load("mean_iou").compute(predictions=predictions, references=references, num_labels=5)


def test_failed_update_leaves_no_state():
    metric, right, wrong = load("mean_iou"), [[0, 1]], [[1, 0]]
    with pytest.raises(MetricError, match="predictions contain 1"):
        metric.compute(predictions=[right], references=[right], num_labels=1)
    assert metric.compute(predictions=[wrong], references=[right], num_labels=2)["overall_accuracy"] == 0
    metric.add_batch(predictions=[wrong], references=[right])
    for maps, message in (
        ([right, [[300, 0]]], "set values"),
        ([right, right, right], r"found 3 predictions and 2 references"),
    ):
        with pytest.raises(MetricError, match=message):
            metric.add_batch(predictions=maps, references=[right, right])
    assert len(metric) == 1
    assert metric.compute(num_labels=2)["overall_accuracy"] == 0


def test_load_arguments_become_defaults():
    metric = load("mean_iou", values=400, ignore_index=65535)
    maps = torch.tensor([[[399, 0, 5]]])
    metric.add_batch(predictions=maps, references=torch.tensor([[[399, 65535, 0]]]))
    assert metric.compute(num_labels=400)["overall_accuracy"] == 0.5


def test_modules_are_named_and_combine():
    assert [load(name).name for name in MODULES] == list(MODULES)
    both = evaluate.combine([load("top_k_accuracy"), load("calibration_error")])
    both.add(prediction=[0.9, 0.1], reference=0)
    both.add_batch(predictions=[[0.3, 0.7]], references=[0])
    assert both.compute()["accuracy"] == 0.5


def test_compute_without_data():
    with pytest.raises(MetricError, match="found no samples"):
        load("mean_iou").compute(num_labels=2)
    with pytest.raises(MetricError, match="use one of aji, calibration_error, mean_iou"):
        module_path("mean_iuo")


def test_top_k_accuracy():
    metric = load("top_k_accuracy", k=(1, 2))
    metric.add(prediction=[0.1, 0.7, 0.2], reference=1)
    metric.add_batch(predictions=torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.1, 0.5]]), references=[2, 0])
    assert metric.counts.tolist() == [1, 2, 3]
    assert metric.compute() == {"accuracy": 1 / 3, "top_2_accuracy": 2 / 3}


def test_calibration_error():
    predictions = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.55, 0.45]]
    scores = load("calibration_error", adaptive=True).compute(predictions=predictions, references=[0, 1, 1, 0])
    assert scores["maximum_calibration_error"] == pytest.approx(0.7)
    assert scores["calibration_error"] == pytest.approx((0.1 + 0.2 + 0.7 + 0.45) / 4)
    assert scores["adaptive_calibration_error"] == pytest.approx((0.1 + 0.2 + 0.7 + 0.45) / 4)


def test_oks_ap_in_coco_format():
    predicted, labeled = random_persons(0)
    predictions = [
        {"image_id": i, "keypoints": np.c_[k, np.ones(len(k))].flatten().tolist(), "score": s}
        for i, k, s in zip(predicted.images, predicted.keypoints, predicted.scores, strict=True)
    ]
    references = [
        {"image_id": i, "keypoints": k.flatten().tolist(), "area": a, "bbox": b.tolist(), "iscrowd": int(c)}
        for i, k, a, b, c in zip(
            labeled.images, labeled.keypoints, labeled.areas, labeled.boxes, labeled.crowds, strict=True
        )
    ]
    metric = load("oks_ap")
    metric.add_batch(predictions=predictions[:5], references=[])
    same_scores(
        metric.compute(predictions=predictions[5:], references=references), oks_average_precision(predicted, labeled)
    )
    with pytest.raises(MetricError, match="found one without 'area'"):
        metric.compute(predictions=predictions, references=[{"image_id": 1, "keypoints": [0] * 51, "bbox": [0] * 4}])
    with pytest.raises(MetricError, match="17 keypoints"):
        metric.compute(predictions=[{"image_id": 1, "keypoints": [0] * 8, "score": 1}], references=references)


def test_modules_load_in_a_fresh_process_without_network(tmp_path):
    lines = ["import evaluate", "from hf_vit_seg.metrics import MODULES, module_path"]
    lines.append("print([evaluate.load(module_path(name)).name for name in MODULES])")
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("'") == 2 * len(MODULES)


def as_result(found) -> dict:
    """Segments in transformers' format, with ids that have gaps."""
    scores = found.scores or [1.0] * len(found.classes)
    rows = [
        {"id": 10 * number, "label_id": index, "score": score}
        for number, (index, score) in enumerate(zip(found.classes, scores, strict=True), 1)
    ]
    values = torch.where(found.ids > 0, 10 * found.ids, found.ids)
    for kind in [] if found.crowds is None else found.crowds[found.crowds >= 0].unique().tolist():
        values = values.where(found.crowds != kind, 1000 + kind)
        rows.append({"id": 1000 + kind, "label_id": kind, "iscrowd": 1})
    return {"segmentation": values, "segments_info": rows}


@pytest.mark.parametrize(
    ("name", "options", "metric"),
    [
        ("pq", {"num_labels": CLASSES, "stuff": (0,)}, PanopticQuality(CLASSES, (0,))),
        ("segm_ap", {"num_labels": CLASSES, "max_detections": 2}, MaskAveragePrecision(CLASSES, 2)),
        ("aji", {}, ObjectScores()),
    ],
)
def test_segments_in_the_format_of_transformers(name, options, metric):
    pairs = [random_pair(place) for place in range(4)]
    module = load(name, **options)
    for found, truth in pairs:
        metric.update(find_overlaps(found, truth))
        module.add(prediction=as_result(found), reference=as_result(truth))
    np.testing.assert_equal(module.compute(), metric.scores())


def test_crowds_of_references_are_ignored():
    found = {"segmentation": torch.tensor([[1, 1, 2, 2]]), "segments_info": [{"id": n, "label_id": 0} for n in (1, 2)]}
    truth = {"segmentation": found["segmentation"], "segments_info": [dict(row) for row in found["segments_info"]]}
    truth["segments_info"][1]["iscrowd"] = 1
    assert load("pq").compute(predictions=[found], references=[truth])["pq"] == 1
    found["segments_info"][1]["label_id"] = 1
    scores = load("pq", num_labels=2).compute(predictions=[found], references=[truth])
    assert scores["per_category_pq"][1] == 0  # a crowd of another class
    for wrong in ({"segmentation": found["segmentation"]}, {**found, "segments_info": [{"id": 1}]}):
        with pytest.raises(MetricError):
            load("pq").compute(predictions=[wrong], references=[truth])
