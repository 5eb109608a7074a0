"""Top-k accuracy and calibration error, compared with numpy and scikit-learn."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score

from hf_vit_seg.metrics import MetricError
from hf_vit_seg.metrics.accuracy import TopKAccuracy
from hf_vit_seg.metrics.calibration import CalibrationError, adaptive_calibration_error, confidences


@given(st.integers(3, 30), st.integers(1, 60), st.integers(0, 2**31))
def test_top_k_accuracy_matches_scikit_learn(classes, images, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(images, classes, generator=generator)
    labels = torch.randint(0, classes, (images,), generator=generator)
    metric = TopKAccuracy(ks=(1, 2))
    for part in torch.arange(images).split(7):
        metric.update(scores[part], labels[part])
    for k, name in ((1, "accuracy"), (2, "top_2_accuracy")):
        expected = top_k_accuracy_score(labels.numpy(), scores.numpy(), k=k, labels=np.arange(classes))
        assert metric.scores()[name] == pytest.approx(expected)


def test_constant_scores_favor_the_first_classes():
    metric = TopKAccuracy()
    metric.update(torch.zeros(40, 20), torch.arange(40) % 20)
    assert metric.scores() == {"accuracy": 1 / 20, "top_5_accuracy": 5 / 20}


def test_invalid_and_ignored_images():
    scores = torch.tensor([[1.0, 0.0], [float("nan"), 0.0], [0.0, 1.0], [0.0, 1.0]])
    metric = TopKAccuracy(ks=(1, 5), ignore_index=-100)
    metric.update(scores, torch.tensor([0, 0, -100, 2]))
    assert metric.counts.tolist() == [1, 1, 3]  # NaN and unknown classes are never correct
    with pytest.raises(MetricError, match="scores"):
        metric.update(scores[0], torch.tensor(0))
    assert np.isnan(TopKAccuracy().scores()["accuracy"])


def random_probabilities(seed, images=500, classes=6):
    generator = torch.Generator().manual_seed(seed)
    probabilities = (3 * torch.randn(images, classes, generator=generator)).double().softmax(dim=1)
    return probabilities, torch.randint(0, classes, (images,), generator=generator)


def errors_by_hand(confidence, hits, edges):
    """Weights and gaps of the bins between edges, right-closed."""
    gaps = []
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            gaps.append((inside.mean(), abs(confidence[inside].mean() - hits[inside].mean())))
    return np.array(gaps).T


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_matches_direct_computation(bins, seed):
    probabilities, labels = random_probabilities(seed)
    metric = CalibrationError(bins)
    for part in torch.arange(len(labels)).split(64):
        metric.update(probabilities[part], labels[part])
    confidence, predicted = probabilities.max(dim=1)
    weights, gaps = errors_by_hand(confidence.numpy(), (predicted == labels).numpy(), np.linspace(0, 1, bins + 1))
    assert metric.scores()["calibration_error"] == pytest.approx((weights * gaps).sum())
    assert metric.scores()["maximum_calibration_error"] == pytest.approx(gaps.max())


def test_calibration_of_maps_excludes_ignored_pixels():
    probabilities, labels = random_probabilities(1, 480)
    maps = probabilities.view(2, 20, 12, 6).permute(0, 3, 1, 2)
    references = labels.view(2, 20, 12).clone()
    references[:, :5] = 255
    metric, rest = CalibrationError(ignore_index=255), CalibrationError()
    metric.update(maps, references)
    rest.update(maps[:, :, 5:], references[:, 5:])
    assert metric.counts[0].sum() == 2 * 15 * 12
    assert torch.allclose(metric.counts, rest.counts)


def test_perfect_forecaster_is_calibrated():
    probabilities = torch.full((1000, 4), 0.1)
    probabilities[:, 0] = 0.7
    labels = torch.cat([torch.zeros(700, dtype=torch.long), torch.arange(1, 4).repeat(100)])
    metric = CalibrationError()
    metric.update(probabilities, labels)
    assert metric.scores()["calibration_error"] == pytest.approx(0, abs=1e-6)
    assert adaptive_calibration_error(*confidences(probabilities, labels, None), bins=1) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("images", [1, 7, 15, 500])
def test_adaptive_bins_have_equal_counts(images):
    probabilities, labels = random_probabilities(4, images)
    confidence, hits = confidences(probabilities, labels, None)
    order = np.argsort(confidence.numpy(), kind="stable")
    parts = np.array_split(order, min(15, images))
    gaps = [len(p) * abs(confidence.numpy()[p].mean() - hits.numpy()[p].mean()) for p in parts]
    assert adaptive_calibration_error(confidence, hits) == pytest.approx(sum(gaps) / images)


def test_logits_raise():
    with pytest.raises(MetricError, match="apply softmax to logits"):
        CalibrationError().update(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(MetricError, match="class indices"):
        CalibrationError().update(torch.rand(4, 3), torch.zeros(3, dtype=torch.long))
    assert np.isnan(CalibrationError().scores()["calibration_error"])
