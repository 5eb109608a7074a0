import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hf_vit_seg.training.figures.classes import class_figure, reliability_figure
from hf_vit_seg.training.figures.confusion_figures import MAX_CLASSES, confusion_figure
from hf_vit_seg.training.figures.curves import metric_figure, moving_average, training_figure
from hf_vit_seg.training.figures.plots import draw_plots
from hf_vit_seg.training.reports.metrics_report import FILE, MetricsReport, write_report
from hf_vit_seg.training.reports.run_log import RunLog

SCORES = {
    "segmentation": {"mean_iou": 0.5, "overall_accuracy": 0.75, "mean_dice": float("nan")},
    "classification": {"accuracy": 0.5, "calibration_error": 0.1},
    "pose": {"oks_ap": 0.5, "oks_ap_large": float("nan")},
}
DRAWN = {
    "segmentation": {"training", "metrics", "per_class_iou", "precision_recall", "confusion_matrix"},
    "classification": {
        "training",
        "metrics",
        "per_class_accuracy",
        "precision_recall",
        "confusion_matrix",
        "reliability",
    },
    "pose": {"training", "metrics", "keypoint_scores"},
}


def build_report(task="segmentation", classes=3, seed=0):
    random = np.random.default_rng(seed)
    if task == "pose":
        return MetricsReport(task=task, scores=SCORES[task])
    confusion = random.integers(0, 50, (classes, classes)) + np.diag(random.integers(100, 400, classes))
    confusion[-1] = 0  # a class without a label
    iou = random.random(classes)
    iou[-1] = np.nan
    return MetricsReport(
        task=task,
        scores=SCORES[task] | ({"per_category_iou": iou} if task == "segmentation" else {}),
        names=tuple(f"class {k} of $K$" for k in range(classes)),
        confusion=confusion,
        reliability=np.array([[0, 4, 6], [0, 2.0, 5.4], [0, 1, 6]]) if task == "classification" else None,
    )


def write_log(folder, task="segmentation", steps=60):
    log = RunLog(folder)
    for step in range(1, steps + 1):
        loss = float("nan") if step == 7 else 2 / step
        log.step({"step": step, "loss": loss, "learning_rate": 1e-4, "grad_norm": 1.0, "images_per_second": 9.0})
        if step % 20 == 0:
            log.evaluation(step, SCORES[task])


@pytest.mark.parametrize("task", DRAWN)
def test_each_task_has_its_plots(tmp_path, task):
    write_log(tmp_path, task)
    (tmp_path / "best").mkdir()
    write_report(build_report(task), tmp_path / "best" / FILE)
    paths = draw_plots(tmp_path)
    assert {path.stem for path in paths} == DRAWN[task]
    assert sorted(paths) == sorted((tmp_path / "plots").iterdir())
    for path in paths:
        with Image.open(path) as picture:
            picture.load()
            assert len(picture.convert("L").getcolors()) > 10


def test_new_run_has_partial_plots(tmp_path):
    assert draw_plots(tmp_path) == []
    RunLog(tmp_path).step({"step": 1, "loss": 0.5})
    assert [path.name for path in draw_plots(tmp_path)] == ["training.png"]
    RunLog(tmp_path).evaluation(1, {"mean_iou": float("nan")})
    assert [path.name for path in draw_plots(tmp_path)] == ["training.png"]


def test_bars_are_sorted_by_score():
    report = build_report(classes=5)
    (axes,) = class_figure(report).axes
    widths = [bar.get_width() for bar in axes.patches[5:]]
    iou = report.scores["per_category_iou"]
    np.testing.assert_allclose(widths, [*np.sort(iou[:-1])[::-1], 0])
    order = [*np.argsort(-iou[:-1]), 4]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [rf"class {k} of \$K\$" for k in order]
    assert "absent" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(("classes", "towers"), [(1, 1), (50, 1), (51, 2), (150, 3), (400, 3)])
def test_many_classes_use_several_columns(classes, towers):
    figure = class_figure(build_report(classes=classes))
    assert len(figure.axes) == towers
    assert sum(len(axes.get_yticklabels()) for axes in figure.axes) == min(classes, 150)


def test_small_confusion_matrix_shows_row_percentages():
    report = MetricsReport(
        task="segmentation",
        scores={},
        names=("a", "b", "c"),
        confusion=np.array([[3, 1, 0], [0, 0, 0], [0, 999999, 1]]),
    )
    (axes,) = confusion_figure(report).axes
    written = {text.get_position(): text.get_text() for text in axes.texts}  # by (column, row)
    assert written == {(0, 0): "75.0", (1, 0): "25.0", (1, 2): "100.0", (2, 2): "<0.1"}
    shown = axes.images[0].get_array()
    assert shown.mask[1].all() and not shown.mask[[0, 2]].any()


def test_large_confusion_matrix_lists_the_worst_pairs():
    confusion = np.diag(np.full(30, 100))
    confusion[4, 17], confusion[20, 2] = 60, 40
    names = tuple(f"class {k}" for k in range(30))
    matrix, words = confusion_figure(
        MetricsReport(task="segmentation", scores={}, names=names, confusion=confusion)
    ).axes
    assert not matrix.texts
    assert [text.get_text() for text in words.texts] == [
        "Most frequent confusions",
        "class 4 taken for class 17",
        "37.5 % of class 4, 60.0 % of all mistakes",
        "class 20 taken for class 2",
        "28.6 % of class 20, 40.0 % of all mistakes",
    ]


def test_many_classes_show_only_those_with_errors():
    confusion = np.diag(np.full(MAX_CLASSES + 50, 10))
    confusion[180, 190] = 5
    names = tuple(map(str, range(len(confusion))))
    figure = confusion_figure(MetricsReport(task="segmentation", scores={}, names=names, confusion=confusion))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == MAX_CLASSES and {"180", "190"} <= set(labels)
    assert labels == sorted(labels, key=int)


def test_reliability_diagram_shows_calibration_error():
    report = build_report("classification")
    above, below = reliability_figure(report).axes
    assert above.get_legend().get_title().get_text() == "calibration error 0.1600"  # 0.4 * 0.25 + 0.6 * 0.1
    assert [bar.get_height() for bar in below.patches] == [0, 4, 6]


def test_best_evaluation_is_marked():
    lines = [{"step": step, "evaluation": {"mean_iou": value}} for step, value in ((10, 0.2), (20, 0.6), (30, 0.5))]
    (axes,) = metric_figure(lines).axes
    assert axes.get_title(loc="right") == "best 0.6000 at step 20"
    lower = [{"step": step, "evaluation": {"calibration_error": value}} for step, value in ((10, 0.2), (20, 0.1))]
    assert metric_figure(lower).axes[0].get_title(loc="right") == "best 0.1000 at step 20"


def test_selected_metric_is_plotted_first():
    lines = [{"step": 1, "evaluation": {"mean_iou": 0.5, "mean_dice": 0.6, "per_category_iou": [0.5]}}]
    assert metric_figure(lines).axes[0].get_title(loc="left") == "mIoU"
    assert metric_figure(lines, "mean_dice").axes[0].get_title(loc="left") == "mean Dice"


def test_non_finite_losses_are_marked():
    lines = [{"step": step, "loss": None if step == 3 else 1.0} for step in range(1, 6)]
    (axes,) = training_figure(lines).axes
    assert [text.get_text() for text in axes.texts] == ["not finite at 1 steps"]


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("reach", [1, 3, 100])
def test_centered_means_average_neighbors(reach):
    values = np.random.default_rng(0).normal(size=40)
    values[[3, 4, 5, 20]] = np.nan
    expected = [np.nanmean(values[max(i - reach, 0) : i + reach + 1]) for i in range(len(values))]
    np.testing.assert_allclose(moving_average(values, reach), expected, atol=1e-12)


def test_plots_do_not_import_pyplot_and_load_matplotlib_lazily():
    code = (
        "import sys; import hf_vit_seg.training.figures.plots as plots; assert 'matplotlib' not in sys.modules; "
        "from hf_vit_seg.training.figures.curves import training_figure; "
        "assert training_figure([{'step': 1, 'loss': 1.0}]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
