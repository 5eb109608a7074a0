"""Unusable samples that a run leaves out."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_runs import log, run, settings, weights, write_data, write_recipe

from hf_vit_seg.data.checks.check import BadDataError, check
from hf_vit_seg.training.checkpoints.state import CheckpointError
from hf_vit_seg.training.loop.trainer import RunStatus
from hf_vit_seg.training.recipe_loading import load_recipe
from hf_vit_seg.training.train_commands import evaluate_command

SKIP = "data.on_error=skip"


@pytest.fixture
def damaged(tmp_path) -> Path:
    """A recipe whose training and validation split have one damaged image each, and the same without these."""
    data = write_data(tmp_path / "data")
    shutil.copytree(data, tmp_path / "clean")
    (data / "train" / "images" / "03.png").write_bytes(b"no image")
    (data / "validation" / "images" / "01.png").write_bytes(b"")
    for name, split in (("03.png", "train"), ("01.png", "validation")):
        for kind in ("images", "masks"):
            (tmp_path / "clean" / split / kind / name).unlink()
    (tmp_path / "other").mkdir()
    write_recipe(tmp_path / "other", settings(tmp_path / "clean"))
    return write_recipe(tmp_path, settings(data))


def test_damaged_samples_are_errors_by_default(damaged, tmp_path):
    with pytest.raises(BadDataError, match=r"03\.png"):
        run(damaged, tmp_path / "run")


def test_skipping_damaged_samples_equals_training_without_them(damaged, tmp_path, capsys):
    few = ["loop.steps=4", "loop.log_every=1"]
    out, clean = tmp_path / "run", tmp_path / "clean_run"
    assert run(damaged, out, *few, SKIP, "data.max_skipped=0.4", "data.check=2") is RunStatus.finished
    assert "1 of 10 samples are skipped" in " ".join(capsys.readouterr().err.split())
    assert run(tmp_path / "other" / "recipe.yaml", clean, *few) is RunStatus.finished
    assert log(out) == log(clean)
    ours, theirs = weights(out / "last"), weights(clean / "last")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    skipped = json.loads((out / "skipped.json").read_text())
    assert [(each["split"], each["name"]) for each in skipped] == [("train", "03.png"), ("validation", "01.png")]
    assert all(each["reason"] for each in skipped) and not (clean / "skipped.json").exists()


def test_cached_and_shared_validation_splits_skip_samples(damaged, tmp_path):
    data = tmp_path / "data" / "train"
    source = f"data.train={{kind: folders, images: {data}/images, masks: {data}/masks}}"
    share = [source, "data.validation=null", "data.validation_share=0.3", "data.cache=true", "data.max_skipped=0.4"]
    out = tmp_path / "run"
    assert run(damaged, out, "loop.steps=2", "loop.evaluate_every=2", SKIP, *share) is RunStatus.finished
    skipped = json.loads((out / "skipped.json").read_text())
    assert [each["name"] for each in skipped] == ["03.png"]


def test_more_than_the_limit_is_an_error(damaged, tmp_path):
    with pytest.raises(BadDataError, match=r"data\.validation: 1 of 3 .*max_skipped"):
        run(damaged, tmp_path / "run", SKIP)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_resume_and_repaired_samples(damaged, tmp_path):
    out, skip = tmp_path / "run", [SKIP, "data.max_skipped=0.4"]
    run(damaged, out, "loop.steps=2", *skip)
    assert run(damaged, out, "loop.steps=3", *skip, resume=True) is RunStatus.finished
    for image in (tmp_path / "data" / "train" / "images").glob("04.png"):
        shutil.copy(image, image.with_name("03.png"))
    with pytest.raises(CheckpointError, match=r"9 samples in data\.train, found 10"):
        run(damaged, out, "loop.steps=4", *skip, resume=True)


def test_evaluate_lists_skipped_samples(damaged, tmp_path):
    out, skip = tmp_path / "run", [SKIP, "data.max_skipped=0.4"]
    run(damaged, out, "loop.steps=1", *skip)
    assert evaluate_command(str(out / "last"), [], None, "validation", tmp_path / "scores") == 0
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["images"] == 2
    assert [each["name"] for each in json.loads((tmp_path / "scores" / "skipped.json").read_text())] == ["01.png"]
    assert evaluate_command(str(out / "last"), ["data.max_skipped=0.1"], None, "validation", tmp_path / "few") == 2


def test_check_data_reports_skipped_samples_as_warnings(damaged):
    recipe = load_recipe(damaged, [SKIP, "data.max_skipped=0.4"])
    report = check(recipe)
    assert report.problems == [] and sum("skipped" in warning for warning in report.warnings) == 2
    assert len(report.splits["train"].facts) == 9 == len(report.splits["train"].dataset)
