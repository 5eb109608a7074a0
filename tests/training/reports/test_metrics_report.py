import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

from hf_vit_seg.metrics.confusion_matrix import ConfusionMatrix
from hf_vit_seg.training.reports.metrics_report import (
    FILE,
    MetricsReport,
    ReportError,
    read_report,
    report_text,
    report_view,
    write_report,
)

NAMES = ("sky", "[red]road", "never")


def segmentation_report(**other):
    matrix = ConfusionMatrix(3)
    matrix.update(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
    settings = {
        "task": "segmentation",
        "scores": matrix.scores(),
        "names": NAMES,
        "protocol": "whole image",
        "images": 4,
        "seconds_per_image": 0.25,
        "step": 10,
        "metric": "mean_iou",
        "confusion": matrix.counts,
    }
    return MetricsReport(**{**settings, **other})


def classification_report():
    confusion = np.array([[3, 1], [0, 4]])
    scores = {"accuracy": 7 / 8, "calibration_error": 0.1, "per_category_accuracy": np.array([0.75, 1.0])}
    reliability = torch.tensor([[2.0, 6.0], [0.5, 5.4], [1.0, 6.0]])
    return MetricsReport(
        task="classification", scores=scores, names=("cat", "dog"), confusion=confusion, reliability=reliability
    )


def pose_report():
    return MetricsReport(task="pose", scores={"oks_ap": 0.5, "oks_ap_large": float("nan")}, split="test")


REPORTS = (segmentation_report, classification_report, pose_report)


def render(report):
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(report_view(report))
    return console.file.getvalue()


@pytest.mark.parametrize("build", REPORTS)
def test_report_round_trip(tmp_path, build):
    report = build()
    write_report(report, tmp_path / FILE)
    again = read_report(tmp_path / FILE)
    for name in ("task", "names", "protocol", "images", "split", "step", "metric"):
        assert getattr(again, name) == getattr(report, name)
    np.testing.assert_equal(again.numbers(), report.numbers())
    np.testing.assert_equal(again.class_columns(), report.class_columns())
    np.testing.assert_equal(again.class_counts(), report.class_counts())
    if report.reliability is not None:
        np.testing.assert_equal(again.reliability, report.reliability.double().numpy())
    assert report_text(again) == report_text(report)


@pytest.mark.parametrize("build", REPORTS)
def test_file_is_strict_json(tmp_path, build):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    write_report(build(), tmp_path / FILE)
    json.loads((tmp_path / FILE).read_text(), parse_constant=refuse)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_per_class_rows_have_scores_and_pixels():
    parts = json.loads(report_text(segmentation_report()))
    assert parts["classes"][0] == {
        "name": "sky", "iou": pytest.approx(2 / 3), "accuracy": pytest.approx(2 / 3), "dice": 0.8, "pixels": 3
    }  # fmt: skip
    assert parts["classes"][2] == {"name": "never", "iou": None, "accuracy": None, "dice": None, "pixels": 0}
    assert parts["confusion_matrix"] == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_classification_reports_precision_and_f1():
    columns = classification_report().class_columns()
    np.testing.assert_allclose(columns["accuracy"], [3 / 4, 1])
    np.testing.assert_allclose(columns["precision"], [1, 4 / 5])
    np.testing.assert_allclose(columns["f1"], [6 / 7, 8 / 9])


def test_details_are_preserved(tmp_path):
    write_report(segmentation_report(details={"model": "nuclei", "rows": [[1, 2], [3, 4]]}), tmp_path / FILE)
    assert read_report(tmp_path / FILE).details == {"model": "nuclei", "rows": [[1, 2], [3, 4]]}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"classes": [], "scores": {}, "task": "singing"}'])
def test_unknown_file_raises(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ReportError, match=r"is not a valid metrics\.json"):
        read_report(tmp_path / FILE)


def test_console_shows_every_class_and_score():
    text = render(segmentation_report())
    for word in ("sky", "[red]road", "never", "mIoU", "pixel accuracy", "mean accuracy", "mean Dice"):
        assert word in text
    assert "frequency-weighted IoU" in text
    assert "4 images of the validation split at step 10, 0.25 s per image, whole image" in text
    row = next(line for line in text.splitlines() if line.startswith("never"))
    assert row.split() == ["never", "-", "-", "-", "0"]


def test_console_shows_tasks_without_classes():
    text = render(pose_report())
    assert "AP (OKS 0.50:0.95)" in text and "0.5000" in text
    assert "0 images of the test split" in text
