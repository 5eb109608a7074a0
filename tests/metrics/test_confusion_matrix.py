"""The confusion matrix and its scores, compared with direct counting and evaluate's formula; and boundary IoU."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion

from hf_vit_seg.metrics import MetricError
from hf_vit_seg.metrics.boundary import BoundaryIoU, band_width
from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix

SCORES = ("mean_iou", "mean_accuracy", "overall_accuracy", "per_category_iou", "per_category_accuracy")


def count_directly(predictions, references, classes, ignored):
    table = np.zeros((classes, classes), dtype=np.int64)
    for prediction, reference in zip(predictions.flatten().tolist(), references.flatten().tolist(), strict=True):
        if reference != ignored:
            table[reference, prediction] += 1
    return table


def evaluate_scores(predictions, references, classes, ignored):
    """evaluate's mean_iou (mmsegmentation's): areas by np.histogram, map by map."""
    areas = np.zeros((3, classes))
    for prediction, reference in zip(predictions, references, strict=True):
        kept = reference != ignored
        prediction, reference = prediction[kept], reference[kept]
        maps = (prediction[prediction == reference], prediction, reference)
        areas += [np.histogram(m, bins=classes, range=(0, classes - 1))[0] for m in maps]
    hits, predicted, labeled = areas
    with np.errstate(invalid="ignore"):
        iou, accuracy = hits / (predicted + labeled - hits), hits / labeled
        overall = hits.sum() / labeled.sum()
    return dict(zip(SCORES, (np.nanmean(iou), np.nanmean(accuracy), overall, iou, accuracy), strict=True))


@st.composite
def label_maps(draw):
    """Predictions and references of equal shape, the number of classes, and the ignore index (or None)."""
    classes = draw(st.integers(1, 40))
    ignored = draw(st.sampled_from([None, 255, 0, classes - 1, -100, 65535]))
    shape = draw(st.lists(st.integers(0, 7), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    predictions = torch.randint(0, classes, shape, generator=generator)
    references = torch.randint(0, classes, shape, generator=generator)
    if ignored is not None:
        left_out = torch.rand(shape, generator=generator) < draw(st.sampled_from([0, 0.3, 1]))
        references[left_out] = ignored
        if draw(st.booleans()):  # any prediction on ignored pixels
            predictions[references == ignored] = draw(st.sampled_from([255, -1, 0]))
    return predictions, references, classes, ignored


@given(label_maps())
def test_counts_match_direct_computation(maps):
    predictions, references, classes, ignored = maps
    matrix = ConfusionMatrix(classes, ignored)
    matrix.update(predictions, references)
    assert matrix.counts.dtype == torch.int64
    np.testing.assert_array_equal(matrix.counts, count_directly(*maps))
    np.testing.assert_array_equal(  # the code path of a GPU
        matrix._sorted_out(predictions.flatten(), references.flatten()), matrix.bins
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.uint16, torch.int64])
def test_counts_do_not_depend_on_integer_dtype(dtype):
    predictions, references = torch.randint(0, 200, (2, 3, 40, 30))
    references[0] = 255
    expected = ConfusionMatrix(200)
    expected.update(predictions, references)
    matrix = ConfusionMatrix(200)
    for prediction, reference in zip(predictions, references, strict=True):
        matrix.update(prediction.to(dtype), reference.to(dtype))
    assert torch.equal(matrix.counts, expected.counts)


def test_scores_match_evaluate():
    generator = np.random.default_rng(0)
    sizes = generator.integers(10, 60, (5, 2))
    references = [generator.integers(0, 9, size) for size in sizes]  # class 9 and 10 never occur, 11 is only predicted
    predictions = [np.where(generator.random(m.shape) < 0.6, m, 11) for m in references]
    for reference in references:
        reference[generator.random(reference.shape) < 0.1] = 255
    matrix = ConfusionMatrix(12)
    for pair in zip(predictions, references, strict=True):
        matrix.update(*map(torch.from_numpy, pair))
    scores, expected = matrix.scores(), evaluate_scores(predictions, references, 12, 255)
    for name in SCORES:
        np.testing.assert_allclose(scores[name], expected[name], rtol=1e-12, err_msg=name)
    assert np.isnan(scores["per_category_iou"][[9, 10]]).all() and scores["per_category_iou"][11] == 0
    labeled = np.array([sum((r == k).sum() for r in references) for k in range(12)])
    weighted = np.nansum(labeled * expected["per_category_iou"]) / labeled.sum()
    assert scores["frequency_weighted_iou"] == pytest.approx(weighted)
    iou = scores["per_category_iou"]
    np.testing.assert_allclose(scores["per_category_dice"], 2 * iou / (1 + iou))
    assert scores["mean_dice"] == pytest.approx(np.nanmean(2 * iou / (1 + iou)))


def test_matrices_of_two_processes_are_summed():
    predictions, references = torch.randint(0, 7, (2, 6, 20, 20))
    whole, halves = ConfusionMatrix(7), [ConfusionMatrix(7), ConfusionMatrix(7)]
    whole.update(predictions, references)
    for half, part in zip(halves, (slice(0, 4), slice(4, 6)), strict=True):
        half.update(predictions[part], references[part])
    halves[0].counts = halves[0].counts + halves[1].counts
    assert halves[0].scores()["mean_iou"] == whole.scores()["mean_iou"]
    assert torch.equal(halves[0].counts, whole.counts)


def test_empty_matrix_scores_are_nan():
    matrix = ConfusionMatrix(3)
    matrix.update(torch.zeros(4, 4, dtype=torch.long), torch.full((4, 4), 255))
    scores = matrix.scores()
    assert all(np.isnan(value).all() for value in scores.values())


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (torch.tensor([0, 3]), torch.tensor([0, 1]), "1 labels are no class.* 0 .. 2.*found predictions 3"),
        (torch.tensor([0, -1]), torch.tensor([0, 1]), "found predictions -1"),
        (torch.tensor([0, 1]), torch.tensor([7, 254]), "2 labels .*found references 7, 254"),
        (torch.tensor([0, 1]), torch.tensor([-100, 1]), "found references -100"),
        (torch.tensor([0, 1]), torch.tensor([[0, 1]]), r"\(2,\) and references \(1, 2\) differ in shape"),
        (torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), "predictions are class labels, integers; got float32"),
    ],
)
def test_invalid_labels_raise_and_are_not_counted(predictions, references, message):
    matrix = ConfusionMatrix(3)
    with pytest.raises(MetricError, match=message):
        matrix.update(predictions, references)
    assert not matrix.counts.any()


def test_asynchronous_device_raises_on_read():
    matrix = ConfusionMatrix(3)
    matrix.bins += matrix._sorted_out(torch.tensor([0, 3]), torch.tensor([0, 1]))
    with pytest.raises(MetricError, match="1 labels are no class"):
        matrix.scores()


def boundary_by_erosion(predictions, references, classes, ignored, reach):
    """The published method per class: a mask minus its erosion by 3 x 3, `reach` times; no border at ignored pixels."""
    left_out = references == ignored
    counts = np.zeros((3, classes), dtype=np.int64)
    for k in range(classes):
        bands = []
        for labels in (predictions, references):
            own = (labels == k) & ~left_out
            inner = binary_erosion(own | left_out, np.ones((3, 3)), iterations=reach, border_value=0)
            bands.append(own & np.logical_not(inner))
        counts[:, k] = (bands[0] & bands[1]).sum(), bands[0].sum(), bands[1].sum()
    return counts


@pytest.mark.parametrize("size", [(40, 60), (5, 3), (90, 31)])
@pytest.mark.parametrize("width", [0.02, 0.1])
def test_boundary_counts_match_erosion(size, width):
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 4, (1, 1, size[0] // 5 + 1, size[1] // 5 + 1), generator=generator).float()
    references = torch.nn.functional.interpolate(blocks, size).long()[0, 0]
    predictions = references.roll(1, 0)
    references[2:4, 1:20] = 255
    measure = BoundaryIoU(4, width=width)
    measure.update(predictions, references)
    expected = boundary_by_erosion(predictions.numpy(), references.numpy(), 4, 255, band_width(size, width))
    np.testing.assert_array_equal(measure.counts, expected)
    both, predicted, labeled = expected
    union = predicted + labeled - both
    iou = both[union > 0] / union[union > 0]
    assert measure.scores()["mean_boundary_iou"] == pytest.approx(iou.mean())


def test_boundary_iou_is_one_for_ground_truth_and_penalizes_ragged_edges():
    references = torch.zeros(200, 200, dtype=torch.long)
    references[50:150, 50:150] = 1
    ragged = references.clone()
    ragged[50:150, 50:53] = 0
    scores = []
    for predictions in (references, ragged):
        boundary, matrix = BoundaryIoU(2), ConfusionMatrix(2)
        boundary.update(predictions[None], references[None])
        matrix.update(predictions, references)
        scores.append((boundary.scores()["mean_boundary_iou"], matrix.scores()["mean_iou"]))
    assert scores[0] == (1, 1)
    assert scores[1][0] < scores[1][1] - 0.05
    with pytest.raises(MetricError, match="maps"):
        boundary.update(torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
