"""Figures and tables that a run writes: training batches, extreme samples, curves, results.csv, report.html."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_vit_seg.data.labels.class_table import ClassTable
from hf_vit_seg.models.image_processing_segmentation import SemanticSegmentationImageProcessor
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory
from hf_vit_seg.training.figures.classes import precision_recall_figure
from hf_vit_seg.training.figures.curves import training_figure
from hf_vit_seg.training.figures.html_report import write_html_report
from hf_vit_seg.training.figures.training_batches import SIDE, as_image, image_labels, training_batch_figure
from hf_vit_seg.training.loop import run_outputs
from hf_vit_seg.training.reports.metrics_report import FILE as METRICS
from hf_vit_seg.training.reports.metrics_report import (
    MetricsReport,
    about,
    describe_never_predicted,
    describe_unlabeled,
    write_report,
)
from hf_vit_seg.training.reports.results_table import result_rows, write_results
from hf_vit_seg.training.reports.run_log import RunLog, scalar_entries

TABLE = ClassTable(("sky", "road", "a < b"), ((0, 0), (1, 1), (2, 2)), palette=((255, 0, 0), (0, 255, 0), (0, 0, 255)))


def build_report(confusion):
    iou = np.full(len(confusion), 0.5)
    return MetricsReport(
        task="segmentation",
        scores={"mean_iou": 0.5, "per_category_iou": iou},
        names=tuple(f"class {k}" for k in range(len(confusion))),
        confusion=np.array(confusion),
    )


def test_normalization_is_undone():
    processor = SemanticSegmentationImageProcessor(size={"height": 8, "width": 8})
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    pixels = processor(image, return_tensors="pt")["pixel_values"][0]
    np.testing.assert_array_equal(np.array(as_image(pixels, processor)), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("task", "labels"),
    [
        ("segmentation", torch.tensor([[0, 1], [2, 255]]).repeat(2, 4, 4)),
        ("classification", torch.tensor([0, 2])),
        ("classification", torch.tensor([[0.3, 0.0, 0.7], [1.0, 1.0, 0.0]])),
        ("pose", torch.tensor([[[1.0, 2.0, 2.0], [3.0, 3.0, 0.0], [5.0, 6.0, 1.0]]] * 2)),
    ],
)
def test_training_batches_of_each_task_are_drawn(task, labels):
    processor = SemanticSegmentationImageProcessor(size={"height": 8, "width": 8})
    batch = {"pixel_values": torch.randn(2, 3, 8, 8), "labels": labels}
    figure = training_batch_figure(batch, task, TABLE, processor, "title")
    assert figure.width >= 2 * SIDE
    assert len(set(figure.get_flattened_data())) > 10


def test_objects_of_training_batches_have_their_own_colors():
    processor = SemanticSegmentationImageProcessor(size={"height": 8, "width": 8})
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4], masks[1, 4:6] = True, True
    ignored = torch.zeros(1, 8, 8, dtype=torch.bool)
    ignored[0, 6:] = True
    batch = {"pixel_values": torch.zeros(1, 3, 8, 8), "mask_labels": [masks], "class_labels": [torch.tensor([0, 0])]}
    assert [part.tolist() for part in image_labels(batch | {"ignore_mask": ignored})[0][[0, 4, 6], 0]] == [1, 2, -1]
    figure = np.array(training_batch_figure(batch, "instance", TABLE, processor))
    column = figure[:, figure.shape[1] - SIDE // 2].astype(int)
    assert np.abs(column[SIDE // 4] - column[SIDE * 5 // 8]).max() > 50


def test_labels_of_a_batch_have_the_colors_of_their_classes():
    processor = SemanticSegmentationImageProcessor(size={"height": 8, "width": 8})
    labels = torch.full((1, 8, 8), 1)
    batch = {"pixel_values": torch.zeros(1, 3, 8, 8), "labels": labels}
    figure = np.array(training_batch_figure(batch, "segmentation", TABLE, processor))
    right = figure[SIDE // 2, figure.shape[1] - SIDE // 2].astype(int)  # in the overlay
    assert right[1] > right[0] + 50 and right[1] > right[2] + 50


def test_results_have_a_row_for_each_evaluation(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 5):
        rates = {"learning_rates": {"encoder": 1e-4, "head": 1e-3}}
        log.step({"step": step, "epoch": step / 2, "loss": float(step), "learning_rate": 1e-4, **rates})
        if step % 2 == 0:
            log.evaluation(step, {"mean_iou": 0.1 * step, "loss": 3.0, "per_category_iou": np.zeros(3)})
    path = write_results(tmp_path)
    rows = list(csv.DictReader(path.open()))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert [float(row["training_loss"]) for row in rows] == [1.5, 3.5]
    assert [float(row["mean_iou"]) for row in rows] == pytest.approx([0.2, 0.4])
    assert {row["validation_loss"] for row in rows} == {"3.0"}
    assert not any("per_category" in name for name in rows[0])


def test_numbers_that_are_not_finite_are_empty_in_results():
    lines = [{"step": 1, "loss": None}, {"step": 1, "evaluation": {"mean_iou": None}}]
    assert result_rows(lines)[0] == {
        **{"step": 1, "epoch": "", "learning_rate": "", "images_per_second": "", "training_loss": "", "mean_iou": ""}
    }


def test_no_results_without_an_evaluation(tmp_path):
    assert write_results(tmp_path) is None
    assert not (tmp_path / "results.csv").exists()


def test_validation_loss_and_group_rates_are_drawn():
    rates = {"encoder": 1e-4, "head": 1e-3}
    lines = [
        {"step": 1, "loss": 2.0, "learning_rate": 1e-4, "learning_rates": rates},
        {"step": 5, "evaluation": {"mean_iou": 0.5, "loss": 7.0}},
    ]
    loss, rate = training_figure(lines).axes[:2]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]
    assert [text.get_text() for text in rate.get_legend().get_texts()] == ["recipe", "encoder", "head"]
    left, right = loss.get_xlim()
    assert left <= 1 and right >= 5 and loss.get_ylim()[1] >= 7
    assert all(float(tick).is_integer() for tick in rate.get_xticks())


def test_many_group_rates_are_a_range():
    rates = {f"layer {k}": 0.75**k for k in range(12)}
    (_, rate) = training_figure(
        [{"step": s, "loss": 1.0, "learning_rate": 1.0, "learning_rates": rates} for s in (1, 2)]
    ).axes
    assert [text.get_text() for text in rate.get_legend().get_texts()] == ["recipe", "12 groups"]


def test_mappings_are_flat_for_trackers():
    assert scalar_entries("learning_rates", {"head": 1}) == [("learning_rates/head", 1)]
    assert scalar_entries("loss", 2.0) == [("loss", 2.0)]


def test_precision_and_recall():
    report = build_report([[8, 2, 0], [0, 5, 0], [4, 0, 0]])
    precision, recall = report.precision_and_recall()
    np.testing.assert_allclose(precision, [8 / 12, 5 / 7, np.nan])
    np.testing.assert_allclose(recall, [0.8, 1, 0])
    axes = precision_recall_figure(report).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["class 1", "class 0", "class 2"]


def test_classes_that_are_never_predicted_are_named():
    assert describe_never_predicted(build_report([[8, 2], [0, 5]])) is None
    report = build_report([[8, 2, 0, 0], [0, 5, 0, 0], [5, 0, 0, 0], [0, 0, 0, 0]])  # class 3 has no labels
    assert report.never_predicted() == [2]
    sentence = describe_never_predicted(report) or ""
    assert "on the validation split" in sentence and "class 2 (25.00% of the labels)" in sentence


def test_classes_without_labels_are_named():
    assert describe_unlabeled(build_report([[8, 2], [0, 5]])) is None
    assert "1 of 3 classes have no labels in the validation split: class 1." in (
        describe_unlabeled(build_report([[8, 2, 0], [0, 0, 0], [0, 0, 4]])) or ""
    )


def test_report_is_one_file(tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "samples").mkdir()
    Image.new("RGB", (40, 30), (10, 20, 30)).save(tmp_path / "plots" / "training.png")
    Image.new("RGB", (4000, 30), (10, 20, 30)).save(tmp_path / "samples" / "worst_1.png")
    (tmp_path / "recipe.yaml").write_text("name: <script>alert(1)</script>\n")
    facts = {"samples": {"a": {"shape": [3, 5, 7], "dtype": "uint8", "fault": None}, "b": {"fault": "broken"}}}
    (tmp_path / "data_facts.json").write_text(json.dumps(facts))
    text = write_html_report(tmp_path, build_report([[8, 2], [0, 5]])).read_text()
    assert text.count("<img") == text.count('src="data:image/') == 2
    assert "<script>" not in text and "&lt;script&gt;" in text
    assert "http" not in text  # nothing is loaded
    assert text.count("<main>") == 1 and "<pre>" not in text  # a landmark; the keyboard reaches what scrolls
    assert "<td>unusable samples</td><td>1</td>" in text
    assert "No evaluation yet" in write_html_report(tmp_path, None).read_text()


def test_report_has_the_test_split(tmp_path):
    for folder in (tmp_path, tmp_path / "test"):
        for name in ("plots/per_class_iou", "samples/a"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (10, 20, 30)).save((folder / name).with_suffix(".png"))
    validation = build_report([[8, 2], [0, 5]])
    test = replace(validation, split="test", scores={**validation.scores, "mean_iou": 0.75})
    before = write_html_report(tmp_path, validation).read_text()
    assert f"<p>{about(test)}</p>" not in before
    write_report(test, tmp_path / "test" / METRICS)
    text = write_html_report(tmp_path, validation).read_text()
    assert text.count("<img") == 4
    assert f"<p>{about(validation)}</p>" in text and f"<p>{about(test)}</p>" in text
    assert "<td>mIoU</td><td>0.5000</td><td>0.7500</td>" in text


@pytest.mark.parametrize(
    ("duration", "drawn"),
    [(0.1, [6, 12, 18, 24, 30, 36]), (1.0, [6, 17, 28, 39])],  # seconds; an evaluation every two seconds
)
def test_plots_take_a_tenth_of_the_time(tmp_path, monkeypatch, duration, drawn):
    clock, found, tables = [0.0], [], []

    def draw(directory, report):
        found.append(round(clock[0]))
        clock[0] += duration

    monkeypatch.setattr(run_outputs, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(run_outputs, "draw_plots", draw)
    monkeypatch.setattr(run_outputs, "write_html_report", lambda directory, report: None)
    monkeypatch.setattr(run_outputs, "write_results", tables.append)
    outputs: Any = run_outputs.RunOutputs(SimpleNamespace(), RunDirectory(tmp_path))  # pyright: ignore[reportArgumentType]
    for _ in range(18):
        clock[0] += 2
        outputs.update(None)
    assert found == drawn and len(tables) == 18
