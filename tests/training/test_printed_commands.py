"""Commands that are printed can be pasted into a shell."""

import shlex

import pytest

from hf_vit_seg.errors import HfVitSegError
from hf_vit_seg.training import train_commands
from hf_vit_seg.training.checkpoints.run_directory import RunDirectory
from hf_vit_seg.training.loop import trainer
from hf_vit_seg.training.loop.trainer import RunStatus, TrainingError, evaluate_on_test
from hf_vit_seg.training.recipe_loading import load_recipe
from hf_vit_seg.training.reports.metrics_report import MetricsReport
from hf_vit_seg.training.train_commands import print_results, resume_command

FOLDERS = ["plain", "my run", "it's; rm $HOME"]


@pytest.mark.parametrize("name", FOLDERS)
def test_paths_in_printed_commands_are_quoted(tmp_path, monkeypatch, capsys, name):
    directory = RunDirectory(tmp_path / name)
    arguments = shlex.split(resume_command(directory))
    assert arguments == ["hf-vit-seg", "train", str(directory.recipe), "--out", str(directory.path), "--resume"]
    print_results(directory, RunStatus.finished, load_recipe("nuclei"))
    line = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(line.removeprefix("next: ")) == [
        "hf-vit-seg", "predict", str(directory.model), "IMAGES", "--out", "FOLDER"
    ]  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_path_in_the_command_of_a_failed_evaluation_is_quoted(tmp_path, monkeypatch, name):
    def fail(*_: object) -> None:
        raise HfVitSegError("no test images")

    monkeypatch.setattr(trainer, "write_evaluation", fail)
    directory = RunDirectory(tmp_path / name)
    with pytest.raises(TrainingError) as error:
        evaluate_on_test(directory, load_recipe("nuclei"))
    command = "hf-vit-seg evaluate" + str(error.value).rpartition("hf-vit-seg evaluate")[2]
    assert shlex.split(command) == ["hf-vit-seg", "evaluate", str(directory.model), "--split", "test"]


@pytest.mark.parametrize(("split", "source"), [("validation", "train"), ("test", "test")])
def test_evaluation_prints_the_data_that_it_reads(tmp_path, monkeypatch, capsys, split, source):
    report = MetricsReport(task="segmentation", scores={"mean_iou": 0.5}, names=("background", "nucleus"))
    monkeypatch.setattr(train_commands, "evaluate_model", lambda *_, **__: report)
    recipe = load_recipe("nuclei")  # the validation split is a share of the training split
    assert train_commands.evaluate_command("model", [], "nuclei", split, tmp_path) == 0
    settings = recipe.data.model_dump()[source]
    line = f"data.{source}: images {settings['images']}, masks {settings['masks']}"
    assert line in capsys.readouterr().out.splitlines()
