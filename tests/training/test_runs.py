"""`hf_vit_seg.train` and `hf_vit_seg.evaluate`, and their results in notebooks."""

import inspect
import weakref
from html.parser import HTMLParser

import pytest
from accelerate import Accelerator
from tiny_runs import settings, write_data, write_recipe
from torch import nn

import hf_vit_seg
from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.training import train_commands
from hf_vit_seg.training.checkpoints.run_directory import RunDirectoryError
from hf_vit_seg.training.loop.trainer import RunStatus
from hf_vit_seg.training.reports.html_tables import paragraph, table
from hf_vit_seg.training.reports.metrics_report import read_report


class Cells(HTMLParser):
    """The texts of the cells of all tables, in rows."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path, settings(write_data(tmp_path / "data")))


def test_train_and_evaluate_equal_the_commands(recipe, tmp_path):
    result = hf_vit_seg.train(recipe, ["loop.steps=2"], out=str(tmp_path / "run"))
    assert (result.status, result.model) == (RunStatus.finished, tmp_path / "run" / "best")
    assert result.report is not None and result.report.step == 2
    report = hf_vit_seg.evaluate(result.model)
    assert report.scores["mean_iou"] == pytest.approx(result.report.scores["mean_iou"])
    folder = result.model / "evaluation_validation"
    assert read_report(folder / "metrics.json").scores["mean_iou"] == report.scores["mean_iou"]
    assert train_commands.evaluate_command(str(result.model), [], None, "validation", tmp_path / "again") == 0
    assert read_report(tmp_path / "again" / "metrics.json").numbers() == pytest.approx(report.numbers())


def test_model_is_freed_before_the_process_group_is_destroyed(recipe, tmp_path, monkeypatch):
    """With DistributedDataParallel alive, torch 2.8 can deadlock in the destructor of its process group."""
    models, freed = [], []

    def prepare(accelerator, *objects, **options):
        models.extend(weakref.ref(item) for item in objects if isinstance(item, nn.Module))
        return prepare_objects(accelerator, *objects, **options)

    def end_training(accelerator):
        freed.extend(reference() is None for reference in models)

    prepare_objects = Accelerator.prepare
    monkeypatch.setattr(Accelerator, "prepare", prepare)
    monkeypatch.setattr(Accelerator, "end_training", end_training)
    hf_vit_seg.train(recipe, ["loop.steps=1"], out=tmp_path / "run")
    assert freed and all(freed)


def test_settings_are_a_list_or_a_mapping(recipe, tmp_path):
    result = hf_vit_seg.train(recipe, {"loop.steps": 1, "loop.batch_size": 1}, out=tmp_path / "run")
    assert result.report is not None and result.report.step == 1
    with pytest.raises(HfVitSegError):
        hf_vit_seg.train(recipe, "loop.steps=1", out=tmp_path / "other")


def test_existing_run_is_preserved_unless_asked(recipe, tmp_path):
    first = hf_vit_seg.train(recipe, ["loop.steps=1"], out=tmp_path / "run")
    with pytest.raises(RunDirectoryError):
        hf_vit_seg.train(recipe, ["loop.steps=1"], out=tmp_path / "run")
    again = hf_vit_seg.train(recipe, ["loop.steps=2"], out=tmp_path / "run", overwrite=True)
    assert (first.report.step, again.report.step) == (1, 2)


def test_each_run_has_its_own_precision(recipe, tmp_path):
    """accelerate keeps the precision of the first run in a process."""
    losses = []
    for name, precision in (("low", "bf16"), ("full", "default"), ("again", "bf16")):
        overrides = ["loop.steps=2", f"loop.precision={precision}"]
        report = hf_vit_seg.train(recipe, overrides, out=tmp_path / name).report
        losses.append(report.confusion.tolist())
    assert losses[0] == losses[2] != losses[1]


def test_unknown_split_raises(recipe):
    with pytest.raises(HfVitSegError, match="did you mean 'test'"):
        hf_vit_seg.evaluate("model", recipe=recipe, split="tests")


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_arguments_have_the_names_of_the_options(name):
    from hf_vit_seg.cli import training

    options = {option.removesuffix("_model") for option in inspect.signature(getattr(training, name)).parameters}
    assert set(inspect.signature(getattr(hf_vit_seg, name)).parameters) == options - {"quiet", "traceback", "as_json"}


def test_report_is_a_table_in_notebooks(recipe, tmp_path):
    result = hf_vit_seg.train(recipe, ["loop.steps=1"], out=tmp_path / "run")
    rows = Cells(result.report._repr_html_()).rows
    assert rows[0] == ["class", "IoU", "accuracy", "Dice", "pixels"]
    assert [row[0] for row in rows[1:4]] == ["ground", "disc", "bar"]
    assert ["mIoU", f"{result.report.scores['mean_iou']:.4f}"] in rows
    assert str(result.model) in result._repr_html_() and result.report._repr_html_() in result._repr_html_()


def test_names_are_escaped():
    assert Cells(table(["<b>", "n"], [["<script>", "1"]])).rows == [["<b>", "n"], ["<script>", "1"]]
    assert "<script>" not in table(["a"], [["<script>"]]) + paragraph("<script>")
